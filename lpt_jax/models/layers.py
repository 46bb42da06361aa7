"""The parts that all models are made of: Linear, Embed, RMSNorm and LayerNorm as Flax NNX modules.

Every parameter carries the mesh axes that its last axes are spread over (its `out_sharding`). In a *stack* of layers each
parameter has one more axis in front: the stack is scanned, or listed (a tuple of arrays instead of one).
`model.set_attributes(dtype="bfloat16", mesh=mesh)` says what products read and where activations lie.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lpt_jax import devices
from lpt_jax.models.products import halves, product

COLUMNS = ("fsdp", "model")  # a kernel [in, out] whose outputs are spread over "model"
ROWS = ("model", "fsdp")  # one whose inputs are


def hash_name(name: str) -> int:
    """A small number from a weight's name, the same in every process."""
    return sum(ord(c) * 31**i for i, c in enumerate(name)) % (2**31)


def parameter(value: jax.Array, axes: tuple = (), kind=nnx.Param) -> nnx.Param:
    """A parameter whose last axes lie along these axes of the mesh."""
    return kind(value, out_sharding=axes, eager_sharding=False)


def random_matrix(rngs: nnx.Rngs, name: str, shape: tuple, axes: tuple = ()) -> nnx.Param:
    """normal(0, 0.02) float32; the values depend on the key, the name and the shape alone."""
    key = jax.random.fold_in(rngs.params.key[...], hash_name(name))
    return parameter(0.02 * jax.random.normal(key, shape), axes)


class Linear(nnx.Module):
    """x @ kernel (+ LoRA, + bias): reads `dtype`, accumulates and returns float32.

    kernel [in, out]; `lora` is a low_rank.LoRA or None. `whole`: the kernel is a float32 master that training changes,
    and isn't rounded (products.product); for decoding `halve` makes two of it, kernel and `rest`.
    """

    def __init__(
        self, name: str, inward: int, outward: int, axes: tuple, rngs: nnx.Rngs, stack=(), bias=False, tied=False
    ):
        self.kernel = nnx.data(None if tied else random_matrix(rngs, name, (*stack, inward, outward), axes))
        self.bias = nnx.data(parameter(jnp.zeros((*stack, outward))) if bias else None)
        self.lora = nnx.data(None)
        self.rest = nnx.data(None)
        self.axes = axes
        self.dtype, self.mesh, self.whole = "float32", None, False

    def __call__(self, x: jax.Array, kernel: jax.Array | None = None) -> jax.Array:
        """x [..., in] to [..., out]; `kernel`: another's, for a tied one."""
        kernel = self.kernel[...] if kernel is None else kernel
        y = product(x, kernel, self.dtype, self.whole)
        if self.rest is not None:
            y += product(x, self.rest[...], self.dtype)
        if self.lora is not None:
            y += self.lora(x, self.dtype)
        if self.bias is not None:
            y += self.bias[...].astype(jnp.float32)
        return devices.spread(y, self.mesh, self.axes[1])

    def halve(self) -> None:
        """Makes of a `whole` kernel two of `dtype`, unless it has that type."""
        if self.whole and self.kernel[...].dtype != jnp.dtype(self.dtype):
            near, rest = halves(self.kernel[...], self.dtype)
            self.kernel.set_value(near)
            self.rest, self.whole = parameter(rest, self.axes), False


class Embed(nnx.Module):
    """Ids [...] to the rows [..., D] of a table [count, D]."""

    def __init__(self, name: str, count: int, width: int, axes: tuple, rngs: nnx.Rngs):
        self.table = random_matrix(rngs, name, (count, width), axes)

    def __call__(self, ids: jax.Array) -> jax.Array:
        return self.table[...][ids].astype(jnp.float32)


class RMSNorm(nnx.Module):
    """x / rms(x) · scale over the last axis, in float32; plus_one: · (1 + scale), as Gemma's."""

    def __init__(self, width: int, eps: float, plus_one: bool = False, stack=()):
        self.scale = parameter(jnp.full((*stack, width), 0.0 if plus_one else 1.0, jnp.float32))
        self.eps, self.plus_one = eps, plus_one

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + self.eps)
        scale = self.scale[...].astype(jnp.float32)
        return x * (1.0 + scale if self.plus_one else scale)


class LayerNorm(nnx.Module):
    """(x − mean) / s.d. · scale + bias over the last axis, in float32."""

    def __init__(self, width: int, eps: float, stack=()):
        self.scale = parameter(jnp.ones((*stack, width)))
        self.bias = parameter(jnp.zeros((*stack, width)))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        x = (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + self.eps)
        return x * self.scale[...] + self.bias[...]


# ---- modules as trees of arrays


def plain(state) -> dict:
    """A state of nnx.split as nested dicts of arrays, which optax, orbax and nnx.merge all take."""
    if isinstance(state, nnx.Variable):
        return state.get_value()
    return {name: plain(part) for name, part in state.items()}


def axes_of(module: nnx.Module) -> dict[tuple, tuple]:
    """The mesh axes of every parameter by its path, for devices.place."""
    flat = nnx.to_flat_state(nnx.state(module))
    return {tuple(map(str, path)): variable.get_metadata("out_sharding") for path, variable in flat}


def joined(a: dict, b: dict) -> dict:
    """Two trees of different parameters of one module as one."""
    return b | a | {name: joined(a[name], b[name]) for name in a.keys() & b.keys()}


def is_listed(leaf) -> bool:
    """Whether a stack's parameter is a tuple of arrays, one for each layer."""
    return isinstance(leaf, tuple)


def size_of(stack: dict) -> int:
    """How many layers a stack's tree has."""
    leaves = jax.tree.leaves(stack, is_leaf=is_listed)
    return len(leaves[0]) if is_listed(leaves[0]) else leaves[0].shape[0]


def layer_of(stack: dict, i) -> dict:
    """The tree of one layer of a stack."""
    return jax.tree.map(lambda leaf: leaf[i], stack, is_leaf=is_listed)


def list_layers(stack: dict) -> dict:
    """The stack with every parameter as a tuple of its layers' arrays (of numpy arrays: views)."""
    return jax.tree.map(lambda leaf: tuple(leaf[i] for i in range(leaf.shape[0])), stack)


def of_arrays(function, *trees):
    """function(*trees); where the trees hold shapes (jax.ShapeDtypeStruct) in place of arrays, its result's shapes."""
    shapes = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(trees))
    return jax.eval_shape(function, *trees) if shapes else function(*trees)


def masters(tree: dict) -> dict:
    """The arrays on the host in float32, as an optimiser changes them."""
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(tree)):
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.float32), tree)
    return jax.tree.map(lambda a: np.array(a, np.float32), jax.device_get(tree))
