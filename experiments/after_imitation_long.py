"""What does RLSO add after imitation, by which loss, at equal numbers of profiles? And imitating the best of them instead?

    python experiments/sweep.py experiments/after_imitation_long.py --run

All begin from the same imitation and CL. The first three sample 14,080 profiles and use each once; the last samples 14,388, 11 of
each training session, and imitates the best of each by the same reward, in as many steps. On an accelerator without a network:
`python -m experiments.long_run`.
"""

CONFIG, SEEDS = "configs/movielens.py:long", (0, 1, 2)
FIRST = {"phases": "imitation,contrastive"}
CHANGES = {"phases": "policy"}
RUNS = {
    "REBEL": {},
    "RLOO": {"policy.loss": "rloo"},
    "GRPO": {"policy.loss": "grpo"},
    "best of 11, imitated": {
        "phases": "imitation",
        "imitation.texts": "best",
        "imitation.samples": 11,
        "imitation.steps": 110,
        "imitation.evaluate_every": 55,
    },
}
