"""Interactions -> who trains, validates and tests, on what history and which next items.

In this order, each drop counted: items without any text go, then repeats of a user's item (the
first in time stays), then the iterative k-core (over all times); then the split and the windows. A
user's items are ordered by time; equal times by a fixed shuffle of the (user, item) pairs, so that
neither the source's row order nor ids tell what comes next. Users and items are numbered in the
order of their ids as strings. max_users: only a fixed sample's sessions are made, but catalogue,
popularity and cuts are of all users (a sample's own catalogue would lack many of its targets).

split "time": users in the order of their first interaction (ties by id). The latest test_share of
them test, the validation_share before those validate, the others train. The validation cut is the
first validation user's first interaction, the test cut the first test user's. Training users'
interactions at or after the validation cut and validation users' at or after the test cut are
dropped. So all that training holds (histories, targets, popularity, average ratings) precedes all that
validation holds, and that precedes all that the test holds; only the k-core looks at all times.

split "leave_last": every user's last eval_targets x eval_windows items are test targets, as many
before them validation targets, the others are for training; a target's history is all before it.
Training may then hold interactions later than another user's targets.

The ranked catalogue is the items with a training interaction; the other (cold) ones are dropped
from validation and test histories and targets. catalogue "all": they are ranked too, by their text;
cold_share takes the training interactions from the newest items, so that there are many such. windows: positions p spread evenly over
[min_history, n - targets] (one window: p = min_history, the paper's); the history is the p items
before, the targets are the next ones.
"""

import bisect
import dataclasses
import difflib
import itertools

import numpy as np

from lpt_jax.data import catalogue as catalogue_lib
from lpt_jax.data import made_up
from lpt_jax.data import reviews as reviews_lib
from lpt_jax.errors import InputError

SPLITS = ("train", "validation", "test")
FEW_USERS = 100  # fewer test users say little


@dataclasses.dataclass(frozen=True)
class Session:
    """One user at one moment: the history, hidden from the ranking, and what follows; or one of the history's journeys."""

    user: str
    history: tuple[int, ...]  # catalogue indices, oldest first
    ratings: tuple[float | None, ...] | None  # parallel to history
    reviews: tuple[str | None, ...] | None  # parallel to history
    targets: tuple[int, ...]  # the next items, at least one, none of them in the history
    time: float  # of the first target, unix seconds; nan without times
    whole: tuple[int, ...] = ()  # all that the user chose, where history is one of the journeys in it
    others: tuple[int, ...] = ()  # next items that belong to the user's other journeys

    @property
    def past(self) -> tuple[int, ...]:
        """All that the user chose."""
        return self.whole or self.history

    @property
    def hidden(self) -> tuple[int, ...]:
        """What the ranking leaves out."""
        return self.past + self.others

    def part(self, places: list[int], targets: tuple[int, ...]) -> "Session":
        """The journey at these places of the history, and the targets that belong to it."""
        history, ratings, reviews = (
            known and tuple(known[place] for place in places) for known in (self.history, self.ratings, self.reviews)
        )
        others = tuple(target for target in self.targets if target not in targets) if targets else ()
        return Session(self.user, history, ratings, reviews, targets, self.time, self.past, others)


@dataclasses.dataclass
class Dataset:
    """What every system trains and is judged on; counts has every drop, protocol is one line."""

    catalogue: catalogue_lib.Catalogue
    sessions: dict[str, list[Session]]
    popularity: np.ndarray  # Int64[N] training interactions
    counts: dict[str, int]
    protocol: str
    kind: str
    rows: reviews_lib.Interactions  # all that was kept, by user and time, items as catalogue indices
    part: np.ndarray  # Int64 of SPLITS, whose each of these rows is
    warnings: list[str] = dataclasses.field(default_factory=list)  # what to know before training, a sentence each
    people: dict[str, dict] = dataclasses.field(default_factory=dict)  # what is known of users, for the audit alone


def prepare(data_config) -> Dataset:
    """Reads or makes up the source, and makes the dataset."""
    if data_config.source != "made_up":
        raw = reviews_lib.read(data_config)
    else:
        raw = made_up.world(seed=0, **({"reviews": True} if "review" in data_config.prompt_fields else {}))
    return dataclasses.replace(from_raw(raw, data_config), people=raw.people)


