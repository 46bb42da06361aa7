"""LangPTune's phases and runs: every variant of RLSO, profiles that earn nothing, and the rows of the results."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pyarrow import parquet

from lpt_jax import files, rewards
from lpt_jax.data import made_up
from lpt_jax.errors import InputError
from lpt_jax.recommender import ProfileRecommender
from lpt_jax.systems import profiles
from tests.systems.tiny_run import small_config, small_world

CALLS = []


def short_is_good(ranks, similarities, texts):
    """A reward of one's own: the fewer words, the more."""
    CALLS.append((ranks.shape, similarities.shape, texts))
    return jnp.array([[1 / (1 + len(text.split())) for text in row] for row in texts])


class Samples(list):
    """Stands in for the tracker."""

    def sample(self, *record):
        self.append(record)


@pytest.fixture(scope="module")
def world():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(made_up, "world", small_world())
        yield


@pytest.fixture(scope="module")
def shared(world, tmp_path_factory):
    return ProfileRecommender(small_config(), tmp_path_factory.mktemp("run"))


@pytest.fixture
def r(shared, monkeypatch):
    monkeypatch.setattr(shared, "config", shared.config)
    return shared


def policy_step(r, changes=(), steps=1):
    """The first updates of RLSO alone with some settings changed: (state, metrics of the last, samples)."""
    r.config = small_config(changes)
    state, samples = r.initial_state({"policy": 0}), Samples()
    phase = profiles.policy_phase(r, 0, samples)
    phase.begin(state, 0)
    for step in range(steps):
        state, found = phase.step(state, step)
    return state, {name: float(value) for name, value in found.items()}, samples


def moved(r, state):
    """How far each weight of the policy has moved at most."""
    return jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), state["policy"], r.fresh_policy())


def captured(monkeypatch, name):
    """The results of all calls of a function of rewards."""
    found, function = [], getattr(rewards, name)
    monkeypatch.setattr(rewards, name, lambda *a: found.append(function(*a)) or found[-1])
    return found


def pairs(values):
    """Mean over users and pairs of (v_i - v_j)², the plain way."""
    values = np.asarray(values)
    i, j = np.triu_indices(values.shape[1], 1)
    return np.mean((values[:, i] - values[:, j]) ** 2)


def test_the_first_step_is_papers(r, monkeypatch):
    """At first π = π_ref: no KL, and REBEL's loss is that of the whitened rewards' differences, η² (r_i - r_j)²."""
    whitened = captured(monkeypatch, "whiten")
    state, found, samples = policy_step(r, {"policy.epochs": 1, "policy.eta": 0.5, "policy.samples": 3})
    assert found["kl"] == pytest.approx(0, abs=1e-5)
    assert found["loss"] == pytest.approx(0.25 * pairs(whitened[0]), rel=1e-4)
    np.testing.assert_allclose([whitened[0].mean(), whitened[0].std()], [0, 1], atol=1e-3)
    assert min(jax.tree.leaves(moved(r, state)["layers"])) > 0
    assert set(state["policy"]) == {"layers", "final_norm", "head"}  # the last layer, and what stands above it
    assert state["policy"]["layers"]["q"].shape[0] == 1
    place, values = samples[0][:3], samples[0][3]
    assert place == (0, "policy", 1) and values["reward/total"] == pytest.approx(values["reward/metric"], abs=1e-5)
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
    state, found, samples = policy_step(r, changes, steps=2)
    assert np.isfinite(list(found.values())).all() and found["grad_norm"] > 0 and 0 < found["reward/metric"] < 1
    assert found["kl"] != 0 and min(jax.tree.leaves(moved(r, state)["layers"])) > 0
    settings = r.config.policy
    counts = [a for a in jax.tree.leaves(state["policy_optimiser"]) if a.dtype == jnp.int32]
    assert {int(count) for count in counts} == {2 * settings.epochs * settings.minibatches}
    if ":" in settings.reward:
        (ranks, similarities, texts), shape = CALLS[-1], (settings.users, settings.samples)
        assert ranks == similarities == (*shape, 1) and (len(texts), len(texts[0])) == shape
        wanted = np.mean([1 / (1 + len(text.split())) for row in texts for text in row])
        assert found["reward/metric"] == pytest.approx(wanted, rel=1e-5)


def test_lora_trains_alone(world, tmp_path):
    r = ProfileRecommender(small_config({"policy.trains": "lora"}), tmp_path)
    before = jax.tree.map(np.array, [r.upper, r.trunk])
    state, found, _ = policy_step(r, {"policy.trains": "lora"}, steps=2)
    assert all("_lora_" in name for name in state["policy"]["layers"]) and found["kl"] != 0
    assert min(jax.tree.leaves(moved(r, state)["layers"])) > 0
    jax.tree.map(np.testing.assert_array_equal, before, [r.upper, r.trunk])


