"""Recommending: who is asked for, items by id or title, and the table that is printed."""

from types import SimpleNamespace

import numpy as np
import pytest

from lpt_jax import recommend
from lpt_jax.data.catalogue import Catalogue
from lpt_jax.data.reviews import Interactions
from lpt_jax.data.sessions import Dataset
from lpt_jax.errors import InputError

TITLES = ["Heat (1995)", "Godfather, The (1972)", "Alien", "Crash (1996)", "Crash (2004)", "7"]
IDS = ["7", "12", "31", "40", "41", "99"]
CATALOGUE = Catalogue(ids=IDS, titles=TITLES, texts=TITLES, fields=[{} for _ in TITLES])
NAN = float("nan")
ROWS = Interactions(
    user=np.array([0, 0, 0, 2, 2]),
    item=np.array([0, 1, 2, 3, 4]),
    user_ids=["ann", "ben", "bob"],
    item_ids=IDS,
    order=np.full(5, NAN),
    has_time=False,
    rating=np.array([4.0, 5.0, 3.0, None, None], object),
    review=None,
)
DATASET = Dataset(CATALOGUE, {}, np.ones(6, np.int64), {}, "", "films", ROWS, np.zeros(len(ROWS.user), int))


def find(text):
    items, notes = recommend.find_items(text, CATALOGUE)
    return list(items), notes


def test_items_by_id_title_and_title_without_year():
    assert find("31, heat, GODFATHER,  The (1972)") == ([2, 0, 1], [])
    assert find("Godfather, The, Alien,,") == ([1, 2], [])
    assert find("the godfather, Heat (1995)") == ([1, 0], [])
    assert find("7") == ([0], [])  # an id before a title
    assert find("Alien,31,alien") == ([2], [])


def test_commas_without_a_space():
    titles = ["20,000 Leagues Under the Sea (1954)", "Angels and Insects", "Alien"]
    catalogue = Catalogue(ids=["x,1", "20", "a"], titles=titles, texts=titles, fields=[{} for _ in titles])
    assert recommend.find_items("Alien, 20,000 leagues under the sea", catalogue) == ((2, 0), [])
    assert recommend.find_items("x,1, 20", catalogue) == ((0, 1), [])
    many = ",".join(["a", "20"] * 5_000)  # is read at once
    assert recommend.find_items(many, catalogue) == ((2, 1), [])


def test_a_slip_is_read_as_the_nearest_title_and_told():
    assert find("12, Godfahter") == ([1], ["'Godfahter' is read as 'Godfather, The (1972)'."])


def test_items_that_can_not_be_found():
    with pytest.raises(InputError, match=r"'Hart' is no item .*; the nearest titles are: Heat \(1995\)"):
        find("Alien, Hart")
    with pytest.raises(InputError, match="'qqqqqqq' is no item of this catalogue; no title is like it"):
        find("qqqqqqq")
    with pytest.raises(InputError, match=r"'Crash' is the title of 2 items: give an id \(40, 41\)"):
        find("Crash")


def test_what_is_asked(tmp_path):
    file = tmp_path / "profile.txt"
    file.write_text(" likes space\n", encoding="utf-8")
    assert recommend.asked(user="3") == ("user", "3")
    assert recommend.asked(profile_file=str(file)) == ("profile", "likes space")
    file.write_bytes(b"\xff\xfe\x00")
    wrong = [
        ({}, "takes one of"),
        ({"user": "3", "profile": "x"}, "takes one of"),
        ({"history": " , "}, "--history is empty"),
        ({"profile": ""}, "--profile is empty"),
        ({"profile_file": str(tmp_path / "none")}, "none can't be read: No such file"),
        ({"profile_file": str(tmp_path)}, "can't be read: Is a directory"),
        ({"profile_file": str(file)}, "can't be read: it is not UTF-8"),
    ]
    for flags, message in wrong:
        with pytest.raises(InputError, match=message):
            recommend.asked(**flags)


def test_a_user_is_taken_with_all_that_is_known():
    session = recommend.known_session(DATASET, "ann")
    assert (session.history, session.ratings, session.reviews, session.targets) == (
        (0, 1, 2),
        (4.0, 5.0, 3.0),
        None,
        (),
    )
    assert recommend.known_session(DATASET, "bob").history == (3, 4)
    for absent in ("anne", "ben", "zoe"):  # of ben nothing is left
        with pytest.raises(
            InputError, match=f"--user={absent}: no user of this id is left in the data; the nearest id is"
        ):
            recommend.known_session(DATASET, absent)


def answer(kind, text, k=2, limit=99, write=lambda session: "films in space"):
    """Items on the unit circle; the profile looks along the x axis; the last row is padding."""
    angles = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    items = np.vstack([np.stack([np.cos(angles), np.sin(angles)], 1), [[1.0, 0.0]]]).astype(np.float32)
    embedder = SimpleNamespace(profile_limit=limit, length=lambda text: len(text.split()))
    r = SimpleNamespace(
        data=DATASET,
        run=SimpleNamespace(count=len(IDS), key=None),
        lm=SimpleNamespace(write=lambda weights, sessions, rows, key, draws: [write(sessions[0])]),
        embedder=embedder,
        length=embedder.length,
        by_journey=False,
        parts=lambda session: [session],
        line=str,
        prompt=lambda session: (session, 1),
        weights=lambda state, part: None,
        catalogue=lambda weights, keep: items,
        queries=lambda weights, texts: (np.array([[1.0, 0.0]], np.float32), [True]),
        with_history=lambda queries, items, histories, weight: queries,
        config=SimpleNamespace(
            score=SimpleNamespace(rejected=0.25), profile=SimpleNamespace(samples=1, best_by="explains")
        ),
    )
    return recommend.recommend(r, {}, kind, text, k)


def test_the_answer_hides_the_history_and_has_aligned_columns():
    assert answer("history", "Heat, Alien").splitlines() == [
        "Profile: films in space",
        "",
        "rank  score  item  title",
        "   1  0.980  12    Godfather, The (1972)",
        "   2  0.921  40    Crash (1996)",
    ]
    assert "12 " not in answer("user", "ann", k=10)
    assert len(answer("profile", "films", k=99).splitlines()) == 3 + len(IDS)


def test_a_profile_longer_than_the_embedder_reads():
    with pytest.raises(InputError, match="The profile has 4 tokens and the embedder reads 3: shorten it"):
        answer("profile", "films films films films", limit=3)
    assert answer("user", "bob", limit=2).startswith("The profile has 3 tokens, of which the embedder reads 2.")
    assert answer("profile", "Films, but no horror").startswith("Read as rejected: horror.")
    assert answer("user", "bob", write=lambda session: "").startswith("Profile: (empty)")
