"""Where a call of ours goes: the profiler's time of every operation of the compiled programs, by what it computes.

    python -m benchmarks.where_time_goes [--cases=profiles-prefill-bfloat16,training-float32]

Traced with one thread: XLA's profiler sees an operation only on the thread that starts it, and with one every second is some
operation's. Beside the shares stand the rate of the matrix products against this machine's best with one thread, and what the
other threads bring: the same call's time with one thread over that with all of them. What an operation computes is read in the
compiled program's text: a fusion with a product in it (dot) is "products", one with arithmetic or a reduction "computed", the
rest (copies, conversions, transposes, slices) "moved"; "between" is what no operation took: Python, and XLA's own bookkeeping.
"""

import argparse
import glob
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CASES = "profiles-prefill-float32,profiles-prefill-bfloat16,profiles-write,training-float32,training-bfloat16"
KINDS = ("products", "computed", "moved")
MOVES = (
    "parameter constant bitcast convert copy transpose reshape broadcast slice dynamic-slice dynamic-update-slice "
    "concatenate gather pad iota tuple get-tuple-element select compare scatter reverse and or"
).split()
HOLDERS = ("while", "call", "conditional", "parameter", "constant", "tuple", "get-tuple-element", "bitcast")


def kinds_of(text: str) -> dict[str, str]:
    """The kind of every operation of a compiled program's text, by name; those that only hold others are left out.

    >>> kinds_of('''fused_computation (p: f32[2]) -> f32[2] {
    ...   %p = f32[2] parameter(0)
    ...   ROOT %r = f32[2] exponential(%p)
    ... }
    ... ENTRY main (a: f32[2]) -> f32[2] {
    ...   %dot.1 = f32[2,2] dot(%a, %b)
    ...   ROOT %wrapped.2 = f32[2] fusion(%a), kind=kLoop, calls=%fused_computation
    ... }''')
    {'r': 'computed', 'dot.1': 'products', 'wrapped.2': 'computed'}
    """
    blocks, name = {}, ""
    for line in text.splitlines():
        if head := re.match(r"(?:ENTRY )?%?([\w.-]+) .*\{$", line):
            name, blocks[head[1]] = head[1], []
        elif found := re.match(r"\s+(?:ROOT )?%([\w.-]+) = (.*?[\])}]|\(.*?\)) ([\w-]+)\(", line):
            blocks.setdefault(name, []).append((found[1], found[3], line))

    def kind(operation: str, line: str) -> str:
        if operation in ("dot", "convolution"):
            return "products"
        if operation in ("fusion", "custom-call", "call") and (
            inner := re.search(r"(?:calls|to_apply)=%?([\w.-]+)", line)
        ):
            inside = [kind(of, text) for _, of, text in blocks.get(inner[1], [])]
            return next((of for of in KINDS if of in inside), "moved")
        return "moved" if operation in MOVES else "computed"

    return {
        name: kind(operation, line)
        for block in blocks.values() for name, operation, line in block
        if operation not in HOLDERS or operation == "call" and "to_apply" not in line
    }  # fmt: skip


def seconds_by_kind(trace: str, programs: str) -> tuple[dict[str, float], list]:
    """Seconds by kind of all operations that a trace shows, and the ten that took longest with their kinds."""
    import jax

    kinds = {}
    for file in glob.glob(f"{programs}/*after_optimizations.txt"):
        text = Path(file).read_text()
        module = re.match(r"HloModule ([\w.-]+)", text)[1]
        kinds |= {(module, name): of for name, of in kinds_of(text).items()}
    found, single = dict.fromkeys(KINDS, 0.0), {}
    for file in glob.glob(f"{trace}/**/*.xplane.pb", recursive=True):
        for plane in jax.profiler.ProfileData.from_file(file).planes:
            for line in plane.lines:
                for event in line.events:
                    stats = dict(event.stats)
                    place = stats.get("hlo_module"), stats.get("hlo_op")
                    if place in kinds and event.name == place[1]:
                        found[kinds[place]] += event.duration_ns / 1e9
                        key = f"{' '.join(place)}: {kinds[place]}"
                        single[key] = single.get(key, 0.0) + event.duration_ns / 1e9
    return found, sorted(single.items(), key=lambda item: -item[1])[:10]


