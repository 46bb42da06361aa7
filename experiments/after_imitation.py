"""What does RLSO add after imitation, by which loss, at equal numbers of profiles? And imitating the best of them instead?

    python experiments/sweep.py experiments/after_imitation.py --run

All begin from the quickstart's imitation and CL. RLSO samples 1,536 profiles and uses each once, in 12 steps of one length; so REBEL and
RLOO take the same steps (tests/learning/test_policy.py), and one run stands for both. The last samples 1,540, 11 of each of 140
training sessions, and imitates the best of each by the same reward, twice.
"""

CONFIG, SEEDS = "configs/movielens.py", (0, 1, 2)
FIRST = {"phases": "imitation,contrastive"}
CHANGES = {
    "phases": "policy",
    "policy.evaluate_every": 6,
    "evaluation.baselines": "items_popularity",
    "profile.samples": 1,
}
RUNS = {
    "REBEL, RLOO": {"policy.keep_best": False},  # as imitation
    "GRPO": {"policy.keep_best": False, "policy.loss": "grpo"},
    "best of 11, imitated": {
        "phases": "imitation",
        "imitation.texts": "best",
        "imitation.samples": 11,
        "imitation.sessions": 140,
        "imitation.steps": 36,
        "imitation.evaluate_every": 18,
    },
}
WORDS = """All three raise every seed's held-out ranking: REBEL (and so RLOO) +.0225, +.0276, +.0323, GRPO +.0239, +.0312, +.0342,
the best imitated +.0242, +.0322, +.0158 (seeds 0, 1, 2). RLSO also ends every profile, and its profiles tell a little more. REBEL's
reward on validation was as high after six steps, 768 profiles, as after twelve: from .437, .411, .417 it rose to .485, .456, .494 and then .487, .450, .488;
no run ended there. The minutes of imitation are a mean over 51 (beside other work), 6 and 7."""
