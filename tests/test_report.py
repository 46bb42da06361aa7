"""The report: hostile text stays text, pictures are pictures, nothing is left half written."""

import base64
import html.parser
import json
import re

import numpy as np
import pytest

from lpt_jax import metrics, report

HOSTILE = (
    '<script>alert(1)</script> "><img src=x onerror=alert(2)> [a](javascript:b) ![i](http://e/x.png)\n'
    "# Heading | cell `code` **bold** http://evil.example www.evil.example\n- list\n1. one\n---\n"
    "\x00\ud800 &amp; ~~gone~~ $x$ <!-- --> | --- |"
)
ROWS = {"zero_shot": {"ndcg": 0.25, "ndcg@10": 0.5, "mean_rank": 12.0}}
ROWS |= {"cl": {"ndcg": 0.5, "ndcg@10": 0.5, "mean_rank": 3.0}, "bm_25": {"ndcg": 0.125}}


def results(text="plain"):
    gain = {"metric": "ndcg", "mean": 0.25, "low": 0.125, "high": 0.375}
    config = {"name": text, "evaluation": {"metric": "ndcg"}, "data": {"path": text}}
    found = {"protocol": text, "rows": ROWS, "gains": {"zero_shot->cl": gain}, "seed": 3}
    return found | {"config": config, "versions": {"jax": "1.2"}, "seconds_of_phases": {"policy": 90.0}}


def curves():
    place = {"iteration": 0, "step": 1}
    for step in range(3):
        at = place | {"global_step": step}
        yield at | {"phase": "contrastive", "loss": 1.0 / (1 + step), "accuracy": None}
        yield at | {"phase": "policy", "reward": 0.1, "kl": 0.0, "tied": 0.5}
        yield at | {"phase": "policy", "val/ndcg": 0.1 * step}


def sample(text="plain"):
    history = [{"title": text, "rating": 4.0}, {"title": "Heat", "rating": None}] * 15
    profiles = {"before": {"profile": "", "ranks": [7, 9]}, "after": {"profile": text, "ranks": [1, 2]}}
    return {"user": text, "history": history, "targets": [text, "Fargo"]} | profiles


class Tags(html.parser.HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.words = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.words.append(data)


def test_hostile_text_stays_text_in_html(tmp_path):
    report.write(tmp_path, results(HOSTILE) | {"samples": [sample(HOSTILE)]}, list(curves()))
    page = (tmp_path / "report.html").read_text()
    found, plain = Tags(page), Tags(report.Html().page("", list(report._blocks(
        report.Html(), results() | {"samples": [sample()]}, list(curves())))))  # fmt: skip
    assert found.tags == plain.tags  # the same elements as with harmless text
    assert {name for name, _ in found.attributes} == {name for name, _ in plain.attributes}
    text = "".join(found.words)
    shown = HOSTILE.replace("\x00", "").replace("\ud800", "")
    assert text.count(shown) == 1 + 1 + 1 + 10 + 1 + 1  # title, protocol, user, history, …


def test_hostile_text_stays_text_in_markdown(tmp_path):
    markdown_it = pytest.importorskip("markdown_it", reason="needs markdown-it-py")
    parser = markdown_it.MarkdownIt("commonmark", {"html": True}).enable("table")

    def kinds(text):
        report.write(tmp_path, results(text) | {"samples": [sample(text)]}, list(curves()))
        tokens = parser.parse((tmp_path / "report.md").read_text())
        inline = [child for token in tokens for child in token.children or []]
        return [token.type for token in tokens], [child.type for child in inline if child.type[:4] != "text"]

    # one paragraph per line of a quoted profile; else the same blocks and marks as harmless text
    hostile = kinds(HOSTILE)
    assert hostile[0] == kinds("plain")[0] and "html_inline" not in hostile[1]
    assert not {"link_open", "code_inline", "em_open", "s_open"} & set(hostile[1])
    assert hostile[1].count("image") == 3
    written = (tmp_path / "report.md").read_text()
    assert not re.search(r"\w://|www\.", written)


def test_pictures_are_in_the_file_and_nothing_is_fetched(tmp_path):
    report.write(tmp_path, results() | {"samples": [sample()]}, list(curves()))
    sources = [value for name, value in Tags((tmp_path / "report.html").read_text()).attributes
               if name in ("src", "href")]  # fmt: skip
    assert len(sources) == 3  # gains and the two phases' curves
    for source in sources:
        png = base64.b64decode(source.removeprefix("data:image/png;base64,"), validate=True)
        assert png.startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.glob("report_*")) == [
        "report_contrastive.png", "report_gains.png", "report_policy.png"]  # fmt: skip


def test_the_best_is_bold_and_ranks_are_there(tmp_path):
    report.write(tmp_path, results() | {"samples": [sample()]}, [])
    text = (tmp_path / "report.md").read_text()
    assert "| Profile after CL | **0.5000** | **0.5000** |" in text
    assert "| Zero-shot profile | **0.5000** | 0.2500 |" in text and "| bm 25 | – | 0.1250 |" in text
    assert "| Profile after CL | **3.0** |" in text and "| Fargo | 9 | 2 |" in text
    assert "| Zero-shot profile → Profile after CL | ndcg | +0.2500 | +0.1250 to +0.3750 |" in text
    assert "the last 20 of 30" in text and "\n11. plain — 4\n12. Heat\n" in text
    assert "learning curves" not in text and "(empty)" in text and "policy 1.5 min" in text


def test_a_bare_result_is_enough_and_a_failure_keeps_the_old_report(tmp_path):
    report.write(tmp_path, {"protocol": "p", "rows": {}}, [])
    old = (tmp_path / "report.html").read_bytes()
    with pytest.raises(KeyError):
        report.write(tmp_path, results() | {"samples": [{"user": "u"}]}, [])
    assert (tmp_path / "report.html").read_bytes() == old and not list(tmp_path.glob("*.part"))


def test_terminal_table_fits_and_stars_the_best():
    assert report.results_table(ROWS).split("\n") == [
        "                   ndcg@10      ndcg",
        "Zero-shot profile   0.5000*   0.2500",
        "Profile after CL    0.5000*   0.5000*",
        "bm 25                    –    0.1250",
        "",
        "                 mean_rank",
        "Zero-shot profile     12.0",
        "Profile after CL       3.0*",
        "bm 25                    –",
    ]
    full = dict.fromkeys(report.LABELS, dict.fromkeys(metrics.NAMES, 0.1))
    assert max(map(len, report.results_table(full).split("\n"))) <= 80


def test_results_and_per_user_values_round_trip(tmp_path):
    users, values = metrics.per_user(np.array([[1], [3]]), ["ü", "b"])
    found = results() | {"rows": {"cl": {"ndcg": np.float32(0.5), "mrr": float("nan")}}}
    report.write_results(tmp_path, found, {"cl": (users, values)})
    read = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert read["rows"] == {"cl": {"ndcg": 0.5, "mrr": None}} and read["gains"] == found["gains"]
    with np.load(tmp_path / "per_user.npz") as arrays:
        assert arrays["cl/users"].tolist() == ["ü", "b"] and arrays["cl/ndcg"].tolist() == [1, 0.5]
