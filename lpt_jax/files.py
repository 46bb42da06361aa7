"""Files: written whole or not at all, lines of JSON, and what JSON can hold."""

import hashlib
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
from pyarrow import json as pa_json
from pyarrow import parquet

from lpt_jax.errors import InputError


def write_file(path, content: str | bytes | Iterable[str]) -> None:
    """Writes a file (or its lines, one after another) whole or not at all, by one that is renamed; text is UTF-8."""
    path = Path(path)
    part = path.with_name(path.name + ".part")
    if isinstance(content, bytes):
        part.write_bytes(content)
    else:
        with open(part, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            file.writelines([content] if isinstance(content, str) else content)
    os.replace(part, path)


def read_jsonl(path) -> list[dict]:
    """The records of a .jsonl file, [] without one; a last line cut short by a kill is left out."""
    path = Path(path)
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except ValueError:  # not JSON, or not UTF-8
            if number < len(lines) or line.endswith(b"\n"):
                raise InputError(f"{path}:{number} is not JSON: remove that line.") from None
    return records


def hash_of_text(text: str) -> str:
    """The sha256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def read_texts(path, setting: str) -> dict[tuple[str, int | None], str]:
    """Profiles of a file of records with "user", "profile" and perhaps "history": JSON lines, or .parquet.

    By user and number of items in the history (None where the record doesn't say), as --mode=write_profiles has them.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{setting}={path} can't be read: there is no such file.")
    if path.suffix == ".parquet":
        try:
            records = parquet.read_table(path).to_pylist()
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{setting}={path} is no parquet file ({error}).") from None
    else:
        records = read_jsonl(path)
    texts = {}
    for number, record in enumerate(records, 1):
        if not _is_text(record):
            raise InputError(
                f'{setting}={path}: record {number} has no "user" or no "profile", both of which must be text.'
            )
        key = record["user"], record.get("history")
        if key in texts and record.get("journey"):
            texts[key] += "\n" + record["profile"]
            continue
        if key in texts:
            raise InputError(
                f"{setting}={path}: record {number} is another profile of user {key[0]!r}: keep one of them."
            )
        texts[key] = record["profile"]
    return texts


def _is_text(record) -> bool:
    return isinstance(record, dict) and all(isinstance(record.get(name), str) for name in ("user", "profile"))


def write_parquet(path, lines, types: dict[str, str]) -> None:
    """Writes a .parquet file of the records of a .jsonl file, whole or not at all; types: the columns and Arrow's names, or "strings"."""
    kinds = {
        name: pa.list_(pa.string()) if kind == "strings" else pa.type_for_alias(kind) for name, kind in types.items()
    }
    schema = pa.schema(kinds.items())
    options = pa_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error")
    part = Path(path).with_name(Path(path).name + ".part")
    empty = not Path(lines).stat().st_size
    table = schema.empty_table() if empty else pa_json.read_json(lines, parse_options=options)
    parquet.write_table(table, part)
    os.replace(part, path)


def plain(value):
    """What JSON can hold: scalar arrays as numbers, and None for those that are not finite."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if isinstance(value, str) or value is None:
        return value
    number = value.item() if hasattr(value, "item") else value
    return number if math.isfinite(number) else None
