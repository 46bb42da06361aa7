"""Compiles the training functions of a config for machines that need not be there: does it fit, and what is sent?

    python -m lpt_jax.main --config=configs/movies_tv_gemma.py --mode=check --topology=v5e:2x4

No weights are read: of models on the hub only the config, and of the recipes' not even that.
"""

import importlib
import math
import re
import time

import jax

from lpt_jax import devices, topologies
from lpt_jax.errors import InputError
from lpt_jax.topologies import GIB, Program, bytes_of

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
PROGRAMS = {"profiles": "profiles_programs", "knowledge": "tasks_programs", "peapod": "tasks_programs"}  # of a system


def measure(program: Program, run, platform: str) -> tuple[float, str]:
    """Compiles one program: bytes on a device with all that the run holds there, and the table's other cells."""
    started = time.monotonic()
    try:
        compiled = topologies.compiled(program.function, program.arguments, platform)
    except jax.errors.JaxRuntimeError as error:
        return math.inf, f"{' '.join(str(error).split())[:120]} | | |"
    memory, text = compiled.memory_analysis(), compiled.as_text()
    new = memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.temp_size_in_bytes
    peak = sum(run.resident().values()) + bytes_of(program.data) + new
    counts = {kind: len(re.findall(rf" {kind}(?:-start)?\(", text)) for kind in COLLECTIVES}
    sent = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count) or "none"
    return peak, f"{peak / GIB:.2f} | {sent} | {time.monotonic() - started:.0f} s |"


def main(config, topology: str | None, processes: str | None) -> int:
    """Checks, and returns the exit status: 1 if a program does not fit."""
    if processes:
        raise InputError("--processes is not for --mode=check: one process compiles for all, without any device.")
    return 1 - check(config, topology or "v5e:2x4")


def check(config, topology: str) -> bool:
    """Compiles every program of a config for a topology and prints what each needs: whether all fit."""
    found, platform, memory = topologies.machine(topology)
    config = config.copy_and_resolve_references()
    with config.unlocked():
        for model in (config.lm, config.embedder):
            model.dtype = model.dtype.replace("auto", "bfloat16")  # which is fast there, if not here
    of_system = importlib.import_module(f"lpt_jax.{PROGRAMS[config.system]}")
    run, too_large = of_system.Shapes(config, devices.make_mesh(config.mesh, found), platform), []
    parts = sorted(run.resident().items(), key=lambda part: -part[1])
    held = f"{sum(size for _, size in parts) / GIB:.2f} GiB"
    told = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts if size > 0.005 * GIB)
    print(
        f"{config.name} on {topology}: of a device's {memory / GIB:.2f} GiB the run holds {held}: {told or 'little'}.\n"
    )
    print("| program | fits | peak GiB a device | collectives | compiled in |\n|---|---|---|---|---|")
    for name, program in of_system.programs(run).items():
        print(f"| {name} | ", end="", flush=True)
        peak, cells = measure(program, run, platform)
        print("yes" if peak <= memory else "**no**", cells, sep=" | ", flush=True)
        if peak > memory:
            too_large.append(f"\n{name} does not fit: lower --config.{program.setting}, or take more devices.")
    print(*too_large, sep="\n")
    return not too_large
