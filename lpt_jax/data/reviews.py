"""Raw files -> interactions and an item table. Every file format of the data is known here and nowhere else.

Columns have roles: user, item, time, rating, review of an interaction; title, description, categories, genres, brand,
price, year, average_rating of an item. A role that a source lacks is absent. A line that can't be read is an
InputError naming it; a row without user, item or (where others have one) time is dropped and counted. Repeated rows
are all kept here, and the item table has only items that somebody took.
"""

import ast
import contextlib
import csv
import dataclasses
import datetime
import functools
import gzip
import html
import itertools
import json
import pathlib
import re
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from lpt_jax.data import carriers, downloads
from lpt_jax.errors import InputError

TAKEN = {  # role -> its names in the known sources
    "user": ("user", "user_id", "userId", "reviewerID"),
    "item": ("item", "item_id", "movieId", "parent_asin", "asin"),
    "time": ("time", "timestamp", "unixReviewTime"),
    "rating": ("rating", "overall"),
    "review": ("review", "reviewText", "text"),
}
ITEM = {
    "item": TAKEN["item"],
    "title": ("title", "movie_title"),
    "description": ("description", "features"),
    "categories": ("categories", "category"),
    "genres": ("genres", "genre", "class"),
    "brand": ("brand", "store"),
    "price": ("price",),
    "year": ("year", "release_year"),
    "average_rating": ("average_rating",),
}
GENRES = (  # the flags of u.item, in order
    "unknown Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy Film-Noir "
    "Horror Musical Mystery Romance Sci-Fi Thriller War Western"
).split()
MOVIELENS = {  # file of ratings -> its columns (none: it has a header) and delimiter, the same of the films
    "u.data": ("user item rating time", "\t", "u.item", "item title released video imdb", "|"),
    "ratings.dat": ("user item rating time", "::", "movies.dat", "item title genres", "::"),
    "ratings.csv": ("", ",", "movies.csv", "", ","),
}
CARRIED = {"recbole": "recbole/dataset_example/ml-100k"}  # where a carrier has its data
TAGS = re.compile(
    r"</?(a|b|br|div|em|font|h\d|hr|i|img|li|ol|p|span|strong|table|td|tr|u|ul)\b[^<>]*>", re.I
)
NOTHING = ("", "unknown", "unkonwn", "(no genres listed)")  # the misspelling is MovieLens-100k's
BATCH = 65_536  # JSON lines held as Python objects at once


@dataclasses.dataclass
class Interactions:
    """Who took what and when, one row each in the source's order; codes index the id lists."""

    user: np.ndarray  # Int32[n]
    item: np.ndarray  # Int32[n]
    user_ids: list[str]  # in order of first appearance
    item_ids: list[str]  # in order of first appearance
    order: (
        np.ndarray
    )  # Float64[n] unix seconds, or without times the position among the user's rows
    has_time: bool
    rating: np.ndarray | None  # Float32[n], NaN where there is none
    review: np.ndarray | None  # object[n] of str, None where there is none


@dataclasses.dataclass
class Raw:
    """A source as read: interactions, their items' fields by item id, and dropped rows by reason."""

    interactions: Interactions
    items: dict[str, dict]
    counts: dict[str, int]


def read(data, seed: int = 0) -> Raw:
    """The source config.data describes (`seed`: the made-up world's); InputError for what won't do."""
    readers = {
        "movielens": _movielens,
        "amazon": _amazon,
        "sequences": _sequences,
        "table": _named_columns,
        "datasets": _datasets,
        "tfds": _tfds,
        "made_up": lambda _: _made_up(seed),
    }
    return readers[data.source](data)


def _movielens(data):
    folder = _place(data)
    atomic = {
        f.name: ("", "\t", f"{f.stem}.item", "", "\t") for f in sorted(folder.glob("*.inter"))
    }
    for name, (columns, delimiter, film_file, film_columns, film_delimiter) in (
        atomic | MOVIELENS
    ).items():
        if not (folder / name).exists():
            continue
        flags = GENRES if film_file == "u.item" else []
        rows = _named(_text(folder / name, delimiter, columns.split()), TAKEN, folder / name)
        films = _text(_there(folder / film_file), film_delimiter, film_columns.split() + flags)
        if flags:
            words = zip(*(np.where(pc.equal(films[genre], "1"), genre, "") for genre in flags))
            films = films.append_column("genres", [["|".join(filter(None, row)) for row in words]])
        items = _items_of(_named(films, ITEM, folder / film_file), " " if name in atomic else "|")
        return _raw(rows, folder / name, items, first=1 if columns else 2)
    raise InputError(
        f"{folder} has no MovieLens files (*.inter and *.item, u.data and u.item, ratings.dat and movies.dat, or "
        "ratings.csv and movies.csv): put them there or name their folder with --config.data.path."
    )


