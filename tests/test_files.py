"""Files are written whole, and a table's texts stay texts."""

import json

from pyarrow import parquet

from lpt_jax import files


def test_write_text_replaces_whole(tmp_path):
    files.write_file(tmp_path / "a.md", "old")
    files.write_file(tmp_path / "a.md", "new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.md", "new")]


def test_a_table_of_lines_keeps_texts_as_they_are(tmp_path):
    """Arrow alone would read dates and numbers out of texts."""
    records = [{"user": "2020-01-01", "n": 1, "ok": True}, {"user": 'ü\n\u2028\t"', "n": 2, "ok": False}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
    files.write_parquet(tmp_path / "a.parquet", tmp_path / "a.jsonl", {"user": "string", "n": "int64", "ok": "bool"})
    assert parquet.read_table(tmp_path / "a.parquet").to_pylist() == records
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "a.parquet"]
