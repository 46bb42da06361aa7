"""The test of interest journeys: how well they are found, named, and ranked by, each with what it must be better than."""

import functools
import itertools

import numpy as np

from lpt_jax import config as config_lib
from lpt_jax import evaluate, extraction, journeys, metrics, ranking, text_metrics
from lpt_jax.data import collections
from lpt_jax.data.sessions import training_items
from lpt_jax.naming import Group, JourneyNamer

WORDS = 3  # of the row that names by frequent words
DECAYS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)  # that are tried on validation
LAST = 5  # items of the row of a mean of the latest
LISTED = 20  # items of a list from which a muted journey is to disappear
MAIN = {"extraction": "ari", "naming": "top1", "ranking": "ndcg"}  # the metric of each part's gains
Trained = dict[str, tuple[str, dict]]  # phase -> the part of the state that it trained, and its weights at the end


def test(r: JourneyNamer, trained: Trained, note: dict) -> tuple[dict, dict[str, tuple]]:
    """What results.json holds, and every row's metrics by what counts once: a mix, a name, a user (as metrics.per_user)."""
    parts = {"extraction": {}, "naming": {}, "ranking": {}}  # part -> row -> metric -> Float[mixes, names or users]
    mixes, ways = some_mixes(r), ways_to_name(r, trained)
    parts["extraction"] = extraction_rows(r, mixes)
    parts["naming"], written = naming_rows(r, ways)
    histories = {kind: histories_rows(r, ways, of_kind) for kind, of_kind in mixes.items()}
    parts["ranking"], chosen = ranking_rows(r)
    results = {
        "protocol": protocol(r, list(mixes)),
        **{part: {row: means(r, values, MAIN[part]) for row, values in rows.items()} for part, rows in parts.items()},
        "histories": {
            f"{kind}: {row}": means(r, values, "top1")
            for kind, rows in histories.items()
            for row, values in rows.items()
        },
        "chosen": chosen,
        "muted": muted(r),
        "journeys": journeys_of_users(r),
        "gains": gains(r, parts, histories),
        "names": written,
        "samples": samples(r, list(ways.values())[-1]),
        **evaluate.about(r.run, note),
    }
    counted = {row: of for rows in parts.values() for row, of in rows.items()}
    return results, {row: (range(len(next(iter(of.values())))), of) for row, of in counted.items()}


def protocol(r: JourneyNamer, kinds: list[str]) -> str:
    """What was measured on what, in a sentence for each part; kinds: of mixes, that there are."""
    s, counts = r.config.collections, {split: len(found) for split, found in r.collections.items()}
    words = {"far": "far: of two branches", "near": "near: of one"}
    kinds = " and ".join(words[kind] for kind in kinds) or "none"
    return (
        f"{counts['train']} named collections train, {counts['validation']} validate and {counts['test']} test, no name in two; "
        f"found: {s.mixes} mixes of {s.mixed} items of each of two test collections ({kinds}); "
        f"named: {s.draws} samples of {s.shown} items of each test collection, among all test names; intervals over mixes, "
        f"names and users. Ranked: {r.data.protocol}"
    )


def means(r: JourneyNamer, values: dict[str, np.ndarray], main: str) -> dict:
    """The mean of each metric, and the interval of the main one."""
    settings = r.config.seed, r.config.evaluation.bootstrap
    return metrics.table_row(values) | {"interval": metrics.mean_interval(values[main], *settings)}


# ---- found


def some_mixes(r: JourneyNamer) -> dict[str, list[collections.Mix]]:
    """The test's mixes, of each kind that there are."""
    s = r.config.collections
    made = {
        kind: collections.mixes(r.collections["test"], kind, s.mixed, s.mixes, seed=2) for kind in collections.KINDS
    }
    return {kind: of_kind for kind, of_kind in made.items() if of_kind}


def extraction_rows(r: JourneyNamer, mixes: dict[str, list[collections.Mix]]) -> dict[str, dict[str, np.ndarray]]:
    """What ICPC and what it is compared with make of the mixes (extraction.measures), Float[mixes]."""
    sequences = [items for items in training_items(r.data) if len(items)]
    own = extraction.by_rule(r.finder.likeness, r.finder.rule)
    finders = extraction.finders_of(r.data.catalogue.titles, r.vectors, sequences, own)
    return {
        f"{kind}: {row}": extraction.measured(of_kind, find)
        for kind, of_kind in mixes.items()
        for row, find in finders.items()
    }