def _amazon(data):
    path, meta = _place(data), None
    if path.is_dir():
        found = {}  # (is metadata, category) -> file
        for file in sorted(path.iterdir(), reverse=True):
            if match := re.fullmatch(r"(meta_|reviews_)?(.+?)(_5)?\.jsonl?(\.gz)?", file.name):
                found[match[1] == "meta_", match[2]] = file
        names = [name for is_meta, name in found if not is_meta and data.name in ("", name)]
        if len(names) != 1:
            there = ", ".join(sorted(file.name for file in path.iterdir())[:9]) or "nothing"
            raise InputError(
                f"{path} has {len(names)} review files for --config.data.name={data.name!r} (there is {there}): name "
                "the category of a reviews_<name>_5.json.gz, <name>_5.json.gz or <name>.jsonl.gz that is there."
            )
        path, meta = found[False, names[0]], found.get((True, names[0]))
    meta = _beside(data, meta, path, "metadata (meta_<name>.json.gz or .jsonl.gz)")
    return _raw(_json(path, TAKEN), path, functools.partial(_amazon_items, meta))


def _amazon_items(path, ids):
    """The fields of the items with these ids; the lines of others are not even parsed."""
    key = re.compile(rb"""['"](?:parent_)?asin['"]: ?['"]([^'"]+)""")
    wanted, items = {i.encode() for i in ids}, {}
    for number, line in _read_lines(path):
        if (here := key.findall(line)) and wanted.isdisjoint(here):
            continue
        record = _object(line, path, number, literals=True)
        name = str(_first(record, ITEM["item"]))
        if name.encode() in wanted and name not in items:
            items[name] = _fields({role: _first(record, names) for role, names in ITEM.items()})
    return items


def _sequences(data):
    path, table = _place(data), None
    if path.is_dir():
        texts = [f for folder in (path, path / "raw") for f in sorted(folder.glob("*.txt"))]
        texts = [f for f in texts if not re.match("readme|licen[cs]e", f.name, re.I)]
        texts = [f for f in texts if f.name == "sequential.txt"] or texts
        if len(texts) != 1:
            raise InputError(
                f"{path} has {len(texts)} sequence files (*.txt): name one with --config.data.path."
            )
        table, path = next(iter(sorted(path.glob("*item*.[ct]sv*"))), None), texts[0]
    table = _beside(data, table, path, "item table (*items.tsv or .csv)")
    users, items = [], []
    for number, line in _read_lines(path):
        user, *taken = line.decode("utf-8", "replace").split()
        if not taken:
            raise InputError(
                f"{path}:{number} has no item (a line is: user item item …): mend it or take it out."
            )
        users.extend(itertools.repeat(user, len(taken)))
        items.extend(taken)
    rows = pa.table(
        {"user": pa.array(users, pa.large_string()), "item": pa.array(items, pa.large_string())}
    )
    return _raw(rows, path, _items_of(_file(table, ITEM)))


def _named_columns(data):
    path = _place(data)
    roles = table = {role: (name,) for role, name in data.columns.items() if name}
    if data.items_path:
        table = _file(
            _there(data.items_path), {r: names for r, names in roles.items() if r in ITEM}
        )
        roles = {role: names for role, names in roles.items() if role in TAKEN}
    rows = _file(path, roles)
    return _raw(
        rows,
        path,
        _items_of(table if data.items_path else rows),
        first=2 if ".jsonl" not in path.name else 1,
    )


def _datasets(data):
    import datasets

    def load():
        if data.path and any(pathlib.Path(data.path).glob("dataset_*.json")):
            found = datasets.load_from_disk(data.path)
            return found["train"] if isinstance(found, dict) else found
        return datasets.load_dataset(data.path or data.name, split="train")

    return _library(data, lambda: load().with_format("arrow")[:])


def _tfds(data):
    import tensorflow_datasets as tfds

    def plain(value):
        return (
            value.decode("utf-8", "replace")
            if isinstance(value, bytes)
            else np.asarray(value).tolist()
        )

    def load():
        builder = tfds.builder_from_directory(data.path) if data.path else tfds.builder(data.name)
        rows = builder.as_data_source(split="train")
        return pa.Table.from_pylist(
            [{name: plain(value) for name, value in row.items()} for row in rows]
        )

    return _library(data, load)


