"""Which loss makes most of the same number of sampled profiles: REBEL, REINFORCE leave-one-out, or GRPO?

    python -m lpt_jax.sweep experiments/loss.py --run

All begin from the same CL, sample 10,240 profiles and see the same users in the same order. Two epochs over each rollout
batch, as with one epoch REBEL and RLOO have the same direction.
"""

CONFIG, SEEDS = "configs/movielens.py:short", (0, 1, 2)
FIRST = {"phases": "contrastive"}
CHANGES = {"phases": "policy", "policy.epochs": 2}
RUNS = {"REBEL": {}, "RLOO": {"policy.loss": "rloo"}, "GRPO": {"policy.loss": "grpo"}}
