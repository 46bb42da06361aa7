"""PeaPOD as a whole: who is asked for whom, no leak of what is asked for, every kind, explanations, controls, export, bad input."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from lpt_jax import recommend, text_metrics, train
from lpt_jax.config import default, finish, tiny
from lpt_jax.data.sessions import Session
from lpt_jax.data.tasks import TASKS
from lpt_jax.errors import InputError
from lpt_jax.main import main
from lpt_jax.models.t5 import T5
from lpt_jax.personal_writer import PersonalWriter
from lpt_jax.run import Run
from lpt_jax.systems import peapod


def config_of(**changes):
    config = tiny(default("peapod"))
    config.trackers = ""
    config.evaluation.baselines = "popularity"
    config.data.prompt_fields = "title,genres,rating,review"  # the made-up world then has reviews
    for name, value in changes.items():
        *groups, key = name.split("__")
        part = config
        for group in groups:
            part = part[group]
        part[key] = value
    return finish(config)


@pytest.fixture(scope="module")
def r(tmp_path_factory):
    return peapod.build(Run(config_of(), tmp_path_factory.mktemp("run")))


def test_a_person_is_what_was_chosen_before(r):
    """Neither the vector nor the sentence of a training example knows what is asked for."""
    rng = np.random.default_rng(0)
    users = {user.id: user for user in r.tasks.users}
    for task in ("retrieval", "ranking", "explanation"):
        for _ in range(20):
            name, items = r.tasks.draw(task, rng).about
            assert items == tuple(users[name].items[: len(items)]) and 0 < len(items) < len(users[name].items)
    example = r.tasks.draw("retrieval", rng)
    asked = {tuple(digits): item for item, digits in enumerate(r.codes.digits.tolist())}[example.digits]
    assert asked not in example.about[1]
    who = r.who([example.about], "retrieval")
    np.testing.assert_allclose(who["user"], r.people.of([example.about[1]]), atol=1e-6)
    assert example.tokens[:6] == list(range(r.lm.slot, r.lm.slot + 6)) and who["task"].tolist() == [
        TASKS.index("retrieval")
    ]


def test_neighbours_are_others(r):
    names = [user.id for user in r.tasks.users[:10]]
    people = [(name, user.items) for name, user in zip(names, r.tasks.users)]
    who = r.who(people, "retrieval")
    assert who["neighbours"].shape == (10, 4, 8)
    for row in range(10):
        assert not any(np.array_equal(other, r.people.all[row]) for other in who["neighbours"][row])
    unknown = r.who([("nobody", r.tasks.users[0].items)], "retrieval")
    np.testing.assert_allclose(unknown["neighbours"][0, 0], r.people.all[0], atol=1e-5)  # a newcomer's nearest


def test_neighbours_of_others_are_somebody_elses(r):
    other = PersonalWriter(Run(config_of(personal__neighbours_of="others"), r.run.workdir))
    people = [(user.id, user.items) for user in r.tasks.users[:10]]
    own, others = (x.who(people, "retrieval") for x in (r, other))
    np.testing.assert_array_equal(own["user"], others["user"])
    assert not np.allclose(own["neighbours"], others["neighbours"])
    again = other.who(people[::-1], "retrieval")
    np.testing.assert_array_equal(again["neighbours"][::-1], others["neighbours"])  # always the same person's


@pytest.mark.parametrize("kind", ["pool", "own", "task", "none"])
def test_every_kind_takes_a_step_and_finds_items(r, kind, tmp_path):
    writer = peapod.build(Run(config_of(personal__kind=kind), tmp_path))
    (phase,) = peapod.schedule(writer)
    state = train.initial_state(writer, [phase])
    phase.begin(state)
    before = writer.fresh("lm")
    state, report = phase.step(state, 0)
    assert np.isfinite(float(report.metrics["loss"]))
    if kind != "none":
        now, old = (np.asarray(weights["personal"]["task"]) for weights in (state["lm"].weights, before))
        assert np.isfinite(now).all() and np.abs(now - old).max() > 0
    assert ("personal" in state["lm"].weights) == (kind != "none")
    ids, _ = writer.found(state["lm"].weights, writer.sessions["test"][:4], 5)
    assert ids.shape == (4, 5) and (ids >= 0).all()
    assert len(writer.tasks.places) == {"none": 0, "task": 3}.get(kind, 6)


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A run that has learned the made-up world with reviews: (config, workdir, results)."""
    config = config_of(
        tasks__steps=400, tasks__batch=48, tasks__learning_rate=3e-3, tasks__evaluate_every=400, lm__dropout=0.0, checkpoint__every=400,
        tasks__title_words=0, evaluation__max_users=0, evaluation__max_test_sessions=0,
    )  # fmt: skip
    workdir = tmp_path_factory.mktemp("learned")
    return config, workdir, train.train(peapod, config, workdir)


def test_explanations_name_the_items_genre(learned):
    """Of the made-up world's reviews, whose words it was never told: the item's code says what it is."""
    config, workdir, results = learned
    assert results["rows"]["tasks"]["recall@10"] > results["rows"]["popularity"]["recall@10"]
    assert {"user_knn", "tasks", "popularity"} <= results["rows"].keys()
    r, state, _ = train.ready(peapod, Run(config, workdir))
    sessions = r.sessions["test"]
    asked = [(session, session.targets[0]) for session in sessions]
    written = r.explain(r.weights(state, "lm"), asked)
    genres = [r.data.catalogue.fields[item]["genres"][0] for _, item in asked]
    right = [genre in text for genre, text in zip(genres, written)]
    assert np.mean(right) > 0.6, list(zip(genres, written))
    assert all(text.endswith("film .") for text in written)
    if text_metrics.by_sacrebleu([("a", ["a"])]):
        rows = results["explanations"]["rows"]
        assert rows["tasks"]["chrf"] > rows["another_review"]["chrf"] + 5
    assert "The review begins" in (workdir / "report.html").read_text()


