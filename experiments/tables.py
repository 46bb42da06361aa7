"""Writes the tables of README.md and docs/*.md from the results.json of runs, so that no figure is typed by hand.

    python -m experiments.tables

A table stands between two comments, and the first says what it is, of which file, and perhaps which rows:

    <!-- rows docs/movielens_results.json popularity,summary -->
    <!-- end -->

Kinds: rows, cold (rows of items without interactions), gains, seeds (the gains over several), edits (the audit of edits), texts (how profiles read), given_away (what is predicted of users), samples
(profiles before and after); of interest journeys: journeys (a part of the results), beside (the gains) and named (what was written).
"""

import json
import re
import sys
from pathlib import Path

from lpt_jax import files, journeys_report, report

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "docs/*.md")
BLOCK = re.compile(r"(<!-- (\w+) (\S+\.json)(?: (\S+))? -->\n)(?:(?!<!-- ).)*?(<!-- end -->)", re.DOTALL)
METRICS = {"ndcg": "NDCG (whole ranking)", "ndcg@10": "NDCG@10", "recall@10": "Recall@10"}
MARKDOWN = report.Markdown(ROOT)


def number(value, digits: int = 4, sign: bool = False) -> str:
    """A figure as the tables have it: .2119, +.0135, −.0042; a dash where there is none."""
    if value is None:
        return "–"
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return re.sub(r"^([+-]?)0\.", r"\1.", text).replace("-", "−")


def label(name: str) -> str:
    return MARKDOWN.text(report.label(name))


def table(head: list[str], lines: list[list[str]]) -> str:
    return MARKDOWN.table(head, lines) + "\n"


def rows(results: dict, names: list[str]) -> str:
    found = results["rows"]
    told = {name: words for name, words in METRICS.items() if all(name in found[row] for row in names or found)}
    lines = [[label(name), *(number(found[name][m]) for m in told)] for name in names or found]
    return table(["ranked by", *told.values()], lines)


def cold(results: dict, names: list[str]) -> str:
    """The rows for targets without a training interaction, their mean rank too, and NDCG over all targets beside them."""
    found, told = results["rows_of_cold_items"], {name: f"{words}, cold" for name, words in METRICS.items()}
    lines = [
        [
            label(name),
            *(number(found[name][m]) for m in told),
            f"{found[name]['mean_rank']:.0f}",
            number(results["rows"][name]["ndcg"]),
        ]
        for name in names or found
    ]
    return table(["ranked by", *told.values(), "mean rank, cold", "NDCG, all targets"], lines)


def interval(row: dict, digits: int = 4) -> str:
    return f"{number(row['low'], digits, True)} … {number(row['high'], digits, True)}"


def gains(results: dict, names: list[str]) -> str:
    lines = []
    for name in names or results["gains"]:
        row = results["gains"][name]
        value = number(row["mean"], sign=True)
        lines.append([label(name), f"**{value}**" if row["low"] > 0 else value, interval(row)])
    metric = next(iter(results["gains"].values())).get("metric", "ndcg")
    return table(["step", f"gain in {metric.upper()}", "95 % interval"], lines)


def seeds(results: dict, names: list[str]) -> str:
    """The gains of an experiment's first run, over its seeds."""
    return gains(next(iter(results["runs"].values())), names)


def edits(results: dict, names: list[str]) -> str:
    lines = []
    for name in names or [name for name, row in results["audit"].items() if row["like"] and row["dislike"]]:
        row = results["audit"][name]
        like, alone, dislike = row["like"], row["like_alone"], row["dislike"]
        lines.append([
            label(name),
            f"{number(like['change'], 2, True)} ({number(like['right'], 2)})",
            number(alone["share"], 2),
            f"{number(dislike['change'], 2, True)} ({number(dislike['right'], 2)} / {number(dislike['wrong'], 2)})",
            f"{dislike['obeyed']} of {dislike['attributes']}",
            number(dislike["kept"], 2),
        ])  # fmt: skip
    head = [
        "",
        "like appended: change (right)",
        "like alone: share",
        "dislike appended: change (right / wrong)",
        "dislikes obeyed",
        "kept",
    ]
    return table(head, lines)


