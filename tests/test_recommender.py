"""From a session's prompt to the rank of its target: writing that goes on, invalid profiles, raw histories."""

import types

import jax
import numpy as np
import pytest

from lpt_jax import files, metrics, similarity, train
from lpt_jax.config import default, finish, tiny
from lpt_jax.data import prompts
from lpt_jax.errors import InputError
from lpt_jax.generation import Draws
from lpt_jax.learning.loop import Part
from lpt_jax.recommender import ProfileRecommender
from lpt_jax.run import Interrupt, Run, Stop
from lpt_jax.similarity import Embedder
from lpt_jax.systems import profiles
from tests.systems.tiny_run import recommender


def tiny_config(**changes):
    config = tiny(default())
    config.trackers = ""
    for name, value in changes.items():
        *groups, key = name.split("__")
        part = config
        for group in groups:
            part = part[group]
        part[key] = value
    return finish(config)


@pytest.fixture(scope="module")
def r(tmp_path_factory):
    return recommender(tiny_config(), tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def lm(r):
    return r.fresh("lm")


@pytest.fixture(scope="module")
def embedder(r):
    return r.fresh("embedder")


def test_prompts_and_items_of_all_sessions_are_there(r):
    assert {split: len(rows) for split, rows in r.prompts.items()} == {
        split: len(found) for split, found in r.data.sessions.items()
    }
    assert len(r.item_rows) == r.run.count == len(r.data.catalogue.ids)
    assert r.data.counts["test prompts without room for an item"] == 0


def test_state_holds_only_what_the_phases_train(r):
    phases = profiles.schedule(r)
    alone = [phase for phase in phases if phase.part == "lm"]
    assert set(train.initial_state(r, alone)) == {"lm"}
    state = train.initial_state(r, phases)
    assert set(state) == {"embedder", "lm", "control"}
    assert all(isinstance(part, Part) for part in state.values())
    assert {str(a.dtype) for a in jax.tree.leaves([state["lm"].weights, state["embedder"].weights])} == {"float32"}


def test_a_run_of_the_first_version_is_no_start(tmp_path):
    (tmp_path / "results.json").write_text("{}")
    (tmp_path / "config.json").write_text('{"decoder": {"source": "tiny"}, "encoder": {"source": "tiny"}, "seed": 0}')
    with pytest.raises(InputError, match=r"a run of lpt_jax 0\.1, whose models this version can't read: name the"):
        train.started(profiles, Run(tiny_config(begin_from=str(tmp_path)), tmp_path / "new"))


def test_the_profiles_written_at_first_do_not_depend_on_the_batch(r, lm):
    """Greedy and sampled alike: rows in other batches, or written again, have the same texts."""
    for temperature in (0.0, 1.0):
        all_at_once = r.write(lm, "validation", None, 3, Draws(temperature))
        numbers = [4, 1]
        key = jax.random.fold_in(r.run.key, 3)
        chosen = [r.prompts["validation"][i] for i in numbers]
        assert r.lm.write(lm, chosen, numbers, key, Draws(temperature)) == [all_at_once[i] for i in numbers]
    assert len(set(all_at_once)) > len(all_at_once) // 2


def test_copies_of_a_session_are_sampled_apart(r, lm):
    assert r.write(lm, "validation", None, 3, Draws(1.0), copy=1) != r.write(
        lm, "validation", None, 3, Draws(1.0), copy=0
    )


def test_writing_goes_on_after_a_kill(r, lm, tmp_path):
    """The file holds 21 whole lines and half of one: only what is missing is written, to the same texts."""
    file = tmp_path / "sub" / "profiles.jsonl"
    wanted = r.write(lm, "train", file, 1, Draws(1.0))
    lines = file.read_text().splitlines(keepends=True)
    assert len(lines) == len(wanted) == len(r.data.sessions["train"])
    file.write_text("".join(lines[:21]) + lines[21][:15])
    assert r.write(lm, "train", file, 1, Draws(1.0)) == wanted
    again = files.read_jsonl(file)
    assert sorted(line["row"] for line in again) == list(range(len(wanted)))
    assert [wanted[line["row"]] for line in again] == [line["profile"] for line in again]
    assert again[0]["user"] == r.data.sessions["train"][again[0]["row"]].user


def test_writing_stops_between_batches_when_asked(r, lm, tmp_path):
    r.run.interrupt = Interrupt()
    r.run.interrupt.asked = True
    with pytest.raises(Stop):
        r.write(lm, "train", tmp_path / "p.jsonl", 1, Draws(1.0))
    r.run.interrupt.close()
    r.run.interrupt = None
    assert len(files.read_jsonl(tmp_path / "p.jsonl")) == r.config.profile.batch


def oracle(r, weights, profiles, sessions):
    """Ranks by the plainest way: sort all items by cosine, without the history."""
    items = r.embedder.embed(weights, r.data.catalogue.texts, r.embedder.item_limit)[0]
    prefix, limit = r.embedder.spec.query_prefix, r.embedder.profile_limit
    scores = r.embedder.embed(weights, profiles, limit, prefix)[0] @ items.T + r.bias
    found = []
    for row, session in zip(scores, sessions):
        order = [i for i in np.argsort(-row, kind="stable") if i not in session.history]
        found.append([1 + order.index(session.targets[0])])
    return np.array(found)


def test_ranks_are_those_of_the_plainest_way(r, lm, embedder):
    texts, sessions = r.write(lm, "test"), r.sessions["test"]
    ranks = r.rank("test", *r.scored(embedder, texts))
    wanted = oracle(r, embedder, texts, sessions)
    assert np.mean(ranks == wanted) > 0.9 and np.abs(ranks - wanted).max() <= 1  # ties within rounding
    values = r.validation(r.rank("validation", *r.scored(embedder, r.write(lm, "validation"))))
    assert set(values) == {"val/ndcg", "val/ndcg@10", "val/mrr", "val/recall@10"}


def test_empty_and_overlong_profiles_rank_last_but_raw_histories_are_cut(r, lm, embedder):
    def ranks_of(texts, cut=False):
        return r.rank("validation", *r.scored(embedder, texts, cut=cut))

    texts, count, limit = r.write(lm, "validation"), r.run.count, r.embedder.profile_limit
    plain = ranks_of(texts)
    long = "space " * (limit + 1)
    ranks = ranks_of(["", " ", long, *texts[3:]])
    assert ranks[:3].tolist() == [[count]] * 3
    np.testing.assert_array_equal(ranks[3:], plain[3:])
    cut = ranks_of([long, "space " * limit, *texts[2:]], cut=True)
    assert cut[0, 0] < count
    np.testing.assert_array_equal(cut[2:], plain[2:])
    _, valid = r.embedder.embed_profiles(embedder, ["space " * limit, long, "", "space"])
    assert valid.tolist() == [True, False, False, True]


def test_validation_is_a_mean_over_users(r):
    """All first but one, who is 3rd: ndcg 1/log2(4)."""
    users = [s.user for s in r.sessions["validation"]]
    ranks = np.ones((len(users), 1), int)
    ranks[0] = 3
    values = r.validation(ranks)
    assert values["val/ndcg"] == pytest.approx((len(users) - 1 + 0.5) / len(users))
    assert values["val/mrr"] == metrics.mean(ranks, users, "mrr")


def test_caps_on_validation_and_test_sessions(r, tmp_path):
    capped = Run(tiny_config(evaluation__max_users=3, evaluation__max_test_sessions=5), tmp_path)
    assert [len(capped.sessions[s]) for s in ("validation", "test")] == [3, 5]
    assert len(capped.sessions["train"]) == len(r.data.sessions["train"])
    assert "a fixed sample of 5 is used" in capped.data.protocol
    assert capped.data.counts["test sessions left out by config.evaluation"] == len(r.data.sessions["test"]) - 5


def test_history_texts_show_the_latest_items_first(r):
    text, session = r.history_texts("test")[0], r.data.sessions["test"][0]
    titles = [r.data.catalogue.titles[i] for i in session.history[::-1][: r.config.prompt.history_items]]
    assert [text.index(title) for title in titles] == sorted(text.index(title) for title in titles)


def test_fresh_lora_writes_what_the_base_writes(r, lm, tmp_path):
    lora = recommender(tiny_config(policy__trains="lora"), tmp_path)
    fresh = lora.fresh("lm")
    assert lora.lm.below == 0 and set(fresh["upper"]["attention"]["q"]["lora"]) == {"a", "b"}
    assert lora.write(fresh, "validation") == r.write(lm, "validation")


def test_models_are_made_when_they_are_asked_for():
    """A profile that somebody typed needs no language model."""

    def never():
        raise AssertionError("made")

    run = types.SimpleNamespace(config=None, data=None, sessions=None)
    assert ProfileRecommender(run, never, lambda: "embedder").embedder == "embedder"


class Counting(Embedder):
    """Counts its calls of embed, and dies at one of them if asked."""

    def __init__(self, r, folder, dies_at=0):
        self.__dict__ |= r.embedder.__dict__ | {"folder": folder, "calls": 0, "dies_at": dies_at, "_for": None}

    def embed(self, *given):
        self.calls += 1
        if self.calls == self.dies_at:
            raise KeyboardInterrupt
        return super().embed(*given)


def doubled_words(weights):
    """Other weights of the embedder."""
    encoder = weights["encoder"]
    return {"encoder": encoder | {"word": {"table": encoder["word"]["table"] * 2}}}


def test_the_catalogue_is_embedded_anew_for_another_encoder_only(r, tmp_path):
    counting, texts = Counting(r, tmp_path), r.data.catalogue.texts
    one = r.fresh("embedder")
    other = doubled_words(one)
    found = [np.asarray(counting.catalogue(weights, texts)) for weights in (one, one, other, one)]
    assert counting.calls == 3
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[3])
    assert np.abs(found[0] - found[2]).max() > 1e-3


