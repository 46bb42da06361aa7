"""The report of a run: one HTML file that needs nothing else, its Markdown twin, results.json."""

import base64
import html
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lpt_jax.files import plain, write_file
from lpt_jax.metrics import NAMES
from lpt_jax.text_audit import TOLD, worst

SHOWN = 20  # items of a sample user's history
INK, ACCENT, SECOND, GREY, FAINT = "#1d2430", "#1f6f8b", "#c8553d", "#7a8594", "#d9dde3"
STYLE = """
body { font: 16px/1.55 Charter, Georgia, "Noto Serif", serif; color: #1d2430; background: #fff;
       max-width: 60rem; margin: 3rem auto; padding: 0 1.5rem; }
h1, h2, h3 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; font-weight: 600; }
h2 { font-size: 1.25rem; margin: 2.8rem 0 .6rem; } h3 { font-size: 1rem; margin: 2rem 0 .4rem; }
p, li { max-width: 44rem; } ol { margin: .3rem 0; } .scroll { overflow-x: auto; }
table, pre, h4 { font: 14px/1.5 system-ui, "Noto Sans", sans-serif; }
table { font-variant-numeric: tabular-nums; border-collapse: collapse; margin: .6rem 0 1.2rem; }
td, th { padding: .32rem 0 .32rem 1.4rem; text-align: right; border-bottom: 1px solid #e8ebef; }
th { font-weight: 600; border-bottom: 1.5px solid #1d2430; min-width: 4.6rem; }
td:first-child, th:first-child { text-align: left; padding-left: 0; min-width: 12rem; }
img { max-width: 100%; height: auto; display: block; margin: .8rem 0; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1.5rem; align-items: start; }
.pair h4 { margin: .6rem 0 .3rem; font-weight: 600; color: #5b6573; }
blockquote { margin: 0; padding: .1rem 0 .1rem 1rem; border-left: 3px solid #d9dde3; }
blockquote, pre { white-space: pre-wrap; overflow-wrap: anywhere; }
pre { background: #f6f7f9; padding: 1rem; }
@media (max-width: 42rem) { .pair { grid-template-columns: 1fr; } }
"""
LABELS = {  # what the rows of the results are called in words; others by their own name
    **{"random": "Random", "popularity": "Popularity", "last_item": "Last item’s text"},
    **{
        "bm25": "BM25 on the raw text",
        "sasrec": "SASRec on item ids",
        "ease": "EASE on item ids",
        "svd": "SVD of who chose what",
        "bpr": "BPR on item ids",
    },
    **{"items_popularity": "Items’ mean + popularity", "history_popularity": "Raw text + popularity"},
    **{
        "decayed_items": "Decayed mean + popularity",
        "every_item": "Nearest of all items",
        "joined_profiles": "All lines as one",
    },
    **{
        "next_ids": "Largest id + 1, + 2, …",
        "next_ids_shuffled": "The same, ids mixed",
        "tasks": "The model after its tasks",
        "profile_alone": "The model, by profile alone",
    },
    **{"user_knn": "The nearest people’s items"},
    **{"transitions": "Transition counts", "item_knn": "Item-kNN", "summary": "Summary by rules"},
    "best": "Best of several profiles",
    "shuffled_profiles": "Another user’s profile",
    **{"history_text": "History’s raw text", "history_trained": "History’s raw text, trained"},
    **{"start": "Profile at the start", "zero_shot": "Zero-shot profile"},
}
STEPS = {
    "kn": "knowledge",
    "sft": "imitation",
    "cl": "CL",
    "rlso": "RLSO",
}  # of training: "cl_rlso" is the profile after CL + RLSO
SUFFIXES = {"_items_history": " + items + history", "_items": " + items"}  # of rows, in words
EDITS = {  # kinds of edits (lpt_jax/audit.py) in words
    **{"like": "a like appended", "like_alone": "a like alone", "dislike": "a dislike appended"},
    **{"avoid_alone": "a dislike alone", "replace": "a name replaced"},
}
TABLES = (("ndcg",), ("recall", "mean_rank"), ("mrr",))  # families of metrics side by side
PANELS = {  # of the learning curves: a record's key and its title; METRIC is the validation's
    "knowledge": {"loss": "Next-token loss, nats", "METRIC": "Validation"},
    "imitation": {"loss": "Next-token loss, nats", "METRIC": "Validation"},
    "prompt_tuning": {"loss": "Next-token loss, nats", "METRIC": "Validation"},
    "fine_tuning": {"loss": "Next-token loss, nats", "METRIC": "Validation"},
    "tasks": {"loss": "Loss, nats", "loss/retrieval": "Loss of the next item, nats", "METRIC": "Validation"},
    "contrastive": {"loss": "InfoNCE loss", "accuracy": "In-batch accuracy", "METRIC": "Validation"},
    "policy": {
        **{"reward": "Mean reward, training", "METRIC": "Validation", "kl": "KL to the reference"},
        **{"profile_tokens": "Profile length, tokens", "invalid": "Invalid profiles, share"},
        "tied": "Users whose rewards all tie, share",
    },
}
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")  # what neither format can hold