def _library(data, load):
    """What a library loads, as a table whose columns config.data.columns names."""
    name = data.path or data.name
    try:
        table = load()
    except Exception as error:  # whatever the library raises, it is about what was named
        why = " ".join(str(error).split())[:200]
        raise InputError(
            f"{data.source} can't load {name!r} ({type(error).__name__}: {why}): give a folder it wrote as "
            "--config.data.path (of TFDS: with file_format=array_record), or a known name as --config.data.name."
        ) from None
    rows = _named(table, {role: (name,) for role, name in data.columns.items() if name}, name)
    return _raw(rows, name, _items_of(rows))


def _made_up(seed):
    from lpt_jax.data import made_up  # which imports the classes above

    return made_up.world(seed=seed)


def _place(data):
    """The folder or file of config.data.path, or the cache's."""
    if data.path.startswith("carrier:"):
        name = data.path.removeprefix("carrier:")
        if name not in CARRIED:
            raise InputError(
                f"--config.data.path={data.path} has no data: carrier:{', carrier:'.join(CARRIED)} has."
            )
        return carriers.carrier(name) / CARRIED[name]
    if not data.path and data.source in ("movielens", "amazon"):
        return downloads.dataset(data.source, data.name, data.year)
    if not data.path:
        raise InputError(
            f"--config.data.source={data.source} needs --config.data.path, the file or folder to read."
        )
    return _there(data.path)


def _there(path):
    if not (path := pathlib.Path(path).expanduser()).exists():
        raise InputError(
            f"{path} is not there: put it there, or check --config.data.path and --config.data.items_path."
        )
    return path


def _beside(data, found, path, what):
    """config.data.items_path, else what was found beside the interactions."""
    if not data.items_path and not found:
        raise InputError(
            f"{path} has no {what} beside it: put it there or name it with --config.data.items_path."
        )
    return _there(data.items_path or found)


# Files -> tables whose columns are roles


@contextlib.contextmanager
def _opened(path):
    """The bytes of a file, gzipped or not."""
    try:
        with open(path, "rb") as file:
            yield gzip.open(file) if file.peek(2)[:2] == b"\x1f\x8b" else file
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{path} can't be read to its end ({error}): is it whole? Fetch it again."
        ) from None


def _read_lines(path):
    """(line number, line) of the lines that are not blank."""
    with _opened(path) as file:
        yield from ((number, line) for number, line in enumerate(file, 1) if line.strip())


def _object(line, path, number, literals=False):
    """The dict in a line of JSON, or if `literals` of Python, as Amazon's metadata of 2014 are."""
    record = None
    try:
        record = json.loads(line)
    except ValueError:
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            record = ast.literal_eval(line.decode()) if literals else None
    if not isinstance(record, dict):
        raise InputError(f"{path}:{number} is not a JSON object: mend the line or take it out.")
    return record


def _first(record, names):
    return next((record[name] for name in names if record.get(name) not in (None, "", [])), None)


def _json(path, roles):
    """The roles' columns of a file with a JSON object in each line, as strings; lists are joined by |."""
    tables, there = [], set()
    lines = _read_lines(path)
    while batch := list(itertools.islice(lines, BATCH)):
        records = [_object(line, path, number) for number, line in batch]
        there.update(*records)
        columns = {
            role: [_string(_first(record, names)) for record in records]
            for role, names in roles.items()
        }
        tables.append(
            pa.table({role: pa.array(c, pa.large_string()) for role, c in columns.items()})
        )
    _check(there, roles, path)
    return pa.concat_tables(tables)


def _string(value):
    if isinstance(value, list):
        value = "|".join(map(str, value))
    return (
        None if value is None else str(value).encode("utf-8", "replace").decode()
    )  # lone surrogates: ?


