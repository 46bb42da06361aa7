"""What a profile's words do: edits in phrasings that training never uses, and how the top of the list follows them.

    like         a like appended to a profile: the attribute's share of the top 20 should rise
    like_alone   only the like: against the list of a neutral profile
    dislike      a dislike appended: the share should fall
    avoid_alone  only the dislike: against the neutral list
    replace      a named attribute replaced by another, whose share should rise

For each, over (profile, attribute) pairs: "change", the mean change of the share, with its 95 % interval over profiles
(attributes where there is no profile); "share", the mean share afterwards; "right" and "wrong", the share of pairs moved
that way (right, of a dislike: of the pairs whose list had the attribute at all); "attributes", how many there are;
"obeyed", how many of them moved the right way on average or, when rejected, are not in any list; "kept", the share of
the listed items without the attribute that are still listed (of those that still had a place).
"""

import re
from typing import NamedTuple

import numpy as np

from lpt_jax import devices, metrics, ranking
from lpt_jax.data import prompts
from lpt_jax.recommender import ProfileRecommender

TOP = 20
KINDS = ("like", "like_alone", "dislike", "avoid_alone", "replace")
FALLS = ("dislike", "avoid_alone")


class Audited(NamedTuple):
    """What is audited: the embedder's weights and the items' rows by which texts, one per session of a split, are ranked.

    history: the weight of the latest items beside the text.
    """

    weights: dict
    items: object
    texts: list[str]
    history: float = 0.0


class Lists(NamedTuple):
    """The best TOP items of n profiles, Int[n, TOP], and the share of each attribute among them, Float[n, A]."""

    items: np.ndarray
    shares: np.ndarray


class Pairs(NamedTuple):
    """Edits of one kind: texts, the profile that each is of (its row), the attribute that it is about."""

    texts: list[str]
    profiles: np.ndarray
    about: np.ndarray


