"""How should journeys be found? Vectors, terms or both; ε, c and passes chosen on validation's mixes, and shown on the test's.

    python experiments/journeys_extraction.py [DATA] [--config.data.path=…]

DATA: beauty (the products' categories; reads what configs/journeys.py reads) or movielens (tags of MovieLens latest-small; give
its folder as data.path). Nothing is trained. Mixes of two collections of which neither is in the other split, 200 of each kind
and split; every rule that drops no item is tried for each way to say what is alike. Writes journeys_extraction_DATA.json and the
table in journeys_extraction_DATA.md beside this file. A minute or two on 2 cores after embedding.
"""

import itertools
import json
import sys
from pathlib import Path

import numpy as np

from lpt_jax import config as config_lib
from lpt_jax import extraction, files, journeys, metrics, report
from lpt_jax.data import collections, downloads
from lpt_jax.data.sessions import training_items
from lpt_jax.run import Run
from lpt_jax.systems import journeys as system

ROOT = Path(__file__).resolve().parent
CHANGES = {
    "beauty": {},
    "movielens": {
        "data.source": "movielens",
        "data.name": "ml-latest-small",
        "data.kind": "movies",
        "data.item_fields": "title,genres",
        "data.catalogue": "all",
        "collections.source": "tags",
        "collections.validation": "10",
        "collections.test": "20",
        "collections.fewest": "5",
        "collections.mixed": "5",
    },
}
ALIKE = {  # what says what is alike: share of the vectors, whether their mean is taken off, and the ε that are tried
    "vectors": (1.0, False, (0.3, 0.4, 0.45, 0.5, 0.55, 0.6)),
    "vectors, centred": (1.0, True, (0.1, 0.15, 0.2, 0.25, 0.3, 0.35)),
    "terms": (0.0, False, (0.01, 0.02, 0.04, 0.06, 0.1)),
    "vectors and terms": (0.7, False, (0.2, 0.25, 0.3, 0.35, 0.4, 0.45)),
    "vectors, centred, and terms": (0.7, True, (0.05, 0.1, 0.15, 0.2, 0.25, 0.3)),
}
FEWEST, PASSES = (1, 2, 3), (1, 3)


def of_mixes(r, split: str) -> dict[str, list[collections.Mix]]:
    """The mixes of a split by kind."""
    s, found = r.config.collections, r.collections[split]
    seed = {"validation": 1, "test": 2}[split]  # the test's are those of a run (journeys_evaluation.some_mixes)
    made = {kind: collections.mixes(found, kind, s.mixed, s.mixes, seed) for kind in collections.KINDS}
    return {kind: mixes for kind, mixes in made.items() if mixes}


def chosen(likeness, mixes: dict, tried: tuple) -> tuple[journeys.Rule, float]:
    """The rule with the best mean ARI over the kinds of mixes, and that mean."""
    from sklearn.metrics import adjusted_rand_score

    alike = {kind: [(mix, likeness(mix.items)) for mix in of_kind] for kind, of_kind in mixes.items()}

    def mean(rule):
        return np.mean([
            np.mean([adjusted_rand_score(m.source, journeys.labels(journeys.found(a, rule), len(m.items))) for m, a in pairs])
            for pairs in alike.values()
        ])  # fmt: skip

    rules = [
        journeys.Rule(join, -1.0, fewest, False, passes)
        for join, fewest, passes in itertools.product(tried, FEWEST, PASSES)
    ]
    values = [mean(rule) for rule in rules]
    return rules[int(np.argmax(values))], float(max(values))


def main(data: str = "beauty", *overrides: str) -> dict:
    """Chooses, tests and writes."""
    changes = CHANGES[data] | config_lib.overrides_of(list(overrides))
    config = config_lib.load(str(ROOT.parent / "configs/journeys.py"), changes)
    r = system.build(Run(config, downloads.cache(f"journeys_{data}")))
    validation, test, titles = of_mixes(r, "validation"), of_mixes(r, "test"), r.data.catalogue.titles
    rules, finders = {}, {}
    for name, (share, centred, tried) in ALIKE.items():
        likeness = journeys.Likeness(titles, journeys.centred(r.vectors) if centred else r.vectors, share)
        rule, value = chosen(likeness, validation, tried)
        rules[name] = {"rule": rule._asdict(), "validation": value}
        finders[name] = extraction.by_rule(likeness, rule)
        print(f"{name}: {rule}, validation {value:.3f}", flush=True)
    best = max(rules, key=lambda name: rules[name]["validation"])
    sequences = [items for items in training_items(r.data) if len(items)]
    rows, others = {}, extraction.finders_of(titles, r.vectors, sequences, finders[best])
    for kind, mixes in test.items():
        values = {f"ICPC, {name}": extraction.measured(mixes, find) for name, find in finders.items()}
        values |= {name: extraction.measured(mixes, find) for name, find in others.items()}
        before, after = values["icpc_dense"]["ari"], values[f"ICPC, {best}"]["ari"]
        rows[kind] = {
            "rows": {
                name: metrics.table_row(v) | {"interval": metrics.mean_interval(v["ari"], 0, 10_000)}
                for name, v in values.items()
            },
            "best - icpc_dense": metrics.paired_bootstrap(before, after, 0, metric="ari"),
        }
    counts = {split: len(found) for split, found in r.collections.items()}
    found = {"data": data, "collections": counts, "best": best, "rules": rules, "test": rows}
    files.write_file(
        ROOT / f"journeys_extraction_{data}.json", json.dumps(files.plain(found), indent=1, ensure_ascii=False) + "\n"
    )
    files.write_file(ROOT / f"journeys_extraction_{data}.md", table(found))
    return found


def table(found: dict) -> str:
    """The answer as Markdown."""
    to, blocks = report.Markdown(ROOT), [f"# How should journeys be found? ({found['data']})"]
    counts = ", ".join(f"{count} {split}" for split, count in found["collections"].items())
    blocks.append(
        to.paragraph(
            f"Collections: {counts}. Chosen on validation: {found['best']}, {found['rules'][found['best']]['rule']}."
        )
    )
    for kind, of_kind in found["test"].items():
        lines = []
        for name, row in of_kind["rows"].items():
            ari = f"{row['ari']:.3f} ({row['interval']['low']:.3f} … {row['interval']['high']:.3f})"
            lines.append([to.text(name), ari, *(f"{row[m]:.3f}" for m in ("nmi", "recall")), f"{row['journeys']:.1f}"])
        gain = of_kind["best - icpc_dense"]
        blocks += [
            to.heading(2, kind),
            to.table(["", "ARI (95 %)", "NMI", "recall", "journeys"], lines),
            f"The chosen one − ICPC on vectors: {gain['mean']:+.3f} ({gain['low']:+.3f} … {gain['high']:+.3f}).",
        ]
    return "\n\n".join(blocks) + "\n"


if __name__ == "__main__":
    main(*sys.argv[1:])
