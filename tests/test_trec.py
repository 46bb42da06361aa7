"""TREC files: trec_eval's opinion of our runs and metrics, and other systems' runs."""

import doctest
from types import SimpleNamespace

import numpy as np
import pytest

from lpt_jax import metrics, ranking, trec
from lpt_jax.errors import InputError


def test_docstring_examples():
    assert doctest.testmod(trec).failed == 0 < doctest.testmod(trec).attempted


def test_agrees_with_trec_eval(tmp_path):
    pytrec_eval = pytest.importorskip("pytrec_eval", reason="needs pytrec_eval-terrier")
    rng = np.random.default_rng(0)
    items = [f"item {i}" for i in range(40)]  # with a space, to be encoded
    queries = [f"user {i}" for i in range(30)]
    ranked = [rng.permutation(items).tolist() for _ in queries]
    targets = rng.choice(items, len(queries))
    trec.write_run(tmp_path / "run", queries, ranked)
    trec.write_qrels(tmp_path / "qrels", queries, [[t] for t in targets])
    run, qrels = trec.read_trec(tmp_path / "run"), trec.read_trec(tmp_path / "qrels")
    assert list(run[queries[0]]) == ranked[0] and qrels[queries[0]] == {targets[0]: 1}
    theirs = pytrec_eval.RelevanceEvaluator(
        qrels, {"recip_rank", "ndcg", "ndcg_cut.1,5,10,20", "recall.1,5,10,20"}
    ).evaluate(run)
    ranks = np.array([[list(r).index(t) + 1] for r, t in zip(ranked, targets, strict=True)])
    ids, ours = metrics.per_user(ranks, queries)
    pairs = {"ndcg": "ndcg", "mrr": "recip_rank"}
    pairs |= {f"ndcg@{k}": f"ndcg_cut_{k}" for k in metrics.CUTOFFS}
    pairs |= {f"recall@{k}": f"recall_{k}" for k in metrics.CUTOFFS}
    for name, their_name in pairs.items():
        np.testing.assert_allclose(ours[name], [theirs[q][their_name] for q in ids], atol=1e-4)


def test_rankings_with_ties_agree_with_trec_eval_by_way_of_files(tmp_path):
    """Scores of a few values only: the files hold them in our order, ties by catalogue index, history left out."""
    pytrec_eval = pytest.importorskip("pytrec_eval", reason="needs pytrec_eval-terrier")
    rng, ids = np.random.default_rng(0), [f"item:{i} ü%/" for i in range(50)]
    found = [rng.permutation(50)[:6].tolist() for _ in range(40)]
    found = [
        SimpleNamespace(history=items[:4], hidden=items[:4], targets=items[4:], user=f"u {i // 2}")
        for i, items in enumerate(found)
    ]
    scores = rng.integers(0, 6, (40, 50)).astype(np.float32)
    queries = [f"{s.user}:{i % 2 + 1}" for i, s in enumerate(found)]
    best = ranking.session_best(scores, None, found, 50, batch=16)
    trec.write_run(tmp_path / "run", queries, [[ids[i] for i in row if i >= 0] for row in best])
    trec.write_qrels(tmp_path / "qrels", queries, [[ids[t] for t in s.targets] for s in found])
    assert not list(tmp_path.glob("*.part")) and " ü" not in (tmp_path / "run").read_text()
    run, qrels = trec.read_run(tmp_path / "run"), trec.read_trec(tmp_path / "qrels")
    ranks = ranking.session_ranks(scores, None, found, batch=16)
    again, counts = trec.ranks_of_run(run, queries, found, ids)
    np.testing.assert_array_equal(again, ranks)
    assert not any(counts.values())
    by_scores = {
        q: dict(zip(ids, row.tolist())) for q, row in zip(queries, scores)
    }  # ties, and the histories' items too
    again, counts = trec.ranks_of_run(by_scores, queries, found, ids)
    np.testing.assert_array_equal(again, ranks)
    assert counts == dict.fromkeys(counts, 0) | {"items of the history": 160}
    one_by_one, relevant = {}, {}  # as we count: each target alone, the other one left out
    for query, s in zip(queries, found):
        for t, other in (s.targets, s.targets[::-1]):
            left = {item: score for item, score in run[query].items() if item != ids[other]}
            one_by_one[f"{query}-{t}"], relevant[f"{query}-{t}"] = left, {ids[t]: qrels[query][ids[t]]}
    names = {"recip_rank", "ndcg", "ndcg_cut.1,5,10,20", "recall.1,5,10,20"}
    theirs = list(pytrec_eval.RelevanceEvaluator(relevant, names).evaluate(one_by_one).items())
    pairs = {"ndcg": "ndcg", "mrr": "recip_rank"}
    pairs |= {
        f"{name}@{k}": f"{their}_{k}"
        for k in metrics.CUTOFFS
        for name, their in (("ndcg", "ndcg_cut"), ("recall", "recall"))
    }
    _, ours = metrics.per_user(ranks, [s.user for s in found])
    for name, their_name in pairs.items():
        of_user = {}
        for query, value in theirs:
            of_user.setdefault(query.split(":")[0], []).append(value[their_name])
        np.testing.assert_allclose(
            ours[name], [np.mean(of_user[u]) for u in dict.fromkeys(s.user for s in found)], atol=1e-4
        )


