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
WORDS = """On one H200 that eleven runs shared; profiles in bfloat16. One seed, and only two of the four so far: two
profiles a user gain less than eight and move three times as far from the reference. The difference is not clear
of zero."""
