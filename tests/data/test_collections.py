"""Named collections: where they come from, what is left out of them, and mixes of two."""

import json
import types

import numpy as np
import pytest

from lpt_jax.data import catalogue, collections
from lpt_jax.errors import InputError


def settings(**changes):
    return types.SimpleNamespace(
        **{"source": "categories", "path": "", "fewest": 2, "validation": 1, "test": 1} | changes
    )


def items(*paths, **more):
    fields = [
        {"title": f"thing {i}", "categories": list(path)} | {k: v[i] for k, v in more.items()}
        for i, path in enumerate(paths)
    ]
    return catalogue.build([f"i{i}" for i in range(len(fields))], {f"i{i}": f for i, f in enumerate(fields)}, "title")


POLISH, CREAM, BRUSH, HAIR = (
    ("B", "Makeup", "Nails", "Polish"),
    ("B", "Skin", "Cream"),
    ("B", "Makeup", "Brush"),
    ("B", "Hair", "Brush"),
)


def test_the_last_category_names_a_collection_unless_several_are_called_so():
    found, counts = collections.read(
        settings(), None, items(POLISH, CREAM, POLISH, BRUSH, BRUSH, HAIR, CREAM, ("B", "Odd"))
    )
    assert found == [("Cream", "Skin", (1, 6)), ("Polish", "Makeup", (0, 2))]
    assert counts == {
        "names of several categories, left out": 1,
        "collections": 2,
        "collections of fewer than 2 items": 1,
    }


def test_genres_are_collections_and_an_item_may_be_in_several():
    films = items((), (), (), genres=[["War", "Drama"], ["war"], ["Drama"]])
    found, _ = collections.read(settings(source="genres"), None, films)
    assert found == [("Drama", "", (0, 2)), ("War", "", (0, 1))]


def test_files_name_items_by_their_ids(tmp_path):
    things = items(*[()] * 4)
    (tmp_path / "named.csv").write_text("name,item\nred,i0\nred,i2\nblue,i1\nBlue,i3\nred,i9\n")
    found, counts = collections.read(settings(source="file", path=f"{tmp_path}/named.csv"), None, things)
    assert [(c.name, c.items) for c in found] == [("blue", (1, 3)), ("red", (0, 2))]
    assert counts["items of collections that are not in the catalogue"] == 1
    (tmp_path / "named.jsonl").write_text(json.dumps({"name": "red", "items": ["i0", "i2"]}) + "\n")
    assert collections.read(settings(source="file", path=f"{tmp_path}/named.jsonl"), None, things)[0] == [
        ("red", "", (0, 2))
    ]


def test_tags_lie_beside_the_ratings(tmp_path):
    (tmp_path / "tags.csv").write_text("userId,movieId,tag,timestamp\n1,i0,Funny,5\n2,i1,funny,6\n2,i7,odd,6\n")
    found, counts = collections.read(settings(source="tags"), types.SimpleNamespace(path=str(tmp_path)), items((), ()))
    assert found == [("Funny", "", (0, 1))] and counts["items of collections that are not in the catalogue"] == 1


@pytest.mark.parametrize(
    "name, text, said",
    [
        (
            "a.csv",
            "name,item\nred,x1\nred,x2\nblue,i0\n",
            r"none of the 2 items of 'red' is in the catalogue, such as 'x1'",
        ),
        ("b.csv", "title,item\nred,i0\n", "it needs the columns name and item"),
        ("c.jsonl", '{"name": "red"}\n', 'record 1 has no "name" or no list "items"'),
        ("d.jsonl", "", "it has no records"),
        ("e.csv", None, "can't be read"),
        ("f.csv", "name,item\nred,i0\n,i1\n", "the item 'i1' has an empty name; give it one"),
    ],
)
def test_what_can_not_be_used_is_told_in_a_sentence(tmp_path, name, text, said):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=said) as error:
        collections.read(settings(source="file", path=f"{tmp_path}/{name}"), None, items((), ()))
    assert "\n" not in str(error.value)


def made(count=8, size=6):
    return [collections.Collection(f"n{i}", f"b{i % 2}", tuple(range(i * size, i * size + size))) for i in range(count)]


def test_a_name_is_in_one_split_alone():
    found = made()
    parts = collections.split(found, settings(validation=2, test=3))
    assert {name: len(part) for name, part in parts.items()} == {"test": 3, "validation": 2, "train": 3}
    assert sorted(sum(parts.values(), [])) == found
    with pytest.raises(InputError, match="gives 8 collections of at least 2 items, and validation and test take 7"):
        collections.split(found, settings(validation=4, test=3))


def test_mixes_are_of_two_collections_near_or_far():
    found = made()
    for kind in collections.KINDS:
        for mix in collections.mixes(found, kind, 4, 30, seed=1):
            a, b = mix.names
            assert (found[a].branch == found[b].branch) == (kind == "near") and len(set(mix.items.tolist())) == 8
            for item, side in zip(mix.items, mix.source, strict=True):
                assert item in found[mix.names[side]].items
            assert np.bincount(mix.source).tolist() == [4, 4]
    one = collections.mixes(found, "far", 4, 5, seed=1)
    assert all((a.items == b.items).all() for a, b in zip(one, collections.mixes(found, "far", 4, 5, seed=1)))
    assert not collections.mixes(found, "far", 7, 5, seed=1), "none has seven items"
    unknown = [c._replace(branch="") for c in found]
    assert not collections.mixes(unknown, "near", 4, 5, 1) and len(collections.mixes(unknown, "far", 4, 5, 1)) == 5


def test_items_of_both_collections_are_in_no_mix():
    both = [collections.Collection("a", "", (0, 1, 2)), collections.Collection("b", "", (2, 3, 4))]
    assert {item for mix in collections.mixes(both, "far", 2, 9, 0) for item in mix.items.tolist()} == {0, 1, 3, 4}


def test_draws_are_of_every_collection_and_differ():
    found = collections.draws(made(), 4, 3, seed=0)
    assert [number for number, _ in found] == [*range(8)] * 3
    assert all(len(set(items)) == 4 and set(items) <= set(made()[number].items) for number, items in found)
    assert found[0][1] != found[8][1]
