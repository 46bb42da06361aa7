"""Factors: the SVD against NumPy's, BPR's loss written out, what it learns of two groups of people, newcomers."""

import jax
import numpy as np
import pytest

from lpt_jax.baselines import factors
from lpt_jax.data.sessions import Session
from lpt_jax.errors import InputError

RNG = np.random.default_rng(0)
N = 12
GROUPS = [[(6 * (user % 2) + item) for item in RNG.permutation(6)[:4].tolist()] for user in range(60)]
POPULARITY = np.bincount(np.concatenate(GROUPS), minlength=N)


def sessions(histories):
    return [Session("u", tuple(history), None, None, (), 0.0) for history in histories]


def test_svd_is_numpys():
    """All of the scaled matrix's directions but the last give the projection that NumPy's SVD gives, in the items' own scale."""
    size, users = N - 1, np.array([[item in s for item in range(N)] for s in GROUPS], float)
    of_items = users.sum(0)
    scaled = users / np.sqrt(users.sum(1, keepdims=True)) / np.sqrt(of_items)
    right = np.linalg.svd(scaled)[2][:size].T
    histories = [[0], [7, 2], GROUPS[5]]
    rows = np.array([[item in h for item in range(N)] for h in histories], float)
    wanted = rows / np.sqrt(of_items) @ right @ right.T * np.sqrt(of_items)
    fitted = factors.fitted_svd(GROUPS, N, size)
    found, items = factors.svd(sessions(histories), POPULARITY, fitted, size)
    assert items is None
    np.testing.assert_allclose(found[[0, 1, 2]], wanted, atol=1e-4)


def test_bprs_loss_written_out():
    tree = {name: RNG.standard_normal((N, 3)) for name in ("read", "scored")} | {"bias": RNG.standard_normal(N)}
    people, item, other = np.array([[3, 5, 1, -1], [2, -1, -1, -1]]), np.array([5, 2]), np.array([7, 0])
    losses = []
    for row, pos, neg in zip(people, item, other):
        read = [j for j in row if j >= 0 and j != pos]
        person = sum((tree["read"][j] for j in read), np.zeros(3)) / np.sqrt(max(len(read), 1))
        apart = (tree["scored"][pos] - tree["scored"][neg]) @ person + tree["bias"][pos] - tree["bias"][neg]
        squares = person @ person + sum(
            tree["scored"][j] @ tree["scored"][j] + tree["bias"][j] ** 2 for j in (pos, neg)
        )
        losses.append(np.log(1 + np.exp(-apart)) + 0.2 * squares)
    assert float(factors.loss(jax.tree.map(np.float32, tree), people, item, other, 0.2)) == pytest.approx(
        np.mean(losses), rel=1e-5
    )


@pytest.mark.parametrize("name", ["svd", "bpr"])
def test_newcomers_get_what_their_group_chooses(name):
    asked = sessions([[0, 1], [6, 8]])
    if name == "svd":
        found, _ = factors.svd(asked, POPULARITY, factors.fitted_svd(GROUPS, N, 4), 2)
    else:
        found, _ = factors.bpr(asked, POPULARITY, factors.fitted_bpr(GROUPS, N, 4, 1e-3, 0, epochs=200))
    scores = found[[0, 1]]
    assert scores[0, 2:6].min() > scores[0, 6:].max() and scores[1, [7, 9, 10, 11]].min() > scores[1, :6].max()


def test_nobody_with_two_items_gets_a_sentence():
    with pytest.raises(InputError, match="leave it out"):
        factors.fitted_bpr([[0], [3]], N, 4, 1e-3, 0)
