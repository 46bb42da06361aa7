"""The test, once at the end: every row of the results on the same sessions, and the gain of each step."""

import functools
import importlib.metadata
import itertools
import json
import resource
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lpt_jax import audit, devices, files, metrics, ranking, report, text_audit
from lpt_jax import config as config_lib
from lpt_jax.baselines import counts as count
from lpt_jax.baselines import factors, sasrec, simple
from lpt_jax.data.sessions import prepare, training_items
from lpt_jax.errors import InputError
from lpt_jax.recommender import ProfileRecommender
from lpt_jax.run import used_sessions
from lpt_jax.trec import queries, ranks_of_run, read_run, write_best, write_qrels

UNTRAINED = "items_popularity"  # the row that trains nothing over which gains are stated too
SHUFFLED = "shuffled_profiles"  # the last stage's, each given to another user: what the profile itself adds
LAST, POPULARITY, PENALTIES, DECAYS, SIZES, SQUARES = (
    (3, 6, 12),
    (0.0, 0.01, 0.02, 0.05, 0.1, 0.2),
    (30.0, 100.0, 300.0, 1000.0),
    (0.5, 0.7, 0.8, 0.9, 0.95, 1.0),
    (16, 64, 256),
    (1e-3, 1e-2, 1e-1),
)  # that are tried


class Row(NamedTuple):
    """A row of the results: what its ranking is made by (ProfileRecommender.scored), and the profiles of a stage of training.

    audited: by what its texts' edits are audited. ended: which of the texts their writer ended, where they are this row's own.
    """

    name: str
    scored: tuple
    texts: list[str] | None = None
    audited: audit.Audited | None = None
    ended: list[bool] | None = None


def baseline_rows(r, untrained: dict):
    """The rows of config.evaluation.baselines that have a ranking; untrained: the embedder's weights as loaded."""
    sessions, counts = r.sessions["test"], r.data.popularity
    sequences = functools.cache(lambda: training_items(r.data))
    texts = functools.cache(lambda: r.raw_catalogue(untrained)[:, :-1])
    history = functools.cache(lambda split: r.embedder.embed_profiles(untrained, r.history_texts(split))[0])
    mean = functools.cache(lambda split, last: simple.items_mean(r.sessions[split], texts(), last))
    decayed = functools.cache(lambda split, decay: simple.decayed_mean(r.sessions[split], texts(), decay))
    svd = functools.cache(lambda: factors.fitted_svd(sequences(), len(counts), SIZES[-1]))
    bpr = functools.cache(
        lambda penalty: factors.fitted_bpr(sequences(), len(counts), SIZES[1], penalty, r.config.seed)
    )
    make = {
        "popularity": lambda: simple.popularity(sessions, counts),
        "last_item": lambda: simple.last_item(sessions, texts()),
        "items_popularity": lambda: best(
            r,
            lambda split, last, weight: simple.and_popularity(mean(split, last), texts(), counts, weight),
            itertools.product(LAST, POPULARITY),
        ),
        "decayed_items": lambda: best(
            r,
            lambda split, decay, weight: simple.and_popularity(decayed(split, decay), texts(), counts, weight),
            itertools.product(DECAYS, POPULARITY),
        ),
        "every_item": lambda: best(
            r, lambda split, decay: simple.every_item(r.sessions[split], texts(), decay), itertools.product(DECAYS)
        ),
        "bm25": lambda: (simple.BM25(r.history_texts("test"), r.data.catalogue.texts), None),
        "history_text": lambda: (history("test"), texts()),
        "history_popularity": lambda: best(
            r,
            lambda split, weight: simple.and_popularity(history(split), texts(), counts, weight),
            itertools.product(POPULARITY),
        ),
        "transitions": lambda: count.transitions(sessions, sequences(), counts),
        "item_knn": lambda: count.item_knn(sessions, sequences(), counts),
        "ease": lambda: best(
            r,
            lambda split, penalty: count.ease(r.sessions[split], sequences(), counts, penalty),
            itertools.product(PENALTIES),
        ),
        "svd": lambda: best(
            r, lambda split, size: factors.svd(r.sessions[split], counts, svd(), size), itertools.product(SIZES)
        ),
        "bpr": lambda: best(
            r, lambda split, penalty: factors.bpr(r.sessions[split], counts, bpr(penalty)), itertools.product(SQUARES)
        ),
        "sasrec": lambda: by_ids(r, sessions),
    }
    for name in config_lib.listed(r.config.evaluation.baselines):
        if name == "ease" and r.run.count > count.DENSE:
            print(f"lpt_jax: the row ease is left out: it inverts a matrix of items × items, here of {r.run.count:,}.")
        elif name in make:
            yield Row(name, make[name]())


