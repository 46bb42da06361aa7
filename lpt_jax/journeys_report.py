"""The report of interest journeys: tables, people's timelines coloured by journey, and what was written."""

from pathlib import Path

from lpt_jax.report import FAINT, INK, axes_of, curves_picture, gains_picture, how_blocks, new_figure, png, write_pages

LABELS = {
    **{
        "icpc": "ICPC, this run’s settings",
        "icpc_dense": "ICPC on vectors, ε .5",
        "icpc_terms": "ICPC on terms, ε .04",
    },
    **{"k_means_told": "k-means, told two", "ward_told": "Ward, told two", "average_told": "Average linkage, told two"},
    **{"k_means_global": "100 clusters of the catalogue", "co_occurrence": "100 clusters by who chose them"},
    **{"one_journey": "All in one journey", "random_name": "A random name", "titles": "The raw titles"},
    **{
        "frequent_words": "Three telling words (TF-IDF)",
        "zero_shot": "Language model, asked",
        "few_shot": "Language model, shown examples",
    },
    **{"prompt_tuning": "After prompt tuning", "fine_tuning": "After fine-tuning", "last_item": "The last item"},
    **{
        "prompt_tuning_best": "After prompt tuning, best of several",
        "fine_tuning_best": "After fine-tuning, best of several",
    },
    **{
        "mean_of_latest": "Mean of the latest five",
        "mean_of_all": "Mean of all items",
        "decayed_mean": "Decayed mean of all items",
    },
    **{"every_item": "Every item, decayed", "journeys": "Journeys, decayed"},
}
PARTS = {  # part of the results -> its title, its columns (metric -> what it is called), and what they mean
    "extraction": (
        "How well journeys are found",
        {"ari": "ARI", "nmi": "NMI", "recall": "Recall", "journeys": "Journeys"},
        "Mixes of two known collections taken apart. ARI: adjusted Rand index. Recall: the share of a collection that is in the journey "
        "which has most of it; one journey of everything has 1, so it says nothing alone. Told: that there are two.",
    ),
    "naming": (
        "How well journeys are named",
        {"top1": "Top 1", "cosine": "Cosine", "chrf": "chrF", "bleu": "BLEU", "others": "Others’"},
        "Top 1: the true name is the nearest of all test names by the embedder. Others’: the share of other collections for which "
        "a name is the nearest one; less is more special. Best of several: drawn names, by the embedder’s cosine with the items. BLEU says little of names of two words.",
    ),
    "histories": (
        "A name for each journey, or one for all",
        {"top1": "Top 1", "cosine": "Cosine", "chrf": "chrF"},
        "Of mixes of two collections: how near the nearest of the written names is to each of the two true ones. Two names have "
        "two chances.",
    ),
    "ranking": (
        "How well journeys rank",
        {"ndcg": "NDCG", "ndcg@10": "NDCG@10", "recall@10": "Recall@10"},
        "By vectors of titles alone: nothing is trained. Journeys and single items count less with age, as chosen on validation.",
    ),
}
PALETTE = ("#1f6f8b", "#c8553d", "#6a994e", "#7b5ea7", "#d4a017", "#3d5a80", "#b56576", "#588157")


def label(name: str) -> str:
    """A row's name in words; "far: icpc" and "a->b" too."""
    parts = []
    for part in name.split("->"):
        kind, colon, row = part.rpartition(": ")
        row, comma, rest = row.partition(", ")
        parts.append(kind.capitalize() + colon + LABELS.get(row, row.replace("_", " ")) + comma + rest)
    return " → ".join(parts)


def number(row: dict, metric: str) -> str:
    """A metric of a row as a text."""
    if row.get(metric) is None:
        return "–"
    return f"{row[metric]:.1f}" if metric in ("chrf", "bleu") else f"{row[metric]:.3f}"


def cells(part: str, row: dict) -> list[str]:
    """A row's numbers as texts, the first, its main metric, with its interval."""
    first, *others = (number(row, metric) for metric in PARTS[part][1])
    return [f"{first} ({row['interval']['low']:.3f} … {row['interval']['high']:.3f})", *others]


