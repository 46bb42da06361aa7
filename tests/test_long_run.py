"""Runs side by side within a limit of minutes, and models carried in pieces."""

import json

from experiments import long_run
from lpt_jax.data import carriers
from tests.conftest import ROOT
from tests.test_sweep import CONFIG

EXPERIMENT = """'''Does it run?'''
CONFIG, SEEDS = "small.py", (0,)
FIRST = {"phases": "contrastive"}
CHANGES = {"phases": "policy", "policy.steps": 1}
RUNS = {"NDCG": {}, "MRR": {"policy.reward": "mrr"}}
"""


def test_what_is_packed_arrives_whole(tmp_path, monkeypatch, capsys):
    """In pieces, out of order and in two transfers; a damaged piece is refused."""
    monkeypatch.setenv("LPT_JAX_CACHE", str(tmp_path / "here"))
    content = {}
    for number, name in enumerate(carriers.QUICKSTART):
        folder = carriers.folder_of(name)
        file = folder / "model/weights"
        file.parent.mkdir(parents=True)
        file.write_bytes(bytes(range(256)) * (20 + number))
        content[f"{folder.name}/model/weights"] = file.read_bytes()
    names = long_run.pack(tmp_path / "pieces", size=9000)
    assert len(names) > 2 and {f.name for f in (tmp_path / "pieces").iterdir()} == {*names, "pieces.json"}
    monkeypatch.setenv("LPT_JAX_CACHE", str(tmp_path / "there"))
    second = tmp_path / "second"
    second.mkdir()
    (tmp_path / "pieces" / names[0]).rename(second / names[0])
    assert long_run.take(tmp_path / "pieces") == names[:1]
    (second / names[1]).write_bytes(b"damaged")
    assert long_run.main(["long_run", f"--take={second}"]) == 2 and "is damaged" in capsys.readouterr().err
    (second / names[1]).unlink()
    assert long_run.main(["long_run", f"--take={second}"]) == 0
    assert {name: (tmp_path / "there/carriers" / name).read_bytes() for name in content} == content


def test_an_experiment_within_its_minutes(tmp_path, monkeypatch, capsys):
    """Too few of them start nothing; then the run that others begin from, these two at once, and the answer."""
    (tmp_path / "small.py").write_text(CONFIG)
    (tmp_path / "asked.py").write_text(EXPERIMENT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert long_run.main(["long_run", "asked.py", "--minutes=0.1"]) == 1
    assert "3 runs have not finished" in capsys.readouterr().out and not list(tmp_path.glob("runs/*"))
    assert long_run.main(["long_run", "asked.py", "--minutes=10", "--at_once=2", "--out=out"]) == 0
    found = json.loads((tmp_path / "asked.json").read_text())
    assert list(found["runs"]) == ["NDCG", "MRR"]
    assert (
        len(list((tmp_path / "out").glob("*/results.json")))
        == 3
        == len(list((tmp_path / "out").glob("*/metrics.jsonl")))
    )


def test_what_is_no_experiment(tmp_path, capsys):
    assert long_run.main(["long_run"]) == 2 and "Name one experiment" in capsys.readouterr().err
    assert long_run.main(["long_run", str(tmp_path / "none.py")]) == 2 and "There is no file" in capsys.readouterr().err
