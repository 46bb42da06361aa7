"""The documents' tables are what the committed results say."""

import json

import pytest

from experiments import tables
from tests.conftest import ROOT

PAGES = [page for pattern in tables.PAGES for page in sorted(ROOT.glob(pattern))]


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_no_table_is_typed_by_hand(page):
    text = page.read_text(encoding="utf-8")
    assert tables.written(text) == text, "python -m experiments.tables writes it anew"


def test_pages_have_tables_of_every_kind():
    found = [block[2] for page in PAGES for block in tables.BLOCK.finditer(page.read_text(encoding="utf-8"))]
    assert set(found) == set(tables.KINDS) and len(found) > 6


def test_a_table_follows_its_file(tmp_path, monkeypatch):
    results = {"rows": {"popularity": {"ndcg": 0.12345, "ndcg@10": 0.05, "recall@10": 1.0}}, "gains": {}}
    results["gains"]["zero_shot->cl"] = {"metric": "ndcg", "mean": -0.0042, "low": -0.0095, "high": 0.0011}
    (tmp_path / "a.json").write_text(json.dumps(results))
    text = f"x\n<!-- rows {tmp_path}/a.json popularity -->\nold\n<!-- end -->\ny\n<!-- gains {tmp_path}/a.json -->\n<!-- end -->\n"
    after = tables.written(text)
    assert (
        "| Popularity | .1235 | .0500 | 1.0000 |" in after
        and "old" not in after
        and after.startswith("x\n")
        and "\ny\n" in after
    )
    assert "| −.0042 | −.0095 … +.0011 |" in after and tables.written(after) == after


@pytest.mark.parametrize(
    "value, digits, sign, wanted", [(0.5, 2, False, ".50"), (-0.034, 2, True, "−.03"), (0.0, 4, True, "+.0000")]
)
def test_numbers(value, digits, sign, wanted):
    assert tables.number(value, digits, sign) == wanted