def _text(path, delimiter, columns=()):
    """A delimited file as a table of strings; its first line is the header unless `columns` are given."""
    with _opened(path) as file:
        content = file.read()
    quoted, header, encoding, bad = (
        ".csv" in path.name or ".tsv" in path.name,
        not columns,
        "utf8",
        [],
    )
    if delimiter == "::":
        content, delimiter = content.replace(b"::", b"\x1f"), "\x1f"
    if header:
        line = content.partition(b"\n")[0].decode("utf-8-sig", "replace").rstrip("\r")
        columns = next(csv.reader([line], delimiter=delimiter), [])
        columns = (
            columns if quoted else [name.partition(":")[0] for name in columns]
        )  # RecBole: user_id:token
    else:
        with contextlib.suppress(UnicodeDecodeError):
            encoding = "latin-1"  # MovieLens 100k and 1M
            encoding = content.decode() and "utf8"

    def judge(row):
        if row.text.strip():
            bad.append(row)
        return "skip"

    try:
        table = pa.csv.read_csv(
            pa.BufferReader(content),
            pa.csv.ReadOptions(
                use_threads=False, column_names=columns, skip_rows=header, encoding=encoding
            ),
            pa.csv.ParseOptions(
                delimiter=delimiter,
                quote_char=quoted and '"',
                newlines_in_values=quoted,
                ignore_empty_lines=False,
                invalid_row_handler=judge,
            ),
            pa.csv.ConvertOptions(
                column_types={name: pa.large_string() for name in columns},
                null_values=[""],
                strings_can_be_null=True,
            ),
        )
    except pa.ArrowInvalid as error:
        raise InputError(
            f"{path} can't be read as columns apart by {delimiter!r} ({error}): is it the right file?"
        ) from None
    if bad:
        raise InputError(
            f"{path}:{bad[0].number} has {bad[0].actual_columns} columns instead of {bad[0].expected_columns}: "
            "mend the line or take it out."
        )
    return table


def _file(path, roles):
    """A csv, tsv, jsonl or parquet file as a table of the roles."""
    kind = path.name.removesuffix(".gz").rpartition(".")[2].lower()
    if kind == "parquet":
        try:
            return _named(pa.parquet.read_table(path), roles, path)
        except (OSError, pa.ArrowInvalid) as error:
            raise InputError(f"{path} is no whole Parquet file ({error}).") from None
    if path.is_dir() or kind not in ("csv", "tsv", "jsonl"):
        raise InputError(
            f"{path} is no .csv, .tsv, .jsonl (each may be .gz) or .parquet file: name one."
        )
    return (
        _json(path, roles)
        if kind == "jsonl"
        else _named(_text(path, "," if kind == "csv" else "\t"), roles, path)
    )


def _named(table, roles, path):
    """The columns of a table that have a role, under its name."""
    there = table.column_names
    _check(there, roles, path)
    found = {role: next((n for n in names if n in there), None) for role, names in roles.items()}
    return pa.table({role: table[name] for role, name in found.items() if name})


def _check(there, roles, path):
    known = (
        roles is TAKEN or roles is ITEM
    )  # then only the ids must be there; else all that the user named
    for role, names in roles.items():
        if not set(names) & set(there) and (role in ("user", "item") or not known):
            hint = (
                "is it the right file?"
                if known
                else f"set --config.data.columns.{role}, to '' if there is none."
            )
            raise InputError(
                f"{path} has no column {' or '.join(names)} (it has {', '.join(there) or 'none'}): {hint}"
            )


# Tables -> interactions and items


def _raw(table, path, items, first=1):
    """Interactions of a table of roles (`first`: the line of its first row) and `items`(ids)."""
    user, item, counts = _ids(table["user"]), _ids(table["item"]), {"rows read": len(table)}
    time, rating = (_numbers(table, role, path, first) for role in ("time", "rating"))
    usable = np.asarray(pc.and_(user.is_valid(), item.is_valid()))
    counts["dropped: no user or no item"] = int((~usable).sum())
    has_time = time is not None and bool(np.isfinite(time[usable]).any())
    if has_time:
        counts["dropped: no time"] = int((usable & ~np.isfinite(time)).sum())
        usable &= np.isfinite(time)
    if not usable.any():
        raise InputError(f"{path} has no row with a user and an item: is it the right file?")
    user, item = (column.filter(pa.array(usable)).dictionary_encode() for column in (user, item))
    codes, order = np.asarray(user.indices), time[usable] if has_time else np.empty(usable.sum())
    if not has_time:
        by_user = np.argsort(codes, kind="stable")
        starts = np.cumsum(np.bincount(codes)) - np.bincount(codes)
        order[by_user] = np.arange(len(codes)) - starts[codes[by_user]]
    rating = (
        None
        if rating is None or np.isnan(rating[usable]).all()
        else rating[usable].astype(np.float32)
    )
    review = None
    if "review" in table.column_names:
        texts = table["review"].filter(pa.array(usable)).to_pylist()
        review = np.array([_clean(text) or None for text in texts], object)
        review = review if any(review) else None
    names = item.dictionary.to_pylist()
    rows = Interactions(
        user=codes.astype(np.int32), item=np.asarray(item.indices).astype(np.int32),
        user_ids=user.dictionary.to_pylist(), item_ids=names, order=order, has_time=has_time, rating=rating, review=review,
    )  # fmt: skip
    return Raw(rows, items(names), counts)