def journeys_of_users(r: JourneyNamer) -> dict[str, float]:
    """How many journeys the test users have, and how much of their history is in one."""
    found = [(len(s.history), r.journeys(list(s.history))) for s in r.sessions["test"]]
    counts = np.array([len(of_user) for _, of_user in found])
    kept = [len({item for group in of_user for item in group}) / length for length, of_user in found]
    shares = {f"share with {n}": float((counts == n).mean()) for n in range(4)}
    return {
        "mean": float(counts.mean()),
        **shares,
        "share with more": float((counts > 3).mean()),
        "items kept": float(np.mean(kept)),
    }


# ---- named


def naming_rows(r: JourneyNamer, ways: dict) -> tuple[dict[str, dict[str, np.ndarray]], list[dict]]:
    """For each way to name, each metric for every test collection, the mean over its samples; and what was written."""
    found, s = r.collections["test"], r.config.collections
    drawn = collections.draws(found, s.shown, s.draws, seed=3)
    numbers, groups = [number for number, _ in drawn], [items for _, items in drawn]
    ways = {name: way(groups) for name, way in ways.items()}
    names = [collection.name for collection in found]
    items = np.stack([journeys.mean(r.vectors[group]) for group in groups])
    rows = {}
    for row, written in ways.items():
        values = text_metrics.nearness(written, numbers, names, r.embed)
        values["others"] = others(written, r.embed(written), items, s.draws)
        rows[row] = {name: of_draws.reshape(s.draws, -1).mean(0) for name, of_draws in values.items()}
    titles = r.data.catalogue.titles
    shown = [
        {
            "name": names[number],
            "titles": [titles[item] for item in group],
            "written": {row: ways[row][i] for row in ways},
        }
        for i, (number, group) in enumerate(drawn[: len(found)])
    ]
    return rows, shown


def others(written: list[str], vectors: np.ndarray, items: np.ndarray, draws: int) -> np.ndarray:
    """text_metrics.others_share within each draw: another sample of the same collection is no other one."""
    parts = np.split(np.arange(len(written)), draws)
    shares = [text_metrics.others_share([written[i] for i in p], vectors[p], items[p]) for p in parts]
    return np.concatenate(shares)


def ways_to_name(r: JourneyNamer, trained: Trained) -> dict:
    """row -> what names groups of items so; the trained language models are the last ones."""
    titles, rng = r.data.catalogue.titles, np.random.default_rng((r.config.seed, 23))
    known, untrained = [c.name for c in r.collections["train"]], r.untrained("lm")
    ways = {
        "random_name": lambda groups: [known[i] for i in rng.integers(len(known), size=len(groups))],
        "titles": lambda groups: ["; ".join(titles[item] for item in group) for group in groups],
        "frequent_words": lambda groups: [" ".join(r.words(group, WORDS)) for group in groups],
        "zero_shot": lambda groups: r.write("lm", untrained, groups, what="zero-shot names"),
    }
    if r.config.prompt.shots:
        ways["few_shot"] = lambda groups: r.write("lm", untrained, groups, few_shot=True, what="few-shot names")
    for phase, (part, weights) in trained.items():
        ways[phase] = functools.partial(r.write, part, weights, what=f"names after {phase.replace('_', ' ')}")
    if r.config.names.samples > 1:
        ways[f"{phase}_best"] = functools.partial(r.best, part, weights, what="best names")
    return ways


def histories_rows(r: JourneyNamer, ways: dict, mixes: list[collections.Mix]) -> dict[str, dict[str, np.ndarray]]:
    """A name for each journey of a mix, against one for all of it: by how near the nearest is to each of the two true names.

    Metrics for every mix, the mean over its two names.
    """
    mixes = mixes[: r.config.collections.named]
    names = [c.name for c in r.collections["test"]]
    ways = {name: ways[name] for name in ("frequent_words", list(ways)[-1])}
    found = [r.journeys(mix.items.tolist()) or [mix.items.tolist()] for mix in mixes]
    rows = {}
    for way, write in ways.items():
        whole = write([mix.items.tolist() for mix in mixes])
        each = iter(write(list(itertools.chain(*found))))
        each = [[next(each) for _ in of_mix] for of_mix in found]
        for row, written in ((f"{way}, each journey", each), (f"{way}, all in one", [[text] for text in whole])):
            rows[row] = nearest_of(r, mixes, written, names)
    return rows


