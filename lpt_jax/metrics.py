"""Ranking metrics per user from the ranks of their targets, intervals for gains, and TREC files.

Every target is ranked on its own, over the full catalogue without the user's history and other
targets, so each ranking has one relevant item and a metric is a function of its rank r:

    rank r    recall@5  ndcg@5  mrr@5    ndcg   mrr
    1            1       1       1       1      1       ndcg = 1 / log2(1 + r)
    2            1       0.631   0.5     0.631  0.5     mrr  = 1 / r
    5            1       0.387   0.2     0.387  0.2     …@k: the same up to rank k,
    6            0       0       0       0.356  0.167         0 from there on
    0 (none)     -       -       -       -      -       left out of every mean

"ndcg" and "mrr" without a cut-off are over the whole ranking, where recall is always 1 and so
left out; "mean_rank" is r itself. A user's value is the mean over the user's sessions and targets,
however many; a table's is the mean over users.
"""

import collections
import math
from urllib.parse import quote, unquote

import numpy as np

from lpt_jax import files
from lpt_jax.errors import InputError

CUTOFFS = (1, 5, 10, 20)
NAMES = (*(f"{name}@{k}" for name in ("recall", "ndcg", "mrr") for k in CUTOFFS), *("ndcg", "mrr", "mean_rank"))


def of_ranks(ranks, name: str) -> np.ndarray:
    """The metric `name`, such as "ndcg@10", of each rank (1 is best), in the ranks' shape.

    >>> of_ranks(np.array([1, 3, 6]), "mrr@5").round(3).tolist()
    [1.0, 0.333, 0.0]
    """
    kind, _, cutoff = name.partition("@")
    ranks = np.maximum(np.asarray(ranks, np.float64), 1)
    if name not in NAMES and not (kind in ("recall", "ndcg", "mrr") and cutoff.isdecimal()):
        raise InputError(f"There is no metric {name!r}: use one of {', '.join(NAMES)}.")
    values = {"ndcg": 1 / np.log2(1 + ranks), "mrr": 1 / ranks, "mean_rank": ranks}
    values = values.get(kind, np.ones_like(ranks))
    return np.where(ranks <= int(cutoff), values, 0.0) if cutoff else values


def per_user(ranks, users, names=NAMES) -> tuple[list[str], dict[str, np.ndarray]]:
    """User ids in order of first appearance and, for every metric of `names`, a Float64 value for each.

    `ranks` Int[S,M] are those of S sessions' targets, 0 where there is none, and `users` their S
    users' ids; a user without any target is left out.

    >>> ids, values = per_user(np.array([[1, 3], [2, 0], [7, 0]]), ["ann", "bob", "bob"])
    >>> ids, values["mrr"].round(3).tolist(), values["recall@5"].tolist()  # bob: (1/2 + 1/7) / 2
    (['ann', 'bob'], [0.667, 0.321], [1.0, 0.5])
    """
    ranks = np.asarray(ranks)
    places = {}
    rows = np.array([places.setdefault(user, len(places)) for user in users], int)
    exists = ranks > 0
    rows, ranks = np.repeat(rows, exists.sum(axis=1)), ranks[exists]
    counts = np.bincount(rows, minlength=len(places))
    ids = [user for user, place in places.items() if counts[place]]
    if not ids:
        raise InputError("There is nothing to evaluate: no session has a target.")

    def means(name):
        sums = np.bincount(rows, of_ranks(ranks, name), minlength=len(places))
        return sums[counts > 0] / counts[counts > 0]

    return ids, {name: means(name) for name in names}


def table_row(values: dict[str, np.ndarray]) -> dict[str, float]:
    """The mean over users of every metric: one row of the results."""
    return {name: float(np.mean(of_users)) for name, of_users in values.items()}


def mean(ranks, users, name: str) -> float:
    """One metric's mean over users, for a validation."""
    return float(np.mean(per_user(ranks, users, (name,))[1][name]))