def texts(results: dict, names: list[str]) -> str:
    lines = []
    for name in names or [name for name, row in results["audit"].items() if "text" in row]:
        row = results["audit"][name]["text"]
        shares = row["ended"], row["clean"], row["supported"]["claims"], row.get("telling")
        cells = (
            f"{number(s['mean'], 2)} ({number(s['low'], 2)} … {number(s['high'], 2)})" if s else "–" for s in shares
        )
        lines.append([label(name), *cells, f"{row['words']:.0f}", number(row["distinct"], 2)])
    return table(["", "ended", "clean", "supported", "telling", "words", "distinct"], lines)


def given_away(results: dict, names: list[str]) -> str:
    lines = []
    for name in names or [name for name, row in results["audit"].items() if "private" in row.get("text", {})]:
        for what, row in results["audit"][name]["text"]["private"].items():
            shares = (number(row[key], 2) for key in ("profile", "history", "majority"))
            lines.append([label(name), what, *shares, interval(row["over_history"], 2)])
    return table(
        [
            "",
            "predicted",
            "from the profile",
            "from the history",
            "always the most frequent",
            "profile − history, 95 %",
        ],
        lines,
    )


def samples(results: dict, names: list[str]) -> str:
    lines = [
        [*(MARKDOWN.text(sample[side]["profile"]) for side in ("before", "after"))] for sample in results["samples"]
    ]
    return "| before | after |\n|:--|:--|\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def journeys(results: dict, parts: list[str]) -> str:
    """The rows of one part of the results, its main metric with its interval."""
    (part,) = parts
    lines = [[MARKDOWN.text(journeys_report.label(name)), *(re.sub(r"\b0\.", ".", cell) for cell in journeys_report.cells(part, row))]
             for name, row in results[part].items()]  # fmt: skip
    return table(["", *journeys_report.PARTS[part][1].values()], lines)


def beside(results: dict, metrics: list[str]) -> str:
    """The gains in one metric."""
    lines = []
    for name, row in results["gains"].items():
        if row["metric"] in metrics:
            value = number(row["mean"], 3, True)
            lines.append(
                [
                    MARKDOWN.text(journeys_report.label(name)),
                    f"**{value}**" if row["low"] > 0 else value,
                    interval(row, 3),
                ]
            )
    return table(["", f"gain in {', '.join(metrics)}", "95 % interval"], lines)


def named(results: dict, ways: list[str]) -> str:
    """A dozen of the names that were written, beside the true ones."""
    lines = [
        [MARKDOWN.text(one["name"]), *(MARKDOWN.text(one["written"][way]) for way in ways)]
        for one in results["names"][:12]
    ]
    return table(["true name", *(journeys_report.label(way) for way in ways)], lines)


KINDS = {
    made.__name__: made
    for made in (rows, cold, gains, seeds, edits, texts, given_away, samples, journeys, beside, named)
}


def written(text: str) -> str:
    """A page with its tables written anew."""

    def made(block):
        results = json.loads((ROOT / block[3]).read_text(encoding="utf-8"))
        return f"{block[1]}\n{KINDS[block[2]](results, (block[4] or '').split(',') if block[4] else [])}\n{block[5]}"

    found = len(BLOCK.findall(text))
    if (ends := text.count("<!-- end -->")) != found:
        raise SystemExit(f"{ends} tables end and {found} begin as they should: mend the comments.")
    return BLOCK.sub(made, text)


def main() -> int:
    for page in sorted(page for pattern in PAGES for page in ROOT.glob(pattern)):
        before = page.read_text(encoding="utf-8")
        after = written(before)
        if after != before:
            files.write_file(page, after)
            print(f"{page.relative_to(ROOT)} is written anew")
    return 0


if __name__ == "__main__":
    sys.exit(main())
