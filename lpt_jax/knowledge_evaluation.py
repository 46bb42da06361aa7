"""How well a model that names items by codes does, beside what only counts: next items, candidates, stars, preferences."""

import itertools
from pathlib import Path

import numpy as np

from lpt_jax import audit, devices, evaluate, files, metrics, report, text_metrics, trec
from lpt_jax.baselines.stars import fit, predict
from lpt_jax.data.sessions import SPLITS
from lpt_jax.data.tasks import STARS, none_or_float
from lpt_jax.item_writer import ItemWriter

MAIN, GOOD = "ndcg@10", 4  # of the gains; stars that AUC calls good
FACTORS, PENALTIES = (4, 8, 16), (1.0, 3.0, 10.0, 30.0)  # of stars' baselines: what is tried on validation


def test(r: ItemWriter, weights: dict, note: dict, trec_files: bool) -> tuple[dict, dict]:
    """What results.json holds, and every row's metrics by user."""
    sessions = r.sessions["test"]
    users, cut = [session.user for session in sessions], told_by(r.config.search.beams)
    values = {name: metrics.per_user(ranks, users, cut) for name, ranks in ranks_of_rows(r, weights).items()}
    others = [name for name in values if name != "tasks"]
    settings = r.config.seed, r.config.evaluation.bootstrap
    results = {
        "protocol": r.data.protocol + " Codes are found by a beam; what it does not list counts as not found.",
        "rows": {name: metrics.table_row(of_row) for name, (_, of_row) in values.items()},
        "gains": {
            f"{other}->tasks": metrics.paired_bootstrap(
                values[other][1][MAIN], values["tasks"][1][MAIN], *settings, MAIN
            )
            for other in others
        },
        "candidates": candidates(r, weights),
        "preference": preference(r, weights),
        "stars": stars(r, weights),
        "explanations": explanations(r, weights),
        "audit": r.audit(weights),
        "tasks": r.tasks.weights(),
        **evaluate.about(r.run, note),
    }
    if trec_files:
        write_trec(r, weights)
    return results, values


def told_by(listed: int) -> list[str]:
    """The metrics that a list of so many items can tell."""
    return [name for name in metrics.NAMES if "@" in name and int(name.partition("@")[2]) <= listed]


def ranks_of_rows(r: ItemWriter, weights: dict) -> dict[str, np.ndarray]:
    """The ranks of the test's targets by every row."""
    found = {row.name: r.rank("test", *row.scored) for row in evaluate.baseline_rows(r, {})}
    numbers = np.array([int(i) if i.isdecimal() else -1 for i in r.data.catalogue.ids])
    if (numbers >= 0).all():
        found["next_ids"] = next_ids(r.sessions["test"], numbers)
        mixed = np.random.default_rng((r.config.seed, 44)).permutation(len(numbers))
        found["next_ids_shuffled"] = next_ids(r.sessions["test"], mixed)
    return found | r.more_rows(weights) | {"tasks": r.ranks(weights, r.sessions["test"])}


def next_ids(sessions, numbers: np.ndarray) -> np.ndarray:
    """Ranks Int[S, M] by a rule that knows ids alone: largest id of the history + 1, + 2, …; then all others.

    numbers: of each item. Where ids are given in the order of appearance it finds what people chose one after another.

    >>> from lpt_jax.data.sessions import Session
    >>> next_ids([Session("a", (1,), None, None, (2, 0), 0.0)], np.array([10, 11, 13, 12])).tolist()
    [[2, 2]]
    """
    width = max(len(session.targets) for session in sessions)
    ranks = np.zeros((len(sessions), width), np.int64)
    for line, session in zip(ranks, sessions, strict=True):
        ahead = np.where(numbers > numbers[list(session.history)].max(), numbers, numbers + numbers.max() + 1)
        for place, target in enumerate(session.targets):
            left = ahead < ahead[target]
            left[list(session.history)] = False
            left[[other for other in session.targets if other != target]] = False
            line[place] = 1 + left.sum()
    return ranks


def candidates(r: ItemWriter, weights: dict) -> dict:
    """The first target of each test session among search.candidates, the others drawn evenly of what the user hasn't: metrics."""
    rng, sessions, most = np.random.default_rng((r.config.seed, 45)), r.sessions["test"], r.config.search.candidates
    free = [np.setdiff1d(np.arange(r.run.count), [*s.history, *s.targets]) for s in sessions]
    most = min(most - 1, *map(len, free))
    drawn = [rng.choice(of_session, most, replace=False) for of_session in free]
    shown = np.array([[s.targets[0], *others] for s, others in zip(sessions, drawn, strict=True)])
    scores = r.likelihoods(weights, sessions, shown)
    ranks = 1 + (scores[:, 1:] > scores[:, :1]).sum(1, keepdims=True)
    _, values = metrics.per_user(ranks, [session.user for session in sessions], told_by(max(metrics.CUTOFFS)))
    return {"candidates": shown.shape[1]} | metrics.table_row(values)


