"""Reinforcement learning for system optimisation (RLSO): rollouts' rewards move the language model.

What trains is the top layers (with final norm and untied head), LoRA matrices, or a soft prompt. Everything below the first trained
layer, `Decoder.lower`, runs once per rollout, in the sampler itself: scoring, the reference policy and every epoch start from
its stored hidden states.
"""

import collections
import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from lpt_jax import devices, ranking, rewards
from lpt_jax.data import batches
from lpt_jax.generation import Profiles
from lpt_jax.learning.loop import Part, Phase, Report, validates_after
from lpt_jax.models.decoder import run
from lpt_jax.recommender import ProfileRecommender
from lpt_jax.rewarder import Earned, Rewarder

# ---- losses: all of (new and old log-probabilities [B, G, T], mask [B, G, T], rewards [B, G]); means over users
# A profile whose mask is all False is left out.


def centred(rewards, counts) -> jax.Array:
    """Rewards [B, G] minus their user's mean over the profiles that count; 0 for the others."""
    mean = jnp.sum(jnp.where(counts, rewards, 0.0), 1, keepdims=True) / jnp.maximum(counts.sum(1, keepdims=True), 1)
    return jnp.where(counts, rewards - mean, 0.0)


def rebel(new, old, mask, rewards, *, eta: float, clip_ratio: float = 0.0) -> jax.Array:
    """REBEL over all pairs of a user's profiles: mean ((Δ_i − Δ_j) − η (r_i − r_j))², Δ = log π_θ/π_t.

    With a = Δ − η r, the sum over pairs i < j of (a_i − a_j)² is G Σ a² − (Σ a)² (papers.md §1; arXiv 2404.16767).
    """
    counts = mask.any(-1)
    samples = counts.sum(1)
    a = jnp.where(counts, jnp.sum(jnp.where(mask, new - old, 0.0), -1) - eta * rewards, 0.0)
    mean = jax.lax.stop_gradient(a.sum(1) / jnp.maximum(samples, 1))
    a = jnp.where(counts, a - mean[:, None], 0.0)  # pairs don't see a shift: less cancellation
    pairs = samples * jnp.sum(a * a, 1) - jnp.sum(a, 1) ** 2
    return jnp.mean(pairs / jnp.maximum(samples * (samples - 1) / 2, 1))


def rloo(new, old, mask, rewards, *, eta: float = 0.0, clip_ratio: float = 0.0) -> jax.Array:
    """REINFORCE with the leave-one-out baseline (arXiv 2402.14740), importance-weighted after the first epoch.

    −mean A_i π_θ(p_i)/π_t(p_i), A_i = r_i − mean of the other r_j; at θ = t its gradient is −A_i ∇ log π_θ(p_i).
    """
    counts = mask.any(-1)
    samples = counts.sum(1, keepdims=True)
    advantage = centred(rewards, counts) * samples / jnp.maximum(samples - 1, 1)
    ratio = jnp.exp(jnp.sum(jnp.where(mask, new - old, 0.0), -1))
    return -jnp.mean(jnp.sum(advantage * ratio, 1) / jnp.maximum(samples[:, 0], 1))


def grpo(new, old, mask, rewards, *, eta: float = 0.0, clip_ratio: float) -> jax.Array:
    """GRPO (arXiv 2402.03300): clipped token ratios, a profile's mean over tokens, rewards normed per user.

    The KL to the reference is in the reward here, as in every loss of this file, not in the loss.
    """
    counts = mask.any(-1)
    samples = jnp.maximum(counts.sum(1, keepdims=True), 1)
    apart = centred(rewards, counts)
    advantage = (apart / (jnp.sqrt(jnp.sum(apart**2, 1, keepdims=True) / samples) + 1e-4))[..., None]
    ratio = jnp.exp(jnp.where(mask, new - old, 0.0))
    clipped = jnp.clip(ratio, 1 - clip_ratio, 1 + clip_ratio)
    gain = jnp.where(mask, jnp.minimum(ratio * advantage, clipped * advantage), 0.0)
    return -jnp.mean(jnp.sum(gain.sum(-1) / jnp.maximum(mask.sum(-1), 1), 1) / samples[:, 0])


