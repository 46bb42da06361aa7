"""Do recommendation tasks in titles make a better writer of profiles, and better than as many of the next title alone?

    python experiments/sweep.py experiments/warm_start.py --run

The quickstart's imitation, CL and RLSO, begun anew, or after 960 questions about items by their titles.
"""

CONFIG, SEEDS = "configs/movielens.py", (0, 1, 2)
CHANGES = {"evaluation.baselines": "items_popularity", "profile.samples": 1}
AFTER = "knowledge,imitation,contrastive,policy,residuals"
RUNS = {
    "no warm start": {},
    "next titles": {"phases": AFTER, "knowledge.tasks": "retrieval"},
    "all tasks": {"phases": AFTER},
}