def test_another_systems_run_by_hand():
    found = [SimpleNamespace(history=(0,), targets=(2, 3)), SimpleNamespace(history=(1,), targets=(0,))]
    found.append(SimpleNamespace(history=(1,), targets=(4,)))
    run = {"a": {"i1": 0.5, "i0": 9.0, "i2": 0.5, "i3": 0.7, "new": 8.0}, "b": {"i3": 1.0}, "stranger": {"i0": 1.0}}
    ranks, counts = trec.ranks_of_run(run, ["a", "b", "c"], found, [f"i{i}" for i in range(5)])
    assert ranks.tolist() == [[2, 1], [5, 0], [5, 0]]  # i2 after i1, which ties and is before; i3 with i2 left out
    assert counts == {
        "queries that are not in the test": 1,
        "targets not listed, ranked last": 2,
        "test sessions without a query": 1,
        "items that are not in the catalogue": 1,
        "items of the history": 1,
    }


BAD_TREC = [
    ("one two\n", "bad:1 has 2 fields: a TREC run has 6 in each line, qrels 4"),
    ("q 0 a 1\nq Q0 a 1 2.0 x\n", "bad:2 has 6 fields"),
    ("q 0 a 1\n\n", "bad:2 has 0 fields"),
    ("q 0 a 1.5\n", "bad:1: '1.5' is not a relevance"),
    ("q Q0 a 1 high x\n", "bad:1: 'high' is not a score"),
    ("q Q0 a 1 inf x\n", "bad:1: 'inf' is not a score"),
    ("q Q0 a 1 2 x\nq Q0 b 2 1 x\nq Q0 a 3 0 x\n", "bad:3 names the item a of the query q again"),
    (b"q Q0 \xff 1 2 x\n", "bad can't be read: it is not UTF-8"),
]


@pytest.mark.parametrize("content, message", BAD_TREC)
def test_bad_trec_files(content, message, tmp_path):
    (tmp_path / "bad").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InputError, match=message):
        trec.read_trec(tmp_path / "bad")


def test_a_run_is_no_qrels_and_not_empty(tmp_path):
    (tmp_path / "qrels").write_text("q 0 a 1\n")
    (tmp_path / "empty").write_text("")
    with pytest.raises(InputError, match="that is a TREC qrels file, a run has 6"):
        trec.read_run(tmp_path / "qrels")
    with pytest.raises(InputError, match="empty is empty"):
        trec.read_run(tmp_path / "empty")
    with pytest.raises(InputError, match="can't be read: No such file"):
        trec.read_run(tmp_path / "none")
