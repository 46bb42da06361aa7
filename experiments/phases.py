"""How much does each phase give, alone and after the other, and what does a second iteration add?

    python experiments/sweep.py experiments/phases.py --run

Two iterations have half the steps each.
"""

CONFIG, SEEDS = "configs/movielens.py:short", (0, 1, 2)
RUNS = {
    "CL, RLSO": {},
    "RLSO alone": {"phases": "policy"},
    "RLSO, CL": {"phases": "policy,contrastive"},
    "twice CL, RLSO": {"iterations": 2, "contrastive.steps": 40, "policy.steps": 20},
}
WORDS = """On one H200 that eleven runs shared; profiles in bfloat16. Two seeds of CL then RLSO, one of the others; single
runs may differ by .004 for no reason (profile_length.md). CL gives four times what RLSO gives alone; RLSO after
CL is not clear of zero here (does_it_learn.md, with three seeds, is). The order matters more than
expected: RLSO first, against the untrained embedder, and then CL on what that policy writes ends highest, .011
above the paper's order; two rounds of half the steps come next. In both the embedder is trained last, or again,
on profiles of the policy that also writes in the test. To be repeated with more seeds before anybody leans on
it."""
