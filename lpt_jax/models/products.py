"""The one matrix product: inputs in a chosen type, forward and backward, accumulated in float32."""

import functools

import jax
import jax.numpy as jnp

UNROLLED = 12  # stacks of at most so many layers aren't scanned but laid out: no residuals to stack, 1.15 times as fast


def _matmul(a, b, dtype):
    return jnp.matmul(a.astype(dtype), b.astype(dtype), preferred_element_type=jnp.float32)


def halves(w: jax.Array, dtype: str) -> tuple[jax.Array, jax.Array]:
    """w rounded to `dtype`, and what that leaves, rounded too: together they hold twice the digits."""
    bits = jnp.finfo(dtype)
    near = jax.lax.reduce_precision(w, bits.nexp, bits.nmant)  # a cast to and fro is taken out by XLA
    return near.astype(dtype), (w - near).astype(dtype)


def _sum(x, w, dtype, whole):
    if not whole or jnp.dtype(dtype) == w.dtype:
        return _matmul(x, w, dtype)
    near, rest = halves(w, dtype)
    return _matmul(x, near, dtype) + _matmul(x, rest, dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def product(x: jax.Array, w: jax.Array, dtype: str, whole: bool = False) -> jax.Array:
    """x [..., K] @ w [K, N] in float32, its inputs rounded to `dtype`.

    whole: w, in float32, is not rounded but read in two halves, so that no step of an optimiser is too small to count:
    half a unit in bfloat16's last place is .2 % of a weight.
    The derivative rounds the cotangent too: without that, JAX would multiply float32 with bfloat16 and the
    backward pass would run at float32's speed. It reads the first half alone.
    """
    return _sum(x, w, dtype, whole)


def _forward(x, w, dtype, whole):
    return _sum(x, w, dtype, whole), (x.astype(dtype), w, jnp.zeros((), x.dtype))


def _backward(dtype, whole, kept, cotangent):
    # contracted where they lie: a transposed copy first made the step of an encoder 1.3 times as long on a CPU
    x, w, like = kept
    cotangent, rows = cotangent.astype(dtype), tuple(range(x.ndim - 1))

    def contract(a, b, axes):
        return jax.lax.dot_general(a, b, (axes, ((), ())), preferred_element_type=jnp.float32)

    dx = contract(cotangent, w.astype(dtype), ((x.ndim - 1,), (1,)))
    return dx.astype(like.dtype), contract(x, cotangent, (rows, rows)).astype(w.dtype)


product.defvjp(_forward, _backward)