def best(r: ProfileRecommender, make, grid) -> tuple:
    """make("test", *options) with those options of the grid that rank the validation users' targets best."""

    def value(options):
        return r.validation(r.rank("validation", *make("validation", *options)))[f"val/{r.config.evaluation.metric}"]

    return make("test", *max(grid, key=value))


def test(r: ProfileRecommender, rows, untrained: dict, note: dict, trec: bool = False) -> dict:
    """Ranks the full catalogue for all test sessions by every baseline and row; writes and prints the results.

    Args:
      rows: the system's Rows; those with texts are stages of training, in order, the first the untrained one.
      untrained: the embedder's weights as loaded.
      note: of the last checkpoint, with the seconds spent.
      trec: also write each row's best items, and the targets, as TREC files into the workdir's trec/.

    Returns:
      what results.json holds.
    """
    sessions, config, workdir = r.sessions["test"], r.config, r.run.workdir
    users, ranks, texts, audits, written = [s.user for s in sessions], {}, {}, {}, {}
    if trec and devices.first():
        (workdir / "trec").mkdir(exist_ok=True)
        relevant = [[r.data.catalogue.ids[i] for i in s.targets] for s in sessions]
        write_qrels(workdir / "trec/test.qrels", queries(sessions), relevant)
    if "random" in config_lib.listed(config.evaluation.baselines):  # draws ranks, and so has no list
        ranks["random"] = simple.random(sessions, r.run.count, config.seed)
    audits_of = auditor(r, untrained)
    for row in itertools.chain(baseline_rows(r, untrained), rows):
        ranks[row.name] = r.rank("test", *row.scored)
        if row.texts is not None:
            texts[row.name] = row.texts
        if row.audited is not None:
            written[row.name] = row.audited.texts
        if found := audits_of(row):
            audits[row.name] = found
        if trec:
            write_best(workdir / f"trec/{row.name}.run", sessions, r.data.catalogue.ids, *row.scored)
    names = list(texts)
    ranks = {name: ranks[name] for name in [*(name for name in ranks if name not in texts), *names]}
    values = {name: metrics.per_user(rank, users) for name, rank in ranks.items()}
    cold = of_cold_items(r, ranks, users)
    gains = gains_of({name: of for name, (_, of) in values.items()}, names, config)
    results = {
        "protocol": r.data.protocol,
        "rows": {name: metrics.table_row(v) for name, (_, v) in values.items()},
        **({"rows_of_cold_items": cold} if cold else {}),
        "gains": gains,
        "audit": audits,
        **about(r.run, note),
    }
    after = next(name for name in ("best_items", "best", names[-1]) if name in written | texts)
    results["samples"] = samples(r, {"before": names[0], "after": after}, written | texts, ranks)
    if devices.first():
        report.write_results(r.run.workdir, results, values)
        report.write(r.run.workdir, results, files.read_jsonl(r.run.workdir / "metrics.jsonl"))
    print(f"\n{results['protocol']}\n\n{report.results_table(results['rows'])}\n")
    if cold:
        print(f"Targets without a training interaction alone:\n\n{report.results_table(cold)}\n")
    if audits:
        print(f"{audit.table(audits)}\n\n{text_audit.table(audits)}\n")
    for name, gain in gains.items():
        print(f"{name}: {gain['metric']} {gain['mean']:+.4f} (95 % {gain['low']:+.4f} … {gain['high']:+.4f})")
    print(f"\nresults.json and report.html are in {r.run.workdir} ({results['seconds']:.0f} s of training)", flush=True)
    return results


