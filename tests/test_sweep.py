"""Experiments: the commands that are printed, runs that begin from another's models, and what is collected of them."""

import contextlib
import json
import shutil
import types

import jax
import numpy as np
import pytest

from experiments import sweep
from lpt_jax import config as config_lib
from lpt_jax import files, report, train
from lpt_jax import main as main_lib
from lpt_jax.data import made_up
from lpt_jax.errors import InputError
from lpt_jax.run import Run
from lpt_jax.systems import profiles
from tests.conftest import ROOT
from tests.systems.tiny_run import small_world

CONFIG = """from tests.systems.tiny_run import small_config
def get_config(variant=""):
    c = small_config({"contrastive.steps": 1, "policy.steps": 2, "evaluation.bootstrap": 20,
                      "evaluation.baselines": "last_item", "policy.keep_best": False,
                      "contrastive.keep_best": False}).copy_and_resolve_references()
    c.unlock()
    c.name = "small"
    return c
"""
EXPERIMENT = """'''Which <reward> is best?'''
CONFIG, SEEDS = "small.py", (0, 1)
FIRST = {"phases": "contrastive"}
CHANGES = {"phases": "policy"}
RUNS = {"NDCG": {}, "MRR": {"policy.reward": "mrr"}}
WORDS = "None of them."
"""


