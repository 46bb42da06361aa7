"""The paper's Llama recipe: the last 4 layers of Llama-3-8B-Instruct, mxbai-embed-large-v1, Amazon 2023 Movies and TV.

    python -m lpt_jax.main --config=configs/movies_tv_llama.py

What differs from configs/movies_tv_gemma.py, which says where the rest is from. Llama's weights need its licence accepted
on the Hugging Face hub. Hardware: 16 accelerators of 16 GB, or fewer larger ones. Minutes and result: see README. The variant :tiny
takes a minute on a CPU and downloads nothing.
"""

import importlib.util
from pathlib import Path

from lpt_jax.config import choose


def get_config(variant: str = ""):
    place = importlib.util.spec_from_file_location("gemma", Path(__file__).with_name("movies_tv_gemma.py"))
    gemma = importlib.util.module_from_spec(place)
    place.loader.exec_module(gemma)
    c = gemma.get_config()
    c.name = "movies_tv_llama"
    c.lm.source = "meta-llama/Meta-Llama-3-8B-Instruct"
    c.contrastive.update(steps=2500, learning_rate=3e-7, evaluate_every=250)
    c.policy.update(steps=500, trains="last_layers", last_layers=4, kl_coef=0.0, learning_rate=3e-7, evaluate_every=100)
    return choose(c, variant)
