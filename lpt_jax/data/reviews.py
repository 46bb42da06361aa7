"""Raw files -> interactions and an item table. Every file format of the data is known here and nowhere else.

Columns have roles: user, item, time, rating, review of an interaction; title, description, categories, genres, brand,
price, year, average_rating of an item. A role that a source lacks is absent. A line that can't be read is an
InputError naming it; a row without user, item or (where others have one) time is dropped and counted. Repeated rows
are all kept here, and the item table has only items that somebody took.
"""

import ast
import contextlib
import dataclasses
import datetime
import functools
import gzip
import html
import itertools
import json
import os
import pathlib
import re
import zlib
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
from pyarrow import csv, parquet

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
)
MOVIELENS = {  # file of ratings -> its columns (none: it has a header) and delimiter, the same of the films
    "u.data": ("user item rating time", "\t", "u.item", "item title date video imdb " + GENRES, "|"),
    "ratings.dat": ("user item rating time", "::", "movies.dat", "item title genres", "::"),
    "ratings.csv": ("", ",", "movies.csv", "", ","),
}
PEOPLE = {  # file of ratings -> that of the users, its columns and delimiter
    "u.data": ("u.user", "user age sex occupation zip", "|"),
    "ratings.dat": ("users.dat", "user sex age occupation zip", "::"),
}
AGES = (18, 25, 35, 45, 55)  # where groups of ages begin
# the releases' files: reviews_Beauty_5.json.gz of 2014, Beauty_5.json.gz of 2018, Beauty.jsonl.gz of 2023, and meta_Beauty
AMAZON_FILE = re.compile(r"(meta_|reviews_)?(.+?)(_5)?\.jsonl?(\.gz)?")
CARRIED = {"recbole": "recbole/dataset_example/ml-100k"}  # where a carrier has its data
STREAMED = {"rating": pa.float64(), "time": pa.float64()}  # Amazon's reviews: roles that are no strings
BLOCK = 1 << 24  # bytes that Arrow parses at once; no line may be longer
TAGS = re.compile(r"(?i)</?(a|b|br|div|em|font|h\d|hr|i|img|li|ol|p|span|strong|table|td|tr|u|ul)\b[^<>]*>")
NOTHING = ("", "unknown", "unkonwn", "(no genres listed)")  # the misspelling is MovieLens-100k's
MEND = "mend the line or take it out"


@dataclasses.dataclass
class Interactions:
    """Who took what and when, one row each in the source's order; ids are in order of appearance."""

    user: np.ndarray  # Int32[n] indices of user_ids
    item: np.ndarray  # Int32[n] indices of item_ids
    user_ids: list[str]
    item_ids: list[str]
    order: np.ndarray  # Float64[n] unix seconds; without times the position among the user's rows
    has_time: bool
    rating: np.ndarray | None  # Float32[n], NaN where there is none
    review: (
        Callable | None
    )  # Int[m] rows -> object[m] of str, None where there is none: texts are read when they are wanted


@dataclasses.dataclass
class Raw:
    """A source as read: interactions, their items' fields by item id, dropped rows by reason, and its own name.

    people: what is known of users (MovieLens: "sex", "age group", "occupation"), which only the audit of profiles reads.
    """

    interactions: Interactions
    items: dict[str, dict]
    counts: dict[str, int]
    name: str = ""  # of the data set, file or folder, without the folders above; empty where the source says it all
    people: dict[str, dict] = dataclasses.field(default_factory=dict)


def read(data) -> Raw:
    """The files or the data set that config.data describes; InputError for what won't do."""
    readers = {
        "movielens": _movielens,
        "amazon": _amazon,
        "sequences": _sequences,
        "table": _table,
        "datasets": _library,
        "tfds": _library,
    }
    return readers[data.source](data)


