"""Baselines that train nothing: what ranking.session_ranks ranks by, profiles and items (or scores and None).

So they rank as everything else does: the full catalogue without the history and the other targets, ties in catalogue
order. Only `random` draws the ranks themselves.
"""

import logging
import re

import jax.numpy as jnp
import numpy as np

from lpt_jax import devices
from lpt_jax.array_types import ItemEmbeddings
from lpt_jax.ranking import Several, padded


def random(sessions, items: int, seed: int) -> np.ndarray:
    """Ranks drawn evenly from the places that are free: 1 … items - history - other targets."""
    targets = [s.targets for s in sessions]
    targets = padded(targets, max(map(len, targets), default=1))
    hidden = [len(set(s.history)) + len(set(s.targets)) - 1 for s in sessions]
    free = items - np.array(hidden, np.int64)[:, None]
    ranks = np.random.default_rng(seed).integers(1, free + 1, targets.shape)
    return np.where(targets >= 0, ranks, 0).astype(np.int32)


def popularity(sessions, counts) -> tuple[np.ndarray, ItemEmbeddings]:
    """By the items' numbers of training interactions, Int[N]."""
    return np.ones((len(sessions), 1), np.float32), jnp.asarray(counts, jnp.float32)[:, None]  # exact below 2^24


def last_item(sessions, items: ItemEmbeddings) -> tuple[np.ndarray, ItemEmbeddings]:
    """By similarity to the text of the last item before the target."""
    last = jnp.asarray([s.history[-1] for s in sessions], jnp.int32)
    return devices.fetch(jnp.take(items, last, axis=0)), items


def items_mean(sessions, items: ItemEmbeddings, last: int) -> np.ndarray:
    """The mean of the last items' text embeddings, Float[S, D]: a user without a profile."""
    return np.stack([devices.fetch(items[jnp.asarray(s.history[-last:])]).mean(0) for s in sessions])


def decayed_mean(sessions, items: ItemEmbeddings, decay: float) -> np.ndarray:
    """The mean of all items' text embeddings, each weighing × decay for each item after it, Float[S, D]."""
    vectors = devices.fetch(items)
    weights = (decay ** np.arange(len(s.history) - 1, -1, -1.0) for s in sessions)
    return np.stack([w / w.sum() @ vectors[list(s.history)] for w, s in zip(weights, sessions)]).astype(np.float32)


def every_item(sessions, items: ItemEmbeddings, decay: float) -> tuple[Several, None]:
    """By similarity to any item of the history, which counts × decay for each item after it."""
    vectors = devices.fetch(items)
    weights = (decay ** np.arange(len(s.history) - 1, -1, -1.0) for s in sessions)
    queries = [(w[:, None] * vectors[list(s.history)]).astype(np.float32) for w, s in zip(weights, sessions)]
    return Several(queries, vectors), None


def and_popularity(vectors, items: ItemEmbeddings, counts, weight: float) -> tuple[np.ndarray, ItemEmbeddings]:
    """By vectors Float[S, D] · items + weight × log(1 + training interactions Int[N]), as columns of both."""
    column = np.zeros((len(items), 1), np.float32)
    column[: len(counts), 0] = weight * np.log1p(counts)
    queries = np.concatenate([vectors, np.ones((len(vectors), 1), np.float32)], 1)
    return queries, jnp.concatenate([items, jnp.asarray(column)], 1)


class BM25:
    """By the words that an item's text shares with a query, the history's raw text: Scores [B,N] of queries by their rows.

    Lucene's BM25 (k1 1.5, b 0.75) of the library bm25s, without stemming or stop words: idf sees to frequent words. A word
    counts as often as the query has it.
    """

    def __init__(self, queries: list[str], texts: list[str]):
        import bm25s  # here, as it starts jax

        logging.getLogger("bm25s").setLevel(logging.WARNING)  # it asks for DEBUG, which a root handler would print
        self.queries, self.words = queries, {}
        known = [[self.words.setdefault(word, len(self.words)) for word in words_of(text)] for text in texts]
        self.count, self.index = len(texts), bm25s.BM25(k1=1.5, b=0.75, method="lucene", dtype="float32")
        if self.words:
            self.index.index((known, self.words), create_empty_token=False, show_progress=False)

    def __getitem__(self, rows) -> np.ndarray:
        scores = np.zeros((len(rows), self.count), np.float32)
        for line, row in zip(scores, rows):
            if ids := [self.words[word] for word in words_of(self.queries[row]) if word in self.words]:
                line[:] = self.index.get_scores_from_ids(ids)
        return scores


def words_of(text: str) -> list[str]:
    """A text's words in lower case: runs of letters and digits in any script."""
    return re.findall(r"\w+", text.lower())