class Queries:
    """r.queries, which remembers its last answer: rows of the same texts differ in the items alone."""

    def __init__(self, r: ProfileRecommender):
        self.r, self.last = r, (None, [], None)

    def __call__(self, weights: dict, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        if self.last[0] is not weights or self.last[1] != texts:
            self.last = weights, texts, self.r.queries(weights, texts)
        return self.last[2]


def audit(r: ProfileRecommender, audited: Audited, split: str = "test", wording: str = "audit", queries=None) -> dict:
    """The audit of a split's profiles: {kind: its numbers, "kept", "profiles"}; {} if there is none.

    Of the profiles a fixed sample is taken, and a neutral one. wording: audit, or that of the training phrases; queries: what
    embeds the texts, as r.queries.
    """
    texts = audited.texts
    settings, attributes, kind = r.config.audit, r.data.catalogue.attributes, r.config.data.kind
    count = min(settings.attributes, len(attributes.names))
    if not settings.profiles or not count:
        return {}
    rows = np.linspace(0, len(texts) - 1, min(settings.profiles, len(texts)), dtype=int)
    neutral = prompts.NEUTRAL["audit"][0].format(kind=kind)
    profiles = [texts[row] for row in rows] + [neutral]
    histories = [r.sessions[split][row].history for row in rows] + [()]

    def lists(texts, of):
        vectors, valid = (queries or r.queries)(audited.weights, texts)
        return listed(r, audited, vectors, [histories[row] for row in of]), valid

    between = "\n" if r.by_journey else " "
    made = pairs(profiles, attributes, count, kind, wording, between)
    found = of_edits(made, profiles, lists, attributes, (r.config.seed, r.config.evaluation.bootstrap))
    found["kept"] = found["dislike"].get("kept")
    if r.by_journey:
        found["muted"] = muted(r, audited, [texts[row] for row in rows], histories[:-1])
    return found | {"profiles": len(rows)}


def of_edits(made: dict[str, Pairs], profiles: list[str], lists, attributes, settings: tuple[int, int]) -> dict:
    """The numbers of each kind of edit of profiles; edits that are not read whole are left out.

    lists(texts, of): the Lists of texts, `of` being the profile that each is or is an edit of (its row), and which of them are read whole,
    Bool[n]; settings: seed and number of the bootstrap.
    """
    asked = [text for of_kind in made.values() for text in of_kind.texts]
    of_pair = np.concatenate([of_kind.profiles for of_kind in made.values()])
    both, valid = lists(profiles + asked, np.concatenate([np.arange(len(profiles)), of_pair]))
    before, after = Lists(*(a[: len(profiles)] for a in both)), Lists(*(a[len(profiles) :] for a in both))
    valid, found, start = valid[len(profiles) :] & valid[of_pair], {}, 0
    for name, of_kind in made.items():
        where = slice(start, start := start + len(of_kind.texts))
        stays = np.flatnonzero(valid[where])
        edited = Lists(*(a[where][stays] for a in after))
        of_kind = Pairs([of_kind.texts[i] for i in stays], of_kind.profiles[stays], of_kind.about[stays])
        found[name] = measured(of_kind, before, edited, attributes.has, name in FALLS, *settings)
    for of_kind in filter(None, found.values()):
        of_kind["changes"] = {attributes.names[a]: change for a, change in of_kind["changes"].items()}
    return found


def muted(r: ProfileRecommender, by: Audited, profiles: list[str], histories: list) -> dict:
    """What becomes of the list without that of a profile's lines which speaks for most of it, of profiles with several.

    spoken: the line's share of the TOP items; gone: the share of these that are not listed any more; kept: the share of the
    others that still are; each with its interval over profiles.
    """
    found, quieter, spoken = {"spoken": [], "gone": [], "kept": []}, [], []
    read = [prompts.read_lines(text.split("\n"), "", bool(r.config.score.rejected))[0] for text in profiles]
    several = [row for row, affirmed in enumerate(read) if len(affirmed) > 1]
    if not several:
        return {"profiles": 0}
    profiles, histories, read = ([rows[row] for row in several] for rows in (profiles, histories, read))
    queries = r.queries(by.weights, profiles)[0]
    before = listed(r, by, queries, histories).items
    queries = r.with_history(queries, by.items, histories, by.history)
    scores = np.einsum("njd,nkd->njk", queries, devices.fetch(by.items[np.maximum(before, 0)]))
    for text, affirmed, of_lines in zip(profiles, read, scores, strict=True):
        speaks = np.array(list(affirmed))[of_lines[: len(affirmed)].argmax(0)]  # the lines' numbers
        loudest = np.bincount(speaks).argmax()
        spoken.append(speaks == loudest)
        quieter.append("\n".join(line for number, line in enumerate(text.split("\n")) if number != loudest))
    after = listed(r, by, r.queries(by.weights, quieter)[0], histories).items
    for best, now, own in zip(before, after, spoken, strict=True):
        stays = np.isin(best, now)
        found["spoken"].append(own.mean())
        found["gone"].append(1 - stays[own].mean())
        found["kept"].append(stays[~own].mean() if not own.all() else np.nan)
    interval = r.config.seed, r.config.evaluation.bootstrap
    shares = {name: [v for v in values if v == v] for name, values in found.items()}
    return {"profiles": len(several)} | {n: metrics.mean_interval(v, *interval) for n, v in shares.items() if v}


def pairs(
    profiles: list[str], attributes, count: int, kind: str, wording: str = "audit", between: str = " "
) -> dict[str, Pairs]:
    """All edits by kind; the last profile is the neutral one, with which what stands alone is compared.

    between: what stands between a profile and a phrase that is appended.
    """
    made, neutral = {}, len(profiles) - 1

    def phrase(phrases, a, number):
        phrases = phrases[wording]
        return prompts.said(phrases[number % len(phrases)], attributes.names[a], attributes.fields[a], kind)

    both = [(p, a) for p in range(len(profiles)) for a in range(count)]
    for name, phrases in (("like", prompts.LIKES), ("dislike", prompts.DISLIKES)):
        appended = [f"{profiles[p].strip()}{between}{phrase(phrases, a, p + a)}" for p, a in both]
        made[name] = Pairs(appended, *np.array(both, int).T)
        alone = [(neutral, a, number) for a in range(count) for number in range(len(phrases[wording]))]
        texts = [phrase(phrases, a, number) for _, a, number in alone]
        made["like_alone" if name == "like" else "avoid_alone"] = Pairs(texts, *np.array(alone, int).T[:2])
    replaced = [(p, *found) for p in range(neutral) if (found := replacement(profiles[p], attributes, count, p))]
    texts, about = [text for _, text, _ in replaced], [a for *_, a in replaced]
    made["replace"] = Pairs(texts, np.array([p for p, *_ in replaced], int), np.array(about, int))
    return {name: made[name] for name in KINDS}


def replacement(profile: str, attributes, count: int, number: int) -> tuple[str, int] | None:
    """The profile with the first attribute that it names replaced by another that it doesn't name, and that one."""

    def named(a):
        return re.search(rf"\b{re.escape(attributes.names[a])}\b", profile, re.IGNORECASE)

    here = [a for a in range(count) if named(a)]
    others = [a for a in range(count) if a not in here]
    if not here or not others:
        return None
    new = others[number % len(others)]
    where = min((named(a) for a in here), key=lambda match: match.start())
    pattern = rf"\b{re.escape(where[0])}\b"
    return re.sub(pattern, lambda _: attributes.names[new], profile, flags=re.IGNORECASE), new


def listed(r: ProfileRecommender, by: Audited, vectors: np.ndarray, histories: list, batch: int = 256) -> Lists:
    """The Lists of texts' vectors, each without its history."""
    vectors = r.with_history(vectors, by.items, histories, by.history)
    items, hidden, found = by.items, ranking.padded(histories), []
    for start in range(0, len(vectors), batch):
        rows = np.arange(start, start + batch) % len(vectors)
        best = ranking.top_k(vectors[rows], items, hidden[rows], TOP, r.run.count)[0]
        found.append(devices.fetch(best)[: len(vectors) - start])
    return lists_of(np.concatenate(found), r.data.catalogue.attributes)


def lists_of(items: np.ndarray, attributes) -> Lists:
    """The Lists of items Int[n, TOP], -1 for none."""
    has = attributes.has[:, np.maximum(items, 0)] & (items >= 0)
    return Lists(items, has.mean(-1).T)


def measured(pairs: Pairs, before: Lists, after: Lists, has: np.ndarray, falls: bool, seed: int, samples: int) -> dict:
    """The numbers of one kind of edit; {} if there are none."""
    if not len(pairs.texts):
        return {}
    old, new = before.shares[pairs.profiles, pairs.about], after.shares[np.arange(len(pairs.about)), pairs.about]
    change, sign = new - old, -1 if falls else 1
    could = old > 0 if falls else old < 1
    groups = pairs.profiles if len(set(pairs.profiles)) > 1 else pairs.about
    means = np.array([change[groups == group].mean() for group in np.unique(groups)])
    interval = metrics.mean_interval(means, seed, samples)
    names, obeyed = {}, 0
    for a in np.unique(pairs.about):
        of_one = pairs.about == a
        names[int(a)] = float(change[of_one].mean())
        obeyed += bool(sign * names[int(a)] > 0 or falls and new[of_one].max() == 0)
    return {
        "change": float(change.mean()),
        "low": interval["low"],
        "high": interval["high"],
        "share": float(new.mean()),
        "before": float(old.mean()),
        "right": float((sign * change[could] > 0).mean()) if could.any() else None,
        "wrong": float((sign * change < 0).mean()),
        "attributes": len(set(pairs.about.tolist())),
        "obeyed": obeyed,
        "changes": names,
        "pairs": len(change),
        "kept": kept(pairs, before, after, has),
    }


def kept(pairs: Pairs, before: Lists, after: Lists, has: np.ndarray) -> float | None:
    """Of the items that were listed and don't have the attribute, the share that still is.

    Where the list now has more items with the attribute there are fewer places for them: the share is of as many as fit.
    """
    shares = []
    for row, (profile, a) in enumerate(zip(pairs.profiles, pairs.about)):
        others = [item for item in before.items[profile] if item >= 0 and not has[a, item]]
        places = sum(item >= 0 and not has[a, item] for item in after.items[row])
        fit = min(len(others), places)
        if fit:
            shares.append(len(set(others) & set(after.items[row].tolist())) / fit)
    return float(np.mean(shares)) if shares else None


def table(audits: dict[str, dict]) -> str:
    """The audit of several stages for a terminal."""
    lines = [
        f"{'what the words do':30}{'edit':12}{'change of share':>24}{'right':>8}{'wrong':>8}{'obeyed':>9}{'kept':>7}"
    ]
    for stage, found in audits.items():
        for name in KINDS:
            if row := found.get(name):
                spread = f"{row['change']:+.3f} ({row['low']:+.2f} … {row['high']:+.2f})"
                right, kept_ = (f"{row[key]:.2f}" if row[key] is not None else "–" for key in ("right", "kept"))
                counts = f"{row['obeyed']}/{row['attributes']}"
                lines.append(f"{stage:30}{name:12}{spread:>24}{right:>8}{row['wrong']:>8.2f}{counts:>9}{kept_:>7}")
                stage = ""
    return "\n".join(lines)


def by_name(audits: dict[str, dict]) -> str:
    """The last stage's mean changes by what is named, for a terminal."""
    stage, found = list(audits.items())[-1]
    kinds = [kind for kind in KINDS if found.get(kind, {}).get("changes")]
    lines = [f"{stage + ', change by name':32}" + "".join(f"{kind:>13}" for kind in kinds)]
    for name in dict.fromkeys(name for kind in kinds for name in found[kind]["changes"]):
        cells = (found[kind]["changes"].get(name) for kind in kinds)
        lines.append(f"{name:32}" + "".join(f"{'–' if cell is None else f'{cell:+.3f}':>13}" for cell in cells))
    return "\n".join(lines)
