"""How strongly should the policy be held to the reference, the model as it was loaded?

    python experiments/sweep.py experiments/kl.py --run

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
WORDS = """On one H200 that eleven runs shared; profiles in bfloat16. One seed so far; intervals are over its 189 test
users alone. What they don't hold: the same CL and RLSO with the same seed, run twice, gained .0050 and .0086 (a
GPU's sums have no fixed order), so that single runs may differ by .004 for no reason. With rewards whitened per
user the coefficient is worth more than it looks: .01 and the paper's .2 hold the policy where it was (KL .005
and .001) and nothing is gained, .008 below the others and clear of zero; .001 lets it move a third as far as
none and gains as much. The paper's .2 belongs to its learning rate and to its rewards' size, not to these
steps."""
