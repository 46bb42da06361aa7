"""Imports follow the data's flow: no module imports one that comes after it."""

import ast

from tests.conftest import ROOT

FLOW = """errors files huge_pages array_types trackers checkpoints devices config data models generation similarity
ranking metrics trec rewards learning recommender baselines report evaluate systems recommend demo export check main""".split()


def test_imports_follow_the_flow():
    for path in (ROOT / "lpt_jax").rglob("*.py"):
        here = path.relative_to(ROOT / "lpt_jax").with_suffix("").parts[0]
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "lpt_jax":
                for name in (f"{node.module}.{a.name}".split(".")[1] for a in node.names):
                    assert FLOW.index(name) <= FLOW.index(here), f"{path} imports {name}"
