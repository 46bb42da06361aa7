"""How long should profiles be?

    python -m lpt_jax.sweep experiments/profile_length.py --run

Each length has both phases of its own, as CL reads the profiles.
"""

CONFIG, SEEDS = "configs/movielens.py:short", (0, 1, 2)
RUNS = {"24 tokens": {}, "12 tokens": {"profile.max_tokens": 12}, "48 tokens": {"profile.max_tokens": 48}}