def label(name: str) -> str:
    """A row's name, or a step's ("a->b"), in words."""
    parts = [part.strip() for part in name.split("->")]
    times = [re.fullmatch(r"(\w+)_x(\d+)", part) for part in parts]  # cl_rlso_x5
    parts = [(t[1], f", {t[2]} times") if t else (part, "") for t, part in zip(times, parts, strict=True)]
    return " → ".join(_known(part) + end for part, end in parts)


def _known(name: str) -> str:
    """A row's name in words; what items learned and the history are told behind those of the row without them."""
    for suffix, words in SUFFIXES.items():
        if name.endswith(suffix) and name not in LABELS:
            text = re.sub("^Profile after | by rules$| profiles$", "", _known(name.removesuffix(suffix)))
            return text[:1].upper() + text[1:] + words
    steps = name.split("_")
    if STEPS.keys() >= set(steps):
        return f"Profile after {' + '.join(STEPS[step] for step in steps)}"
    return LABELS.get(name, name.replace("_", " "))


def _number(value, metric: str) -> str:
    return "–" if value is None else f"{value:.1f}" if metric == "mean_rank" else f"{value:.4f}"


def _tables(rows: dict):
    """For each family in TABLES its metrics, texts [row][column], and the places of the best."""
    for families in TABLES:
        known = [m for m in NAMES if m.partition("@")[0] in families]
        names = [m for m in known if any(row.get(m) is not None for row in rows.values())]
        texts = [[_number(row.get(m), m) for m in names] for row in rows.values()]
        best = set()
        for column, metric in enumerate(names):
            values = [row[metric] for row in rows.values() if row.get(metric) is not None]
            top = _number(min(values) if metric == "mean_rank" else max(values), metric)
            best |= {(r, column) for r, line in enumerate(texts) if line[column] == top}
        if names:
            yield names, texts, best


def results_table(rows: dict[str, dict[str, float]]) -> str:
    """The results for a terminal, 80 columns wide, the best of each column starred."""
    width, lines = max(map(len, map(label, rows)), default=0), []
    for names, texts, best in _tables(rows):
        lines += ["", " " * width + " ".join(name.rjust(9) for name in names)]
        for r, (name, line) in enumerate(zip(rows, texts, strict=True)):
            cells = (text.rjust(9) + " *"[(r, c) in best] for c, text in enumerate(line))
            lines.append((label(name).ljust(width) + "".join(cells)).rstrip())
    return "\n".join(lines[1:])


def new_figure(figsize: tuple):
    """An empty matplotlib Figure, which is imported only where something is drawn."""
    from matplotlib.figure import Figure

    return Figure(figsize=figsize, layout="constrained")


def axes_of(figure, *place):
    axes = figure.add_subplot(*place)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(labelcolor=INK, labelsize=9, color=FAINT)
    return axes


def png(figure) -> bytes:
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    figure.savefig(buffer := io.BytesIO(), format="png", dpi=150)
    return buffer.getvalue()


