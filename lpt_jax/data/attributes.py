"""What items have in common that people speak of: genres, categories, brands, decades, else frequent words of titles."""

import collections
import re
from typing import NamedTuple

import numpy as np

FEWEST = 20  # items that an attribute has
MOST = 0.5  # share of the items that it has: what nearly all have is no wish
LISTED = ("genres", "categories", "brand")  # fields that name attributes
UNNAMED = ("unknown", "none", "other", "n/a", "")  # values that say nothing
SHORTEST = 4  # letters of a title's word that is an attribute


class Attributes(NamedTuple):
    """A attributes of N items, the most frequent first.

    names: as people say them ("horror", "1990s"); fields: where each is from, "decade" and "title" among them; has: Bool[A, N].
    """

    names: list[str]
    fields: list[str]
    has: np.ndarray

    def of(self, item: int) -> list[int]:
        """An item's attributes."""
        return np.flatnonzero(self.has[:, item]).tolist()


def attributes_of(fields: list[dict], fewest: int = FEWEST) -> Attributes:
    """The attributes of items' fields, each of at least `fewest` items and at most half of them.

    >>> films = [{"genres": ["Horror"], "year": 1994}] * 2 + [{"genres": ["Drama", "Horror"]}] + [{"title": "x"}] * 3
    >>> attributes_of(films, fewest=2).names
    ['horror', '1990s']
    """
    items = collections.defaultdict(list)
    for number, of_item in enumerate(fields):
        for attribute in dict.fromkeys(named(of_item)):
            items[attribute].append(number)
    found = _kept(items, len(fields), fewest)
    if not found:
        for number, of_item in enumerate(fields):
            for word in dict.fromkeys(re.findall(rf"[^\W\d_]{{{SHORTEST},}}", str(of_item.get("title") or "").lower())):
                items["title", word].append(number)
        found = _kept(items, len(fields), fewest)
    has = np.zeros((len(found), len(fields)), bool)
    for row, attribute in enumerate(found):
        has[row, items[attribute]] = True
    return Attributes([name for _, name in found], [field for field, _ in found], has)


def _kept(items: dict, count: int, fewest: int) -> list[tuple[str, str]]:
    """The attributes that few enough and many enough items have, the most frequent first; a name once."""
    found, names = [], set()
    for attribute in sorted(items, key=lambda a: (-len(items[a]), a)):
        if fewest <= len(items[attribute]) <= MOST * count and attribute[1].lower() not in names:
            found.append(attribute)
            names.add(attribute[1].lower())
    return found


def named(fields: dict):
    """(field, name) of each attribute that an item's fields name."""
    for field in LISTED:
        value = fields.get(field)
        for part in value if isinstance(value, list | tuple) else [value]:
            name = " ".join(str(part or "").split())
            if name.lower() not in UNNAMED:
                yield field, name if field == "brand" else name.lower()
    year = re.search(r"\b(1[89]|20)\d\d\b", str(fields.get("year") or ""))
    if year:
        yield "decade", f"{year[0][:3]}0s"
