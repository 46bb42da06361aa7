"""What a profile earns: pure functions of the targets' ranks, and the parts a reward is made of.

Ranks are Int[B,G,M]: of M targets, for G profiles of each of B users; 1 is best and 0 means that
there is no such target. A user's reward is the mean over the targets that exist.
"""

import importlib

import jax
import jax.numpy as jnp

from lpt_jax.array_types import Rewards
from lpt_jax.errors import InputError


def _mean_over_targets(values, ranks) -> Rewards:
    exists = ranks > 0
    total = jnp.sum(jnp.where(exists, values, 0.0), axis=-1)
    return total / jnp.maximum(jnp.sum(exists, axis=-1), 1).astype(total.dtype)


def _discount(ranks):
    return 1 / jnp.log2(1 + jnp.maximum(ranks, 1).astype(jnp.float32))


def ndcg(ranks) -> Rewards:
    """NDCG over the whole ranking, 1 / log2(1 + rank) with one relevant item.

    >>> print(ndcg(jnp.array([[[1], [3], [7]]])).round(3))  # 1/log2(2), 1/log2(4), 1/log2(8)
    [[1.    0.5   0.333]]
    """
    return _mean_over_targets(_discount(ranks), ranks)


def mrr(ranks) -> Rewards:
    """Mean reciprocal rank, 1 / rank.

    >>> print(mrr(jnp.array([[[2, 4], [4, 0]]])))  # (1/2 + 1/4) / 2, then 1/4 alone
    [[0.375 0.25 ]]
    """
    return _mean_over_targets(1 / jnp.maximum(ranks, 1).astype(jnp.float32), ranks)


def target_similarity(similarities, targets, hidden, temperature: float, valid=None):
    """The softmax over the catalogue without the history, of cosines Float[B,G,N] / temperature, at targets Int[B,M].

    hidden Int[B,H] are the history's items, -1 for none; no target is among them.

    >>> print(target_similarity(jnp.zeros((1, 1, 5)), jnp.array([[2]]), jnp.array([[0, -1]]), 0.1))  # 4 equal items
    [[[0.25]]]
    """
    n = similarities.shape[-1]
    real = jnp.arange(n)[None, None, :] < (n if valid is None else valid)
    logits = jnp.where(real, similarities.astype(jnp.float32) / temperature, -jnp.inf)
    rows, columns = jnp.arange(hidden.shape[0])[:, None], jnp.where(hidden < 0, n, hidden)
    logits = logits.at[rows, :, columns].set(-jnp.inf, mode="drop")
    chosen = jnp.take_along_axis(logits, jnp.maximum(targets, 0)[:, None, :], axis=-1)
    return jnp.exp(chosen - jax.nn.logsumexp(logits, axis=-1, keepdims=True))


def dense(ranks, similarity) -> Rewards:
    """R²ec's reward, 0.95 NDCG@1000 + 0.05 similarity: it still grows beyond rank 1000.

    `similarity` Float[B,G,M] is target_similarity's softmax (arXiv 2505.16994; papers.md, 1).

    >>> print(dense(jnp.array([[[3], [5000]]]), jnp.array([[[0.2], [0.1]]])).round(3))
    [[0.485 0.005]]
    """
    near = jnp.where(ranks <= 1000, _discount(ranks), 0.0)
    return _mean_over_targets(0.95 * near + 0.05 * similarity, ranks)


def likelihood(ranks, similarity, items: int) -> Rewards:
    """Nats above chance that the recommender gives the targets: log(items × softmax similarity).

    InfoNCE's own measure over the whole catalogue. It feels every target's every move, where NDCG and MRR
    feel the first ranks most: within a user it is far less noisy (experiments/LOG.md).

    >>> print(likelihood(jnp.array([[[1], [9]]]), jnp.array([[[0.2], [0.1]]]), 10).round(3))
    [[0.693 0.   ]]
    """
    return _mean_over_targets(jnp.log(items * jnp.maximum(similarity, 1e-30)), ranks)