def nearest_of(r: JourneyNamer, mixes, written: list[list[str]], names: list[str]) -> dict[str, np.ndarray]:
    """For every mix the best that any of its written names does for either true one, the mean over the two."""
    texts = [(text, of) for mix, of_mix in zip(mixes, written, strict=True) for of in mix.names for text in of_mix]
    near = text_metrics.nearness([text for text, _ in texts], [of for _, of in texts], names, r.embed)
    sizes = [len(of_mix) for of_mix in written for _ in range(2)]
    starts = np.cumsum([0, *sizes])[:-1]
    return {name: np.maximum.reduceat(values, starts).reshape(-1, 2).mean(1) for name, values in near.items()}


# ---- ranked by


def by_journeys(r: JourneyNamer, history: Group, found: list[Group], decay: float) -> np.ndarray:
    """A user's journeys as what the list is ranked by, Float[journeys, D]: γ^age × the mean of its items.

    age: how many items were chosen after its last one. Of no journey: the mean of all items.
    """
    if not found:
        return journeys.mean(r.vectors[history])[None]
    last = {item: place for place, item in enumerate(history)}
    ages = [len(history) - 1 - max(last[item] for item in group) for group in found]
    return np.stack([decay**age * journeys.mean(r.vectors[group]) for age, group in zip(ages, found, strict=True)])


def queries_of(r: JourneyNamer, row: str, decay: float, found=None):
    """What each row ranks a history by: a function of it to Float[queries, D], of which the best counts.

    found: gives the journeys of a history, r.journeys or one that remembers them.
    """
    found = found or r.journeys

    def ages(history):
        return (decay ** np.arange(len(history) - 1, -1, -1.0)).astype(np.float32)

    return {
        "last_item": lambda history: r.vectors[history[-1:]],
        "mean_of_latest": lambda history: journeys.mean(r.vectors[history[-LAST:]])[None],
        "mean_of_all": lambda history: journeys.mean(r.vectors[history])[None],
        "decayed_mean": lambda history: journeys.mean(r.vectors[history], ages(history))[None],
        "every_item": lambda history: ages(history)[:, None] * r.vectors[history],
        "journeys": lambda history: by_journeys(r, history, found(history), decay),
    }[row]


def ranks(r: JourneyNamer, split: str, row: str, decay: float, found) -> np.ndarray:
    """The ranks of a split's targets; found: as in queries_of."""
    sessions, query = r.sessions[split], queries_of(r, row, decay, found)
    queries = [query(list(session.history)) for session in sessions]
    return ranking.session_ranks(ranking.Several(queries, r.vectors), None, sessions)


def ranking_rows(r: JourneyNamer) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, float]]:
    """Metrics for every test user of ranking by journeys and by what they must be better than; and each row's γ.

    γ is chosen on validation; nothing is trained.
    """
    rows, chosen, metric = {}, {}, MAIN["ranking"]
    remembered = functools.cache(lambda history: r.journeys(list(history)))  # γ changes none of them

    def found(history):
        return remembered(tuple(history))

    def value(row, decay):
        return metrics.mean(ranks(r, "validation", row, decay, found), users, metric)

    users = [s.user for s in r.sessions["validation"]]
    for row in ("last_item", "mean_of_latest", "mean_of_all", "decayed_mean", "every_item", "journeys"):
        if row in ("decayed_mean", "every_item", "journeys"):
            chosen[row] = max(DECAYS, key=functools.partial(value, row))
        of_test = ranks(r, "test", row, chosen.get(row, 1.0), found)
        rows[row] = metrics.per_user(of_test, [s.user for s in r.sessions["test"]])[1]
    return rows, chosen


