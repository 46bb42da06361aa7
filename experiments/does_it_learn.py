"""Does each step of LangPTune help on real ratings? CL above zero-shot, and CL + RLSO above CL, over three seeds.

    python experiments/sweep.py experiments/does_it_learn.py --run

About 45 minutes a seed on 2 cores. The table and picture beside this file are of three such seeds, written by an earlier
script of the same name, with the same bootstrap.
"""

CONFIG, SEEDS = "configs/movielens.py:long", (0, 1, 2)
RUNS = {"CL, RLSO": {}}
