import dataclasses
import math

import numpy as np
import pytest

from lpt_jax import config
from lpt_jax.data import made_up, sessions
from lpt_jax.data.reviews import Interactions, Raw
from lpt_jax.errors import InputError

INTERACTIONS = {f"{split} interactions" for split in sessions.SPLITS}


def raw(rows, items, has_time=True, counts=None, rating=True):
    """rows: (user, item, time) with rating = time mod 5."""
    users, things = (list(dict.fromkeys(r[k] for r in rows)) for k in (0, 1))
    interactions = Interactions(
        user=np.array([users.index(r[0]) for r in rows], np.int32),
        item=np.array([things.index(r[1]) for r in rows], np.int32),
        user_ids=users,
        item_ids=things,
        order=np.array([r[2] for r in rows], np.float64),
        has_time=has_time,
        rating=np.array([r[2] % 5 for r in rows], np.float32) if rating else None,
        review=lambda places: np.array([f"{rows[i][0]} on {rows[i][1]}" for i in places], object),
    )
    return Raw(interactions=interactions, items=items, counts=counts or {})


def settings(**changes):
    c = config.default().data
    c.update(core=0, min_history=2, validation_share=1 / 6, test_share=1 / 6, item_fields="title")
    c.update(changes)
    return c


ITEMS = {i: {"title": f"title {i}", "average_rating": 1.25} for i in "abcdefgh"} | {"x": {"price": 3.0}}
SIX = raw(
    [("u1", "a", 1), ("u1", "b", 2), ("u1", "c", 3), ("u1", "d", 30), ("u1", "x", 9)]
    + [("u3", "f", 8), ("u3", "c", 7), ("u3", "a", 3)]
    + [("u2", "b", 2), ("u2", "c", 4), ("u2", "a", 5), ("u2", "e", 6)]
    + [("u6", "c", 20), ("u6", "b", 21), ("u6", "h", 22), ("u6", "e", 23)]
    + [("u5", "a", 15), ("u5", "a", 10), ("u5", "c", 11), ("u5", "g", 12), ("u5", "b", 13)]
    + [("u5", "e", 14), ("u5", "f", 40), ("u4", "e", 5)],
    ITEMS,
    counts={"lines without an item": 7},
)


def told(data, split):
    ids = data.catalogue.ids
    return [
        (s.user, "".join(ids[i] for i in s.history), "".join(ids[i] for i in s.targets)) for s in data.sessions[split]
    ]


def test_a_rating_above_the_scale_is_refused():
    rows = raw([("u1", "a", 8)], ITEMS)
    rows.interactions.rating = np.array([8.0], np.float32)
    with pytest.raises(
        InputError, match="has the rating 8, above --config.data.best_rating=5: set it to the scale's end"
    ):
        sessions.from_raw(rows, settings())


def test_the_time_split_by_hand():
    data = sessions.from_raw(SIX, settings(eval_targets=2))
    assert data.catalogue.ids == list("abcef")  # d: after the cut; g, h: cold; x: no text
    assert data.popularity.tolist() == [3, 2, 3, 2, 1]
    assert told(data, "train") == [("u1", "ab", "c"), ("u2", "bc", "a"), ("u2", "bca", "e"), ("u3", "ac", "f")]
    assert told(data, "validation") == [("u5", "ac", "be")]  # g is cold, f is after the test cut
    assert told(data, "test") == [("u6", "cb", "e")]  # h is cold
    first = data.sessions["train"][0]
    assert first.ratings == (1.0, 2.0) and first.reviews == ("u1 on a", "u1 on b") and first.time == 3.0
    assert data.counts == {
        "lines without an item": 7,
        "interactions": 24,
        "items without title/text": 1,
        "dropped: items without title/text": 1,
        "dropped: repeats of a user's item": 1,
        "dropped: 0-core": 0,
        "dropped: training users' interactions after the cut": 1,
        "dropped: validation users' interactions after the cut": 1,
        "dropped: cold items in validation": 1,
        "dropped: cold items in test": 1,
        "train interactions": 11,
        "validation interactions": 4,
        "test interactions": 3,
        "users not in the sample": 0,
        "train users": 3,
        "train users with too few items": 1,
        "train sessions": 4,
        "validation users": 1,
        "validation users with too few items": 0,
        "validation sessions": 1,
        "test users": 1,
        "test users with too few items": 0,
        "test sessions": 1,
        "items ranked": 5,
    }
    for part in ("1970-01-01T00:00:10", "1970-01-01T00:00:20", "3 train users (4 sessions)", "0-core", "all 5 items"):
        assert part in data.protocol
    assert "\n" not in data.protocol and data.kind == "items"


