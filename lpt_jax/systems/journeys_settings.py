"""The settings of interest journeys (systems/journeys.py): how they are found, named, and ranked by."""

import re

from ml_collections import ConfigDict

from lpt_jax.systems.shared_settings import (
    JOURNEYS,
    MODELS,
    check_journeys,
    group,
    journeys,
    language_model,
    lora,
    optimiser,
    soft_prompt,
    text_embedder,
)

PHASES = ("prompt_tuning", "fine_tuning")
CHOICES = MODELS | {
    "names.by": ("lm", "words"),
    "collections.source": ("categories", "genres", "tags", "file"),
    "prompt_tuning.trains": ("soft_prompt",),
    "fine_tuning.trains": ("last_layers", "lora"),
    **dict.fromkeys((f"{phase}.optimiser" for phase in PHASES), ("adamw", "unit_sgd")),
    **dict.fromkeys((f"{phase}.schedule" for phase in PHASES), ("constant", "linear")),
}
LISTS = {"phases": PHASES}  # comma-separated settings: what they may name
MAY_BE_ZERO = [
    *("journeys.vectors", "prompt.words", "prompt.shots"),
    *(f"{phase}.{name}" for phase in PHASES for name in ("steps", "warmup", "weight_decay")),
]
MAY_BE_NEGATIVE = JOURNEYS


def tuning(trains: str, steps: int, learning_rate: float) -> ConfigDict:
    """Of a phase that teaches the language model to name collections."""
    return group(
        steps=steps,  # updates
        batch=8,  # collections per update
        draws=8,  # different samples of each training collection's items
        trains=trains,  # soft_prompt (prompt tuning) | last_layers, lora (fine-tuning)
        last_layers=4,  # with last_layers: the top blocks and the final norm (and an untied head)
        lora=lora(),
        soft_prompt=soft_prompt("Name what these have in common, in two or three words."),
        **optimiser(learning_rate, warmup=10),
        logits_chunk=1024,  # positions whose logits exist at once
        evaluate_every=40,
        keep_best=True,  # by the cosine of written and true names of the validation collections
    )


def settings() -> ConfigDict:
    """All of them with their defaults."""
    c = ConfigDict()
    c.phases = "fine_tuning,prompt_tuning"  # in order, of prompt_tuning, fine_tuning, each with a model of its own; the last one's names are used
    c.lm = language_model()  # that names journeys
    c.embedder = text_embedder()  # whose vectors of titles say what is alike; it is not trained
    c.journeys = journeys()  # found by the items' titles
    c.journeys.decay = (
        0.9  # γ: what a journey counts for in the list, less with each item that was chosen after its last one
    )
    c.collections = group(  # named collections of items, from which names are learned and by which all is judged
        source="categories",  # categories (the last of each item's) | genres | tags (MovieLens' tags.csv) | file
        path="",  # file: .csv with name and item, or .jsonl with name and items; tags: of tags.csv, if not in data.path
        fewest=5,  # items of a collection
        validation=32,  # names that validation has
        test=48,  # names that the test has
        draws=4,  # different samples of each test collection's items
        shown=5,  # items of a sample
        mixes=200,  # mixes of two collections, of either kind, that are taken apart
        mixed=8,  # items of each of the two
        named=40,  # of these mixes' journeys that are named too, of either kind
        muted=100,  # test users of whose journeys one is muted
    )
    c.prompt = group(
        max_tokens=640,  # template, examples and titles together; examples, then titles, are dropped to fit
        titles=8,  # of a journey that are shown, the latest
        title_words=8,  # of each
        words=0,  # frequent words of the titles (TF-IDF) that are shown too
        shots=5,  # examples, from the training collections, for the model that is not trained
        system="",  # a system message; empty: none (SmolLM2's template then adds its own)
    )
    c.names = group(
        max_tokens=16,  # longest name, in the language model's tokens
        batch=32,  # names that are written at once
        samples=8,  # names of a group that the last phase's model writes, of which the nearest to its items counts; 1: greedy
        temperature=0.5,  # of those
        by="lm",  # --mode=write_profiles and recommend: lm (the last phase's) | words (the titles' most telling, in no time)
    )
    c.prompt_tuning = tuning("soft_prompt", steps=80, learning_rate=3e-3)
    c.fine_tuning = tuning("last_layers", steps=120, learning_rate=1e-4)
    return c


def tiny(config: ConfigDict) -> None:
    """Shrinks them to random tiny models, and to the made-up world's genres."""
    config.lm.update(source="tiny", dtype="float32")
    config.embedder.update(source="tiny", dtype="float32", max_profile_tokens=32, max_item_tokens=32, batch=64)
    config.journeys.update(vectors=0.0, join=0.05)
    config.collections.update(source="genres", validation=1, test=2, draws=2, mixes=20, named=4, muted=8, mixed=4)
    config.prompt.update(max_tokens=160, titles=5, words=0, shots=1, system="")
    config.names.update(max_tokens=6, batch=16, samples=2)
    for phase in PHASES:
        config[phase].update(steps=2, batch=4, draws=2, evaluate_every=2, warmup=1, last_layers=1)
        config[phase].lora.update(rank=4, alpha=8.0)
        config[phase].soft_prompt.update(tokens=4)


def check(config: ConfigDict, wrong) -> None:
    """Calls wrong(setting, what it must be) for settings that don't go together."""
    check_journeys(config, wrong)
    if config.journeys.decay > 1:
        wrong("journeys.decay", "at most 1")
    if config.iterations != 1:
        wrong("iterations", "1: each phase trains a model of its own")
    if config.collections.source == "file" and not config.collections.path:
        wrong("collections.path", "a file of collections, as collections.source is file")
    if config.prompt.titles < config.collections.shown:
        wrong("prompt.titles", "at least collections.shown: what the test draws is to be shown")
    for phase in PHASES:
        try:
            re.compile(config[phase].lora.targets)
        except re.error as error:
            wrong(f"{phase}.lora.targets", f"a regular expression ({error})")
