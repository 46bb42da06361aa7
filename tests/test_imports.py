"""Imports follow the data's flow: no module imports one that comes after it."""

import re

from tests.conftest import ROOT

FLOW = """errors array_types trackers checkpoints devices config data models generation similarity
ranking metrics rewards learning recommender baselines report systems recommend main""".split()


def test_imports_follow_the_flow():
    for path in (ROOT / "lpt_jax").rglob("*.py"):
        here = path.relative_to(ROOT / "lpt_jax").with_suffix("").parts[0]
        for dotted, names in re.findall(
            r"^ *(?:from|import) lpt_jax\b(\S*)(?: import (.*))?", path.read_text(), re.M
        ):
            for name in (
                [dotted.split(".")[1]] if dotted else re.findall(r"(\w+)(?: as \w+)?", names)
            ):
                assert FLOW.index(name) <= FLOW.index(here), f"{path} imports {name}"
