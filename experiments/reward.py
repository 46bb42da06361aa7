"""Which reward should the profile's ranking earn: NDCG, reciprocal rank, or something smoother?

    python -m lpt_jax.sweep experiments/reward.py --run

All begin from the same CL, and see the same users in the same order. `dense` is mostly NDCG, with a share of
the softmax at the targets, `likelihood` the logarithm of that (lpt_jax/rewards.py). Rewards are whitened: their sizes don't matter.
"""

CONFIG, SEEDS = "configs/movielens.py:short", (0, 1, 2)
FIRST = {"phases": "contrastive"}
CHANGES = {"phases": "policy"}
RUNS = {
    "NDCG": {},
    "MRR": {"policy.reward": "mrr"},
    "dense": {"policy.reward": "dense"},
    "likelihood": {"policy.reward": "likelihood"},
}
WORDS = """On one H200 that eleven runs shared; profiles in bfloat16. One seed so far (the others were cut off with the
machine's time): intervals are over its 189 test users alone. All four gain; that of NDCG is the largest and,
with the dense reward's, the only one clear of zero. None of the differences between rewards is. The ranking's
own metric costs nothing to compute and needs no smoothing here, as eight profiles of a user rarely tie."""
