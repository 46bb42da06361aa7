"""Baselines that count: which items follow which, and which are chosen together. Fitted in seconds, in closed form.

All take `sequences`, the training interactions of each user (catalogue indices, oldest first), and give Scores [B, N] of
sessions' histories, row by row, as ranking.session_ranks asks for them. Of what others leave tied (every count does) the
more popular item comes first.
"""

from collections.abc import Callable, Sequence

import numpy as np
import scipy.sparse
import scipy.sparse.linalg

from lpt_jax.errors import InputError

SHRINK, DECAY = 10.0, 0.7  # of item_knn: added to cosines' denominators; weight of an item by its age in the history
DENSE = 20_000  # items whose N × N matrix EASE may invert: 3.2 GB


class Scored:
    """Scores [B, N] of sessions by their rows: of(history), with popularity to break ties."""

    def __init__(self, sessions, popularity: np.ndarray, of: Callable):
        self.sessions, self.of = sessions, of
        self.ties = 1e-6 * popularity / max(popularity.max(initial=0), 1)

    def __getitem__(self, rows) -> np.ndarray:
        return np.stack([self.of(self.sessions[row].history) + self.ties for row in rows]).astype(np.float32)


def pairs(sequences: Sequence[Sequence[int]], items: int) -> scipy.sparse.csr_matrix:
    """How often item j directly follows item i: [N, N].

    >>> pairs([[0, 1, 2], [0, 1]], 3).toarray().tolist()
    [[0.0, 2.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    """
    befores = np.concatenate([np.asarray(s[:-1], np.int64) for s in sequences] or [np.zeros(0, np.int64)])
    afters = np.concatenate([np.asarray(s[1:], np.int64) for s in sequences] or [np.zeros(0, np.int64)])
    ones = np.ones(len(befores))
    return scipy.sparse.coo_matrix((ones, (befores, afters)), (items, items)).tocsr()


def chosen(sequences: Sequence[Sequence[int]], items: int) -> scipy.sparse.csr_matrix:
    """Which user has which item, 0 or 1: [U, N]."""
    users = np.repeat(np.arange(len(sequences)), [len(s) for s in sequences])
    of_users = np.concatenate([np.asarray(s, np.int64) for s in sequences])
    found = scipy.sparse.coo_matrix((np.ones(len(users)), (users, of_users)), (len(sequences), items)).tocsr()
    found.data[:] = 1
    return found


def transitions(sessions, sequences, popularity: np.ndarray) -> tuple[Scored, None]:
    """By how often an item directly followed the history's last one."""
    followed = pairs(sequences, len(popularity))
    return Scored(sessions, popularity, lambda history: followed[history[-1]].toarray()[0]), None


def item_knn(sessions, sequences, popularity: np.ndarray) -> tuple[Scored, None]:
    """By the sum over the history's items of DECAY^age × cosine to them, n_ij / (√(n_i n_j) + SHRINK)."""
    users = chosen(sequences, len(popularity))
    together, counts = (users.T @ users).tocsr(), np.asarray(users.sum(0)).ravel()

    def of(history):
        ages = DECAY ** np.arange(len(history))[::-1]
        found = np.zeros(len(popularity))
        for item, weight in zip(history, ages):
            start, stop = together.indptr[item : item + 2]
            others = together.indices[start:stop]
            found[others] += weight * together.data[start:stop] / (np.sqrt(counts[item] * counts[others]) + SHRINK)
        return found

    return Scored(sessions, popularity, of), None


def ease(sessions, sequences, popularity: np.ndarray, penalty: float) -> tuple[Scored, None]:
    """EASE (Steck 2019): the history's items times B = I − P / diag(P), P = (XᵀX + penalty × I)⁻¹."""
    items = len(popularity)
    users = chosen(sequences, items)
    gram = (users.T @ users).toarray() + penalty * np.eye(items)
    inverse = np.linalg.inv(gram)
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return Scored(sessions, popularity, lambda history: weights[list(history)].sum(0)), None


def factors(sequences: Sequence[Sequence[int]], items: int, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(items' factors Float[N, size], singular values) of a seeded truncated SVD of who chose what, the largest first; zeros where
    there are fewer.

    Users are scaled by 1 / √count, and items too: the factors hold their side of that. A user's row of the matrix times the
    factors, which `People` sums, is the user's own factors times the singular values.
    """
    matrix = chosen(sequences, items)
    of_users, of_items = (np.maximum(np.asarray(matrix.sum(axis)).ravel(), 1) for axis in (1, 0))
    scaled = scipy.sparse.diags(of_users**-0.5) @ matrix @ scipy.sparse.diags(of_items**-0.5)
    start = np.random.default_rng((seed, 42)).standard_normal(min(scaled.shape))
    most = min(size, min(scaled.shape) - 1)
    if most < 1:
        raise InputError("Who chose what has no factors where there is one user or one item: give more data.")
    _, values, right = scipy.sparse.linalg.svds(scaled, most, v0=start)
    order = np.argsort(-values)
    found, values = right[order].T * of_items[:, None] ** -0.5, values[order]
    return np.pad(found, ((0, 0), (0, size - most))).astype(np.float32), np.pad(values, (0, size - most))


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of unit length; zeros stay."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


class People:
    """People as vectors of unit length: what their items' factors sum to, also of somebody who was not there."""

    def __init__(self, sequences: Sequence[Sequence[int]], items: int, size: int, seed: int = 0):
        self.items, _ = factors(sequences, items, size, seed)
        self.sequences, self.all = sequences, self.of(sequences)

    def of(self, histories: Sequence[Sequence[int]]) -> np.ndarray:
        """Vectors Float[n, d] of people with these items; zeros for none."""
        return unit(np.stack([self.items[list(history)].sum(0) for history in histories]))

    def nearest(self, vectors: np.ndarray, own: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The `count` nearest of the people themselves to vectors [n, d], and their cosines, [n, count] both.

        own Int[n]: who of them each is, who is left out; -1: none of them.
        """
        cosines = vectors @ self.all.T
        known = np.flatnonzero(own >= 0)
        cosines[known, own[known]] = -np.inf
        count = min(count, cosines.shape[1] - 1)
        found = np.argpartition(-cosines, count - 1, 1)[:, :count]
        order = np.argsort(-np.take_along_axis(cosines, found, 1), 1, kind="stable")
        found = np.take_along_axis(found, order, 1)
        return found, np.take_along_axis(cosines, found, 1)


def user_knn(sessions, people: People, own: np.ndarray, popularity: np.ndarray, count: int) -> tuple[Scored, None]:
    """By the cosines of the nearest people who have an item, summed; own: who of the people each session's user is."""
    found, cosines = people.nearest(people.of([session.history for session in sessions]), own, count)
    rows = {id(session.history): row for row, session in enumerate(sessions)}

    def of(history):
        row, scores = rows[id(history)], np.zeros(len(popularity))
        for other, cosine in zip(found[row], cosines[row], strict=True):
            scores[list(people.sequences[other])] += cosine
        return scores

    return Scored(sessions, popularity, of), None
