"""Evaluating 2,000 users: metrics alone, and all from embeddings on.

Metrics alone: ours from the targets' ranks (metrics.per_user and the means), pytrec_eval from lists of the best 100
that are made beforehand. All: from the profiles' embeddings and 12,000 items; ours by ranking.session_ranks, the
peer by torch's product and top 100, lists as pytrec_eval takes them, and its metrics. Both return NDCG and recall at
10 and NDCG at 20.
"""

import functools
import types

import numpy as np

from benchmarks import harness

ITEMS, WIDTH, HISTORY, BEST = 12_000, 384, 50, 100
MEASURES = {"recip_rank", "ndcg", "ndcg_cut.1,5,10,20", "recall.1,5,10,20"}
COMPARED = {"ndcg@10": "ndcg_cut_10", "recall@10": "recall_10", "ndcg@20": "ndcg_cut_20"}


def users(options) -> int:
    """How many are evaluated."""
    return 50 if options.tiny else 2000


def drawn(options):
    """Profiles whose targets rank high, items, targets [n] and histories [n, 50]."""
    rng, n = np.random.default_rng(0), users(options)
    items = rng.standard_normal((ITEMS, WIDTH), np.float32)
    chosen = np.stack([rng.choice(ITEMS, HISTORY + 1, replace=False) for _ in range(n)])
    profiles = items[chosen[:, 0]] + 7 * rng.standard_normal((n, WIDTH), np.float32)
    unit = lambda a: (a / np.linalg.norm(a, axis=1, keepdims=True)).astype(np.float32)  # noqa: E731
    return unit(profiles), unit(items), chosen[:, 0], chosen[:, 1:]


def ranks_drawn(options) -> np.ndarray:
    """Ranks of one target for each user, half of them within 30."""
    rng = np.random.default_rng(1)
    return np.minimum(rng.geometric(0.025, (users(options), 1)), ITEMS).astype(np.int32)


def names(options) -> list[str]:
    """The users' ids."""
    return [f"user {i}" for i in range(users(options))]


def _of_table(row: dict) -> np.ndarray:
    return np.array([row[name] for name in COMPARED])


def our_metrics(options):
    """metrics.per_user and table_row."""
    from lpt_jax import metrics

    ranks, ids = ranks_drawn(options), names(options)
    return lambda: _of_table(metrics.table_row(metrics.per_user(ranks, ids)[1]))


def _judge(run: dict, evaluator) -> np.ndarray:
    """pytrec_eval's metrics, and their means over users."""
    found = evaluator.evaluate(run)
    every = next(iter(found.values())).keys()
    means = {name: float(np.mean([of_user[name] for of_user in found.values()])) for name in every}
    return np.array([means[name] for name in COMPARED.values()])


def trec_metrics(options):
    """pytrec_eval on lists that are there."""
    import pytrec_eval

    ids, ranks = names(options), ranks_drawn(options)[:, 0]
    run = {}
    for user, rank in zip(ids, ranks.tolist()):
        run[user] = {f"item {i}": float(-i) for i in range(1, BEST + 1)}
        if rank <= BEST:
            run[user]["target"] = run[user].pop(f"item {rank}")
    evaluator = pytrec_eval.RelevanceEvaluator({user: {"target": 1} for user in ids}, MEASURES)
    return lambda: _judge(run, evaluator)


def our_whole(options):
    """ranking.session_ranks, then the metrics."""
    import jax

    from lpt_jax import metrics, ranking

    profiles, items, targets, histories = drawn(options)
    items, ids = jax.device_put(items), names(options)
    sessions = [
        types.SimpleNamespace(targets=(int(target),), history=tuple(history.tolist()))
        for target, history in zip(targets, histories)
    ]

    def run():
        ranks = ranking.session_ranks(profiles, items, sessions)
        return _of_table(metrics.table_row(metrics.per_user(ranks, ids)[1]))

    return run


def trec_whole(options):
    """torch's product and top 100 by 256 users, then pytrec_eval."""
    import pytrec_eval
    import torch

    torch.set_num_threads(options.threads)
    profiles, items, targets, histories = (torch.from_numpy(a) for a in drawn(options))
    ids, items_ids = names(options), [f"item {i}" for i in range(ITEMS)]
    qrels = {user: {items_ids[target]: 1} for user, target in zip(ids, targets.tolist())}
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, MEASURES)

    @torch.no_grad()
    def run():
        lists = {}
        for at in range(0, len(profiles), 256):
            scores = profiles[at : at + 256] @ items.T
            scores.scatter_(1, histories[at : at + 256], -torch.inf)
            values, found = torch.topk(scores, BEST)
            for user, row, of_row in zip(ids[at : at + 256], found.tolist(), values.tolist()):
                lists[user] = {items_ids[i]: value for i, value in zip(row, of_row)}
        return _judge(lists, evaluator)

    return run


def metrics_needs(options) -> dict:
    """Floor of the metrics."""
    from benchmarks import floors
    from lpt_jax import metrics

    return {"whole": [floors.metrics(users(options), len(metrics.NAMES))]}


def whole_needs(options) -> dict:
    """Floor of the product and the metrics."""
    from benchmarks import floors

    return {"whole": [floors.ranking(users(options), ITEMS, WIDTH), *metrics_needs(options)["whole"]]}


def cases(options) -> list[harness.Case]:
    """Metrics alone, and all."""
    made = {"metrics": (our_metrics, trec_metrics, metrics_needs), "whole": (our_whole, trec_whole, whole_needs)}
    return [
        harness.Case(
            f"evaluation-{name}", "float32", functools.partial(ours, options),
            {"pytrec_eval" if name == "metrics" else "torch and pytrec_eval": functools.partial(peer, options)},
            needs, rounds=9, repeats=3, alike=1e-3,
        )
        for name, (ours, peer, needs) in made.items()
    ]  # fmt: skip
