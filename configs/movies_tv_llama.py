"""The paper's Llama recipe: the last 4 layers of Llama-3-8B-Instruct, mxbai-embed-large-v1, Amazon 2023 Movies and TV.

    python -m lpt_jax.main --config=configs/movies_tv_llama.py

The hyper-parameters are those of LangPTune (arXiv 2410.18870) and its authors' command; the split, the k-core, the
history (at most the last 4 items) and the item text (without the average rating of later reviews) are ours: see README.
Llama's weights need its licence accepted on the Hugging Face hub. Hardware: 8 accelerators of 32 GB or more. Minutes
and result: see README. The variant :tiny takes a minute on a CPU and downloads nothing.
"""

from lpt_jax.config import choose, default


def get_config(variant: str = ""):
    c = default()
    c.name = "movies_tv_llama"
    c.iterations = 5
    c.data.update(
        source="amazon",
        year=2023,
        name="Movies_and_TV",
        kind="movies and TV shows",
        item_fields="title,description,categories,price",
        prompt_fields="title,description,categories,price,rating,review",
        windows=1,
    )
    c.decoder.update(source="meta-llama/Meta-Llama-3-8B-Instruct", dtype="bfloat16")
    c.encoder.update(source="mixedbread-ai/mxbai-embed-large-v1", dtype="bfloat16", batch=256)
    c.prompt.update(max_tokens=1024, history_items=4, style="paper")
    c.profile.update(max_tokens=512, batch=64)
    c.contrastive.update(
        steps=2500,
        batch=128,  # 32 on each of 4 GPUs
        temperature=0.1,
        learning_rate=3e-7,
        warmup=0,
        weight_decay=0.01,
        popularity_correction=False,
        evaluate_every=250,
    )
    c.policy.update(
        steps=500,
        users=64,
        samples=2,
        temperature=1.0,
        trains="last_layers",
        last_layers=4,
        loss="rebel",
        eta=1.0,
        kl_coef=0.0,
        whiten=True,
        epochs=4,
        reward="ndcg",
        learning_rate=3e-7,
        warmup=0,
        weight_decay=0.01,
        evaluate_every=100,
    )
    c.evaluation.max_users = 1000
    c.mesh.update(data=1, fsdp=-1)
    c.checkpoint.every = 50
    return choose(c, variant)