def begun(config, workdir):
    """The recommender of a run that begins as its config says."""
    return train.started(profiles, Run(config, workdir))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An experiment that was run, in a folder that is the current one."""
    patch = pytest.MonkeyPatch()
    patch.chdir(made := tmp_path_factory.mktemp("sweep"))
    patch.setattr(made_up, "world", small_world())
    (made / "small.py").write_text(CONFIG)
    (made / "reward.py").write_text(EXPERIMENT)
    ran = []

    def called(arguments):
        ran.append(arguments[3:])
        assert arguments[1:3] == ["-m", "lpt_jax.main"]
        return contextlib.nullcontext(types.SimpleNamespace(wait=lambda: main_lib.main(["main", *arguments[3:]])))

    patch.setattr(sweep.subprocess, "Popen", called)
    assert sweep.main(["sweep", "reward.py"]) == 0
    assert sweep.main(["sweep", "reward.py", "--run"]) == 0
    assert len(ran) == 6
    assert sweep.main(["sweep", "reward.py", "--run"]) == 0 and len(ran) == 6  # nothing is repeated
    yield made
    patch.undo()


def runs_of(folder, number, name="MRR"):
    workdir = sweep.orders(sweep.read(folder / "reward.py"))[1][name][number].workdir
    return workdir, json.loads((workdir / "results.json").read_text()), np.load(workdir / "per_user.npz")


def test_a_run_begins_with_the_other_ones_models(folder):
    firsts = [one.workdir for one in sweep.orders(sweep.read(folder / "reward.py"))[0]]
    for number in (0, 1):
        workdir, results, _ = runs_of(folder, number)
        assert results["config"]["begin_from"] == str(firsts[number])
        before = json.loads((firsts[number] / "results.json").read_text())
        assert results["rows"]["start"] == before["rows"]["cl"] != before["rows"]["zero_shot"]
        assert list(results["rows"]) == ["last_item", "shuffled_profiles", "summary", "start", "rlso"]
        assert results["rows"]["last_item"] == before["rows"]["last_item"]  # by the embedder as loaded
    made = {
        begin: begun(config_lib.load("small.py", {"seed": "1"} | begin_from), folder / "new")
        for begin, begin_from in (
            ("", {}),
            ("cl", {"begin_from": str(firsts[1])}),
            ("rlso", {"begin_from": str(workdir)}),
        )
    }

    def moved(name, other, part):
        ours, theirs = (made[one].fresh(part) for one in (name, other))
        return max(jax.tree.leaves(jax.tree.map(lambda a, b: float(abs(a - b).max()), ours, theirs)))

    assert moved("cl", "", "embedder") > 1e-4 and moved("cl", "", "lm") == 0
    assert moved("rlso", "cl", "embedder") == 0 and moved("rlso", "cl", "lm") > 1e-4  # a chain of three
    for name in ("", "rlso"):  # what KL is measured from, and the control begins with
        jax.tree.map(np.testing.assert_array_equal, made[name].lm.reference[1], made[""].lm.reference[1])
        jax.tree.map(np.testing.assert_array_equal, made[name].fresh("control"), made[""].fresh("embedder"))


def test_what_is_collected(folder):
    found = json.loads((folder / "reward.json").read_text())
    runs = [runs_of(folder, number) for number in (0, 1)]
    mrr = found["runs"]["MRR"]
    assert mrr["seeds"] == [0, 1]
    assert mrr["rows"]["rlso"]["recall@10"] == [results["rows"]["rlso"]["recall@10"] for _, results, _ in runs]
    gains = [users["rlso/ndcg"] - users["start/ndcg"] for _, _, users in runs]
    assert mrr["gains"]["start->rlso"]["mean"] == pytest.approx(np.mean(gains), abs=1e-12)
    base = [runs_of(folder, number, "NDCG")[2]["rlso/ndcg"] for number in (0, 1)]
    over = np.mean([users["rlso/ndcg"] - other for (_, _, users), other in zip(runs, base, strict=True)])
    assert mrr["over"]["mean"] == pytest.approx(over, abs=1e-12) and "over" not in found["runs"]["NDCG"]
    assert mrr["over"]["low"] <= mrr["over"]["mean"] <= mrr["over"]["high"]
    records = [files.read_jsonl(workdir / "metrics.jsonl") for workdir, _, _ in runs]
    assert mrr["end"]["kl"] == [of_run[-1]["kl"] for of_run in records] and max(map(abs, mrr["end"]["kl"])) > 0
    text = (folder / "reward.md").read_text()
    assert text.startswith("Which <reward> is best?") and "None of them." in text
    ndcg = [results["rows"]["rlso"]["ndcg"] for _, results, _ in runs]
    assert f"| MRR: rlso | 0, 1 | {np.mean(ndcg):.4f} ± {np.std(ndcg, ddof=1):.4f} |" in text
    assert f"{mrr['over']['mean']:+.4f} (" in text and text.count("\n| last\\_item |") == text.count("\n| start |") == 1
    audits = [results["audit"]["rlso"]["text"] for _, results, _ in runs]
    assert mrr["texts"]["rlso"]["ended"] == [text["ended"]["mean"] for text in audits]
    words = np.mean([text["words"] for text in audits])
    assert np.mean(mrr["texts"]["rlso"]["words"]) == words
    read = next(line for line in text.splitlines() if line.startswith("| MRR | rlso | "))
    assert read.endswith(f"| {words:.0f} |") and f"| {np.mean(mrr['texts']['rlso']['clean']):.2f} |" in read
    assert (folder / "reward.png").read_bytes().startswith(b"\x89PNG")


def test_rows_that_all_runs_agree_on():
    one = {"seeds": [0, 1], "rows": {"popularity": {"ndcg": [0.1, 0.2]}, "start": {"ndcg": [0.3, 0.4]}}}
    other = {"seeds": [2, 1], "rows": {"popularity": {"ndcg": [0.5, 0.2]}, "start": {"ndcg": [0.3, 0.5]}, "x": {}}}
    shared = {"popularity": {0: {"ndcg": 0.1}, 1: {"ndcg": 0.2}, 2: {"ndcg": 0.5}}}
    assert sweep.shared_rows({"a": one, "b": other}) == shared  # of seed 1 the starts differ


def test_curves_of_several_iterations_go_on(folder):
    (folder / "twice.py").write_text(
        'CONFIG, RUNS = "small.py", {"twice": {"iterations": 2, "policy.kl_coef": 0.0, "policy.evaluate_every": 9}}'
    )
    assert sweep.main(["sweep", "twice.py", "--run"]) == 0
    one = json.loads((folder / "twice.json").read_text())["runs"]["twice"]
    assert one["curves"]["reward/metric"][0] == [1, 2, 3, 4] and len(one["end"]["kl"]) == 1


def test_commands_are_printed_those_that_can_start(folder, tmp_path, monkeypatch, capsys):
    for name in ("reward.py", "small.py"):
        shutil.copy(folder / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    assert sweep.main(["sweep", "reward.py"]) == 0
    start, said = "python -m lpt_jax.main --config=small.py --config.phases=", capsys.readouterr()
    assert said.out.splitlines() == [f"{start}contrastive --config.seed={seed}" for seed in (0, 1)]
    assert "4 runs begin from these: ask again" in said.err
    shutil.copytree(folder / "runs", tmp_path / "runs")
    assert sweep.main(["sweep", "reward.py"]) == 0 and capsys.readouterr().out == ""  # all have finished
    (runs_of(tmp_path, 1)[0] / "results.json").unlink()
    assert sweep.main(["sweep", "reward.py"]) == 0
    first = "--config.begin_from=runs/small-phases=contrastive,seed=1"
    last = "--workdir=runs/small-begin_from=contrastive,phases=policy,policy.reward=mrr,seed=1"
    assert capsys.readouterr().out == f"{start}policy {first} --config.policy.reward=mrr --config.seed=1 {last}\n"
    (tmp_path / "other.py").write_text(EXPERIMENT.replace('"NDCG": {}, "MRR"', '"mean"'))
    ours, theirs = (sweep.orders(sweep.read(tmp_path / name))[1] for name in ("reward.py", "other.py"))
    assert ours["MRR"] == theirs["mean"]  # the same run, once


def test_unfinished_runs_are_left_out_and_others_refused(folder, tmp_path, monkeypatch, capsys):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    (runs_of(tmp_path, 1)[0] / "results.json").unlink()
    assert sweep.main(["sweep", "reward.py", "--collect"]) == 0
    found = json.loads((tmp_path / "reward.json").read_text())["runs"]
    assert found["MRR"]["seeds"] == [0] and found["NDCG"]["seeds"] == [0, 1]
    (tmp_path / "small.py").write_text(CONFIG.replace('"policy.steps": 2', '"policy.steps": 3'))
    assert sweep.main(["sweep", "reward.py", "--collect"]) == 2
    assert "holds a run that was made with other settings" in capsys.readouterr().err
    shutil.rmtree("runs")
    assert sweep.main(["sweep", "reward.py", "--collect"]) == 2
    assert "None of its runs has finished" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "There is no file wrong.py"),
        ("RUNS = {'a': {}}", "wrong.py has no CONFIG"),
        ("CONFIG, RUNS = 'small.py', {'a': {'policy.rewards': 1}}", "the nearest is --config.policy.reward"),
        ("CONFIG, RUNS = 'nowhere.py', {'a': {}}", "--config=nowhere.py: there is no such file"),
        ("CONFIG, RUNS = 'small.py', {'a': {'prompt.start': 'A:'}, 'b': {'prompt.start': 'A;'}}", "share the workdir"),
    ],
    ids=["no-file", "no-config", "unknown-setting", "no-such-config", "one-workdir"],
)
def test_wrong_experiments_are_told(folder, capsys, text, message):
    if text is not None:
        (folder / "wrong.py").write_text(text)
    assert sweep.main(["sweep", "wrong.py"]) == 2 and message in capsys.readouterr().err
    (folder / "wrong.py").unlink(missing_ok=True)


def test_wrong_calls_are_told(folder, capsys, monkeypatch):
    assert sweep.main(["sweep"]) == 2 and "Name one experiment" in capsys.readouterr().err
    assert sweep.main(["sweep", "reward.py", "--walk"]) == 2 and "--help lists" in capsys.readouterr().err
    assert sweep.main(["sweep", "--help"]) == 0 and "--[no]collect" in capsys.readouterr().out
    (folder / "fails.py").write_text('CONFIG, RUNS = "small.py", {"a": {"policy.eta": 7.0}}')
    child = contextlib.nullcontext(types.SimpleNamespace(wait=lambda: 3))
    monkeypatch.setattr(sweep.subprocess, "Popen", lambda arguments: child)
    assert sweep.main(["sweep", "fails.py", "--run"]) == 2 and "ended with status 3" in capsys.readouterr().err


def test_wrong_starts_are_told(folder):
    workdir, *_ = runs_of(folder, 0)
    config = config_lib.load("small.py", {"begin_from": str(workdir), "data.min_history": "5"})
    with pytest.raises(InputError, match="has another data "):
        begun(config, folder / "new")
    config = config_lib.load("small.py", {"begin_from": str(workdir), "seed": "1"})
    with pytest.raises(InputError, match=r"has another seed \(0\)"):  # random models
        begun(config, folder / "new")
    config = config_lib.load("small.py", {"begin_from": str(folder)})
    with pytest.raises(InputError, match="holds no finished run"):
        begun(config, folder / "new")


def test_gains_are_compared_where_starts_differ(folder):
    workdir, _, users = runs_of(folder, 0)
    _, runs = sweep.orders(sweep.read(folder / "reward.py"))
    before = sweep.collect(runs)["runs"]["MRR"]["over"]["mean"]
    kept, users = (workdir / "per_user.npz").read_bytes(), dict(users)
    np.savez(workdir / "per_user.npz", **users | {"start/ndcg": users["start/ndcg"] - 0.5})
    assert sweep.collect(runs)["runs"]["MRR"]["over"]["mean"] == pytest.approx(before + 0.25)  # one of two seeds
    (workdir / "per_user.npz").write_bytes(kept)


def test_what_is_compared_can_be_another_metric(folder):
    """Of systems whose lists have an end: the gains are of that metric, the table says so."""
    _, results, users = runs_of(folder, 0, "NDCG")
    experiment = sweep.read(folder / "reward.py")
    _, runs = sweep.orders(experiment)
    found = sweep.collect({"NDCG": runs["NDCG"][:1]}, metric="ndcg@10")
    step = next(iter(results["gains"]))
    before, after = (users[f"{row}/ndcg@10"].mean() for row in step.split("->"))
    assert found["runs"]["NDCG"]["gains"][step]["mean"] == pytest.approx(after - before)
    assert "Gains are in NDCG@10, pooled" in sweep.table(experiment, found, report.Markdown(folder))


def test_a_start_whose_models_were_removed_is_told(folder, capsys):
    first = sweep.orders(sweep.read(folder / "reward.py"))[0][0].workdir
    (first / "checkpoints").rename(first / "away")
    for flags in ([], ["--run"]):
        assert sweep.main(["sweep", "reward.py", *flags]) == 2
        assert f"{first} has results but not their models" in capsys.readouterr().err
    assert sweep.main(["sweep", "reward.py", "--collect"]) == 0
    with pytest.raises(InputError, match=r"has results but not their models: there is no checkpoints/\*-contrastive"):
        begun(config_lib.load("small.py", {"begin_from": str(first)}), folder / "new")
    (first / "away").rename(first / "checkpoints")


@pytest.mark.parametrize("file", sorted((ROOT / "experiments").glob("*.py")), ids=lambda file: file.stem)
def test_the_experiments_have_settings_that_are_known(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    if "RUNS = " not in file.read_text():
        pytest.skip("a script of its own")
    first, runs = sweep.orders(sweep.read(file))
    assert len(first) in (0, len(next(iter(runs.values())))) and all(runs.values())
