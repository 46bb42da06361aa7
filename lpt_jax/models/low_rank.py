"""LoRA (arXiv 2106.09685): small trained matrices beside frozen ones, x·W + (x·a)·b·alpha/rank."""

import functools
import re

import jax
import jax.numpy as jnp
from flax import nnx

from lpt_jax.errors import InputError
from lpt_jax.models.layers import hash_name, parameter
from lpt_jax.models.products import product


class LoRA(nnx.Module):
    """What is added to a Linear: (x·a)·b·scale, a [in, rank], b [rank, out], scale = alpha / rank.

    a is uniform in ±1/√in and b zero, so that the model starts as it was. The rank takes the mesh's "fsdp" where the
    matrix's other side does not.
    """

    def __init__(self, a: jax.Array, b: jax.Array, scale: float, axes: tuple):
        inward, outward = axes
        self.a = parameter(a, (inward, None if inward == "fsdp" else "fsdp"), nnx.LoRAParam)
        self.b = parameter(b, (None if outward == "fsdp" else "fsdp", outward), nnx.LoRAParam)
        self.scale = scale

    def __call__(self, x: jax.Array, dtype: str) -> jax.Array:
        return self.scale * product(product(x, self.a[...], dtype), self.b[...], dtype)


def attach(lm, targets: str, rank: int, alpha: float, key: jax.Array) -> None:
    """Gives a LoRA to every matrix of a Decoder whose whole name (q, k, v, o, gate, up, down, head) matches `targets`.

    They lie beside the frozen weights, and `nnx.LoRAParam` is the filter that selects them; `merge` folds them in.
    """
    if rank < 1:
        raise InputError(f"LoRA's rank is {rank}; it must be at least 1")
    linears = lm.linears()
    try:
        chosen = list(filter(re.compile(targets).fullmatch, linears))
    except re.error as error:
        raise InputError(f"lora.targets={targets!r} won't do: it must be a regular expression ({error}).") from None
    if not chosen:
        raise InputError(f"lora.targets={targets!r} matches no matrix; the names are {', '.join(linears)}")
    for name in chosen:
        *stack, inward, outward = (
            linears[name].kernel.shape if linears[name].kernel is not None else lm.embed.table.shape[::-1]
        )
        limit = inward**-0.5
        named = jax.random.fold_in(key, hash_name(name))
        a = jax.random.uniform(named, (*stack, inward, rank), minval=-limit, maxval=limit)
        linears[name].lora = LoRA(a, jnp.zeros((*stack, rank, outward)), alpha / rank, linears[name].axes)


@functools.partial(jax.jit, static_argnames="scale")
def _sum(matrix, a, b, scale):
    change = jnp.matmul(a, b, preferred_element_type=jnp.float32)
    return (matrix.astype(jnp.float32) + scale * change).astype(matrix.dtype)


def merge(lm) -> None:
    """Folds every LoRA of a Decoder into its matrix, W + a·b·scale; a tied head becomes one of its own [D, V]."""
    for linear in lm.linears().values():
        if linear.lora is None:
            continue
        lora, linear.lora = linear.lora, None
        if linear.kernel is None:
            matrix = lm.embed.table.get_value().T
        else:
            matrix = linear.kernel.get_value()
        a, b = lora.a[...], lora.b[...]
        if isinstance(matrix, tuple):
            merged = tuple(_sum(m, a[i], b[i], lora.scale) for i, m in enumerate(matrix))
        else:
            merged = _sum(matrix, a, b, lora.scale)
        linear.kernel = parameter(merged, linear.axes)
