"""Reinforcement learning for system optimisation (RLSO): rollouts' rewards move the profile encoder.

What trains is either the top layers (`last_layers`: with final norm and untied head) or LoRA matrices.
Everything below the first trained layer, the *trunk*, runs once per rollout, in the sampler itself:
scoring, the reference policy and every epoch start from its stored hidden states.
"""

import functools

import jax
import jax.numpy as jnp
import optax

from lpt_jax import devices
from lpt_jax.generation import Profiles
from lpt_jax.models import decoder, low_rank
from lpt_jax.models.decoder import DecoderSpec


def split(spec: DecoderSpec, weights: dict, settings, key: jax.Array) -> tuple[dict, dict, dict]:
    """Parts a decoder into (trunk, upper, trainable); what trains is in no other part.

    trunk: {"embed", "layers"} below the first trained layer; upper: the frozen part of what is above;
    trainable: what the optimiser sees. `assemble(upper, trainable)` is the upper model, and the
    reference policy is assemble(upper, initial trainable), or with LoRA the base, upper alone.
    """
    others = {name: w for name, w in weights.items() if name != "layers"}
    if settings.trains == "lora":
        lora = low_rank.attach(spec, weights, settings.lora.targets, settings.lora.rank, key)
        trunk_layers = {name: w[:0] for name, w in weights["layers"].items()}
        return ({"embed": weights["embed"], "layers": trunk_layers}, others | {"layers": weights["layers"]}, lora)
    start = max(spec.layers - settings.last_layers, 0)
    trunk = {"embed": weights["embed"], "layers": {n: w[:start] for n, w in weights["layers"].items()}}
    trainable = {"layers": {n: w[start:] for n, w in weights["layers"].items()}}
    trainable |= {n: w for n, w in others.items() if n in ("final_norm", "head")}
    upper = {"embed": weights["embed"], "layers": {}} if spec.tied else {"layers": {}}
    return trunk, upper, trainable


def assemble(upper: dict, trainable: dict) -> dict:
    """The weights of the upper model: frozen and trained parts together (what trains is stacked, also beside a list)."""
    layers, trained = upper["layers"], trainable.get("layers", {})
    if isinstance(layers, list):
        layers = [w | {name: a[i] for name, a in trained.items()} for i, w in enumerate(layers)]
    else:
        layers = layers | trained
    return upper | trainable | {"layers": layers}


@functools.partial(
    jax.jit, static_argnames=("spec", "start", "temperature", "chunk", "remat", "frozen_head", "accumulation")
)
def score(spec: DecoderSpec, upper: dict, trainable: dict, profiles: Profiles, context_mask: jax.Array, *,
          start: int, temperature: float, chunk: int, remat: bool = False, frozen_head: bool = False,
          accumulation: int = 1) -> jax.Array:  # fmt: skip
    """LogProbs [B, G, T] of the profiles under an upper model, from the trunk's stored hidden states; 0 where masked.

    context_mask [B, P] is the prompts' without their last token; accumulation: as in `update`.
    """
    if accumulation > 1:
        one = functools.partial(score, spec, upper, trainable, start=start, temperature=temperature, chunk=chunk)
        parts = devices.in_parts((profiles, context_mask), accumulation, spec.mesh)
        return devices.of_parts(jax.lax.map(lambda part: one(*part), parts), spec.mesh)
    upper = assemble(upper, trainable)
    batch, samples, length, width = profiles.hidden.shape
    x = jnp.concatenate([profiles.context, profiles.hidden.reshape(batch, -1, width)], 1)
    x, _ = decoder.run(spec, upper["layers"], x, context_mask, samples, start=start, remat=remat, last=True)
    x = x.reshape(batch, samples, length, width)
    found = decoder.log_probs(spec, upper, x, profiles.tokens, temperature, chunk, frozen_head)
    return jnp.where(profiles.mask, found, 0.0)


# ---- losses: all of (new and old log-probabilities [B, G, T], mask [B, G, T], rewards [B, G])


def rebel(new, old, mask, rewards, *, eta: float, clip_ratio: float = 0.0) -> jax.Array:
    """REBEL over all pairs of a user's profiles: mean ((Δ_i − Δ_j) − η (r_i − r_j))², Δ = log π_θ/π_t.

    With a = Δ − η r, the sum over pairs i < j of (a_i − a_j)² is G Σ a² − (Σ a)² (papers.md §1; arXiv 2404.16767).
    """
    a = jnp.sum(jnp.where(mask, new - old, 0.0), -1) - eta * rewards
    a = a - jax.lax.stop_gradient(a.mean(1, keepdims=True))  # pairs don't see a shift: less cancellation
    samples = a.shape[1]
    pairs = samples * jnp.sum(a * a, 1) - jnp.sum(a, 1) ** 2
    return jnp.mean(pairs / (samples * (samples - 1) / 2))


