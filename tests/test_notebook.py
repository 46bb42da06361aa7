"""The notebook runs from its first cell to its last, but for the installation."""

import json
import shutil

import pytest

from tests.conftest import ROOT

FILE = ROOT / "experiments/colab_quickstart.ipynb"


def test_the_notebook_is_short_and_clean():
    cells = json.loads(FILE.read_text())["cells"]
    assert len(cells) <= 12
    assert all(cell.get("outputs", []) == [] and cell.get("execution_count") is None for cell in cells)
    (install,) = [cell for cell in cells if "install" in cell["metadata"].get("tags", [])]
    assert "jax==0.10.2" in "".join(install["source"])


def test_the_notebook_runs(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="needs nbclient")
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient")
    pytest.importorskip("ipykernel", reason="needs ipykernel")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    notebook = nbformat.read(FILE, 4)
    for cell in notebook.cells:
        if "install" in cell.metadata.get("tags", []):
            cell.source = ""
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    shown = json.dumps([cell.get("outputs") for cell in notebook.cells])
    assert "CpuDevice(id=0)" in shown and "What each step gained" in shown and "because of:" in shown
    assert "embedder/modules.json" in shown and (tmp_path / "runs/notebook/results.json").exists()
    assert "error" not in {output["output_type"] for cell in notebook.cells for output in cell.get("outputs", [])}
