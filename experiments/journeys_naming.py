"""How well are interest journeys named: by a model that is asked, shown examples, or taught; and by rules?

python experiments/sweep.py experiments/journeys_naming.py --run
"""

CONFIG, SEEDS, PART, METRIC = "configs/journeys.py", (0, 1, 2), "naming", "top1"
RUNS = {"Amazon Beauty": {}}
