"""How many profiles G should a user have, when the number of profiles stays the same?

    python experiments/sweep.py experiments/samples.py --run

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
WORDS = """G of 8 and 2 were run on one H200 that eleven runs shared, 4 and 16 on two CPU cores, one each, from a CL of the
same seed that was trained there and starts .0035 higher: so gains since the start are compared, not ends. One
seed; intervals are over its 189 test users alone, and don't hold that the same CL and RLSO, run twice, gained
.0050 and .0086 (sums have no fixed order). Between 4 and 16 profiles a user there is nothing to choose: +.0079
to +.0100, all clear of zero. Two a user gain half of that, not clear of zero, and move two to three times as
far from the reference. Time speaks for many: the same 256 profiles of 16 users are 16 prompts to read instead
of 64, and the run took 25 minutes on a core instead of 42."""
