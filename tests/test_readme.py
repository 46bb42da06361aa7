"""What the README says can be typed, and what it links to is there."""

import json
import re
import shlex
import sys
import types

import numpy as np
import pytest

from lpt_jax import files, rewards
from lpt_jax.main import main, parse
from lpt_jax.systems import profiles
from tests.conftest import ROOT
from tests.systems.tiny_run import small_config

README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^python -m lpt_jax\.main (.*)$", README, re.M)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(sys.modules, "my_reward", types.SimpleNamespace(short_and_good=len))
    parse(["main", *shlex.split(command)])


def test_the_tree_names_every_file():
    tree = README[README.index("```\nconfigs/") :].split("```")[1]
    files = {
        path.relative_to(ROOT / "lpt_jax").as_posix()
        for path in (ROOT / "lpt_jax").rglob("*.py")
        if path.stat().st_size
    }
    folder, named = "", set()
    for line in tree[tree.index("lpt_jax/\n") :].splitlines()[1:]:
        depth, name = len(line) - len(line.lstrip()), line.split()[0] if line.strip() else ""
        folder = folder if depth > 2 else name if name.endswith("/") else ""
        named |= {folder + name} if name.endswith(".py") else set()
    assert named == files - {"__init__.py"}


def test_every_metric_is_explained(tmp_path):
    """Of a run in which everything is measured."""
    config = small_config({"contrastive.steps": 1, "policy.steps": 1, "evaluation.bootstrap": 20})
    results = profiles.train(config, tmp_path)
    found = {name for record in files.read_jsonl(tmp_path / "metrics.jsonl") for name in record}
    found |= {name for row in results["rows"].values() for name in row}
    found -= {"iteration", "phase", "step", "global_step"}
    section = README[README.index("## What is measured") :].split("\n## ")[0]
    explained = set(re.findall(r"`([^`]+)`", section))
    explained |= {f"seconds{part}" for part in explained if part.startswith("/")}
    plain = {re.sub(r"@\d+", "@k", name.removeprefix("val/")) for name in found}
    assert {name for name in plain if name not in explained} == set()


def test_the_reward_of_the_readme_works(tmp_path, monkeypatch):
    (code,) = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)
    (tmp_path / "my_reward.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = rewards.metric("my_reward:short_and_good", np.array([[[1], [3]]]), np.zeros((1, 2, 1)), [["a b", "c"]], 9)
    assert found.tolist()[0] == pytest.approx([1 - 0.002, 0.5 - 0.001])
    sys.modules.pop("my_reward")


def test_ones_own_data_as_the_readme_names_its_columns(tmp_path, monkeypatch):
    """A file with those columns, read by that command, with the tiny models."""
    (command,) = [command for command in COMMANDS if "source=table" in command]
    monkeypatch.chdir(tmp_path)
    rng, lines = np.random.default_rng(0), ["reader,isbn,date,stars,title"]
    for reader in range(40):
        books = enumerate(rng.permutation(30)[:10], 1)
        lines += [f"r{reader},b{b},2020-{1 + reader // 4:02d}-{day:02d},{1 + b % 5},Book {b}" for day, b in books]
    (tmp_path / "ratings.csv").write_text("\n".join(lines) + "\n")
    arguments = [a.replace("configs/movielens.py", f"{ROOT}/configs/movielens.py:tiny") for a in shlex.split(command)]
    small = ["contrastive.steps=1", "policy.steps=1", "evaluation.bootstrap=20", "evaluation.baselines=popularity"]
    assert main(["main", *arguments, *(f"--config.{one}" for one in small), "--workdir=run"]) == 0
    assert (tmp_path / "run/results.json").exists()
    assert "books" in json.loads((tmp_path / "run/results.json").read_text())["protocol"]


def test_make_targets_and_links_are_there():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"\bmake (\w+)", README))
    assert targets >= {"quickstart", "test"}
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert links and all((ROOT / link).exists() for link in links)
    assert {f"configs/{path.name}" for path in (ROOT / "configs").glob("*.py")} <= set(links)
