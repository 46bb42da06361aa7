"""Metrics: the worked table, and intervals."""

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


def test_says_what_is_wrong():
    with pytest.raises(InputError, match="no metric 'ndgc@10': use one of recall@1"):
        metrics.of_ranks([1], "ndgc@10")
    with pytest.raises(InputError, match="no session has a target"):
        metrics.per_user(np.zeros((2, 1), int), ["a", "b"])
    with pytest.raises(InputError, match="same users before and after"):
        metrics.paired_bootstrap([1.0], [1.0, 2.0], 0)
