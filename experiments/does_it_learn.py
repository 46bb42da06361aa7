"""Does each step help on real ratings? Imitation above zero-shot, CL above that, and RLSO above CL, over three seeds.

    python experiments/sweep.py experiments/does_it_learn.py --run

About an hour a seed on 2 cores. The table and picture beside this file are of three seeds of version 0.1, without imitation, edits
and summaries, written by an earlier script of the same name with the same bootstrap.
"""

CONFIG, SEEDS = "configs/movielens.py:long", (0, 1, 2)
RUNS = {"imitation, CL, RLSO": {}}