def test_a_large_catalogue_is_embedded_in_shards_and_goes_on_after_a_kill(r, embedder, tmp_path, monkeypatch):
    whole, texts = np.asarray(r.catalogue(embedder)), r.data.catalogue.texts
    monkeypatch.setattr(similarity, "SHARD", 16)
    counting = Counting(r, tmp_path, dies_at=3)
    with pytest.raises(KeyboardInterrupt):
        counting.catalogue(embedder, texts)
    count = -(-r.run.count // 16)
    assert count > 3 and len(list(tmp_path.glob("*/*.npy"))) == 2
    found = np.asarray(counting.catalogue(embedder, texts, r.bias))
    assert counting.calls == 3 + count - 2  # the two that were done are read
    np.testing.assert_allclose(found, whole, atol=1e-6)
    counting.catalogue(doubled_words(embedder), texts)
    assert len(list(tmp_path.glob("*"))) == 1  # the first weights' are gone


# ---- the score


def test_a_score_is_a_cosine_less_what_is_rejected_and_popularity(r, embedder):
    """By hand: a plain profile, one that rejects two things, and one that does nothing else."""
    texts = ["space films", "likes space films . no horror , no crime .", "no horror"]
    found, valid = r.queries(embedder, texts)
    embed = lambda *texts: r.embedder.embed_profiles(embedder, list(texts))[0]  # noqa: E731
    horror, crime = embed("Likes horror.", "Likes crime.")
    weight = r.config.score.rejected
    affirmed, rejected = prompts.clauses(texts[1])
    assert rejected == ["horror", "crime"] and "space" in affirmed and weight > 0
    neutral = prompts.NEUTRAL["train"][0].format(kind=r.config.data.kind)
    wanted = [embed(texts[0])[0], embed(affirmed)[0] - weight * (horror + crime), embed(neutral)[0] - weight * horror]
    np.testing.assert_allclose(found[:, :-1], wanted, atol=1e-5)
    assert (found[:, -1] == 1).all() and valid.all()
    plain, _ = r.queries(embedder, texts, rejects=False)
    np.testing.assert_allclose(plain[:, :-1], embed(*texts), atol=1e-5)


def test_popularity_is_the_log_of_interactions_and_the_medians_where_there_are_none(r):
    popularity, r.data.popularity = r.data.popularity, np.array([4, 0, 1, 9])
    bias = type(r).bias.func(r)
    r.data.popularity = popularity
    np.testing.assert_allclose(bias, r.config.score.popularity * np.log(np.array([5, 5, 2, 10]) / 10), rtol=1e-6)
    items = np.asarray(r.catalogue(r.fresh("embedder")))
    np.testing.assert_allclose(items[: r.run.count, -1], r.bias, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(items[: r.run.count, :-1], axis=1), 1, rtol=1e-5)


def test_greedy_profiles_of_the_same_weights_are_written_once(r):
    """With what ended; others' weights, other splits and sampled ones are written anew."""
    weights, ended, again = r.fresh("lm"), {}, {}
    first = r.write(weights, "validation", ended=ended)
    assert (
        r.write(weights, "validation", ended=again) is first and again == ended and set(ended) == set(range(len(first)))
    )
    assert r.write(dict(weights), "validation") is not first and r.write(dict(weights), "validation") == first
    assert r.write(weights, "test") is not first