def _movielens(data):
    folder = _place(data)
    atomic = {f.name: ("", "\t", f"{f.stem}.item", "", "\t") for f in folder.glob("*.inter")}
    for name, (columns, comma, films, film_columns, film_comma) in (atomic | MOVIELENS).items():
        if (folder / name).exists():
            rows = _named(_text(folder / name, comma, columns), TAKEN, folder / name)
            table = _text(_there(folder / films, "The film table"), film_comma, film_columns)
            if name == "u.data":
                flags = (pc.if_else(pc.equal(table[g], "1"), g, None) for g in GENRES.split())
                genres = pc.binary_join_element_wise(*flags, "|", null_handling="skip")
                table = table.append_column("genres", genres)
            items = _items_of(_named(table, ITEM, films), " " if name in atomic else "|")
            raw = _raw(_own_name(folder), rows, folder / name, items, first_line=1 if columns else 2)
            users = PEOPLE.get(name, (f"{name.removesuffix('.inter')}.user", "", "\t"))
            return dataclasses.replace(raw, people=_people(folder, *users))
    raise InputError(
        f"{folder} has no MovieLens files (*.inter and *.item, u.data and u.item, ratings.dat and movies.dat, or "
        "ratings.csv and movies.csv): put them there or name their folder with --config.data.path."
    )


def _people(folder, file, columns, comma):
    """What MovieLens knows of its users, by id; nothing where the file is missing."""
    if not (folder / file).exists():
        return {}
    rows = _text(folder / file, comma, columns).to_pylist()

    def group(age):
        return str(max([0, *(start for start in AGES if start <= int(age))])) if str(age).isdecimal() else ""

    return {
        str(row.get("user") or row.get("user_id")): {
            "sex": row.get("sex") or row.get("gender") or "",
            "age group": group(row.get("age")),
            "occupation": row.get("occupation") or "",
        }
        for row in rows
    }


def _amazon(data):
    path, meta = _place(data), None
    if path.is_dir():
        found = {}  # (is metadata, category) -> file
        for file in sorted(path.iterdir(), reverse=True):
            if match := AMAZON_FILE.fullmatch(file.name):
                found[match[1] == "meta_", match[2]] = file
        names = [name for is_meta, name in found if not is_meta and data.name in ("", name)]
        if len(names) != 1:
            there = ", ".join(sorted(file.name for file in path.iterdir())[:9]) or "nothing"
            raise InputError(
                f"{path} has {len(names)} review files for --config.data.name={data.name!r} (there is {there}): name "
                "the category of a reviews_<name>_5.json.gz, <name>_5.json.gz or <name>.jsonl.gz that is there."
            )
        path, meta = found[False, names[0]], found.get((True, names[0]))
    meta = _there(data.items_path or meta, f"The metadata of {path}, meta_<name>.json(l).gz,")
    items = functools.partial(_amazon_items, meta)
    short = {role: names for role, names in TAKEN.items() if role != "review"}
    # an odd or broken line stops Arrow: then all are read one by one, more slowly, and what can't be read is named
    with contextlib.suppress(pa.ArrowInvalid, OSError):
        rows = pa.Table.from_batches(list(_stream(path, short)))
        if rows["user"].null_count < len(rows) > rows["item"].null_count:
            return _raw(_amazon_name(path), rows, path, items, review=functools.partial(_review_texts, path))
    return _raw(_amazon_name(path), _json(path, TAKEN), path, items)


def _amazon_name(path):
    """The category and the year of a file of reviews, by its name alone: data.year says only what is downloaded."""
    match = AMAZON_FILE.fullmatch(path.name)
    if not match:
        return path.name
    year = 2014 if match[1] else 2023 if ".jsonl" in path.name else 2018
    return f"{match[2]} {year}"


def _stream(path, roles):
    """Record batches of the roles' columns of a JSON-lines file, parsed by Arrow."""
    schema = pa.schema([(name, STREAMED.get(role, pa.string())) for role, names in roles.items() for name in names])
    parse = pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    read = pyarrow.json.ReadOptions(block_size=BLOCK)
    for batch in pyarrow.json.open_json(str(path), read, parse):
        columns = {role: pc.coalesce(*(batch[name] for name in names)) for role, names in roles.items()}
        yield pa.RecordBatch.from_pydict(columns)


