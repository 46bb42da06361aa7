"""From a session's prompt to the rank of its target: writing that goes on, invalid profiles, raw histories."""

import jax
import numpy as np
import pytest

from lpt_jax import files, metrics, recommender
from lpt_jax.config import default, finish, tiny
from lpt_jax.errors import InputError
from lpt_jax.learning import loop
from lpt_jax.recommender import ProfileRecommender


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
    made = ProfileRecommender(tiny_config(), tmp_path_factory.mktemp("run"))
    made.use_policy(made.fresh_policy())
    return made


@pytest.fixture(scope="module")
def encoder(r):
    return r.fresh_encoder()


def test_prompts_and_items_of_all_sessions_are_there(r):
    assert {split: len(rows) for split, rows in r.prompts.items()} == {
        split: len(found) for split, found in r.data.sessions.items()
    }
    assert len(r.item_rows) == r.count == len(r.data.catalogue.ids)
    assert r.data.counts["test prompts without room for an item"] == 0


def test_state_holds_only_what_the_phases_train(r):
    state = r.initial_state({"policy": 0})
    assert set(state) == {"policy", "policy_optimiser"}
    state = r.initial_state({"encoder": 0, "policy": 0, "control": 0})
    assert set(state) == {f"{p}{o}" for p in ("encoder", "policy", "control") for o in ("", "_optimiser")}
    assert {str(a.dtype) for a in jax.tree.leaves([state["policy"], state["encoder"]])} == {"float32"}


def test_a_run_of_the_first_version_is_no_start(tmp_path):
    (tmp_path / "results.json").write_text("{}")
    (tmp_path / "config.json").write_text('{"decoder": {"source": "tiny"}, "encoder": {"source": "tiny"}, "seed": 0}')
    with pytest.raises(InputError, match=r"is a run of lpt_jax 0\.1, whose models this version can't read: name the"):
        ProfileRecommender(tiny_config(begin_from=str(tmp_path)), tmp_path / "new")


def test_the_profiles_written_at_first_do_not_depend_on_the_batch(r):
    """Greedy and sampled alike: rows in other batches, or written again, have the same texts."""
    for temperature in (0.0, 1.0):
        all_at_once = r.write("validation", None, 3, temperature)
        numbers = [4, 1]
        key = jax.random.fold_in(r.key, 3)
        chosen = [r.prompts["validation"][i] for i in numbers]
        assert r.writer.write(chosen, numbers, key, temperature) == [all_at_once[i] for i in numbers]
    assert len(set(all_at_once)) > len(all_at_once) // 2


def test_copies_of_a_session_are_sampled_apart(r):
    assert r.write("validation", None, 3, 1.0, copy=1) != r.write("validation", None, 3, 1.0, copy=0)


def test_writing_goes_on_after_a_kill(r, tmp_path):
    """The file holds 21 whole lines and half of one: only what is missing is written, to the same texts."""
    file = tmp_path / "sub" / "profiles.jsonl"
    wanted = r.write("train", file, 1, 1.0)
    lines = file.read_text().splitlines(keepends=True)
    assert len(lines) == len(wanted) == len(r.data.sessions["train"])
    file.write_text("".join(lines[:21]) + lines[21][:15])
    assert r.write("train", file, 1, 1.0) == wanted
    again = files.read_jsonl(file)
    assert sorted(line["row"] for line in again) == list(range(len(wanted)))
    assert [wanted[line["row"]] for line in again] == [line["profile"] for line in again]
    assert again[0]["user"] == r.data.sessions["train"][again[0]["row"]].user


def test_writing_stops_between_batches_when_asked(r, tmp_path, monkeypatch):
    interrupt = loop.Interrupt()
    monkeypatch.setattr(r, "interrupt", interrupt)
    interrupt.asked = True
    with pytest.raises(loop.Stop):
        r.write("train", tmp_path / "p.jsonl", 1, 1.0)
    interrupt.close()
    assert len(files.read_jsonl(tmp_path / "p.jsonl")) == r.config.profile.batch


def oracle(r, encoder, profiles, sessions):
    """Ranks by the plainest way: sort all items by cosine, without the history."""
    items = r.embed(encoder, r.data.catalogue.texts, r.item_limit)[0]
    scores = r.embed(encoder, profiles, r.profile_limit, r.encoder_spec.query_prefix)[0] @ items.T
    found = []
    for row, session in zip(scores, sessions):
        order = [i for i in np.argsort(-row, kind="stable") if i not in session.history]
        found.append([1 + order.index(session.targets[0])])
    return np.array(found)


