"""Imports follow the data's flow: no module imports one that comes after it, and none imports its way back to itself."""

import ast
import graphlib

import pytest

from tests.conftest import ROOT

# a system's settings come before config.py, which asks for them, and the system itself after all it is made of
FLOW = """errors files huge_pages array_types trackers checkpoints devices topologies metrics text_metrics text_audit rewards journeys
systems.shared_settings systems.profiles_settings systems.journeys_settings systems.knowledge_settings systems.peapod_settings config data run models generation
similarity ranking search trec extraction naming recommender rewarder audit learning baselines item_writer personal_writer profile_prompts report evaluate journeys_evaluation
journeys_report knowledge_evaluation judge study train systems recommend demo export systems.journeys_use systems.journeys
systems.knowledge systems.peapod profiles_programs tasks_programs check command_line main""".split()


def imports(root):
    """{module: the modules of lpt_jax that it imports anywhere, inside functions too}, by names as "data.reviews"."""
    paths = {".".join(path.relative_to(root).with_suffix("").parts): path for path in (root / "lpt_jax").rglob("*.py")}
    paths = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    found = {}
    for here, path in paths.items():
        named = []
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                named += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{path}:{node.lineno} imports by dots: say from lpt_jax"
                names = (f"{node.module}.{alias.name}" for alias in node.names)
                named += [name if name in paths else node.module for name in names]
        found[here] = {name for name in named if name in paths}
    return {short(here): {short(name) for name in names} for here, names in found.items()}


def short(module):
    return module.removeprefix("lpt_jax").removeprefix(".")


def place(module):
    """Where in FLOW a module is: at its own name, else at its package's."""
    return FLOW.index(module if module in FLOW else module.partition(".")[0])


def circle(graph):
    """Modules each of which imports the next one, the last being the first; [] where there are none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1][::-1]  # as there a module follows what it imports
    return []


def test_imports_follow_the_flow():
    for here, names in imports(ROOT).items():
        for name in filter(None, names):
            assert place(name) <= place(here), f"{here} imports {name}, which comes later"


def test_no_module_imports_its_way_back_to_itself():
    assert not (found := circle(imports(ROOT))), "these import each other: " + " -> ".join(found)


@pytest.mark.parametrize(
    "lazy", ["from lpt_jax.data import b", "import lpt_jax.data.b", "from lpt_jax.data.b import x"]
)
def test_a_circle_is_found_where_one_import_is_inside_a_function(tmp_path, lazy):
    (tmp_path / "lpt_jax/data").mkdir(parents=True)
    (tmp_path / "lpt_jax/__init__.py").touch()
    (tmp_path / "lpt_jax/a.py").write_text(f"def f():\n    {lazy}\n")
    (tmp_path / "lpt_jax/data/b.py").write_text("from lpt_jax import c\n")
    (tmp_path / "lpt_jax/c.py").write_text("import json\n")
    assert imports(tmp_path) == {"": set(), "a": {"data.b"}, "data.b": {"c"}, "c": set()}
    assert circle(imports(tmp_path)) == []
    (tmp_path / "lpt_jax/c.py").write_text("from lpt_jax.a import f\n")
    found = circle(imports(tmp_path))
    assert sorted(zip(found, found[1:])) == [("a", "data.b"), ("c", "a"), ("data.b", "c")]
