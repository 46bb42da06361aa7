"""One mesh with axes ("data", "fsdp", "model") and where arrays lie on it.

Several forced CPU devices share few threads: of two independent programs with collectives in flight at once each can
wait for the other's devices until XLA aborts. So the phases wait for one such program before they start the next.

Several processes (hosts of a slice, or a coordinator's address and numbers) run the same program on the same host data; each
puts its own devices' part of an array on them and no more, and only the first writes files and prints.
"""

import contextlib
import os
import re
import sys
import traceback
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lpt_jax.errors import InputError

AXES = ("data", "fsdp", "model")
BATCH = ("data", "fsdp")  # a batch's first axis is spread over both


@contextlib.contextmanager
def together(others: str | None):
    """Joins this process with others: "auto" (TPU slices, SLURM), or the first's "host:port", their count, and this one's number.

    When another one is gone (noticed within 30 seconds), this one stops too and says so.
    """
    if not others:
        yield
        return
    _join(others)
    status = 1
    try:
        yield
        return
    except InputError as error:
        why, status = str(error), 2
    except jax.errors.JaxRuntimeError as error:
        why = " ".join(str(error).split())[:200]
        if "RESOURCE_EXHAUSTED" not in why:
            why = (
                f"a process of the run is gone ({why}): start them all again with the same command, and it goes on from "
                "its last checkpoint."
            )
    except SystemExit as stop:
        if type(stop) is not SystemExit:  # run.Stop: all of them stop, as asked
            raise
        why, status = "stopped.", stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        why = traceback.format_exc()
    print(f"lpt_jax: error: {why}", file=sys.stderr, flush=True)
    os._exit(status)  # an orderly end would wait for the others, who may wait for this one


def _join(others: str) -> None:
    if others == "auto":
        address = count = number = None
    else:
        try:
            address, count, number = others.rsplit(",", 2)
            count, number = int(count), int(number)
        except ValueError:
            raise InputError(
                f"--processes={others!r} must be auto, or host:port,count,number as in host0:9876,2,0."
            ) from None
    jax.config.update("jax_enable_preemption_service", False)  # SIGTERM is the training loop's
    try:
        jax.distributed.initialize(
            address,
            count,
            number,
            heartbeat_timeout_seconds=30,
            initialization_timeout=120,
            coordinator_bind_address=address if address and re.match(r"localhost:|127\.", address) else None,
        )
    except (RuntimeError, ValueError) as error:
        why = " ".join(str(error).split())[:200]
        raise InputError(f"--processes={others}: the processes did not find each other ({why}).") from None
    if jax.default_backend() == "cpu":  # programs from the cache let its independent collectives meet in another order
        jax.config.update("jax_enable_compilation_cache", False)
    if not first():
        sys.stdout = open(os.devnull, "w")


def first() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any of the processes, which all ask."""
    return flag if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(flag)).any())


def fetch(arrays):
    """Arrays of the mesh as numpy, whole in every process."""

    def whole(a):
        spread = isinstance(a, jax.Array) and not (a.is_fully_addressable or a.is_fully_replicated)
        return multihost_utils.process_allgather(a, tiled=True) if spread else np.asarray(a)

    return jax.tree.map(whole, arrays)


def _put(array, sharding):
    """One array where it shall lie; of a numpy array each process touches only its own devices' part; a shape stays one."""
    if isinstance(array, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)
    if sharding.is_fully_addressable or isinstance(array, jax.Array) and not array.is_fully_addressable:
        return jax.device_put(array, sharding)
    array = np.asarray(array)
    return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)


def product_type(asked: str) -> str:
    """The type of matrix products' inputs: "auto" is bfloat16 on accelerators and on CPUs with AVX512-BF16."""
    if asked != "auto":
        return asked
    if jax.default_backend() != "cpu":
        return "bfloat16"
    flags = Path("/proc/cpuinfo")
    return "bfloat16" if flags.exists() and "avx512_bf16" in flags.read_text() else "float32"


