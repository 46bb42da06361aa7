"""LangPTune's phases and runs: every variant of RLSO, profiles that earn nothing, and the rows of the results."""

import doctest
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pyarrow import parquet

from lpt_jax import files, recommend, trackers, train
from lpt_jax.data import made_up
from lpt_jax.errors import InputError
from lpt_jax.generation import LanguageModel
from lpt_jax.learning import contrastive, optimisers, policy
from lpt_jax.learning.loop import Loop
from lpt_jax.models import layers
from lpt_jax.rewarder import Rewarder
from lpt_jax.run import Interrupt, Run, Stop
from lpt_jax.systems import profiles
from tests.systems.tiny_run import recommender, small_config, small_world

CALLS = []


def short_is_good(rollout):
    """A reward of one's own: the fewer words, the more."""
    CALLS.append(rollout)
    return jnp.array([[1 / (1 + len(text.split())) for text in row] for row in rollout.texts])


@pytest.fixture(scope="module")
def world():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(made_up, "world", small_world())
        yield


@pytest.fixture(scope="module")
def shared(world, tmp_path_factory):
    return recommender(small_config(), tmp_path_factory.mktemp("run"))


@pytest.fixture
def r(shared):
    config = shared.config
    yield shared
    shared.config = config


class Watched(policy.PolicyPhase):
    """Keeps what a step's profiles earned, and the signal that they gave."""

    def learn(self, part, rollout, number):
        self.signal = np.asarray(rollout[-1])
        return super().learn(part, rollout, number)

    def numbers(self, profiles, texts, unended, earned, parts):
        self.parts = parts
        return super().numbers(profiles, texts, unended, earned, parts)


def policy_phase(r, changes=()):
    """RLSO alone with some settings changed, and a state to begin with."""
    r.config = small_config(changes)
    phase = Watched(r, optimisers.of(r.config.policy, 100)).at(0, 0)
    state = train.initial_state(r, [phase])
    phase.begin(state)
    return phase, state


def policy_step(r, changes=(), steps=1):
    """The first updates of RLSO: the state, metrics of the last, the samples and the phase."""
    (phase, state), samples = policy_phase(r, changes), []
    for step in range(steps):
        state, report = phase.step(state, step)
        samples.append(report.sample)
    return state, {name: float(value) for name, value in report.metrics.items()}, samples, phase


def moved(r, state):
    """How far each weight of the language model has moved at most."""
    return jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), state["lm"].weights, r.fresh("lm"))


def pairs(values):
    """Mean over users and pairs of (v_i - v_j)², the plain way."""
    values = np.asarray(values)
    i, j = np.triu_indices(values.shape[1], 1)
    return np.mean((values[:, i] - values[:, j]) ** 2)


