"""Ranking metrics per user from the ranks of their targets, and intervals for gains.

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

import numpy as np

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


def mean_interval(values, seed: int, samples: int) -> dict:
    """The mean of one value for each user, and its 95 % interval by resampling users: {"mean", "low", "high"}."""
    found = paired_bootstrap(np.zeros(len(values)), values, seed, samples)
    return {name: found[name] for name in ("mean", "low", "high")}


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
