"""Interactions -> who trains, validates and tests, on what history and which next items, without leakage.

Order of work, each drop counted: items without any text go, then repeats of a user's item (the first in time
stays), then the iterative k-core, then users outside the seeded sample; then the split; then the windows.
A user's items are ordered by time; equal times are ordered by a fixed shuffle of the (user, item) pairs, so that
neither the source's row order nor the items' ids can tell what comes next. Users and items are numbered in the
order of their ids as strings.

split "time": users in the order of their first interaction (ties by id). The latest test_share of them test, the
validation_share before those validate, the others train. cut_validation is the first interaction of the first
validation user, cut_test that of the first test user. Training users' interactions at or after cut_validation and
validation users' at or after cut_test are dropped. So all that training holds (histories, targets, popularity,
average ratings, the choice of the catalogue) precedes every validation user's first interaction, and all that
validation holds precedes every test user's.

split "leave_last": every user's last eval_targets x eval_windows items are test targets, as many before them are
validation targets, the others are for training; a target's history is all before it. Without a common time this
can't rule out that training holds interactions later than another user's targets.

The catalogue, which is ranked, is the items with a training interaction; the other (cold) items are dropped from
validation and test histories and targets. windows: positions p spread evenly over [min_history, n - targets] (one
window: p = min_history, the paper's), history = the items before p, targets = the next ones.
"""

import dataclasses
import datetime

import numpy as np

from lpt_jax.data import catalogue as catalogue_lib
from lpt_jax.data import reviews as reviews_lib
from lpt_jax.errors import InputError

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Session:
    """One user at one moment: the whole history (oldest first, hidden from the ranking) and the items that follow."""

    user: str
    history: tuple[int, ...]  # catalogue indices
    ratings: tuple[float | None, ...] | None  # parallel to history
    reviews: tuple[str | None, ...] | None  # parallel to history
    targets: tuple[int, ...]  # the next items, at least one, none of them in the history
    time: float  # of the first target, unix seconds; nan without times


@dataclasses.dataclass
class Dataset:
    """What every system trains and is judged on; counts has every drop, protocol says in a line what was done."""

    catalogue: catalogue_lib.Catalogue
    sessions: dict[str, list[Session]]
    popularity: np.ndarray  # Int64[N] training interactions
    counts: dict[str, int]
    protocol: str
    kind: str


@dataclasses.dataclass
class _Rows:
    """Interactions that stay, sorted by user and time: catalogue indices, split numbers."""

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    part: np.ndarray
    rating: np.ndarray | None
    review: np.ndarray | None


def prepare(data_config, seed: int) -> Dataset:
    """Reads the source and makes the dataset; `seed` only draws the sample of max_users."""
    return from_raw(reviews_lib.read(data_config), data_config, seed)


def from_raw(raw, data_config, seed: int) -> Dataset:
    """prepare() of interactions already read."""
    c, rows, counts = data_config, raw.interactions, dict(raw.counts)
    by_time = rows.has_time if c.split == "auto" else c.split == "time"
    if by_time and not rows.has_time:
        raise InputError(
            "--config.data.split=time needs times, which the source lacks: use leave_last."
        )
    user_ids, user = _sorted_codes(rows.user_ids, rows.user)
    item_ids, item = _sorted_codes(rows.item_ids, rows.item)
    time = np.asarray(rows.order, np.float64)
    kept = np.arange(len(user))  # indices of the source's rows, ever fewer
    counts["interactions"] = len(kept)

    def drop(reason, mask):
        nonlocal kept
        counts[reason] = int(mask.sum())
        kept = kept[~mask]

    with_text = _with_text(item_ids, raw.items, c.item_fields)
    counts["items without title/text"] = int((~with_text).sum())
    drop("dropped: items without title/text", ~with_text[item[kept]])
    if not len(kept):
        raise InputError(
            f"None of the {len(item_ids)} items has any of --config.data.item_fields={c.item_fields}: give an "
            "item table, or name other fields."
        )
    drop("dropped: repeats of a user's item", _repeats(user[kept], item[kept], time[kept]))
    drop(f"dropped: {c.core}-core", ~_core(user[kept], item[kept], c.core))
    drop("dropped: users not in the sample", ~_sample(user[kept], c.max_users, seed))
    if not len(kept):
        raise InputError(f"The {c.core}-core leaves no interaction: lower --config.data.core.")
    kept = kept[_chronological(user[kept], item[kept], time[kept])]

    if by_time:
        part, cuts = _split_by_time(user[kept], time[kept], c.validation_share, c.test_share)
        for split, cut in (("training", 0), ("validation", 1)):
            late = (part == cut) & (time[kept] >= cuts[cut])
            drop(f"dropped: {split} users' interactions after the cut", late)
            part = part[~late]
    else:
        part, cuts = _split_last(user[kept], c.eval_targets * c.eval_windows), None
    ranked, index = np.unique(item[kept[part == 0]], return_inverse=True)  # the catalogue
    popularity = np.bincount(index, minlength=len(ranked)).astype(np.int64)
    for number, split in enumerate(SPLITS):
        cold = (part == number) & ~np.isin(item[kept], ranked)
        if number:
            drop(f"dropped: cold items in {split}", cold)
            part = part[~cold]
        counts[f"{split} interactions"] = int((part == number).sum())

    ids = [item_ids[i] for i in ranked]
    means = _mean_ratings(rows.rating, kept[part == 0], index, len(ranked))
    fields = {i: _known_before_the_cut(raw.items[i], mean) for i, mean in zip(ids, means)}
    kept_rows = _Rows(
        user=user[kept],
        item=np.searchsorted(ranked, item[kept]),
        time=time[kept] if rows.has_time else np.full(len(kept), np.nan),
        part=part,
        rating=_objects(rows.rating, kept),
        review=_objects(rows.review, kept),
    )
    sessions = _sessions(kept_rows, user_ids, c, counts)
    for number, split in enumerate(SPLITS):
        share = (1.0, c.validation_share, c.test_share)[number] if by_time else 1.0
        if share > 0 and not sessions[split]:
            raise InputError(
                f"No user is left for {split}: {counts[f'{split} users with too few items']} users have fewer "
                f"than {c.min_history} items and a next one; lower --config.data.min_history or --config.data.core."
            )
    counts["items ranked"] = len(ids)
    return Dataset(
        catalogue=catalogue_lib.build(ids, fields, c.item_fields),
        sessions=sessions,
        popularity=popularity,
        counts=counts,
        protocol=_protocol(c, counts, cuts, seed),
        kind=c.kind,
    )


