"""Flags -> config -> mode: python -m lpt_jax.main --config=configs/movielens.py[:tiny] [--mode=train]

Any setting can be changed, as in --config.policy.eta=0.5; lpt_jax/config.py has them all. Flags:"""

import importlib
import os
import signal
import sys
from pathlib import Path

from lpt_jax import config as config_lib
from lpt_jax.command_line import define, parse
from lpt_jax.data import downloads
from lpt_jax.errors import InputError
from lpt_jax.huge_pages import use_huge_pages

SYSTEMS = {
    name: f"lpt_jax.systems.{name}" for name in ("profiles", "journeys", "knowledge", "peapod")
}  # config.system: its module
LACKS = {"journeys": ("audit", "judge", "study", "demo", "check")}  # modes that a system has not
LACKS["knowledge"] = LACKS["peapod"] = ("audit", "judge", "study", "demo", "write_profiles")
MODULES = {name: name for name in ("recommend", "demo", "export", "check")}  # a mode's module, if not train


def run(argv: list[str]) -> int | None:
    """Does what the command line says and returns the exit status; InputError if that can't be done."""
    if {"-h", "-help", "--help", "--helpshort", "--helpfull"} & set(argv):
        return print(__doc__, define().get_help(), sep="\n")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(downloads.cache("jax")))  # before jax is imported
    f, config, workdir = parse(argv)
    if f.mode in LACKS.get(config.system, ()):
        others = ", ".join(name for name in SYSTEMS if f.mode not in LACKS.get(name, ()))
        raise InputError(f"--mode={f.mode} is not for the system {config.system}: it is for {others}.")
    if f.run and config.system in LACKS:
        raise InputError(
            f"--run is not for the system {config.system}: other systems' TREC runs are scored beside profiles."
        )
    mode = importlib.import_module(f"lpt_jax.{MODULES.get(f.mode, 'train')}")  # wrong flags were told at once
    if f.mode == "check":
        return mode.main(config, f.topology, f.processes)
    asked = f.mode == "recommend" and mode.asked(f.user, f.history, f.profile, f.profile_file)
    devices = importlib.import_module("lpt_jax.devices")
    with devices.together(f.processes), config_lib.claimed(workdir, config, new=f.mode == "train"):
        run = importlib.import_module(SYSTEMS[config.system]), config, workdir
        {
            "train": lambda: mode.train(*run),
            "evaluate": lambda: mode.test_again(*run, f.run),
            "audit": lambda: mode.audit_again(*run),
            "judge": lambda: mode.judged(*run, f.tasks, f.judge, f.judge_model, f.judge_price),
            "study": lambda: mode.studied(*run, f.tasks, f.answers),
            "write_profiles": lambda: mode.write_profiles(*run, Path(f.output or workdir / "profiles.jsonl"), f.split),
            "recommend": lambda: print(mode.run(*run, *asked, f.k, f.history_weight, (f.rate or "", f.explain or ""))),
            "demo": lambda: mode.run(*run, f.host, f.port),
            "export": lambda: mode.main(*run, Path(f.export_to or workdir / "export")),
        }[f.mode]()


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; its exit status: 0, 1 for a check that fails, or 2 for wrong input."""
    try:
        return run(sys.argv if argv is None else argv) or 0
    except InputError as error:
        return print(f"lpt_jax: error: {error}", file=sys.stderr) or 2


if __name__ == "__main__":
    use_huge_pages()
    for stop in (signal.SIGINT, signal.SIGTERM):  # the training loop's own saves first
        signal.signal(stop, lambda number, _: sys.exit(128 + number))
    sys.exit(main())
