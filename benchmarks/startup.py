"""Start-up: from the command to the first training step, and how many programs a whole run compiles.

The command is configs/movielens.py with the policy phase alone, 2 validation users, in a process of its own; once with
an empty compilation cache and once with what that left. Marks, in seconds since the process was started: imports done,
models and data ready, the first step begins (the catalogue is embedded, the validation profiles are written), the first
step is done. "To the first step" is that last mark less what a second step takes, so without the work itself.

Compilations are counted in a whole run of configs/movielens.py:tiny by jax's log of them, with an empty cache; the
same run with three times the steps must compile nothing more: a length that recompiles is a defect.
"""

import collections
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import types

from benchmarks import inputs
from lpt_jax.huge_pages import use_huge_pages

COMPILED = re.compile(r"Finished XLA compilation of (.+?) in [\d.e-]+ sec")
FLAGS = {
    "phases": "policy", "policy.steps": "3", "evaluation.max_users": "2", "evaluation.max_test_sessions": "2",
    "profile.batch": "2", "evaluation.baselines": "random",
}  # fmt: skip


def first_steps(started: float, arguments: list[str]) -> None:
    """In the process that is timed: runs the command, prints the marks after the second step, and ends."""
    from lpt_jax import config as config_lib
    from lpt_jax import main, train
    from lpt_jax.systems import profiles

    marks = {}

    def mark(name):
        marks[name] = time.time() - started

    def schedule(r):  # the recommender's models and prompts are made by now
        mark("models and data ready")
        (phase,) = profiles.schedule(r)
        as_it_is = phase.step

        def step(state, number):
            before = time.time()
            if number == 0:
                mark("first step begins")
            found = as_it_is(state, number)
            if number == 0:
                mark("first step done")
            else:
                marks["a second step alone"] = time.time() - before
                marks["to the first step"] = marks["first step done"] - marks["a second step alone"]
                print("\nmarks " + json.dumps(marks), flush=True)
                os._exit(0)
            return found

        phase.step = step
        return [phase]

    mark("imports done")
    _, config, workdir = main.parse(["lpt_jax", *arguments])
    system = types.SimpleNamespace(**vars(profiles) | {"schedule": schedule})
    with config_lib.claimed(workdir, config):
        train.train(system, config, workdir)


def _environment(cache: str) -> dict[str, str]:
    """As a newcomer's, with this compilation cache."""
    found = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    return found | {"JAX_COMPILATION_CACHE_DIR": cache}


def seconds(options, cache: str) -> dict[str, float]:
    """The marks of one start."""
    flags = (inputs.settings(options) if options.random else {}) | FLAGS
    config = "configs/movielens.py"
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, "-m", "benchmarks.startup", str(time.time()), f"--config={config}"]
        command += [f"--workdir={workdir}/run", *(f"--config.{name}={value}" for name, value in flags.items())]
        done = subprocess.run(command, capture_output=True, text=True, cwd=inputs.ROOT, env=_environment(cache))
    found = re.search(r"^marks (.+)$", done.stdout, re.MULTILINE)
    if not found:
        raise RuntimeError(f"the run did not come to its second step: {done.stderr.strip()[-1000:]}")
    return json.loads(found[1])


def compilations(steps: int) -> collections.Counter:
    """The programs that a whole tiny run compiles, by name."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "lpt_jax.main",
            "--config=configs/movielens.py:tiny",
            f"--workdir={folder}/run",
        ]
        command += [f"--config.{phase}.steps={steps}" for phase in ("contrastive", "policy")]
        environment = _environment(f"{folder}/cache") | {"JAX_LOG_COMPILES": "1"}
        done = subprocess.run(command, capture_output=True, text=True, cwd=inputs.ROOT, env=environment)
    if done.returncode:
        raise RuntimeError(f"the tiny run failed: {done.stderr.strip()[-1000:]}")
    return collections.Counter(COMPILED.findall(done.stderr))


def measure(options) -> dict:
    """{"seconds": {"cold", "warm"}, "compilations": {…}}."""
    with tempfile.TemporaryDirectory() as cache:
        found = {name: seconds(options, cache) for name in ("cold", "warm")}
    for name, marks in found.items():
        print(f"start-up, {name} cache: {', '.join(f'{mark} {at:.1f} s' for mark, at in marks.items())}", flush=True)
    once, more = compilations(2), compilations(6)
    return {
        "seconds": found,
        "compilations": {
            "in all": once.total(), "more with more steps": (more - once).total(),
            "which": dict(more - once), "most": dict(once.most_common(8)),
        },
    }  # fmt: skip


if __name__ == "__main__":
    use_huge_pages()
    first_steps(float(sys.argv[1]), sys.argv[2:])
