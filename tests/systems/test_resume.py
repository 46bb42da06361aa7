"""A real tiny training, killed again and again: it ends with the very numbers of one that never was."""

import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from lpt_jax import files
from lpt_jax.checkpoints import Checkpoints
from tests.conftest import ROOT

# Where each start dies, in this order; steps 1-4 are contrastive, 5-8 RLSO, and every second one is saved.
KILLS = [
    ("SIGKILL", "open", "0-train-0.jsonl", 3),  # profiles are being written, one batch is in the file
    ("SIGKILL", "os.rename", "last/2", 1),  # the first checkpoint is written but not yet whole
    ("SIGTERM", "os.rename", "0-contrastive/2", 1),  # asked to stop inside the third step's predecessor
    ("SIGKILL", "os.mkdir", "1-policy", 1),  # between the phases
    ("SIGKILL", "lpt.sample", "step 3", 1),  # inside an RLSO step, its weights moved and not logged
    ("SIGKILL", "os.rename", "last/9", 1),  # the policy's last step is being saved
    ("SIGKILL", "open", "cl_rlso-8-test.jsonl", 1),  # the test
]


def start(workdir, *kill):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    environment["JAX_COMPILATION_CACHE_DIR"] = jax.config.jax_compilation_cache_dir
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    command = [sys.executable, "-m", "tests.systems.tiny_run", str(workdir), *map(str, kill)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr[-3000:]


def everything(workdir):
    """All numbers a run leaves: records, samples, profiles, results and the arrays of every checkpoint."""
    found = {}
    for file in [*workdir.glob("*.jsonl"), *workdir.glob("profiles/*.jsonl")]:
        for i, record in enumerate(files.read_jsonl(file)):
            found[file.name, i] = {k: v for k, v in record.items() if not k.startswith("seconds/")}
    results = json.loads((workdir / "results.json").read_text())
    found["results"] = {name: results[name] for name in ("rows", "gains", "protocol", "config")}
    for folder in (workdir / "checkpoints").iterdir():
        kept = Checkpoints(folder, 2)
        args = ocp.args.Composite(state=ocp.args.StandardRestore())
        state = kept.manager.restore(kept.latest(), args=args)["state"]
        for path, array in jax.tree_util.tree_leaves_with_path(state):
            array = np.asarray(array)
            found[folder.name, kept.latest(), jax.tree_util.keystr(path)] = (array.dtype, array.shape, array.tobytes())
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    status, said = start(workdir)
    assert status == 0, said
    return everything(workdir)


def test_killed_again_and_again_ends_with_the_same_numbers(whole, tmp_path):
    for kill in KILLS:
        status, said = start(tmp_path, *kill)
        if kill[0] == "SIGKILL":
            assert status == -signal.SIGKILL, said
        else:
            assert status == 143 and "stopped as asked; saved step" in said and "The same command goes on" in said, said
        if kill[1] == "open" and kill[3] > 1:  # and cut the line that was being written
            with open(tmp_path / "profiles" / kill[2], "a", encoding="utf-8") as file:
                file.write('{"row": 3, "user": "us')
    status, said = start(tmp_path)
    assert status == 0, said
    found = everything(tmp_path)
    assert found.keys() == whole.keys()
    assert [name for name in found if found[name] != whole[name]] == []
    moved = [name for name in found if name[0] == "last" and "'lm'" in name[2]]
    assert len(moved) > 5 and ("metrics.jsonl", 9) in found
