"""Named collections of items: what names of journeys are learned from and judged by, and mixes of two, by which journeys are.

They come from the items' own fields (the last of an item's categories, its genres), from MovieLens' tags.csv, or from a file:
.csv with the columns name and item, a row for each item, or .jsonl with {"name": …, "items": […]}; items by their ids.
"""

import collections
import csv
import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lpt_jax import files
from lpt_jax.errors import InputError

KINDS = ("far", "near")  # mixes: of two branches, or of one


class Collection(NamedTuple):
    """A name, and the catalogue indices of its items; `branch` is what names that are near share, "" if nobody knows."""

    name: str
    branch: str
    items: tuple[int, ...]


class Mix(NamedTuple):
    """Items of two collections in a random order, which of the two each is from, and which two they are."""

    items: np.ndarray
    source: np.ndarray
    names: tuple[int, int]


def read(settings, data_config, catalogue) -> tuple[list[Collection], dict[str, int]]:
    """The collections that config.collections names, sorted by name, and what was left out; InputError for what won't do."""
    found, counts = _SOURCES[settings.source](settings, data_config, catalogue)
    small = [c for c in found if len(c.items) < settings.fewest]
    counts |= {"collections": len(found) - len(small), f"collections of fewer than {settings.fewest} items": len(small)}
    return sorted(c for c in found if len(c.items) >= settings.fewest), counts


def _of_categories(settings, data_config, catalogue):
    by_path = collections.defaultdict(list)
    for item, fields in enumerate(catalogue.fields):
        if path := tuple(fields.get("categories") or ()):
            by_path[path].append(item)
    times = collections.Counter(path[-1].lower() for path in by_path)
    once = {path: items for path, items in by_path.items() if times[path[-1].lower()] == 1}
    found = [Collection(path[-1], path[min(1, max(len(path) - 2, 0))], tuple(items)) for path, items in once.items()]
    return found, {"names of several categories, left out": sum(n > 1 for n in times.values())}


def _of_genres(settings, data_config, catalogue):
    return _grouped(
        (name, item) for item, fields in enumerate(catalogue.fields) for name in fields.get("genres") or ()
    ), {}


def _of_tags(settings, data_config, catalogue):
    if not (settings.path or data_config.path):
        raise InputError(
            "--config.collections.source=tags needs the folder of tags.csv: set --config.data.path or --config.collections.path."
        )
    file = Path(settings.path or Path(data_config.path) / "tags.csv")
    return _of_pairs(_columns(file, ("tag", "movieId")), catalogue, "--config.collections.source=tags", strict=False)


def _of_file(settings, data_config, catalogue):
    file = Path(settings.path)
    if file.suffix == ".csv":
        pairs = _columns(file, ("name", "item"))
    else:
        records = files.read_jsonl(file) if file.is_file() else []
        wrong = [n for n, record in enumerate(records, 1) if not _is_collection(record)]
        if wrong or not records:
            what = f'record {wrong[0]} has no "name" or no list "items"' if wrong else "it has no records"
            raise InputError(
                f"--config.collections.path={file} can't be used: {what}; see lpt_jax/data/collections.py."
            )
        pairs = [(record["name"], str(item)) for record in records for item in record["items"]]
    return _of_pairs(pairs, catalogue, f"--config.collections.path={file}")


_SOURCES = {"categories": _of_categories, "genres": _of_genres, "tags": _of_tags, "file": _of_file}


def _is_collection(record) -> bool:
    return isinstance(record, dict) and isinstance(record.get("name"), str) and isinstance(record.get("items"), list)


def _columns(file: Path, names: tuple[str, str]) -> list[tuple[str, str]]:
    """Two columns of a .csv file with a header."""
    try:
        with open(file, encoding="utf-8-sig", errors="replace", newline="") as lines:
            rows = list(csv.DictReader(lines))
    except OSError as error:
        raise InputError(
            f"The collections' file {file} can't be read ({error.strerror}): set --config.collections.path."
        ) from None
    if not rows or not set(names) <= rows[0].keys():
        raise InputError(
            f"{file} won't do as collections: it needs the columns {' and '.join(names)}, and a row for each item."
        )
    return [(row[names[0]] or "", row[names[1]] or "") for row in rows]


def _of_pairs(pairs, catalogue, where: str, strict: bool = True):
    """Collections of (name, item id) pairs; items that aren't in the catalogue are counted. strict: each must have one."""
    index = {item: i for i, item in enumerate(catalogue.ids)}
    pairs = [(" ".join(name.split()), item.strip()) for name, item in pairs]
    if strict and not all(name for name, _ in pairs):
        raise InputError(
            f"{where}: the item {next(item for name, item in pairs if not name)!r} has an empty name; give it one."
        )
    known = [(name, index[item]) for name, item in pairs if item in index and name]
    if strict and (lost := {name: item for name, item in pairs}.keys() - {name for name, _ in known}):
        name = min(lost)
        items = [item for of, item in pairs if of == name]
        raise InputError(
            f"{where}: none of the {len(items)} items of {name!r} is in the catalogue, such as {items[0]!r}; give ids of ranked items."
        )
    return _grouped(known), {"items of collections that are not in the catalogue": len(pairs) - len(known)}


def _grouped(pairs) -> list[Collection]:
    """Collections of (name, item) pairs; names that differ in case alone are one, called as it is first."""
    names, items = {}, collections.defaultdict(dict)
    for name, item in pairs:
        names.setdefault(name.lower(), name)
        items[name.lower()][item] = None
    return [Collection(names[key], "", tuple(of_name)) for key, of_name in items.items()]


def split(found: list[Collection], settings) -> dict[str, list[Collection]]:
    """Collections by split, none in two: the same whatever the run's seed; InputError where there are too few."""
    held = settings.validation + settings.test
    if len(found) < held + 2:
        raise InputError(
            f"--config.collections.source={settings.source} gives {len(found)} collections of at least {settings.fewest} items, and "
            f"validation and test take {held}: lower --config.collections.validation, .test or .fewest, or name another source."
        )
    order = np.random.default_rng(0).permutation(len(found))
    ends = settings.test, held, len(found)
    parts = [order[start:end] for start, end in zip((0, *ends), ends)]
    return {name: [found[i] for i in sorted(part)] for name, part in zip(("test", "validation", "train"), parts)}


def draws(found: list[Collection], size: int, times: int, seed: int) -> list[tuple[int, list[int]]]:
    """(which collection, up to `size` of its items in a random order), each collection `times` times."""
    rng = np.random.default_rng(seed)
    return [
        (number, rng.permutation(collection.items)[:size].tolist())
        for _ in range(times)
        for number, collection in enumerate(found)
    ]


def mixes(found: list[Collection], kind: str, size: int, count: int, seed: int) -> list[Mix]:
    """`count` mixes of `size` items of each of two collections, far: of two branches, near: of one; [] if no two are so."""
    rng, pairs = np.random.default_rng(seed), []
    for a, b in itertools.combinations(range(len(found)), 2):
        own = set(found[a].items) - set(found[b].items), set(found[b].items) - set(found[a].items)
        near = bool(found[a].branch) and found[a].branch == found[b].branch
        if near == (kind == "near") and min(map(len, own)) >= size:
            pairs.append((a, b, *map(sorted, own)))
    made = []
    for place in rng.integers(len(pairs), size=count) if pairs else ():
        a, b, *own = pairs[place]
        items = np.concatenate([rng.choice(items, size, replace=False) for items in own])
        order = rng.permutation(2 * size)
        made.append(Mix(items[order], np.repeat([0, 1], size)[order], (a, b)))
    return made