LOSSES = {"rebel": rebel, "rloo": rloo, "grpo": grpo}

# ---- one update


@dataclasses.dataclass(frozen=True)
class Plan:
    """What scoring and updates do, apart from their arrays: a static argument."""

    graph: nnx.GraphDef  # of the Decoder, split into what trains and what is frozen
    optimiser: optax.GradientTransformation
    below: int  # layers in Decoder.lower
    loss: str = "rebel"
    eta: float = 1.0  # REBEL's η
    clip_ratio: float = 0.2  # GRPO's ε
    temperature: float = 1.0  # of the policy
    chunk: int = 512  # positions whose logits exist at once
    remat: bool = True
    accumulation: int = 1  # parts of the users that go through the layers one after another


def log_probs(plan: Plan, frozen: dict, weights: dict, profiles: Profiles, context_mask, training=False) -> jax.Array:
    """LogProbs [B, G, T] of the profiles, from the stored hidden states; 0 where masked; context_mask [B, P]."""
    lm = nnx.merge(plan.graph, weights, frozen)
    batch, samples, length, width = profiles.hidden.shape
    context = lm.preceded(profiles.context, context_mask)
    x = jnp.concatenate([context, profiles.hidden.reshape(batch, -1, width)], 1)
    context_mask = lm.context_mask(context_mask)
    x, _ = run(lm.upper, x, context_mask, samples, start=plan.below, remat=training and plan.remat, last=True)
    x = x.reshape(batch, samples, length, width)
    frozen_head = training and "head" not in weights
    of_tokens = lm.log_probs(x, profiles.tokens, plan.temperature, plan.chunk, frozen_head)
    return jnp.where(profiles.mask, of_tokens, 0.0)


@functools.partial(jax.jit, static_argnames="plan")
def score(plan: Plan, frozen: dict, weights: dict, profiles: Profiles, context_mask: jax.Array) -> jax.Array:
    """LogProbs [B, G, T] of the profiles under the policy with these weights; 0 where masked.

    context_mask [B, P] is the prompts' without their last token; plan.accumulation: as in `update`.
    """
    one = functools.partial(log_probs, plan, frozen, weights)
    if plan.accumulation == 1:
        return one(profiles, context_mask)
    mesh = nnx.merge(plan.graph, weights, frozen).mesh
    parts = devices.in_parts((profiles, context_mask), plan.accumulation, mesh)
    return devices.of_parts(jax.lax.map(lambda part: one(*part), parts), mesh)


@functools.partial(jax.jit, static_argnames="plan", donate_argnames="part")
def update(plan: Plan, frozen: dict, part: Part, profiles, context_mask, old, rewards) -> tuple[Part, dict]:
    """One optimiser step on a (mini)batch of rollouts: the new part, and metrics.

    old: LogProbs [B, G, T] of the policy that wrote the profiles; None where that is `part` as it stands.
    rewards: Rewards [B, G]. Every loss is a mean over users, so plan.accumulation changes no update.
    """

    def objective(weights, profiles, context_mask, old, rewards):
        new = log_probs(plan, frozen, weights, profiles, context_mask, training=True)
        before = jax.lax.stop_gradient(new) if old is None else old
        loss = LOSSES[plan.loss]
        value = loss(new, before, profiles.mask, rewards, eta=plan.eta, clip_ratio=plan.clip_ratio)
        return value, jnp.mean(jnp.abs(jnp.sum(jnp.where(profiles.mask, new - before, 0.0), -1)))

    slopes, rows = jax.value_and_grad(objective, has_aux=True), (profiles, context_mask, old, rewards)
    if plan.accumulation == 1:
        (value, moved), gradients = slopes(part.weights, *rows)
    else:
        mesh = nnx.merge(plan.graph, part.weights, frozen).mesh
        parts = devices.in_parts(rows, plan.accumulation, mesh)
        nothing = jax.tree.map(jnp.zeros_like, ((rewards[0, 0], rewards[0, 0]), part.weights))
        add = lambda sums, rows: (jax.tree.map(jnp.add, sums, slopes(part.weights, *rows)), None)  # noqa: E731
        total, _ = jax.lax.scan(add, nothing, parts)
        (value, moved), gradients = jax.tree.map(lambda a: a / plan.accumulation, total)
    changes, optimiser = plan.optimiser.update(gradients, part.optimiser, part.weights)
    part = Part(optax.apply_updates(part.weights, changes), optimiser)
    return part, {"loss": value, "grad_norm": optax.tree.norm(gradients), "log_ratio_moved": moved}