def test_leave_last_by_hand():
    rows = [("v", i, t) for t, i in enumerate("abcdef")] + [("w", i, t) for t, i in enumerate("fedcb")]
    data = sessions.from_raw(raw(rows, ITEMS, has_time=False), settings(split="auto"))
    # training: v abcd, w fed -> catalogue abcdef
    assert told(data, "train") == [("v", "ab", "c"), ("v", "abc", "d"), ("w", "fe", "d")]
    assert told(data, "validation") == [("v", "abcd", "e"), ("w", "fed", "c")]
    assert told(data, "test") == [("v", "abcde", "f"), ("w", "fedc", "b")]
    assert data.popularity.tolist() == [1, 1, 1, 2, 1, 1]
    assert "leakage can't be excluded" in data.protocol and math.isnan(data.sessions["test"][0].time)
    rows += [("z", i, t) for t, i in enumerate("abcdefgh")]
    two = sessions.from_raw(
        raw(rows, ITEMS), settings(split="leave_last", eval_targets=2, min_history=1)
    )  # training: v ab, w f, z abcd, so that e, g and h are cold
    assert told(two, "train") == [("v", "a", "b"), ("z", "a", "b"), ("z", "ab", "c"), ("z", "abc", "d")]
    assert told(two, "validation") == [("v", "ab", "cd"), ("w", "f", "d"), ("z", "abcd", "f")]
    assert told(two, "test") == [("v", "abcd", "f"), ("w", "fd", "cb")]


def test_windows_are_spread_evenly_and_one_window_is_the_papers():
    assert sessions._windows(4, 19, 1) == [4]
    assert sessions._windows(4, 19, 4) == [4, 9, 14, 19]
    assert sessions._windows(4, 5, 4) == [4, 5]
    assert sessions._windows(4, 2, 3) == [4]


def test_k_core_is_iterative():
    # c leaves item 3 with one user; then user 2 has one item; then item 1 has one user...
    user, item = np.array([0, 0, 1, 1, 2, 2, 3]), np.array([0, 1, 0, 1, 1, 2, 2])
    assert sessions._core(user, item, 2).tolist() == [True] * 4 + [False] * 3
    assert sessions._core(user, item, 3).sum() == 0
    assert sessions._core(user, item, 0).all()


