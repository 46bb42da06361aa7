"""Metrics: the worked table, trec_eval's opinion, and intervals."""

import doctest

import numpy as np
import pytest

from lpt_jax import metrics
from lpt_jax.errors import InputError


def test_docstring_examples():
    assert doctest.testmod(metrics).failed == 0 < doctest.testmod(metrics).attempted


def test_worked_table():
    lines = metrics.__doc__.split("\n    ")[1:]
    names = [name for name in lines[0].split() if name in metrics.NAMES]
    for line in lines[1:5]:
        rank, *values = line.split()[:6]
        found = [metrics.of_ranks(np.array(int(rank)), name) for name in names]
        np.testing.assert_allclose(found, np.array(values, float), atol=6e-4)
    assert len(names) == 5


def test_sessions_and_targets_of_a_user_weigh_the_same_and_users_too():
    ranks = np.array([[1, 2], [4, 0], [0, 0], [10, 0]])
    ids, values = metrics.per_user(ranks, ["a", "a", "nobody", "b"])
    assert ids == ["a", "b"]
    np.testing.assert_allclose(values["mrr"], [(1 + 1 / 2 + 1 / 4) / 3, 0.1])
    row = metrics.table_row(values)
    assert row["mean_rank"] == pytest.approx((7 / 3 + 10) / 2) and set(row) == set(metrics.NAMES)
    assert metrics.mean(ranks, ["a", "a", "nobody", "b"], "recall@5") == 0.5


def test_agrees_with_trec_eval(tmp_path):
    pytrec_eval = pytest.importorskip("pytrec_eval", reason="needs pytrec_eval-terrier")
    rng = np.random.default_rng(0)
    items = [f"item {i}" for i in range(40)]  # with a space, to be encoded
    queries = [f"user {i}" for i in range(30)]
    ranked = [rng.permutation(items).tolist() for _ in queries]
    targets = rng.choice(items, len(queries))
    metrics.write_run(tmp_path / "run", queries, ranked)
    metrics.write_qrels(tmp_path / "qrels", queries, [[t] for t in targets])
    run, qrels = metrics.read_trec(tmp_path / "run"), metrics.read_trec(tmp_path / "qrels")
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


def test_bootstrap_interval_covers_a_normal_mean():
    rng = np.random.default_rng(1)
    before, gain = rng.normal(0, 1, 400), rng.normal(0.1, 0.5, 400)
    found = metrics.paired_bootstrap(before, before + gain, seed=0, samples=2000)
    half = 1.96 * gain.std() / 20
    assert found["mean"] == pytest.approx(gain.mean())
    assert found["low"] == pytest.approx(gain.mean() - half, abs=0.006)
    assert found["high"] == pytest.approx(gain.mean() + half, abs=0.006)


def test_bootstrap_averages_the_runs_of_a_user():
    before = np.zeros((2, 3))
    after = np.array([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]])  # every user gains 0.2 over the two runs
    found = metrics.paired_bootstrap(before, after, seed=0, samples=50, metric="mrr")
    assert found["metric"] == "mrr"
    np.testing.assert_allclose([found["mean"], found["low"], found["high"]], 0.2)


def test_says_what_is_wrong(tmp_path):
    with pytest.raises(InputError, match="no metric 'ndgc@10': use one of recall@1"):
        metrics.of_ranks([1], "ndgc@10")
    with pytest.raises(InputError, match="no session has a target"):
        metrics.per_user(np.zeros((2, 1), int), ["a", "b"])
    with pytest.raises(InputError, match="same users before and after"):
        metrics.paired_bootstrap([1.0], [1.0, 2.0], 0)
    (tmp_path / "bad").write_text("one two\n")
    with pytest.raises(InputError, match="bad:1 has 2 fields"):
        metrics.read_trec(tmp_path / "bad")
