"""Items that have a history: what interactions teach of an item beyond its text, for a user side that stays text.

    item = its text's embedding + residual;   user = the text's embedding + history × mean of the latest items
    score = user · item + popularity's bias + a learned bias

Residual and bias are 0 for items that no training interaction has, and so they keep their text alone.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lpt_jax import devices
from lpt_jax.data import batches, sessions
from lpt_jax.learning.loop import Part, Phase, Report
from lpt_jax.ranking import padded
from lpt_jax.recommender import ProfileRecommender


@dataclasses.dataclass(frozen=True)
class Plan:
    """What an update does, apart from its arrays: a static argument."""

    optimiser: optax.GradientTransformation
    temperature: float
    history: float  # weight of the latest items' mean
    penalty: float  # of the residuals' squares


def users(texts, recent, vectors, history: float) -> jax.Array:
    """Float[B, D]: texts' embeddings [B, D] + history × the mean of the recent items [B, K] (-1: none) of vectors [N, D]."""
    exists = recent >= 0
    mean = jnp.sum(vectors[jnp.maximum(recent, 0)] * exists[..., None], 1) / jnp.maximum(
        exists.sum(1, keepdims=True), 1
    )
    return texts + history * mean


def softmax_loss(scores, targets, hidden) -> jax.Array:
    """Mean −log softmax of the targets [B, M] (-1: none) over all items but the hidden ones [B, H], of scores [B, N].

    >>> print(softmax_loss(jnp.zeros((1, 5)), jnp.array([[2, -1]]), jnp.array([[0, -1]])).round(3))  # log 4
    1.386
    """
    rows, columns = jnp.arange(len(scores))[:, None], jnp.where(hidden < 0, scores.shape[1], hidden)
    scores = scores.at[rows, columns].set(-jnp.inf, mode="drop")
    exists = targets >= 0
    found = jnp.take_along_axis(scores, jnp.maximum(targets, 0), 1) - jax.nn.logsumexp(scores, 1, keepdims=True)
    return -jnp.sum(jnp.where(exists, found, 0)) / jnp.maximum(exists.sum(), 1)


@functools.partial(jax.jit, static_argnames="plan", donate_argnames="part")
def update(plan: Plan, part: Part, items: dict, batch: dict) -> tuple[Part, dict]:
    """One step: the new part, and metrics.

    items: "text" [N, D], "bias" [N], and "trained" Bool[N]; batch: "texts" [B, D], "recent" [B, K], "targets" [B, M],
    "hidden" [B, H], and "history" Float[B], 0 where a user is read without it.
    """

    def objective(weights):
        vectors = items["text"] + weights["residual"] * items["trained"][:, None]
        found = users(batch["texts"], batch["recent"], vectors, plan.history * batch["history"][:, None])
        scores = found @ vectors.T + items["bias"] + weights["bias"] * items["trained"]
        loss = softmax_loss(scores / plan.temperature, batch["targets"], batch["hidden"])
        return loss + plan.penalty * jnp.mean(jnp.sum(weights["residual"] ** 2, 1)), loss

    (_, loss), gradients = jax.value_and_grad(objective, has_aux=True)(part.weights)
    changes, optimiser = plan.optimiser.update(gradients, part.optimiser, part.weights)
    part = Part(optax.apply_updates(part.weights, changes), optimiser)
    return part, {"loss": loss, "grad_norm": optax.tree.norm(gradients)}


class ResidualsPhase(Phase):
    """Learns residuals and biases of items from all training interactions, the embedder fixed.

    texts(phase, sessions): what the user side reads.
    """

    def __init__(self, r: ProfileRecommender, optimiser: optax.GradientTransformation, texts: Callable):
        self.r, self.name, self.part, self.optimiser = r, "residuals", "residuals", optimiser
        self.settings, self.texts = r.config.residuals, texts
        self.plan = Plan(optimiser, self.settings.temperature, r.config.score.history, self.settings.penalty)

    def at(self, iteration: int, place: int) -> "ResidualsPhase":
        """This phase in an iteration and a place of the schedule."""
        self.iteration, self.place = iteration, place
        return self

    def begin(self, state):
        r, s = self.r, self.settings
        self.embedder = r.weights(state, "embedder")
        catalogue = devices.fetch(r.catalogue(self.embedder))[: r.run.count]
        trained = r.data.popularity > 0
        self.items = {"text": jnp.asarray(catalogue[:, :-1]), "bias": jnp.asarray(catalogue[:, -1])}
        self.items["trained"] = jnp.asarray(trained.astype(np.float32))
        self.sessions = r.training(sessions.more(r.data, r.config.data, s.windows, s.targets))
        self.vectors, _ = r.embedder.embed_profiles(self.embedder, self.texts(self, self.sessions))
        last = r.config.prompt.history_items
        self.recent = padded([u.past[-last:] for u in self.sessions], last)
        self.hidden = padded([u.hidden for u in self.sessions])
        self.targets = padded([u.targets for u in self.sessions], s.targets)
        self.validation = self.texts(self, r.sessions["validation"])

    def step(self, state, step):
        s, number = self.settings, self.iteration * self.settings.steps + step
        rows = batches.indices(len(self.sessions), s.batch, self.r.config.seed * 1000 + 5, number)
        reads = (
            np.random.default_rng((self.r.config.seed, number)).random(s.batch) < 0.5
        )  # so that text alone ranks well too
        batch = {"texts": self.vectors, "recent": self.recent, "targets": self.targets, "hidden": self.hidden}
        batch = {name: array[rows] for name, array in batch.items()} | {"history": reads.astype(np.float32)}
        part, metrics = update(self.plan, state["residuals"], self.items, batch)
        return state | {"residuals": part}, Report(metrics)

    def validate(self, state):
        r, people = self.r, self.r.sessions["validation"]
        items = r.with_terms(r.catalogue(self.embedder), state["residuals"].weights)
        queries, valid = r.queries(self.embedder, self.validation)
        alone = r.validation(r.rank("validation", queries, items, valid))
        queries = r.with_history(queries, items, [s.history for s in people], self.plan.history)
        beside = r.validation(r.rank("validation", queries, items, valid))
        both = {name: (value + beside[name]) / 2 for name, value in alone.items()}  # both are rows of the results
        return both | {f"val/text alone, {name[4:]}": value for name, value in alone.items()}