def test_the_first_step_is_papers(r):
    """At first π = π_ref: no KL, and REBEL's loss is that of the whitened rewards' differences, η² (r_i - r_j)²."""
    state, found, samples, phase = policy_step(r, {"policy.epochs": 1, "policy.eta": 0.5, "policy.samples": 3})
    assert found["kl"] == pytest.approx(0, abs=1e-5)
    assert found["loss"] == pytest.approx(0.25 * pairs(phase.signal), rel=1e-4)
    np.testing.assert_allclose([phase.signal.mean(), phase.signal.std()], [0, 1], atol=1e-3)
    assert min(jax.tree.leaves(moved(r, state)["upper"])) > 0
    weights, values = state["lm"].weights, samples[0]
    assert set(weights) == {"upper", "final_norm", "head"}  # the last layer, and what stands above it
    assert weights["upper"]["attention"]["q"]["kernel"].shape[0] == 1
    assert values["reward/total"] == pytest.approx(values["reward/metric"], abs=1e-5)
    rank = values["ranks"][0]
    assert values["reward/metric"] == pytest.approx(1 / np.log2(1 + rank), rel=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {
            "policy.loss": "rloo",
            "policy.reward": "dense",
            "policy.minibatches": 2,
            "policy.epochs": 3,
            "policy.accumulation": 2,
        },
        {"policy.loss": "grpo", "policy.reward": f"{__name__}:short_is_good", "policy.baseline": "user"},
        {"policy.reward": "mrr", "policy.whiten": False, "policy.kl_coef": 0.0, "policy.temperature": 0.7},
    ],
    ids=["rloo-dense-minibatches", "grpo-own_reward", "mrr-raw"],
)
def test_variants_of_rlso(r, changes):
    CALLS.clear()
    state, found, _, _ = policy_step(r, changes, steps=2)
    assert np.isfinite(list(found.values())).all() and found["grad_norm"] > 0 and 0 < found["reward/metric"] < 1
    assert found["kl"] != 0 and min(jax.tree.leaves(moved(r, state)["upper"])) > 0
    settings = r.config.policy
    counts = [a for a in jax.tree.leaves(state["lm"].optimiser) if a.dtype == jnp.int32]
    assert {int(count) for count in counts} == {2 * settings.epochs * settings.minibatches}
    if ":" in settings.reward:
        seen, shape, last = CALLS[-1], (settings.users, settings.samples), r.config.prompt.history_items
        assert seen.ranks.shape == seen.similarities.shape == (*shape, 1) and np.shape(seen.texts) == shape
        assert seen.shown_ranks.shape == seen.unseen_ranks.shape == (*shape, last) and seen.shown_ranks.min() == 0
        assert seen.ended.shape == shape and len(seen.shown) == len(seen.histories) == settings.users
        assert [h["title"] for h in seen.histories[0]] == [title.split(" (")[0] for title in seen.shown[0].titles]
        wanted = np.mean([1 / (1 + len(text.split())) for row in seen.texts for text in row])
        assert found["reward/metric"] == pytest.approx(wanted, rel=1e-5)


def test_the_parts_of_a_reward_are_logged_and_add_up(r):
    reward = {"policy.reward": "ndcg + 0.5*ended - 0.1*copied + explains", "policy.kl_coef": 0.0}
    _, found, _, phase = policy_step(r, reward, steps=1)
    assert found["reward/ended"] == 1 - found["unended"]
    parts = found["reward/ndcg"] + 0.5 * found["reward/ended"] - 0.1 * found["reward/copied"] + found["reward/explains"]
    assert found["reward/metric"] == pytest.approx(parts, rel=1e-5)


def test_cut_profiles_are_left_out_of_the_loss(r):
    """Where the setting says so: with every profile cut nothing is learned (in this tiny model hardly one ends)."""
    _, whole, _, phase = policy_step(r, {"policy.kl_coef": 0.0}, steps=1)
    _, masked, _, leaves_out = policy_step(r, {"policy.kl_coef": 0.0, "policy.mask_unended": True}, steps=1)
    assert masked["grad_norm"] < whole["grad_norm"] and masked["profile_tokens"] == whole["profile_tokens"]
    mask, unended = jnp.ones((8, 2, 3), bool), np.arange(16).reshape(8, 2) % 2 == 0
    np.testing.assert_array_equal(phase.counted(mask, unended), mask)
    np.testing.assert_array_equal(leaves_out.counted(mask, unended)[:, :, 0], ~unended)


def test_lora_trains_alone(world, tmp_path):
    r = recommender(small_config({"policy.trains": "lora"}), tmp_path)
    before = jax.tree.map(np.array, r.lm.frozen)
    state, found, _, _ = policy_step(r, {"policy.trains": "lora"}, steps=2)
    paths = [path for path, _ in jax.tree.leaves_with_path(state["lm"].weights)]
    assert paths and all(path[-2].key == "lora" for path in paths) and found["kl"] != 0
    assert min(jax.tree.leaves(moved(r, state)["upper"])) > 0
    jax.tree.map(np.testing.assert_array_equal, before, r.lm.frozen)