def draw_gains(axes, gains: dict[str, dict]) -> None:
    """Each gain as a point with its interval, one below the other, zero marked; colours where the interval is beyond it."""
    axes.axvline(0, color=INK, linewidth=0.8)
    for y, gain in enumerate(gains.values()):
        color = ACCENT if gain["low"] > 0 else SECOND if gain["high"] < 0 else GREY
        axes.plot([gain["low"], gain["high"]], [y, y], color=color, linewidth=2)
        axes.plot(gain["mean"], y, "o", color=color)
    axes.set_yticks(range(len(gains)), [name.replace("$", r"\$") for name in gains])
    axes.set_ylim(len(gains) - 0.5, -0.5)
    axes.locator_params(axis="x", nbins=5)


def gains_picture(gains: dict) -> bytes:
    """A PNG of each step's gain as a point with its interval, zero marked."""
    figure = new_figure(figsize=(8, 0.9 + 0.42 * len(gains)))
    axes = axes_of(figure)
    draw_gains(axes, {label(name): gain for name, gain in gains.items()})
    metrics = sorted({gain["metric"] for gain in gains.values()})
    axes.set_xlabel(f"gain in {', '.join(metrics)}", fontsize=9, color=INK)
    return png(figure)


def control_picture(audits: dict[str, dict], rows: dict[str, dict], metric: str) -> bytes:
    """A PNG of accuracy beside control: for each audited row its metric, and what likes and dislikes appended change."""
    figure = new_figure(figsize=(9, 1.3 + 0.36 * len(audits)))
    accuracy, control = axes_of(figure, 1, 2, 1), axes_of(figure, 1, 2, 2)
    places = range(len(audits))
    accuracy.plot([rows[name][metric] for name in audits], places, "o", color=INK)
    accuracy.set_yticks(places, [label(name).replace("$", r"\$") for name in audits])
    accuracy.set_title(f"accuracy: {metric}", fontsize=10, color=INK, loc="left")
    control.axvline(0, color=INK, linewidth=0.8)
    for kind, color, what in (("like", ACCENT, "a like appended"), ("dislike", SECOND, "a dislike appended")):
        found = [(place, audits[name][kind]) for place, name in zip(places, audits) if audits[name].get(kind)]
        for place, row in found:
            control.plot([row["low"], row["high"]], [place, place], color=color, linewidth=2)
        control.plot([row["change"] for _, row in found], [place for place, _ in found], "o", color=color, label=what)
    control.set_yticks(places, [""] * len(audits))
    control.set_title("change of what is named, top 20", fontsize=10, color=INK, loc="left")
    control.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2)
    for axes in (accuracy, control):
        axes.set_ylim(len(audits) - 0.5, -0.5)
        axes.grid(axis="y", color=FAINT, linewidth=0.6)
        axes.set_axisbelow(True)
    return png(figure)


def audit_blocks(to, audits: dict[str, dict], rows: dict[str, dict], metric: str):
    """What edits do, as a table and a picture."""
    lines = []
    for name, found in audits.items():
        for kind, what in EDITS.items():
            if not (row := found.get(kind)):
                continue
            right, kept = ("–" if row[key] is None else f"{row[key]:.2f}" for key in ("right", "kept"))
            change = f"{row['change']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})"
            counts = f"{row['obeyed']} of {row['attributes']}"
            lines.append([to.text(label(name)), what, change, right, f"{row['wrong']:.2f}", counts, kept])
    yield to.heading(2, "What a profile’s words do")
    yield to.table(["", "Edit", "Change (95 % interval)", "Right", "Wrong", "Obeyed", "Kept"], lines)
    yield to.picture("control", control_picture(audits, rows, metric), "Accuracy against control")
    yield to.paragraph(
        "Change: of the share of the named genre, category, brand or decade in the top 20, when a sentence in words that "
        "training never uses is appended to a profile, stands alone, or replaces a name. Right and wrong: the share of pairs "
        "of a profile and a name that moved so (right, of a dislike: of those whose list had it). Obeyed: names for which it "
        "moved the right way on average. Kept: of the listed items that have not what is named, those that still are."
    )


