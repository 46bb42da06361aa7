"""What a profile earns: pure functions of the targets' ranks and of its text, and the sum of them that is the reward.

Ranks are Int[B,G,M]: of M targets, for G profiles of each of B users; 1 is best and 0 means that
there is no such target. A user's reward is the mean over the targets that exist.
"""

import importlib
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lpt_jax import text_audit
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


class Rollout(NamedTuple):
    """G profiles of each of B users, and all that a reward may be made of.

    ranks: Int[B,G,M] of the targets; similarities: Float[B,G,M], target_similarity's (zeros where no part reads them).
    texts: G strings for each of B users; ended: Bool[B,G], the model ended them itself.
    histories: for each user the items that the prompt showed, oldest first, as dicts of their fields and "rating".
    shown: the same as titles and attributes; names: a pattern of all attributes (text_audit.py).
    shown_ranks, unseen_ranks: Int[B,G,H] of the items shown, and of as many from before them that the prompt left out.
    items: N, how many are ranked. by_line: each line of a text is a profile of its own, of a journey.
    """

    ranks: jax.Array
    similarities: jax.Array
    texts: list[list[str]]
    items: int
    ended: np.ndarray | None = None
    histories: list[list[dict]] | None = None
    shown: list[text_audit.Shown] | None = None
    names: re.Pattern | None = None
    shown_ranks: np.ndarray | None = None
    unseen_ranks: np.ndarray | None = None
    by_line: bool = False


def of_texts(rollout: Rollout, value: Callable) -> Rewards:
    """value(text, ended, what was shown, what the text claims) of each profile."""
    rows = zip(rollout.texts, np.asarray(rollout.ended), rollout.shown, strict=True)
    return jnp.array(
        [
            [value(text, end, shown, text_audit.claims(text, shown, rollout.names)) for text, end in zip(texts, ends)]
            for texts, ends, shown in rows
        ],
        jnp.float32,
    )


def copied(text: str, shown: text_audit.Shown) -> float:
    """The share of a text's letters that stand in titles of the history.

    >>> copied("Likes Heat.", text_audit.Shown(["Heat (1995)"], set()))
    0.4444444444444444
    """
    rest, _ = text_audit.without_titles(text, shown.titles)
    letters = sum(map(str.isalnum, text))
    return 1 - sum(map(str.isalnum, rest)) / letters if letters else 0.0


PARTS = {  # of config.policy.reward -> (of a Rollout, what of it must be made for that)
    "ndcg": (lambda r: ndcg(r.ranks), ""),
    "mrr": (lambda r: mrr(r.ranks), ""),
    "dense": (lambda r: dense(r.ranks, r.similarities), "similarities"),
    "likelihood": (lambda r: likelihood(r.ranks, r.similarities, r.items), "similarities"),
    "explains": (lambda r: ndcg(r.shown_ranks), "history"),  # how well it ranks what it was written from
    "held_back": (lambda r: ndcg(r.unseen_ranks), "history"),  # and what the user chose before that
    "ended": (lambda r: jnp.asarray(r.ended, jnp.float32), "texts"),
    "clean": (lambda r: of_texts(r, lambda *row: not text_audit.defects_of(*row[:3], r.names, r.by_line)), "texts"),
    "supported": (lambda r: of_texts(r, lambda *row: row[3].supported / max(row[3].all, 1)), "texts"),
    "copied": (lambda r: of_texts(r, lambda text, end, shown, _: copied(text, shown)), "texts"),
}
TERM = re.compile(r"\s*([+-]?)\s*(?:(\d+\.?\d*(?:[eE]-?\d+)?|\.\d+)\s*\*\s*)?([A-Za-z_][\w.:]*)\s*")


def terms(reward: str) -> dict[str, float]:
    """The weight of each part of a sum such as "ndcg + 0.2*ended - 0.1*copied"; nothing if it is none.

    >>> terms("ndcg + 0.2*ended - .1 * copied"), terms("my_reward:short"), terms("ndcg ended"), terms("2*")
    ({'ndcg': 1.0, 'ended': 0.2, 'copied': -0.1}, {'my_reward:short': 1.0}, {}, {})
    """
    found, end = {}, 0
    while end < len(reward):
        term = TERM.match(reward, end)
        if not term or end and not term[1] or term[3] in found:
            return {}
        found[term[3]] = float(f"{term[1]}{term[2] or 1}")
        end = term.end()
    return found


def reads(reward: str) -> set[str]:
    """What must be made for a reward beside the targets' ranks: "similarities", "history", "texts"; all for one's own."""
    everything = {"similarities", "history", "texts"}
    return set().union(*({PARTS[part][1]} if part in PARTS else everything for part in terms(reward))) - {""}


def earned(reward: str, rollout: Rollout) -> dict[str, Rewards]:
    """What each part of a reward gives, Float[B,G], of PARTS or as "module:function", and "metric": their weighted sum.

    A function of one's own is called as f(Rollout) and returns Float[B,G].
    """
    found, sums = {}, 0.0
    for part, weight in terms(reward).items():
        if part in PARTS:
            found[part] = PARTS[part][0](rollout)
        else:
            module, function = part.split(":", 1)
            found[part] = _checked(part, getattr(importlib.import_module(module), function)(rollout), rollout.ranks)
        sums = sums + weight * found[part]
    return found | {"metric": sums}


def _checked(name: str, values, ranks) -> Rewards:
    """The values of a function of one's own, if they will do."""
    values = jnp.asarray(values, jnp.float32)
    if values.shape != ranks.shape[:2] or not bool(jnp.all(jnp.isfinite(values))):
        wanted = f"finite numbers of shape {ranks.shape[:2]}, not of {values.shape}"
        raise InputError(f"The reward {name} must return {wanted}, users by profiles.")
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