def _ids(column):
    """A column as one array of strings, null where there is nothing."""
    texts = pc.utf8_trim_whitespace(column.cast(pa.large_string()).combine_chunks())
    return pc.if_else(pc.equal(texts, ""), None, texts)


def _numbers(table, role, path, first):
    """A column as Float64[n], NaN where there is none; times as unix seconds, given so, in ms or as ISO dates (UTC)."""
    if role not in table.column_names:
        return None
    column = table[role]
    if pa.types.is_temporal(column.type):
        column = column.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
    texts = _ids(column)
    try:
        values = texts.cast(pa.float64())
    except pa.ArrowInvalid:
        values = [
            _number(text, role, path, row + first) for row, text in enumerate(texts.to_pylist())
        ]
    values = np.array(values, np.float64)
    for _ in range(3 if role == "time" else 0):  # ms, µs, ns
        values = np.where(np.abs(values) > 1e11, values / 1000, values)
    return values


def _number(text, role, path, line):
    for parse in (float, _date) if role == "time" else (float,):
        with contextlib.suppress(ValueError):
            return np.nan if text is None else parse(text)
    kind = "number or ISO date" if role == "time" else "number"
    raise InputError(
        f"{path}:{line} has the {role} {text!r}, which is no {kind}: mend the line or take it out."
    )


def _date(text):
    date = datetime.datetime.fromisoformat(text)
    return (date if date.tzinfo else date.replace(tzinfo=datetime.UTC)).timestamp()


def _items_of(table, separator="|"):
    """ids -> the fields of those items in a table; of several rows of an item the first counts."""

    def items(ids):
        names = _ids(table["item"])
        here = pc.fill_null(pc.is_in(names, pa.array(ids, pa.large_string())), False)
        names = names.filter(here)
        rows = np.unique(np.asarray(names.dictionary_encode().indices), return_index=True)[1]
        fields = (
            table.select([name for name in table.column_names if name in ITEM])
            .filter(here)
            .take(rows)
        )
        return {
            n: _fields(row, separator)
            for n, row in zip(names.take(rows).to_pylist(), fields.to_pylist())
        }

    return items


def _fields(row, separator="|"):
    """An item's fields, cleaned; what has no value drops out. Films have their year in the title."""
    title, year, price = (_clean(row.get(name)) for name in ("title", "year", "price"))
    found = re.search(r"\((\d{4})\)$", title) or re.fullmatch(r"(\d{4})(\.0)?", year)
    if (
        title.lower() in NOTHING and not found
    ) or "getTime" in title:  # a script in some of Amazon's titles of 2018
        title = ""
    elif found and not title.endswith(")"):
        title += f" ({found[1]})"
    if re.fullmatch(r"\d+(\.\d*)?", price):
        price = f"{float(price):.2f}"
    average = str(row.get("average_rating") or "")
    fields = {
        "title": title,
        "description": _clean(row.get("description")),
        "brand": _clean(row.get("brand")),
        "price": price
        if len(price) <= 40 and re.search(r"\d", price)
        else "",  # else a page's remains
        "year": found[1] if found else "",
        "average_rating": float(average) if re.fullmatch(r"\d+(\.\d+)?", average) else "",
    }
    for name in ("categories", "genres"):
        words = row.get(name) or []
        words = words.split(separator) if isinstance(words, str) else words
        words = [
            _clean(word) for word in (words[0] if words and isinstance(words[0], list) else words)
        ]
        fields[name] = list(dict.fromkeys(word for word in words if word.lower() not in NOTHING))
    return {
        name: value for name, value in fields.items() if value and str(value).lower() not in NOTHING
    }


def _clean(value):
    """One line of text: entities resolved, tags gone, white space single; '' for nothing."""
    if value is None or value != value:
        return ""
    text = " ".join(map(_clean, value)) if isinstance(value, list) else str(value)
    text = TAGS.sub(" ", html.unescape(text)) if "&" in text or "<" in text else text
    return " ".join(text.encode("utf-8", "replace").decode().split())