@pytest.mark.parametrize("trains", ["last_layers", "lora"])
def test_frozen_layers_in_a_list_change_nothing(world, tmp_path, trains):
    """lm.layers=listed: the same profiles, rewards and trained weights."""
    found = []
    for kind in ("stacked", "listed"):
        changes = {"policy.trains": trains, "lm.layers": kind}
        r = recommender(small_config(changes), tmp_path)
        frozen = r.lm.frozen["upper" if trains == "lora" else "lower"]
        assert layers.is_listed(frozen["mlp"]["up"]["kernel"]) == (kind == "listed")
        state, metrics, samples, _ = policy_step(r, changes, steps=2)
        metrics = {n: v for n, v in metrics.items() if "seconds" not in n}
        profiles_of = [s["profile"] for s in samples], r.write(state["lm"].weights, "validation")
        found.append((state["lm"].weights, metrics, *profiles_of))
    assert found[1][2:] == found[0][2:]
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-4, abs=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found[1][0], found[0][0])


def test_empty_and_overlong_profiles_earn_nothing_and_ties_are_counted(r, monkeypatch):
    """Of 8 users with 2 profiles: the first's are empty, the second's too long, the third's and fourth's alike."""
    texts_of, limit = r.lm.texts, r.embedder.profile_limit
    long = ["space " * (limit + 1), "crime " * (limit + 1)]

    def texts(sampled):
        texts, unended = texts_of(sampled)
        return [["", " "], long, ["space"] * 2, ["crime alibi"] * 2, *texts[4:]], unended

    monkeypatch.setattr(r.lm, "texts", texts)
    _, found, _, phase = policy_step(r)
    assert found["empty"] == 2 / 16 and found["invalid"] == 4 / 16
    earned = np.asarray(phase.parts["metric"] + phase.parts["invalid"])
    assert (earned[:2] == 0).all() and (earned[2:] > 0).all()
    assert found["reward"] == pytest.approx(earned.mean(), abs=1e-5)
    assert found["tied"] == np.mean(earned[:, 0] == earned[:, 1]) >= 4 / 8
    assert found["batch_tied"] == 0


def test_a_batch_whose_profiles_all_tie_is_counted_and_teaches_nothing(r, monkeypatch):
    texts_of = r.lm.texts
    monkeypatch.setattr(r.lm, "texts", lambda p: ([["space"] * 2] * 8, texts_of(p)[1]))
    state, found, _, _ = policy_step(r, {"policy.kl_coef": 0.0, "policy.epochs": 1})
    assert found["batch_tied"] == 1 and found["tied"] == 1 and found["spread"] == 0
    assert found["loss"] == pytest.approx(0, abs=1e-9) and max(jax.tree.leaves(moved(r, state))) < 1e-6


def contrastive_phase(r, texts):
    """CL alone on these texts, and a state of both models."""
    optimiser = optimisers.of(r.config.contrastive, 100)
    phase = contrastive.ContrastivePhase(r, "contrastive", "embedder", optimiser, texts).at(0, 0)
    return phase, train.initial_state(r, [phase, policy.PolicyPhase(r, optimiser)])


def test_contrastive_phase_leaves_empty_profiles_out(r):
    def texts(phase, state):
        return tuple(["", *["space"] * (len(r.sessions[split]) - 1)] for split in ("train", "validation", "train"))

    phase, state = contrastive_phase(r, texts)
    phase.begin(state)
    assert sorted({row for row, _ in phase.pairs}) == list(range(1, len(r.sessions["train"])))
    before = jax.tree.map(np.array, {name: part.weights for name, part in state.items()})
    state, report = phase.step(state, 0)
    assert np.isfinite(float(report.metrics["loss"]))
    jax.tree.map(np.testing.assert_array_equal, before["lm"], state["lm"].weights)  # truly frozen
    word = state["embedder"].weights["encoder"]["word"]["table"]
    assert float(jnp.abs(word - before["embedder"]["encoder"]["word"]["table"]).max()) > 0
    phase, _ = contrastive_phase(r, lambda phase, state: ([" "] * len(r.sessions["train"]), [], []))
    with pytest.raises(InputError, match="Every training profile is empty"):
        phase.begin(state)