def preference(r: ItemWriter, weights: dict) -> dict:
    """How often the first target is likelier than another item, drawn by popularity of what the user hasn't: the share, with
    its interval."""
    rng, sessions = np.random.default_rng((r.config.seed, 46)), r.sessions["test"]
    pairs = []
    for session in sessions:
        shares = r.data.popularity.astype(np.float64)
        shares[[*session.history, *session.targets]] = 0
        pairs.append([session.targets[0], rng.choice(r.run.count, p=shares / shares.sum())])
    scores = r.likelihoods(weights, sessions, np.array(pairs))
    won = scores[:, 0] > scores[:, 1]
    return metrics.mean_interval(won.astype(float), r.config.seed, r.config.evaluation.bootstrap)


# ---- stars


def rated(r: ItemWriter, split: str) -> list[tuple]:
    """(session, item, its stars) of a split's rated targets."""
    rows = r.data.rows
    part = np.flatnonzero(r.data.part == SPLITS.index(split))
    known = {(rows.user_ids[rows.user[i]], int(rows.item[i])): none_or_float(rows.rating[i]) for i in part}
    return [
        (session, item, known[session.user, item])
        for session in r.sessions[split]
        for item in session.targets
        if known.get((session.user, item)) is not None
    ]


def given_stars(r: ItemWriter) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Users, items and stars of the training interactions that have some."""
    stars = np.asarray(r.data.rows.rating, float)  # None is nan
    at = np.flatnonzero((r.data.part == 0) & ~np.isnan(stars))
    return r.data.rows.user[at], r.data.rows.item[at], stars[at]


def by_factors(r: ItemWriter, sizes: tuple[int, ...]) -> np.ndarray:
    """The stars of the test's rated targets by biases with as many factors, and the penalty, as do best on validation's."""
    given, asked = given_stars(r), {split: rated(r, split) for split in ("validation", "test")}
    truth = [stars for *_, stars in asked["validation"]]

    def told(split, size, penalty):
        fitted = fit(*given, r.run.count, size, penalty, r.config.seed)
        histories = [(session.history, session.ratings) for session, *_ in asked[split]]
        return predict(fitted, histories, [item for _, item, _ in asked[split]], penalty)

    options = list(itertools.product(sizes, PENALTIES))
    best = min(options, key=lambda option: np.sum((told("validation", *option) - truth) ** 2))
    return told("test", *best)


def stars(r: ItemWriter, weights: dict) -> dict:
    """RMSE, MAE and AUC (of GOOD stars or more) of the model's expected stars, of a constant, of biases and of factors; {} without stars."""
    if "rating" not in r.tasks.weights():
        return {}
    asked = rated(r, "test")
    truth = np.array([of_target for *_, of_target in asked])
    chances = r.stars(weights, [(session, item) for session, item, _ in asked])
    rows = {
        "constant": (np.full(len(asked), given_stars(r)[2].mean()), None),
        "biases": (by_factors(r, (0,)),) * 2,
        "factors": (by_factors(r, FACTORS),) * 2,
        "tasks": (chances @ np.arange(1, len(STARS) + 1) * r.tasks.scale, chances[:, GOOD - 1 :].sum(1)),
    }
    return {
        name: {
            "rmse": float(np.sqrt(np.mean((found - truth) ** 2))),
            "mae": float(np.mean(np.abs(found - truth))),
            "auc": None if order is None else auc(order, truth >= GOOD * r.tasks.scale),
            "ratings": len(asked),
        }
        for name, (found, order) in rows.items()
    }


def auc(scores: np.ndarray, good: np.ndarray) -> float | None:
    """How often a good one has a higher score than a bad one, ties counting half; None where there are not both."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(good, scores)) if 0 < good.sum() < len(good) else None


# ---- explanations


def explanations(r: ItemWriter, weights: dict) -> dict:
    """How near written explanations are to how the reviews of the test's targets begin (chrF, BLEU; sacrebleu), beside the
    beginning of another training review; the share that are written once; a few of them. {} where the task isn't learned."""
    if "explanation" not in r.tasks.weights():
        return {}
    rows, tokenizer = r.data.rows, r.lm.tokenizer
    part = np.flatnonzero(r.data.part == SPLITS.index("test"))
    texts = dict(zip([(rows.user_ids[rows.user[i]], int(rows.item[i])) for i in part], rows.review(part), strict=True))
    asked = [(s, item) for s in r.sessions["test"] for item in s.targets if (texts.get((s.user, item)) or "").strip()]

    def beginning(review):
        return tokenizer.decode(r.tasks.said(review), skip_special_tokens=True)

    true = [beginning(texts[session.user, item]) for session, item in asked]
    written = r.explain(weights, asked)
    known = [text for user in r.tasks.users for text in user.reviews if text.strip()]
    drawn = np.random.default_rng((r.config.seed, 47)).integers(len(known), size=len(asked))
    others = [beginning(known[number]) for number in drawn]
    found = {}
    for name, said in (("tasks", written), ("another_review", others)):
        near = text_metrics.by_sacrebleu([(text, [of]) for text, of in zip(said, true, strict=True)])
        found[name] = {metric: float(np.mean(values)) for metric, values in near.items()}
        found[name]["distinct"] = len(set(said)) / max(len(said), 1)
    titles, few = r.data.catalogue.titles, range(min(len(asked), r.config.evaluation.samples))
    samples = [{"item": titles[asked[i][1]], "written": written[i], "review": true[i]} for i in few]
    return {"rows": found, "samples": samples, "reviews": len(asked)}