def about(run, note: dict) -> dict:
    """What results.json says of a run: seed, settings, versions, devices, time, memory, and counts of its data."""
    peak, file, config = peak_gib(), run.workdir / "results.json", run.config
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}  # training's, where this tests again
    return {
        "seed": config.seed,
        "config": json.loads(config.to_json_best_effort()),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "flax", "optax", "transformers")},
        "devices": f"{run.mesh.size} × {run.mesh.devices.flat[0].device_kind}",
        "seconds": round(sum(note["seconds"].values()), 1),
        "seconds_of_phases": {name: round(s, 1) for name, s in note["seconds"].items()},
        "peak_memory_gib": max(peak, before.get("peak_memory_gib", 0)),
        "counts": run.data.counts,
    }


def gains_of(values: dict[str, dict], stages: list[str], config) -> dict[str, dict]:
    """The gain of each step of training, and of the last stages over what trains nothing, reads rules or others' profiles.

    values: by row, each metric's Float[users]; stages: the rows that are stages, in order.
    """
    metric, text = config.evaluation.metric, [name for name in stages if not name.endswith("_items")][-1]
    pairs = [
        (UNTRAINED, "summary"),
        (UNTRAINED, text),
        ("summary", text),
        (UNTRAINED, stages[-1]),
        (SHUFFLED, stages[-1]),
    ]
    pairs += [(UNTRAINED, "best"), ("summary", "best"), (text, "best"), (stages[-1], "best_items")]
    pairs += [*zip(stages, stages[1:]), (stages[0], stages[-1])]
    return {
        f"{a}->{b}": metrics.paired_bootstrap(
            values[a][metric], values[b][metric], config.seed, config.evaluation.bootstrap, metric
        )
        for a, b in dict.fromkeys(pairs)
        if a != b and {a, b} <= values.keys()
    }


def of_cold_items(r: ProfileRecommender, ranks: dict, users: list) -> dict[str, dict]:
    """The rows' metrics of those test targets alone that no training interaction has; {} if there are none."""
    targets = [s.targets for s in r.sessions["test"]]
    targets = ranking.padded(targets, max(map(len, targets), default=1))
    cold = (targets >= 0) & (r.data.popularity[np.maximum(targets, 0)] == 0)
    if not cold.any():
        return {}
    of_users = {name: metrics.per_user(np.where(cold, rank, 0), users)[1] for name, rank in ranks.items()}
    return {name: metrics.table_row(values) for name, values in of_users.items()}


def auditor(r: ProfileRecommender, untrained: dict):
    """What audits a row: what edits of its texts do (audit.py), and how the texts read where they are its own."""
    reader = functools.cache(lambda: text_audit.Reader(r, untrained))
    read = functools.cache(
        lambda texts, ended: reader()(list(texts), list(ended))
    )  # stages with one lm have the same texts

    queries = audit.Queries(r)

    def of(row: Row) -> dict:
        found = audit.audit(r, row.audited, queries=queries) if row.audited else {}
        if row.ended is not None and r.config.audit.profiles:
            found["text"] = read(tuple(row.audited.texts), tuple(row.ended))
        return found

    return of


def audit_alone(r: ProfileRecommender, rows, untrained: dict) -> dict[str, dict]:
    """The audit of a tested run's rows once more, into its results.json and report; printed, and by what was named too."""
    audits_of = auditor(r, untrained)
    found = {row.name: audited for row in rows if (audited := audits_of(row))}
    file = r.run.workdir / "results.json"
    results = json.loads(file.read_text(encoding="utf-8")) | {"audit": found}
    if devices.first():
        files.write_file(file, json.dumps(files.plain(results), indent=1, ensure_ascii=False) + "\n")
        report.write(r.run.workdir, results, files.read_jsonl(r.run.workdir / "metrics.jsonl"))
    print(
        f"\n{audit.table(found)}\n\n{audit.by_name(found)}\n\n{text_audit.table(found)}\n\nresults.json and report.html are in {r.run.workdir}",
        flush=True,
    )
    return found


