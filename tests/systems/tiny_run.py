"""A very small training, in a process of its own that may kill itself at a given event.

python -m tests.systems.tiny_run WORKDIR [SIGNAL EVENT PART COUNT]: the signal comes at the COUNT-th audit event
EVENT (os.rename, os.mkdir, open, or lpt.sample: inside an RLSO step) that has PART in its arguments.
"""

import functools
import os
import signal
import sys
from pathlib import Path

from lpt_jax.config import default, finish, tiny
from lpt_jax.data import made_up

SMALL = {  # two phases of four steps on 40 users, every setting as small as its part still does something
    "trackers": "",
    "evaluation.baselines": "random",
    "audit.profiles": 2,
    "contrastive.steps": 4,
    "contrastive.learning_rate": 1e-2,
    "policy.steps": 4,
    "policy.learning_rate": 1e-2,
    "profile.max_tokens": 6,
    "checkpoint.every": 2,
}
USERS = 40
SEED = 5  # of main: contrastive learning's best state is then its second, neither its first nor its last


def small_config(changes=()):
    """The tiny config, made smaller; changes by dotted names."""
    config = tiny(default())
    for name, value in (SMALL | dict(changes)).items():
        *groups, key = name.split(".")
        functools.reduce(lambda part, group: part[group], groups, config)[key] = value
    return finish(config)


def small_world(users=USERS, world=made_up.world):
    """made_up.world with another number of users."""
    return functools.partial(world, users=users)


def recommender(config, workdir):
    """The recommender of a run of LangPTune, all its prompts made."""
    from lpt_jax.run import Run
    from lpt_jax.systems import profiles

    r = profiles.build(Run(config, Path(workdir)))
    r.prepare()
    return r


def main(workdir, number=0, event="", part="", count=1):
    from lpt_jax import trackers, train
    from lpt_jax.systems import profiles

    made_up.world = small_world()
    sample = trackers.Tracker.sample
    trackers.Tracker.sample = lambda *a: (sys.audit("lpt.sample", f"step {a[3]}"), sample(*a))
    seen = 0

    def hook(name, args):
        nonlocal seen
        if name == event and any(part in str(a) for a in args):
            seen += 1
            if seen == int(count):
                os.kill(os.getpid(), signal.Signals[number])

    if number:
        sys.addaudithook(hook)
    train.train(profiles, small_config({"seed": SEED}), Path(workdir))


if __name__ == "__main__":
    main(*sys.argv[1:])