def from_raw(raw, data_config) -> Dataset:
    """prepare() of interactions already read."""
    c, rows, counts = data_config, raw.interactions, dict(raw.counts)
    by_time = rows.has_time if c.split == "auto" else c.split == "time"
    if by_time and not rows.has_time:
        raise InputError("--config.data.split=time needs times, which the source lacks.")
    user_ids, user = _sorted_codes(rows.user_ids, rows.user)
    item_ids, item = _sorted_codes(rows.item_ids, rows.item)
    time = np.asarray(rows.order, np.float64)
    kept = np.arange(len(user))  # indices of the source's rows, ever fewer
    counts["interactions"] = len(kept)

    def drop(reason, mask):
        nonlocal kept
        counts[f"dropped: {reason}"] = int(mask.sum())
        kept = kept[~mask]

    if rows.rating is not None and (top := float(np.nanmax(rows.rating))) > c.best_rating:
        raise InputError(
            f"The source has the rating {top:g}, above --config.data.best_rating={c.best_rating:g}: set it to the scale's end."
        )
    with_text = _with_text(item_ids, raw.items, c.item_fields)
    counts["items without title/text"] = int((~with_text).sum())
    drop("items without title/text", ~with_text[item[kept]])
    if not len(kept):
        raise InputError(
            f"None of the {len(item_ids)} items has any of --config.data.item_fields="
            f"{c.item_fields}: give an item table, or name other fields."
        )
    drop("repeats of a user's item", _repeats(user[kept], item[kept], time[kept]))
    drop(f"{c.core}-core", ~_core(user[kept], item[kept], c.core))
    if not len(kept):
        raise InputError(f"The {c.core}-core leaves no interaction: lower --config.data.core.")
    kept = kept[_chronological(user[kept], item[kept], time[kept])]

    if by_time:
        part, cuts = _split_by_time(user[kept], time[kept], c.validation_share, c.test_share)
        for number, split in enumerate(("training", "validation")):
            late = (part == number) & (time[kept] >= cuts[number])
            drop(f"{split} users' interactions after the cut", late)
            part = part[~late]
    else:
        part, cuts = _split_last(user[kept], c.eval_targets * c.eval_windows), None
    if c.cold_share:
        drop("training interactions of held-out items", cold := _held_out(item[kept], time[kept], part, c.cold_share))
        part = part[~cold]
    trained = kept[part == 0]
    ranked = np.unique(item[kept if c.catalogue == "all" else trained])  # the catalogue
    index = np.searchsorted(ranked, item[trained])
    for number, split in enumerate(SPLITS):
        cold = (part == number) & ~np.isin(item[kept], ranked)  # none in training, where only such are ranked
        if number:
            drop(f"cold items in {split}", cold)
            part = part[~cold]
        counts[f"{split} interactions"] = int((part == number).sum())

    ids = [item_ids[i] for i in ranked]
    means = _mean_ratings(rows.rating, trained, index, len(ids))
    fields = {i: _known_before_the_cut(raw.items[i], mean) for i, mean in zip(ids, means)}
    stays = dataclasses.replace(
        rows,
        user=user[kept],
        item=np.searchsorted(ranked, item[kept]),
        user_ids=user_ids,
        item_ids=ids,
        order=time[kept] if rows.has_time else np.full(len(kept), np.nan),
        rating=_objects(rows.rating, kept),
        review=rows.review and (lambda at: rows.review(kept[at])),
    )
    sample = _sample(len(user_ids), user[kept], c.max_users)
    counts["users not in the sample"] = int((~sample[np.unique(user[kept])]).sum())
    sessions = _sessions(stays, part, sample, c, counts)
    for split in SPLITS:
        if not sessions[split]:
            raise InputError(
                f"No user is left for {split}: {counts[f'{split} users with too few items']} have "
                f"too few items; lower --config.data.min_history={c.min_history} or "
                f"--config.data.core={c.core}, or give more data."
            )
    counts["items ranked"] = len(ids)
    return Dataset(
        catalogue=catalogue_lib.build(ids, fields, c.item_fields, c.attribute_items),
        sessions=sessions,
        popularity=np.bincount(index, minlength=len(ids)).astype(np.int64),
        counts=counts,
        protocol=_protocol(c, raw.name, counts, cuts),
        kind=c.kind,
        rows=stays,
        part=part,
        warnings=warnings_of(counts, c),
    )


