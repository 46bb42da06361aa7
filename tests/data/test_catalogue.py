import pytest

from lpt_jax.data import catalogue
from lpt_jax.errors import InputError

HEAT = {
    "title": "Heat",
    "year": 1995,
    "genres": ["Crime", "Drama"],
    "price": 9.5,
    "description": "Two  men,\none city.",
    "brand": "",
    "average_rating": 4.25,
}


def test_one_line_per_field_in_the_chosen_order_without_missing_ones():
    listed = catalogue.build(["b", "a"], {"a": {"title": "Alien"}, "b": HEAT}, "title,genres,brand,description,price")
    assert listed.texts[0] == "Title: Heat (1995)\nGenres: Crime, Drama\nDescription: Two men, one city.\nPrice: 9.5"
    assert listed.texts[1] == "Title: Alien"
    assert listed.ids == ["b", "a"] and listed.titles == ["Heat (1995)", "Alien"]
    assert catalogue.build(["b"], {"b": HEAT}, "genres, title").texts == ["Genres: Crime, Drama\nTitle: Heat (1995)"]


def test_year_is_told_once():
    assert catalogue.lines({"title": "Heat (1995)", "year": 1995}, ["title", "year"]) == ["Title: Heat (1995)"]
    assert catalogue.lines({"title": "1984", "year": 1956}, ["title"]) == ["Title: 1984 (1956)"]
    assert catalogue.lines({"title": "Heat", "year": 1995}, ["year"]) == ["Year: 1995"]


def test_average_rating_only_where_asked_for():
    assert "4.25" not in catalogue.build(["b"], {"b": HEAT}, "title,description").texts[0]
    assert catalogue.build(["b"], {"b": HEAT}, "average_rating").texts == ["Average rating: 4.25"]


def test_nothing_known_is_the_id_as_title():
    assert catalogue.build(["x"], {"x": {"price": float("nan"), "title": None}}, "title,price").titles == ["x"]
    with pytest.raises(InputError, match="data.item_fields names the field 'titel'"):
        catalogue.build([], {}, "titel")
