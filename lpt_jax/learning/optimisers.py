"""One optimiser per model: AdamW or SGD of unit steps; warm-up, then constant or falling to 0."""

import optax

from lpt_jax.config import listed


def rate(learning_rate: float, warmup: int, updates: int = 0) -> optax.Schedule:
    """Rises linearly from learning_rate / warmup over `warmup` steps, then stays; or falls to 0 at `updates`, if given."""
    steps = max(warmup, 1)
    rise = optax.linear_schedule(learning_rate / steps, learning_rate, steps - 1 or 1)
    if not updates:
        return rise
    fall = optax.linear_schedule(learning_rate, 0.0, max(updates - steps + 1, 1))
    return optax.join_schedules([rise, fall], [steps - 1])


def adamw(schedule: optax.Schedule, weight_decay: float, clip: float) -> optax.GradientTransformation:
    """AdamW (β₂ .95) of gradients clipped by their global norm."""
    return optax.chain(optax.clip_by_global_norm(clip), optax.adamw(schedule, b2=0.95, weight_decay=weight_decay))


def unit_sgd(schedule: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
    """Steps along the gradient, of the rate's own length: learning_rate is the norm of one step over all weights.

    A policy gradient of few profiles is nearly all noise, alike in every weight; dividing each weight's by its own
    size, as Adam does, raises the noise of the many small ones (measured in experiments/LOG.md).
    """
    return optax.chain(
        optax.normalize_by_update_norm(),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(schedule),
    )


def of(settings, updates: int) -> optax.GradientTransformation:
    """The optimiser of a phase's settings (config.contrastive or config.policy), of so many updates over the whole run."""
    schedule = rate(settings.learning_rate, settings.warmup, updates if settings.schedule == "linear" else 0)
    if settings.optimiser == "unit_sgd":
        return unit_sgd(schedule, settings.weight_decay)
    return adamw(schedule, settings.weight_decay, settings.clip)


def of_lm(config) -> dict[str, optax.GradientTransformation]:
    """The optimisers of the phases that train the language model, by the phases' names, with one state."""
    updates = {"knowledge": config.knowledge.steps, "imitation": config.imitation.steps}
    updates["policy"] = config.policy.steps * config.policy.epochs * config.policy.minibatches
    names = [name for name in updates if name in listed(config.phases)] or ["policy"]
    return shared({name: of(config[name], config.iterations * updates[name]) for name in names})


def shared(optimisers: dict[str, optax.GradientTransformation]) -> dict[str, optax.GradientTransformation]:
    """Optimisers of several phases that train one model, with one state, a dict: each moves its own part of it."""

    def init(params):
        return {name: optimiser.init(params) for name, optimiser in optimisers.items()}

    def of_phase(name):
        def update(gradients, state, params=None):
            changes, own = optimisers[name].update(gradients, state[name], params)
            return changes, state | {name: own}

        return optax.GradientTransformation(init, update)

    return {name: of_phase(name) for name in optimisers} if len(optimisers) > 1 else optimisers