def test_a_contrastive_phase_alone(r):
    """begin, step and validate need no loop, and the same step from the same state gives the same numbers."""
    results = []
    for _ in range(2):
        phase, state = contrastive_phase(r, profiles.texts_of_cl)
        phase.begin(state)
        state, report = phase.step(state, 1)
        results.append(({n: float(v) for n, v in report.metrics.items()}, phase.validate(state)))
    assert results[0] == results[1] and set(results[0][0]) == {"loss", "accuracy", "grad_norm"}
    assert 0 < results[0][1]["val/ndcg"] < 1


def test_contrastive_learning_reads_raw_histories_too(r):
    """Alone they are cut and count, as the control's do; edits are written into summaries then, and never into what may be cut."""
    raw, summaries = r.history_texts("train"), r.summaries("train", 1)
    r.config = small_config(
        {"phases": "contrastive", "contrastive.texts": "histories", "evaluation.baselines": "random"}
    )
    (phase,) = profiles.schedule(r)
    assert phase.cut and phase.texts(phase, {}) == (raw, r.history_texts("validation"), summaries)
    state = train.initial_state(r, [phase])
    phase.begin(state)
    edits = phase.drawn(np.random.default_rng(0), 8)
    assert any(edit.text.startswith(text) for edit in edits for text in summaries)
    state, _ = phase.step(state, 0)
    assert "val/ndcg" in phase.validate(state)
    r.config = small_config(
        {"phases": "contrastive", "contrastive.texts": "histories,summaries", "evaluation.baselines": "random"}
    )
    (both,) = profiles.schedule(r)
    assert not both.cut and both.texts(both, {}) == (summaries + raw, r.summaries("validation"), summaries)


def test_profiles_that_are_handed_out_are_the_best_of_several(r, tmp_path):
    """None of the other draws earns more; the row says so, and a user asked for alone gets as good a one."""
    how = {"profile.samples": 4, "profile.temperature": 1.0, "profile.best_by": "explains + ended"}
    r.config = small_config(how | {"evaluation.baselines": "random"})
    state = train.initial_state(r, profiles.schedule(r))
    written = profiles.write(r, state, "validation", tmp_path / "p.jsonl")
    weights, earn = state["lm"].weights, Rewarder(r, r.weights(state, "embedder"), "explains + ended")

    def best(sessions, key):
        """Of the same draws, all of them ranked here."""
        asked = [r.prompt(session)[0] for session in sessions]
        drawn, unended = r.lm.texts(r.lm.sample(weights, asked, range(len(asked)), key, r.lm.how(4, 1.0))[0])
        earned = earn(drawn, sessions, ended=~unended)
        places = np.where(earned.valid, np.asarray(earned.value), -np.inf).argmax(1)
        return [of_row[place] for of_row, place in zip(drawn, places)], set(places)

    texts, places = best(r.sessions["validation"], jax.random.fold_in(r.run.key, 0))
    assert written == texts and len(places) > 1
    one = r.sessions["validation"][:1]
    assert [recommend.written(r, {"lm": weights, "embedder": earn.embedder}, one[0])] == best(one, r.run.key)[0]
    models = {"lm": weights, "embedder": earn.embedder}
    texts, ended = profiles.best(r, models, 7)
    assert len(texts) == len(ended) == len(r.sessions["test"])
    with r.config.unlocked():
        r.config.profile.best_by = (
            "explains - ended"  # drawn alike, chosen otherwise: nothing of the first file is taken
        )
    assert profiles.best(r, models, 7)[0] != texts
    assert len(list((r.run.workdir / "profiles").glob("best-*-7-test.jsonl"))) == 2