def text_blocks(to, audits: dict[str, dict]):
    """How the profiles read, as a table, with each stage's defects below."""
    texts = {label(name): found["text"] for name, found in audits.items() if found.get("text")}
    if not texts:
        return
    lines = []
    for name, text in texts.items():
        shares = text["ended"], text["clean"], text["supported"]["claims"], text.get("telling")
        cells = (f"{s['mean']:.2f} ({s['low']:.2f} to {s['high']:.2f})" if s else "–" for s in shares)
        lines.append([to.text(name), *cells, f"{text['words']:.1f}", f"{text['distinct']:.2f}"])
    yield to.heading(2, "How the profiles read")
    yield to.table(["", "Ended", "Clean", "Supported", "Telling", "Words", "Distinct"], lines)
    yield to.paragraph(
        "Shares with their 95 % intervals over users. Ended: by the writer itself. Clean: without a plain defect. Supported: of "
        "the titles and attributes that a profile names, those that are in the history shown. Telling: the untrained embedder "
        f"finds the right history among {TOLD} by the profile. Words: in a profile. Distinct: no other user has the same text."
    )
    for name, text in texts.items():
        yield to.paragraph(f"{name}. {worst(text)}")


def curves_picture(records: list[dict], phase: str, metric: str) -> bytes | None:
    """A PNG of a phase's learning curves over the run's steps; None where there are no records."""
    panels = []
    for key, title in PANELS[phase].items():
        key, title = (f"val/{metric}", f"{title}: {metric}") if key == "METRIC" else (key, title)
        lines = {}  # by iteration: between two of them another phase ran
        for r in records:
            if r["phase"] == phase and r.get(key) is not None:
                lines.setdefault(r["iteration"], []).append((r["global_step"], r[key]))
        panels += [(key, title, lines)] if lines else []
    if not panels:
        return None
    rows = -(-len(panels) // 3)
    figure = new_figure(figsize=(10, 2.7 * rows))
    for place, (key, title, lines) in enumerate(panels, 1):
        axes = axes_of(figure, rows, 3, place)
        for points in lines.values():
            marker, color = "o" if len(points) < 30 else None, SECOND if "/" in key else ACCENT
            axes.plot(*zip(*points, strict=True), color=color, linewidth=1.5, marker=marker, ms=3.5)
        if title.endswith("share"):
            axes.set_ylim(-0.03, 1.03)
        axes.set_title(title, fontsize=10, color=INK, loc="left")
        axes.locator_params(axis="x", integer=True, nbins=6)
        axes.set_xlabel("step", fontsize=9, color=INK)
    return png(figure)


class Html:
    """The report's blocks as HTML: every text is escaped, pictures are in the file itself."""

    def text(self, text):
        return html.escape(CONTROL.sub("", str(text)))

    def heading(self, level, text):
        return f"<h{level}>{self.text(text)}</h{level}>"

    def paragraph(self, text):
        return f"<p>{self.text(text)}</p>"

    def bold(self, text):
        return f"<b>{text}</b>"

    def table(self, head, rows):
        lines = [f"<th>{'</th><th>'.join(head)}</th>"]
        lines = "</tr>\n<tr>".join(lines + [f"<td>{'</td><td>'.join(row)}</td>" for row in rows])
        return f'<div class="scroll"><table><tr>{lines}</tr></table></div>'

    def picture(self, name, png, alt):
        data = base64.b64encode(png).decode()
        return f'<img alt="{self.text(alt)}" src="data:image/png;base64,{data}">'

    def items(self, texts, start):
        items = "".join(f"<li>{self.text(text)}</li>" for text in texts)
        return f'<ol start="{start}">{items}</ol>'

    def quotes(self, quotes):
        pair = [(self.text(title), self.text(quote)) for title, quote in quotes.items()]
        pair = [f"<div><h4>{t}</h4><blockquote>{q}</blockquote></div>" for t, q in pair]
        return f'<div class="pair">{"".join(pair)}</div>'

    def code(self, title, text):
        return f"<details><summary>{title}</summary><pre>{self.text(text)}</pre></details>"

    def page(self, title, blocks):
        head = f'<meta charset="utf-8"><title>{self.text(title)}</title><style>{STYLE}</style>'
        head += '<meta name="viewport" content="width=device-width, initial-scale=1">'
        body = "\n".join(["<body>", *blocks, "</body>"])
        return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n{body}</html>\n'


class Markdown:
    """The same blocks as Markdown: texts escaped as well, pictures in files beside it."""

    def __init__(self, folder):
        self.folder = folder

    def text(self, text):
        text = " ".join(CONTROL.sub("", str(text)).split())
        text = re.sub(r"[\\`*_\[\]<>|~$&#]|(?<=\w):(?=//)|(?<=www)\.", r"\\\g<0>", text)
        return re.sub(r"^(\d*)([-+=]|(?<=\d)[.)])(?=[\s=-]|$)", r"\1\\\2", text)  # lists, rules

    def heading(self, level, text):
        return f"{'#' * level} {self.text(text)}"

    def paragraph(self, text):
        return self.text(text)

    def bold(self, text):
        return f"**{text}**"

    def table(self, head, rows):
        lines = [head, [":--"] + ["--:"] * (len(head) - 1), *rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def picture(self, name, png, alt):
        write_file(self.folder / f"report_{name}.png", png)
        return f"![{self.text(alt)}](report_{name}.png)"

    def items(self, texts, start):
        return "\n".join(f"{n}. {self.text(text)}" for n, text in enumerate(texts, start))

    def quotes(self, quotes):
        lines = {t: [f"> {self.text(line)}" for line in q.split("\n")] for t, q in quotes.items()}
        return "\n\n".join(f"**{title}**\n\n" + "\n".join(quote) for title, quote in lines.items())

    def code(self, title, text):
        lines = CONTROL.sub("", text).split("\n")
        return f"{title}:\n\n" + "\n".join(f"    {line}" for line in lines)

    def page(self, title, blocks):
        return "\n\n".join(blocks) + "\n"


def results_blocks(to, rows: dict[str, dict[str, float]]):
    """The results' tables, made by `to`, an Html or a Markdown, and what they mean."""
    for names, texts, best in _tables(rows):
        lines = []
        for r, (name, line) in enumerate(zip(rows, texts, strict=True)):
            cells = [to.bold(text) if (r, c) in best else text for c, text in enumerate(line)]
            lines.append([to.text(label(name)), *cells])
        yield to.table(["", *map(to.text, names)], lines)
    yield to.paragraph(
        "Means over test users, the best of a column in bold. Without @k a metric is over the "
        "whole ranking. Of mean_rank less is better, of all others more."
    )


def _blocks(to, results, curves):
    """The report's blocks from top to bottom, made by `to`, an Html or a Markdown."""
    gains, config = results.get("gains", {}), results.get("config", {})
    yield to.heading(1, f"lpt_jax: {config.get('name', 'results')}")
    yield to.paragraph(results["protocol"])
    yield to.heading(2, "Results")
    yield from results_blocks(to, results["rows"])
    if results.get("rows_of_cold_items"):
        yield to.heading(2, "Targets without a training interaction alone")
        yield from results_blocks(to, results["rows_of_cold_items"])
    if gains:
        yield to.heading(2, "What each step gained")
        lines = []
        for name, g in gains.items():
            interval = f"{g['low']:+.4f} to {g['high']:+.4f}"
            lines.append([to.text(label(name)), g["metric"], f"{g['mean']:+.4f}", interval])
        yield to.table(["Step", "Metric", "Gain", "95 % interval"], lines)
        yield to.picture("gains", gains_picture(gains), "Each step's gain with its interval")
        yield to.paragraph("Intervals by paired bootstrap over users.")
    metric = config.get("evaluation", {}).get("metric", "ndcg")
    if results.get("audit"):
        yield from audit_blocks(to, results["audit"], results["rows"], metric)
        yield from text_blocks(to, results["audit"])
    phases = {
        "knowledge": "Knowledge",
        "imitation": "Imitation",
        "contrastive": "Contrastive learning",
        "policy": "Policy (RLSO)",
    }
    for phase, title in phases.items():
        if picture := curves_picture(curves, phase, metric):
            yield to.heading(2, f"{title}: learning curves")
            yield to.picture(phase, picture, f"Learning curves of the {phase} phase")
    samples = results.get("samples", [])
    if samples:
        yield to.heading(2, "Users, before and after")
    for sample in samples:
        yield to.heading(3, f"User {sample['user']}")
        ratings = [h.get("rating") for h in sample["history"]]
        ratings = ["" if r is None or r != r else f" — {r:g}" for r in ratings]  # NaN is none
        history = [h["title"] + r for h, r in zip(sample["history"], ratings, strict=True)]
        start = max(len(history) - SHOWN, 0)
        shown = f", the last {SHOWN} of {len(history)}" if start else ""
        yield to.paragraph(f"History{shown}, oldest first" + ", with ratings" * any(ratings) + ":")
        yield to.items(history[start:], start + 1)
        ranks = zip(sample["before"]["ranks"], sample["after"]["ranks"], strict=True)
        targets = map(to.text, sample["targets"])
        lines = [[title, *map(str, pair)] for title, pair in zip(targets, ranks, strict=True)]
        yield to.table(["Next item", "Rank before", "Rank after"], lines)
        texts = {f"Profile {w}": sample[w]["profile"] or "(empty)" for w in ("before", "after")}
        yield to.quotes(texts)
    yield from how_blocks(to, results)


def how_blocks(to, results: dict):
    """How a run was made: seed, time, versions, settings; made by `to`, an Html or a Markdown."""
    yield to.heading(2, "How it was run")
    versions = ", ".join(f"{name} {v}" for name, v in results.get("versions", {}).items())
    each = results.get("seconds_of_phases") or {"in all": results.get("seconds") or 0}
    spent = ", ".join(f"{name} {s / 60:.1f} min" for name, s in each.items())
    where = f" on {results['devices']}" if "devices" in results else ""
    yield to.paragraph(f"Seed {results.get('seed')}. Time{where}: {spent}. Versions: {versions}.")
    yield to.code("All settings", json.dumps(plain(results.get("config", {})), indent=1, ensure_ascii=False))


def write(workdir, results: dict, curves: list[dict]) -> None:
    """Writes report.html and its twin report.md (with its report_*.png) into the workdir.

    `results` is results.json's content and `curves` are metrics.jsonl's records. One of the results' "samples" is {"user",
    "history": [{"title", "rating"}], "targets": [title], "before" and "after": {"profile", "ranks"}}, a rank for each target.
    """
    write_pages(workdir, lambda to: _blocks(to, results, curves))


def write_pages(workdir, blocks: Callable) -> None:
    """Writes report.html and report.md of what blocks(to) yields, made by `to`, an Html or a Markdown."""
    for to, name in ((Html(), "report.html"), (Markdown(Path(workdir)), "report.md")):
        write_file(Path(workdir) / name, to.page("lpt_jax report", list(blocks(to))))


def write_results(workdir, results: dict, per_user: dict[str, tuple]) -> None:
    """Writes results.json, and per_user.npz with the arrays "row/users" and "row/metric".

    `per_user` holds for every row what metrics.per_user returns.
    """
    arrays = {f"{row}/users": np.array(users, str) for row, (users, _) in per_user.items()}
    for row, (_, values) in per_user.items():
        arrays |= {f"{row}/{metric}": of_users for metric, of_users in values.items()}
    np.savez_compressed(buffer := io.BytesIO(), **arrays)
    write_file(Path(workdir) / "per_user.npz", buffer.getvalue())
    text = json.dumps(plain(results), indent=1, ensure_ascii=False)
    write_file(Path(workdir) / "results.json", text + "\n")
