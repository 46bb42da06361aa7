"""One mesh with axes ("data", "fsdp", "model") and where arrays lie on it.

Several forced CPU devices share few threads: of two independent programs with collectives in flight at once each can
wait for the other's devices until XLA aborts. So the phases wait for one such program before they start the next.
"""

from pathlib import Path

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lpt_jax.errors import InputError

AXES = ("data", "fsdp", "model")
BATCH = ("data", "fsdp")  # a batch's first axis is spread over both

# How a weight's matrix is spread, without the stacked layer axis; what isn't named is replicated.
PARTITION = {
    "embed": ("model", "fsdp"), "word": ("model", "fsdp"), "head": ("fsdp", "model"),
    "q": ("fsdp", "model"), "k": ("fsdp", "model"), "v": ("fsdp", "model"), "o": ("model", "fsdp"),
    "gate": ("fsdp", "model"), "up": ("fsdp", "model"), "down": ("model", "fsdp"),
}  # fmt: skip


def product_type(asked: str) -> str:
    """The type of matrix products' inputs: "auto" is bfloat16 on accelerators and on CPUs with AVX512-BF16."""
    if asked != "auto":
        return asked
    if jax.default_backend() != "cpu":
        return "bfloat16"
    flags = Path("/proc/cpuinfo")
    return "bfloat16" if flags.exists() and "avx512_bf16" in flags.read_text() else "float32"


def make_mesh(sizes) -> Mesh:
    """The mesh of config.mesh over all devices; one axis may be -1 (what is left)."""
    count = len(jax.devices())
    shape = [sizes[axis] for axis in AXES]
    known = int(np.prod([s for s in shape if s > 0]))
    shape = [count // known if s == -1 else s for s in shape]
    if shape.count(-1) > 1 or min(shape) < 1 or int(np.prod(shape)) != count:
        asked = ", ".join(f"{axis}={sizes[axis]}" for axis in AXES)
        raise InputError(f"--config.mesh ({asked}) does not fit {count} device(s): their product must be {count}.")
    return jax.make_mesh(tuple(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def weight_partition(path: tuple[str, ...], shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """The partition of the weight at a dict path such as ("layers", "q"); axes that don't divide are replicated."""
    name = path[-1]
    if name.endswith("_lora_a"):
        spec = (PARTITION[name[: -len("_lora_a")]][0], None)
    elif name.endswith("_lora_b"):
        spec = (None, PARTITION[name[: -len("_lora_b")]][1])
    else:
        spec = PARTITION.get(name, ())
    spec = ((None,) * (len(shape) - len(spec)) + spec) if spec else ()
    return PartitionSpec(*(a if a and not n % mesh.shape[a] else None for a, n in zip(spec, shape)))


def place(weights, mesh: Mesh):
    """Puts a tree of weights (or optimiser state) on the mesh by the names in its paths."""

    def put(path, leaf):
        names = tuple(str(getattr(p, "key", getattr(p, "name", ""))) for p in path)
        names = tuple(n for n in names if n) or ("",)
        return jax.device_put(leaf, NamedSharding(mesh, weight_partition(names, np.shape(leaf), mesh)))

    return jax.tree_util.tree_map_with_path(put, weights)


def split_batch(arrays, mesh: Mesh):
    """Puts arrays on the mesh with their first axis spread over the devices (replicated where it doesn't divide)."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]

    def put(a):
        spec = PartitionSpec(BATCH) if np.ndim(a) and np.shape(a)[0] % ways == 0 else PartitionSpec()
        return jax.device_put(a, NamedSharding(mesh, spec))

    return jax.tree.map(put, arrays)


@jax.jit
def take_rows(arrays, rows: np.ndarray):
    """The given rows of every array of a tree."""
    return jax.tree.map(lambda a: a[rows], arrays)


def split_rows(array: np.ndarray, mesh: Mesh) -> jax.Array:
    """Pads the first axis with zeros to a multiple of all devices and spreads it over every one (item embeddings)."""
    array = np.pad(array, ((0, -len(array) % mesh.size), (0, 0)))
    return jax.device_put(array, NamedSharding(mesh, PartitionSpec(AXES)))
