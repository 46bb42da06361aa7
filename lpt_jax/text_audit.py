"""How profiles read, by rules: whether they are finished, true to the history, of use to tell people apart, and private.

    ended      the share that the language model ended by itself
    clean      the share free of every plain defect (DEFECTS), and the share with each
    supported  "claims": of the titles and attributes that a profile names, the share that is in the history shown (profiles
               that name none are left out); "profiles": the share that name nothing else; "per_profile": how many are named
    telling    the share for which the untrained embedder finds the right history among TOLD, and chance's share
    words      a profile's length
    distinct   the share whose text no other profile of the sample has
    private    how well what the data know of a user is predicted from the profile's embedding, beside the history's own and
               the most frequent answer's: the share of right answers in cross-validated logistic regression

A share comes with its 95 % interval over users: {"mean", "low", "high"}. The rules know English and what prompts.py asks for.
"""

import collections
import functools
import re
import warnings
from typing import NamedTuple

import numpy as np

from lpt_jax import metrics

TOLD = 20  # histories of which one is the profile's
FOLDS, STRENGTH = 5, 0.01  # of the logistic regression: its cross-validation, the inverse of its penalty
DEFECTS = (
    "cut off",
    "repetition",
    "named twice",
    "pasted rating",
    "the task's words",
    "no words",
    "an attribute as an item",
)
YEAR = re.compile(r"\s*\((?:18|19|20)\d\d\)")
RATING = re.compile(r"\b\d(?:\.\d)?\s*(?:/\s*\d|out of \d|stars?\b)|\brated\b", re.IGNORECASE)
TASK = re.compile(  # what an instruction speaks of, and no profile should
    r"\b(?:profiles?|summar\w+|sentences?|instructions?|(?:the|this|a) list\b|listed|below|the above|based on|the provided|"
    r"name the|genres?, eras?|chronological)\b",
    re.IGNORECASE,
)
NONSENSE = re.compile(r"(?:\b\w\.){4,}|(\w)\1{3,}|\b\w{26,}\b|\b[b-df-hj-np-tv-xz]{6,}\b", re.IGNORECASE)
EXAMPLES = re.compile(  # after these words stand titles
    r"\b(?:such as|for example|e\.g\.|including|favou?rites? (?:are|is)|favou?rites? include|I loved|has chosen)[:,]?\s+([^.;!?]+)",
    re.IGNORECASE,
)
HOLE = "\0"  # stands in a text for a title that was taken out of it


class Shown(NamedTuple):
    """What a prompt showed of a session: the items' titles, and the attributes that any of them has."""

    titles: list[str]
    attributes: set[str]


def shown(items, catalogue) -> Shown:
    """What these items show."""
    known = catalogue.attributes
    return Shown([catalogue.titles[i] for i in items], {known.names[a] for i in items for a in known.of(i)})


def without_titles(text: str, titles: list[str]) -> tuple[str, collections.Counter]:
    """The text with the titles taken out, HOLE in their place, and how often each was there; its year may be missing.

    >>> without_titles("Likes Heat (1995) and Alien.", ["Heat (1995)", "Alien (1979)"])[0] == f"Likes {HOLE} and {HOLE}."
    True
    """
    counts = collections.Counter()
    for title in sorted(filter(None, titles), key=len, reverse=True):
        for form in dict.fromkeys((title, YEAR.sub("", title))):
            text, n = re.subn(rf"(?<!\w){re.escape(form)}(?!\w)", HOLE, text)
            counts[title] += n
    return text, counts


def attribute_pattern(names: list[str]) -> re.Pattern | None:
    """What finds the attributes in a text, the longest first."""
    found = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    return re.compile(rf"(?<![\w-])(?:{found})(?![\w-])", re.IGNORECASE) if found else None


class Claims(NamedTuple):
    """What a profile names: titles and attributes that the history has, all of them, attributes by name, and odd examples."""

    supported: int
    all: int
    attributes: list[str]
    as_items: list[str]