def _review_texts(path, rows):
    """The review texts object[m] of these rows of a JSON-lines file."""
    wanted, back = np.unique(rows, return_inverse=True)
    found, start = [], 0
    try:
        for batch in _stream(path, {"review": TAKEN["review"]}):
            low, high = np.searchsorted(wanted, [start, start + len(batch)])
            found += batch["review"].take(pa.array(wanted[low:high] - start)).to_pylist()
            start += len(batch)
    except (pa.ArrowInvalid, OSError):  # a text that is no string: as above
        found = _json(path, TAKEN)["review"].take(pa.array(wanted)).to_pylist()
    return np.array([_clean(text) or None for text in found], object)[back]


def _amazon_items(path, ids):
    """The fields of the items with these ids; the lines of others are not even parsed."""
    key = re.compile(rb"""['"](?:parent_)?asin['"]: ?['"]([^'"]+)""")
    wanted, items = {i.encode() for i in ids}, {}
    for number, line in _lines(path):
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
        table = next(iter(sorted(path.glob("*item*.[ct]sv*"))), None)
        texts = [f for folder in (path, path / "raw") for f in sorted(folder.glob("*.txt"))]
        texts = [f for f in texts if not re.match("(?i)readme|licen[cs]e", f.name)]
        texts = [f for f in texts if f.name == "sequential.txt"] or texts
        if len(texts) != 1:
            raise InputError(f"{path} has {len(texts)} sequence files, *.txt: name one as data.path.")
        path = texts[0]
    table = _there(data.items_path or table, f"The item table of {path}, *items.tsv or .csv,")
    users, items = [], []
    for number, line in _lines(path):
        user, *taken = line.decode("utf-8", "replace").split()
        if not taken:
            raise InputError(f"{path}:{number} has no item after the user {user!r}: {MEND}.")
        users.extend(itertools.repeat(user, len(taken)))
        items.extend(taken)
    return _raw(_own_name(data.path), pa.table({"user": users, "item": items}), path, _items_of(_file(table, ITEM)))


def _table(data):
    path, first_line = _place(data), 1 if ".jsonl" in data.path else 2
    if not data.items_path:
        rows = _file(path, _roles(data))
        return _raw(_own_name(path), rows, path, _items_of(rows), first_line)
    items = _file(_there(data.items_path, "The item table"), _roles(data, ITEM))
    return _raw(_own_name(path), _file(path, _roles(data, TAKEN)), path, _items_of(items), first_line)


def _library(data):
    """A Hugging Face `datasets` or a TFDS data set; neither runs code that comes with the data."""
    name = data.path or data.name
    own_name = _own_name(data.path) if data.path else data.name
    try:
        if data.source == "datasets":
            import datasets

            saved = data.path and any(pathlib.Path(data.path).glob("dataset_*.json"))
            load = datasets.load_from_disk if saved else datasets.load_dataset
            found = load(name)
            table = (found["train"] if isinstance(found, dict) else found).with_format("arrow")[:]
        else:
            import tensorflow_datasets as tfds

            found = tfds.builder_from_directory(name) if data.path else tfds.builder(name)
            own_name = found.info.full_name  # its folder is called after the version
            table = pa.Table.from_pylist(list(found.as_data_source(split="train")))
    except Exception as error:  # whatever the library raises, it is about what was named
        why = " ".join(str(error).split())[:200]
        raise InputError(
            f"{data.source} can't load {name!r} ({type(error).__name__}: {why}): give a folder it wrote as "
            "--config.data.path (of TFDS: with file_format=array_record), or a known name as --config.data.name."
        ) from None
    rows = _named(table, _roles(data), name)
    return _raw(own_name, rows, name, _items_of(rows))


def _roles(data, among=TAKEN | ITEM):
    """role -> (its column,) for the roles that config.data.columns names."""
    return {role: (name,) for role, name in data.columns.items() if name and role in among}


