"""What a run writes survives a kill and a resume without gaps, doubles or half lines."""

import json
import sys
import types

import numpy as np
import pytest

from lpt_jax import files, trackers
from lpt_jax.errors import InputError

PLACES = [(0, "contrastive", s, s) for s in (1, 2)] + [(0, "policy", s, 2 + s) for s in (0, 1, 2)]
PLACES += [(1, "contrastive", 1, 5), (1, "policy", 1, 6)]


def places(path):
    keys = ("iteration", "phase", "step", "global_step")
    return [tuple(record[key] for key in keys if key in record) for record in files.read_jsonl(path)]


def test_records_are_plain_json(tmp_path):
    tracker = trackers.Tracker(tmp_path)
    values = {"loss": np.float32(0.5), "bad": float("nan"), "kl": np.array(np.inf), "tied": 3}
    tracker.log(0, "policy", 1, 1, values)
    tracker.sample(0, "policy", 1, {"user": "ü\u2028\ud800", "after": {"ranks": [np.int32(3), np.nan]}})
    line = (tmp_path / "metrics.jsonl").read_text()  # before close: flushed
    assert json.loads(line, parse_constant=pytest.fail) == {
        **{"iteration": 0, "phase": "policy", "step": 1, "global_step": 1},
        **{"loss": 0.5, "bad": None, "kl": None, "tied": 3, "not_finite": ["bad", "kl"]},
    }
    sample = files.read_jsonl(tmp_path / "samples.jsonl")[0]
    assert sample["user"] == "ü\u2028\ud800" and sample["after"] == {"ranks": [3, None]}
    tracker.close()


@pytest.mark.parametrize("kept", [0, 1, 3, len(PLACES)])
def test_resume_drops_what_came_later(tmp_path, kept):
    tracker, sizes = trackers.Tracker(tmp_path), {"metrics": 0, "samples": 0}
    for number, place in enumerate(PLACES, 1):
        tracker.log(*place, {"loss": 1.0})
        tracker.sample(*place[:3], {"user": "ü"})
        sizes = tracker.written() if number == kept else sizes
    tracker.close()
    tracker = trackers.Tracker(tmp_path)  # another process
    tracker.resume(sizes, kept)
    tracker.log(2, "policy", 9, 99, {"loss": 2.0})
    assert places(tmp_path / "metrics.jsonl") == [*PLACES[:kept], (2, "policy", 9, 99)]
    assert places(tmp_path / "samples.jsonl") == [place[:3] for place in PLACES[:kept]]
    tracker.close()


def test_resume_of_files_that_were_moved_away(tmp_path):
    tracker = trackers.Tracker(tmp_path)
    tracker.resume({"metrics": 100, "samples": 10}, 3)
    tracker.log(*PLACES[3], {"loss": 1.0})
    assert places(tmp_path / "metrics.jsonl") == [PLACES[3]]
    tracker.close()


def test_a_line_cut_short_by_a_kill_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = json.dumps({"iteration": 0, "phase": "policy", "step": 1, "global_step": 1})
    path.write_text(whole + '\n{"iteration": 0, "ph')
    assert len(files.read_jsonl(path)) == 1
    tracker = trackers.Tracker(tmp_path)
    tracker.resume({"metrics": len(whole) + 1, "samples": 0}, 1)
    tracker.log(0, "policy", 2, 2, {})
    assert [p[2] for p in places(path)] == [1, 2]
    tracker.close()
    path.write_text("{\n" + whole + "\n")
    with pytest.raises(InputError, match="metrics.jsonl:1 is not JSON"):
        files.read_jsonl(path)


def test_tensorboard_events(tmp_path):
    pytest.importorskip("tensorboardX", reason="needs tensorboardX")
    tracker = trackers.Tracker(tmp_path, ["tensorboard"])
    tracker.log(0, "policy", 1, 1, {"val/ndcg": 0.25, "bad": np.nan})
    tracker.resume(tracker.written(), 1)
    tracker.log(0, "policy", 2, 2, {"val/ndcg": 0.5})
    tracker.close()
    written = b"".join(p.read_bytes() for p in sorted((tmp_path / "tensorboard").iterdir()))
    assert written.count(b"policy/val/ndcg") == 2 and b"policy/bad" not in written


def test_trackio_goes_on_with_the_same_run(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="needs trackio")
    from trackio.sqlite_storage import SQLiteStorage

    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio")
    for step in (1, 2):  # a run, and its resume in another process
        tracker = trackers.Tracker(tmp_path / "run", ["trackio"], {"policy": {"eta": 0.5}})
        tracker.resume(tracker.written(), step - 1)
        tracker.log(0, "policy", step, step, {"val/ndcg": step / 4, "bad": np.nan})
        tracker.close()
    number = (tmp_path / "run/run_id.txt").read_text().strip()
    assert SQLiteStorage.get_runs("lpt_jax") == [f"run-{number}"]
    logged = SQLiteStorage.get_logs("lpt_jax", f"run-{number}")
    assert [(of["policy/val/ndcg"], of["global_step"]) for of in logged] == [(0.25, 1), (0.5, 2)]
    assert SQLiteStorage.get_run_config("lpt_jax", f"run-{number}")["policy"] == {"eta": 0.5}


def test_wandb_keeps_its_run_id(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="needs wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for step in (1, 2):
        tracker = trackers.Tracker(tmp_path / "run", ["wandb"], {"policy": {"eta": 0.5}})
        (run,) = tracker.online
        assert run.id == (tmp_path / "run/run_id.txt").read_text().strip() and run.name == f"run-{run.id}"
        assert run.config["policy"] == {"eta": 0.5}
        tracker.resume(tracker.written(), step - 1)
        tracker.log(0, "policy", step, step, {"val/ndcg": step / 4, "bad": np.nan})
        assert run.summary["policy/val/ndcg"] == step / 4 and "policy/bad" not in run.summary.keys()
        tracker.close()
    assert len(list((tmp_path / "run/wandb").glob(f"offline-run-*-{run.id}"))) == 2  # wandb sync joins them by the id


def test_trackers_that_are_missing_or_fail_say_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r'needs its package: pip install "lpt_jax\[wandb\]"'):
        trackers.Tracker(tmp_path, ["wandb"])

    def init(**settings):
        raise RuntimeError("no\nAPI key")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    with pytest.raises(
        InputError, match=r"wandb can't start its run \(no API key\): log in, or say WANDB_MODE=offline"
    ):
        trackers.Tracker(tmp_path, ["wandb"])
