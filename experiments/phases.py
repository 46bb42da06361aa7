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