@pytest.mark.parametrize("trains", ["last_layers", "lora"])
def test_frozen_layers_in_a_list_change_nothing(world, tmp_path, trains):
    """lm.layers=listed: the same profiles, rewards and trained weights."""
    found = []
    for layers in ("stacked", "listed"):
        changes = {"policy.trains": trains, "lm.layers": layers}
        r = ProfileRecommender(small_config(changes), tmp_path)
        assert isinstance((r.upper if trains == "lora" else r.trunk)["layers"], list if layers == "listed" else dict)
        state, metrics, samples = policy_step(r, changes, steps=2)
        metrics = {n: v for n, v in metrics.items() if "seconds" not in n}
        found.append(
            (state["policy"], metrics, [s[3]["profile"] for s in samples], r.write("validation", None, 0, 0.0))
        )
    assert found[1][2:] == found[0][2:]
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-4, abs=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found[1][0], found[0][0])


def test_empty_and_overlong_profiles_earn_nothing_and_ties_are_counted(r, monkeypatch):
    """Of 8 users with 2 profiles: the first's are empty, the second's too long, the third's and fourth's alike."""
    parts = captured(monkeypatch, "parts")
    texts_of = r.writer.texts
    long = ["space " * (r.profile_limit + 1), "crime " * (r.profile_limit + 1)]

    def texts(sampled):
        texts, unended = texts_of(sampled)
        return [["", " "], long, ["space"] * 2, ["crime alibi"] * 2, *texts[4:]], unended

    monkeypatch.setattr(r.writer, "texts", texts)
    _, found, _ = policy_step(r)
    assert found["empty"] == 2 / 16 and found["invalid"] == 4 / 16
    earned = np.asarray(parts[0]["metric"] + parts[0]["invalid"])
    assert (earned[:2] == 0).all() and (earned[2:] > 0).all()
    assert found["reward"] == pytest.approx(earned.mean(), abs=1e-5)
    assert found["tied"] == np.mean(earned[:, 0] == earned[:, 1]) >= 4 / 8
    assert found["batch_tied"] == 0


def test_a_batch_whose_profiles_all_tie_is_counted_and_teaches_nothing(r, monkeypatch):
    texts_of = r.writer.texts
    monkeypatch.setattr(r.writer, "texts", lambda p: ([["space"] * 2] * 8, texts_of(p)[1]))
    state, found, _ = policy_step(r, {"policy.kl_coef": 0.0, "policy.epochs": 1})
    assert found["batch_tied"] == 1 and found["tied"] == 1 and found["spread"] == 0
    assert found["loss"] == pytest.approx(0, abs=1e-9) and max(jax.tree.leaves(moved(r, state))) < 1e-6


def test_contrastive_phase_leaves_empty_profiles_out(r, monkeypatch):
    state = r.initial_state({"encoder": 0, "policy": 0})
    phase = profiles.contrastive_phase(r, 0)
    sizes, indices = [], profiles.batches.indices
    monkeypatch.setattr(profiles.batches, "indices", lambda n, *a: sizes.append(n) or indices(n, *a))
    train = r.data.sessions["train"]
    monkeypatch.setattr(r, "write", lambda split, *a: ["", *["space"] * (len(r.data.sessions[split]) - 1)])
    phase.begin(state, 0)
    before = jax.tree.map(np.array, [state["encoder"], state["policy"]])
    state, found = phase.step(state, 0)
    assert sizes == [len(train) - 1] and np.isfinite(float(found["loss"]))
    jax.tree.map(np.testing.assert_array_equal, before[1], state["policy"])  # truly frozen
    assert float(jnp.abs(state["encoder"]["word"] - before[0]["word"]).max()) > 0
    monkeypatch.setattr(r, "write", lambda split, *a: [" "] * len(r.data.sessions[split]))
    with pytest.raises(InputError, match="Every training profile is empty"):
        phase.begin(state, 0)


def test_the_schedule(r):
    r.config = small_config({"iterations": 2, "evaluation.baselines": "history_trained"})
    names = [(p.name, p.part, p.iteration) for p in profiles.schedule(r, None)]
    phases = [("contrastive", "encoder"), ("policy", "policy")]
    wanted = [(*phase, i) for i in range(2) for phase in phases] + [("control", "control", i) for i in range(2)]
    assert names == wanted
    r.config = small_config({"phases": "policy", "evaluation.baselines": "history_trained"})
    assert [p.name for p in profiles.schedule(r, None)] == ["policy"]


