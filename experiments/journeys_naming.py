"""How well are interest journeys named: by a model that is asked, shown examples, or taught; and by rules?

    python experiments/sweep.py experiments/journeys_naming.py --run

Five items of each test collection, four times, among all test names; a name counts once, however many samples and seeds there are.
"""

CONFIG, SEEDS, PART, METRIC = "configs/journeys.py", (0, 1, 2), "naming", "top1"
RUNS = {"Amazon Beauty": {}}
