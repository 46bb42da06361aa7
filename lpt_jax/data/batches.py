"""Token rows and index batches: few static lengths, order by (seed, epoch), position = the step."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lpt_jax.errors import InputError


def pad_left(rows: Sequence[Sequence[int]], length: int, pad_id: int):
    """Rows of token ids with padding before them -> Prompts int32 and PromptMask, [B, length]."""
    tokens = np.full((len(rows), length), pad_id, np.int32)
    mask = np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        if len(row) > length:
            raise ValueError(f"Row {i} has {len(row)} tokens, more than the {length} it is padded to.")
        where = slice(length - len(row), None)
        tokens[i, where], mask[i, where] = row, True
    return tokens, mask


def pad_right(rows: list[list[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of ids with zeros after them, Int32[B, length], and what of them is real."""
    tokens = np.zeros((len(rows), length), np.int32)
    for line, row in zip(tokens, rows, strict=True):
        line[: len(row)] = row
    return tokens, np.arange(length) < np.array([[len(row)] for row in rows])


def in_batches(count: int, size: int):
    """Rows Int[size] of so many, batch by batch, the last filled up with the first; and how many of them are new."""
    for start in range(0, count, size):
        yield np.arange(start, start + size) % count, min(size, count - start)


def packed(lengths: Sequence[int], room: int, most: int) -> list[list[int]]:
    """Which texts share a line of `room` tokens, at most `most` of them: the longest left, then what still fits, longest first.

    >>> packed([3, 9, 5, 2], 10, 4)
    [[1], [2, 0, 3]]
    """
    waiting = [[] for _ in range(room + 1)]
    for text in reversed(range(len(lengths))):
        waiting[lengths[text]].append(text)
    lines, left, longest = [], len(lengths), room
    while left:
        while not waiting[longest]:
            longest -= 1
        line, free, size = [], room, longest
        while len(line) < most and (size := min(size, free)):
            if waiting[size]:
                line.append(waiting[size].pop())
                free -= size
            else:
                size -= 1
        lines.append(line)
        left -= len(line)
    return lines


class Packed(NamedTuple):
    """Rows of tokens, several to a line.

    tokens, texts: Tokens and Segments int32 [count, room]; rows [n]: the rows that are here, in the order they are packed;
    places int32 [n]: where each lies, line * most + number in the line, for [count, most, …] made flat.
    """

    tokens: np.ndarray
    texts: np.ndarray
    rows: np.ndarray
    places: np.ndarray

    def places_of_rows(self) -> np.ndarray:
        """The places in the order of the rows' numbers."""
        return self.places[np.argsort(self.rows)]


def pack(rows: Sequence[Sequence[int]], lines: Sequence[Sequence[int]], count: int, room: int, most: int, pad_id: int):
    """The rows that `lines` name as Packed, `count` lines in all."""
    tokens, texts = np.full((count, room), pad_id, np.int32), np.zeros((count, room), np.int32)
    places = []
    for at, line in enumerate(lines):
        start = 0
        for number, row in enumerate(line):
            end = start + len(rows[row])
            tokens[at, start:end], texts[at, start:end] = rows[row], number + 1
            places.append(at * most + number)
            start = end
    return Packed(
        tokens, texts, np.fromiter(itertools.chain.from_iterable(lines), np.int64), np.array(places, np.int32)
    )


def packs(rows, room: int, most: int, pad_id: int, size: Callable, batch: int | None = None) -> Iterator[Packed]:
    """All rows, in lines of `room` tokens and at most `most` rows, `batch` lines at once (None: all).

    size(lines, alone) is the static number of lines for so many; alone: they are the only batch and the only line.
    """
    lines = packed([len(row) for row in rows], room, most)
    for start in range(0, len(lines), batch or max(len(lines), 1)):
        chosen = lines[start : start + (batch or len(lines))]
        yield pack(rows, chosen, size(len(chosen), len(lines) == 1), room, most, pad_id)


def bucket_lengths(lengths: Sequence[int], count: int, multiple: int = 16) -> tuple[int, ...]:
    """At most `count` multiples of `multiple`: each holds its share of the rows, the last all."""
    if not len(lengths):
        return ()
    shares = np.quantile(lengths, np.arange(1, count + 1) / count, method="inverted_cdf").astype(int)
    return tuple(sorted({max(multiple, -(-int(s) // multiple) * multiple) for s in shares}))


def bucket(length: int, lengths: Sequence[int]) -> int:
    """The smallest of the static lengths that holds `length` tokens."""
    fitting = [size for size in lengths if size >= length]
    if not fitting:
        raise ValueError(f"{length} tokens fit none of the static lengths {tuple(lengths)}.")
    return min(fitting)


def order(n: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation of n rows in one epoch, Int64[n]; nothing but (n, seed, epoch) decides it."""
    return np.random.default_rng((seed, epoch)).permutation(n)


def indices(n: int, size: int, seed: int, step: int) -> np.ndarray:
    """The rows of global step `step`, Int64[size]; epochs join, so every batch is full."""
    if n < 1:
        raise InputError("There is nothing to make batches of: no rows are left in this split.")
    positions = np.arange(step * size, (step + 1) * size)
    epochs = positions // n
    return np.concatenate([order(n, seed, int(e))[positions[epochs == e] % n] for e in np.unique(epochs)])


def tokenise(tokenizer, texts: Sequence[str], max_tokens: int):
    """Texts -> (rows of token ids cut to max_tokens, Bool[n]: its true length was greater).

    Lengths count what the tokenizer adds ([CLS], [SEP]), and a cut row keeps it. A row is never
    empty: an empty text without special tokens becomes one padding token.
    """
    if not len(texts):
        return [], np.zeros(0, bool)
    rows = tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
    overlong = np.array([len(row) > max_tokens for row in rows])
    if overlong.any():
        where = np.flatnonzero(overlong)
        cut = tokenizer([texts[i] for i in where], truncation=True, max_length=max_tokens)
        for i, row in zip(where, cut["input_ids"]):
            rows[i] = row
    return [row or [tokenizer.pad_token_id or 0] for row in rows], overlong
