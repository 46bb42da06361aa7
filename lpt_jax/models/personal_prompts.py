"""Personal prompts (PeaPOD, arXiv 2407.05033): vectors for the places before a text, made of a person's vector.

neighbours  a_h = softmax((W_q u)_h · (W_k U_S)_hᵀ / √d_h); P(u) = W_p concat_h a_h (W_v U_S)_h + b    # S: the nearest people
pool        P(u) = Σ_m cos(u ⊙ a_m, k_m) P_m                      # a pool that all share; λ × how far it is from orthogonal
own         P(u) = W u + b                                        # the control: no others' vectors
task        the task's vectors alone                              # POD
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from lpt_jax.models.layers import Linear, parameter

KINDS = ("neighbours", "pool", "own", "task", "none")


@dataclasses.dataclass(frozen=True)
class PersonalSpec:
    """Shape of a personal prompt."""

    kind: str = "neighbours"
    tasks: int = 1  # tasks that have vectors of their own
    task_tokens: int = 3  # vectors of a task
    tokens: int = 3  # L, vectors of a person
    size: int = 64  # d, of a person's vector
    heads: int = 4  # of neighbours
    pool: int = 10  # M, prompts in the pool

    @property
    def count(self) -> int:
        """How many vectors stand before a text."""
        if self.kind == "none":
            return 0
        return self.task_tokens + (0 if self.kind == "task" else self.tokens)


class PersonalPrompt(nnx.Module):
    """From people to vectors [..., count, D] in the place of token embeddings."""

    def __init__(self, spec: PersonalSpec, width: int, rngs: nnx.Rngs):
        def random(name, *shape):
            return Linear(name, shape[0], shape[1], ("fsdp", None), rngs)

        def table(number, *shape):
            key = jax.random.fold_in(rngs.params.key[...], 101 + number)
            return parameter(0.02 * jax.random.normal(key, shape), ())

        self.task = table(0, spec.tasks, spec.task_tokens, width)
        self.q, self.k, self.v, self.out, self.bias = (nnx.data(None) for _ in range(5))
        self.prompts, self.keys, self.weights = (nnx.data(None) for _ in range(3))
        if spec.kind == "neighbours":
            self.q, self.k, self.v = (random(f"personal_{name}", spec.size, spec.size) for name in "qkv")
        if spec.kind in ("neighbours", "own"):
            self.out, self.bias = random("personal_out", spec.size, spec.tokens * width), table(1, spec.tokens * width)
        if spec.kind == "pool":
            self.prompts = table(2, spec.pool, spec.tokens, width)
            self.keys, self.weights = (table(number, spec.pool, spec.size) for number in (3, 4))
        self.spec, self.width = spec, width

    def __call__(self, who: dict) -> jax.Array:
        """Vectors [..., count, D] of who: "task" Int[...], "user" [..., d], and "neighbours" [..., n, d]."""
        spec = self.spec
        of_task = self.task[...][who["task"]]
        if spec.kind == "task":
            return of_task
        if spec.kind == "pool":
            near = _cosine(who["user"][..., None, :] * self.weights[...], self.keys[...])
            own = jnp.einsum("...m,mld->...ld", near, self.prompts[...])
        else:
            read = who["user"] if spec.kind == "own" else self._of_neighbours(who["user"], who["neighbours"])
            own = (self.out(read) + self.bias[...]).reshape(*read.shape[:-1], spec.tokens, self.width)
        return jnp.concatenate([of_task, own], -2)

    def _of_neighbours(self, user: jax.Array, others: jax.Array) -> jax.Array:
        """What a person's heads read of the neighbours, [..., d]."""
        heads = self.spec.heads
        q = self.q(user).reshape(*user.shape[:-1], heads, -1)
        k, v = (linear(others).reshape(*others.shape[:-1], heads, -1) for linear in (self.k, self.v))
        shares = jax.nn.softmax(jnp.einsum("...hd,...nhd->...hn", q, k) * q.shape[-1] ** -0.5)
        return jnp.einsum("...hn,...nhd->...hd", shares, v).reshape(user.shape)

    def penalty(self) -> jax.Array:
        """How far the pool is from orthogonal: mean squares of K Kᵀ − I, A Aᵀ − I and P Pᵀ − I; 0 of other kinds."""
        if self.spec.kind != "pool":
            return jnp.zeros(())
        rows = [a[...].reshape(self.spec.pool, -1) for a in (self.keys, self.weights, self.prompts)]
        return sum(jnp.mean((a @ a.T - jnp.eye(len(a))) ** 2) for a in rows)


def _cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    squares = jnp.sum(a * a, -1) * jnp.sum(b * b, -1)
    return jnp.sum(a * b, -1) * jax.lax.rsqrt(jnp.maximum(squares, 1e-16))  # a place without a person is zeros