def random_raw(seed):
    rng = np.random.default_rng(seed)
    n, users, items = 400, 40, 25
    user = rng.integers(0, users, n)
    rows = zip(user, rng.integers(0, items, n), user * 3 + rng.integers(0, 60, n))
    rows = [(f"u{u}", f"i{i}", int(t)) for u, i, t in rows]
    return raw(rows, {f"i{i}": {"title": f"t{i}"} for i in range(1, items)})


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("split", ["time", "leave_last"])
def test_nothing_leaks_and_every_interaction_is_accounted_for(seed, split):
    c = settings(split=split, core=3, targets=2, eval_targets=2, eval_windows=2, validation_share=0.2, test_share=0.3)
    source = random_raw(seed)
    data = sessions.from_raw(source, c)
    rows, counts, n = source.interactions, data.counts, len(data.catalogue.ids)
    dropped = sum(v for k, v in counts.items() if k.startswith("dropped: "))
    assert dropped + sum(counts[f"{s} interactions"] for s in sessions.SPLITS) == counts["interactions"] == 400
    assert data.popularity.sum() == counts["train interactions"] and (data.popularity > 0).all()
    trained = sessions.training_items(data)
    assert (np.bincount(np.concatenate(trained)) == data.popularity).all()
    assert {(*s.history, *s.targets) for s in data.sessions["train"]} <= {
        t[:k] for t in trained for k in range(len(t) + 1)
    }
    assert data.catalogue.ids == sorted(data.catalogue.ids)
    earliest, latest = {}, {}  # of each split's users, over all their sessions
    when = {}
    for u, i, t in zip(rows.user, rows.item, rows.order):
        key = rows.user_ids[u], rows.item_ids[i]
        when[key] = min(t, when.get(key, np.inf))
    for name in sessions.SPLITS:
        for s in data.sessions[name]:
            assert len(s.history) >= c.min_history and 1 <= len(s.targets) <= 2
            items = s.history + s.targets
            assert len(set(items)) == len(items) and 0 <= min(items) and max(items) < n
            assert len(s.ratings) == len(s.reviews) == len(s.history)
            times = [when[s.user, data.catalogue.ids[i]] for i in items]
            assert times == sorted(times) and s.time == times[len(s.history)]
            assert s.reviews[-1] == f"{s.user} on {data.catalogue.ids[s.history[-1]]}"
            earliest[name] = min(earliest.get(name, np.inf), times[0])
            latest[name] = max(latest.get(name, -np.inf), times[-1])
    users = [{s.user for s in data.sessions[name]} for name in sessions.SPLITS]
    if split == "time":
        assert latest["train"] < earliest["validation"] and latest["validation"] < earliest["test"]
        assert not (users[0] & users[1] or users[1] & users[2] or users[0] & users[2])
    else:
        tested = {(s.user, i) for s in data.sessions["test"] for i in s.targets}
        for name in ("train", "validation"):
            for s in data.sessions[name]:
                assert not any((s.user, i) in tested for i in s.history + s.targets)


def test_row_order_does_not_matter_and_ids_and_files_do_not_tell_the_order():
    source = random_raw(3)
    rows = source.interactions
    place = np.random.default_rng(1).permutation(len(rows.user))
    shuffled = Interactions(
        rows.user[place], rows.item[place], rows.user_ids, rows.item_ids, rows.order[place], True, rows.rating[place],
        lambda at: rows.review(place[at]),
    )  # fmt: skip
    one = sessions.from_raw(source, settings())
    two = sessions.from_raw(Raw(interactions=shuffled, items=source.items, counts={}), settings())
    assert one.sessions == two.sessions and one.counts == two.counts and one.protocol == two.protocol
    same_time = raw([(f"u{u}", f"i{i}", 1) for u in range(60) for i in range(9)], random_raw(0).items)
    place = sessions._chronological(
        *(
            np.asarray(c)
            for c in (same_time.interactions.user, same_time.interactions.item, same_time.interactions.order)
        )
    )
    rises = (np.diff(same_time.interactions.item[place].reshape(60, 9)) > 0).mean()
    assert 0.4 < rises < 0.6


def test_average_rating_comes_from_training_interactions_only():
    data = sessions.from_raw(SIX, settings(item_fields="title,average_rating"))
    # a: times 1, 5, 3 -> ratings 1, 0, 3; u5's and u6's are later
    assert data.catalogue.texts[0] == "Title: title a\nAverage rating: 1.333"
    plain = sessions.from_raw(SIX, settings())
    assert not any("rating" in text or "1.25" in text for text in plain.catalogue.texts)
    unrated = raw([(f"u{u}", i, u * 9 + t) for u in range(6) for t, i in enumerate("abc")], ITEMS, rating=False)
    c = settings(item_fields="title,average_rating")
    unrated.interactions.order %= 9  # all at once: every user starts at 0
    with pytest.raises(InputError, match="No user is left for train"):
        sessions.from_raw(unrated, c)
    c.split = "leave_last"
    c.min_history = 1
    unrated = raw(
        [(f"u{u}", i, t) for u in range(6) for t, i in enumerate("abcd"[u % 3 :] + "abcd"[: u % 3])],
        ITEMS,
        rating=False,
    )
    data = sessions.from_raw(unrated, c)
    assert data.sessions["train"][0].ratings is None
    assert not any("1.25" in text for text in data.catalogue.texts)


