"""One optimiser per model: AdamW with warm-up, then constant, and clipping by the global norm."""

import optax


def adamw(learning_rate: float, warmup: int, weight_decay: float, clip: float) -> optax.GradientTransformation:
    """AdamW whose rate rises linearly from learning_rate / warmup over `warmup` steps and then stays."""
    steps = max(warmup, 1)
    schedule = optax.linear_schedule(learning_rate / steps, learning_rate, steps - 1 or 1)
    return optax.chain(optax.clip_by_global_norm(clip), optax.adamw(schedule, b2=0.95, weight_decay=weight_decay))


def of(settings) -> optax.GradientTransformation:
    """The optimiser of a phase's settings (config.contrastive or config.policy)."""
    return adamw(settings.learning_rate, settings.warmup, settings.weight_decay, settings.clip)