def _place(data):
    """The folder or file of config.data.path, or the cache's."""
    if data.path.startswith("carrier:"):
        name = data.path.removeprefix("carrier:")
        if data.name:
            raise InputError(
                f"--config.data.name={data.name} is to be fetched, but --config.data.path={data.path} is read: give "
                "one of them only, as in --config.data.path= --config.data.name=ml-1m."
            )
        if name not in CARRIED:
            raise InputError(f"--config.data.path={data.path} has no data, carrier:recbole has.")
        return carriers.carrier(name) / CARRIED[name]
    if not data.path and data.source in ("movielens", "amazon"):
        return downloads.dataset(data.source, data.name, data.year)
    return _there(data.path, "--config.data.path, the file or folder to read,")


def _there(path, what):
    if path and pathlib.Path(path).expanduser().exists():
        return pathlib.Path(path).expanduser()
    raise InputError(
        f"{what} {f'is not there: {path}' if path else 'is missing'}; put it there or name it with --config.data.path "
        "or --config.data.items_path."
    )


def _own_name(path):
    """The last part of a path."""
    return os.path.basename(os.path.abspath(path))  # of "." and "data/" too


# Files -> tables whose columns are roles


@contextlib.contextmanager
def _opened(path):
    """The bytes of a file, gzipped or not."""
    try:
        with open(path, "rb") as file:
            yield gzip.open(file) if file.peek(2)[:2] == b"\x1f\x8b" else file
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} can't be read to its end ({error}): fetch it again.") from None


def _lines(path):
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
        raise InputError(f"{path}:{number} is not a JSON object: {MEND}.")
    return record


def _first(record, names):
    for name in names:
        if (value := record.get(name)) not in (None, "", []):
            return value


def _json(path, roles):
    """The roles' columns of a file with a JSON object in each line, as strings; lists joined by |."""

    def text(value):
        value = "|".join(map(str, value)) if isinstance(value, list) else value
        return None if value is None else str(value).encode("utf-8", "replace").decode()

    tables, there, lines = [], set(), _lines(path)
    while batch := list(itertools.islice(lines, 65_536)):  # held as Python objects at once
        records = [_object(line, path, number) for number, line in batch]
        there.update(*records)
        columns = {role: [text(_first(r, names)) for r in records] for role, names in roles.items()}
        tables.append(pa.table({r: pa.array(c, pa.large_string()) for r, c in columns.items()}))
    _check(there, roles, path)
    return pa.concat_tables(tables)


def _text(path, delimiter, columns=""):
    """A delimited file as a table of strings; its first line is the header unless `columns` are given."""
    with _opened(path) as file:
        content = file.read()
    if delimiter == "::":
        content, delimiter = content.replace(b"::", b"\x1f"), "\x1f"
    quoted, bad = ".csv" in path.name or ".tsv" in path.name, []
    encoding = "latin-1" if path.name in ("u.item", "movies.dat") else "utf8"
    read = csv.ReadOptions(column_names=columns.split() or None, encoding=encoding)
    read.use_threads = False  # else broken rows have no number
    parse = csv.ParseOptions(delimiter=delimiter, quote_char=quoted and '"', newlines_in_values=quoted)
    parse.ignore_empty_lines, parse.invalid_row_handler = (False, lambda row: bad.append(row) or "skip")
    convert = csv.ConvertOptions(default_column_type=pa.large_string(), null_values=[""])
    convert.strings_can_be_null = True
    try:
        table = csv.read_csv(pa.BufferReader(content), read, parse, convert)
    except pa.ArrowInvalid as error:
        what = f"{path} is no UTF-8 text with columns between {delimiter!r}"
        raise InputError(f"{what} ({error}): is it the right file?") from None
    for row in bad[:1]:
        many = f"{row.actual_columns} columns, not {row.expected_columns}"
        raise InputError(f"{path}:{row.number} has {many}: {MEND}.")
    names = table.column_names if quoted else [n.partition(":")[0] for n in table.column_names]
    return table.rename_columns(names)  # RecBole's have types: user_id:token