def test_the_sample_of_users_is_fixed_and_takes_nothing_from_the_catalogue():
    c = settings(validation_share=0.1, test_share=0.2)
    whole = sessions.from_raw(made_up.world(), c)
    c.max_users = 50
    one, two = (sessions.from_raw(made_up.world(), c) for _ in range(2))
    assert one.sessions == two.sessions
    assert one.counts["users not in the sample"] == 46
    for split in sessions.SPLITS:
        assert {s.user for s in one.sessions[split]} < {s.user for s in whole.sessions[split]}
        assert set(one.sessions[split]) < set(whole.sessions[split])
        assert one.counts[f"{split} interactions"] == whole.counts[f"{split} interactions"]
    assert one.catalogue == whole.catalogue and (one.popularity == whole.popularity).all()


KEPT = {"train interactions": 60, "validation interactions": 20, "test interactions": 20}
KEPT |= {"test users": 200, "test users with too few items": 0}
LATE = "validation users' interactions after the cut"


@pytest.mark.parametrize(
    "dropped, warning",
    [
        ({"no user or no item": 102}, "50 % of 202 interactions were dropped for lack of a user or an item: mend the"),
        ({"no time": 300}, "75 % of 400 interactions were dropped for lack of a time: mend the file, or correct"),
        ({"items without title/text": 900}, "90 % of 1,000 interactions were dropped as their items have none of --"),
        ({"repeats of a user's item": 150}, "60 % of 250 interactions were dropped as repeats of a user's item: check"),
        ({"5-core": 2700, "cold items in test": 17}, "95 % of 2,817 interactions were dropped by the 5-core: lower --"),
        (
            {"training users' interactions after the cut": 90},
            "60 % of 150 train interactions were dropped after the cut",
        ),
        ({LATE: 40, "cold items in validation": 5}, "61 % of 65 validation interactions were dropped after the cut: "),
        (
            {LATE: 20, "cold items in validation": 21},
            "51 % of 41 validation interactions were dropped as items without",
        ),
        (
            {"5-core": 50, "cold items in test": 30},
            "60 % of 50 test interactions were dropped as items without a train",
        ),
    ],
)
def test_a_filter_that_drops_over_half_of_what_it_meets_is_told(dropped, warning):
    counts = {f"dropped: {name}": n for name, n in dropped.items()} | KEPT
    (found,) = sessions.warnings_of(counts, config.default().data)
    assert found.startswith(warning) and found.endswith(".") and "--config.data." in found


def test_a_filter_that_drops_half_is_not_told():
    counts = {"dropped: 5-core": 100, "dropped: cold items in test": 20} | KEPT
    assert sessions.warnings_of(counts, config.default().data) == []


def test_few_test_users_are_told_unless_the_data_is_made_up():
    counts, c = KEPT | {"test users": 99}, config.default().data
    assert c.source == "made_up" and sessions.warnings_of(counts, c) == []
    c.source, few = "table", "Only 99 test users: intervals will be wide and most gains noise; "
    assert sessions.warnings_of(counts, c) == [few + "give more data."]
    c.max_users, counts["test users with too few items"] = 500, 1234
    ways = "raise --config.data.max_users=500 or lower --config.data.min_history=4 (1,234 more have too few items) or "
    assert sessions.warnings_of(counts, c) == [few + ways + "give more data."]
    assert sessions.warnings_of(counts | {"test users": 100}, c) == []


def test_the_warnings_of_data_by_hand():
    assert sessions.from_raw(made_up.world(), settings()).warnings == []
    rows = [(f"u{u}", i, u * 9 + t) for u in range(6) for t, i in enumerate("abcd")]
    rows += [(f"v{u}", "e", u) for u in range(30)]  # v0 to v29 have one item
    data = sessions.from_raw(raw(rows, ITEMS), settings(core=3))
    assert data.warnings == ["55 % of 54 interactions were dropped by the 3-core: lower --config.data.core."]
    rows = [(user, i, t) for user in ("abce", "bcaf", "cabg", "dabc", "bdac") for t, i in enumerate(user)]
    data = sessions.from_raw(
        raw(rows, ITEMS, has_time=False), settings(min_history=1)
    )  # nobody has e, f, g in training
    assert data.warnings == [
        "60 % of 5 test interactions were dropped as items without a training interaction: lower "
        "--config.data.eval_targets=1 or --config.data.eval_windows=1, or give more data."
    ]


