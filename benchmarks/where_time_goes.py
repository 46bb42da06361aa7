"""Where ours spends a call: the profiler's time of every operation of the compiled programs, by kind, over all threads.

    python -m benchmarks.where_time_goes [--cases=profiles-write,training-float32]

For the cases that miss their target. XLA names an operation after what it computes; those that only hold others (loops,
calls) are left out. "products" are the matrix products with whatever XLA has fused into them; "moved" are copies, conversions,
transposes and slices; "waiting" is what is left of the threads' time: one thread's work where there is no more for the other, and
Python. Beside the products stands the rate at which they ran, against this machine's best for 2048³ products.
"""

import glob
import re
import tempfile
import time
from pathlib import Path

KINDS = {  # by the first that fits an operation's name
    "products": r"^(ynn|onednn|dot|.*_dot_|custom-call|__cpu\$onednn|cublas|.*gemm)",
    "moved": r"(copy|convert|transpose|bitcast|concatenate|slice|gather|scatter|broadcast|pad|reshape|iota)",
    "computed": r"",
}
HOLDERS = re.compile(
    r"^(end: |\$|while|call|conditional|ThunkExecutor|Thunk|PjitFunction|CommonPjRt|PjRt|D2D|Device|Parse|Wait)"
)
CASES = "profiles-prefill-float32,profiles-prefill-bfloat16,profiles-write,training-float32,rlso"


def kind(name: str) -> str:
    """The kind of an operation.

    >>> kind("ynn_fusion.12"), kind("convert_bitcast_fusion.3"), kind("exponential_reduce_fusion")
    ('products', 'moved', 'computed')
    """
    found = next(kind for kind, pattern in KINDS.items() if re.search(pattern, name))
    return found if found != "moved" or not re.search(r"(reduce|exponential|tanh|rsqrt|divide)", name) else "computed"


def seconds_by_kind(folder: str) -> tuple[dict[str, float], list]:
    """Thread-seconds by kind of all traces in a folder, and the ten operations that took longest."""
    import jax

    found, single = dict.fromkeys(KINDS, 0.0), {}
    for file in glob.glob(f"{folder}/**/*.xplane.pb", recursive=True):
        for plane in jax.profiler.ProfileData.from_file(file).planes:
            for line in plane.lines:
                if "XLA" not in line.name:  # Python's own threads
                    continue
                for event in line.events:
                    if not HOLDERS.match(event.name):
                        found[kind(event.name)] += event.duration_ns / 1e9
                        single[event.name] = single.get(event.name, 0.0) + event.duration_ns / 1e9
    return found, sorted(single.items(), key=lambda item: -item[1])[:10]


def measure(case, options) -> dict:
    """Of one call of ours: its seconds, thread-seconds by kind, and the products' operations."""
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
        kinds, longest = seconds_by_kind(folder)
    floor = harness.floor(case, best, options)
    operations = sum(part["operations"] for part in floor["parts"].values())
    rate = max(value for name, value in best.items() if name.endswith(f" {floor['dtype']}"))
    return {"seconds": seconds, "threads": options.threads, "kinds": kinds, "longest": longest,
            "operations": operations, "rate": rate, "dtype": floor["dtype"]}  # fmt: skip


def table(found: dict) -> list[str]:
    """Markdown's lines: a case's seconds, and the shares of its threads' time."""
    lines = ["", "Where a call of ours spends its threads' time (`python -m benchmarks.where_time_goes`):", ""]
    lines += [
        "| case | s | products | at, of the best rate | computed | moved | waiting |",
        "|:--|--:|--:|--:|--:|--:|--:|",
    ]
    for name, of in found.items():
        whole = of["seconds"] * of["threads"]
        shares = {kind: seconds / whole for kind, seconds in of["kinds"].items()}
        rate = of["operations"] / (of["kinds"]["products"] / of["threads"]) / of["rate"]
        cells = [f"{of['seconds']:.3g}", f"{shares['products']:.0%}", f"{rate:.0%}", f"{shares['computed']:.0%}",
                 f"{shares['moved']:.0%}", f"{max(0.0, 1 - sum(shares.values())):.0%}"]  # fmt: skip
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Runs what the command line says."""
    from benchmarks import run as run_lib

    options = run_lib.parse()
    options.names = options.names or CASES.split(",")
    run_lib.equal_threads(options)
    from benchmarks import harness, inputs

    with tempfile.TemporaryDirectory(prefix="lpt_jax_benchmarks_") as made:
        options.folder = Path(made)
        inputs.make(options)
        found = {}
        for case in run_lib.cases(options):
            found[case.name] = measure(case, options)
            print("\n".join(table(found)), *found[case.name]["longest"], sep="\n", flush=True)
    if not options.tiny:
        harness.keep({"where": found})


if __name__ == "__main__":
    from lpt_jax.huge_pages import use_huge_pages

    use_huge_pages()
    main()
