"""Every setting with one comment: default() makes them, tiny() shrinks them, finish() checks and locks."""

import contextlib
import difflib
import hashlib
import json
import math
import pathlib
import re
import runpy

import ml_collections

from lpt_jax import files
from lpt_jax.errors import InputError
from lpt_jax.systems import journeys_settings, knowledge_settings, peapod_settings, profiles_settings

SYSTEMS = {  # config.system: where its settings are
    "profiles": profiles_settings,
    "journeys": journeys_settings,
    "knowledge": knowledge_settings,
    "peapod": peapod_settings,
}


def _dict(**settings):
    return ml_collections.ConfigDict(settings)


def default(system: str = "profiles") -> ml_collections.ConfigDict:
    """All settings with their defaults, those of a system among them; a file in configs/ changes only what differs."""
    c = SYSTEMS[system].settings()
    c.name = "run"  # names the default workdir, runs/<name>
    c.system = system  # which recipe of lpt_jax/systems: profiles (LangPTune) | journeys (interest journeys) | knowledge | peapod
    c.seed = 0  # of training's order, sampling and initial weights; the data's split and samples are always the same
    c.iterations = 1  # how many times the phases run
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
        ),
        kind="items",  # what the prompt calls the items, plural: "movies"
        best_rating=5.0,  # the scale's end, as prompts say "4/5"
        item_fields="title,genres,categories,brand,description",  # what an item's text is made of, in order
        prompt_fields="title,genres,categories,rating,review",  # what the language model reads of each item
        attribute_items=20,  # what edits name (genres, categories, brands, decades, else words of titles) has so many items
        core=5,  # iterative k-core: users and items with fewer interactions are dropped; 0 = none
        max_users=0,  # keep a fixed random sample of this many users; 0 = all
        catalogue="trained",  # the items that are ranked: those with a training interaction | all
        cold_share=0.0,  # of all items, the newest: their training interactions are left out (with catalogue=all)
        split="auto",  # time | leave_last | auto (time where there are times, else leave_last)
        validation_share=0.1,  # time: share of users, by time of first interaction, who validate
        test_share=0.2,  # time: share of users, the latest to arrive, who test
        min_history=4,  # a session's history has at least this many items before its target
        windows=4,  # training sessions per user at most, spread evenly over the user's items; 1: after min_history
        targets=1,  # next items per training session; 1 is the paper's
        eval_windows=1,  # validation and test sessions per user, spread as windows
        eval_targets=1,  # next items per validation and test session; 1 is the paper's
    )
    c.evaluation = _dict(
        metric="ndcg",  # decides which state is best: ndcg, ndcg@10, mrr, …
        max_users=0,  # validation sessions used, a fixed sample; 0 = all
        max_test_sessions=0,  # test sessions used, a fixed sample; 0 = all
        # rows beside the trained models'; history_trained and sasrec are trained: see README
        baselines="random,popularity,last_item,items_popularity,bm25,history_text,history_popularity,transitions,item_knn,ease,"
        "history_trained",
        bootstrap=10000,  # resamples of users for the gains' intervals
        samples=4,  # users shown before and after in the report
    )
    rows = lists_of(system)["evaluation.baselines"]
    c.evaluation.baselines = ",".join(name for name in listed(c.evaluation.baselines) if name in rows)
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
        source="made_up",
        path="",
        name="",
        kind="films",
        core=0,
        attribute_items=5,
        windows=2,
        targets=1,
        eval_windows=1,
        eval_targets=1,
        max_users=0,
        min_history=4,
        split="auto",
        item_fields="title,genres",
        prompt_fields="title,genres,rating",
    )
    SYSTEMS[config.system].tiny(config)
    config.evaluation.update(max_users=16, max_test_sessions=32, samples=2, bootstrap=200)
    config.evaluation.baselines = ",".join(lists_of(config.system)["evaluation.baselines"])
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


# config.data of several recipes: Amazon Beauty, and the benchmark's split, which tests each user's last item
BEAUTY = dict(source="amazon", year=2014, name="Beauty", kind="beauty products", item_fields="title,brand,categories")
LAST_ITEM = dict(split="leave_last", min_history=2, windows=1, catalogue="all")

CHOICES = {
    "system": tuple(SYSTEMS),
    "data.source": ("movielens", "amazon", "sequences", "table", "datasets", "tfds", "made_up"),
    "data.catalogue": ("trained", "all"),
    "data.split": ("auto", "time", "leave_last"),
    "sasrec.loss": ("bce", "softmax"),
    "data.year": (2014, 2018, 2023),
}
MAY_BE_ZERO = """
    seed data.core data.cold_share data.max_users evaluation.max_users evaluation.max_test_sessions evaluation.samples sasrec.dropout
""".split()  # all other numbers but the mesh's are greater
BASELINES = (
    *("random", "popularity", "last_item", "items_popularity", "bm25", "history_text", "history_popularity"),
    *("decayed_items", "every_item", "transitions", "item_knn", "ease", "svd", "bpr", "history_trained", "sasrec"),
)
# settings that may differ from those a workdir was made with
LATER = ("trackers", "names.by", *profiles_settings.HANDED_OUT)
LISTS = {  # comma-separated settings: what they may name
    "trackers": ("tensorboard", "wandb", "trackio"),
    "evaluation.baselines": BASELINES,
}


def lists_of(system: str) -> dict[str, tuple]:
    """What the comma-separated settings of a system may name."""
    return LISTS | SYSTEMS[system].LISTS


