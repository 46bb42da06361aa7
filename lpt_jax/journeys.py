"""Interest journeys: what each of a user's interests led them to, found among their items one after another (ICPC).

    for each item x, in the order of time:
        j = argmax over journeys of cos(x, r_j)                  # r_j: the sum of j's items; of equals the oldest
        x joins j if cos(x, r_j) ≥ ε, else opens a journey       # shared: it joins every journey with cos ≥ ε
    then each journey of fewer than c items joins the most similar one that has as many, if cos ≥ α, else it is dropped

After "Large Language Models for User Interest Journeys" (arXiv 2305.15498). Sums of items are never made: cosines between
items and journeys follow from those between items, so that vectors, title terms, or both can say what is alike.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lpt_jax.errors import InputError


class Rule(NamedTuple):
    """How journeys are found: ε, α, c, and whether an item may be in several."""

    join: float = 0.5  # ε, in [−1, 1]: the least cosine at which an item joins a journey
    merge: float = 0.5  # α, in [−1, 1]: the least cosine at which a small journey joins another one
    fewest: int = 1  # c, items of a journey that stays
    shared: bool = False
    passes: int = 1  # more than 1: then each item moves to the journey that is most like it, so many times less one


def found(likeness: np.ndarray, rule: Rule) -> list[list[int]]:
    """The journeys of one user's items, by their first items: places of items in the order of time; a dropped item is in none.

    likeness Float[H, H]: cosines between the items, oldest first; a row of zeros is of an item that nothing is known of.

    >>> likeness = np.array([[1.0, 0.0, 0.9], [0.0, 1.0, 0.1], [0.9, 0.1, 1.0]])
    >>> found(likeness, Rule(join=0.5)), found(likeness, Rule(join=0.5, merge=0.5, fewest=2))
    ([[0, 2], [1]], [[0, 2]])
    """
    journeys = _opened(likeness, rule)
    for _ in range(1, rule.passes if journeys else 1):
        journeys = _moved(likeness, journeys)
    large = [journey for journey in journeys if len(journey) >= rule.fewest]
    joined = [list(journey) for journey in large]
    for small in (journey for journey in journeys if len(journey) < rule.fewest):
        cosines = [cosine(likeness, small, journey) for journey in large]
        if large and max(cosines) >= rule.merge:
            joined[int(np.argmax(cosines))] += small
    return sorted(sorted(set(journey)) for journey in joined)


def _opened(likeness: np.ndarray, rule: Rule) -> list[list[int]]:
    """One pass over the items: each joins, or opens a journey."""
    count, journeys = len(likeness), []
    toward, squared = np.zeros((count, count)), np.zeros(count)  # toward[j, i]: x_i · r_j; squared: |r_j|²
    for item in range(count):
        open_ones = len(journeys)
        cosines = _cosines(toward[:open_ones, item], squared[:open_ones], likeness[item, item])
        joins = np.flatnonzero(cosines >= rule.join)
        if len(joins) and not rule.shared:
            joins = [int(np.argmax(cosines))]
        elif not len(joins):
            journeys.append([])
            joins = [open_ones]
        for journey in joins:
            journeys[journey].append(item)
            squared[journey] += 2 * toward[journey, item] + likeness[item, item]
            toward[journey] += likeness[item]
    return journeys


def _cosines(products, squared, own) -> np.ndarray:
    """Cosines of an item, of squared length `own`, with journeys; 0 where nothing is known of one of them."""
    lengths = np.sqrt(np.maximum(squared * own, 0.0))
    return np.divide(products, lengths, out=np.zeros_like(lengths), where=lengths > 0)


def _moved(likeness: np.ndarray, journeys: list[list[int]]) -> list[list[int]]:
    """Each item in the journey that is most like it, as the journeys were; those that nobody stays in are gone.

    An item leaves its journey only for one that is more like it.
    """
    toward = np.stack([likeness[journey].sum(0) for journey in journeys])
    squared = np.array([row[journey].sum() for row, journey in zip(toward, journeys, strict=True)])
    most = np.empty(len(likeness), int)
    for own, journey in enumerate(journeys):
        for item in journey:
            cosines = _cosines(toward[:, item], squared, likeness[item, item])
            best = int(np.argmax(cosines))
            most[item] = best if cosines[best] > cosines[own] else own
    moved = [[item for item, at in enumerate(most) if at == journey] for journey in range(len(journeys))]
    return [journey for journey in moved if journey]


def cosine(likeness: np.ndarray, one: Sequence[int], other: Sequence[int]) -> float:
    """cos(r, r') of two journeys."""
    product = likeness[np.ix_(one, other)].sum()
    lengths = np.sqrt(likeness[np.ix_(one, one)].sum() * likeness[np.ix_(other, other)].sum())
    return float(product / lengths) if lengths > 0 else 0.0


def labels(journeys: list[list[int]], count: int) -> np.ndarray:
    """For each of `count` items the journey that it is in, the first of several; a dropped item has a number of its own.

    >>> labels([[0, 2], [3]], 4).tolist()
    [0, 2, 0, 1]
    """
    of_items = np.full(count, -1)
    for number, journey in reversed(list(enumerate(journeys))):
        of_items[journey] = number
    alone = np.flatnonzero(of_items < 0)
    of_items[alone] = len(journeys) + np.arange(len(alone))
    return of_items


class Likeness:
    """How alike a catalogue's items are: by their vectors, by their titles' terms, or by the mean of both."""

    def __init__(self, titles: Sequence[str], vectors: np.ndarray | None = None, share: float = 1.0):
        """vectors: unit length, Float[N, D]; share: how much of the mean is theirs, the titles' terms having the rest."""
        self.vectors, self.share = vectors, share
        self.terms = terms_of(titles)[1] if share < 1 else None

    def __call__(self, items: Sequence[int]) -> np.ndarray:
        """Float[H, H] of these items."""
        items, total = list(items), np.zeros((len(items), len(items)))
        if self.share > 0:
            rows = self.vectors[items].astype(np.float64)
            total += self.share * (rows @ rows.T)
        if self.share < 1:
            rows = self.terms[items]
            total += (1 - self.share) * np.asarray((rows @ rows.T).todense())
        return total


class Journeys:
    """Finds the journeys of a run's users, as its settings (config.journeys) say."""

    def __init__(self, texts: Sequence[str], vectors: np.ndarray | None, settings):
        """texts: the items'; vectors: theirs, unit length, Float[N, D]; None where settings.vectors is 0."""
        vectors = centred(vectors) if vectors is not None and settings.centred else vectors
        self.likeness = Likeness(texts, vectors, settings.vectors)
        self.rule = Rule(**{name: settings[name] for name in Rule._fields})

    def places(self, items: Sequence[int]) -> list[list[int]]:
        """The journeys of a user's items, as places among them, the one that began first being first."""
        return found(self.likeness(items), self.rule)

    def of(self, items: Sequence[int]) -> list[list[int]]:
        """The same, as catalogue indices."""
        return [[items[place] for place in places] for places in self.places(items)]

    def nearest(self, item: int, groups: Sequence[Sequence[int]]) -> int:
        """Which of some journeys an item is most like, of equals the first."""
        items = [item, *(other for group in groups for other in group)]
        likeness, start, cosines = self.likeness(items), 1, []
        for group in groups:
            cosines.append(cosine(likeness, [0], range(start, start := start + len(group))))
        return int(np.argmax(cosines))


def terms_of(titles: Sequence[str]) -> tuple[list[str], object]:
    """The titles' words and pairs of words, and their weights by TF-IDF, a sparse Float[N, terms] of rows of unit length."""
    from sklearn.feature_extraction.text import TfidfVectorizer  # here, as its import is slow

    vectorizer = TfidfVectorizer(
        ngram_range=(1, 2), stop_words="english", sublinear_tf=True, token_pattern=r"[^\W\d_]{2,}"
    )
    try:
        weights = vectorizer.fit_transform(titles)
    except ValueError:  # of an empty vocabulary
        raise InputError(
            "The items' titles have no words, by which journeys are found and named: give an item table with titles."
        ) from None
    return vectorizer.get_feature_names_out().tolist(), weights


def heaviest(names: list[str], weights, items: Sequence[int], count: int) -> list[str]:
    """The `count` terms that weigh most in these items' titles together; none whose words another one has.

    names, weights: of terms_of.
    """
    total, chosen = np.asarray(weights[list(items)].sum(0))[0], []
    for term in np.argsort(-total, kind="stable"):
        if total[term] <= 0 or len(chosen) == count:
            break
        words = set(names[term].split())
        if not any(words <= set(other.split()) or set(other.split()) <= words for other in chosen):
            chosen.append(names[term])
    return chosen


def mean(vectors: np.ndarray, weights=None) -> np.ndarray:
    """The (weighted) mean of vectors, of unit length."""
    total = vectors.sum(0) if weights is None else np.asarray(weights) @ vectors
    return (total / max(np.linalg.norm(total), 1e-12)).astype(np.float32)


def centred(vectors: np.ndarray) -> np.ndarray:
    """Unit vectors less their mean, of unit length again: what all items of a catalogue share says nothing of two of them."""
    apart = vectors - vectors.mean(0, keepdims=True)
    return apart / np.maximum(np.linalg.norm(apart, axis=1, keepdims=True), 1e-12)


def in_common(items: Sequence[int], catalogue, most: int = 2) -> str:
    """A name for items: the attributes that most of them have and most other items don't, or "various"."""
    has = catalogue.attributes.has
    own = has[:, list(items)].mean(1) if len(has) else np.zeros(0)
    more = own - has.mean(1) if len(has) else own
    chosen = [a for a in np.argsort(-more, kind="stable")[:most] if own[a] >= 0.5 and more[a] > 0]
    return ", ".join(catalogue.attributes.names[a] for a in chosen) or "various"