def _sorted_codes(ids, codes):
    """Ids in the order of their strings, and the codes renumbered to it."""
    place = sorted(range(len(ids)), key=ids.__getitem__)
    rank = np.empty(len(ids), np.int64)
    rank[place] = np.arange(len(ids))
    return [ids[i] for i in place], rank[np.asarray(codes)]


def _with_text(item_ids, items, item_fields):
    """Bool[items]: the item has at least one of the chosen fields that say what it is."""
    chosen = catalogue_lib.names(item_fields, "data.item_fields")
    chosen = [name for name in chosen if name not in catalogue_lib.WORDLESS]
    return np.array(
        [any(catalogue_lib.value(items.get(i, {}), name) for name in chosen) for i in item_ids],
        bool,
    )


def _repeats(user, item, time):
    """Bool[n]: not the first (in time, then in the source) of its user and item."""
    place = np.lexsort((time, item, user))
    again = (np.diff(user[place]) == 0) & (np.diff(item[place]) == 0)
    mask = np.zeros(len(user), bool)
    mask[place[1:][again]] = True
    return mask


def _core(user, item, core):
    """Bool[n]: stays when users and items with fewer than `core` interactions go, again and again."""
    alive = np.ones(len(user), bool)
    while True:
        users, items = np.bincount(user[alive]), np.bincount(item[alive])
        stays = (users[user[alive]] >= core) & (items[item[alive]] >= core)
        if stays.all():
            return alive
        alive[alive] = stays


def _sample(user, max_users, seed):
    """Bool[n]: the interaction's user is in the seeded sample."""
    users = np.unique(user)
    if max_users and len(users) > max_users:
        users = np.random.default_rng(seed).choice(users, max_users, replace=False)
    return np.isin(user, users)


def _chronological(user, item, time):
    """The order by user, then time, then a fixed shuffle of the (user, item) pairs."""
    shuffle = np.empty(len(user), np.int64)
    shuffle[np.lexsort((item, user))] = np.random.default_rng(0).permutation(len(user))
    return np.lexsort((shuffle, time, user))


def _starts(user):
    """Where each user's rows begin, rows sorted by user."""
    return np.flatnonzero(np.r_[True, np.diff(user) != 0])


def _split_by_time(user, time, validation_share, test_share):
    """Int[n] number of the row's split, and (cut_validation, cut_test) in unix seconds; inf where there is none."""
    starts = _starts(user)
    first, n = time[starts], len(starts)
    test = max(1, round(test_share * n)) if test_share else 0
    validation = max(1, round(validation_share * n)) if validation_share else 0
    if n - test - validation < 1:
        raise InputError(
            f"{n} users are too few to split by time into training, validation and test users."
        )
    place = np.argsort(first, kind="stable")  # users are numbered by id, so ties are by id
    of_user = np.zeros(n, np.int64)
    of_user[place[n - test - validation : n - test]] = 1
    of_user[place[n - test :]] = 2
    ordered = np.r_[first[place], np.inf]
    cuts = (ordered[n - test - validation], ordered[n - test])
    return np.repeat(of_user, np.diff(np.r_[starts, len(user)])), cuts


