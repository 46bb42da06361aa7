"""LoRA (arXiv 2106.09685): small trained matrices beside frozen ones, x·W + (x·a)·b·alpha/rank."""

import functools
import re

import jax
import jax.numpy as jnp

from lpt_jax.array_types import Array
from lpt_jax.errors import InputError
from lpt_jax.models.decoder import DecoderSpec, hash_name

MATRICES = ("q", "k", "v", "o", "gate", "up", "down")


def attach(spec: DecoderSpec, weights: dict, targets: str, rank: int, key: Array) -> dict:
    """LoRA matrices for every matrix whose whole name matches the regular expression `targets`.

    Returns {"layers": {"q_lora_a": [L, in, rank], "q_lora_b": [L, rank, out], …}}, with "head_lora_a" and
    "head_lora_b" at the top where "head" matches (tied or not). a is uniform in ±1/√in and b zero, so that the
    model starts as it was. They lie beside the frozen weights; `merge` folds them in.
    """
    shapes = {name: weights["layers"][name].shape for name in MATRICES}
    shapes["head"] = (spec.width, spec.vocab)
    if rank < 1:
        raise InputError(f"LoRA's rank is {rank}; it must be at least 1")
    lora = {"layers": {}}
    for name in filter(re.compile(targets).fullmatch, shapes):
        *stack, inward, outward = shapes[name]
        part = lora if name == "head" else lora["layers"]
        limit = inward**-0.5
        named = jax.random.fold_in(key, hash_name(name))
        part[f"{name}_lora_a"] = jax.random.uniform(named, (*stack, inward, rank), minval=-limit, maxval=limit)
        part[f"{name}_lora_b"] = jnp.zeros((*stack, rank, outward))
    if not (lora["layers"] or len(lora) > 1):
        raise InputError(
            f"--config.policy.lora.targets={targets!r} matches no matrix; the names are {', '.join(shapes)}"
        )
    return lora


@functools.partial(jax.jit, static_argnames="scale")
def _sum(matrix, a, b, scale):
    change = jnp.matmul(a, b, preferred_element_type=jnp.float32)
    return (matrix.astype(jnp.float32) + scale * change).astype(matrix.dtype)


def merge(spec: DecoderSpec, weights: dict, lora: dict, scale: float) -> dict:
    """The weights W + a·b·scale (alpha / rank), without LoRA matrices; a tied head becomes an explicit "head" [D, V]."""

    def add(matrix, name, part):
        return _sum(matrix, part[f"{name}_lora_a"], part[f"{name}_lora_b"], scale)

    names = [name.removesuffix("_lora_a") for name in lora["layers"] if name.endswith("_lora_a")]
    layers, trained = weights["layers"], lora["layers"]
    if isinstance(layers, list):
        parts = [{name: a[i] for name, a in trained.items()} for i in range(len(layers))]
        layers = [w | {n: add(w[n], n, part) for n in names} for w, part in zip(layers, parts, strict=True)]
    else:
        layers = layers | {n: add(layers[n], n, trained) for n in names}
    merged = weights | {"layers": layers}
    if "head_lora_a" in lora:
        merged["head"] = add(weights["embed"].T if spec.tied else weights["head"], "head", lora)
    return merged
