"""Machines that need not be there, and programs that are compiled for them and measured, never run.

TPU slices compile with the package libtpu and H100s with jax's CUDA wheels.
"""

import math
import os
import re
from typing import NamedTuple

import jax
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache

from lpt_jax.errors import InputError

GIB = 1 << 30
ITEMS, HISTORY = 100_000, 256  # the catalogue, and the longest hidden history, of what is checked: the data aren't read
MEMORY = {"v4": 31.25, "v5e": 15.75, "v5p": 95.74, "v6e": 31.25, "h100": 79.1}  # GiB that programs can have on a device
H100 = """
device_description_str: "NVIDIA H100 80GB HBM3" platform_name: "CUDA"
runtime_version { major: 12 minor: 8 } dnn_version_info { major: 9 minor: 8 }
gpu_device_info {
  cuda_compute_capability { major: 9 } core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98 threads_per_warp: 32
  threads_per_core_limit: 2048 threads_per_block_limit: 1024
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_core: 233472 shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  l2_cache_size: 52428800 memory_bandwidth: 3352320000000 device_memory_size: 84929347584
}"""  # what the compiler asks of the device


class Program(NamedTuple):
    """What is compiled: a jitted function and its arguments, of which `data` are no part of the run's state."""

    function: object
    arguments: tuple
    data: tuple
    setting: str  # what to lower where it doesn't fit


def bytes_of(tree) -> float:
    """Bytes of a tree of placed shapes on one device."""
    return sum(math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize for a in jax.tree.leaves(tree))


def machine(topology: str):
    """The devices of a topology such as "v5e:2x4" or "h100:8", its platform, and a device's memory in bytes."""
    kind, _, shape = topology.partition(":")
    if kind not in MEMORY or not re.fullmatch(r"\d+(x\d+)*", shape):
        known = "v5e:2x4, v5p:2x2x1, v6e:2x4, v4:2x2x1 or h100:8"
        raise InputError(f"--topology={topology} is not known: say, for example, {known}.")
    count = math.prod(map(int, shape.split("x")))
    os.environ.update(TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    jax.config.update("jax_platforms", "cpu")  # what is here takes no part
    try:
        if kind == "h100":
            found = topologies.get_topology_desc(platform="cuda", target_config=H100, topology=f"1x1x{count}")
        else:
            alone = {"chips_per_host_bounds": (1, 1, 1)} if count == 1 else {}
            found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **alone)
    except Exception as error:
        package = "jax[cuda12]" if kind == "h100" else "libtpu"
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"Nothing compiles for {topology} here: pip install '{package}' first ({reason}).") from None
    return list(found.devices), "cuda" if kind == "h100" else "tpu", MEMORY[kind] * GIB


def compiled(function, arguments: tuple, platform: str):
    """A jitted function compiled for such devices, on which the arguments (shapes) lie; the compilation cache is left alone."""
    cached = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)  # what it holds only a device that is there can load
    compilation_cache.reset_cache()  # or an earlier compilation's answer to whether there is one holds
    try:
        return function.trace(*arguments).lower(lowering_platforms=(platform,)).compile()
    finally:
        jax.config.update("jax_enable_compilation_cache", cached)
        compilation_cache.reset_cache()
