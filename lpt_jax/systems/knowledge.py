"""Recommendation knowledge (arXiv 2404.00245): a language model learns the next item together with tasks that interactions and titles give.

code  = a few digits for each item                         # alike where items are (data/codes.py)
text  = a sentence with codes, titles, stars               # data/tasks.py
for each step:
    task = retrieval | ranking | rating | hidden item | hidden words | preference | explanation     # drawn by weight
    lm   = update(−mean log p(the code's digits, or the words | text))                # learning/tasks.py
list  = beam over the trie of codes, the history hidden    # search.py
"""

import json
import os
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from lpt_jax import devices, files, knowledge_evaluation, report, train
from lpt_jax import export as export_lib
from lpt_jax import recommend as recommend_lib
from lpt_jax.data.sessions import Session, known_session
from lpt_jax.data.tasks import STARS
from lpt_jax.errors import InputError
from lpt_jax.item_writer import ItemWriter
from lpt_jax.learning import optimisers
from lpt_jax.learning.loop import Part, Phase
from lpt_jax.learning.tasks import TasksPhase
from lpt_jax.models import weights as weights_lib
from lpt_jax.models.t5 import T5
from lpt_jax.run import Run

TRAINS, STEPS = {"tasks": "lm"}, {"tasks": "tasks"}  # phase -> the part that it trains, and its name in results
SAME = (
    *(
        f"lm.{name}"
        for name in ("kind", "source", "dtype", "width", "layers", "decoder_layers", "heads", "hidden", "vocab")
    ),
    *("data", "codes", "tasks.titles", "embedder.source"),
    *("tasks.trains", "tasks.last_layers", "tasks.lora"),
)  # of begin_from


CARD = """from lpt_jax.models.{module} import {kind}  # transformers reads the folder too, without the codes' words
lm = {kind}.load("lm", levels={levels}, digits={width})  # an item's code: codes.json
logits = lm.code_logits(lm.decode(lm.encode(tokens, mask), mask, written))  # of the next item's digits"""


def build(run: Run) -> ItemWriter:
    """The model of a run, as its config names it; it is loaded when it is needed."""
    return ItemWriter(run)


def schedule(r: ItemWriter) -> list[Phase]:
    """All phases in order."""
    return [TasksPhase(r, optimisers.of(r.config.tasks, r.config.tasks.steps)).at(0, 0)]


def test(r: ItemWriter, stages: dict[str, dict], state: dict[str, Part], note: dict, trec: bool = False) -> dict:
    """How well next items are found, beside what only counts; results and report."""
    results, values = knowledge_evaluation.test(r, list(stages.values())[-1]["lm"], note, trec)
    if devices.first():
        report.write_results(r.run.workdir, results, values)
        knowledge_evaluation.write_report(r.run.workdir, results)
    print(
        knowledge_evaluation.tables(results),
        f"\nresults.json and report.html are in {r.run.workdir}",
        sep="\n",
        flush=True,
    )
    return results


def recommend(system, config, workdir: Path, kind: str, text: str, k: int) -> str:
    """The best k items for a user or a history, with the probability of their codes."""
    r, state, _ = train.ready(system, Run(config, workdir))
    if kind == "profile" and not r.reads_profiles:
        raise InputError("--profile is for systems that read profiles: this one reads items; give --user or --history.")
    if kind == "profile" and not r.fits(text):
        raise InputError(
            f"--profile is longer than the embedder's window of {r.embedder.profile_limit} tokens "
            "(--config.embedder.max_profile_tokens): shorten it."
        )
    if kind == "profile":
        session, notes = Session("", (), None, None, (), float("nan")), []
    elif kind == "user":
        session, notes = known_session(r.data, text), []
    else:
        history, notes = recommend_lib.find_items(text, r.data.catalogue)
        session = Session("", history, None, None, (), float("nan"))
    profiles = [text if kind == "profile" else r.profile(session.user, session.history)] if r.reads_profiles else None
    ids, scores = r.found(r.weights(state, "lm"), [session], k, profiles)
    return "\n".join([*notes, *(profiles or []), "", recommend_lib.table(r.data.catalogue, ids[0], np.exp(scores[0]))])


def tell(system, config, workdir: Path, user: str, rate: str = "", explain: str = "") -> str:
    """How many stars a user would give an item, or why the user would choose it; InputError where the run has not learned to."""
    r, state, _ = train.ready(system, Run(config, workdir))
    task, flag = ("rating", "rate") if rate else ("explanation", "explain")
    items, notes = recommend_lib.find_items(rate or explain, r.data.catalogue, flag)
    if len(items) != 1 or rate and explain:
        raise InputError(f"Give one item, to --rate or to --explain; here are {len(items) + bool(rate and explain)}.")
    if task not in r.tasks.weights():
        raise InputError(
            f"This run has not learned the task {task}: it needs data with {'stars' if rate else 'reviews'}, and "
            f"--config.tasks.weights.{task} above 0."
        )
    session, title, weights = known_session(r.data, user), r.data.catalogue.titles[items[0]], r.weights(state, "lm")
    if explain:
        return "\n".join([*notes, f"{title}: {r.explain(weights, [(session, items[0])])[0] or '(nothing)'}"])
    chances = r.stars(weights, [(session, items[0])])[0]
    shares = ", ".join(f"{stars}: {chance:.2f}" for stars, chance in zip(STARS, chances, strict=True))
    expected = chances @ np.arange(1, len(STARS) + 1)
    return "\n".join([*notes, f"{title}: {expected:.2f} stars ({shares})"])


def export(system, config, workdir: Path, folder: Path) -> None:
    """Writes the model as a transformers folder, with the items' codes in codes.json, into a new folder."""
    part = export_lib.aside(folder)
    r, _, state, _ = train.trained(system, Run(config, workdir))
    lm = nnx.merge(r.graph, jax.tree.map(np.array, devices.fetch(r.whole(r.weights(state, "lm")))))
    lm.source, personal, lm.personal = r.lm.source, lm.personal, None
    t5 = isinstance(lm, T5)
    if not devices.first():
        return
    with export_lib.writing(folder):
        if t5:
            weights_lib.save_t5(part / "lm", lm)
        else:
            lm.lm = export_lib.on_host(lm.lm)
            lm.lm.source = r.lm.source
            lm.save(part / "lm")
        if personal is not None:
            made_of = {"made_of": config.personal.kind, "embedder": export_lib.named(config.embedder.source)}
            weights_lib.save_personal(part / "personal_prompt", personal, made_of)
        items = dict(zip(r.data.catalogue.ids, r.codes.digits.tolist(), strict=True))
        text = json.dumps({"width": r.codes.width, "digits": items}, ensure_ascii=False)
        named = {"kind": type(lm).__name__, "module": "t5" if t5 else "item_decoder"}
        to, code = report.Markdown(part), CARD.format(**named, levels=r.lm.spec.levels, width=r.codes.width)
        head = {"library_name": "transformers", "pipeline_tag": "text2text-generation" if t5 else "text-generation"}
        words = f"Names the next item by its code. Trained from {export_lib.named(config.lm.source)} by lpt_jax"
        card = to.page("", export_lib.opening(to, config, "lm", head, words, code))
        files.write_file(part / "README.md", card)
        files.write_file(part / "codes.json", text + "\n")
        os.rename(part, folder)
    print(f"lpt_jax: {', '.join(sorted(p.name for p in folder.iterdir()))} in {folder}")
