"""Flags -> config -> mode: python -m lpt_jax.main --config=configs/movielens.py[:tiny] [--mode=train]

Any setting of the config can be changed, as in --config.policy.eta=0.5; lpt_jax/config.py has them all. Flags:
"""

import os
import pathlib
import re
import signal
import sys

from absl import flags

from lpt_jax import config as config_lib
from lpt_jax.errors import InputError

MODES = ["train", "evaluate", "write_profiles", "recommend"]


def define() -> flags.FlagValues:
    """The command line's flags, not yet parsed; none is global, so that main() can be called often."""
    f = flags.FlagValues()
    f.set_gnu_getopt(True)  # flags may come in any order
    flags.DEFINE_string(
        "config", None, "a file of configs/, and a colon and its variant if wanted", f
    )
    flags.DEFINE_enum("mode", "train", MODES, "what to do", f)
    flags.DEFINE_string(
        "workdir", None, "where the run is kept; default: runs/<the config's name>[-<overrides>]", f
    )
    # a flag of one mode says so first, and is refused in the others
    flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "write_profiles: whose", f)
    flags.DEFINE_string(
        "output", None, "write_profiles: the .jsonl file; default: profiles.jsonl in the workdir", f
    )
    flags.DEFINE_string("user", None, "recommend: a user's id", f)
    flags.DEFINE_string(
        "history", None, "recommend: item ids or titles, oldest first, with commas between them", f
    )
    flags.DEFINE_string("profile", None, "recommend: a profile's text", f)
    flags.DEFINE_string("profile_file", None, "recommend: a file with a profile's text", f)
    flags.DEFINE_integer("k", 10, "recommend: how many items", 1, flag_values=f)
    return f


def parse(argv: list[str]) -> tuple:
    """The flags, the checked and locked config, and the workdir; InputError with one sentence for what is wrong."""
    f, overrides = define(), {}
    try:
        rest = f(argv, known_only=True)[1:]
    except flags.Error as error:
        raise InputError(f"{error}; --help lists the flags.") from None
    while rest:
        arg = rest.pop(0)
        override = re.fullmatch(r"--?(no)?config\.([^=]+)(?:=(.*))?", arg, re.DOTALL)
        if not override:
            raise InputError(f"{arg!r} is not known; --help lists the flags.")
        no, name, value = override.groups()
        if value is None:  # --noconfig.whiten, --config.seed 1, --config.whiten
            value = (
                "false" if no else rest.pop(0) if rest and not rest[0].startswith("--") else "true"
            )
        overrides[name] = value
    for name in f:
        mode = next((m for m in MODES if f"{m}: " in f[name].help), f.mode)
        if f[name].present and mode != f.mode:
            raise InputError(f"--{name} is for --mode={mode}, and the mode is {f.mode}.")
    config = config_lib.load(f.config or "", overrides)
    return f, config, pathlib.Path(f.workdir or config_lib.default_workdir(config, overrides))


def run(argv: list[str]) -> None:
    """Does what the command line says; InputError if that can't be done."""
    if {"-h", "-help", "--help", "--helpshort", "--helpfull"} & set(argv):
        return print(__doc__, define().get_help(), sep="")
    f, config, workdir = parse(argv)
    import jax  # here and below, so that wrong flags are told at once

    from lpt_jax import recommend
    from lpt_jax.systems import profiles

    asked = (
        recommend.asked(f.user, f.history, f.profile, f.profile_file)
        if f.mode == "recommend"
        else ()
    )
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/lpt_jax/jax"))
    with config_lib.claimed(workdir, config, new=f.mode == "train"):
        if f.mode == "recommend":
            print(recommend.run(config, workdir, *asked, f.k))
        elif f.mode == "write_profiles":
            profiles.write_profiles(
                config, workdir, pathlib.Path(f.output or workdir / "profiles.jsonl"), f.split
            )
        else:
            {"train": profiles.train, "evaluate": profiles.evaluate}[f.mode](config, workdir)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit status: 0, 2 for wrong input, 130 when interrupted."""
    try:
        run(sys.argv if argv is None else argv)
    except InputError as error:
        print(f"lpt_jax: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "lpt_jax: interrupted; the same command goes on from the last checkpoint.",
            file=sys.stderr,
        )
        return 130
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the training loop saves first
    sys.exit(main())
