"""Imitation: given texts are scored as sampled ones are, the loss is cross-entropy, and a tiny model learns to write."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lpt_jax import files, train
from lpt_jax.data import made_up
from lpt_jax.errors import InputError
from lpt_jax.learning import next_token, optimisers, policy
from lpt_jax.learning.loop import Part
from lpt_jax.models import layers
from lpt_jax.models.decoder import top_layers
from lpt_jax.run import Run
from lpt_jax.systems import profiles
from tests.systems.test_profiles_system import stopped_after
from tests.systems.tiny_run import recommender, small_config, small_world
from tests.tiny_models import SPECS, divided, full_logits, joined, left_padded, random_decoder

B, P, G, T = 3, 7, 2, 5


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("name", SPECS)
def test_the_loss_is_the_full_models_cross_entropy(name, start):
    """Of rows of different lengths, with and without frozen layers below."""
    whole = random_decoder(SPECS[name])
    lm, (prompts, mask) = divided(whole, start), left_padded(B, P)
    graph, trained, frozen = nnx.split(lm, top_layers, ...)
    trained, frozen = layers.plain(trained), layers.plain(frozen)
    tokens = np.random.default_rng(1).integers(3, 97, (B, G, T)).astype(np.int32)
    counts = np.array([[5, 2], [3, 0], [1, 4]])
    given = next_token.given(graph, frozen, trained, prompts, mask, tokens, counts)
    real = np.arange(T) < counts[..., None]
    np.testing.assert_array_equal(given.mask, real)
    wanted = np.zeros((B, G, T), np.float32)
    for g in range(G):  # one text at a time, by the whole model
        logits = full_logits(whole, *joined(prompts, mask, tokens[:, g : g + 1]))[:, P - 1 : -1]
        wanted[:, g] = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), tokens[:, g, :, None], -1)[..., 0]
    plan = policy.Plan(graph, optax.sgd(0.05), below=start, chunk=4)
    found = policy.log_probs(plan, frozen, trained, given, mask[:, :-1])
    np.testing.assert_allclose(found, np.where(real, wanted, 0), atol=2e-4)
    part = Part(jax.tree.map(jnp.array, trained), plan.optimiser.init(trained))
    asked = prompts, mask, tokens, counts
    part, first = next_token.update(plan, frozen, part, *asked)
    assert float(first["loss"]) == pytest.approx(-wanted[real].mean(), rel=1e-4)
    _, second = next_token.update(plan, frozen, part, *asked)
    assert float(second["loss"]) < float(first["loss"])


def test_two_phases_of_one_model_keep_their_optimisers_apart():
    made = optimisers.shared({"a": optax.adam(0.1), "b": optax.sgd(0.1, momentum=0.9)})
    alone = {"a": optax.adam(0.1), "b": optax.sgd(0.1, momentum=0.9)}
    weights, gradients = {"w": jnp.ones(2)}, {"w": jnp.array([1.0, -2.0])}
    state, states = made["a"].init(weights), {name: one.init(weights) for name, one in alone.items()}
    for name in "abba":
        moved, state = made[name].update(gradients, state, weights)
        wanted, states[name] = alone[name].update(gradients, states[name], weights)
        np.testing.assert_array_equal(moved["w"], wanted["w"])
    assert optimisers.shared({"a": alone["a"]}) == {"a": alone["a"]}


@pytest.fixture(scope="module")
def world():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(made_up, "world", small_world())
        yield


def config(**changes):
    settings = {"phases": "imitation", "profile.max_tokens": 12, "imitation.steps": 60, "imitation.evaluate_every": 60}
    settings |= {"imitation.learning_rate": 1e-2, "policy.last_layers": 2, "evaluation.bootstrap": 20}
    return small_config(settings | {name.replace("__", "."): value for name, value in changes.items()})


def text_file(path, texts):
    path.write_text("".join(json.dumps({"user": user, "profile": text}) + "\n" for user, text in texts.items()))
    return str(path)


def test_a_model_learns_to_write_what_a_file_says(world, tmp_path):
    """The same short text for every user: in the end test users' profiles are that text, ended; at first none was."""
    text = "likes space and horror films ."
    file = text_file(tmp_path / "texts.jsonl", {f"user{u:04d}": text for u in range(40)})
    results = train.train(profiles, config(imitation__texts="file", imitation__file=file), tmp_path / "run")
    written = {name: list((tmp_path / "run/profiles").glob(f"{name}-*-test.jsonl")) for name in ("zero_shot", "sft")}
    before, after = (files.read_jsonl(found[0]) for found in written.values())
    assert {line["profile"] for line in after} == {text} and all(line["ended"] for line in after)
    assert text not in {line["profile"] for line in before}
    assert list(results["rows"])[-2:] == ["zero_shot", "sft"] and "zero_shot->sft" in results["gains"]
    losses = [line["loss"] for line in files.read_jsonl(tmp_path / "run/metrics.jsonl") if "loss" in line]
    assert losses[-1] < 0.1 * losses[0]