def columns(lines: list[list[str]]) -> list[str]:
    """Lines of cells as texts for a terminal, the first column to the left."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width) for place, (cell, width) in enumerate(zip(line, widths))
        )
        for line in lines
    ]


def tables(results: dict) -> str:
    """The results for a terminal."""
    lines = ["", results["protocol"]]
    for part, (title, names, _) in PARTS.items():
        rows = [[label(name), *cells(part, row)] for name, row in results[part].items()]
        if rows:
            lines += ["", title, *columns([["", *names.values()], *rows])]
    found = results["journeys"]
    few = sum(found[f"share with {n}"] for n in (1, 2, 3))
    words = f"Test users have {found['mean']:.1f} journeys, {few:.0%} of them one to three"
    lines += ["", f"{words}; {found['items kept']:.0%} of a history is in one."]
    if results["muted"].get("gone"):
        lines.append(muted_sentence(results["muted"]))
    lines.append("")
    for name, gain in results["gains"].items():
        lines.append(
            f"{label(name)}: {gain['metric']} {gain['mean']:+.4f} (95 % {gain['low']:+.4f} … {gain['high']:+.4f})"
        )
    return "\n".join(lines)


def interval(row: dict) -> str:
    """A mean with its interval."""
    return f"{row['mean']:.2f} ({row['low']:.2f} … {row['high']:.2f})"


def muted_sentence(found: dict) -> str:
    """What muting a journey does."""
    spoken, gone, kept = (interval(found[name]) for name in ("spoken", "gone", "kept"))
    return (
        f"Muting the journey that speaks for most of the top 20 ({spoken} of it; {found['users']} test users with two journeys or more): "
        f"{gone} of its items leave the list, and {kept} of the others stay."
    )


def timeline(sample: dict) -> bytes:
    """A PNG: a person's items from the oldest to the latest, one lane and one colour for each journey; dropped items are grey."""
    journeys, count = sample["journeys"], len(sample["titles"])
    figure = new_figure(figsize=(9, 1.1 + 0.42 * (len(journeys) + 1)))
    axes = axes_of(figure)
    inside = set()
    for lane, journey in enumerate(journeys):
        color, places = PALETTE[lane % len(PALETTE)], [place + 1 for place in journey["places"]]
        axes.plot(places, [lane] * len(places), "-o", color=color, linewidth=2, ms=8)
        inside |= set(journey["places"])
    alone = [place + 1 for place in range(count) if place not in inside]
    lanes = [(journey["name"] or "(no name)")[:48] for journey in journeys]
    if alone:
        axes.plot(alone, [len(journeys)] * len(alone), "o", color=FAINT, ms=8)
        lanes.append("in no journey")
    axes.set_yticks(range(len(lanes)), [name.replace("$", r"\$") for name in lanes])
    axes.set_ylim(len(lanes) - 0.4, -0.6)
    axes.set_xlim(0.4, count + 0.6)
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("item, oldest first", fontsize=9, color=INK)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    return png(figure)


def blocks(to, results: dict, curves: list[dict]):
    """The report's blocks from top to bottom, made by `to`, an Html or a Markdown."""
    yield to.heading(1, f"lpt_jax: {results['config']['name']}")
    yield to.paragraph(results["protocol"])
    for place, sample in enumerate(results["samples"]):
        if not place:
            yield to.heading(2, "People’s journeys")
        yield to.heading(3, f"User {sample['user']}")
        names = ", ".join(journey["name"] or "(no name)" for journey in sample["journeys"]) or "none"
        yield to.picture(f"timeline_{place}", timeline(sample), f"Timeline of user {sample['user']}: {names}")
        for journey in sample["journeys"]:
            titles = "; ".join(sample["titles"][at] for at in journey["places"])
            yield to.paragraph(f"{journey['name'] or '(no name)'}: {titles}")
    for part, (title, names, words) in PARTS.items():
        if not results[part]:
            continue
        rows = [[to.text(label(name)), *cells(part, row)] for name, row in results[part].items()]
        yield to.heading(2, title)
        yield to.table(["", *map(to.text, names.values())], rows)
        yield to.paragraph(words)
    if results["muted"].get("gone"):
        yield to.paragraph(muted_sentence(results["muted"]))
    if results["gains"]:
        yield to.heading(2, "Beside each other")
        by_metric = {}
        for name, gain in results["gains"].items():
            by_metric.setdefault(gain["metric"], {})[label(name)] = gain
        for metric, of_metric in by_metric.items():
            yield to.picture(f"gains_{metric}", gains_picture(of_metric), f"Gains in {metric} with their intervals")
        yield to.paragraph("95 % intervals by paired bootstrap over mixes, names or users.")
    for phase in ("prompt_tuning", "fine_tuning"):
        if picture := curves_picture(curves, phase, "cosine"):
            yield to.heading(2, f"{label(phase)}: learning curves")
            yield to.picture(phase, picture, f"Learning curves of {phase}")
    yield to.heading(2, "Names that were written")
    for one in results["names"]:
        yield to.paragraph(f"{one['name']}: {'; '.join(one['titles'])}")
        lines = [
            [to.text(label(row)), to.text(text or "(empty)")]
            for row, text in one["written"].items()
            if row not in ("titles", "random_name")
        ]
        yield to.table(["", "Name"], lines)
    yield from how_blocks(to, results)


def write(workdir: Path, results: dict, curves: list[dict]) -> None:
    """Writes report.html and its twin report.md into the workdir."""
    write_pages(workdir, lambda to: blocks(to, results, curves))