def muted(r: JourneyNamer) -> dict:
    """Of test users with two journeys or more: what muting the one that speaks for most of the list does to the list.

    spoken: its share of the 20 best items before; gone: the share of these that are not listed any more; kept: the share of the
    others that still are.
    """
    found = {"spoken": [], "gone": [], "kept": []}
    for session in r.sessions["test"]:
        history = list(session.history)
        groups = r.journeys(history)
        if len(groups) < 2:
            continue
        queries = by_journeys(r, history, groups, r.config.journeys.decay)
        best, scores = listed(r, queries, history)
        speaks = scores.argmax(0)
        loudest = np.bincount(speaks).argmax()
        own, others = set(best[speaks == loudest]), set(best[speaks != loudest])
        after = set(listed(r, np.delete(queries, loudest, 0), history)[0])
        found["spoken"].append(len(own) / len(best))
        found["gone"].append(len(own - after) / len(own))
        found["kept"].append(len(others & after) / len(others) if others else 1.0)
        if len(found["gone"]) == r.config.collections.muted:
            break
    settings = r.config.seed, r.config.evaluation.bootstrap
    return {"users": len(found["gone"])} | {
        name: metrics.mean_interval(values, *settings) for name, values in found.items() if values
    }


def listed(r: JourneyNamer, queries: np.ndarray, history: Group, k: int = LISTED) -> tuple[np.ndarray, np.ndarray]:
    """The k best items without the history, and the score of each by every query, Float[queries, k]."""
    scores = queries @ r.vectors.T
    scores[:, history] = -np.inf
    best = np.argsort(-scores.max(0), kind="stable")[: min(k, len(r.vectors) - len(set(history)))]
    return best, scores[:, best]


# ---- beside each other


def gains(r: JourneyNamer, parts: dict, histories: dict) -> dict[str, dict]:
    """Paired gains over what must be beaten, by the unit that counts once: a mix, a name, a user."""
    pairs = [
        ("extraction", f"{kind}: {other}", f"{kind}: icpc")
        for kind in collections.KINDS
        for other in extraction.COMPARED
    ]
    ways = list(parts["naming"])
    trained = config_lib.listed(r.config.phases)
    base = [way for way in ("titles", "frequent_words", "zero_shot", "few_shot") if way in ways]
    after = [way for way in ways if way.removesuffix("_best") in trained]
    pairs += [("naming", other, way) for way in after for other in base]
    pairs += [("naming", *pair) for pair in itertools.pairwise(after)]
    pairs += [("ranking", other, "journeys") for other in parts["ranking"] if other != "journeys"]
    found = {}
    for part, before, after in pairs:
        rows = parts[part]
        if {before, after} <= rows.keys():
            found[f"{before}->{after}"] = gain(r, rows[before], rows[after], MAIN[part])
        if part == "naming":
            found[f"{before}->{after}, cosine"] = gain(r, rows[before], rows[after], "cosine")
    for kind, rows in histories.items():
        for each in (row for row in rows if row.endswith("each journey")):
            whole = each.replace("each journey", "all in one")
            found[f"{kind}: {whole}->{each}"] = gain(r, rows[whole], rows[each], "cosine")
    return found


def gain(r: JourneyNamer, before: dict, after: dict, metric: str) -> dict:
    return metrics.paired_bootstrap(before[metric], after[metric], r.config.seed, r.config.evaluation.bootstrap, metric)


def samples(r: JourneyNamer, name) -> list[dict]:
    """A few test users, drawn by the run's seed: their items, and their journeys' names and places among them.

    name: names groups, as ways_to_name has it.
    """
    sessions, titles = r.sessions["test"], r.data.catalogue.titles
    drawn = np.random.default_rng((r.config.seed, 12)).permutation(len(sessions))
    found = []
    for i in np.sort(drawn[: r.config.evaluation.samples]):
        history = list(sessions[i].history)
        groups = r.journeys(history)
        names = name(groups)
        places = [[history.index(item) for item in group] for group in groups]
        of_user = [{"name": of_group, "places": at} for of_group, at in zip(names, places, strict=True)]
        found.append({"user": sessions[i].user, "titles": [titles[item] for item in history], "journeys": of_user})
    return found
