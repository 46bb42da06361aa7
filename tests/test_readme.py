"""What the README says can be typed, and what it links to is there."""

import re
import shlex

import pytest

from lpt_jax.main import parse
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^python -m lpt_jax\.main (.*)$", README, re.M)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    parse(["main", *shlex.split(command)])


def test_make_targets_and_links_are_there():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"\bmake (\w+)", README))
    assert targets >= {"quickstart", "test"}
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert links and all((ROOT / link).exists() for link in links)
    assert {f"configs/{path.name}" for path in (ROOT / "configs").glob("*.py")} <= set(links)
