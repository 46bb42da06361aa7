"""How much does each phase give, alone and after the other, and what does a second iteration add?

    python -m lpt_jax.sweep experiments/phases.py --run

Two iterations have half the steps each.
"""

CONFIG, SEEDS = "configs/movielens.py:short", (0, 1, 2)
RUNS = {
    "CL, RLSO": {},
    "RLSO alone": {"phases": "policy"},
    "RLSO, CL": {"phases": "policy,contrastive"},
    "twice CL, RLSO": {"iterations": 2, "contrastive.steps": 40, "policy.steps": 20},
}
WORDS = """On one H200 that eleven runs shared; profiles in bfloat16. Two seeds of CL, RLSO, one of the others. CL gives
four times what RLSO gives alone; both are worth having in either order. The order matters more than expected:
RLSO first, against the untrained embedder, and CL on what it then writes ends highest, .011 above the paper's
order; two rounds of half the steps come next. The embedder that is trained last has seen the profiles it is
tested with. To be repeated with more seeds before anybody leans on it."""
