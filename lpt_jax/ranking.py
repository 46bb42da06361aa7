"""Where a target stands in the full catalogue: score, hide the history, count what is ahead.

One tie rule everywhere: of two items with equal scores the one with the lower catalogue index
comes first, as in jax.lax.top_k. Ranks are counted, never sorted, so a catalogue sharded over
devices costs one small sum between them. Only the first `valid` rows of a catalogue are items
(None: all of them); the rest is padding for an even sharding.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lpt_jax import devices
from lpt_jax.array_types import Embeddings, HiddenItems, ItemEmbeddings, Ranks, Scores, Targets

# bytes of scores that a device has at once, and else the items of a chunk: a CPU is fastest where its cache holds them
CPU, ACCELERATOR = (1 << 24, 1 << 12), (1 << 30, 1 << 16)


def score(profiles: Embeddings, items: ItemEmbeddings | None) -> Scores:
    """Dot products in full float32, cosines where both sides have unit length; never -0.0. items None: they are scores.

    Of profiles [B, J, D], J queries each, the best one counts.
    """
    scores = profiles
    if items is not None:
        scores = jnp.einsum("...d,nd->...n", profiles, items, precision="highest", preferred_element_type=jnp.float32)
        scores = scores.max(1) if scores.ndim == 3 else scores
    return jnp.where(scores == 0, jnp.zeros_like(scores), scores)  # top_k puts -0.0 below 0.0


def _ahead(scores, ids, target_scores, targets):
    """Bool[B,M,·]: does each item (scores, ids [B,·]) come before each target (both [B,M])?"""
    scores, ids = scores[:, None, :], ids[:, None, :]
    target_scores, targets = target_scores[:, :, None], targets[:, :, None]
    tie_before = (scores == target_scores) & (ids < targets)
    return (scores > target_scores) | tie_before | (jnp.isnan(target_scores) & (ids != targets))


def _unhidden(ahead, target_scores, targets, hidden_scores, hidden, once):
    """The ranks, from how many items are ahead of each target, without the hidden ones (`once`: the first of its name)."""
    of_them = _ahead(hidden_scores, hidden, target_scores, targets) & once[:, None, :]
    return jnp.where(targets >= 0, 1 + ahead - jnp.sum(of_them, axis=2, dtype=jnp.int32), 0)


def _once(hidden):
    """Hidden items sorted, and which of them count: an item named twice is discounted once, -1 never."""
    hidden = jnp.sort(hidden, axis=1)
    return hidden, (hidden >= 0) & (jnp.diff(hidden, axis=1, prepend=-1) != 0)


@jax.jit
def ranks(scores: Scores, targets: Targets, hidden: HiddenItems, valid: int | None = None) -> Ranks:
    """Each target's rank: 1 + the unhidden items that come before it, other targets among them.

    A target whose score is NaN comes after all other items.

    >>> scores = jnp.array([[0.9, 0.5, 0.5, 0.1]])  # item 0 is hidden, item 1 ties and is before
    >>> ranks(scores, jnp.array([[2]]), jnp.array([[0, -1]])).tolist()
    [[2]]
    """
    n = scores.shape[1]
    hidden, once = _once(hidden)
    target_scores = jnp.take_along_axis(scores, jnp.maximum(targets, 0), axis=1)
    hidden_scores = jnp.take_along_axis(scores, jnp.maximum(hidden, 0), axis=1)
    ids = jnp.arange(n, dtype=targets.dtype)[None, :]
    real = ids < (n if valid is None else valid)
    ahead = jnp.sum(_ahead(scores, ids, target_scores, targets) & real[:, None, :], axis=2, dtype=jnp.int32)
    return _unhidden(ahead, target_scores, targets, hidden_scores, hidden, once)


def target_ranks(
    profiles: Embeddings, items: ItemEmbeddings | None, targets: Targets, hidden: HiddenItems, valid=None
) -> Ranks:
    """Each target's rank with the hidden items and the other targets left out; 0 for target -1. items None: by Scores."""
    if items is None:
        return _ranks_of_scores(profiles, targets, hidden, valid)
    rows = items.sharding.shard_shape(items.shape)[0] if isinstance(items, jax.Array) else len(items)
    return counted(profiles, items, targets, hidden, valid, ways=len(items) // rows)


@jax.jit
def _ranks_of_scores(scores, targets, hidden, valid):
    return ranks(score(scores, None), targets, jnp.concatenate([hidden, targets], axis=1), valid)


@partial(jax.jit, static_argnames=("ways", "room"))
def counted(profiles, items, targets, hidden, valid=None, ways: int = 1, room: tuple[int, int] | None = None):
    """target_ranks of items whose rows lie on so many devices: many items are scored chunk by chunk on each of them.

    room: the bytes of scores that a device may have at once, and the items of a chunk where all are more; None: as is best
    for the device.
    """
    most, chunk = room or (CPU if jax.default_backend() == "cpu" else ACCELERATOR)
    hidden = jnp.concatenate([hidden, targets], axis=1)  # none is ahead of itself: it may be there
    (n, width), users = items.shape, jnp.arange(len(profiles))
    each, size = n // ways, ways * chunk
    if each <= chunk or 4 * profiles[..., 0].size * each <= most:
        return ranks(score(profiles, items), targets, hidden, valid)
    hidden, once = _once(hidden)
    # equal items must tie: the targets' own scores come from products of the same shape as the items'
    own = jnp.maximum(targets, 0).ravel()
    own = jnp.pad(own, (0, -own.size % size)).reshape(-1, size)
    own = jax.lax.map(lambda ids: score(profiles, items[ids]), own).swapaxes(0, 1).reshape(len(profiles), -1)
    own = own[:, : targets.size].reshape(len(profiles), *targets.shape)[users, users]
    blocks, (way, place) = items.reshape(ways, each, width), jnp.divmod(jnp.maximum(hidden, 0), each)

    def add(i, found):
        ahead, of_hidden = found
        start = jnp.minimum(i * chunk, each - chunk)  # the last chunk overlaps the one before
        scores = score(profiles, jax.lax.dynamic_slice_in_dim(blocks, start, chunk, 1).reshape(size, width))
        places = start + jnp.arange(chunk, dtype=targets.dtype)
        ids = (each * jnp.arange(ways, dtype=targets.dtype)[:, None] + places).reshape(1, size)
        new = jnp.tile(places >= i * chunk, ways) & (ids < (n if valid is None else valid))
        ahead += jnp.sum(_ahead(scores, ids, own, targets) & new[:, None, :], axis=2, dtype=jnp.int32)
        at = place - start
        column = way * chunk + jnp.clip(at, 0, chunk - 1)
        there = (at >= 0) & (at < chunk)
        return ahead, jnp.where(there, jnp.take_along_axis(scores, column, axis=1), of_hidden)

    nothing = jnp.zeros(targets.shape, jnp.int32), jnp.zeros(hidden.shape, jnp.float32)
    ahead, of_hidden = jax.lax.fori_loop(0, -(-each // chunk), add, nothing)
    return _unhidden(ahead, own, targets, of_hidden, hidden, once)


@partial(jax.jit, static_argnames="k")
def top_k(profiles: Embeddings, items: ItemEmbeddings | None, hidden: HiddenItems, k: int, valid=None):
    """The best k items, best first: ids Int32[B,k], scores Float32[B,k]; -1, -inf for none."""
    scores = score(profiles, items)
    n = scores.shape[1]
    real = jnp.arange(n)[None, :] < (n if valid is None else valid)
    scores = jnp.where(real & ~jnp.isnan(scores), scores, -jnp.inf)
    rows, columns = jnp.arange(scores.shape[0])[:, None], jnp.where(hidden < 0, n, hidden)
    scores = scores.at[rows, columns].set(-jnp.inf, mode="drop")
    best, ids = jax.lax.top_k(scores, min(k, n))
    return jnp.where(best == -jnp.inf, -1, ids), best


@partial(jax.jit, static_argnames="count")
def mean_and_covariance(items, count: int):
    """Of the first `count` items' embeddings: mean [D] and covariance [D, D], and so of any text's cosines to them."""
    items = items[:count, :-1]
    mean = items.mean(0)
    apart = items - mean
    return mean, apart.T @ apart / count


class Several:
    """Scores of several queries for each session, the best of them counting: profiles[rows] of session_ranks, for items None."""

    def __init__(self, queries: list[np.ndarray], items: np.ndarray):
        """queries: of each session Float[any, D]; items: Float[N, D]."""
        self.queries, self.items = queries, items

    def __getitem__(self, rows) -> np.ndarray:
        scores = np.empty((len(rows), len(self.items)), np.float32)
        for line, row in zip(scores, rows, strict=True):
            line[:] = (self.queries[row] @ self.items.T).max(0)
        return scores


def padded(rows, width: int = 0) -> np.ndarray:
    """Lists of catalogue indices as Int32[B,width], -1 after their ends; width 0: a power of 2."""
    longest = max((len(row) for row in rows), default=1)
    out = np.full((len(rows), width or 1 << max(longest - 1, 0).bit_length()), -1, np.int32)
    for line, row in zip(out, rows, strict=True):
        line[: len(row)] = row
    return out


def session_ranks(profiles, items: ItemEmbeddings | None, sessions, valid=None, batch: int = 256):
    """Ranks Int32[S,M] of all sessions' targets by their profiles Float[S,D], batch by batch.

    items None: profiles[rows] are the Scores of these sessions, so that not all of them need exist at once.
    """
    targets = [s.targets for s in sessions]
    targets = padded(targets, max(map(len, targets), default=1))
    out = np.zeros(targets.shape, np.int32)
    for start, rows, *of_rows in _batches(profiles, items, sessions, batch):
        found = target_ranks(of_rows[0], items, targets[rows], of_rows[1], valid)
        out[start : start + batch] = devices.fetch(found)[: len(sessions) - start]
    return out


def session_best(profiles, items: ItemEmbeddings | None, sessions, k: int, valid=None, batch: int = 256):
    """The best k items Int32[S,k] of all sessions without their histories, best first, -1 for none; as session_ranks."""
    found = []
    for start, _, *of_rows in _batches(profiles, items, sessions, batch):
        best = devices.fetch(top_k(of_rows[0], items, of_rows[1], k, valid)[0])
        found.append(best[: len(sessions) - start])
    return np.concatenate(found)


def _batches(profiles, items, sessions, batch):
    """Each batch's start, its rows Int[batch] (full to the end: one shape compiles), their profiles and HiddenItems."""
    hidden = padded([s.hidden for s in sessions])
    profiles = profiles if items is None else np.asarray(profiles)
    for start in range(0, len(sessions), batch):
        rows = np.arange(start, start + batch) % len(sessions)
        yield start, rows, profiles[rows], hidden[rows]