def warnings_of(counts: dict[str, int], data_config) -> list[str]:
    """A sentence for each filter that dropped over half of the interactions it met, and one if few users are left to test.

    A cut and a lack of training meet their own split's interactions, the other filters what the ones before them left.
    """
    filters = _filters(data_config, by_time="dropped: training users' interactions after the cut" in counts)
    dropped = {name: counts.get(f"dropped: {name}", 0) for name in filters}
    found = []
    for place, (name, (whose, why)) in enumerate(filters.items()):
        met = sum(counts[f"{split} interactions"] for split in SPLITS if whose in ("", split))
        met += sum(dropped[later] for later in list(filters)[place:] if whose in ("", filters[later][0]))
        if dropped[name] > met / 2:
            what = f"{whose} interactions".strip()
            found.append(f"{100 * dropped[name] // met} % of {met:,} {what} were dropped {why}.")
    if counts["test users"] < FEW_USERS and data_config.source != "made_up":
        found.append(_few_users(counts, data_config))
    return found


def _filters(c, by_time):
    """What drops interactions, in its order: name -> whose ("" for all users'), why it does and what to change."""
    columns, fields = "--config.data.columns", f"--config.data.item_fields={c.item_fields}"
    test = f"--config.data.test_share={c.test_share:g}"
    either = f"{test} or --config.data.validation_share={c.validation_share:g}"
    if not by_time:
        either = f"--config.data.eval_targets={c.eval_targets} or --config.data.eval_windows={c.eval_windows}"
    cold = f"as items without a training interaction: lower {either}, or give more data"
    return {
        "no user or no item": ("", f"for lack of a user or an item: mend the file, or correct {columns}.user or .item"),
        "no time": ("", f"for lack of a time: mend the file, or correct {columns}.time"),
        "items without title/text": (
            "",
            f"as their items have none of {fields}: add a field, or give a fuller item table",
        ),
        "repeats of a user's item": ("", f"as repeats of a user's item: check that {columns}.item tells items apart"),
        f"{c.core}-core": ("", f"by the {c.core}-core: lower --config.data.core"),
        "training users' interactions after the cut": ("train", f"after the cut: lower {either}"),
        "validation users' interactions after the cut": ("validation", f"after the cut: lower {test}"),
        "cold items in validation": ("validation", cold),
        "cold items in test": ("test", cold),
    }


def _few_users(counts, c):
    """The warning of fewer than FEW_USERS test users."""
    ways, short = [], counts["test users with too few items"]
    if c.max_users:
        ways.append(f"raise --config.data.max_users={c.max_users}")
    if short:
        ways.append(f"lower --config.data.min_history={c.min_history} ({short:,} more have too few items)")
    ways.append("give more data")
    return f"Only {counts['test users']} test users: intervals will be wide and most gains noise; {' or '.join(ways)}."


def more(data: Dataset, data_config, windows: int, targets: int) -> list[Session]:
    """Other training sessions than the dataset's own: up to so many windows per user, each with so many next items."""
    c = data_config.copy_and_resolve_references()
    with c.unlocked():
        c.update(windows=windows, targets=targets)
    return _sessions(data.rows, data.part, np.ones(len(data.rows.user_ids), bool), c, {})["train"]


def training_items(data: Dataset) -> list[tuple[int, ...]]:
    """The training interactions of every user who has some: catalogue indices, oldest first."""
    rows = data.part == 0
    starts, _ = _users(data.rows.user[rows])
    return [tuple(items.tolist()) for items in np.split(data.rows.item[rows], starts[1:])]


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
    found = (items.get(i, {}) for i in item_ids)
    return np.array([any(catalogue_lib.value(f, name) for name in chosen) for f in found], bool)


def _pairs(user, item):
    """A number for each (user, item), in their order."""
    return user * (item.max(initial=0) + 1) + item


def _tied(values):
    """Where sorted values have an equal neighbour."""
    same = np.diff(values) == 0
    return np.flatnonzero(np.r_[False, same] | np.r_[same, False][: len(values)])


def _repeats(user, item, time):
    """Bool[n]: not the first (in time, then in the source) of its user and item."""
    pairs = _pairs(user, item)
    place = np.argsort(pairs)  # one key sorts several times as fast as lexsort's three; few rows are left for that
    twins = np.sort(place[_tied(pairs[place])])
    twins = twins[np.lexsort((time[twins], pairs[twins]))]
    mask = np.zeros(len(user), bool)
    mask[twins[1:][np.diff(pairs[twins]) == 0]] = True
    return mask


def _core(user, item, core):
    """Bool[n]: stays when users and items with fewer than `core` rows go, again and again."""
    alive = np.ones(len(user), bool)
    while True:
        users, items = np.bincount(user[alive]), np.bincount(item[alive])
        stays = (users[user[alive]] >= core) & (items[item[alive]] >= core)
        if stays.all():
            return alive
        alive[alive] = stays


