"""Does each step help on real ratings? Imitation above zero-shot, CL above that, and RLSO above CL, over three seeds.

    python experiments/sweep.py experiments/does_it_learn.py --run

The quickstart's run, some 22 minutes a seed on 2 cores. (experiments/after_imitation_long.py has RLSO with nine times as many profiles, for a GPU.)
"""

CONFIG, SEEDS = "configs/movielens.py", (0, 1, 2)
RUNS = {"imitation, CL, RLSO": {}}
