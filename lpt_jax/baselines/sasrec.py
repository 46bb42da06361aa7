"""SASRec (arXiv 1808.09781): a causal transformer over item ids, the baseline that reads no text.

It is trained on all training interactions, as popularity counts them, to tell each next item from one that the user does
not have (or from all others, loss="softmax"), and ranks by the dot product of a history's last state with the items' own
vectors. Positions count from a history's end, as left padding makes them in the paper's code; several sequences share a
line of a batch, which changes nothing but the time.
"""

import io
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from lpt_jax import devices, files, metrics
from lpt_jax.array_types import Hidden, Mask, Segments, Tokens
from lpt_jax.data import batches
from lpt_jax.errors import InputError
from lpt_jax.ranking import session_ranks


def init_weights(items: int, settings, seed: int) -> dict[str, np.ndarray]:
    """Weights by name: item [N,D], position [items of a history,D], and the blocks' with a first axis of blocks."""
    rng, d, blocks = np.random.default_rng(seed), settings.width, settings.blocks
    shapes = {"item": (items, d), "position": (settings.max_items, d)}
    shapes |= {name: (blocks, d, d) for name in ("q", "k", "v", "up", "down")}
    found = {name: rng.normal(0, 0.02, shape).astype(np.float32) for name, shape in shapes.items()}
    found |= {name: np.zeros((blocks, d), np.float32) for name in ("up_bias", "down_bias")}
    for name, shape in (("attention_norm", (blocks, d)), ("feed_norm", (blocks, d)), ("norm", (d,))):
        found |= {name: np.ones(shape, np.float32), f"{name}_bias": np.zeros(shape, np.float32)}
    return found


def _norm(x, scale, bias):
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-8) * scale + bias


