"""The command line's flags, and what they say: the config, the workdir, the mode."""

from pathlib import Path

from absl import flags

from lpt_jax import config as config_lib
from lpt_jax.errors import InputError

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
    "rate": "recommend: an item's id or title, of which --user's stars are told; of systems that learn to",
    "explain": "recommend: an item's id or title, of which is said why --user would choose it; of systems that learn to",
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
    flags.DEFINE_enum(
        "split",
        "test",
        ["train", "validation", "test", "all"],
        "write_profiles: whose; all: of everything known of every user",
        f,
    )
    flags.DEFINE_float("history_weight", 0.0, "recommend: of the latest items beside the profile", 0.0, flag_values=f)
    flags.DEFINE_integer("tasks", 50, "judge: or study: how many test users are asked about at most", 2, flag_values=f)
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
    for name in f:
        modes = [mode for mode in MODES if f"{mode}: " in f[name].help]
        if f[name].present and modes and f.mode not in modes:
            raise InputError(f"--{name} is for --mode={' and --mode='.join(modes)}, and the mode is {f.mode}.")
    config = config_lib.load(f.config or "", overrides)
    return f, config, Path(f.workdir or config_lib.default_workdir(config, overrides))