def _file(path, roles):
    """A csv, tsv, jsonl or parquet file as a table of the roles."""
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if path.is_dir() or kind not in ("csv", "tsv", "jsonl", "parquet"):
        raise InputError(f"{path} is no .csv, .tsv, .jsonl (or one of these .gz) or .parquet file.")
    if kind == "jsonl":
        return _json(path, roles)
    try:
        table = parquet.read_table(path) if kind == "parquet" else None
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{path} is no whole Parquet file ({error}).") from None
    return _named(table or _text(path, "," if kind == "csv" else "\t"), roles, path)


def _named(table, roles, path):
    """The columns of a table that have a role, under its name."""
    there = table.column_names
    _check(there, roles, path)
    found = {role: next((n for n in names if n in there), None) for role, names in roles.items()}
    return pa.table({role: table[name] for role, name in found.items() if name})


def _check(there, roles, path):
    """InputError unless the ids' columns are there, and all that the user named."""
    known = roles is TAKEN or roles is ITEM
    for role, names in roles.items():
        if not set(names) & set(there) and (role in ("user", "item") or not known):
            none = "" if role in ("user", "item") else ", or none with ''"
            hint = f"name the right one with --config.data.columns.{role}{none}."
            raise InputError(
                f"{path} has no column {' or '.join(names)} (it has {', '.join(there) or 'nothing'}): "
                f"{'is it the right file?' if known else hint}"
            )


# Tables -> interactions and items


def _raw(name, table, path, items, first_line=1, review=None):
    """The interactions of a table of roles whose rows begin in `first_line` of `path`, and `items`(ids).

    review: the texts of rows of the table, where they are no column of it.
    """
    user, item = _strings(table["user"]), _strings(table["item"])
    time, rating = (_numbers(table, role, path, first_line) for role in ("time", "rating"))
    usable = np.asarray(pc.and_(user.is_valid(), item.is_valid()))
    counts = {"rows read": len(table), "dropped: no user or no item": int((~usable).sum())}
    has_time = time is not None and bool(np.isfinite(time[usable]).any())
    if has_time:
        counts["dropped: no time"] = int((usable & ~np.isfinite(time)).sum())
        usable &= np.isfinite(time)
    if not usable.any():
        raise InputError(f"{path} has no row with a user and an item: is it the right file?")
    user, item = (ids.filter(pa.array(usable)).dictionary_encode() for ids in (user, item))
    codes, item_ids = np.asarray(user.indices), item.dictionary.to_pylist()
    if has_time:
        order = time[usable]
    else:
        starts = np.cumsum(np.bincount(codes)) - np.bincount(codes)
        by_user, order = np.argsort(codes, kind="stable"), np.empty(len(codes))
        order[by_user] = np.arange(len(codes)) - starts[codes[by_user]]
    texts = _strings(table["review"]) if "review" in table.column_names else None
    if texts is not None and pc.any(pc.greater(pc.binary_length(texts), 0)).as_py():

        def review(rows):
            return np.array([_clean(text) or None for text in texts.take(pa.array(rows)).to_pylist()], object)

    read = np.flatnonzero(usable)
    rating = None if rating is None or np.isnan(rating).all() else rating[usable].astype(np.float32)
    rows = Interactions(
        user=codes.astype(np.int32),
        item=np.asarray(item.indices).astype(np.int32),
        user_ids=user.dictionary.to_pylist(),
        item_ids=item_ids,
        order=order,
        has_time=has_time,
        rating=rating,
        review=review and (lambda rows: review(read[rows])),
    )
    return Raw(rows, items(item_ids), counts, " ".join(name.split()))


def _strings(column):
    """A column as one array of strings, null where there is nothing."""
    texts = pc.utf8_trim_whitespace(column.cast(pa.large_string()).combine_chunks())
    return pc.if_else(pc.equal(texts, ""), None, texts)


