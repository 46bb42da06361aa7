"""The wheel has all that a run needs, outside a checkout."""

import os
import shutil
import subprocess
import sys

from tests.conftest import ROOT


def test_the_wheel_runs_outside_the_checkout(tmp_path):
    def call(*arguments, **environment):
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    source = tmp_path / "source"  # a build leaves files beside what it builds
    for folder in ("lpt_jax", "configs"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    pip = ("-m", "pip", "--disable-pip-version-check", "-q")
    call(*pip, "wheel", "--no-deps", "-w", "wheels", str(source))
    (wheel,) = (tmp_path / "wheels").iterdir()
    call(*pip, "install", "--no-deps", "--target", "installed", str(wheel))
    there = {"PYTHONPATH": str(tmp_path / "installed"), "XLA_FLAGS": ""}
    place = call("-c", "import lpt_jax; print(lpt_jax.__file__)", **there)
    assert place.startswith(str(tmp_path / "installed"))
    few = ("--config.contrastive.steps=1", "--config.policy.steps=1", "--config.evaluation.baselines=popularity")
    out = call("-m", "lpt_jax.main", "--config=configs/movielens.py:tiny", "--workdir=run", *few, **there)
    assert "zero_shot->sft_cl_rlso" in out and (tmp_path / "run/report.html").exists()
    assert "--[no]collect" in call(str(ROOT / "experiments/sweep.py"), "--help", **there)