def rloo(new, old, mask, rewards, *, eta: float = 0.0, clip_ratio: float = 0.0) -> jax.Array:
    """REINFORCE with the leave-one-out baseline (arXiv 2402.14740), importance-weighted after the first epoch.

    −mean A_i π_θ(p_i)/π_t(p_i), A_i = r_i − mean of the other r_j; at θ = t its gradient is −A_i ∇ log π_θ(p_i).
    """
    samples = rewards.shape[1]
    advantage = (rewards - rewards.mean(1, keepdims=True)) * samples / (samples - 1)
    ratio = jnp.exp(jnp.sum(jnp.where(mask, new - old, 0.0), -1))
    return -jnp.mean(advantage * ratio)


def grpo(new, old, mask, rewards, *, eta: float = 0.0, clip_ratio: float) -> jax.Array:
    """GRPO (arXiv 2402.03300): clipped token ratios, a profile's mean over tokens, rewards normed per user.

    The KL to the reference is in the reward here, as in every loss of this file, not in the loss.
    """
    centred = rewards - rewards.mean(1, keepdims=True)
    advantage = (centred / (jnp.sqrt(jnp.mean(centred**2, 1, keepdims=True)) + 1e-4))[..., None]
    ratio = jnp.exp(jnp.where(mask, new - old, 0.0))
    clipped = jnp.clip(ratio, 1 - clip_ratio, 1 + clip_ratio)
    gain = jnp.where(mask, jnp.minimum(ratio * advantage, clipped * advantage), 0.0)
    return -jnp.mean(gain.sum(-1) / jnp.maximum(mask.sum(-1), 1))


LOSSES = {"rebel": rebel, "rloo": rloo, "grpo": grpo}


@functools.partial(
    jax.jit,
    static_argnames=("spec", "optimiser", "loss", "start", "temperature", "chunk", "remat", "eta", "clip_ratio",
                     "accumulation"),
    donate_argnames=("trainable", "optimiser_state"),
)  # fmt: skip
def update(spec: DecoderSpec, upper: dict, trainable: dict, optimiser_state, profiles: Profiles,
           context_mask: jax.Array, old: jax.Array | None, rewards: jax.Array, *,
           optimiser: optax.GradientTransformation, loss: str, start: int, temperature: float, chunk: int,
           remat: bool, eta: float, clip_ratio: float, accumulation: int = 1):  # fmt: skip
    """One optimiser step on a (mini)batch of rollouts: returns trainable, optimiser state and metrics.

    old: LogProbs [B, G, T] of the policy that wrote the profiles; None where that is `trainable` as it stands.
    accumulation: so many parts of the users go through the layers one after another; every loss is a mean over users.
    """
    frozen_head = not any(name.startswith("head") for name in trainable)

    def objective(trainable, profiles, context_mask, old, rewards):
        new = score(spec, upper, trainable, profiles, context_mask, start=start, remat=remat,
                    temperature=temperature, chunk=chunk, frozen_head=frozen_head)  # fmt: skip
        before = jax.lax.stop_gradient(new) if old is None else old
        value = LOSSES[loss](new, before, profiles.mask, rewards, eta=eta, clip_ratio=clip_ratio)
        return value, jnp.mean(jnp.abs(jnp.sum(new - before, -1)))

    slopes, rows = jax.value_and_grad(objective, has_aux=True), (profiles, context_mask, old, rewards)
    if accumulation > 1:
        parts = devices.in_parts(rows, accumulation, spec.mesh)
        nothing = jax.tree.map(jnp.zeros_like, ((rewards[0, 0], rewards[0, 0]), trainable))
        total, _ = jax.lax.scan(
            lambda sums, part: (jax.tree.map(jnp.add, sums, slopes(trainable, *part)), None), nothing, parts
        )
        (value, moved), grads = jax.tree.map(lambda a: a / accumulation, total)
    else:
        (value, moved), grads = slopes(trainable, *rows)
    updates, optimiser_state = optimiser.update(grads, optimiser_state, trainable)
    trainable = optax.apply_updates(trainable, updates)
    metrics = {"loss": value, "grad_norm": optax.tree.norm(grads), "log_ratio_moved": moved}
    return trainable, optimiser_state, metrics