def claims(text: str, of_history: Shown, pattern: re.Pattern | None) -> Claims:
    """What the text names, held against the history.

    A title is a claim where the history has it, where a year in brackets follows some words, or where it stands among
    examples ("such as …"); an attribute by its name anywhere but in a title.

    >>> heat = Shown(["Heat (1995)"], {"crime"})
    >>> claims("Likes crime movies, such as Heat (1995) and Big (1988). Avoids war.", heat, attribute_pattern(["crime", "war"]))
    Claims(supported=2, all=4, attributes=['crime', 'war'], as_items=[])
    """
    rest, titles = without_titles(text, of_history.titles)
    wrong, as_items = 0, []
    for examples in EXAMPLES.finditer(rest):
        for example in re.split(r",|\band\b|\bor\b", examples[1]):
            example = YEAR.sub("", example).strip(" ,:'\"")
            if pattern and pattern.fullmatch(example):
                as_items.append(example)
            elif HOLE not in example and re.match(r"[A-Z\d]", example):  # else it goes on after the titles
                wrong += 1
    outside = EXAMPLES.sub(" ", rest)
    wrong += len(re.findall(rf"\w[^{HOLE}.;!?()]*{YEAR.pattern}", outside))
    named = [match[0].lower() for match in pattern.finditer(rest)] if pattern else []
    known = {name.lower() for name in of_history.attributes}
    shown_titles = titles.total()
    return Claims(
        shown_titles + sum(name in known for name in named), shown_titles + wrong + len(named), named, as_items
    )


def defects(text: str, ended: bool, of_history: Shown, found: Claims) -> set[str]:
    """The plain defects of a profile, of DEFECTS."""
    rest, titles = without_titles(text, list(set(of_history.titles)))
    words = re.findall(rf"\w+|{HOLE}", rest.lower())
    fours = [four for four in zip(*(words[i:] for i in range(4)), strict=False) if HOLE not in four]
    has = {
        "cut off": not ended or not re.search(r"[.!?][\"')]*$", text.strip()),
        "repetition": len(set(fours)) < len(fours) or bool(re.search(r"\b([^\W\d]+)\s+\1\b", rest, re.IGNORECASE)),
        "named twice": max(titles.values(), default=0) > 1 or len(set(found.attributes)) < len(found.attributes),
        "pasted rating": bool(RATING.search(rest)),
        "the task's words": bool(TASK.search(rest)),
        "no words": len(words) < 3 or bool(NONSENSE.search(rest.replace(HOLE, " "))),
        "an attribute as an item": bool(found.as_items),
    }
    return {name for name, is_so in has.items() if is_so}


def defects_of(text: str, ended: bool, of_history: Shown, pattern: re.Pattern | None, by_line: bool) -> set[str]:
    """The plain defects of a profile; by_line: each of its lines is one of its own, of a journey."""
    lines = text.split("\n") if by_line else [text]
    return set().union(*(defects(line, ended, of_history, claims(line, of_history, pattern)) for line in lines))


def told(profiles: np.ndarray, histories: np.ndarray, users: np.ndarray, seed: int) -> np.ndarray:
    """Bool[n]: of TOLD histories [n, D], one's own and others drawn of other users [n], one's own is nearest to the profile."""
    rng, found = np.random.default_rng(seed), np.zeros(len(profiles), bool)
    for i, profile in enumerate(profiles):
        others = np.flatnonzero(users != users[i])
        drawn = rng.choice(others, min(TOLD - 1, len(others)), replace=False)
        found[i] = histories[i] @ profile > (histories[drawn] @ profile).max(initial=-np.inf)
    return found


def predicted(vectors: np.ndarray, answers: list) -> np.ndarray:
    """Bool[n]: logistic regression on the other folds' vectors [n, D], each dimension scaled alike, gives this user's answer."""
    from sklearn.linear_model import LogisticRegression  # here: only an audit needs it
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=STRENGTH, max_iter=1000))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an answer may be rarer than there are folds
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
        return cross_val_predict(model, vectors, answers, cv=folds) == np.asarray(answers)


def measured(
    texts: list[str],
    ended: list[bool],
    histories: list[Shown],
    names: list[str],
    interval,
    vectors=None,
    seed: int = 0,
    by_line: bool = False,
) -> dict:
    """The numbers of profiles with what their prompts showed.

    names: of all attributes; interval(values) gives a mean with its interval; vectors: the untrained embedder's of profiles
    and of histories, Float[n, D] both, and Int[n] whose they are, for "telling"; by_line: each line is a profile of its own, of a journey.
    """
    pattern = attribute_pattern(names)
    found = [claims(text, history, pattern) for text, history in zip(texts, histories, strict=True)]
    wrong = [defects_of(*row, pattern, by_line) for row in zip(texts, ended, histories, strict=True)]
    counted, times = collections.Counter(name for of_one in wrong for name in of_one), collections.Counter(texts)
    numbers = {
        "profiles": len(texts),
        "ended": interval(ended),
        "clean": interval([not of_one for of_one in wrong]),
        "defects": {name: counted[name] / len(texts) for name in DEFECTS},
        "supported": {
            "claims": interval([c.supported / c.all if c.all else np.nan for c in found]),
            "profiles": interval([c.supported == c.all for c in found]),
            "per_profile": float(np.mean([c.all for c in found])),
        },
        "words": float(np.mean([len(text.split()) for text in texts])),
        "distinct": float(np.mean([times[text] == 1 for text in texts])),
    }
    if vectors is not None and len(texts) > 1:
        numbers["telling"] = interval(told(*vectors, seed)) | {"chance": 1 / min(TOLD, len(set(vectors[2].tolist())))}
    return numbers


