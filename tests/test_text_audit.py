"""How profiles read: claims and defects worked out by hand, the right history found, answers predicted."""

import numpy as np
import pytest

from lpt_jax import text_audit
from lpt_jax.text_audit import Shown, attribute_pattern, claims, defects

HISTORY = Shown(["Heat (1995)", "Alien (1979)", "Big Night (1996)"], {"crime", "horror", "1990s"})
NAMES = ["crime", "horror", "war", "sci-fi", "1990s", "drama"]
PATTERN = attribute_pattern(NAMES)


def found(text, ended=True):
    named = claims(text, HISTORY, PATTERN)
    return named, defects(text, ended, HISTORY, named)


@pytest.mark.parametrize(
    "text, supported, count",
    [
        ("I like crime and horror movies of the 1990s.", 3, 3),
        ("I like war movies. I loved Heat (1995) and Alien (1979).", 2, 3),
        ("Likes crime movies, such as Heat, Big Night and Casablanca (1942).", 3, 4),  # years may lack
        ("A fan of Die Hard (1988) and Heat (1995).", 1, 2),  # outside examples a year shows a title
        ("Likes movies such as Jaws, Speed and Big.", 0, 3),  # "Big" is not "Big Night"
        ("Enjoys warmth and crimes.", 0, 0),  # words that attributes are a part of
        ("Nothing is named here.", 0, 0),
        ("Likes crime movies, such as Heat (1995), and avoids war.", 2, 3),  # what follows the examples is no title
    ],
)
def test_claims(text, supported, count):
    named, _ = found(text)
    assert (named.supported, named.all) == (supported, count)


def test_a_title_within_another_is_not_named_twice():
    history = Shown(["Toy Story (1995)", "Toy Story 2 (1999)"], set())
    text = "I loved Toy Story (1995) and Toy Story 2 (1999)."
    assert defects(text, True, history, claims(text, history, PATTERN)) == set()


def test_a_title_is_not_searched_for_attributes():
    history = Shown(["Crime of the Century (1996)"], set())
    assert claims("I loved Crime of the Century (1996).", history, PATTERN) == (1, 1, [], [])


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("I like crime and horror movies. I loved Heat (1995) and Alien (1979).", set()),
        ("Likes crime movies, for example Heat (1995). Avoids war.", set()),
        ("This person likes crime, drama and", {"cut off"}),
        ("Likes drama, crime and crime movies.", {"named twice"}),
        ("I loved Heat (1995), Alien (1979) and Heat (1995).", {"named twice"}),
        ("I loved Heat (1995), Alien (1979) and Heat.", {"named twice"}),
        ("I loved Heat (1995) and Alien (1979) and Big Night (1996).", set()),
        ("Likes big, Big Night and horror. Horror it is.", {"named twice"}),
        ("They like it very much and they like it very much.", {"repetition"}),
        ("Likes movies such as Heat: 5/5.", {"pasted rating"}),
        ("This profile describes a lover of crime.", {"the task's words"}),
        ("G.I.J.E.B.R.I.A.T.E.", {"no words"}),
        ("Likes movies such as Horror and Heat (1995).", {"an attribute as an item"}),
        ("", {"cut off", "no words"}),
    ],
)
def test_defects(text, wanted):
    assert found(text)[1] == wanted


def test_a_text_that_the_limit_cut_has_a_defect_even_after_a_full_stop():
    assert found("Likes crime movies.", ended=False)[1] == {"cut off"}


def test_the_right_history_is_found_where_profiles_say_it_and_by_chance_where_they_do_not():
    rng = np.random.default_rng(0)
    histories = rng.normal(size=(400, 8))
    histories /= np.linalg.norm(histories, axis=1, keepdims=True)
    users = np.arange(400)
    assert text_audit.told(histories, histories, users, 0).all()
    chance = text_audit.told(rng.normal(size=(400, 8)), histories, users, 0).mean()
    assert abs(chance - 1 / text_audit.TOLD) < 0.04
    assert text_audit.told(
        histories, histories[[0] * 400], users * 0, 0
    ).all()  # one's own other histories are no others


def test_what_profiles_give_away():
    """An answer that the profile holds is predicted, one that only the history holds is not."""
    rng = np.random.default_rng(0)
    profiles, histories = rng.normal(size=(2, 200, 4)) * 0.1
    users = [{"said": "yes" if i % 2 else "no", "kept": "a" if i % 5 else "b"} for i in range(200)]
    profiles[::2] += 3
    histories[::5] += 3
    found = text_audit.private(profiles, histories, users, lambda values: {"mean": float(values.mean())})
    assert found["said"]["profile"] > 0.95 and found["said"]["history"] < 0.7 and found["said"]["majority"] == 0.5
    assert found["kept"]["history"] > 0.95 and found["kept"]["profile"] <= found["kept"]["majority"] + 0.02
    assert found["kept"]["over_history"]["mean"] == pytest.approx(found["kept"]["profile"] - found["kept"]["history"])
    shrunk = text_audit.private(profiles * 0.01, histories, users, lambda values: {"mean": float(values.mean())})
    assert shrunk["said"]["profile"] == found["said"]["profile"]  # the vectors' length says nothing
    assert text_audit.private(profiles, histories, [{"one": "x"}] * 196 + [{"one": "y"}] * 4, None) == {}


def test_the_numbers_of_some_profiles():
    texts = ["I like crime movies.", "I like crime movies.", "Likes war"]
    numbers = text_audit.measured(
        texts, [True, True, False], [HISTORY] * 3, NAMES, lambda values: {"mean": np.nanmean(np.asarray(values, float))}
    )
    assert numbers["ended"]["mean"] == pytest.approx(2 / 3) == numbers["clean"]["mean"]
    assert numbers["supported"]["claims"]["mean"] == pytest.approx(2 / 3) and numbers["supported"]["per_profile"] == 1
    assert numbers["distinct"] == pytest.approx(1 / 3) and numbers["words"] == pytest.approx(10 / 3)
    assert numbers["defects"]["cut off"] == pytest.approx(1 / 3) and "telling" not in numbers