def paired_bootstrap(before, after, seed: int, samples: int = 10000, metric: str = "ndcg") -> dict:
    """The mean gain from before to after and its 95 % interval by resampling users.

    Both are Float[users], or Float[seeds, users] for several runs on the same users: a user's gain
    is then the mean over the runs. Returns {"metric", "mean", "low", "high"}.

    >>> round(paired_bootstrap([0.1, 0.2], [0.2, 0.3], 0)["low"], 3)  # all users gain the same
    0.1
    """
    before, after = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if before.shape != after.shape or not before.size:
        shapes = f"{before.shape} and {after.shape}"
        raise InputError(f"Gains need the same users before and after, but there are {shapes}.")
    gains = np.atleast_2d(after - before).mean(axis=0)
    rng = np.random.default_rng(seed)
    means = [gains[rng.integers(gains.size, size=gains.size)].mean() for _ in range(samples)]
    low, high = np.quantile(means, [0.025, 0.975])
    return {"metric": metric, "mean": float(gains.mean()), "low": float(low), "high": float(high)}


def write_run(path, queries, ranked, name: str = "lpt_jax") -> None:
    """A TREC run file: for each query id the item ids in `ranked`, best first.

    The score written is minus the rank: trec_eval ignores the ranks and orders equal scores by
    name. Ids are percent-encoded, as the format is separated by spaces.
    """
    files.write_file(
        path,
        (
            f"{_coded(query)} Q0 {_coded(item)} {rank} {-rank} {_coded(name)}\n"
            for query, items in zip(queries, ranked, strict=True)
            for rank, item in enumerate(items, 1)
        ),
    )


def write_qrels(path, queries, relevant) -> None:
    """A TREC qrels file: for each query id the ids of its relevant items."""
    pairs = zip(queries, relevant, strict=True)
    files.write_file(path, (f"{_coded(query)} 0 {_coded(item)} 1\n" for query, items in pairs for item in items))


def _coded(name):
    return quote(name, safe=":/")


def read_trec(path) -> dict[str, dict[str, float]]:
    """A run's scores (six fields a line) or qrels' relevances (four) as {query: {item: number}}, the ids decoded.

    InputError, which names the line, for other numbers of fields, a value that is no finite number, an item twice.
    """
    found, width = {}, None
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                fields = line.split()
                width = width or len(fields)
                if len(fields) not in (4, 6) or len(fields) != width:
                    raise InputError(
                        f"{path}:{number} has {len(fields)} fields: a TREC run has 6 in each line, qrels 4."
                    )
                query, item, text = unquote(fields[0]), unquote(fields[2]), fields[3 if width == 4 else 4]
                try:
                    value = int(text) if width == 4 else float(text)
                except ValueError:
                    value = math.nan
                if not math.isfinite(value):
                    raise InputError(f"{path}:{number}: {text!r} is not a {'relevance' if width == 4 else 'score'}.")
                items = found.setdefault(query, {})
                if item in items:
                    raise InputError(f"{path}:{number} names the item {item} of the query {query} again.")
                items[item] = value
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read: {getattr(error, 'strerror', None) or 'it is not UTF-8'}.") from None
    return found


def read_run(path) -> dict[str, dict[str, float]]:
    """read_trec of a run; InputError where it is qrels, or empty."""
    found = read_trec(path)
    if not found:
        raise InputError(f"{path} is empty: a TREC run has a line for each query and item.")
    if isinstance(next(iter(next(iter(found.values())).values())), int):
        raise InputError(f"{path} has 4 fields a line: that is a TREC qrels file, a run has 6.")
    return found


def ranks_of_run(run: dict[str, dict[str, float]], queries, sessions, ids: list[str]) -> tuple[np.ndarray, dict]:
    """Ranks Int[S,M] of the sessions' targets in another system's run, and counts of what was passed over.

    Items are ordered by score, ties by catalogue index (their place in `ids`), and count without the history, the other
    targets and items that aren't in the catalogue; a target that isn't listed is last of all. 0: there is no target.
    """
    number, counts = {item: i for i, item in enumerate(ids)}, collections.Counter()
    ranks = np.zeros((len(sessions), max(len(s.targets) for s in sessions)), np.int64)
    counts["queries that are not in the test"] = len(run.keys() - set(queries))
    for row, session, query in zip(ranks, sessions, queries, strict=True):
        listed = run.get(query, {})
        places = {number[item]: (-score, number[item]) for item, score in listed.items() if item in number}
        left = [place for i, place in places.items() if i not in {*session.history, *session.targets}]
        for column, target in enumerate(session.targets):
            there = target in places
            row[column] = 1 + sum(place < places[target] for place in left) if there else len(ids)
            counts["targets not listed, ranked last"] += not there
        counts["test sessions without a query"] += not listed
        counts["items that are not in the catalogue"] += len(listed) - len(places)
        counts["items of the history"] += len(places.keys() & set(session.history))
    return ranks, dict(counts)