def private(profiles: np.ndarray, histories: np.ndarray, users: list[dict], interval) -> dict:
    """For each thing known of the users: how often it is predicted from profiles and histories [n, D], and by always saying
    the most frequent answer; "over_history" is the difference of the two predictions with its interval."""
    found = {}
    for name in users[0] if users else ():
        answers = [str(user[name]) for user in users]
        if len(often := collections.Counter(answers).most_common(2)) < 2 or often[1][1] < FOLDS:
            continue  # hardly anybody differs
        by_profile, by_history = predicted(profiles, answers), predicted(histories, answers)
        found[name] = {
            "profile": float(by_profile.mean()),
            "history": float(by_history.mean()),
            "majority": often[0][1] / len(answers),
            "over_history": interval(by_profile.astype(float) - by_history),
        }
    return found


class Reader:
    """Audits a split's profiles, one for each of its sessions; what is common to several audits is made once.

    weights: the embedder's, as loaded.
    """

    def __init__(self, r, weights: dict, split: str = "test"):
        self.r, self.weights, self.sessions = r, weights, r.sessions[split]
        catalogue = r.data.catalogue
        self.names = catalogue.attributes.names
        self.histories = [shown(r.shown(session), catalogue) for session in self.sessions]
        self.places = np.unique([session.user for session in self.sessions], return_inverse=True)[1]

    @functools.cached_property
    def means(self) -> np.ndarray:
        """The mean of each history's latest items, Float[n, D]."""
        items = self.r.catalogue(self.weights)
        return self.r.history_means(items, [session.history for session in self.sessions])

    def interval(self, values) -> dict[str, float] | None:
        """The mean over users and its interval; a user's value is the mean of those of the user's profiles that aren't NaN."""
        values = np.asarray(values, float)
        counts = np.bincount(self.places, ~np.isnan(values))
        sums = np.bincount(self.places, np.nan_to_num(values))
        return self.over_users(sums[counts > 0] / counts[counts > 0]) if counts.any() else None

    def over_users(self, values: np.ndarray) -> dict[str, float]:
        """The mean of one value for each user, and its interval."""
        return metrics.mean_interval(values, self.r.config.seed, self.r.config.evaluation.bootstrap)

    def __call__(self, texts: list[str], ended: list[bool]) -> dict:
        """The numbers of profiles; ended: those that their writer ended."""
        profiles, _ = self.r.embedder.embed_profiles(self.weights, texts)
        numbers = measured(
            texts,
            ended,
            self.histories,
            self.names,
            self.interval,
            (profiles, self.means, self.places),
            self.r.config.seed,
            self.r.by_journey,
        )
        firsts = np.unique(self.places, return_index=True)[1]  # a user counts once, and is in one fold
        people = [self.r.data.people.get(self.sessions[row].user, {}) for row in firsts]
        if all(people) and (found := private(profiles[firsts], self.means[firsts], people, self.over_users)):
            numbers["private"] = found
        return numbers


def table(audits: dict[str, dict]) -> str:
    """The texts' numbers of several stages for a terminal; nothing if there are none."""
    columns = "".join(f"{column:>22}" for column in ("ended", "clean", "supported", "telling"))
    lines = [f"{'how the profiles read':24}{columns}   words distinct"]
    for stage, numbers in audits.items():
        if text := numbers.get("text"):
            shares = text["ended"], text["clean"], text["supported"]["claims"], text.get("telling")
            cells = "".join(f"{spread(share):>22}" for share in shares)
            lines += [f"{stage:24}{cells}{text['words']:>8.1f}{text['distinct']:>9.2f}", f"  {worst(text)}"]
    return "\n".join(lines) if len(lines) > 1 else ""


def spread(share: dict | None) -> str:
    """A share and its interval."""
    return f"{share['mean']:.2f} ({share['low']:.2f} … {share['high']:.2f})" if share else "–"


def worst(text: dict) -> str:
    """The defects that there are, the most frequent first, and what the profiles give away, as a sentence each."""
    found = sorted(((share, name) for name, share in text["defects"].items() if share), reverse=True)
    plain = "Defects: " + (", ".join(f"{name} {share:.0%}" for share, name in found) or "none") + "."
    known = [
        f"{name} {row['profile']:.2f} (from the history {row['history']:.2f}, always the most frequent {row['majority']:.2f})"
        for name, row in text.get("private", {}).items()
    ]
    return " ".join([plain] + [f"Predicted from the profile: {', '.join(known)}."] * bool(known))
