"""Contrastive learning: the recommender decoder learns to put a profile next to the items chosen next."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lpt_jax.models import encoder
from lpt_jax.models.encoder import EncoderSpec


def info_nce(profiles: jax.Array, items: jax.Array, correction: jax.Array, excluded: jax.Array,
             temperature: float) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """InfoNCE of B profiles to C ≥ B candidate items, the i-th item being the i-th profile's positive.

    loss = −mean log softmax_j(cos(p_i, e_j) / temperature − correction_j)[i], over the candidates that
    aren't excluded. Shapes: profiles [B, D], items [C, D] (unit length), correction [C], excluded [B, C] (the
    positive never is). Returns the loss and the share of profiles whose positive comes first.
    """
    scores = jnp.einsum("bd,cd->bc", profiles, items, preferred_element_type=jnp.float32)
    scores = jnp.where(excluded, -jnp.inf, scores / temperature - correction[None])
    positive = jnp.diagonal(scores)
    loss = jnp.mean(jax.nn.logsumexp(scores, 1) - positive)
    return loss, jnp.mean(positive >= scores.max(1))


def exclusions(positives: np.ndarray, candidates: np.ndarray, seen: list) -> np.ndarray:
    """Which candidates are no negatives, Bool [B, C]: equal positives, and the user's own history and targets.

    positives [B] and candidates [C ≥ B] are catalogue indices, the first B candidates being the positives;
    seen: per profile, the catalogue indices of that user's history and other targets.
    """
    excluded = candidates[None, :] == positives[:, None]
    for row, items in zip(excluded, seen, strict=True):
        row |= np.isin(candidates, np.asarray(items, np.int64))
    np.fill_diagonal(excluded, False)
    return excluded


def log_sampling(frequency: np.ndarray, batch: int, extra: int) -> np.ndarray:
    """log of how often an item is expected among the candidates, Float [N] (Yi et al. 2019; mixed: Yang et al. 2020).

    frequency [N] is the share of training pairs with this item as positive: batch · frequency + extra / N.
    """
    expected = batch * frequency + extra / len(frequency)
    return np.log(np.maximum(expected, 1e-9)).astype(np.float32)


@functools.partial(
    jax.jit, static_argnames=("spec", "optimiser", "temperature", "most", "dtype", "remat"),
    donate_argnames=("weights", "optimiser_state"),
)  # fmt: skip
def update(spec: EncoderSpec, weights: dict, optimiser_state, batch: dict, *,
           optimiser: optax.GradientTransformation, temperature: float, most: int, dtype: str, remat: bool):  # fmt: skip
    """One step of InfoNCE: returns weights, optimiser state and metrics.

    batch: "tokens" and "texts" [R, T] hold both sides' texts, several to a row; "profiles" [B] and "items" [C] say where,
    as row * most + number; "correction" [C]; "excluded" [B, C].
    The batch is global: on a mesh, every device's items are negatives of every profile.
    """

    def objective(weights):
        found = encoder.embed_packed(spec, weights, batch["tokens"], batch["texts"], most, dtype, remat)
        found = found.reshape(-1, spec.width)
        p, e = found[batch["profiles"]], found[batch["items"]]
        return info_nce(p, e, batch["correction"], batch["excluded"], temperature)

    (loss, accuracy), grads = jax.value_and_grad(objective, has_aux=True)(weights)
    updates, optimiser_state = optimiser.update(grads, optimiser_state, weights)
    weights = optax.apply_updates(weights, updates)
    found = {"loss": loss, "accuracy": accuracy, "grad_norm": optax.tree.norm(grads)}
    return weights, optimiser_state, found
