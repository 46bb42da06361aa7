"""Flags -> config -> mode: python -m lpt_jax.main --config=configs/movielens.py[:tiny] [--mode=train]

Any setting can be changed, as in --config.policy.eta=0.5; lpt_jax/config.py has them all. Flags:"""

import importlib
import os
import re
import signal
import sys
from pathlib import Path

from absl import flags

from lpt_jax import config as config_lib
from lpt_jax.data import downloads
from lpt_jax.errors import InputError
from lpt_jax.huge_pages import use_huge_pages

SYSTEMS = {"profiles": "lpt_jax.systems.profiles"}  # config.system: its module
MODULES = {name: name for name in ("recommend", "demo", "export", "check")}  # a mode's module, if not train
MODES = ["train", "evaluate", "audit", "judge", "study", "write_profiles", "recommend", "demo", "export", "check"]
STRINGS = {  # a flag of one mode says so first, and is refused in the others
    "config": "a file of configs/, and a colon and its variant if wanted",
    "workdir": "where the run is kept; default: runs/<the config's name>[-<overrides>]",
    "output": "write_profiles: a .jsonl or .parquet file; default: profiles.jsonl in the workdir",
    "export_to": "export: a new folder for the models' folders; default: export in the workdir",
    "run": "evaluate: another system's TREC run, to be scored on the same test",
    "judge": "judge: an OpenAI-compatible endpoint, as http://localhost:8000/v1 (its key from LPT_JAX_JUDGE_KEY), or local:MODEL",
    "judge_model": "judge: the model that the endpoint is to use",
    "judge_price": "judge: dollars per million tokens asked and answered, as 0.15,0.6, so that the cost is told",
    "answers": "study: files that people's forms saved, with commas between them, or a pattern: they are scored",
    "user": "recommend: a user's id",
    "history": "recommend: item ids or titles, oldest first, with commas between them",
    "profile": "recommend: a profile's text",
    "profile_file": "recommend: a file with a profile's text",
    "host": "demo: who may connect; default 127.0.0.1: this machine alone",
    "port": "demo: default 7860",
    "processes": "several processes: auto (TPU slices, SLURM), or the first's host:port, their count, this one's number",
    "topology": "check: the machine, which need not be there: v5e:2x4, v5p:2x2x1, v6e:2x4, h100:8, ...",
}


def define() -> flags.FlagValues:
    """The command line's flags, not yet parsed; none is global: main() can be called often."""
    f = flags.FlagValues()
    f.set_gnu_getopt(True)  # flags may come in any order
    for name, text in STRINGS.items():
        flags.DEFINE_string(name, None, text, f)
    flags.DEFINE_enum("mode", "train", MODES, "what to do", f)
    flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "write_profiles: whose", f)
    flags.DEFINE_float("history_weight", 0.0, "recommend: of the latest items beside the profile", 0.0, flag_values=f)
    flags.DEFINE_integer(
        "tasks", 50, "judge, study: how many test users' profiles are asked about at most", 2, flag_values=f
    )
    flags.DEFINE_integer("k", 10, "recommend: how many items", 1, flag_values=f)
    return f


def parse(argv: list[str]) -> tuple:
    """The flags, the checked and locked config, and the workdir; InputError if any is wrong."""
    f = define()
    try:
        rest = f(argv, known_only=True)[1:]
    except flags.Error as error:
        raise InputError(f"{error}; --help lists the flags.") from None
    overrides = config_lib.overrides_of(rest)
    for name in (n for n in f if f[n].present):
        named = (part.split(", ") for part in re.findall(r"(\w+(?:, \w+)*): ", f[name].help))
        modes = next((names for names in named if set(names) <= set(MODES)), MODES)
        if f.mode not in modes:
            raise InputError(f"--{name} is for --mode={' and --mode='.join(modes)}, and the mode is {f.mode}.")
    config = config_lib.load(f.config or "", overrides)
    return f, config, Path(f.workdir or config_lib.default_workdir(config, overrides))


def run(argv: list[str]) -> int | None:
    """Does what the command line says and returns the exit status; InputError if that can't be done."""
    if {"-h", "-help", "--help", "--helpshort", "--helpfull"} & set(argv):
        return print(__doc__, define().get_help(), sep="\n")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(downloads.cache("jax")))  # before jax is imported
    f, config, workdir = parse(argv)
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
            "recommend": lambda: print(mode.run(*run, *asked, f.k, f.history_weight)),
            "demo": lambda: mode.run(*run, f.host, f.port),
            "export": lambda: mode.export(*run, Path(f.export_to or workdir / "export")),
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
