"""Every config's :tiny through the command line, all modes on what it trained, and the paper's figures."""

import json
import runpy

import numpy as np
import pytest

from lpt_jax import config as config_lib
from lpt_jax import trec
from lpt_jax.main import main
from tests.conftest import ROOT

MESH = {"movies_tv_llama": ["--config.mesh.data=-1", "--config.mesh.fsdp=1"]}  # saves compiling; Gemma's stays fsdp
CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
OTHERS = ("journeys", "knowledge", "peapod")  # of other systems, whose :tiny runs are in tests/systems
OF_PROFILES = [name for name in CONFIGS if name.partition("_")[0] not in OTHERS]


def get(name, variant=""):
    return config_lib.load(f"{ROOT}/configs/{name}.py:{variant}", {})


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def records(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The workdir of a tiny config, trained when first asked for."""
    done = {}

    def train(name):
        if name not in done:
            done[name] = tmp_path_factory.mktemp("runs") / name
            typed = [f"--config={ROOT}/configs/{name}.py:tiny", f"--workdir={done[name]}"]
            assert main(["main", *typed, *MESH.get(name, [])]) == 0
        return done[name]

    return train


@pytest.mark.parametrize("name", OF_PROFILES)
def test_tiny_takes_two_steps_of_each_phase(name, trained):
    workdir = trained(name)
    results = json.loads((workdir / "results.json").read_text())
    first = [phase for phase in ("imitation",) if phase in results["config"]["phases"]]
    phases = [*first, "contrastive", "policy"]
    assert {p: [r["step"] for r in records(workdir) if r["phase"] == p] for p in phases} == dict.fromkeys(
        phases, [0, 1, 2]
    )
    assert all(r.get("loss") is not None for r in records(workdir) if r["step"])
    stages = ["zero_shot", "sft", "sft_cl", "sft_cl_rlso"] if first else ["zero_shot", "cl", "cl_rlso"]
    text = stages[-1]
    others = ["summary", *["best"] * (results["config"]["profile"]["samples"] > 1)]  # texts of no stage
    expected = {*config_lib.BASELINES, *stages, *others, "shuffled_profiles"}
    if "residuals" in results["config"]["phases"]:
        stages.append(f"{stages[-1]}_items")
        expected |= {f"{row}{suffix}" for row in (text, *others) for suffix in ("_items", "_items_history")}
    last = stages[-1]
    assert set(results["rows"]) == expected
    gains = {f"{a}->{b}" for a, b in zip(stages, stages[1:])}
    gains |= {
        f"zero_shot->{last}",
        "items_popularity->summary",
        *(f"{row}->{text}" for row in ("items_popularity", "summary")),
        f"items_popularity->{last}",
        f"shuffled_profiles->{last}",
    }
    if "best" in others:
        gains |= {f"{row}->best" for row in ("items_popularity", "summary", text)} | {f"{last}->best_items"}
    assert set(results["gains"]) == gains
    assert {*stages, "summary"} <= results["audit"].keys()
    of_cl = results["audit"][stages[-2]]
    assert {"like", "like_alone", "dislike", "avoid_alone", "replace", "kept"} <= of_cl.keys()
    texts = {name: audit["text"] for name, audit in results["audit"].items() if "text" in audit}
    assert texts.keys() == {name for name in (*stages, *others) if not name.endswith("_items")}
    assert {"ended", "clean", "defects", "supported", "telling", "words", "distinct"} <= texts[stages[0]].keys()
    assert texts["summary"]["ended"]["mean"] == 1 and texts["summary"]["supported"]["profiles"]["mean"] > 0.9
    assert {"protocol", "seed", "config", "versions", "devices", "seconds"} <= set(results)
    assert (workdir / "report.html").stat().st_size > 1000
    assert "How the profiles read" in (workdir / "report.md").read_text()


def test_evaluate_gives_the_same_results_again_and_trec_files(trained, tmp_path, capsys):
    workdir = trained("movielens")
    command = ["main", f"--config={ROOT}/configs/movielens.py:tiny", f"--workdir={workdir}", "--mode=evaluate"]
    before = json.loads((workdir / "results.json").read_text())["rows"]
    assert not (workdir / "trec").exists() and main(command) == 0
    assert json.loads((workdir / "results.json").read_text())["rows"] == before
    runs = {path.stem for path in (workdir / "trec").glob("*.run")}
    assert runs == before.keys() - {"random"}
    for name in (
        "bm25",
        "sasrec",
        "sft_cl_rlso_items",
    ):  # the list is as long as the catalogue: every metric comes back
        assert main([*command, f"--run={workdir}/trec/{name}.run"]) == 0
        again = json.loads((workdir / f"trec/{name}.run.json").read_text())
        assert again["row"] == pytest.approx(before[name]) and not any(again["counts"].values())
    assert again["gain"]["over"] == "sft_cl_rlso_items" and again["gain"]["high"] == 0 == again["gain"]["low"]
    shown = capsys.readouterr().out
    assert (
        "run sft_cl_rlso_items.run" in shown and "sft_cl_rlso_items->run sft_cl_rlso_items.run: ndcg +0.0000" in shown
    )
    oracle = pytest.importorskip("pytrec_eval", reason="needs pytrec_eval-terrier")
    qrels = trec.read_trec(workdir / "trec/test.qrels")
    for name in runs:
        theirs = oracle.RelevanceEvaluator(qrels, {"ndcg_cut.10", "recall.5", "recip_rank"}).evaluate(
            trec.read_trec(workdir / f"trec/{name}.run")
        )
        for ours, their_name in (("ndcg@10", "ndcg_cut_10"), ("recall@5", "recall_5"), ("mrr", "recip_rank")):
            assert before[name][ours] == pytest.approx(np.mean([v[their_name] for v in theirs.values()]), abs=1e-4)
    lines = (workdir / "trec/sft_cl.run").read_text().splitlines()
    damaged = [lines[0].replace(lines[0].split()[0], "somebody"), *lines[1:40:2], "user0001 Q0 item9999 1 5.0 me"]
    (tmp_path / "other").write_text("\n".join(damaged))
    assert main([*command, f"--run={tmp_path / 'other'}"]) == 0
    shown = capsys.readouterr().out
    for said in (
        "queries that are not in the test",
        "targets not listed, ranked last",
        "test sessions without a query",
    ):
        assert f" {said}" in shown


def test_write_profiles_names_each_user(trained, tmp_path):
    output = tmp_path / "mine.jsonl"
    command = [f"--config={ROOT}/configs/movielens.py:tiny", f"--workdir={trained('movielens')}"]
    assert main(["main", *command, "--mode=write_profiles", "--split=validation", f"--output={output}"]) == 0
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(lines) == 10 and len({line["user"] for line in lines}) == 10
    assert all(isinstance(line["profile"], str) for line in lines)


@pytest.mark.parametrize("asked", ["--user=user0001", "--history=item0003, item0009", "--profile=likes space films"])
def test_recommend(asked, trained, capsys):
    workdir = trained("movielens")
    before = files(workdir)
    command = [f"--config={ROOT}/configs/movielens.py:tiny", f"--workdir={workdir}"]
    assert main(["main", *command, "--mode=recommend", asked, "--k=4"]) == 0
    answer = f"\n{capsys.readouterr().out}".rpartition("\nProfile: ")[2]
    profile, table = answer.rstrip().split("\n\n")  # a long profile takes several lines
    head, *rows = table.splitlines()
    assert profile and head.split() == ["rank", "score", "item", "title"]
    assert [row.split()[0] for row in rows] == ["1", "2", "3", "4"]
    scores = [float(row.split()[1]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert not {"item0003", "item0009"} & {row.split()[2] for row in rows} or "history" not in asked
    kept = "profiles/recommend.jsonl"  # what was written, for the next call
    assert [file for file in files(workdir) if file != kept] == [file for file in before if file != kept]


@pytest.mark.parametrize("name", CONFIGS)
def test_docstrings_hold_the_command(name):
    module = runpy.run_path(f"{ROOT}/configs/{name}.py")
    assert f"python -m lpt_jax.main --config=configs/{name}.py" in module["__doc__"]
    assert "Hardware: " in module["__doc__"]
    assert get(name).name == name and get(name, "tiny").lm.source in ("tiny", "scratch")  # nothing is downloaded


@pytest.mark.parametrize(
    "name, rate, policy_steps, contrastive_steps, kl, trains",
    [("movies_tv_gemma", 1e-7, 200, 800, 0.2, "lora"), ("movies_tv_llama", 3e-7, 500, 2500, 0.0, "last_layers")],
)
def test_the_papers_figures(name, rate, policy_steps, contrastive_steps, kl, trains):
    """The paper's own settings: what a reader compares with the paper must not drift."""
    c = get(name)
    assert (c.policy.learning_rate, c.contrastive.learning_rate) == (rate, rate)
    assert (c.iterations, c.policy.steps, c.contrastive.steps) == (5, policy_steps, contrastive_steps)
    assert (c.policy.eta, c.policy.kl_coef, c.policy.whiten, c.policy.epochs) == (1.0, kl, True, 4)
    assert (c.policy.users, c.policy.samples, c.policy.temperature, c.policy.trains) == (64, 2, 1.0, trains)
    lengths = (c.prompt.max_tokens, c.profile.max_tokens, c.embedder.max_profile_tokens, c.embedder.max_item_tokens)
    assert lengths == (1024, 512, 512, 512)
    assert (c.contrastive.temperature, c.contrastive.popularity_correction, c.policy.reward) == (0.1, False, "ndcg")
    if trains == "lora":
        assert (c.policy.lora.rank, c.policy.lora.alpha) == (1024, 2048.0)
        assert c.policy.lora.targets == "q|k|v|o|gate|up|down|head"
    else:
        assert c.policy.last_layers == 4


def test_the_audit_again_gives_the_same_numbers_and_those_by_name(trained, capsys):
    workdir = trained("movielens")
    before = json.loads((workdir / "results.json").read_text())
    (workdir / "report.html").unlink()
    assert main(["main", f"--config={ROOT}/configs/movielens.py:tiny", f"--workdir={workdir}", "--mode=audit"]) == 0
    shown = capsys.readouterr().out
    assert "change by name" in shown and "space" in shown and "obeyed" in shown
    after = json.loads((workdir / "results.json").read_text())
    assert after == before and set(after["audit"]["sft_cl"]["like"]["changes"]) == {
        "space",
        "crime",
        "romance",
        "horror",
        "western",
    }
    assert "What a profile’s words do" in (workdir / "report.html").read_text()


def test_held_out_items_have_a_table_of_their_own_in_which_ids_know_nothing(tmp_path, capsys):
    typed = [
        f"--config={ROOT}/configs/movielens.py:tiny",
        f"--workdir={tmp_path / 'run'}",
        "--config.phases=contrastive",
    ]
    typed += ["--config.data.catalogue=all", "--config.data.cold_share=0.25", "--config.contrastive.steps=1"]
    typed += [
        "--config.evaluation.baselines=popularity,last_item,transitions,ease",
        "--config.contrastive.texts=summaries",
    ]
    assert main(["main", *typed]) == 0
    results = json.loads((tmp_path / "run/results.json").read_text())
    cold = results["rows_of_cold_items"]
    assert (
        cold.keys() == results["rows"].keys()
        and "Targets without a training interaction alone" in capsys.readouterr().out
    )
    ranked, newest = results["counts"]["items ranked"], 15
    for name in ("popularity", "transitions", "ease"):  # behind all others but a history's
        assert cold[name]["mean_rank"] > ranked - newest - 15 > cold["last_item"]["mean_rank"]