def test_what_is_imitated(world, tmp_path):
    """Summaries in all wordings; the best of several samples earns no less than any of them; and both phases go on."""
    asked = config(imitation__texts="summaries,best", phases="imitation,policy", imitation__steps=2, policy__steps=1)
    r = recommender(asked, tmp_path)
    phase, rl = profiles.schedule(r)
    state = train.initial_state(r, [phase, rl])
    assert set(state["lm"].optimiser) == {"imitation", "policy"}
    asked = profiles.to_imitate(phase, state)
    count = len(r.sessions["train"])
    assert [row for row, _ in asked] == [*range(count)] * 5
    assert {text for _, text in asked[:count]} == set(r.summaries("train", 1))
    best = [text for _, text in asked[-count:]]
    rl.begin(state)
    people = r.sessions["train"]
    earned = rl.earn([[text or "."] for text in best], people, rl.longest)
    key = jax.random.fold_in(r.run.key, phase.place)
    size, how = r.config.policy.users, r.lm.how(phase.settings.samples, r.config.policy.temperature)
    sampled, _ = r.lm.texts(r.sample(state["lm"].weights, np.arange(size), key, how)[0])
    others = rl.earn(sampled, people[:size], rl.longest)
    counts = others.valid.any(1)
    highest = np.where(others.valid, np.asarray(others.value), -np.inf).max(1)
    np.testing.assert_allclose(np.asarray(earned.value)[:size, 0][counts], highest[counts], atol=1e-6)


def test_the_best_are_of_as_many_sessions_as_asked_for(world, tmp_path):
    """Drawn by the seed; without a number of all, in order; each text stands beside its own session's row."""
    found = {}
    for seed, sessions in ((0, 0), (0, 7), (1, 7)):
        asked = config(imitation__texts="best", imitation__sessions=sessions, imitation__samples=1, seed=seed)
        r = recommender(asked, tmp_path / f"{seed}-{sessions}")
        (phase,) = profiles.schedule(r)
        found[seed, sessions] = phase.texts(phase, {})
        drawn, prompts = r.sessions["best of train"], r.prompts["best of train"]
        rows = [row for row, _ in found[seed, sessions]]
        assert drawn == [r.sessions["train"][row] for row in rows]
        assert prompts == [r.prompts["train"][row] for row in rows]
    assert [row for row, _ in found[0, 0]] == list(range(len(found[0, 0])))
    of_seeds = [[row for row, _ in found[seed, 7]] for seed in (0, 1)]
    assert [len(set(rows)) for rows in of_seeds] == [7, 7]
    assert of_seeds[0] != of_seeds[1]