def test_a_policy_phase_alone(r):
    results = []
    for _ in range(2):
        phase, state = policy_phase(r)
        state, report = phase.step(state, 1)
        numbers = {n: float(v) for n, v in report.metrics.items() if "seconds" not in n}
        results.append((numbers, report.sample, phase.validate(state)))
    assert results[0] == results[1] and 0 < results[0][2]["val/ndcg"] < 1


def test_the_schedule(r):
    r.config = small_config({"iterations": 2, "evaluation.baselines": "history_trained"})
    schedule = profiles.schedule(r)
    phases = [("contrastive", "embedder"), ("policy", "lm")]
    wanted = [(*phase, i) for i in range(2) for phase in phases] + [("control", "control", i) for i in range(2)]
    assert [(p.name, p.part, p.iteration) for p in schedule] == wanted
    assert [p.place for p in schedule] == list(range(6))
    r.config = small_config({"phases": "policy", "evaluation.baselines": "history_trained"})
    assert [p.name for p in profiles.schedule(r)] == ["policy"]


def test_the_examples_in_docstrings():
    assert doctest.testmod(profiles).failed == 0 < doctest.testmod(profiles).attempted


@pytest.mark.parametrize(
    ("changes", "rows"),
    [
        ({"phases": "policy"}, ["random", "shuffled_profiles", "summary", "zero_shot", "rlso"]),
        ({"phases": "contrastive"}, ["random", "shuffled_profiles", "summary", "zero_shot", "cl"]),
        (
            {"phases": "policy, contrastive,"},
            ["random", "shuffled_profiles", "summary", "zero_shot", "rlso", "rlso_cl"],
        ),
        (
            {"iterations": 2, "evaluation.baselines": "random,history_trained", "policy.keep_best": False},
            ["random", "shuffled_profiles", "summary", "history_trained", "zero_shot", "cl", "cl_rlso", "cl_rlso_x2"],
        ),
    ],
    ids=["policy-only", "contrastive-only", "policy-first", "two-iterations"],
)
def test_whole_runs(world, tmp_path, changes, rows):
    small = {"contrastive.steps": 1, "policy.steps": 1, "evaluation.bootstrap": 20}
    config = small_config(changes | small)
    results = train.train(profiles, config, tmp_path)
    assert list(results["rows"]) == rows
    steps = rows[rows.index("zero_shot") :]
    gains = [*zip(steps, steps[1:]), (steps[0], steps[-1])]
    gains += [(row, steps[-1]) for row in ("shuffled_profiles", "summary") if row in rows]
    assert set(results["gains"]) == {f"{a}->{b}" for a, b in gains}
    phases = [name.strip() for name in config.phases.strip(",").split(",")] * config.iterations
    assert results["config"]["phases"] == config.phases and results["seconds_of_phases"][phases[-1]] > 0
    phases += ["control"] * ("history_trained" in rows) * config.iterations
    records = files.read_jsonl(tmp_path / "metrics.jsonl")
    assert [(r["phase"], r["step"]) for r in records] == [(name, step) for name in phases for step in (0, 1)]
    assert {"report.html", "report.md", "results.json", "samples.jsonl"} <= {p.name for p in tmp_path.iterdir()}
    again = train.test_again(profiles, config, tmp_path)
    assert again["rows"] == results["rows"] and again["gains"] == results["gains"]
    written = train.write_profiles(profiles, config, tmp_path, tmp_path / "out.jsonl", "test")
    ours = [file for row in reversed(steps) for file in tmp_path.glob(f"profiles/{row}-*-test.jsonl")]
    kept = {line["row"]: line["profile"] for line in files.read_jsonl(ours[0])}  # steps of one policy share a file
    assert written == [kept[i] for i in range(len(written))]


