"""Ranks by counting against a plain sort: ties, hidden items, padding, NaN, eight devices."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lpt_jax import ranking


def brute(scores, targets, hidden, valid):
    """Ranks by sorting (-score, index) of the items that are left."""
    out = np.zeros(targets.shape, int)
    for row in range(len(scores)):
        for column, target in enumerate(targets[row]):
            if target >= 0:
                drop = (set(hidden[row]) | set(targets[row])) - {target}
                left = [i for i in range(valid) if i not in drop]
                left.sort(key=lambda i: (np.isnan(scores[row, i]), -scores[row, i], i))
                out[row, column] = left.index(target) + 1
    return out


def world(seed, rows=6, n=24, valid=21, width=3):
    """Small integers as embeddings: exact dot products, many ties."""
    rng = np.random.default_rng(seed)
    profiles = rng.integers(-1, 2, (rows, width)).astype(np.float32)
    items = rng.integers(-1, 2, (n, width)).astype(np.float32)
    chosen = np.stack([rng.permutation(valid)[:7] for _ in range(rows)]).astype(np.int32)
    targets, hidden = chosen[:, :2].copy(), chosen[:, 2:].copy()
    targets[0, 1] = hidden[1, 3:] = -1
    hidden[2, 1] = hidden[2, 0]  # an item named twice
    return profiles, items, targets, hidden, valid


@pytest.mark.parametrize("seed", range(5))
def test_equals_a_sort(seed):
    profiles, items, targets, hidden, valid = world(seed)
    scores = profiles @ items.T
    expected = brute(scores, targets, hidden, valid)
    np.testing.assert_array_equal(ranking.target_ranks(profiles, items, targets, hidden, valid), expected)
    hidden = np.concatenate([hidden, targets[:, 1:]], axis=1)
    np.testing.assert_array_equal(ranking.ranks(scores, targets[:, :1], hidden, valid), expected[:, :1])


@pytest.mark.parametrize("chunk, n", [(2, 128), (3, 200), (2, 133)])
def test_chunk_by_chunk_equals_a_sort(chunk, n):
    """Also where the last chunk overlaps the one before."""
    profiles, items, targets, hidden, valid = world(chunk, n=n, valid=n - 5)
    found = ranking.counted(profiles, items, targets, hidden, valid, room=(0, chunk))
    np.testing.assert_array_equal(found, brute(profiles @ items.T, targets, hidden, valid))
    items[targets[0, 0]] = np.nan
    found = ranking.counted(profiles, items, targets, hidden, room=(0, chunk))
    np.testing.assert_array_equal(found, brute(profiles @ items.T, targets, hidden, n))


def test_equal_items_tie_in_every_chunk():
    """Copies of a few embeddings that are not exact in binary: their scores must be the same wherever they stand."""
    rng = np.random.default_rng(0)
    kinds, which = rng.standard_normal((40, 384)), rng.integers(0, 40, 64 * 70 + 13)
    profiles, chosen = rng.standard_normal((6, 384)), rng.permutation(len(which))[:60].reshape(6, 10).astype(np.int32)
    expected = brute((profiles @ kinds.T)[:, which], chosen[:, :2], chosen[:, 2:], len(which))
    single = profiles.astype(np.float32), kinds.astype(np.float32)[which]
    for most in (0, 1 << 30):  # in chunks, and all at once
        found = ranking.counted(*single, chosen[:, :2], chosen[:, 2:], room=(most, 64))
        np.testing.assert_array_equal(found, expected)


def test_order_is_that_of_top_k():
    profiles, items, _, hidden, valid = world(7)
    ids, scores = ranking.top_k(profiles, items, hidden, 20, valid)
    for row in range(len(profiles)):
        left = [i for i in ids[row].tolist() if i >= 0]
        assert len(left) == valid - len(set(hidden[row]) - {-1}) and not set(left) & set(hidden[row].tolist())
        assert np.isneginf(scores[row, len(left) :]).all()
        same = jnp.tile(profiles[row : row + 1], (len(left), 1))
        everywhere = jnp.tile(hidden[row : row + 1], (len(left), 1))
        ranks = ranking.target_ranks(same, items, jnp.array(left, jnp.int32)[:, None], everywhere, valid)
        assert ranks[:, 0].tolist() == list(range(1, len(left) + 1))


def test_not_a_number_comes_last():
    scores = np.array([[0.1, np.nan, 0.3, np.nan]], np.float32)
    hidden = np.array([[0, -1]], np.int32)
    assert ranking.ranks(scores, np.array([[1]], np.int32), hidden).tolist() == [[3]]  # after 2 and the other NaN
    assert ranking.ranks(scores, np.array([[2]], np.int32), hidden).tolist() == [[1]]


def test_negative_zero_ties_with_zero():
    items = np.array([[-0.0], [0.0], [-0.0]], np.float32)
    ids, _ = ranking.top_k(np.ones((1, 1), np.float32), items, np.full((1, 1), -1, np.int32), 3)
    assert ids[0].tolist() == [0, 1, 2]


def test_eight_devices_give_the_same_ranks():
    if len(jax.devices()) < 8:
        pytest.skip("needs 8 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")
    profiles, items, targets, hidden, valid = world(3, rows=8)
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(2, 4), ("data", "fsdp"))

    def place(array, *axes):
        return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*axes)))

    spread = (place(profiles, "data"), place(items, ("data", "fsdp")), place(targets, "data"), place(hidden, "data"))
    expected = brute(profiles @ items.T, targets, hidden, valid)
    np.testing.assert_array_equal(ranking.target_ranks(*spread, valid), expected)
    profiles, items, targets, hidden, valid = world(3, rows=8, n=8 * 130, valid=8 * 130 - 3)
    many = (place(profiles, "data"), place(items, ("data", "fsdp")), place(targets, "data"), place(hidden, "data"))
    expected = brute(profiles @ items.T, targets, hidden, valid)
    np.testing.assert_array_equal(ranking.counted(*many, valid, ways=8, room=(0, 2)), expected)
    profiles, items, _, hidden, valid = world(3, rows=8)
    ids, _ = ranking.top_k(spread[0], spread[1], spread[3], 5, valid)
    np.testing.assert_array_equal(ids, ranking.top_k(profiles, items, hidden, 5, valid)[0])


def test_session_ranks_batches_and_pads():
    profiles, items, targets, hidden, valid = world(5, rows=7)
    sessions = [
        SimpleNamespace(hidden=tuple(h[h >= 0].tolist()), targets=tuple(t[t >= 0].tolist()))
        for h, t in zip(hidden, targets)
    ]
    found = ranking.session_ranks(profiles, items, sessions, valid, batch=3)
    np.testing.assert_array_equal(found, brute(profiles @ items.T, targets, hidden, valid))


def test_the_best_of_all_sessions_and_rankings_by_scores_alone():
    profiles, items, targets, hidden, valid = world(3)
    sessions = [
        SimpleNamespace(hidden=[i for i in h if i >= 0], targets=[i for i in t if i >= 0])
        for t, h in zip(targets, hidden)
    ]
    best = ranking.session_best(profiles, items, sessions, 40, valid, batch=4)
    for row, (s, found) in enumerate(zip(sessions, best, strict=True)):
        left = [i for i in range(valid) if i not in s.hidden]
        left.sort(key=lambda i: (-(profiles[row] @ items[i]), i))
        assert found[: len(left)].tolist() == left and (found[len(left) :] == -1).all()
    scores = ranking.score(profiles, items)
    for by_embeddings, by_scores in (
        (best, ranking.session_best(scores, None, sessions, 40, valid, batch=4)),
        (
            ranking.session_ranks(profiles, items, sessions, valid),
            ranking.session_ranks(scores, None, sessions, valid, 4),
        ),
    ):
        np.testing.assert_array_equal(by_embeddings, by_scores)
