"""The command line: flags, modes, exit statuses, and the default workdir."""

import pathlib
import subprocess
import sys
import types

import pytest

from lpt_jax import main as main_lib
from lpt_jax.config import default, default_workdir
from lpt_jax.errors import InputError
from lpt_jax.main import main, parse
from tests.conftest import ROOT

CONFIG = f"--config={ROOT}/configs/movielens.py:tiny"


def parsed(*argv):
    return parse(["main", *argv])


def test_main_stays_short():
    assert len(pathlib.Path(main_lib.__file__).read_text().splitlines()) <= 105


def test_overrides_in_any_form_and_order():
    forms = (
        "--config.seed=3",
        "--config.policy.eta",
        "0.5",
        CONFIG,
        "--noconfig.policy.keep_best",
        "--config.policy.whiten",
    )
    flags, config, workdir = parsed(*forms, "--mode", "evaluate")
    assert (config.seed, config.policy.eta, config.policy.keep_best, config.policy.whiten) == (3, 0.5, False, True)
    assert flags.mode == "evaluate" and config.is_locked
    assert str(workdir) == "runs/movielens_tiny-policy.eta=0.5,policy.keep_best=false,policy.whiten=true,seed=3"


def test_workdir_given():
    assert parsed(CONFIG, "--workdir=here/x")[2] == pathlib.Path("here/x")


def test_default_workdir_is_a_safe_short_name():
    config = default()
    config.name = "../etc"
    assert str(default_workdir(config, {})) == "runs/_etc"
    long = default_workdir(default(), {"data.path": "/a" * 100})
    assert len(long.name) == 100 and long.parent == pathlib.Path("runs")
    assert long != default_workdir(default(), {"data.path": "/a" * 99 + "/b"})


def test_flags_belong_to_their_mode():
    with pytest.raises(InputError, match="--user is for --mode=recommend, and the mode is train"):
        parsed(CONFIG, "--user=3")
    with pytest.raises(InputError, match="--split is for --mode=write_profiles"):
        parsed(CONFIG, "--mode=recommend", "--split=train")
    assert parsed(CONFIG, "--mode=recommend", "--user=3", "--k=5")[0].k == 5


@pytest.fixture
def system(monkeypatch, tmp_path):
    """Stands in for train.py; calls are kept in .calls."""
    fake = types.SimpleNamespace(calls=[])
    for name, mode in (("train", "train"), ("test_again", "evaluate"), ("write_profiles", "write_profiles")):
        setattr(fake, name, lambda *a, mode=mode: fake.calls.append((mode, *filter(None, a[2:]))))
    monkeypatch.setitem(sys.modules, "lpt_jax.train", fake)
    monkeypatch.chdir(tmp_path)
    return fake


def test_each_mode_calls_the_system(system, tmp_path, capsys):
    workdir = tmp_path / "w"
    (workdir / "checkpoints").mkdir(parents=True)
    modes = [[], ["--mode=evaluate"], ["--mode=write_profiles", "--split=train"]]
    assert [main(["main", CONFIG, f"--workdir={workdir}", *mode]) for mode in modes] == [0, 0, 0]
    assert system.calls == [
        ("train", workdir),
        ("evaluate", workdir),
        ("write_profiles", workdir, workdir / "profiles.jsonl", "train"),
    ]
    assert capsys.readouterr().err == ""


def test_only_training_begins_a_run(system, tmp_path, capsys):
    assert main(["main", CONFIG, "--mode=evaluate"]) == 2
    assert "There is no run in runs/movielens_tiny: train first" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [] and system.calls == []


def test_a_bug_is_not_hidden(system, monkeypatch):
    monkeypatch.setattr(system, "train", lambda *_: {}["missing"])
    with pytest.raises(KeyError):
        main(["main", CONFIG])


def test_as_a_command():
    command = [sys.executable, "-m", "lpt_jax.main"]
    shown = subprocess.run([*command, "--helpshort"], capture_output=True, text=True, cwd=ROOT)
    assert shown.returncode == 0 and "--profile_file" in shown.stdout and "(default: '10')" in shown.stdout
    wrong = subprocess.run([*command, CONFIG, "--config.polcy.eta=1"], capture_output=True, text=True, cwd=ROOT)
    assert wrong.returncode == 2 and wrong.stdout == ""
    assert wrong.stderr == (
        "lpt_jax: error: There is no setting --config.polcy.eta; the nearest is --config.policy.eta.\n"
    )