def test_recommend_and_export(learned, tmp_path):
    config, workdir, _ = learned
    assert len(recommend.run(peapod, config, workdir, "user", "user0095", 4).strip().splitlines()) == 5
    told = recommend.run(peapod, config, workdir, "user", "user0095", 4, of=("", "item0003"))
    assert told.endswith("film .") and told.count(": ") == 1
    peapod.export(peapod, config, workdir, tmp_path / "out")
    spec = json.loads((tmp_path / "out/personal_prompt/personal_prompt.json").read_text())
    assert spec["kind"] == "neighbours" and spec["size"] == 8
    tensors = load_file(tmp_path / "out/personal_prompt/personal_prompt.safetensors")
    r, state, _ = train.ready(peapod, Run(config, workdir))
    np.testing.assert_array_equal(tensors["task"], np.asarray(r.weights(state, "lm")["personal"]["task"]))
    assert T5.load(tmp_path / "out/lm", levels=2, digits=8).personal is None


def test_without_reviews_there_is_nothing_to_explain(tmp_path):
    config = config_of(data__prompt_fields="title,genres,rating")
    writer = peapod.build(Run(config, tmp_path))
    assert "explanation" not in writer.tasks.weights() and sum(writer.tasks.weights().values()) == pytest.approx(1)


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"personal__kind": "crowd"}, r"personal\.kind='crowd' won't do: it must be one of neighbours, pool"),
        ({"personal__heads": 3}, r"personal\.heads=3 won't do: it must be a divisor of personal\.size"),
        ({"personal__neighbours": 0}, r"personal\.neighbours=0 won't do: it must be greater than 0"),
    ],
)
def test_bad_settings_get_a_sentence(changes, told):
    with pytest.raises(InputError, match=told):
        config_of(**changes)


def test_modes_that_it_has_not(capsys):
    assert main(["main", "--config=configs/peapod.py:tiny", "--mode=demo"]) == 2
    assert "--mode=demo is not for the system peapod" in capsys.readouterr().err


# ---- prompts made of profiles


def profiles_of(tmp_path, **changes):
    return peapod.build(Run(config_of(personal__kind="profile", personal__latest=3, **changes), tmp_path))


def test_a_profile_says_what_was_chosen_before(tmp_path):
    """It is the summary of the items before what is asked for, as old as its last rewriting; of a test user of all items."""
    r = profiles_of(tmp_path, tasks__alone=0.5, tasks__weights__explanation=0.0)
    rng, seen = np.random.default_rng(0), set()
    for _ in range(60):
        example = r.tasks.draw("retrieval", rng)
        name, items = example.about
        text, every = r.text_of(name, items), r.config.personal.rewritten
        user = r.tasks.users[r.numbers[name]]
        kept = len(items) if len(items) <= every else len(items) - len(items) % every
        assert len(items) < len(user.items) and text == r.profile(name, items[:kept])
        assert any(r.data.catalogue.titles[item] in text for item in items[:kept])
        seen.add(any(r.tasks.code_words[item][0] in example.tokens for item in items))
    assert seen == {True, False}  # some texts show no items
    session = r.sessions["test"][0]
    assert r.text_of(session.user, session.history) == r.profile(session.user, session.history)
    assert r.text_of(session.user, session.history, "likes space films") == "likes space films"
    who = r.who([(session.user, session.history, "likes space films"), (session.user, session.history)], "retrieval")
    wanted, _ = r.embedder.embed_profiles(
        r.embedder.fresh(), ["likes space films", r.profile(session.user, session.history)]
    )
    np.testing.assert_allclose(who["user"], wanted, atol=1e-6)
    rated = {item: stars for item, stars in zip(session.history, session.ratings)}
    assert {item: r._stars[session.user, item] for item in session.history} == rated


def test_a_profile_alone_is_recommended_by_and_edits_are_audited(tmp_path):
    config = config_of(
        personal__kind="profile", tasks__alone=0.5, data__prompt_fields="title,genres,rating", search__beams=20
    )
    results = train.train(peapod, config, tmp_path)
    assert {"profile_alone", "shuffled_profiles", "tasks", "user_knn"} <= set(results["rows"])
    assert set(results["audit"]) == {"tasks", "profile_alone"}
    assert results["audit"]["profile_alone"]["like"]["pairs"] > 10
    assert "What a profile’s words do" in (tmp_path / "report.html").read_text()
    with pytest.raises(InputError, match="longer than the embedder's window"):
        recommend.run(peapod, config, tmp_path, "profile", "space " * 600, 5)
    shown = recommend.run(peapod, config, tmp_path, "profile", "I like space films.", 5)
    assert shown.startswith("I like space films.") and "rank  score  item" in shown
    r, state, _ = train.ready(peapod, Run(config, tmp_path))
    nobody = [Session("", (), None, None, (), 0.0)]
    texts = (["I like space films."], ["I like quiet dramas and nothing else."])
    scores = [r.found(r.weights(state, "lm"), nobody, 60, text)[1] for text in texts]
    assert np.isfinite(scores).all() and np.abs(scores[0] - scores[1]).max() > 1e-4
    shown = recommend.run(peapod, config, tmp_path, "user", r.sessions["test"][0].user, 5)
    assert "likes" in shown.lower() and "rank  score  item" in shown
