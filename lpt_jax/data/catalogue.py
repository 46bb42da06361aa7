"""Item metadata -> the text the embedder reads, one labelled line per field."""

import dataclasses
import functools
import math
import re

from lpt_jax.data.attributes import FEWEST, Attributes, attributes_of
from lpt_jax.errors import InputError

FIELDS = ("title", "year", "genres", "categories", "brand", "description", "price", "average_rating")
WORDLESS = ("year", "price", "average_rating")  # alone these do not say what an item is


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """The N ranked items by catalogue index; a title is the id where there is none."""

    ids: list[str]
    titles: list[str]
    texts: list[str]
    fields: list[dict]
    attribute_items: int = FEWEST

    @functools.cached_property
    def attributes(self) -> Attributes:
        """What many of the items have in common."""
        return attributes_of(self.fields, self.attribute_items)


def names(listed: str, setting: str, known=FIELDS) -> list[str]:
    """The field names of a comma-separated setting; an unknown one is an InputError."""
    found = [name.strip() for name in listed.split(",") if name.strip()]
    for name in found:
        if name not in known:
            raise InputError(f"--config.{setting} names the field {name!r}; known are: {', '.join(known)}.")
    return found


def value(fields: dict, name: str) -> str:
    """One field on one line, empty where it is missing; a title brings its year: "Heat (1995)"."""
    found = fields.get(name)
    if found is None or (isinstance(found, float) and math.isnan(found)):
        return ""
    if isinstance(found, (list, tuple)):
        return ", ".join(filter(None, (" ".join(str(part).split()) for part in found)))
    text = f"{found:.4g}" if isinstance(found, float) and name != "price" else " ".join(str(found).split())
    if name == "title" and text and (year := value(fields, "year")) and not re.search(rf"\b{re.escape(year)}\b", text):
        text += f" ({year})"
    return text


def values(fields: dict, chosen: list[str]) -> list[tuple[str, str]]:
    """(name, text) of the chosen fields that the item has, in order; a title brings the year."""
    found = ((name, value(fields, name)) for name in chosen if not (name == "year" and "title" in chosen))
    return [(name, text) for name, text in found if text]


def lines(fields: dict, chosen: list[str]) -> list[str]:
    """Lines as "Title: Heat (1995)", "Genres: Crime, Drama" in order; missing fields drop out."""
    return [f"{name.replace('_', ' ').capitalize()}: {text}" for name, text in values(fields, chosen)]


def build(ids: list[str], items: dict[str, dict], item_fields: str, attribute_items: int = FEWEST) -> Catalogue:
    """The catalogue of these ids in this order; its texts are made of `item_fields` only."""
    chosen = names(item_fields, "data.item_fields")
    fields = [items[i] for i in ids]
    return Catalogue(
        ids=list(ids),
        titles=[value(f, "title") or i for i, f in zip(ids, fields)],
        texts=["\n".join(lines(f, chosen)) for f in fields],
        fields=fields,
        attribute_items=attribute_items,
    )
