"""Which loss makes most of the same number of sampled profiles: REBEL, REINFORCE leave-one-out, or GRPO?

    python -m lpt_jax.sweep experiments/loss.py --run

All begin from the same CL, sample 10,240 profiles and see the same users in the same order. Two epochs over each rollout
batch, as with one epoch REBEL and RLOO have the same direction.
"""

CONFIG, SEEDS = "configs/movielens.py:short", (0, 1, 2)
FIRST = {"phases": "contrastive"}
CHANGES = {"phases": "policy", "policy.epochs": 2}
RUNS = {"REBEL": {}, "RLOO": {"policy.loss": "rloo"}, "GRPO": {"policy.loss": "grpo"}}
WORDS = """On one H200 that eleven runs shared; profiles in bfloat16. One seed so far; intervals are over its 189 test
users alone. What they don't hold: the same CL and RLSO with the same seed, run twice, gained .0050 and .0086 (a
GPU's sums have no fixed order), so that single runs may differ by .004 for no reason. RLOO gains most, GRPO
less, and REBEL loses what CL had: it ends far from the reference (KL 20). With one epoch, where its direction
is RLOO's, the same REBEL gains .0086 (reward.md); it is the second epoch that hurts. A conjecture why: its
error is squared, of log-ratios against rewards' differences, and after a first step of fixed length
(`unit_sgd`) some profiles have moved beyond theirs and rule the second gradient. It is three times as long in
the ten steps where log-ratios moved most as in the ten where they moved least (116, 36). RLOO's second gradient
has no such term, and GRPO's is clipped. Until that is settled, use one epoch with REBEL and unit steps, or
RLOO."""