def _numbers(table, role, path, first_line):
    """A column as Float64[n], NaN where there is none; times in unix seconds, of these, ms or ISO dates (UTC)."""
    if role not in table.column_names:
        return None
    column = table[role]
    if pa.types.is_temporal(column.type):
        column = column.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
    try:
        number = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
        texts = column if number else _strings(column)
        values = texts.cast(pa.float64())
    except pa.ArrowInvalid:
        values, where = [], f"{path}:{{}} has the {role} {{!r}}: {MEND}."
        for line, text in enumerate(texts.to_pylist(), first_line):
            try:
                values.append(None if text is None else _number(text, role))
            except ValueError:
                raise InputError(where.format(line, text)) from None
    values = np.array(values, np.float64)  # null is NaN
    for _ in range(3 if role == "time" else 0):  # ms, µs, ns
        values = np.where(np.abs(values) > 1e11, values / 1000, values)
    return values


def _number(text, role):
    with contextlib.suppress(ValueError):
        return float(text)
    if role != "time":
        raise ValueError(text)
    date = datetime.datetime.fromisoformat(text)
    return (date if date.tzinfo else date.replace(tzinfo=datetime.UTC)).timestamp()


def _items_of(table, separator="|"):
    """ids -> the fields of those items in a table; of several rows of an item the first counts."""

    def items(ids):
        names = _strings(table["item"])
        here = pc.fill_null(pc.is_in(names, pa.array(ids, names.type)), False)
        names, rows = names.filter(here), table.filter(here)
        first = np.unique(np.asarray(names.dictionary_encode().indices), return_index=True)[1]
        fields = rows.select([c for c in rows.column_names if c in ITEM]).take(first).to_pylist()
        return {n: _fields(f, separator) for n, f in zip(names.take(first).to_pylist(), fields)}

    return items


ARTICLE = re.compile(r"^([^(]*), (The|A|An|La|Le|Les|Il|Das|Der|Die|El|L')(?= \(|$)")


def _fields(row, separator="|"):
    """An item's fields, cleaned; what has no value drops out. Films have their year in the title."""
    fields = {name: _clean(row.get(name)) for name in ITEM if name != "item"}
    title, price = fields["title"], fields["price"]
    year = re.search(r"\((\d{4})\)$", title) or re.fullmatch(r"(\d{4})(\.0)?", fields["year"])
    fields["year"] = year[1] if year else ""
    if year:  # MovieLens' "Full Monty, The (1997)" is what nobody, and no language model, says
        title = fields["title"] = ARTICLE.sub(r"\2 \1", title)
    if "getTime" in title:  # a script in place of some of Amazon's titles of 2018
        fields["title"] = ""
    elif year and not title.endswith(f"({year[1]})"):
        fields["title"] = f"{title} ({year[1]})"
    if re.fullmatch(r"\d+(\.\d*)?", price):
        fields["price"] = f"{float(price):.2f}"
    elif len(price) > 40 or not re.search(r"\d", price):  # the remains of a page, or a dash
        fields["price"] = ""
    number = re.fullmatch(r"\d+(\.\d*)?", fields["average_rating"])
    fields["average_rating"] = float(number[0]) if number else ""
    for name in ("categories", "genres"):
        words = row.get(name) or []
        words = words.split(separator) if isinstance(words, str) else words
        words = map(_clean, words[0] if words and isinstance(words[0], list) else words)
        fields[name] = [w for w in dict.fromkeys(words) if w.lower() not in NOTHING]
    return {k: v for k, v in fields.items() if v and str(v).lower() not in NOTHING}


def _clean(value):
    """One line of text: entities resolved, tags gone, white space single; '' for nothing."""
    if value is None or value != value:
        return ""
    if isinstance(value, list):
        value = " ".join(map(_clean, value))
    elif isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    text = str(value).encode("utf-8", "replace").decode()
    text = TAGS.sub(" ", html.unescape(text)) if "&" in text or "<" in text else text
    return " ".join(text.split())
