"""Baselines that train nothing: each gives the sessions' target ranks Int32[S,M], 0 for no target.

They rank as everything else does: the full catalogue without the history and the other targets,
ties in catalogue order.
"""

import jax.numpy as jnp
import numpy as np

from lpt_jax import devices
from lpt_jax.array_types import ItemEmbeddings
from lpt_jax.ranking import padded, session_ranks


def random(sessions, items: int, seed: int) -> np.ndarray:
    """Ranks drawn evenly from the places that are free: 1 … items - history - other targets."""
    targets = [s.targets for s in sessions]
    targets = padded(targets, max(map(len, targets), default=1))
    hidden = [len(set(s.history)) + len(set(s.targets)) - 1 for s in sessions]
    free = items - np.array(hidden, np.int64)[:, None]
    ranks = np.random.default_rng(seed).integers(1, free + 1, targets.shape)
    return np.where(targets >= 0, ranks, 0).astype(np.int32)


def popularity(sessions, counts) -> np.ndarray:
    """Ranks by the items' numbers of training interactions, Int[N]."""
    counts = jnp.asarray(counts, jnp.float32)[:, None]  # exact below 2^24; an embedding of width 1
    return session_ranks(np.ones((len(sessions), 1), np.float32), counts, sessions)


def last_item(sessions, items: ItemEmbeddings, valid: int | None = None) -> np.ndarray:
    """Ranks by similarity to the text of the last item before the target."""
    last = jnp.asarray([s.history[-1] for s in sessions], jnp.int32)
    return session_ranks(devices.fetch(jnp.take(items, last, axis=0)), items, sessions, valid)
