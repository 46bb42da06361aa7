"""Imports follow the data's flow: no module imports one that comes after it."""

import ast

from tests.conftest import ROOT

FLOW = """errors array_types trackers checkpoints devices config data models generation similarity ranking metrics rewards
learning recommender baselines evaluate report systems recommend export demo sweep main""".split()


def test_imports_follow_the_flow():
    for path in (ROOT / "lpt_jax").rglob("*.py"):
        here = path.relative_to(ROOT / "lpt_jax").with_suffix("").parts[0]
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [a.name for a in node.names]
                if isinstance(node, (ast.Import, ast.ImportFrom))
                else []
            )
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{name}" for name in names]
            for name in (n for n in names if n.startswith("lpt_jax.") and here != "__init__"):
                assert FLOW.index(name.split(".")[1]) <= FLOW.index(here), f"{path} imports {name}"
