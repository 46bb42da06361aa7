"""How strongly should the policy be held to the reference, the model as it was loaded?

    python -m lpt_jax.sweep experiments/kl.py --run

All begin from the same CL, and see the same users in the same order; the reward is NDCG minus kl_coef times the
log-ratio of policy and reference, summed over a profile's tokens.
"""

CONFIG, SEEDS = "configs/movielens.py:short", (0, 1, 2)
FIRST = {"phases": "contrastive"}
CHANGES = {"phases": "policy"}
RUNS = {
    "0": {},
    "0.001": {"policy.kl_coef": 0.001},
    "0.01": {"policy.kl_coef": 0.01},
    "0.2, the paper's": {"policy.kl_coef": 0.2},
}