def get(config, dotted: str, defaults=None):
    """config.get of a dotted name such as "policy.lora.rank"; where it is not there, that of defaults, if given."""
    for part in dotted.split("."):
        if defaults is not None and part not in config:
            return get(defaults, dotted)
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


def check_known(setting: str, system: str = "profiles") -> None:
    """Raises InputError with the nearest known setting if there is no such one."""

    def likeness(name):
        pairs = (name, setting), (name.split(".")[-1], setting.split(".")[-1])
        return sum(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    renamed = {"decoder": "lm", "encoder": "embedder"}  # of 0.1
    first, dot, rest = setting.partition(".")
    setting_now = renamed.get(first, first) + dot + rest
    known = flat(default(system).to_dict())
    if setting not in known and setting_now in known:
        raise InputError(f"There is no setting --config.{setting} any more: it is --config.{setting_now}.")
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
        if setting == "system":
            raise InputError(
                f"--config.system={text} can't be given: a config is of one system; name another file of configs/."
            )
        system = config.get("system", "profiles")
        check_known(setting, system)
        group, _, key = setting.rpartition(".")
        kind = type(get(default(system), setting))
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

    if config.get("system") not in SYSTEMS:
        wrong("system", "one of " + ", ".join(SYSTEMS))
    system = SYSTEMS[config.system]
    choices_of, zeros = CHOICES | system.CHOICES, MAY_BE_ZERO + system.MAY_BE_ZERO
    defaults, given = flat(default(config.system).to_dict()), flat(config.to_dict())
    for name in given:
        if name not in defaults:
            check_known(name, config.system)
    for name, example in defaults.items():
        if name not in given:
            raise InputError(f"--config.{name} is missing: change settings one by one, not a whole group.")
        value = given[name]
        if type(value) is not type(example):
            wrong(name, f"of type {type(example).__name__}")
        if isinstance(value, float) and not math.isfinite(value):
            wrong(name, "a finite number")
        if type(value) in (int, float) and name not in choices_of and not name.startswith("mesh."):
            if name not in system.MAY_BE_NEGATIVE and (value < 0 or (value == 0 and name not in zeros)):
                wrong(name, "0 or more" if name in zeros else "greater than 0")
    for name, choices in choices_of.items():
        if get(config, name) not in choices:
            wrong(name, "one of " + ", ".join(map(str, choices)))
    for name, choices in lists_of(config.system).items():
        chosen = listed(get(config, name))
        if set(chosen) - set(choices) or len(set(chosen)) < len(chosen):
            wrong(name, "a comma-separated list of " + ", ".join(choices) + ", each once at most")
    for name, choices in system.LISTS.items():
        if name not in LISTS and not listed(get(config, name)):
            wrong(name, f"{', '.join(choices)}, or several with commas between them")
    if config.data.validation_share + config.data.test_share >= 1:
        wrong("data.test_share", "such that it and data.validation_share are together below 1")
    if config.data.cold_share and (config.data.catalogue != "all" or config.data.cold_share >= 1):
        wrong(
            "data.cold_share", "below 1, and 0 unless --config.data.catalogue=all: held-out items are not ranked else"
        )
    for name in ("user", "item"):
        if not config.data.columns[name]:
            wrong(f"data.columns.{name}", "the name of a column")
    if config.sasrec.dropout >= 1:
        wrong("sasrec.dropout", "below 1")
    if config.sasrec.width % config.sasrec.heads:
        wrong("sasrec.heads", "a divisor of sasrec.width")
    if not re.fullmatch(r"(ndcg|mrr)(@(1|5|10|20))?|recall@(1|5|10|20)", config.evaluation.metric):
        wrong("evaluation.metric", "ndcg, mrr, or one of them or recall at 1, 5, 10 or 20, as in ndcg@10")
    system.check(config, wrong)
    sizes = list(config.mesh.values())
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise InputError("--config.mesh: each axis must be 1 or more, and at most one of them -1 (what is left).")
    config.lock()
    return config


def digest(config, names: tuple[str, ...]) -> str:
    """Eight letters that tell some settings from others of the same names."""
    values = json.dumps([get(config, name) for name in names])
    return hashlib.sha256(values.encode()).hexdigest()[:8]


def differing(there: dict, ours: dict) -> list[str]:
    """The names by which two flat() configs make other runs; those of LATER change nothing of what is trained."""
    found = sorted(there.keys() | ours.keys(), key=lambda name: (name not in there, name))
    return [name for name in found if there.get(name) != ours.get(name) and name not in LATER]


def default_workdir(config, overrides: dict[str, str]) -> pathlib.Path:
    """runs/<name>[-<overrides>], safe as a file's name and at most 100 letters long.

    >>> str(default_workdir(tiny(default()), {"policy.eta": "0.5", "data.path": "/a b"}))
    'runs/run_tiny-data.path=_a_b,policy.eta=0.5'
    """
    changed = ",".join(f"{name}={text}" for name, text in sorted(overrides.items()) if name not in LATER[1:])
    safe = re.sub(r"[^\w.,=+@-]", "_", f"{config.name}-{changed}" if changed else config.name).lstrip(".-") or "run"
    if len(safe) > 100:
        safe = f"{safe[:91]}-{hashlib.sha256(changed.encode()).hexdigest()[:8]}"
    return pathlib.Path("runs", safe)


def refuse_old(there: dict, workdir, instead: str = "give another --workdir, or remove this one") -> None:
    """Raises InputError if a workdir's settings are those of a version whose models this one can't read."""
    if "decoder" in there or "decoder.source" in there:  # now lm.source
        raise InputError(f"{workdir} holds a run of lpt_jax 0.1, whose models this version can't read: {instead}.")


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