# ---- what is shown


def write_trec(r: ItemWriter, weights: dict) -> None:
    """Writes the test's targets and the lists of the beam as TREC files into the workdir's trec/."""
    folder, sessions, ids = r.run.workdir / "trec", r.sessions["test"], r.data.catalogue.ids
    found, _ = r.found(weights, sessions, r.config.search.beams)  # by all processes
    if not devices.first():
        return
    folder.mkdir(exist_ok=True)
    names = trec.queries(sessions)
    trec.write_qrels(folder / "test.qrels", names, [[ids[i] for i in session.targets] for session in sessions])
    ranked = [[ids[item] for item in row if item >= 0] for row in found.tolist()]
    trec.write_run(folder / "tasks.run", names, ranked)


def tables(results: dict) -> str:
    """The results for a terminal."""
    lines = ["", results["protocol"], "", report.results_table(results["rows"]), ""]
    found, won = results["candidates"], results["preference"]
    lines.append(
        f"Among {found['candidates']} candidates: recall@1 {found['recall@1']:.4f}, recall@5 {found['recall@5']:.4f}, ndcg@10 {found['ndcg@10']:.4f}"
    )
    lines.append(
        f"The next item is likelier than another, drawn by popularity: {won['mean']:.3f} (95 % {won['low']:.3f} … {won['high']:.3f})"
    )
    for name, row in results["stars"].items():
        order = "–" if row["auc"] is None else f"{row['auc']:.3f}"
        lines.append(
            f"Stars, {name}: RMSE {row['rmse']:.4f}, MAE {row['mae']:.4f}, AUC {order} ({row['ratings']} ratings)"
        )
    for name, row in results["explanations"].get("rows", {}).items():
        lines.append(f"Explanations, {name}: {', '.join(f'{metric} {value:.3f}' for metric, value in row.items())}")
    if results["audit"]:
        lines += [audit.table(results["audit"]), ""]
    for name, gain in results["gains"].items():
        lines.append(f"{name}: {gain['metric']} {gain['mean']:+.4f} (95 % {gain['low']:+.4f} … {gain['high']:+.4f})")
    return "\n".join(lines)


def blocks(to, results: dict, curves: list[dict]):
    """The report's blocks from top to bottom, made by `to`, an Html or a Markdown."""
    yield to.heading(1, f"lpt_jax: {results['config']['name']}")
    yield to.paragraph(results["protocol"])
    yield from report.results_blocks(to, results["rows"])
    yield to.picture("gains", report.gains_picture(results["gains"]), f"Gains in {MAIN} over each row, with intervals")
    found, won = results["candidates"], results["preference"]
    yield to.heading(2, "Among candidates, and between two")
    yield to.paragraph(
        f"The next item among {found['candidates']} items, the others drawn evenly: recall@1 {found['recall@1']:.4f}, "
        f"ndcg@10 {found['ndcg@10']:.4f}. It is likelier than one drawn by popularity in {won['mean']:.1%} of cases "
        f"({won['low']:.1%} … {won['high']:.1%})."
    )
    if results["stars"]:
        yield to.heading(2, "Stars")
        rows = [
            [
                to.text(report.label(name)),
                f"{row['rmse']:.4f}",
                f"{row['mae']:.4f}",
                "–" if row["auc"] is None else f"{row['auc']:.3f}",
            ]
            for name, row in results["stars"].items()
        ]
        yield to.table(["", "RMSE", "MAE", "AUC"], rows)
    if results["explanations"]:
        yield to.heading(2, "Explanations")
        names = list(results["explanations"]["rows"]["tasks"])
        rows = [
            [to.text(report.label(row)), *(f"{of_row[name]:.3f}" for name in names)]
            for row, of_row in results["explanations"]["rows"].items()
        ]
        yield to.table(["", *map(to.text, names)], rows)
        shown = [
            [to.text(one[name]) for name in ("item", "written", "review")] for one in results["explanations"]["samples"]
        ]
        yield to.table(["Item", "Written", "The review begins"], shown)
    if results["audit"]:
        yield from report.audit_blocks(to, results["audit"], results["rows"], MAIN)
    if picture := report.curves_picture(curves, "tasks", MAIN):
        yield to.heading(2, "Learning curves")
        yield to.picture("tasks", picture, "Learning curves")
    yield from report.how_blocks(to, results)


def write_report(workdir: Path, results: dict) -> None:
    """Writes report.html and its twin report.md into the workdir."""
    curves = files.read_jsonl(Path(workdir) / "metrics.jsonl")
    report.write_pages(workdir, lambda to: blocks(to, results, curves))
