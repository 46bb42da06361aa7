"""Is an embedder that first learned from raw histories the better start for contrastive learning of texts that people can read?

    python experiments/sweep.py experiments/from_histories.py --run

Both runs end after 128 steps of CL, as the quickstart does: 64 of raw histories and then 64 of summaries, or 128 of summaries.
"""

CONFIG, SEEDS = "configs/movielens.py", (0, 1, 2)
FIRST = {
    "phases": "contrastive",
    "contrastive.texts": "histories",
    "contrastive.steps": 64,
    "evaluation.baselines": "items_popularity",
    "audit.profiles": 0,
    "profile.samples": 1,
}
CHANGES = {"phases": "contrastive", "evaluation.baselines": "items_popularity", "profile.samples": 1}
RUNS = {"128 of summaries": {"begin_from": ""}, "64 of raw histories, 64 of summaries": {"contrastive.steps": 64}}
