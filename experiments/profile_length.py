"""How long should profiles be?

    python -m lpt_jax.sweep experiments/profile_length.py --run

Each length has both phases of its own, as CL reads the profiles.
"""

CONFIG, SEEDS = "configs/movielens.py:short", (0, 1, 2)
RUNS = {"24 tokens": {}, "12 tokens": {"profile.max_tokens": 12}, "48 tokens": {"profile.max_tokens": 48}}
WORDS = """On one H200 that eleven runs shared; profiles in bfloat16. Two seeds of 24 and 12 tokens, one of 48. Twelve
tokens cost little: .063 of NDCG gained in all against .068, and half of what RLSO gives (+.0025 against
+.0043). Between 24 and 48 there is no difference to see, though RLSO gives more to the longer ones (+.0087). At
48 profiles end by themselves (40 tokens on average); at 24 RLSO fills all that is allowed."""
