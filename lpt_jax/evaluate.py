"""The test, once at the end: every row of the results on the same sessions, and the gain of each step."""

import importlib.metadata
import json
import resource

import numpy as np

from lpt_jax import config as config_lib
from lpt_jax import devices, metrics, report, trackers
from lpt_jax.baselines import simple
from lpt_jax.recommender import ProfileRecommender


def test(r: ProfileRecommender, stages: dict[str, tuple[dict, dict]], control: dict | None, note: dict) -> dict:
    """Ranks the full catalogue for all test sessions by every baseline and stage; writes and prints the results.

    Args:
      stages: name -> (policy, encoder), in the order of training; the first is the untrained one. Profiles are greedy.
      control: the encoder trained on raw histories, or None.
      note: of the last checkpoint, with the seconds spent.

    Returns:
      what results.json holds.
    """
    found = r.sessions["test"]
    users, names, config = [s.user for s in found], list(stages), r.config
    untrained, ranks, texts = stages[names[0]][1], {}, {}
    items = r.embed_catalogue(untrained)
    baselines = {
        "random": lambda: simple.random(found, r.count, config.seed),
        "popularity": lambda: simple.popularity(found, r.data.popularity),
        "last_item": lambda: simple.last_item(found, items, r.count),
        "history_text": lambda: r.ranks(untrained, r.history_texts("test"), "test", items, cut=True),
    }
    for name in config_lib.listed(config.evaluation.baselines):
        if name in baselines:
            ranks[name] = baselines[name]()
    if control is not None:
        ranks["history_trained"] = r.ranks(control, r.history_texts("test"), "test", cut=True)
    written = {}  # stages with the same policy share its profiles
    for name, (policy, encoder) in stages.items():
        if id(policy) not in written:
            r.use_policy(policy)
            written[id(policy)] = r.write(
                "test", r.workdir / f"profiles/{name}-{note['global_step']}-test.jsonl", 0, 0.0
            )
        texts[name] = written[id(policy)]
        ranks[name] = r.ranks(encoder, texts[name], "test", items if encoder is untrained else None)
    values = {name: metrics.per_user(rank, users) for name, rank in ranks.items()}
    metric, pairs = config.evaluation.metric, [*zip(names, names[1:]), (names[0], names[-1])]
    gains = {
        f"{a}->{b}": metrics.paired_bootstrap(
            values[a][1][metric], values[b][1][metric], config.seed, config.evaluation.bootstrap, metric
        )
        for a, b in dict.fromkeys(pairs)
        if a != b
    }
    results = {
        "protocol": r.data.protocol,
        "rows": {name: metrics.table_row(v) for name, (_, v) in values.items()},
        "gains": gains,
        "seed": config.seed,
        "config": json.loads(config.to_json_best_effort()),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "flax", "optax", "transformers")},
        "seconds": round(sum(note["seconds"].values()), 1),
        "seconds_of_phases": {name: round(s, 1) for name, s in note["seconds"].items()},
        "peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "counts": r.data.counts,
    }
    if devices.first():
        shown = samples(r, names, texts, ranks)
        report.write_results(r.workdir, results, values)
        report.write(r.workdir, results, trackers.read_jsonl(r.workdir / "metrics.jsonl"), shown)
    print(f"\n{results['protocol']}\n\n{report.results_table(results['rows'])}\n")
    for name, gain in gains.items():
        print(f"{name}: {gain['metric']} {gain['mean']:+.4f} (95 % {gain['low']:+.4f} … {gain['high']:+.4f})")
    print(f"\nresults.json and report.html are in {r.workdir} ({results['seconds']:.0f} s of training)", flush=True)
    return results


def samples(r: ProfileRecommender, names: list[str], texts: dict, ranks: dict) -> list[dict]:
    """A few test users, spread evenly: history, profile before and after, targets and their ranks."""
    found, titles = r.sessions["test"], r.data.catalogue.titles
    rows = np.linspace(0, len(found) - 1, min(r.config.evaluation.samples, len(found)), dtype=int)
    shown = []
    for i in rows:
        s, last = found[i], r.config.prompt.history_items
        rated = [{"title": titles[item], "rating": s.ratings and s.ratings[j]} for j, item in enumerate(s.history)]
        sides = {
            side: {"profile": texts[name][i], "ranks": [int(rank) for rank in ranks[name][i] if rank]}
            for side, name in (("before", names[0]), ("after", names[-1]))
        }
        shown.append({"user": s.user, "history": rated[-last:], "targets": [titles[t] for t in s.targets]} | sides)
    return shown