def test_ranks_are_those_of_the_plainest_way(r, encoder):
    texts, sessions = r.write("test", None, 0, 0.0), r.sessions["test"]
    ranks = r.ranks(encoder, texts, "test")
    wanted = oracle(r, encoder, texts, sessions)
    assert np.mean(ranks == wanted) > 0.9 and np.abs(ranks - wanted).max() <= 1  # ties within rounding
    values = r.validation(r.ranks(encoder, r.write("validation", None, 0, 0.0), "validation"))
    assert set(values) == {"val/ndcg", "val/ndcg@10", "val/mrr", "val/recall@10"}


def test_empty_and_overlong_profiles_rank_last_but_raw_histories_are_cut(r, encoder):
    texts = r.write("validation", None, 0, 0.0)
    plain = r.ranks(encoder, texts, "validation")
    long = "space " * (r.profile_limit + 1)
    ranks = r.ranks(encoder, ["", " ", long, *texts[3:]], "validation")
    assert ranks[:3].tolist() == [[r.count]] * 3
    np.testing.assert_array_equal(ranks[3:], plain[3:])
    cut = r.ranks(encoder, [long, "space " * r.profile_limit, *texts[2:]], "validation", cut=True)
    assert cut[0, 0] < r.count
    np.testing.assert_array_equal(cut[2:], plain[2:])
    _, valid = r.embed_profiles(encoder, ["space " * r.profile_limit, long, "", "space"])
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
    capped = ProfileRecommender(tiny_config(evaluation__max_users=3, evaluation__max_test_sessions=5), tmp_path)
    assert [len(capped.sessions[s]) for s in ("validation", "test")] == [3, 5]
    assert len(capped.sessions["train"]) == len(r.data.sessions["train"])
    assert "a fixed sample of 5 is used" in capped.data.protocol
    assert capped.data.counts["test sessions left out by config.evaluation"] == len(r.data.sessions["test"]) - 5


def test_history_texts_show_the_latest_items_first(r):
    text, session = r.history_texts("test")[0], r.data.sessions["test"][0]
    titles = [r.data.catalogue.titles[i] for i in session.history[::-1][: r.config.prompt.history_items]]
    assert [text.index(title) for title in titles] == sorted(text.index(title) for title in titles)


def test_fresh_lora_writes_what_the_base_writes(r, tmp_path):
    lora = ProfileRecommender(tiny_config(policy__trains="lora"), tmp_path)
    lora.use_policy(lora.fresh_policy())
    assert lora.start == 0 and set(lora.fresh_policy()["layers"]) >= {"q_lora_a", "q_lora_b"}
    assert lora.write("validation", None, 0, 0.0) == r.write("validation", None, 0, 0.0)


def test_the_catalogue_is_embedded_anew_for_another_encoder_only(r, monkeypatch):
    calls, embed = [], r.embed
    monkeypatch.setattr(r, "embed", lambda *a: calls.append(a) or embed(*a))
    one, other = r.fresh_encoder(), r.fresh_encoder()
    other["word"] = other["word"] * 2
    found = [np.asarray(r.embed_catalogue(encoder)) for encoder in (one, one, other, one)]
    assert len(calls) == 3
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[3])
    assert np.abs(found[0] - found[2]).max() > 1e-3


def test_a_large_catalogue_is_embedded_in_shards_and_goes_on_after_a_kill(r, encoder, tmp_path, monkeypatch):
    whole, embed, calls = np.asarray(r.embed_catalogue(encoder)), r.embed, []
    monkeypatch.setattr(recommender, "SHARD", 16)
    monkeypatch.setattr(r, "workdir", tmp_path)

    def killed(*a):
        calls.append(a)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return embed(*a)

    monkeypatch.setattr(r, "embed", killed)
    monkeypatch.setattr(r, "_embedded", (None, None))
    with pytest.raises(KeyboardInterrupt):
        r.embed_catalogue(encoder)
    count = -(-r.count // 16)
    assert count > 3 and len(list(tmp_path.glob("catalogue/*/*.npy"))) == 2
    found = np.asarray(r.embed_catalogue(encoder))
    assert len(calls) == 3 + count - 2  # the two that were done are read
    np.testing.assert_allclose(found, whole, atol=1e-6)
    other = r.fresh_encoder()
    other["word"] = other["word"] * 2
    r.embed_catalogue(other)
    assert len(list(tmp_path.glob("catalogue/*"))) == 1  # the first encoder's are gone
