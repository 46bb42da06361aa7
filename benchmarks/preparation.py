"""Preparing a large data set: seconds and peak memory, beside what reading its files alone takes.

    python benchmarks/made_up_reviews.py FOLDER
    python -m benchmarks.preparation FOLDER

Three processes, one after another: the reviews' bytes read once (the files are then in the page cache, if they fit),
Arrow's parser alone on the four fields that are kept and on the metadata (the parsing floor), and sessions.prepare with
the settings of configs/movies_tv_gemma.py. Writes benchmarks/results.json and the table of benchmarks/README.md.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import harness


def read(folder: Path) -> dict:
    """The bytes alone."""
    for path in folder.iterdir():
        with open(path, "rb") as file:
            while file.read(1 << 24):
                pass
    return {"bytes": sum(path.stat().st_size for path in folder.iterdir())}


def parse(folder: Path) -> dict:
    """Arrow's reader of lines of JSON, fields as the library asks for them."""
    import pyarrow as pa
    import pyarrow.json

    text, number = pa.string(), pa.float64()
    reviews = pa.schema([("user_id", text), ("parent_asin", text), ("timestamp", number), ("rating", number)])
    metadata = pa.schema([("parent_asin", text), ("title", text), ("price", text)])
    rows = {}
    for name, schema in (("Movies_and_TV.jsonl", reviews), ("meta_Movies_and_TV.jsonl", metadata)):
        options = pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
        blocks = pyarrow.json.ReadOptions(block_size=1 << 24)
        rows[name] = sum(batch.num_rows for batch in pyarrow.json.open_json(str(folder / name), blocks, options))
    return {"rows": rows}


def prepare(folder: Path) -> dict:
    """What a run does with them."""
    from lpt_jax import config
    from lpt_jax.data import sessions

    settings = config.load(str(harness.HERE.parent / "configs/movies_tv_gemma.py"), {"data.path": str(folder)})
    data = sessions.prepare(settings.data)
    return {"counts": data.counts, "sessions": {split: len(found) for split, found in data.sessions.items()}}


STEPS = {"read": read, "parse": parse, "prepare": prepare}


def main() -> None:
    """All steps, or the one that is named after the folder, here."""
    folder = sys.argv[1]
    if len(sys.argv) == 3:
        started = time.perf_counter()
        found = STEPS[sys.argv[2]](Path(folder))
        found |= {"seconds": time.perf_counter() - started}
        found |= {"peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
        return print(json.dumps(found))
    kept = {}
    for name in STEPS:
        command = [sys.executable, "-m", "benchmarks.preparation", folder, name]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=harness.HERE.parent)
        kept[name] = json.loads(done.stdout.splitlines()[-1])
        print(f"{name}: {kept[name]['seconds']:.1f} s, at most {kept[name]['peak_gib']:.2f} GiB", flush=True)
    harness.keep({"preparation": kept})


if __name__ == "__main__":
    main()
