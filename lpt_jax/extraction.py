"""How well journeys are found: mixes of two known collections taken apart, by ICPC and by clusterings that are told more.

Clusterings come from scikit-learn. "told" ones know that a mix has two parts; "global" ones cluster the whole catalogue once, and
their clusters are a user's journeys, as the paper's co-occurrence baseline has it.
"""

from collections.abc import Callable

import numpy as np

from lpt_jax import journeys
from lpt_jax.data.collections import Mix

GLOBAL = 100  # clusters of a whole catalogue
FACTORS = 64  # of what users chose together
RULES = {  # beside the run's own: how much vectors, as they are, say of what is alike, and the rule
    "icpc_dense": (1.0, journeys.Rule(join=0.5, merge=-1.0, fewest=2)),
    "icpc_terms": (0.0, journeys.Rule(join=0.04, merge=-1.0, fewest=2)),
}

COMPARED = (
    *RULES,
    "k_means_told",
    "ward_told",
    "average_told",
    "co_occurrence",
)  # rows over which ICPC's gains are stated


def measures(source: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """How well labels Int[n] give the two parts of a mix back, source Int[n].

    ari: adjusted Rand index; nmi: normalised mutual information; recall: the share of a part that is in the journey which has
    most of it (one journey of everything has 1); journeys: how many there are.
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score  # here, as its import is slow

    parts = [labels[source == part] for part in np.unique(source)]
    return {
        "ari": adjusted_rand_score(source, labels),
        "nmi": normalized_mutual_info_score(source, labels),
        "recall": float(np.mean([np.unique(part, return_counts=True)[1].max() / len(part) for part in parts])),
        "journeys": len(np.unique(labels)),
    }


def measured(mixes: list[Mix], find: Callable[[np.ndarray], np.ndarray]) -> dict[str, np.ndarray]:
    """Each of `measures` for every mix, Float[mixes]; find(items) labels the items, oldest first."""
    found = [measures(mix.source, find(mix.items)) for mix in mixes]
    return {name: np.array([one[name] for one in found], np.float64) for name in found[0]}


def by_rule(likeness: journeys.Likeness, rule: journeys.Rule) -> Callable[[np.ndarray], np.ndarray]:
    """Labels of items by ICPC."""
    return lambda items: journeys.labels(journeys.found(likeness(items), rule), len(items))


def told(vectors: np.ndarray, method: str) -> Callable[[np.ndarray], np.ndarray]:
    """Labels of items by a clustering that is told to find two: k_means, ward or average (linkage, by cosine)."""
    from sklearn.cluster import AgglomerativeClustering, KMeans

    make = {
        "k_means": lambda: KMeans(2, n_init=10, random_state=0),
        "ward": lambda: AgglomerativeClustering(2, linkage="ward"),
        "average": lambda: AgglomerativeClustering(2, metric="cosine", linkage="average"),
    }[method]
    return lambda items: make().fit_predict(vectors[items])


def everywhere(vectors: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Labels of items by one clustering of the whole catalogue into GLOBAL parts."""
    from sklearn.cluster import MiniBatchKMeans

    labels = MiniBatchKMeans(min(GLOBAL, len(vectors)), n_init=3, random_state=0).fit_predict(vectors)
    return lambda items: labels[items]


def chosen_together(sequences: list, count: int) -> np.ndarray:
    """Unit vectors Float[N, FACTORS] of items by who chose them in training: a truncated SVD of items × users."""
    from scipy.sparse import csr_matrix
    from sklearn.decomposition import TruncatedSVD

    users = np.repeat(np.arange(len(sequences)), [len(items) for items in sequences])
    matrix = csr_matrix((np.ones(len(users)), (np.concatenate(sequences), users)), (count, len(sequences)))
    factors = TruncatedSVD(min(FACTORS, len(sequences) - 1, count - 1), random_state=0).fit_transform(matrix)
    return factors / np.maximum(np.linalg.norm(factors, axis=1, keepdims=True), 1e-12)


def finders_of(titles: list[str], vectors: np.ndarray, sequences: list, own: Callable) -> dict[str, Callable]:
    """ICPC and each clustering: row -> what labels items by it.

    vectors: unit length, of the titles; sequences: the items of each training user; own: labels by the run's settings.
    """
    finders = {"icpc": own}
    for name, (share, rule) in RULES.items():
        finders[name] = by_rule(journeys.Likeness(titles, vectors, share), rule)
    finders |= {f"{method}_told": told(vectors, method) for method in ("k_means", "ward", "average")}
    finders |= {
        "k_means_global": everywhere(vectors),
        "co_occurrence": everywhere(chosen_together(sequences, len(titles))),
    }
    return finders | {"one_journey": lambda items: np.zeros(len(items), int)}
