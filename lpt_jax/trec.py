"""TREC files: rankings and what is relevant, written for trec_eval and read from other systems."""

import collections
import math
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np

from lpt_jax import devices, ranking
from lpt_jax.errors import InputError
from lpt_jax.files import write_file

DEPTH = 1000  # items of a ranking that a run lists


def queries(found: list) -> list[str]:
    """A TREC query id for each session: the user's, with :1, :2, ... after it where users have several sessions.

    >>> from lpt_jax.data.sessions import Session
    >>> queries([Session(user, (0,), None, None, (1,), 0.0) for user in ("ann", "bob", "bob")])
    ['ann:1', 'bob:1', 'bob:2']
    """
    users, seen = [s.user for s in found], {}
    if len(set(users)) == len(users):
        return users
    return [f"{user}:{seen.setdefault(user, []).append(0) or len(seen[user])}" for user in users]


def write_run(path, queries, ranked, name: str = "lpt_jax") -> None:
    """A TREC run file: for each query id the item ids in `ranked`, best first.

    The score written is minus the rank: trec_eval ignores the ranks and orders equal scores by
    name. Ids are percent-encoded, as the format is separated by spaces.
    """
    write_file(
        path,
        (
            f"{_coded(query)} Q0 {_coded(item)} {rank} {-rank} {_coded(name)}\n"
            for query, items in zip(queries, ranked, strict=True)
            for rank, item in enumerate(items, 1)
        ),
    )


def write_qrels(path, queries, relevant) -> None:
    """A TREC qrels file: for each query id the ids of its relevant items."""
    pairs = zip(queries, relevant, strict=True)
    write_file(path, (f"{_coded(query)} 0 {_coded(item)} 1\n" for query, items in pairs for item in items))


def _coded(name):
    return quote(name, safe=":/")


def write_best(path, found: list, ids: list[str], profiles, items, valid=True) -> None:
    """A run file of the best items of all sessions `found` (as ranking.session_best), named as the file is.

    valid: Bool[S] or one for all; a session whose profile doesn't count has no lines.
    """
    best = ranking.session_best(profiles, items, found, DEPTH, len(ids))
    best[~np.broadcast_to(valid, len(best))] = -1
    if devices.first():
        names = np.array(ids, object)
        write_run(path, queries(found), (names[row[row >= 0]] for row in best), Path(path).stem)


def read_trec(path) -> dict[str, dict[str, float]]:
    """A run's scores (six fields a line) or qrels' relevances (four) as {query: {item: number}}, the ids decoded.

    InputError, which names the line, for other numbers of fields, a value that is no finite number, an item twice.
    """
    found, width = {}, None
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                fields = line.split()
                width = width or len(fields)
                if len(fields) not in (4, 6) or len(fields) != width:
                    raise InputError(
                        f"{path}:{number} has {len(fields)} fields: a TREC run has 6 in each line, qrels 4."
                    )
                query, item, text = unquote(fields[0]), unquote(fields[2]), fields[3 if width == 4 else 4]
                try:
                    value = int(text) if width == 4 else float(text)
                except ValueError:
                    value = math.nan
                if not math.isfinite(value):
                    raise InputError(f"{path}:{number}: {text!r} is not a {'relevance' if width == 4 else 'score'}.")
                items = found.setdefault(query, {})
                if item in items:
                    raise InputError(f"{path}:{number} names the item {item} of the query {query} again.")
                items[item] = value
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read: {getattr(error, 'strerror', None) or 'it is not UTF-8'}.") from None
    return found


def read_run(path) -> dict[str, dict[str, float]]:
    """read_trec of a run; InputError where it is qrels, or empty."""
    found = read_trec(path)
    if not found:
        raise InputError(f"{path} is empty: a TREC run has a line for each query and item.")
    if isinstance(next(iter(next(iter(found.values())).values())), int):
        raise InputError(f"{path} has 4 fields a line: that is a TREC qrels file, a run has 6.")
    return found


def ranks_of_run(run: dict[str, dict[str, float]], queries, sessions, ids: list[str]) -> tuple[np.ndarray, dict]:
    """Ranks Int[S,M] of the sessions' targets in another system's run, and counts of what was passed over.

    Items are ordered by score, ties by catalogue index (their place in `ids`), and count without the history, the other
    targets and items that aren't in the catalogue; a target that isn't listed is last of all. 0: there is no target.
    """
    number, counts = {item: i for i, item in enumerate(ids)}, collections.Counter()
    ranks = np.zeros((len(sessions), max(len(s.targets) for s in sessions)), np.int64)
    counts["queries that are not in the test"] = len(run.keys() - set(queries))
    for row, session, query in zip(ranks, sessions, queries, strict=True):
        listed = run.get(query, {})
        places = {number[item]: (-score, number[item]) for item, score in listed.items() if item in number}
        left = [place for i, place in places.items() if i not in {*session.history, *session.targets}]
        for column, target in enumerate(session.targets):
            there = target in places
            row[column] = 1 + sum(place < places[target] for place in left) if there else len(ids)
            counts["targets not listed, ranked last"] += not there
        counts["test sessions without a query"] += not listed
        counts["items that are not in the catalogue"] += len(listed) - len(places)
        counts["items of the history"] += len(places.keys() & set(session.history))
    return ranks, dict(counts)