def _sample(n, user, max_users):
    """Bool[n users]: is in the sample of those who have interactions, the same for every seed of a run."""
    users = np.unique(user)
    if max_users and len(users) > max_users:
        users = np.random.default_rng(0).choice(users, max_users, replace=False)
    return np.isin(np.arange(n), users)


def _chronological(user, item, time):
    """The order by user, then time, then a fixed shuffle of the (user, item) pairs, none of which is there twice."""
    shuffle, ranks = np.empty((2, len(user)), np.int64)
    shuffle[np.argsort(_pairs(user, item))] = np.random.default_rng(0).permutation(len(user))
    place = np.argsort(time)
    ranks[place] = np.r_[0, np.cumsum(np.diff(time[place]) != 0)][: len(user)]
    key = _pairs(user, ranks)
    place = np.argsort(key)
    tied = _tied(key[place])
    rows = place[tied]
    place[tied] = rows[np.lexsort((shuffle[rows], key[rows]))]
    return place


def _users(user):
    """Where each user's rows start and how many they are, rows sorted by user."""
    starts = np.flatnonzero(np.r_[True, np.diff(user) != 0][: len(user)])
    return starts, np.diff(np.r_[starts, len(user)])


def _split_by_time(user, time, validation_share, test_share):
    """Int[n] of SPLITS, and the validation and test cuts in unix seconds."""
    starts, sizes = _users(user)
    first, n = time[starts], len(starts)
    test, validation = (max(1, round(share * n)) for share in (test_share, validation_share))
    edges = (n - test - validation, n - test)
    if edges[0] < 1:
        raise InputError(f"{n} users are too few for training, validation and test users.")
    place = np.argsort(first, kind="stable")  # users are numbered by id, so ties are by id
    of_user = np.empty(n, np.int64)
    of_user[place] = np.searchsorted(edges, np.arange(n), side="right")
    cuts = first[place][list(edges)]
    return np.repeat(of_user, sizes), cuts


