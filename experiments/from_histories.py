"""Is an embedder that first learned from raw histories the better start for contrastive learning of texts that people can read?

    python experiments/sweep.py experiments/from_histories.py --run

Both runs end after 128 steps of CL, as the quickstart does: 64 of raw histories and then 64 of summaries, or 128 of summaries.
"""

CONFIG, SEEDS = "configs/movielens.py", (0, 1, 2)
FIRST = {
    "phases": "contrastive",
    "contrastive.texts": "histories",
    "contrastive.steps": 64,
    "contrastive.edits": 0.0,
    "evaluation.baselines": "items_popularity",
    "audit.profiles": 0,
    "profile.samples": 1,
}
CHANGES = {"phases": "contrastive", "evaluation.baselines": "items_popularity", "profile.samples": 1}
ROW = "summary"  # of texts that are the same in both
RUNS = {"128 of summaries": {"begin_from": ""}, "64 of raw histories, 64 of summaries": {"contrastive.steps": 64}}
WORDS = """The start gains with every seed, and on validation (.2541, .2441, .2561 against .2385, .2232, .2447). But it has forgotten how to listen,
and 64 steps, of which a quarter are edits, don't bring that back: a like appended to a summary changes its share by .15 to .19 (.74 to .76 without that
start) and is right in .75 to .83 (1.00), a dislike in .59 to .65 (.83 to .86). So the quickstart doesn't begin so. With edits
among the raw histories, too, control is whole and little of the gain is left (one seed; LOG.md): it is mostly what edits cost."""