def stopped_after(config, workdir, steps):
    """A run that was asked to stop after so many steps of its first phase."""
    run = Run(config, workdir, Interrupt())
    r = train.started(profiles, run)
    r.prepare()
    phases = profiles.schedule(r)

    class Asking(trackers.Silent):
        def log(self, iteration, phase, step, global_step, values):
            run.interrupt.asked = step == steps

        def written(self):
            return {}

    try:
        with pytest.raises(Stop):
            Loop(phases, config, workdir, Asking(), run.interrupt).run(train.initial_state(r, phases))
    finally:
        run.interrupt.close()
    return phases


def test_an_unfinished_run_is_not_tested_but_used(world, tmp_path, capsys):
    config = small_config({"evaluation.baselines": "random"})
    stopped_after(config, tmp_path, 3)
    with pytest.raises(InputError, match=r"has not finished \(contrastive, step 3\): go on with --mode=train"):
        train.test_again(profiles, config, tmp_path)
    assert "Profile: " in recommend.run(profiles, config, tmp_path, "profile", "space comet", 3)


class Sampling(LanguageModel):
    """A language model that counts its batches, and is killed at one of them if asked."""

    calls, dies_at = [], 0

    def sample(self, *given):
        if self.dies_at and len(self.calls) == self.dies_at - 1:
            raise KeyboardInterrupt
        self.calls.append(given)
        return super().sample(*given)


def test_a_table_equals_the_lines_and_a_killed_call_goes_on(world, tmp_path, capsys):
    config = small_config({"embedder.max_profile_tokens": 4})
    stopped_after(config, tmp_path, 3)

    def build(run):
        r = profiles.build(run)
        r.lm.__class__ = Sampling
        return r

    system = types.SimpleNamespace(**{**vars(profiles), "build": build})
    texts = train.write_profiles(system, config, tmp_path, tmp_path / "out.jsonl", "train")
    lines, r = files.read_jsonl(tmp_path / "out.jsonl"), recommender(config, tmp_path)
    assert [line["profile"] for line in sorted(lines, key=lambda line: line["row"])] == texts
    for line in lines:
        assert line["over_long"] == (r.embedder.length(line["profile"]) > 4)
        assert line["empty"] == (not line["profile"].strip())
        assert line["user"] == r.sessions["train"][line["row"]].user and (line["ended"] or line["tokens"] == 6)
    assert any(line["over_long"] for line in lines)
    output = tmp_path / "out.parquet"
    Sampling.calls, Sampling.dies_at = [], 3
    with pytest.raises(KeyboardInterrupt):
        train.write_profiles(system, config, tmp_path, output, "train")
    (part,) = tmp_path.glob("out.parquet.train-3-*.part")
    assert files.read_jsonl(part) == lines[:32] and not output.exists()
    with open(part, "a", encoding="utf-8") as file:
        file.write('{"row": 3, "user": "us')
    Sampling.dies_at = 0
    capsys.readouterr()
    assert train.write_profiles(system, config, tmp_path, output, "train") == texts
    assert parquet.read_table(output).to_pylist() == lines and not list(tmp_path.glob("*.part"))
    assert len(Sampling.calls) == -(-len(texts) // 16) > 3
    assert f"| 32/{len(texts)} [" in capsys.readouterr().err  # those that were there are no part of the rate


def test_an_output_of_another_kind(tmp_path):
    with pytest.raises(InputError, match=r"--output=.*out\.csv won't do: its name must end in \.jsonl or \.parquet"):
        train.write_profiles(profiles, None, tmp_path, tmp_path / "out.csv", "test")


def test_an_output_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"--output=.*out\.jsonl can't be written \(.+\): name another file"):
        train.write_profiles(profiles, None, tmp_path, tmp_path / "file/out.jsonl", "test")


def test_the_held_out_reward_is_the_validation_profiles_own(r):
    phase, state = policy_phase(r, {"policy.reward": f"{__name__}:short_is_good"})
    found, texts = phase.validate(state), r.write(state["lm"].weights, "validation")
    wanted = np.mean([bool(text.strip()) / (1 + len(text.split())) for text in texts])
    assert found["val/reward"] == pytest.approx(wanted, rel=1e-5)
