"""Baselines that count, against their definitions written out."""

import runpy

import numpy as np
import pytest

from lpt_jax.baselines import counts
from lpt_jax.data.sessions import Session
from tests.conftest import ROOT

RNG = np.random.default_rng(0)
N = 9
SEQUENCES = [tuple(RNG.permutation(N)[: RNG.integers(1, N)].tolist()) for _ in range(40)]
POPULARITY = np.bincount(np.concatenate(SEQUENCES), minlength=N)
SESSIONS = [Session("u", s, None, None, (), 0.0) for s in SEQUENCES[:7]]
TIES = 1e-6 * POPULARITY / POPULARITY.max()


def scores(of, *options):
    found, items = of(SESSIONS, SEQUENCES, POPULARITY, *options)
    assert items is None and len(found.sessions) == len(SESSIONS)
    return found[np.arange(len(SESSIONS))]


def test_transitions_count_what_followed_the_last_item():
    wanted = np.zeros((len(SESSIONS), N))
    for row, session in enumerate(SESSIONS):
        for s in SEQUENCES:
            for a, b in zip(s, s[1:]):
                wanted[row, b] += a == session.history[-1]
    np.testing.assert_allclose(scores(counts.transitions), wanted + TIES, rtol=1e-6)


def test_item_knn_is_a_decayed_sum_of_shrunk_cosines():
    users = np.array([[i in s for i in range(N)] for s in SEQUENCES], float)
    together, each = users.T @ users, users.sum(0)
    wanted = np.zeros((len(SESSIONS), N))
    for row, session in enumerate(SESSIONS):
        for age, item in enumerate(reversed(session.history)):
            wanted[row] += 0.7**age * together[item] / (np.sqrt(each[item] * each) + 10)
    np.testing.assert_allclose(scores(counts.item_knn), wanted + TIES, rtol=1e-6)


def test_ease_is_the_ridge_regression_of_each_item_on_the_others():
    """Closed form against one least-squares problem an item, its own column left out."""
    users, penalty = np.array([[i in s for i in range(N)] for s in SEQUENCES], float), 3.0
    weights = np.zeros((N, N))
    for j in range(N):
        others = [i for i in range(N) if i != j]
        x = users[:, others]
        weights[others, j] = np.linalg.solve(x.T @ x + penalty * np.eye(N - 1), x.T @ users[:, j])
    wanted = np.stack([weights[list(s.history)].sum(0) for s in SESSIONS])
    np.testing.assert_allclose(scores(counts.ease, penalty), wanted + TIES, rtol=1e-5, atol=1e-6)


def test_a_tie_goes_to_the_more_popular_item():
    session = [Session("u", (0,), None, None, (), 0.0)]
    found, _ = counts.transitions(session, [(1, 2), (2,)], np.array([0, 1, 2]))
    assert np.argsort(-found[[0]][0]).tolist() == [2, 1, 0]
    with pytest.raises(IndexError):
        found[[1]]


def test_the_benchmarks_figures_on_beauty():
    """Measured apart from this code: item-kNN .0588 / .0413 / .0808 / .0484, transitions .0594 / .0449 / .0753 / .0500, whose
    many ties another rule decided."""
    folder = ROOT.parent / "shared/data/amazon_beauty_2014_5core"
    if not (folder / "raw/sequential.txt").exists():
        pytest.skip("needs the Beauty benchmark's sequences in ../shared/data")
    found = runpy.run_path(str(ROOT / "experiments/counts_beauty.py"))["main"](folder)
    names = ("recall@5", "ndcg@5", "recall@10", "ndcg@10")
    np.testing.assert_allclose([found["item_knn"][n] for n in names], [0.0588, 0.0413, 0.0808, 0.0484], atol=1.1e-4)
    np.testing.assert_allclose([found["transitions"][n] for n in names], [0.0594, 0.0449, 0.0753, 0.0500], atol=1e-3)


def two_kinds(users=60):
    """Users who choose among the items 0 … 9, or 10 … 19; nobody has 20 and 21."""
    rng = np.random.default_rng(0)
    return [rng.permutation(np.arange(10) + 10 * (user % 2))[:6].tolist() for user in range(users)]


def test_items_that_the_same_people_chose_have_like_factors():
    found, values = counts.factors(two_kinds(), 22, 4)
    assert found.shape == (22, 4) and (found[20:] == 0).all() and (np.diff(values) <= 0).all()
    vectors = counts.unit(found * values)
    cosines = vectors @ vectors.T
    assert cosines[:10, :10].mean() > cosines[:10, 10:20].mean() + 0.2
    np.testing.assert_allclose(np.abs(counts.factors(two_kinds(), 22, 4)[0]), np.abs(found), atol=1e-5)


def test_somebody_new_with_a_users_items_is_that_user():
    """Fold-in: the sum of the items' factors is the user's own row of the decomposition times the singular values."""
    sequences, people = two_kinds(), counts.People(two_kinds(), 22, 4)
    matrix = counts.chosen(sequences, 22).toarray()
    scaled = matrix / np.sqrt(matrix.sum(1, keepdims=True)) / np.sqrt(np.maximum(matrix.sum(0), 1))
    left, values, _ = np.linalg.svd(scaled)
    expected = counts.unit(left[:, :4] * values[:4])
    np.testing.assert_allclose(people.all @ people.all.T, expected @ expected.T, atol=1e-4)
    np.testing.assert_allclose(people.of([sequences[7][::-1]])[0], people.all[7], atol=1e-5)
    assert (people.of([[]]) == 0).all()


def test_neighbours_are_the_nearest_without_oneself():
    people = counts.People(two_kinds(), 22, 4)
    own = np.array([3, -1])
    found, cosines = people.nearest(people.all[[3, 3]], own, 5)
    expected = people.all @ people.all[3]
    assert 3 not in found[0] and found[1][0] == 3 and cosines[1][0] == pytest.approx(1, abs=1e-5)
    expected[3] = -np.inf
    np.testing.assert_allclose(cosines[0], np.sort(expected)[::-1][:5], atol=1e-5)
    assert all(other % 2 == 1 for other in found[0])
    assert people.nearest(people.all[:1], np.array([0]), 500)[0].shape == (1, 59)


def test_user_knn_by_hand():
    sequences = two_kinds()
    people, popularity = counts.People(sequences, 22, 4), np.zeros(22)
    sessions = [Session("a", tuple(sequences[4][:3]), None, None, (1,), 0.0)]
    scored, _ = counts.user_knn(sessions, people, np.array([4]), popularity, 3)
    found, cosines = people.nearest(people.of([sequences[4][:3]]), np.array([4]), 3)
    expected = np.zeros(22)
    for other, cosine in zip(found[0], cosines[0]):
        for item in sequences[other]:
            expected[item] += cosine
    np.testing.assert_allclose(scored[[0]][0], expected, atol=1e-5)