@pytest.mark.parametrize(
    ("changes", "rows"),
    [
        ({"phases": "policy"}, ["random", "zero_shot", "rlso"]),
        ({"phases": "contrastive"}, ["random", "zero_shot", "cl"]),
        ({"phases": "policy, contrastive,"}, ["random", "zero_shot", "rlso", "rlso_cl"]),
        (
            {"iterations": 2, "evaluation.baselines": "random,history_trained", "policy.keep_best": False},
            ["random", "history_trained", "zero_shot", "cl", "cl_rlso", "cl_rlso_x2"],
        ),
    ],
    ids=["policy-only", "contrastive-only", "policy-first", "two-iterations"],
)
def test_whole_runs(world, tmp_path, changes, rows):
    small = {"contrastive.steps": 1, "policy.steps": 1, "evaluation.bootstrap": 20}
    config = small_config(changes | small)
    results = profiles.train(config, tmp_path)
    assert list(results["rows"]) == rows
    steps = rows[rows.index("zero_shot") :]
    assert set(results["gains"]) == {f"{a}->{b}" for a, b in [*zip(steps, steps[1:]), (steps[0], steps[-1])]}
    phases = [name.strip() for name in config.phases.strip(",").split(",")] * config.iterations
    assert results["config"]["phases"] == config.phases and results["seconds_of_phases"][phases[-1]] > 0
    phases += ["control"] * ("history_trained" in rows) * config.iterations
    records = files.read_jsonl(tmp_path / "metrics.jsonl")
    assert [(r["phase"], r["step"]) for r in records] == [(name, step) for name in phases for step in (0, 1)]
    assert {"report.html", "report.md", "results.json", "samples.jsonl"} <= {p.name for p in tmp_path.iterdir()}
    again = profiles.evaluate(config, tmp_path)
    assert again["rows"] == results["rows"] and again["gains"] == results["gains"]
    written = profiles.write_profiles(config, tmp_path, tmp_path / "out.jsonl", "test")
    ours = [file for row in reversed(steps) for file in tmp_path.glob(f"profiles/{row}-*-test.jsonl")]
    kept = {line["row"]: line["profile"] for line in files.read_jsonl(ours[0])}  # steps of one policy share a file
    assert written == [kept[i] for i in range(len(written))]


def test_an_unfinished_run_is_not_tested(r, tmp_path, monkeypatch):
    r.config = small_config()
    monkeypatch.setattr(profiles, "trained", lambda *a: (r, profiles.schedule(r, None), {}, {"position": 1, "step": 3}))
    with pytest.raises(InputError, match=r"has not finished \(policy, step 3\): go on with --mode=train"):
        profiles.evaluate(r.config, tmp_path)


def test_a_table_equals_the_lines_and_a_killed_call_goes_on(r, tmp_path, monkeypatch, capsys):
    r.use_policy(r.fresh_policy())
    monkeypatch.setattr(r, "profile_limit", 4)
    monkeypatch.setattr(profiles, "trained", lambda *a: (r, None, None, {"global_step": 7}))
    texts = profiles.write_profiles(r.config, tmp_path, tmp_path / "out.jsonl", "train")
    lines, sample, calls = files.read_jsonl(tmp_path / "out.jsonl"), r.writer.sample, []
    assert [line["profile"] for line in sorted(lines, key=lambda line: line["row"])] == texts
    for line in lines:
        length = len(r.ranker.tokenizer(r.encoder_spec.query_prefix + line["profile"])["input_ids"])
        assert line["over_long"] == (length > 4) and line["empty"] == (not line["profile"].strip())
        assert line["user"] == r.sessions["train"][line["row"]].user and (line["ended"] or line["tokens"] == 6)
    assert any(line["over_long"] for line in lines)

    def killed(*given):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(given)
        return sample(*given)

    output, part = tmp_path / "out.parquet", tmp_path / "out.parquet.train-7.part"
    monkeypatch.setattr(r.writer, "sample", killed)
    with pytest.raises(KeyboardInterrupt):
        profiles.write_profiles(r.config, tmp_path, output, "train")
    assert files.read_jsonl(part) == lines[:32] and not output.exists()
    with open(part, "a", encoding="utf-8") as file:
        file.write('{"row": 3, "user": "us')
    monkeypatch.setattr(r.writer, "sample", lambda *a: calls.append(a) or sample(*a))
    capsys.readouterr()
    assert profiles.write_profiles(r.config, tmp_path, output, "train") == texts
    assert parquet.read_table(output).to_pylist() == lines and not list(tmp_path.glob("*.part"))
    assert len(calls) == -(-len(texts) // 16) > 3
    assert f"| 32/{len(texts)} [" in capsys.readouterr().err  # those that were there are no part of the rate


def test_an_output_of_another_kind(tmp_path):
    with pytest.raises(InputError, match=r"--output=.*out\.csv won't do: its name must end in \.jsonl or \.parquet"):
        profiles.write_profiles(None, tmp_path, tmp_path / "out.csv", "test")


def test_an_output_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"--output=.*out\.jsonl can't be written \(.+\): name another file"):
        profiles.write_profiles(None, tmp_path, tmp_path / "file/out.jsonl", "test")


def test_the_held_out_reward_is_the_validation_profiles_own(r):
    r.config = small_config({"policy.reward": f"{__name__}:short_is_good"})
    state, phase = r.initial_state({"policy": 0}), profiles.policy_phase(r, 0, None)
    phase.begin(state, 0)
    found, texts = phase.validate(state), r.write("validation", None, 0, 0.0)
    wanted = np.mean([bool(text.strip()) / (1 + len(text.split())) for text in texts])
    assert found["val/reward"] == pytest.approx(wanted, rel=1e-5)
