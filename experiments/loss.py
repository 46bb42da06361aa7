"""Which loss makes most of the same number of sampled profiles: REBEL, REINFORCE leave-one-out, or GRPO?

    python experiments/sweep.py experiments/loss.py --run

All begin from the same CL, sample 10,240 profiles and see the same users in the same order. Two epochs over each rollout
batch, as with one epoch REBEL and RLOO have the same direction.
"""

CONFIG, SEEDS = "configs/movielens.py:short", (0, 1, 2)
FIRST = {"phases": "contrastive"}
CHANGES = {"phases": "policy", "policy.epochs": 2}
RUNS = {"REBEL": {}, "RLOO": {"policy.loss": "rloo"}, "GRPO": {"policy.loss": "grpo"}}
WORDS = """Seed 0 on one H200 that eleven runs shared, seed 1 (without GRPO) on two CPU cores, one for each run, from a CL
trained there. Intervals are over the same 189 test users and don't hold that the same CL and RLSO, run twice,
gained .0050 and .0086 (sums have no fixed order). RLOO gains on both seeds (+.0114, +.0096), GRPO on its one;
REBEL loses what CL had on one (-.0086, ending at a KL of 20) and gains nothing on the other (+.0015, KL 1.8):
.0141 less than RLOO, clear of zero. With one epoch, where its direction is RLOO's, the same REBEL gains .0086
(reward.md); it is the second epoch that hurts. A conjecture why: its error is squared, of log-ratios against
rewards' differences, and after a first step of fixed length (`unit_sgd`) some profiles have moved beyond theirs
and rule the second gradient. On seed 0 it is three times as long in the ten steps where log-ratios moved most
as in the ten where they moved least (116, 36). RLOO's second gradient has no such term, and GRPO's is clipped.
Until that is settled, use one epoch with REBEL and unit steps, or RLOO."""
