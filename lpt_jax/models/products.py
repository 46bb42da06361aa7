"""The one matrix product: inputs in a chosen type, forward and backward, accumulated in float32."""

import functools

import jax
import jax.numpy as jnp


def _matmul(a, b, dtype):
    return jnp.matmul(a.astype(dtype), b.astype(dtype), preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x: jax.Array, w: jax.Array, dtype: str) -> jax.Array:
    """x [..., K] @ w [K, N] in float32, its inputs rounded to `dtype`.

    The derivative rounds the cotangent too: without that, JAX would multiply float32 with bfloat16 and the
    backward pass would run at float32's speed.
    """
    return _matmul(x, w, dtype)


def _forward(x, w, dtype):
    return _matmul(x, w, dtype), (x.astype(dtype), w, jnp.zeros((), x.dtype))


def _backward(dtype, kept, cotangent):
    x, w, like = kept
    dx = _matmul(cotangent, w.T, dtype).astype(like.dtype)
    flat = cotangent.reshape(-1, cotangent.shape[-1])
    return dx, _matmul(x.reshape(-1, x.shape[-1]).T, flat, dtype).astype(w.dtype)


product.defvjp(_forward, _backward)
