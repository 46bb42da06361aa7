"""One run over two processes on this machine: the numbers of one process, an end when a process is gone, and a way back.

Tolerance: as in test_sharding.py; a token may differ only where a uniform number falls within rounding of a cumulative
probability, and with this seed none does.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from lpt_jax import files
from lpt_jax.main import main
from tests.conftest import ROOT

SETTINGS = ["--config.contrastive.steps=3", "--config.policy.steps=4", "--config.trackers=", "--config.seed=2"]
SETTINGS += ["--config.contrastive.texts=profiles,summaries"]  # so that training's profiles are written by both
CONFIG = f"--config={ROOT}/configs/movielens.py:tiny"


def start(workdir, *flags, count=2):
    """The processes of a run, their output in files."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    environment["JAX_COMPILATION_CACHE_DIR"] = jax.config.jax_compilation_cache_dir
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "lpt_jax.main", CONFIG, *SETTINGS, f"--workdir={workdir}", *flags]
    started = []
    for number in range(count):
        with open(f"{workdir}.{number}.log", "a+") as log:
            named = [f"--processes=127.0.0.1:{port},{count},{number}"] if count > 1 else []
            started.append(subprocess.Popen([*command, *named], cwd=ROOT, env=environment, stdout=log, stderr=log))
    return started


def said(workdir, number):
    """What one process printed."""
    with open(f"{workdir}.{number}.log") as log:
        return log.read()


def finish(workdir, processes):
    """Waits for processes that end well."""
    for number, process in enumerate(processes):
        assert process.wait(300) == 0, said(workdir, number)[-3000:]


def numbers(workdir):
    """Records, profiles and results of a run."""
    records = files.read_jsonl(workdir / "metrics.jsonl")
    ours = sorted((workdir / "profiles").glob("*.jsonl"))
    return records, [files.read_jsonl(f) for f in ours], json.loads((workdir / "results.json").read_text())


def compare(ours, theirs):
    """Records, profiles and results alike."""
    places = [[(r["phase"], r["step"]) for r in records] for records in (ours[0], theirs[0])]
    assert places[0] == places[1]
    for name in ("loss", "reward", "kl", "val/ndcg"):
        values = [[r[name] for r in records if name in r] for records in (ours[0], theirs[0])]
        assert len(values[0]) > 1
        rtol = 1e-3 if name == "val/ndcg" else 1e-4  # sums in another order may swap two items that all but tie
        np.testing.assert_allclose(*values, rtol=rtol, atol=1e-5, err_msg=name)
    assert ours[1] == theirs[1] and len(ours[1]) > 3
    assert ours[2]["rows"] == theirs[2]["rows"] and ours[2]["counts"] == theirs[2]["counts"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("alone") / "run"
    finish(workdir, start(workdir, count=1))
    return numbers(workdir)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("both") / "run"
    finish(workdir, start(workdir))
    return workdir


def test_two_processes_do_what_one_does(alone, both):
    compare(numbers(both), alone)
    assert "protocol: " in said(both, 0) and "text/s" in said(both, 0)
    assert "protocol" not in said(both, 1) and "text/s" not in said(both, 1)  # the first speaks for all


def test_two_processes_write_profiles(both, tmp_path):
    finish(both, start(both, "--mode=write_profiles", "--split=validation", f"--output={tmp_path}/two.jsonl"))
    command = ["main", CONFIG, *SETTINGS, f"--workdir={both}", "--mode=write_profiles", "--split=validation"]
    assert main([*command, f"--output={tmp_path}/one.jsonl"]) == 0
    assert (tmp_path / "two.jsonl").read_text() == (tmp_path / "one.jsonl").read_text() != ""


@pytest.mark.parametrize("killed, last_words", [(1, "a process of the run is gone"), (0, "another task died")])
def test_a_process_is_killed_and_the_run_goes_on_with_one(alone, tmp_path, killed, last_words):
    """Without the first, which all meet at, jax itself ends the others: its words say so, not ours."""
    workdir = tmp_path / "run"
    processes = start(workdir)
    records = workdir / "metrics.jsonl"
    while not (records.exists() and '"policy"' in records.read_text()):
        assert processes[0].poll() is None, said(workdir, 0) + said(workdir, 1)
        time.sleep(0.05)
    processes[killed].kill()
    gone, other = time.monotonic(), 1 - killed
    assert processes[other].wait(120) not in (0, None, -signal.SIGKILL)
    assert time.monotonic() - gone < 60
    assert last_words in said(workdir, other), said(workdir, other)[-3000:]
    assert not (workdir / "results.json").exists()
    finish(workdir, start(workdir, count=1))
    assert "going on from checkpoint" in said(workdir, 0)
    compare(numbers(workdir), alone)


def test_one_that_finds_its_input_wrong_ends_all(both):
    """The first refuses the workdir, made with other settings, while the other waits for it there."""
    processes, begun = start(both, "--config.policy.eta=0.3"), time.monotonic()
    assert processes[0].wait(120) == 2 and "policy.eta was 1.0 and is 0.3" in said(both, 0)
    assert processes[1].wait(120) != 0 and time.monotonic() - begun < 90


@pytest.mark.parametrize("given", ["here", "host:1,two,0", "host:1,2"])
def test_wrong_numbers_are_told(given, tmp_path, capsys):
    assert main(["main", CONFIG, f"--workdir={tmp_path}/run", f"--processes={given}"]) == 2
    assert f"--processes={given!r} must be auto, or host:port,count,number" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