@pytest.mark.parametrize(
    "source, name, begins",
    [
        ("made_up", "", "made_up: 0-core; "),
        ("movielens", "ml-100k", "movielens ml-100k: 0-core; "),
        ("amazon", "Beauty 2014", "amazon Beauty 2014: 0-core; "),
        ("table", "ratings.csv", "table ratings.csv: 0-core; "),
    ],
)
def test_the_protocol_names_what_was_read_and_not_what_the_config_was_for(source, name, begins):
    source_data = dataclasses.replace(SIX, name=name)
    data = sessions.from_raw(source_data, settings(source=source, name="Books", year=2023))
    assert data.protocol.startswith(begins) and "Books" not in data.protocol


def test_movielens_latest_small(shared_data):
    c = config.default().data
    c.update(source="movielens", path=str(shared_data / "movielens_latest_small_2016"), kind="movies")
    data = sessions.prepare(c)
    counts = data.counts
    assert (
        counts["interactions"]
        == 100_004
        == sum(n for name, n in counts.items() if name.startswith("dropped: ") or name in INTERACTIONS)
    )
    assert [counts[f"{split} users"] for split in sessions.SPLITS] == [470, 67, 134]
    assert counts["items ranked"] == len(data.catalogue.ids) == 3068
    assert "all before 2009-01-12T12:25:20Z" in data.protocol
    assert data.protocol.startswith("movielens movielens_latest_small_2016: 5-core; ") and data.warnings == []
    first = {split: [s.time for s in data.sessions[split]] for split in sessions.SPLITS}
    assert max(first["train"]) < min(first["validation"]) <= max(first["validation"]) < min(first["test"])


@pytest.mark.parametrize(
    "changes, source, message",
    [
        ({"core": 9}, SIX, "9-core leaves no interaction"),
        ({"item_fields": "brand"}, SIX, "None of the 9 items has any of"),
        ({"min_history": 30}, SIX, "No user is left for train"),
        ({"split": "time"}, raw([("u", "a", 1)], ITEMS, has_time=False), "needs times"),
        ({}, raw([("u", "a", 1)], ITEMS), "1 users are too few"),
        ({"item_fields": "titel"}, SIX, "names the field 'titel'"),
    ],
)
def test_one_sentence_for_bad_input(changes, source, message):
    with pytest.raises(InputError, match=message):
        sessions.from_raw(source, settings(**changes))


# ---- items that no training interaction has


def test_all_items_are_ranked_and_the_newest_lose_their_training_interactions():
    settings = config.tiny(config.default()).data
    plain = sessions.prepare(settings)
    settings.update(catalogue="all", cold_share=0.25)
    data = sessions.prepare(settings)
    raw = made_up.world(seed=0).interactions
    first = {}
    for item, time in zip(raw.item.tolist(), raw.order.tolist()):
        first[raw.item_ids[item]] = min(time, first.get(raw.item_ids[item], time))
    newest = set(sorted(first, key=first.get)[-15:])  # of 60
    cold = {data.catalogue.ids[i] for i in np.flatnonzero(data.popularity == 0)}
    assert len(data.catalogue.ids) == 60 and newest <= cold
    assert not any(data.catalogue.ids[i] in newest for s in data.sessions["train"] for i in s.history + s.targets)
    targets = [t for s in data.sessions["test"] for t in s.targets]
    assert any(data.popularity[t] == 0 for t in targets) and any(data.popularity[t] > 0 for t in targets)
    assert data.counts["dropped: training interactions of held-out items"] > 0
    assert "the newest 25 % of them without any training interaction" in data.protocol
    assert "with a training interaction are ranked" in plain.protocol and (plain.popularity > 0).all()