def make_mesh(sizes, devices=None) -> Mesh:
    """The mesh of config.mesh over all devices, or over these; one axis may be -1 (what is left)."""
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    shape = [sizes[axis] for axis in AXES]
    known = int(np.prod([s for s in shape if s > 0]))
    shape = [count // known if s == -1 else s for s in shape]
    if shape.count(-1) > 1 or min(shape) < 1 or int(np.prod(shape)) != count:
        asked = ", ".join(f"{axis}={sizes[axis]}" for axis in AXES)
        raise InputError(f"--config.mesh ({asked}) does not fit {count} device(s): their product must be {count}.")
    return jax.make_mesh(tuple(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def weight_partition(axes: tuple, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """The partition of a weight whose last axes lie along these axes of the mesh; those that don't divide are replicated."""
    if len(axes) > len(shape):
        axes = ()
    axes = (None,) * (len(shape) - len(axes)) + axes if axes else ()
    return PartitionSpec(*(a if a and not n % mesh.shape[a] else None for a, n in zip(axes, shape)))


def shardings(tree, mesh: Mesh, axes: dict[tuple, tuple]):
    """Where every leaf of a tree of weights, or of their optimiser's state, lies.

    axes: the mesh axes of each weight by its path (models.layers.axes_of); an optimiser's leaf ends with its weight's path.
    """

    def of(path, leaf):
        names = tuple(str(key.key) for key in path if hasattr(key, "key"))
        found = (axes[names[i:]] for i in range(len(names)) if names[i:] in axes)
        return NamedSharding(mesh, weight_partition(next(found, ()), np.shape(leaf), mesh))

    return jax.tree_util.tree_map_with_path(of, tree)


def place(tree, mesh: Mesh, axes: dict[tuple, tuple]):
    """Puts a tree of weights, or of their optimiser's state, on the mesh."""
    return jax.tree.map(_put, tree, shardings(tree, mesh, axes))


def ways(mesh: Mesh | None) -> int:
    """Over how many devices a batch is spread."""
    return mesh.shape["data"] * mesh.shape["fsdp"] if mesh else 1


def batch_sharding(shape, mesh: Mesh) -> NamedSharding:
    """The first axis spread over the devices; replicated where it doesn't divide."""
    return NamedSharding(mesh, PartitionSpec(BATCH) if shape and shape[0] % ways(mesh) == 0 else PartitionSpec())


def split_batch(arrays, mesh: Mesh):
    """Puts arrays on the mesh with their first axis spread over the devices."""
    return jax.tree.map(lambda a: _put(a, batch_sharding(np.shape(a), mesh)), arrays)


def spread(x: jax.Array, mesh: Mesh | None, last: str | None = None) -> jax.Array:
    """Tells XLA that activations lie by their first axis, and by `last` along the last; without a mesh nothing.

    Left alone it may gather the activations of the whole batch on every device instead of a layer's weights.
    """
    sharding = batch_sharding(x.shape, mesh) if mesh else None
    if mesh is None or mesh.size == 1 or not sharding.spec:
        return x
    last = last if last == "model" and x.shape[-1] % mesh.shape["model"] == 0 else None
    spec = PartitionSpec(BATCH, *(None,) * (x.ndim - 2), last)
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def gathered(x: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Tells XLA that every device that shares weights has all these rows."""
    if mesh is None or mesh.size == 1:
        return x
    data = "data" if x.shape[0] % mesh.shape["data"] == 0 else None
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(data)))


def in_parts(arrays, count: int, mesh: Mesh | None):
    """Arrays [B, ...] as [count, B / count, ...], whose rows stay on their devices where they divide (so not in order)."""

    def cut(a):
        own = _ways(len(a), count, mesh)
        a = a.reshape(own, count, -1, *a.shape[1:]).swapaxes(0, 1)
        a = a.reshape(count, -1, *a.shape[3:])
        if own == 1:
            return a
        return jax.lax.with_sharding_constraint(a, NamedSharding(mesh, PartitionSpec(None, BATCH)))

    return jax.tree.map(cut, arrays)


def of_parts(parts: jax.Array, mesh: Mesh | None) -> jax.Array:
    """in_parts undone: the rows [B, ...] in order."""
    count, each, *rest = parts.shape
    own = _ways(count * each, count, mesh)
    return spread(parts.reshape(count, own, -1, *rest).swapaxes(0, 1).reshape(-1, *rest), mesh)


def _ways(rows: int, count: int, mesh: Mesh | None) -> int:
    return 1 if rows % (ways(mesh) * count) else ways(mesh)


@jax.jit
def take_rows(arrays, rows: np.ndarray):
    """The given rows of every array of a tree."""
    return jax.tree.map(lambda a: a[rows], arrays)


def split_rows(array: np.ndarray, mesh: Mesh) -> jax.Array:
    """Pads the first axis with zeros to a multiple of all devices and spreads it over every one (item embeddings)."""
    return _put(np.pad(array, ((0, -len(array) % mesh.size), (0, 0))), row_sharding(mesh))


def row_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis spread over every device."""
    return NamedSharding(mesh, PartitionSpec(AXES))
