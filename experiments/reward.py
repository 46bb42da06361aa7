"""Which reward should the profile's ranking earn: NDCG, reciprocal rank, or something smoother?

    python experiments/sweep.py experiments/reward.py --run

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
WORDS = """On one H200 that eleven runs shared; profiles in bfloat16. One seed so far; intervals are over its 189 test
users alone. What they don't hold: the same CL and RLSO with the same seed, run twice, gained .0050 and .0086 (a
GPU's sums have no fixed order), so that single runs may differ by .004 for no reason. All four rewards gain;
that of NDCG most, and only it and the dense one clear of zero. None of the differences between rewards is. The
ranking's own metric needs no smoothing here: eight profiles of a user rarely tie."""