def forward(
    w: dict, tokens: Tokens, texts: Segments, positions, heads: int = 1, dropout: float = 0.0, key=None
) -> Hidden:
    """States [B,T,D] of item ids, each of which sees those before it in its own sequence.

    Args:
      texts: which of its line's sequences an item belongs to; 0 is padding.
      positions: Int[B,T], the last of a sequence's being max_items - 1.
      key: of dropout; None: there is none.
    """

    def drop(x, number):
        if key is None or not dropout:
            return x
        kept = jax.random.bernoulli(jax.random.fold_in(key, number), 1 - dropout, x.shape)
        return jnp.where(kept, x / (1 - dropout), 0)

    (b, t), d = tokens.shape, w["item"].shape[1]
    seen = (texts[:, :, None] == texts[:, None, :]) & jnp.tril(jnp.ones((t, t), bool))
    x = drop(w["item"][tokens] * d**0.5 + w["position"][positions], 0)
    for i in range(len(w["q"])):
        y = _norm(x, w["attention_norm"][i], w["attention_norm_bias"][i])
        q, k, v = ((y @ w[name][i]).reshape(b, t, heads, d // heads) for name in "qkv")
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / (d // heads) ** 0.5
        shares = drop(jax.nn.softmax(jnp.where(seen[:, None], scores, -1e30)), 3 * i + 1)
        x += drop(jnp.einsum("bhqk,bkhd->bqhd", shares, v).reshape(b, t, d), 3 * i + 2)
        y = _norm(x, w["feed_norm"][i], w["feed_norm_bias"][i])
        y = jax.nn.relu(y @ w["up"][i] + w["up_bias"][i]) @ w["down"][i] + w["down_bias"][i]
        x += drop(y, 3 * i + 3)
    return _norm(x, w["norm"], w["norm_bias"])


def loss(w: dict, states: Hidden, mask: Mask, targets, negatives=None) -> jax.Array:
    """The mean over the real items of the paper's BCE of the next item and of one negative, Int[B,T] each.

    negatives None: of the cross-entropy over all items.
    """
    if negatives is None:
        each = optax.softmax_cross_entropy_with_integer_labels(states @ w["item"].T, targets)
    else:
        true, false = jnp.sum(states * w["item"][jnp.stack([targets, negatives])], -1)
        each = jax.nn.softplus(-true) + jax.nn.softplus(false)
    return jnp.sum(each * mask) / jnp.sum(mask)


@partial(jax.jit, static_argnames=("heads", "dropout", "rate", "b2"), donate_argnums=(0, 1))
def _update(w, optimiser, batch, key, heads, dropout, rate, b2):
    def of(w):
        states = forward(w, batch["tokens"], batch["texts"], batch["positions"], heads, dropout, key)
        return loss(w, states, batch["texts"] > 0, batch["targets"], batch.get("negatives"))

    value, gradient = jax.value_and_grad(of)(w)
    step, optimiser = optax.adam(rate, b2=b2).update(gradient, optimiser)
    return optax.apply_updates(w, step), optimiser, value


_forward = jax.jit(forward, static_argnames=("heads",))


def states(w: dict, sessions, heads: int = 1, batch: int = 512) -> np.ndarray:
    """Float32[S,D]: each history's last state, what the items are ranked by (of the latest items, as many as positions)."""
    most = len(w["position"])
    rows = [s.history[-most:] for s in sessions]
    order = np.argsort([len(row) for row in rows], kind="stable")  # so that a batch is not longer than it must be
    found = np.zeros((len(rows), w["item"].shape[1]), np.float32)
    for start in range(0, len(rows), batch):
        at = order[np.minimum(np.arange(start, start + batch), len(rows) - 1)]  # full to the end: few shapes compile
        length = min(most, 1 << (len(rows[at[-1]]) - 1).bit_length())
        tokens, mask = batches.pad_left([rows[i] for i in at], length, 0)
        found[at] = _forward(w, tokens, mask.astype(np.int32), np.arange(most - length, most)[None], heads=heads)[:, -1]
    return found


def negatives(users: np.ndarray, known: np.ndarray, items: int, rng) -> np.ndarray:
    """For each of users Int[K] an item drawn evenly of those that are not among its own.

    known: sorted user · N + item of all that the users have; no user has them all.
    """
    found, again = np.zeros(len(users), np.int64), np.arange(len(users))
    while len(again):
        found[again] = rng.integers(0, items, len(again))
        pairs = users[again] * items + found[again]
        again = again[known[np.minimum(np.searchsorted(known, pairs), len(known) - 1)] == pairs]
    return found


def train(
    sequences: Sequence[Sequence[int]],
    items: int,
    validation,
    settings,
    seed: int,
    metric: str = "ndcg@10",
    after_epoch: Callable[[], None] = lambda: None,
    b2: float = 0.98,
) -> tuple[dict[str, np.ndarray], dict]:
    """Trains on users' sequences of the items 0 … N - 1, oldest first, and ends with the best state by validation.

    Args:
      validation: Sessions, on whose metric it stops early: after settings.patience validations without a gain.
      settings: config.sasrec.
      after_epoch: called after each, where a run may be stopped.
      b2: Adam's, as the paper's code has it.

    Returns:
      the weights, and {"epochs" trained, "best_epoch", "validation": its metric}.
    """
    whole = [s for s in sequences if 1 < len(s) and len(set(s)) < items]
    if not whole:
        raise InputError("SASRec has nothing to learn from: no user has two training interactions.")
    known = np.unique(np.concatenate([np.array(s, np.int64) + u * items for u, s in enumerate(whole)]))
    sequences = [s[-settings.max_items - 1 :] for s in whole]
    sizes = np.array([len(s) - 1 for s in sequences])
    ends = np.cumsum(sizes)
    places = [range(end - size, end) for end, size in zip(ends, sizes)]  # a user's among all users' items
    inputs, targets = (np.concatenate([s[at] for s in sequences]) for at in (slice(-1), slice(1, None)))
    positions = settings.max_items - (np.repeat(ends, sizes) - np.arange(ends[-1]))
    users = np.repeat(np.arange(len(sequences)), sizes)
    w = jax.device_put(init_weights(items, settings, seed))
    optimiser = optax.adam(settings.learning_rate, b2=b2).init(w)
    best, note, steps = None, {"epochs": 0, "best_epoch": 0, "validation": -1.0}, -(-len(sequences) // settings.batch)
    key, bar = (
        jax.random.key(seed),
        tqdm(total=settings.epochs, desc="sasrec", unit="epoch", disable=not devices.first()),
    )
    who = [s.user for s in validation]
    for epoch in range(settings.epochs):
        others = negatives(users, known, items, np.random.default_rng((seed, epoch, 1)))
        for step in range(epoch * steps, (epoch + 1) * steps):
            rows = [places[i] for i in batches.indices(len(places), settings.batch, seed, step)]
            few_shapes = lambda lines, _: -(-lines // 8) * 8  # noqa: E731
            (packed,) = batches.packs(rows, settings.max_items, settings.max_items, 0, few_shapes)
            at, texts = packed.tokens, packed.texts
            batch = {"tokens": inputs[at], "texts": texts, "positions": positions[at], "targets": targets[at]}
            if settings.loss == "bce":
                batch["negatives"] = others[at]
            w, optimiser, value = _update(
                w,
                optimiser,
                batch,
                jax.random.fold_in(key, step),
                heads=settings.heads,
                dropout=settings.dropout,
                rate=settings.learning_rate,
                b2=b2,
            )
        if not np.isfinite(value):
            raise InputError(f"SASRec's loss is not finite in epoch {epoch + 1}: lower --config.sasrec.learning_rate.")
        after_epoch()
        note["epochs"] = epoch + 1
        if (epoch + 1) % settings.evaluate_every == 0 or epoch + 1 == settings.epochs:
            ranks = session_ranks(states(w, validation, settings.heads), w["item"], validation)
            found = metrics.mean(ranks, who, metric)
            bar.set_postfix({"loss": f"{float(value):.4f}", f"val/{metric}": f"{found:.4f}"})
            if found > note["validation"]:
                best, note = jax.device_get(w), note | {"best_epoch": epoch + 1, "validation": found}
            elif epoch + 1 - note["best_epoch"] >= settings.patience * settings.evaluate_every:
                break
        bar.update()
    bar.close()
    return best, note


def save(path, weights: dict[str, np.ndarray]) -> None:
    """Writes the weights to an .npz file, which np.load reads."""
    np.savez(buffer := io.BytesIO(), **weights)
    files.write_file(path, buffer.getvalue())