def _split_last(user, each):
    """Int[n]: 2 for each user's last `each` rows, 1 for as many before them, 0 before those."""
    starts = _starts(user)
    sizes = np.diff(np.r_[starts, len(user)])
    from_end = np.repeat(starts + sizes, sizes) - 1 - np.arange(len(user))
    return np.clip(2 - from_end // each, 0, 2)


def _mean_ratings(rating, kept, index, n):
    """The n catalogue items' mean ratings over the training interactions; nan where none is rated."""
    if rating is None:
        return [np.nan] * n
    values = np.asarray(rating, np.float64)[kept]
    rated = ~np.isnan(values)
    total, number = (np.bincount(index[rated], w, n) for w in (values[rated], None))
    return np.divide(total, number, out=np.full(n, np.nan), where=number > 0).tolist()


def _known_before_the_cut(fields, mean):
    """An item's metadata, with an average rating of training interactions only."""
    fields = {k: v for k, v in fields.items() if k in catalogue_lib.FIELDS} | {
        "average_rating": mean
    }
    return {k: v for k, v in fields.items() if catalogue_lib.value(fields, k)}


def _objects(column, kept):
    """The kept rows of an optional column as Python objects, None for nan."""
    if column is None:
        return None
    column = np.asarray(column).astype(object)[kept]
    column[column != column] = None
    return column


def _windows(low, high, count):
    """At most `count` positions spread evenly over low … high."""
    return np.unique(np.linspace(low, max(low, high), count).round().astype(int))


def _sessions(rows, user_ids, c, counts):
    """All sessions by split, counted."""
    sessions = {split: [] for split in SPLITS}
    users, short = np.zeros(3, int), np.zeros(3, int)
    starts = _starts(rows.user)

    def history(column, start, at):
        return None if column is None else tuple(column[start:at].tolist())

    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(rows.user)]):
        sizes = np.bincount(rows.part[start:end], minlength=3)
        for number in np.flatnonzero(sizes):
            stop = start + int(sizes[: number + 1].sum())  # the split's targets end here,
            low = max(int(sizes[:number].sum()), c.min_history)  # and are not before here
            count, wanted = (c.eval_windows, c.eval_targets) if number else (c.windows, c.targets)
            if stop - start <= low:
                short[number] += 1
                continue
            users[number] += 1
            for at in (start + _windows(low, stop - start - wanted, count)).tolist():
                session = Session(
                    user=user_ids[rows.user[start]],
                    history=history(rows.item, start, at),
                    ratings=history(rows.rating, start, at),
                    reviews=history(rows.review, start, at),
                    targets=history(rows.item, at, min(at + wanted, stop)),
                    time=float(rows.time[at]),
                )
                sessions[SPLITS[number]].append(session)
    for number, split in enumerate(SPLITS):
        counts[f"{split} users"] = int(users[number])
        counts[f"{split} users with too few items"] = int(short[number])
        counts[f"{split} sessions"] = len(sessions[split])
    return sessions


def _protocol(c, counts, cuts, seed):
    """The protocol in one line: source, filters, split with its dates and users, what is ranked and how."""
    source = " ".join(filter(None, (c.source, c.name, str(c.year) if c.source == "amazon" else "")))
    sample = f", a sample of {c.max_users} users (seed {seed})" if c.max_users else ""
    train, validation, test = (
        f"{counts[f'{split} users']} {split} users ({counts[f'{split} sessions']} sessions)"
        for split in SPLITS
    )
    if cuts is None:
        split = (
            f"leave-last split: {train}, {validation}, {test}; without a common cut in time, training may hold "
            "other users' later interactions (leakage can't be excluded)"
        )
    else:
        days = [_iso(cut) for cut in cuts]
        split = (
            f"split by the time of users' first interaction: {train}, all before {days[0]}; {validation}, all "
            f"before {days[1]}; {test}, all from then on"
        )
    following = (
        "next item" if c.eval_targets == 1 else f"next {c.eval_targets} items, the others hidden"
    )
    return (
        f"{source}: {c.core}-core{sample}; {split}; all {counts['items ranked']} {c.kind} with a training "
        f"interaction are ranked but those in the history, ties by catalogue index; relevant is each of the "
        f"{following}; metrics are means over a user's targets, then over users."
    )


def _iso(seconds):
    if np.isinf(seconds):
        return "the end"
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")
