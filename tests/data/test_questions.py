"""Questions about items by their titles: what is asked for is not read, answers are true, they fit, and what lacks data is told."""

import re

import pytest

from lpt_jax.data import made_up, questions
from lpt_jax.errors import InputError
from tests.systems.tiny_run import recommender, small_config, small_world

KINDS = ("retrieval", "ranking", "rating", "hidden_item", "preference")


@pytest.fixture(scope="module")
def r(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(made_up, "world", small_world())
        found = recommender(small_config({"prompt.max_tokens": 200}), tmp_path_factory.mktemp("run"))
        assert found.sessions["train"]
        yield found


def drawn(r, kind, count=40, seed=0, config=None):
    known = r.sessions["train"], r.data.catalogue, config or r.config, r.lm.source.tokenizer
    found = questions.drawn([kind], count, *known, seed)
    return [(question.text, question.answer) for question in found]


def lines_of(text, start, end):
    """The lines between two phrases."""
    return [line.strip() for line in text.split(start)[1].split(end)[0].strip().splitlines() if line.strip()]


def histories(r):
    """Every session's titles, and those of its first target."""
    titles = r.data.catalogue.titles
    return [([titles[i] for i in s.history], titles[s.targets[0]], s) for s in r.sessions["train"]]


def test_the_next_item_follows_what_is_read(r):
    for text, answer in drawn(r, "retrieval"):
        read = lines_of(text, "oldest first:", "Next item:")
        assert any(read == titles[-len(read) :] and answer == after for titles, after, _ in histories(r))


def test_candidates_hold_the_answer_once_in_any_place(r):
    places = set()
    for text, answer in drawn(r, "ranking"):
        shown = lines_of(text, "Candidates:", "Most likely next:")
        read = lines_of(text, "oldest first:", "Candidates:")
        assert len(shown) == r.config.knowledge.candidates and answer in shown
        assert any(read == titles[-len(read) :] and answer == after for titles, after, _ in histories(r))
        places.add(shown.index(answer))
    assert len(places) == r.config.knowledge.candidates


def test_stars_are_the_last_items_own(r):
    for text, answer in drawn(r, "rating"):
        read, asked = lines_of(text, "with stars:", "Stars for"), re.search(r"Stars for (.+?) 1 to 5", text, re.S)[1]
        assert any(
            titles[-1] == asked
            and answer == f"{int(s.ratings[-1] + 0.5)}"
            and read == [f"{t}: {int(x + 0.5)}" for t, x in zip(titles, s.ratings)][:-1][-len(read) :]
            for titles, _, s in histories(r)
        )


def test_what_is_hidden_stands_in_its_place(r):
    places = set()
    for text, answer in drawn(r, "hidden_item"):
        read = lines_of(text, "oldest first:", "The hidden item:")
        assert read.count(questions.HIDDEN) == 1
        whole = [answer if line == questions.HIDDEN else line for line in read]
        assert any(whole == titles[-len(read) :] for titles, *_ in histories(r))
        places.add(len(read) - read.index(questions.HIDDEN))
    assert places == {1, 2, 3}


def test_of_two_the_chosen_one_is_either(r):
    answers = set()
    for text, answer in drawn(r, "preference"):
        found = re.search(r"\(A\) (.+?) \(B\) (.+?) \?", text, re.S)
        chosen, other = (found[1], found[2])[:: 1 if answer == "A" else -1]
        assert any(chosen.strip() == after and other.strip() not in titles for titles, after, _ in histories(r))
        answers.add(answer)
    assert answers == {"A", "B"}


def test_each_kind_comes_as_often_and_seeds_differ(r):
    known = r.sessions["train"], r.data.catalogue, r.config, r.lm.source.tokenizer
    found, again, other = (questions.drawn(list(KINDS), 10, *known, seed) for seed in (0, 0, 1))
    assert found == again != other and len(found) == 10
    assert max(len(question.ids) for question in found) <= r.config.prompt.max_tokens


def test_what_does_not_fit_and_what_lacks_are_told(r):
    config = r.config.copy_and_resolve_references()
    config.prompt.max_tokens = 12
    with pytest.raises(InputError, match=r"kind retrieval needs \(.*prompt\.max_tokens=12\): leave retrieval out"):
        drawn(r, "retrieval", config=config)
    config.prompt.update(max_tokens=200, history_items=1)
    assert {text.count(questions.HIDDEN) for text, _ in drawn(r, "hidden_item", config=config)} == {1}
    unrated = [type(s)(s.user, s.history, None, None, s.targets, s.time) for s in r.sessions["train"][:3]]
    with pytest.raises(
        InputError, match=r"kind rating needs \(ratings, .*leave rating out of --config\.knowledge\.tasks"
    ):
        questions.drawn(["rating"], 2, unrated, r.data.catalogue, r.config, r.lm.source.tokenizer, 0)


def test_negatives_are_of_no_session_of_the_user(r):
    known = questions.known_items(r.sessions["train"])
    for session in r.sessions["train"]:
        assert {*session.history, *session.targets} <= known[session.user]
    titles = r.data.catalogue.titles
    for text, answer in drawn(r, "ranking"):
        shown = lines_of(text, "Candidates:", "Most likely next:")
        read = lines_of(text, "oldest first:", "Candidates:")
        users = {s.user for names, after, s in histories(r) if read == names[-len(read) :] and answer == after}
        wrong = [title for title in shown if title != answer]
        assert any(
            not any(titles[i] == t for i in known[user] for t in wrong if titles.count(t) == 1) for user in users
        )