def _split_last(user, each):
    """Int[n]: 2 for each user's last `each` rows, 1 for as many before them, 0 before those."""
    starts, sizes = _users(user)
    from_end = np.repeat(starts + sizes, sizes) - 1 - np.arange(len(user))
    return np.clip(2 - from_end // each, 0, 2)


def _held_out(item, time, part, share):
    """Bool[n]: a training row of the newest items, by their first interaction; the share is of all items."""
    items, index = np.unique(item, return_inverse=True)
    first = np.full(len(items), np.inf)
    np.minimum.at(first, index, time)
    newest = np.argsort(first, kind="stable")[len(items) - round(share * len(items)) :]
    return (part == 0) & np.isin(index, newest)


def _mean_ratings(rating, trained, index, n):
    """The n items' mean ratings over the training interactions; nan where none is rated."""
    if rating is None:
        return [np.nan] * n
    values = np.asarray(rating, np.float64)[trained]
    rated = ~np.isnan(values)
    total, number = (np.bincount(index[rated], w, n) for w in (values[rated], None))
    return np.divide(total, number, out=np.full(n, np.nan), where=number > 0).tolist()


def _known_before_the_cut(fields, mean):
    """An item's metadata, with an average rating of training interactions only."""
    known = {k: v for k, v in fields.items() if k in catalogue_lib.FIELDS}
    known["average_rating"] = mean
    return {k: v for k, v in known.items() if catalogue_lib.value(known, k)}


def _objects(column, kept):
    """The kept rows of an optional column as Python objects, None for nan."""
    if column is None:
        return None
    column = np.asarray(column)[kept].astype(object)
    column[column != column] = None
    return column


def _windows(low, high, count):
    """At most `count` positions spread evenly over low … high; low alone for one."""
    step = max(high - low, 0) / max(count - 1, 1)
    return sorted({round(low + k * step) for k in range(count)})


def _sessions(rows, part, sample, c, counts):
    """All sessions of the sample by split, counted; rows are sorted by user and time."""
    sessions, spans = {split: [] for split in SPLITS}, {split: [] for split in SPLITS}
    users, short = [0, 0, 0], [0, 0, 0]
    starts, sizes = _users(rows.user)
    whose = np.repeat(np.arange(len(starts)), sizes)
    sizes = np.bincount(whose * 3 + part, minlength=3 * len(starts)).reshape(-1, 3)
    starts, sizes = (column[sample[rows.user[starts]]] for column in (starts, sizes))
    how = [(c.windows, c.targets)] + [(c.eval_windows, c.eval_targets)] * 2
    least = c.min_history

    def cut(column, start, stop):
        return None if column is None else tuple(column[start:stop].tolist())

    for start, size in zip(starts.tolist(), sizes.tolist()):
        end = start
        for number, (count, wanted) in enumerate(how):
            first, end = end, end + size[number]  # the split's rows: its targets are among them
            low = max(first - start, least)
            if end == first or end - start <= low:
                short[number] += end > first
                continue
            users[number] += 1
            for position in _windows(low, end - start - wanted, count):
                at = start + position
                session = Session(
                    user=rows.user_ids[rows.user[start]],
                    history=cut(rows.item, start, at),
                    ratings=cut(rows.rating, start, at),
                    reviews=None,
                    targets=cut(rows.item, at, min(at + wanted, end)),
                    time=float(rows.order[at]),
                )
                sessions[SPLITS[number]].append(session)
                spans[SPLITS[number]].append((start, at))
    if rows.review is not None:
        _add_reviews(sessions, spans, rows)
    for number, split in enumerate(SPLITS):
        counts[f"{split} users"] = users[number]
        counts[f"{split} users with too few items"] = short[number]
        counts[f"{split} sessions"] = len(sessions[split])
    return sessions


def _add_reviews(sessions, spans, rows):
    """Reads the texts of the histories, which are rows start … at - 1 each, and of no others."""
    wanted = np.zeros(len(rows.user), bool)
    for start, at in itertools.chain.from_iterable(spans.values()):
        wanted[start:at] = True
    texts, place = rows.review(np.flatnonzero(wanted)), np.cumsum(wanted) - 1
    if not texts.any():  # a source without any is one that lacks them
        return
    for split, found in sessions.items():
        sessions[split] = [
            dataclasses.replace(session, reviews=tuple(texts[place[start] : place[at - 1] + 1]))
            for session, (start, at) in zip(found, spans[split], strict=True)
        ]


def _protocol(c, name, counts, cuts):
    """One line: source and what it calls itself, filters, split with its dates and users, what is ranked and how."""
    source = f"{c.source} {name}".strip()
    sample = f", sessions of {c.max_users} randomly sampled users" if c.max_users else ""
    of = [f"{counts[f'{s} users']} {s} users ({counts[f'{s} sessions']} sessions)" for s in SPLITS]
    if cuts is None:
        split = (
            f"leave-last split: {', '.join(of)}, where training may hold other users' later "
            "interactions (leakage can't be excluded)"
        )
    else:
        day = [f"{np.datetime64(int(t), 's')}Z" for t in cuts]
        split = (
            f"split by the time of users' first interaction: {of[0]}, all before {day[0]}; "
            f"{of[1]}, all before {day[1]}; {of[2]}, all from then on"
        )
    one = c.eval_targets == 1
    ranked = " with a training interaction" if c.catalogue == "trained" else ""
    if c.cold_share:
        ranked = f", the newest {100 * c.cold_share:g} % of them without any training interaction,"
    following = "the next item" if one else f"each of the next {c.eval_targets}, the others hidden"
    return (
        f"{source}: {c.core}-core{sample}; {split}; all {counts['items ranked']} {c.kind}{ranked} "
        f"are ranked except the history's, ties by catalogue index; relevant: "
        f"{following}; metrics are means over a user's targets, then over users."
    )


# ---- everything that is known


def known_session(dataset, user: str) -> Session:
    """A session of all the items that the data know of a user."""
    rows = dataset.rows
    code = bisect.bisect_left(rows.user_ids, user)
    start, stop = np.searchsorted(rows.user, [code, code + 1])
    if start == stop or rows.user_ids[code] != user:
        known = [rows.user_ids[u] for u in np.unique(rows.user)]
        near = difflib.get_close_matches(user, known, 1, 0.0)
        raise InputError(f"--user={user}: no user of this id is left in the data; the nearest id is {near[0]}.")
    history, ratings = (None if c is None else tuple(c[start:stop].tolist()) for c in (rows.item, rows.rating))
    reviews = rows.review and tuple(rows.review(np.arange(start, stop)))
    reviews = reviews if reviews and any(reviews) else None
    return Session(user, history, ratings, reviews, targets=(), time=float(rows.order[stop - 1]))


def everyone(dataset) -> list[Session]:
    """A session of each user's items, all of them, in the order of the users' ids."""
    return [known_session(dataset, dataset.rows.user_ids[user]) for user in np.unique(dataset.rows.user)]
