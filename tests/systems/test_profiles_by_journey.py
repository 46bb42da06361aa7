"""profile.per=journey: a line for each of a person's journeys, trained, ranked by, muted, shown and resumed."""

import itertools
import json

import jax
import numpy as np
import pytest

from lpt_jax import audit, demo, files, ranking, recommend, train
from lpt_jax.config import default, finish, tiny
from lpt_jax.data import made_up, prompts
from lpt_jax.errors import InputError
from lpt_jax.learning import optimisers, policy
from lpt_jax.systems import profiles
from tests.systems.tiny_run import SMALL, recommender, small_world

JOURNEY = {"profile.per": "journey", "profile.journeys": 2, "data.targets": 4, "score.decay": 0.5}


def by_journey(changes=()):
    config = tiny(default())
    for name, value in (SMALL | JOURNEY | dict(changes)).items():
        group, _, key = name.rpartition(".")
        (config[group] if group else config)[key] = value
    return finish(config)


@pytest.fixture(scope="module")
def world():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(made_up, "world", small_world())
        yield


@pytest.fixture(scope="module")
def r(world, tmp_path_factory):
    return recommender(by_journey(), tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def of_two(r):
    """A test session with two journeys."""
    return next(session for session in r.sessions["test"] if len(r.parts(session)) == 2)


def test_a_sessions_parts_are_its_latest_journeys(r, of_two):
    for session in r.sessions["test"]:
        parts, every = r.parts(session), r.journeys.places(session.history)
        assert 1 <= len(parts) <= 2 and all(part.whole == part.hidden == session.history for part in parts if every)
        latest = sorted(every, key=max)[-2:]
        assert [part.history for part in parts] == [tuple(session.history[p] for p in places) for places in latest]
        assert [part.ratings for part in parts] == [tuple(session.ratings[p] for p in places) for places in latest]
        assert r.shown(session) == list(itertools.chain(*(part.history[-r.kept(part) :] for part in parts)))
    assert r.parts(of_two) is r.parts(of_two) and r.parts(r.parts(of_two)[0]) == [r.parts(of_two)[0]]


def test_a_journey_is_trained_with_the_next_items_that_are_most_like_it(r):
    train_sessions = iter(r.sessions["train"])
    for session in r.run.sessions["train"]:
        parts = r.parts(session)
        own = [[] for _ in parts]
        for target in session.targets:
            likeness = [r.journeys.likeness([target, *part.history]) for part in parts]
            cosines = [own_[0, 1:].sum() / np.sqrt(own_[1:, 1:].sum() * own_[0, 0]) for own_ in likeness]
            own[int(np.argmax(cosines))].append(target)
        for part, targets in zip(parts, own):
            if targets:
                trained = next(train_sessions)
                assert trained.targets == tuple(targets) and trained.history == part.history
                assert trained.past == session.history and trained.user == session.user
                assert set(trained.others) == set(session.targets) - set(targets)
                assert trained.hidden == trained.past + trained.others
    assert next(train_sessions, None) is None
    assert len(r.prompts["train"]) == len(r.sessions["train"]) > len(r.run.sessions["train"])


def test_each_line_is_a_query_and_what_is_rejected_is_so_for_all(r):
    weights, texts = r.fresh("embedder"), ["space aliens", "western sheriff", "horror"]
    a, b, horror = r.embedder.embed_profiles(weights, texts[:2] + ["Likes horror."])[0]
    queries, valid = r.queries(weights, ["space aliens\nwestern sheriff\nNo horror.", "space aliens", "No horror.", ""])
    assert queries.shape == (4, 2, len(a) + 1) and valid.tolist() == [True, True, True, False]
    against = r.config.score.rejected * horror
    items = np.asarray(r.embedder.catalogue(weights, r.data.catalogue.texts))[: r.run.count, :-1]
    spread = (np.stack([a, b]) @ items.T).std(1)
    louder, quieter = spread.mean() / spread
    np.testing.assert_allclose(queries[0, :, :-1], [0.5 * louder * a - against, quieter * b - against], atol=1e-4)
    plain, _ = r.queries(weights, ["space aliens\nwestern sheriff"], loud=[[2.0, 1.0]])  # against γ
    scores = plain[0, :, :-1] @ np.asarray(r.catalogue(weights))[: r.run.count, :-1].T
    np.testing.assert_allclose(scores.mean(1), 0, atol=1e-5)
    np.testing.assert_allclose(scores.std(1), spread.mean(), rtol=1e-3)
    np.testing.assert_allclose(queries[1, :, :-1], [a, a], atol=1e-6)
    assert (queries[..., -1] == 1).all()
    alone, _ = r.queries(weights, ["space aliens"])
    np.testing.assert_allclose(alone[0], queries[1, 0], atol=1e-6)
    loud, _ = r.queries(weights, ["space aliens\nwestern sheriff"], loud=[[2.0, 0.0]])
    np.testing.assert_allclose(loud[0, :, :-1], [louder * a, 0 * b], atol=1e-4)
    whole, _ = r.queries(weights, ["space aliens\nwestern sheriff"], rejects=False)
    assert whole.shape == (1, len(a) + 1)
    assert prompts.read_lines(["", "a"], "x", False) == ({1: "a"}, []) and prompts.read_lines([""], "x", True) == (
        {0: ""},
        [],
    )


def test_the_best_line_ranks_an_item(r):
    rng = np.random.default_rng(0)
    queries, items = rng.normal(size=(5, 4, 7)).astype(np.float32), rng.normal(size=(31, 7)).astype(np.float32)
    plain = (queries @ items.T).max(1)
    targets, hidden = (
        rng.permuted(np.tile(np.arange(31), (5, 1)), axis=1)[:, :6].astype(np.int32).reshape(5, 2, 3).swapaxes(0, 1)
    )
    expected = ranking.target_ranks(plain, None, targets, hidden)
    np.testing.assert_array_equal(ranking.target_ranks(queries, items, targets, hidden), expected)
    chunked = ranking.counted(queries, items, targets, hidden, room=(1, 4))
    np.testing.assert_array_equal(chunked, expected)
    np.testing.assert_array_equal(ranking.top_k(queries, items, hidden, 5)[0], ranking.top_k(plain, None, hidden, 5)[0])


def test_the_latest_items_stand_beside_every_line(r, of_two):
    items = r.catalogue(r.fresh("embedder"))
    queries = r.queries(r.fresh("embedder"), ["space\nwestern"])[0]
    beside = r.with_history(queries, items, [of_two.history], 0.5)
    mean = np.asarray(items)[list(of_two.history[-r.config.prompt.history_items :]), :-1].mean(0)
    np.testing.assert_allclose(beside[..., :-1], queries[..., :-1] + 0.5 * mean, atol=1e-6)
    assert (beside[..., -1] == 1).all()


def test_writing_gives_a_line_for_each_journey_and_goes_on_where_it_was(r, tmp_path):
    weights, file, ended = r.fresh("lm"), tmp_path / "p.jsonl", {}
    texts = r.write(weights, "test", file, ended=ended)
    lines, sessions = files.read_jsonl(file), r.sessions["test"]
    assert [len(text.split("\n")) for text in texts] == [len(r.parts(session)) for session in sessions]
    assert {(line["row"], line["journey"]) for line in lines} == {
        (row, number) for row, s in enumerate(sessions) for number in range(len(r.parts(s)))
    }
    for line in lines:
        assert texts[line["row"]].split("\n")[line["journey"]] == " ".join(line["profile"].split())
    assert ended == {row: all(x["ended"] for x in lines if x["row"] == row) for row in range(len(sessions))}
    file.write_text("".join(json.dumps(line) + "\n" for line in lines[:5]))
    assert r.write(weights, "test", file) == texts and len(files.read_jsonl(file)) == len(lines)
    joined = files.read_texts(file, "x")
    assert joined[sessions[0].user, len(sessions[0].history)].count("\n") == texts[0].count("\n")


def test_summaries_have_a_line_for_each_journey(r, of_two):
    (text,) = r.summaries_of([of_two])
    assert text.split("\n") == [r.summaries_of([part])[0] for part in r.parts(of_two)] and text.count("\n") == 1


def test_rlso_ranks_a_journeys_targets_without_the_whole_history(r):
    phase = policy.PolicyPhase(r, optimisers.of(r.config.policy, 100)).at(0, 0)
    state = train.initial_state(r, [phase])
    phase.begin(state)
    users = r.sessions["train"][:3]
    earned = phase.earn([["space", "western"]] * 3, users, phase.longest)
    vectors = r.embedder.embed_profiles(phase.earn.embedder, ["space", "western"])[0]
    scores = np.concatenate([vectors, np.ones((2, 1))], 1) @ np.asarray(phase.earn.items)[: r.run.count].T
    for user, ranks in zip(users, np.asarray(earned.ranks), strict=True):
        for of_sample, row in zip(ranks, scores, strict=True):
            for target, rank in zip(user.targets, of_sample):
                others = set(user.hidden) | set(user.targets)
                assert rank == 1 + sum(row[i] > row[target] for i in range(r.run.count) if i not in others)
    state, report = phase.step(state, 0)
    assert np.isfinite(float(report.metrics["loss"])) and "\n" not in report.sample["profile"]
    assert "val/ndcg" in phase.validate(state)


def test_a_whole_run_has_the_rows_that_it_must_beat(world, tmp_path):
    rows = "decayed_items,every_item"
    reward = "ndcg + 0.2*explains + 0.1*clean"
    phases = "imitation,contrastive,policy,residuals"
    config = by_journey({"phases": phases, "evaluation.baselines": rows, "profile.max_tokens": 24})
    with config.unlocked():
        config.policy.reward = reward
    results = train.train(profiles, finish(config), tmp_path / "run")
    assert {"decayed_items", "every_item", "joined_profiles", "summary", "sft_cl_rlso_items"} <= results["rows"].keys()
    muted = results["audit"]["summary"]["muted"]
    assert muted["profiles"] > 0 and 0 < muted["spoken"]["mean"] <= 1 and muted["gone"]["mean"] > 0
    shown = recommend.run(profiles, config, tmp_path / "run", "user", "user0039", 5)
    assert "Journey 1: " in shown
    page = (tmp_path / "run/report.html").read_text()
    assert "All lines as one" in page and "Nearest of all items" in page


def test_muting_is_audited_by_hand(r, of_two):
    weights = r.fresh("embedder")
    items, texts = r.catalogue(weights), ["space aliens\nwestern sheriff"]
    found = audit.muted(r, audit.Audited(weights, items, texts), texts, [of_two.history])
    plain = np.asarray(items)[: r.run.count]
    queries = r.queries(weights, texts)[0][0]
    scores = queries @ plain.T
    scores[:, list(of_two.history)] = -np.inf
    best = np.argsort(-scores.max(0), kind="stable")[: audit.TOP]
    speaks = scores[:, best].argmax(0)
    loudest = np.bincount(speaks).argmax()
    alone = r.queries(weights, [texts[0].split("\n")[1 - loudest]])[0][0] @ plain.T
    alone[list(of_two.history)] = -np.inf
    now = set(np.argsort(-alone, kind="stable")[: audit.TOP].tolist())
    own = best[speaks == loudest]
    assert found["spoken"]["mean"] == pytest.approx(len(own) / len(best))
    assert found["gone"]["mean"] == pytest.approx(np.mean([item not in now for item in own]))
    assert audit.muted(r, audit.Audited(weights, items, texts), ["space"], [()]) == {"profiles": 0}


def test_the_page_has_a_card_for_each_journey(r, of_two, monkeypatch):
    desk = demo.Desk(r, {})
    journeys = desk.journeys(of_two)
    assert len(journeys) == 2 and all(name in html for name, html in journeys)
    pieces = list(desk.write("after", of_two))
    assert pieces[0].count("\n") == 0 and pieces[-1] == recommend.written(r, recommend.models(r, {}), of_two)
    page = demo.Page(desk)
    page.blocks()
    assert len(page.cards) == 2
    (shown, base) = page.listed("after", "space aliens\nwestern sheriff", of_two)
    kept = page.written(of_two, "space aliens\nwestern sheriff", shown, base)[page.state]
    asked = [page.ranked, page.notice]
    both = page.rank(kept, 0.0, "space aliens", "western sheriff", False, False, 1.0, 1.0)
    quiet = page.rank(kept, 0.0, "space aliens", "western sheriff", True, False, 1.0, 1.0)
    louder = page.rank(kept, 0.0, "space aliens", "western sheriff", False, False, 2.0, 0.1)
    assert all(answer[page.notice] == "" for answer in (both, quiet, louder)) and asked
    (first, _), (second, _) = journeys
    if first != second:
        assert f"<q>{first}</q>" not in quiet[page.ranked] and f"<q>{second}</q>" in quiet[page.ranked]
    gap, _ = page.listed("after", "space aliens\n", of_two)  # the model wrote nothing of one journey
    assert f"<q>{first}</q>" in gap and "<q></q>" not in gap
    nothing = page.rank(kept, 0.0, "space aliens", "western sheriff", True, True, 1.0, 1.0)
    assert "profile is empty" in nothing[page.notice]
    back = page.restore(kept)
    assert back[page.cards[0].words] == "space aliens" and back[page.cards[1].mute] is False
    new = page.emptied(of_two, [])
    assert new[page.cards[0].loud] == 1.0 and new[page.state] is None


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"score.decay": 1.5}, r"score\.decay=1\.5 won't do: it must be at most 1"),
        ({"journeys.join": 1.5}, r"journeys\.join=1\.5 won't do: it must be a cosine"),
        ({"journeys.vectors": 2.0}, r"journeys\.vectors=2\.0 won't do: it must be a share"),
        ({"profile.per": "item"}, r"profile\.per='item' won't do: it must be one of user, journey"),
        ({"imitation.texts": "file", "imitation.file": "x.jsonl"}, r"imitation\.texts='file' won't do"),
    ],
)
def test_bad_settings_get_a_sentence(changes, told):
    with pytest.raises(InputError, match=told):
        by_journey(changes)


def test_a_profile_of_one_user_is_read_as_before(world, tmp_path):
    """profile.per=user: a text's lines are one query."""
    r = recommender(by_journey({"profile.per": "user"}), tmp_path)
    weights = r.fresh("embedder")
    queries, _ = r.queries(weights, ["space aliens\nwestern sheriff"])
    vector = r.embedder.embed_profiles(weights, ["space aliens\nwestern sheriff"])[0][0]
    np.testing.assert_allclose(queries[0, :-1], vector, atol=1e-6)
    assert r.sessions["train"] == r.run.sessions["train"] and jax.tree.leaves(weights)