def test_a_resumed_run_goes_on_with_the_same_best_profiles(world, tmp_path):
    """They were sampled by the model before it imitated any: killed after two of four steps, the weights end the same."""
    asked = config(imitation__texts="best", imitation__steps=4, imitation__evaluate_every=2)
    ended = []
    for workdir, stop in ((tmp_path / "whole", 0), (tmp_path / "parts", 2)):
        if stop:
            stopped_after(asked, workdir, stop)
        train.train(profiles, asked, workdir)
        r = train.started(profiles, Run(asked, workdir))
        ended.append(train.Ended(profiles, r, workdir, ["imitation"])["lm"].weights)
    for ours, theirs in zip(*map(jax.tree.leaves, ended), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_questions_are_learned_before_profiles(world, tmp_path):
    """The phase's loss falls, the row is told, and a run begins from one that learned them."""
    changes = dict(
        phases="knowledge,imitation",
        knowledge__steps=12,
        knowledge__learning_rate=3e-3,
        knowledge__evaluate_every=12,
        profile__max_tokens=24,
    )
    results = train.train(profiles, config(**changes), tmp_path / "first")
    assert {"zero_shot", "kn", "kn_sft"} <= set(results["rows"])
    losses = [
        record["loss"]
        for record in files.read_jsonl(tmp_path / "first/metrics.jsonl")
        if record.get("phase") == "knowledge" and "loss" in record
    ]
    assert len(losses) == 12 and np.mean(losses[-3:]) < np.mean(losses[:3])
    r = recommender(config(**changes), tmp_path / "again")
    phase, *_ = profiles.schedule(r)
    phase.begin({})
    assert (
        len(phase.questions)
        == 12 * r.config.knowledge.batch
        == len(phase.rows) + round(phase.left_out * len(phase.questions))
    )
    (tmp_path / "first/config.json").write_text(json.dumps(config(**changes).to_dict()))  # as main writes it
    after = train.train(
        profiles,
        config(phases="imitation", profile__max_tokens=24, begin_from=str(tmp_path / "first")),
        tmp_path / "second",
    )
    assert after["rows"]["start"] == results["rows"]["kn_sft"]


def test_texts_that_will_not_do(world, tmp_path, capsys):
    users = {f"user{u:04d}": "likes space ." for u in range(40)}
    file = text_file(tmp_path / "t.jsonl", users)

    def begun(**changes):
        r = recommender(config(**changes), tmp_path / "run")
        (phase,) = profiles.schedule(r)
        phase.begin({})
        return phase

    with pytest.raises(InputError, match=r"imitation.file= won't do|imitation.file"):
        config(imitation__texts="file")
    with pytest.raises(InputError, match="no such file"):
        begun(imitation__texts="file", imitation__file=str(tmp_path / "none.jsonl"))
    with pytest.raises(InputError, match="profile of none of the training sessions"):
        begun(imitation__texts="file", imitation__file=text_file(tmp_path / "o.jsonl", {"somebody": "x"}))
    with pytest.raises(InputError, match='record 1 has no "user"'):
        (tmp_path / "w.jsonl").write_text('{"user": 3}\n')
        begun(imitation__texts="file", imitation__file=str(tmp_path / "w.jsonl"))
    with pytest.raises(InputError, match="does not begin with --config.prompt.start='This user'"):
        begun(imitation__texts="file", imitation__file=file, prompt__start="This user")
    with pytest.raises(InputError, match="None of the .* texts to imitate has words and fits"):
        begun(imitation__texts="file", imitation__file=file, profile__max_tokens=2)
    some = {user: "likes space ." if i % 2 else "likes " * 30 for i, user in enumerate(users)}
    phase = begun(imitation__texts="file", imitation__file=text_file(tmp_path / "s.jsonl", some))
    assert 0 < phase.left_out < 1
    assert "texts to imitate are left out" in capsys.readouterr().out


def test_a_parquet_file_of_profiles(tmp_path):
    lines = text_file(tmp_path / "t.jsonl", {"ann": "likes space", "bob": "likes crime"})
    files.write_parquet(tmp_path / "t.parquet", lines, {"user": "string", "profile": "string"})
    wanted = {("ann", None): "likes space", ("bob", None): "likes crime"}
    assert files.read_texts(tmp_path / "t.parquet", "x") == files.read_texts(lines, "x") == wanted
    (tmp_path / "h.jsonl").write_text(
        "".join(json.dumps({"user": "ann", "history": n, "profile": text}) + "\n" for n, text in ((3, "a"), (5, "b")))
    )
    assert files.read_texts(tmp_path / "h.jsonl", "x") == {("ann", 3): "a", ("ann", 5): "b"}
    (tmp_path / "two.jsonl").write_text('{"user": "ann", "profile": "a"}\n' * 2)
    with pytest.raises(InputError, match="record 2 is another profile of user 'ann'"):
        files.read_texts(tmp_path / "two.jsonl", "x")
    (tmp_path / "w.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match="is no parquet file"):
        files.read_texts(tmp_path / "w.parquet", "x")
