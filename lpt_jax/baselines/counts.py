"""Baselines that count: which items follow which, and which are chosen together. Fitted in seconds, in closed form.

All take `sequences`, the training interactions of each user (catalogue indices, oldest first), and give Scores [B, N] of
sessions' histories, row by row, as ranking.session_ranks asks for them. Of what others leave tied (every count does) the
more popular item comes first.
"""

from collections.abc import Callable, Sequence

import numpy as np
import scipy.sparse
import scipy.sparse.linalg

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


def factors(sequences: Sequence[Sequence[int]], items: int, size: int, seed: int) -> np.ndarray:
    """The items' factors Float[N, size] of a seeded truncated SVD of who chose what: alike where the same people chose them.

    Both sides are scaled by 1 / √count. Each direction counts by its singular value; rows are of unit length, or zero for an
    item of nobody.
    """
    matrix = chosen(sequences, items)
    of_users, of_items = (np.maximum(np.asarray(matrix.sum(axis)).ravel(), 1) for axis in (1, 0))
    scaled = scipy.sparse.diags(of_users**-0.5) @ matrix @ scipy.sparse.diags(of_items**-0.5)
    start = np.random.default_rng((seed, 42)).standard_normal(min(scaled.shape))
    _, values, right = scipy.sparse.linalg.svds(scaled, min(size, min(scaled.shape) - 1), v0=start)
    found = (right.T * values).astype(np.float32)
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