# ---- the phase


def plan_of(r, optimiser: optax.GradientTransformation) -> Plan:
    """The Plan of a run's config."""
    s = r.config.policy
    return Plan(
        graph=r.lm.graph,
        optimiser=optimiser,
        below=r.lm.below,
        loss=s.loss,
        eta=s.eta,
        clip_ratio=s.clip_ratio,
        temperature=s.temperature,
        chunk=s.logits_chunk,
        remat=r.config.lm.remat,
        accumulation=s.accumulation,
    )


class Laps:
    """Seconds of the parts of a step."""

    def __init__(self):
        self.seconds, self.clock = {}, time.monotonic()

    def __call__(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[f"seconds/{name}"], self.clock = now - self.clock, now


class PolicyPhase(Phase):
    """RLSO: sample G profiles per user, rank the whole catalogue by each, reward, several epochs of updates."""

    def __init__(self, r: ProfileRecommender, optimiser: optax.GradientTransformation):
        self.r, self.name, self.part, self.optimiser = r, "policy", "lm", optimiser
        self.settings, self.plan = r.config.policy, plan_of(r, optimiser)

    def at(self, iteration: int, place: int) -> "PolicyPhase":
        """This phase in an iteration and a place of the schedule."""
        self.iteration, self.place = iteration, place
        return self

    def begin(self, state):
        r = self.r
        self.earn = Rewarder(
            r, r.weights(state, "embedder"), self.settings.reward
        )  # the embedder is fixed in this phase
        self.longest = ranking.padded([s.hidden for s in r.sessions["train"]]).shape[1]

    def step(self, state, step):
        r, s, lap = self.r, self.settings, Laps()
        number = self.iteration * s.steps + step
        rows = batches.indices(len(r.sessions["train"]), s.users, r.config.seed * 1000 + 3, number)
        users = [r.sessions["train"][row] for row in rows]
        key = jax.random.fold_in(jax.random.fold_in(r.run.key, 1 << 20), number)
        how = r.lm.how(s.samples, s.temperature, keep_hidden=True)
        profiles, mask = r.sample(state["lm"].weights, rows, key, how)
        texts, unended = r.lm.texts(profiles)
        texts = [[r.line(text) for text in of_user] for of_user in texts]
        lap("generation")
        earned = self.earn(texts, users, self.longest, ~unended)
        lap("reward")
        rollout = profiles, mask[:, :-1]
        old = None if s.epochs * s.minibatches == 1 else self.score(self.plan, state["lm"].weights, rollout)
        log_ratio, measured = self.log_ratio(rollout, old, step)
        parts = rewards.parts(earned.value, earned.valid, log_ratio, s.kl_coef)
        lap("scoring")
        signal = rewards.whiten(parts["total"], s.baseline) if s.whiten else parts["total"]
        learnt = dataclasses.replace(profiles, mask=self.counted(profiles.mask, unended))
        signal = devices.split_batch(np.asarray(signal), r.run.mesh)
        part, learned = self.learn(state["lm"], (learnt, rollout[1], old, signal), number)
        r.lm.prepared(part.weights)
        lap("updates")
        metrics = learned | lap.seconds | measured | self.numbers(profiles, texts, unended, earned, parts)
        return state | {"lm": part}, Report(metrics, self.sample(users[0], texts, earned, parts))

    def counted(self, mask: jax.Array, unended: np.ndarray) -> jax.Array:
        """The profiles' mask, without those that the limit cut where policy.mask_unended says so."""
        if not self.settings.mask_unended:
            return mask
        return mask & devices.split_batch(~unended[..., None], self.r.run.mesh)

    def score(self, plan: Plan, weights: dict, rollout: tuple) -> jax.Array:
        return jax.block_until_ready(score(plan, self.r.lm.frozen, weights, *rollout))

    def log_ratio(self, rollout: tuple, old, step: int) -> tuple[np.ndarray, dict]:
        """log π − log π_ref of each profile [B, G], where it counts or is due to be measured (else zeros), and its mean."""
        s, profiles = self.settings, rollout[0]
        if not (s.kl_coef or validates_after(s, step)):
            return np.zeros(profiles.mask.shape[:2], np.float32), {}
        graph, weights = self.r.lm.reference
        reference = self.score(dataclasses.replace(self.plan, graph=graph), weights, rollout)
        log_ratio = devices.fetch(jnp.sum((profiles.log_probs if old is None else old) - reference, -1))
        return log_ratio, {"kl": log_ratio.mean()}

    def learn(self, part: Part, rollout: tuple, number: int) -> tuple[Part, dict]:
        """All epochs of updates on a rollout: profiles, context_mask, old log-probabilities, rewards."""
        s = self.settings
        size = s.users // s.minibatches
        for epoch in range(s.epochs):
            order = batches.order(s.users, self.r.config.seed, number * s.epochs + epoch)
            for at in range(0, s.users, size):
                rows = rollout if size == s.users else devices.take_rows(rollout, np.sort(order[at : at + size]))
                part, metrics = update(self.plan, self.r.lm.frozen, part, *rows)
                metrics = devices.fetch(metrics)
        return part, metrics

    def numbers(self, profiles: Profiles, texts: list, unended: np.ndarray, earned: Earned, parts: dict) -> dict:
        """What metrics.jsonl says of a rollout."""
        users, flat = len(texts), sum(texts, [])
        tied = rewards.all_tied(parts["metric"] + parts["invalid"])
        return {
            "reward": parts["total"].mean(),
            **{f"reward/{name}": part.mean() for name, part in (earned.parts | parts).items()},
            "tied": tied / users,
            "invalid": 1 - earned.valid.mean(),
            "empty": sum(not text.strip() for text in flat) / len(flat),
            "unended": unended.mean(),
            "spread": earned.value.std(1).mean(),
            "profile_tokens": devices.fetch(profiles.mask).sum(-1).mean(),
            "batch_tied": float(tied == users),
        }

    def sample(self, user, texts: list, earned: Earned, parts: dict) -> dict:
        """The first user's first profile, for samples.jsonl."""
        titles = self.r.data.catalogue.titles
        return {
            "user": user.user,
            "history": [titles[item] for item in user.history[-10:]],
            "profile": texts[0][0],
            "ranks": earned.ranks[0, 0].tolist(),
            **{f"reward/{name}": float(part[0, 0]) for name, part in (earned.parts | parts).items()},
        }

    def validate(self, state):
        r, s, ended = self.r, self.settings, {}
        texts = r.write(state["lm"].weights, "validation", ended=ended)
        measured = r.validation(r.rank("validation", *r.scored(self.earn.embedder, texts, self.earn.items)))
        if not rewards.terms(s.reward).keys() <= {"ndcg", "mrr"}:  # those are among the metrics
            users, size, sums = r.sessions["validation"], s.users * s.samples, collections.Counter()
            for at in range(0, len(users), size):
                rows = range(at, min(at + size, len(users)))
                ends = [[ended[row]] for row in rows]
                found = self.earn([[texts[row]] for row in rows], [users[row] for row in rows], ended=ends)
                parts = rewards.parts(found.value, found.valid, jnp.zeros_like(found.value), 0.0)
                sums.update({"val/reward": float(jnp.sum(parts["total"]))})
                sums.update({f"val/reward/{name}": float(jnp.sum(part)) for name, part in found.parts.items()})
            measured |= {name: value / len(users) for name, value in sums.items()}
        return measured