def peak_gib() -> float:
    """The most memory that this process has had, in GiB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** (30 if sys.platform == "darwin" else 20), 2)


def by_ids(r: ProfileRecommender, tested: list) -> tuple[np.ndarray, np.ndarray]:
    """SASRec's states of the sessions and its items' vectors: trained, unless the workdir has it already."""
    path, settings = r.run.workdir / "sasrec.npz", r.config.sasrec

    def stop_if_asked():  # each process for itself: none waits for the others while it trains
        if r.run.interrupt and r.run.interrupt.asked:
            r.run.interrupt.stop("all but SASRec, which begins anew")

    if devices.any_process(not path.exists()):
        sequences, metric = training_items(r.data), r.config.evaluation.metric
        train = functools.partial(sasrec.train, sequences, r.run.count, r.sessions["validation"], settings)
        weights, _ = train(r.config.seed, metric, stop_if_asked)
        if devices.first():
            sasrec.save(path, weights)
    else:
        weights = dict(np.load(path, allow_pickle=False))
    return sasrec.states(weights, tested, settings.heads), weights["item"]


def score_run(config, workdir: Path, file: str) -> dict:
    """Scores another system's TREC run on the test's sessions; prints it beside the workdir's rows and writes trec/<file>.json.

    Returns:
      {"row": its metrics, "counts": what was passed over, "gain": over the last stage, if the workdir has been tested}.
    """
    data = prepare(config.data)
    tested = used_sessions(data, config.evaluation)["test"]
    names, run = queries(tested), read_run(file)
    if not run.keys() & set(names):
        raise InputError(
            f"--run={file}: none of its {len(run)} queries is one of this test's {len(names)}, such as {names[0]!r}: "
            "--mode=evaluate writes them all to trec/test.qrels."
        )
    ranks, counts = ranks_of_run(run, names, tested, data.catalogue.ids)
    _, values = metrics.per_user(ranks, [s.user for s in tested])
    results = {"row": metrics.table_row(values), "counts": counts, "protocol": data.protocol}
    name, metric, rows = f"run {Path(file).name}", config.evaluation.metric, {}
    if counts["targets not listed, ranked last"] and "@" not in metric:
        metric += "@10"  # over the whole ranking a list of only the best would look worse than it is
    if (workdir / "results.json").exists():
        tested = json.loads((workdir / "results.json").read_text(encoding="utf-8"))
        rows, last = tested["rows"], list(tested["gains"])[-1].split("->")[-1]
        with np.load(workdir / "per_user.npz") as arrays:
            results["gain"] = {"over": last} | metrics.paired_bootstrap(
                arrays[f"{last}/{metric}"], values[metric], config.seed, config.evaluation.bootstrap, metric
            )
    if devices.first():
        (workdir / "trec").mkdir(exist_ok=True)
        text = json.dumps(files.plain(results), indent=1, ensure_ascii=False)
        files.write_file(workdir / f"trec/{Path(file).name}.json", text + "\n")
    print(f"\n{data.protocol}\n\n{report.results_table(rows | {name: results['row']})}\n")
    print(*(f"{file}: {count} {what}" for what, count in counts.items() if count), sep="\n")
    if gain := results.get("gain"):
        print(f"{gain['over']}->{name}: {metric} {gain['mean']:+.4f} (95 % {gain['low']:+.4f} … {gain['high']:+.4f})")
    return results


def samples(r: ProfileRecommender, sides: dict[str, str], texts: dict, ranks: dict) -> list[dict]:
    """A few test sessions, drawn by the run's seed: history, profile before and after (sides: their rows), targets, ranks."""
    tested, titles = r.sessions["test"], r.data.catalogue.titles
    drawn = np.random.default_rng((r.config.seed, 12)).permutation(len(tested))
    rows = np.sort(drawn[: r.config.evaluation.samples])
    shown = []
    for i in rows:
        s, last = tested[i], r.config.prompt.history_items
        rated = [{"title": titles[item], "rating": s.ratings and s.ratings[j]} for j, item in enumerate(s.history)]
        told = {
            side: {"profile": texts[name][i], "ranks": [int(rank) for rank in ranks[name][i] if rank]}
            for side, name in sides.items()
        }
        shown.append({"user": s.user, "history": rated[-last:], "targets": [titles[t] for t in s.targets]} | told)
    return shown