def trace(case, options, programs: str) -> dict:
    """Of one call of ours with this process's threads: its seconds, seconds by kind, the products' operations and best rate."""
    import jax

    from benchmarks import harness

    best, run = harness.rates(), case.ours()
    for _ in range(2):
        run()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            started = time.perf_counter()
            run()
            seconds = time.perf_counter() - started
        kinds, longest = seconds_by_kind(folder, programs)
    parts = harness.floor(case, best, options)
    operations = sum(part["operations"] for part in parts["parts"].values())
    if case.name == "profiles-write":  # a call of its writes one token, and then all
        operations += parts["parts"]["prefill"]["operations"]
    rate = max(value for name, value in best.items() if name.endswith(f" {parts['dtype']}"))
    return {"seconds": seconds, "kinds": kinds, "longest": longest, "operations": operations, "rate": rate}


def seconds_with_all(case) -> float:
    """Seconds of a call of ours, the third."""
    run = case.ours()
    for _ in range(2):
        run()
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def table(found: dict) -> list[str]:
    """Markdown's lines: a case's seconds, and the shares of them."""
    lines = ["", "Where a call of ours goes, with one thread (`python -m benchmarks.where_time_goes`):", ""]
    lines += [
        "| case | s | products | at, of the best rate | computed | moved | between | all threads, s | times as fast |",
        "|:--|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, of in found.items():
        whole, kinds = of["seconds"], of["kinds"]
        rate = of["operations"] / kinds["products"] / of["rate"]
        shares = [f"{kinds[kind] / whole:.0%}" for kind in KINDS]
        cells = [f"{whole:.3g}", shares[0], f"{rate:.0%}", *shares[1:], f"{1 - sum(kinds.values()) / whole:.0%}",
                 f"{of['all threads']:.3g}", f"{whole / of['all threads']:.2f} ×"]  # fmt: skip
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Runs what the command line says; each case in processes of its own."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from benchmarks import run as run_lib

    part = argparse.ArgumentParser(add_help=False)
    part.add_argument("--programs")
    own, rest = part.parse_known_args()
    options = run_lib.parse(rest)
    options.names = options.names or CASES.split(",")
    if own.programs is not None:  # one case, asked by the process below
        run_lib.equal_threads(options)
        (case,) = run_lib.cases(options)
        print("\n" + json.dumps(trace(case, options, own.programs) if own.programs else seconds_with_all(case)))
        return
    from benchmarks import harness, inputs

    with tempfile.TemporaryDirectory(prefix="lpt_jax_benchmarks_") as made:
        options.folder, found = Path(made), {}
        inputs.make(options)
        for name in options.names:

            def ask(programs: str, threads: int, name=name):
                command = [sys.executable, "-m", "benchmarks.where_time_goes", f"--cases={name}", f"--folder={made}",
                           f"--threads={threads}", f"--programs={programs}", *["--tiny"] * options.tiny]  # fmt: skip
                dump = f"--xla_dump_to={programs} --xla_dump_hlo_as_text" if programs else ""
                env = os.environ | {
                    "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {dump}".strip(),
                    "JAX_PLATFORMS": "cpu",
                }
                env |= {"JAX_ENABLE_COMPILATION_CACHE": "0"} if programs else {}
                return json.loads(
                    subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1]
                )

            with tempfile.TemporaryDirectory() as programs:
                found[name] = ask(programs, 1)
            found[name]["all threads"] = ask("", 0)
            print("\n".join(table(found)), *found[name]["longest"], sep="\n", flush=True)
    if not options.tiny:
        harness.keep({"where": found})


if __name__ == "__main__":
    from lpt_jax.huge_pages import use_huge_pages

    use_huge_pages()
    main()
