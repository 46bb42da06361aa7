"""How many profiles G should a user have, when the number of profiles stays the same?

    python -m lpt_jax.sweep experiments/samples.py --run

All begin from the same CL; every update has 256 profiles, of 256 / G users.
"""

CONFIG, SEEDS = "configs/movielens.py:short", (0, 1, 2)
FIRST = {"phases": "contrastive"}
CHANGES = {"phases": "policy"}
RUNS = {
    "G = 8": {},
    "G = 2": {"policy.samples": 2, "policy.users": 128},
    "G = 4": {"policy.samples": 4, "policy.users": 64},
    "G = 16": {"policy.samples": 16, "policy.users": 16},
}
WORDS = """On one H200 that eleven runs shared; profiles in bfloat16. One seed so far; intervals are over its 189 test
users alone. What they don't hold: the same CL and RLSO with the same seed, run twice, gained .0050 and .0086 (a
GPU's sums have no fixed order), so that single runs may differ by .004 for no reason. Only two of the four have
been run: two profiles a user gain less than eight and move three times as far from the reference. The
difference is not clear of zero."""
