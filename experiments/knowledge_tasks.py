"""Do the other tasks help to name the next item, at equal tokens? The claim of "Aligning Large Language Models with Recommendation Knowledge".

    python experiments/sweep.py experiments/knowledge_tasks.py --run

Each update reads and writes 4,096 tokens, of one task; there are as many updates whatever is mixed.
"""

CONFIG, SEEDS, METRIC = "configs/knowledge.py", (0, 1, 2), "ndcg@10"
CHANGES = {"tasks.tokens": 4096, "tasks.title_words": 4, "evaluation.baselines": "popularity"}
RUNS = {
    "retrieval alone": {},
    "+ hidden items (MIM)": {"tasks.weights.retrieval": 0.7, "tasks.weights.hidden_item": 0.3},
    "+ hidden words (MLM)": {"tasks.weights.retrieval": 0.7, "tasks.weights.hidden_words": 0.3},
    "+ preference (BPR)": {"tasks.weights.retrieval": 0.7, "tasks.weights.preference": 0.3},
    "all": {
        "tasks.weights.retrieval": 0.4,
        "tasks.weights.ranking": 0.15,
        "tasks.weights.hidden_item": 0.15,
        "tasks.weights.hidden_words": 0.15,
        "tasks.weights.preference": 0.15,
    },
}
