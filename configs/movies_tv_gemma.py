"""The paper's Gemma recipe: Gemma-2b-it with LoRA, mxbai-embed-large-v1, Amazon 2023 Movies and TV.

    python -m lpt_jax.main --config=configs/movies_tv_gemma.py

The hyper-parameters are those of LangPTune (arXiv 2410.18870) and its authors' command; the split, the k-core, the
history (at most the last 4 items) and the item text (without the average rating of later reviews) are ours: see README.
Gemma's weights need its terms accepted on the Hugging Face hub. Hardware: 8 accelerators of 16 GB or more. Minutes
and result: see README. The variant :tiny takes a minute on a CPU and downloads nothing; :colab trains LoRA of rank 16, with smaller
batches and shorter profiles, on the one v5e chip of 16 GB that a Colab notebook gives.
"""

from lpt_jax.config import choose, default


def get_config(variant: str = ""):
    c = default()
    c.name = "movies_tv_gemma"
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
    c.lm.update(source="google/gemma-2b-it", dtype="bfloat16")
    c.embedder.update(source="mixedbread-ai/mxbai-embed-large-v1", dtype="bfloat16", batch=256)
    c.prompt.update(max_tokens=1024, history_items=4, style="paper")
    c.profile.update(max_tokens=512, batch=64)
    c.contrastive.update(
        steps=800,
        batch=128,  # 32 on each of 4 GPUs
        temperature=0.1,
        learning_rate=1e-7,
        warmup=0,
        weight_decay=0.01,
        edits=0.0,  # neither these, nor the terms of the score, are the paper's
        texts="profiles",
        evaluate_every=100,
    )
    c.score.update(popularity=0.0, rejected=0.0)
    c.policy.update(
        steps=200,
        users=64,
        samples=2,
        temperature=1.0,
        trains="lora",
        loss="rebel",
        eta=1.0,
        kl_coef=0.2,
        whiten=True,
        epochs=4,
        accumulation=4,  # for devices of 16 GB; the same updates
        reward="ndcg",
        learning_rate=1e-7,
        warmup=0,
        weight_decay=0.01,
        evaluate_every=50,
    )
    c.policy.lora.update(rank=1024, alpha=2048.0, targets="q|k|v|o|gate|up|down|head")
    c.evaluation.max_users = 1000
    c.mesh.update(data=1, fsdp=-1)
    c.checkpoint.every = 50
    return choose(c, variant, colab=colab)


def colab(c):
    """What one chip of 16 GB holds: a small adapter, shorter prompts and profiles, smaller batches."""
    c.name = "movies_tv_gemma_colab"
    c.prompt.max_tokens = 512
    c.profile.update(max_tokens=128, batch=32)
    c.embedder.update(batch=64, max_item_tokens=256, max_profile_tokens=256)
    c.contrastive.update(batch=24, learning_rate=3e-7)
    c.policy.update(users=16, samples=2, learning_rate=1e-5)
    c.policy.lora.update(rank=16, alpha=32.0)
    c.evaluation.update(max_users=200, max_test_sessions=1000)
    c.evaluation.baselines = "random,popularity,last_item,history_text"  # the control is a second embedder
    return c
