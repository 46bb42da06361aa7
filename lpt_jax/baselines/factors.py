"""Baselines of factors, who chose what as products of vectors: a truncated SVD, and vectors learned by BPR.

Both take `sequences`, the training interactions of each user (catalogue indices, oldest first). A person is what their items' vectors
sum to, so that newcomers have one too.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lpt_jax.baselines.counts import Scored, chosen, factors
from lpt_jax.errors import InputError
from lpt_jax.ranking import padded

EPOCHS, BATCH, RATE, LATEST = 20, 1024, 3e-3, 50  # of BPR; LATEST items make a person


def fitted_svd(sequences, items: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """How items are read and scored, [N, size] both: D^-½ V and D^½ V of counts.factors' scaled matrix, the largest factors first."""
    read, _ = factors(sequences, items, size)
    users = np.asarray(chosen(sequences, items).sum(0)).ravel()  # D
    return read, read * np.maximum(users, 1)[:, None]


def svd(sessions, popularity: np.ndarray, fitted: tuple[np.ndarray, np.ndarray], size: int) -> tuple[Scored, None]:
    """PureSVD (Cremonesi 2010): a history's row times V Vᵀ, by the first `size` factors of fitted_svd."""
    read, scored = (vectors[:, :size] for vectors in fitted)
    return Scored(sessions, popularity, lambda history: scored @ read[list(history)].sum(0)), None


def bpr(sessions, popularity: np.ndarray, fitted: dict) -> tuple[Scored, None]:
    """BPR: an item's score is its bias and its vector's product with what the user's other items sum to, / √ of their number."""
    read, scored, bias = (np.asarray(fitted[name]) for name in ("read", "scored", "bias"))

    def of(history):
        last = list(history[-LATEST:])
        return scored @ (read[last].sum(0) / np.sqrt(len(last))) + bias

    return Scored(sessions, popularity, of), None


def fitted_bpr(sequences, items: int, size: int, penalty: float, seed: int, epochs: int = EPOCHS) -> dict:
    """Of items: vectors "read" and "scored" [N, size], and "bias" [N], learned by Adam; InputError where nobody has two.

    arXiv 1205.2618: −log σ(score of an item that the user chose − of one not chosen) + penalty × squares.
    """
    rng = np.random.default_rng((seed, 47))
    matrix, users = chosen(sequences, items), padded([sequence[-LATEST:] for sequence in sequences])
    pairs = [(user, item) for user, sequence in enumerate(sequences) if len(sequence) > 1 for item in sequence]
    if not pairs:
        raise InputError(
            "The row bpr learns from users with two training interactions, and there is none: leave it out."
        )
    who, what = np.array(pairs).T
    tree = {name: jnp.asarray(0.1 * rng.standard_normal((items, size)), jnp.float32) for name in ("read", "scored")}
    tree |= {"bias": jnp.zeros(items)}
    optimiser = optax.adam(RATE)
    state = optimiser.init(tree)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(tree, state, people, item, other):
        gradients = jax.grad(loss)(tree, people, item, other, penalty)
        changes, state = optimiser.update(gradients, state)
        return optax.apply_updates(tree, changes), state

    for _ in range(epochs):
        order, others = rng.permutation(len(who)), rng.integers(0, items, len(who))
        for _ in range(3):  # of the few that a user has, most are drawn anew
            known = np.asarray(matrix[who, others]).ravel() > 0
            others[known] = rng.integers(0, items, known.sum())
        for start in range(0, len(order), BATCH):
            rows = np.resize(order[start : start + BATCH], min(BATCH, len(order)))
            tree, state = step(tree, state, users[who[rows]], what[rows], others[rows])
    return tree


def loss(tree: dict, people, item, other, penalty: float) -> jax.Array:
    """BPR's loss, a mean over a batch: people's items Int[B, H] (-1: none), of which item [B] is one, and others [B]."""
    there = (people >= 0) & (people != item[:, None])
    summed = jnp.sum(jnp.where(there[..., None], tree["read"][jnp.maximum(people, 0)], 0.0), 1)
    person = summed / jnp.sqrt(jnp.maximum(there.sum(1, keepdims=True), 1))
    pair = jnp.stack([item, other], 1)
    scores = jnp.einsum("bd,bpd->bp", person, tree["scored"][pair]) + tree["bias"][pair]
    squares = jnp.sum(person**2, 1) + jnp.sum(tree["scored"][pair] ** 2, (1, 2)) + jnp.sum(tree["bias"][pair] ** 2, 1)
    return jnp.mean(jax.nn.softplus(scores[:, 1] - scores[:, 0]) + penalty * squares)
