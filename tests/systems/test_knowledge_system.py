"""Recommendation knowledge as a whole: a run that learns, resumes, recommends and exports; ranks by hand; bad input."""

import json
import re
import types

import jax
import numpy as np
import pytest
import transformers
from flax import nnx

from lpt_jax import knowledge_evaluation, recommend, search, train, trec
from lpt_jax.config import default, finish, tiny
from lpt_jax.data.sessions import Session
from lpt_jax.errors import InputError
from lpt_jax.main import main
from lpt_jax.models import layers
from lpt_jax.models.item_decoder import ItemDecoder
from lpt_jax.models.t5 import T5
from lpt_jax.run import Run
from lpt_jax.systems import knowledge


def config_of(**changes):
    config = tiny(default("knowledge"))
    config.trackers = ""
    for name, value in changes.items():
        *groups, key = name.split("__")
        part = config
        for group in groups:
            part = part[group]
        part[key] = value
    return finish(config)


LEARNS = dict(
    tasks__steps=240, tasks__batch=48, tasks__learning_rate=3e-3, tasks__evaluate_every=120, lm__dropout=0.0, checkpoint__every=120,
    evaluation__max_users=0, evaluation__max_test_sessions=0, evaluation__baselines="popularity,item_knn",
)  # fmt: skip


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A run that has learned the made-up world: (config, workdir, results)."""
    config, workdir = config_of(**LEARNS), tmp_path_factory.mktemp("learned")
    return config, workdir, train.train(knowledge, config, workdir)


def test_it_learns_what_the_made_up_world_has(learned):
    _, workdir, results = learned
    assert results["rows"]["tasks"]["recall@10"] > results["rows"]["popularity"]["recall@10"] + 0.2
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for task in results["tasks"]:
        losses = [record[f"loss/{task}"] for record in records if f"loss/{task}" in record]
        assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.05, task
    assert results["candidates"]["recall@5"] > 0.6 and 0.5 < results["preference"]["mean"] <= 1
    assert set(results["stars"]) == {"constant", "biases", "factors", "tasks"}
    page = (workdir / "report.html").read_text()
    assert "Learning curves" in page and "Item-kNN" in page


@pytest.mark.parametrize("trains", ["lora", "last_layers"])
def test_a_decoder_only_model_goes_the_same_way(trains, tmp_path):
    """It trains what it is to train, and is read again from what export writes; stars and words are answered, too."""
    config = config_of(
        lm__kind="decoder", lm__layers=2, tasks__trains=trains, tasks__last_layers=1, tasks__learning_rate=0.05
    )
    results = train.train(knowledge, config, tmp_path / "run")
    assert (
        set(results["stars"]) == {"constant", "biases", "factors", "tasks"}
        and results["rows"]["tasks"]["recall@10"] > 0
    )
    r, state, _ = train.ready(knowledge, Run(config, tmp_path / "run"))
    weights = r.weights(state, "lm")
    moved = {path[:2] for path, a, b in pairs(weights, r.fresh("lm")) if not np.array_equal(a, b)}
    inner = {"lora": {"upper"}, "last_layers": {"upper", "final_norm", "head"}}[trains]
    assert ("codes", "table") in moved and ("code_head", "kernel") in moved
    assert {path[1] for path in moved if path[0] == "lm"} == inner and "embed" in r.frozen["lm"]
    knowledge.export(knowledge, config, tmp_path / "run", tmp_path / "out")
    lm = ItemDecoder.load(tmp_path / "out/lm", levels=2, digits=8)
    assert 'ItemDecoder.load("lm", levels=2, digits=8)' in (tmp_path / "out/README.md").read_text()
    graph, arrays = nnx.split(lm)
    sessions, candidates = r.sessions["test"][:4], np.arange(12).reshape(4, 3)
    read = [r.tasks.retrieval(session.history) for session in sessions]
    length = max(map(len, read))
    tokens = np.array([ids + [0] * (length - len(ids)) for ids in read])
    mask = np.arange(length) < np.array([[len(ids)] for ids in read])
    digits = r.codes.digits[candidates].astype(np.int32)
    found = search.likelihoods(graph, layers.plain(arrays), tokens, mask, digits)
    np.testing.assert_allclose(found, r.likelihoods(weights, sessions, candidates), atol=1e-4)


def pairs(a: dict, b: dict):
    """(path, leaf, leaf) of two trees."""
    for (path, one), (_, other) in zip(*map(jax.tree_util.tree_leaves_with_path, (a, b)), strict=True):
        yield tuple(key.key for key in path), one, other


def test_ranks_are_the_beams(learned):
    config, workdir, _ = learned
    r, state, _ = train.ready(knowledge, Run(config, workdir))
    sessions, weights = r.sessions["test"], r.weights(state, "lm")
    ids, scores = r.found(weights, sessions, 10)
    ranks = r.ranks(weights, sessions)
    for session, row, rank, of_row in zip(sessions, ids, ranks[:, 0], scores, strict=True):
        assert not set(row) & set(session.history) and np.all(np.diff(of_row[np.isfinite(of_row)]) <= 1e-6)
        found = row.tolist().index(session.targets[0]) + 1 if session.targets[0] in row else r.run.count + 20
        assert rank == found
    several = [Session("x", sessions[0].history, None, None, tuple(ids[0][:3].tolist()), 0.0)]
    assert r.ranks(weights, several).tolist() == [[1, 1, 1]]  # the others are left out
    likely = r.likelihoods(weights, sessions, ids[:, :3])
    np.testing.assert_allclose(likely, scores[:, :3], atol=1e-4)


def test_recommend_export_and_evaluate(learned, tmp_path, capsys):
    config, workdir, results = learned
    shown = recommend.run(knowledge, config, workdir, "user", "user0095", 5)
    assert len(shown.strip().splitlines()) == 6 and "rank  score  item" in shown
    assert (
        "item0003"
        not in recommend.run(knowledge, config, workdir, "history", "item0003, item0008", 8).split("title")[1]
    )
    with pytest.raises(InputError, match="this one reads items; give --user or --history"):
        recommend.run(knowledge, config, workdir, "profile", "space", 5)
    told = recommend.run(knowledge, config, workdir, "user", "user0095", 5, of=("item0003", ""))
    assert re.fullmatch(r".+: [1-5]\.\d\d stars \(1: .+, 5: \d\.\d\d\)", told)
    shares = [float(share) for share in re.findall(r"\d: (\d\.\d\d)", told)]
    assert sum(shares) == pytest.approx(1, abs=0.03) and "stars" in told
    for given, words in (
        ("item0003, item0004", "Give one item, to --rate or to --explain; here are 2"),
        ("nothing at all", "--rate: .* is no item"),
    ):
        with pytest.raises(InputError, match=words):
            recommend.run(knowledge, config, workdir, "user", "user0095", 5, of=(given, ""))
    with pytest.raises(InputError, match="has not learned the task explanation: it needs data with reviews"):
        recommend.run(knowledge, config, workdir, "user", "user0095", 5, of=("", "item0003"))
    with pytest.raises(InputError, match="--rate and --explain are for --user"):
        recommend.run(knowledge, config, workdir, "history", "item0003", 5, of=("item0004", ""))
    knowledge.export(knowledge, config, workdir, tmp_path / "out")
    codes = json.loads((tmp_path / "out/codes.json").read_text())
    assert len(codes["digits"]) == 60 and codes["width"] == 8
    card = (tmp_path / "out/README.md").read_text()
    assert 'T5.load("lm", levels=2, digits=8)' in card and "library_name" in card
    lm = T5.load(tmp_path / "out/lm", levels=2, digits=8)
    r, state, _ = train.ready(knowledge, Run(config, workdir))
    np.testing.assert_array_equal(lm.codes.table[...], np.asarray(r.weights(state, "lm")["codes"]["table"]))
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "out/lm")
    assert theirs.config.d_model == 32
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out/lm")
    assert tokenizer("next item").input_ids == r.lm.tokenizer("next item").input_ids
    again = train.test_again(knowledge, config, workdir)
    assert again["rows"] == results["rows"]
    run = trec.read_run(workdir / "trec/tasks.run")
    sessions = r.sessions["test"]
    ranks, counts = trec.ranks_of_run(run, trec.queries(sessions), sessions, r.data.catalogue.ids)
    ours = r.ranks(r.weights(state, "lm"), sessions)
    np.testing.assert_array_equal(ranks, np.minimum(ours, r.run.count))  # there what is not listed is last
    assert counts["test sessions without a query"] == 0 and capsys.readouterr().out


def test_a_killed_run_goes_on_to_the_same_numbers(tmp_path):
    """Stopped at a checkpoint and begun again: the same weights."""
    config = config_of(evaluation__baselines="popularity")
    ends = []
    for folder, stop in (("whole", None), ("cut", 3)):
        run = Run(config, tmp_path / folder)
        r = knowledge.build(run)
        (phase,) = knowledge.schedule(r)
        state = train.initial_state(r, [phase])
        phase.begin(state)
        for step in range(config.tasks.steps):
            if step == stop:  # what a resume does: everything but the state is made anew
                r = knowledge.build(Run(config, tmp_path / folder))
                (phase,) = knowledge.schedule(r)
                phase.begin(state)
            state, _ = phase.step(state, step)
        ends.append(jax.device_get(state["lm"].weights))
    jax.tree.map(np.testing.assert_array_equal, *ends)


def test_the_rule_of_the_next_id_is_at_chance_when_ids_are_mixed():
    rng = np.random.default_rng(0)
    sessions = [Session(str(i), (i % 90, i % 90 + 1), None, None, (i % 90 + 2,), 0.0) for i in range(300)]
    assert (knowledge_evaluation.next_ids(sessions, np.arange(100)) == 1).all()
    mixed = knowledge_evaluation.next_ids(sessions, rng.permutation(100))
    assert 40 < mixed.mean() < 60


def test_auc_by_hand():
    assert knowledge_evaluation.auc(np.array([0.1, 0.9, 0.5]), np.array([False, True, True])) == 1.0
    assert knowledge_evaluation.auc(np.array([0.1]), np.array([True])) is None


@pytest.mark.parametrize("mode", ["audit", "judge", "demo", "write_profiles"])
def test_modes_that_it_has_not(mode, capsys):
    assert main(["main", "--config=configs/knowledge.py:tiny", f"--mode={mode}"]) == 2
    assert f"--mode={mode} is not for the system knowledge" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"lm__heads": 3}, r"lm\.heads=3 won't do: it must be a divisor of lm\.width"),
        ({"codes__width": 1}, r"codes\.width=1 won't do: it must be at least 2"),
        (
            {"codes__kind": "random"},
            r"codes\.kind='random' won't do: it must be one of text, together, shuffled, ordered",
        ),
        ({"tasks__candidates": 1}, r"tasks\.candidates=1 won't do: it must be at least 2"),
        (
            {"evaluation__baselines": "bm25"},
            r"evaluation\.baselines='bm25' won't do: it must be a comma-separated list of popularity, trans",
        ),
        ({"lm__dropout": 1.0}, r"lm\.dropout=1\.0 won't do: it must be a share below 1"),
    ],
)
def test_bad_settings_get_a_sentence(changes, told):
    with pytest.raises(InputError, match=told):
        config_of(**changes)


def test_codes_that_are_too_short_get_a_sentence(tmp_path):
    with pytest.raises(InputError, match=r"60 items need longer codes than --config\.codes\.levels=1"):
        assert knowledge.build(Run(config_of(codes__levels=1), tmp_path)).codes


def test_another_family_gets_a_sentence(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(InputError, match="model_type 'llama' is no T5|no model.safetensors"):
        assert knowledge.build(Run(config_of(lm__source=str(tmp_path)), tmp_path / "run")).lm


@pytest.mark.parametrize("shuffled", ["codes.kind", "tasks.titles"])
def test_what_the_seed_shuffles_is_begun_from_with_the_same_seed(tmp_path, shuffled):
    """Another seed's codes, or titles, are of other items; where nothing is shuffled the seeds may differ."""
    changes = {"embedder__source": "some/encoder", shuffled.replace(".", "__"): "shuffled"}
    (tmp_path / "results.json").write_text("{}")
    (tmp_path / "config.json").write_text(config_of(**changes).to_json_best_effort())
    r = types.SimpleNamespace(config=config_of(seed=1, **changes))
    with pytest.raises(InputError, match="begin_from=.* has another seed"):
        train.begun(knowledge, r, tmp_path)
    plain = {"embedder__source": "some/encoder"}
    (tmp_path / "config.json").write_text(config_of(**plain).to_json_best_effort())
    r.config = config_of(seed=1, **plain)
    with pytest.raises(InputError, match="results but not their models"):
        train.begun(knowledge, r, tmp_path)