REWARDS = {  # config.policy.reward -> (of ranks Int[B,G,M], similarities Float[B,G,M] and the number of items; reads similarities)
    "ndcg": (lambda ranks, similarities, items: ndcg(ranks), False),
    "mrr": (lambda ranks, similarities, items: mrr(ranks), False),
    "dense": (lambda ranks, similarities, items: dense(ranks, similarities), True),
    "likelihood": (likelihood, True),
}


def reads_similarities(name: str) -> bool:
    """Whether a reward, of REWARDS or a function of one's own, is given target_similarity's values (else zeros)."""
    return name not in REWARDS or REWARDS[name][1]


def metric(name: str, ranks, similarities, texts, items: int) -> Rewards:
    """The reward `name`, of REWARDS or "module:function"; items is the catalogue's size.

    A function of one's own is called as f(ranks Int[B,G,M], similarities Float[B,G,M], texts:
    G strings for each of B users) and returns Float[B,G]; similarities are target_similarity's.
    """
    if name in REWARDS:
        return REWARDS[name][0](ranks, similarities, items)
    module, function = name.split(":", 1)
    values = getattr(importlib.import_module(module), function)(ranks, similarities, texts)
    values = jnp.asarray(values, jnp.float32)
    if values.shape != ranks.shape[:2] or not bool(jnp.all(jnp.isfinite(values))):
        wanted = f"finite numbers of shape {ranks.shape[:2]}, not of {values.shape}"
        raise InputError(f"policy.reward={name} must return {wanted}, users by profiles.")
    return values


def parts(values: Rewards, valid, log_ratio, kl_coef: float) -> dict[str, Rewards]:
    """A reward's parts, each Float[B,G]: "metric" + "invalid" + "kl" = "total".

    `values` are the metric's; where `valid` Bool[B,G] is False (an empty or over-long profile)
    "invalid" takes them back to 0, or to the worst valid one's where that is below 0: a reward that can be negative would
    else pay for profiles that say nothing. "kl" is -kl_coef × log_ratio, and log_ratio Float[B,G] is
    log π(profile) - log π_ref(profile), summed over the profile's tokens.

    >>> p = parts(jnp.array([[0.5, 1.0]]), jnp.array([[True, False]]), jnp.array([[1.0, 2.0]]), 0.2)
    >>> print(p["invalid"], p["kl"], p["total"])
    [[ 0. -1.]] [[-0.2 -0.4]] [[ 0.3 -0.4]]
    >>> print(parts(jnp.array([[-3.0, -1.0]]), jnp.array([[True, False]]), jnp.zeros((1, 2)), 0.0)["total"])
    [[-3. -3.]]
    """
    worst = jnp.min(jnp.where(valid, values, 0.0), initial=0.0)
    invalid = jnp.where(valid, 0.0, worst - values)
    kl = -kl_coef * log_ratio
    return {"metric": values, "invalid": invalid, "kl": kl, "total": values + invalid + kl}


def whiten(rewards: Rewards, baseline: str = "batch") -> Rewards:
    """(r - mean) / sqrt(var + 1e-8): both the batch's; or the mean of a user's G profiles ("user"); or both ("user_std").

    >>> print(whiten(jnp.array([[0.0, 2.0, 4.0]])).round(3))  # mean 2, variance 8/3
    [[-1.225  0.     1.225]]
    >>> print(whiten(jnp.array([[0.0, 1.0], [3.0, 4.0]]), "user").round(3))  # ±1/2 of one's mean
    [[-1.  1.]
     [-1.  1.]]
    >>> print(whiten(jnp.array([[0.0, 1.0], [3.0, 9.0]]), "user_std").round(3))  # also ±3 of one's mean
    [[-1.  1.]
     [-1.  1.]]
    """
    rewards = rewards.astype(jnp.float32)
    rewards = rewards - jnp.mean(rewards, None if baseline == "batch" else 1, keepdims=True)
    return rewards / jnp.sqrt(jnp.mean(rewards**2, 1 if baseline == "user_std" else None, keepdims=True) + 1e-8)


def all_tied(rewards: Rewards):
    """How many users' G rewards are all equal, so that comparing their profiles teaches nothing.

    >>> int(all_tied(jnp.array([[0.5, 0.5], [0.5, 0.2]])))
    1
    """
    return jnp.sum(jnp.all(rewards == rewards[:, :1], axis=1))
