"""Recommendation knowledge on MovieLens-100k: a small T5 from scratch reads films with their stars and names the next one.

    python -m lpt_jax.main --config=configs/knowledge_ml.py

Titles and stars are there, so all six tasks are learned. Each user's last film is for the test, and the one before for validation.
Hardware: 2 CPU cores. The variant :tiny takes a minute and downloads nothing.
"""

from lpt_jax.config import LAST_ITEM, choose, default


def get_config(variant: str = ""):
    c = default("knowledge")
    c.name = "knowledge_ml"
    c.data.update(source="movielens", path="carrier:recbole", kind="movies", item_fields="title,genres", **LAST_ITEM)
    c.tasks.update(steps=1500, title_words=3, max_tokens=160, history_items=12, evaluate_every=300)
    c.codes.update(levels=3, width=16)
    c.evaluation.update(metric="ndcg@10", baselines="popularity,transitions,item_knn,ease")
    return choose(c, variant)
