"""Interest journeys (arXiv 2305.15498): a user's several interests, found among their items and named in plain language.

    x        = vectors and terms of the items' titles           # what is alike
    journeys = one after another, items join or open one        # journeys.found: ICPC
    name     = language model(titles of a journey)              # asked with examples; or after
    prompt tuning phase: a soft prompt learns from named collections, the language model stays as it is
    fine-tuning phase:   its last layers (or LoRA) do
    list     = max over journeys of γ^age · cos(journey, item)  # which journey speaks for an item is known

Both phases minimise −mean log p(a name's token | titles, the tokens before)     (learning/next_token.py, update)
"""

import functools
import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lpt_jax import config as config_lib
from lpt_jax import devices, files, journeys_evaluation, journeys_report, report, text_metrics
from lpt_jax.data import collections
from lpt_jax.learning import optimisers
from lpt_jax.learning.loop import Part, Phase
from lpt_jax.learning.next_token import NextTokenPhase
from lpt_jax.naming import JourneyNamer
from lpt_jax.recommender import language_model, load_decoder, load_encoder
from lpt_jax.run import Run
from lpt_jax.similarity import DualEncoder, Embedder
from lpt_jax.systems.journeys_use import export as export
from lpt_jax.systems.journeys_use import recommend as recommend

# phase -> the part that it trains, a model of its own, and its name in results
TRAINS = {"prompt_tuning": "soft_prompt", "fine_tuning": "lm"}
STEPS = {"prompt_tuning": "prompt_tuning", "fine_tuning": "fine_tuning"}
SAME = ("data", "collections", "lm.source", "embedder.source")  # of begin_from
SAME += tuple(f"{phase}.{name}" for phase in TRAINS for name in ("trains", "last_layers", "lora", "soft_prompt"))
WRITES, WRITTEN_BY = "users' journeys", ("names.by",)
COLUMNS = {"row": "int64", "user": "string", "journey": "int64", "name": "string", "items": "strings"}
AT_ONCE = 256  # users whose journeys are written together


def build(run: Run) -> JourneyNamer:
    """The models of a run, as its config names them; they are loaded when they are needed."""
    config, folder = run.config, run.workdir / "catalogue"

    def lm(phase):
        return language_model(config, load_decoder(config), run.mesh, run.key, trains=phase, written=config.names)

    return JourneyNamer(
        run,
        {part: functools.partial(lm, phase) for phase, part in TRAINS.items()},
        lambda: Embedder(DualEncoder(load_encoder(config)), config.embedder, run.mesh, folder, run.interrupt),
    )


class NamingPhase(NextTokenPhase):
    """Learns the names of the training collections, each from several samples of its items; judged on the validation's names."""

    limit = "names.max_tokens"

    def __init__(self, r: JourneyNamer, name: str):
        settings, part = r.config[name], TRAINS[name]
        super().__init__(r, r.lm(part), name, part, optimisers.of(settings, settings.steps), settings.logits_chunk)

    @functools.cached_property
    def drawn(self) -> list[tuple[int, list[int]]]:
        """(training collection, some of its items), from three to as many as a prompt shows."""
        most, seed = self.r.config.prompt.titles, self.r.config.seed
        drawn = collections.draws(self.r.collections["train"], most, self.settings.draws, seed * 1000 + 31)
        sizes = np.random.default_rng((seed, 32)).integers(min(3, most), most + 1, len(drawn))
        return [(number, items[:size]) for (number, items), size in zip(drawn, sizes, strict=True)]

    @functools.cached_property
    def asked(self) -> list[list[int]]:
        """Their prompts."""
        return [self.r.prompt(items, lm=self.lm) for _, items in self.drawn]

    def prompts(self):
        return self.asked

    def examples(self, state):
        return [(row, self.r.collections["train"][number].name) for row, (number, _) in enumerate(self.drawn)]

    def validate(self, state):
        found, settings = self.r.collections["validation"], self.r.config.collections
        drawn = collections.draws(found, settings.shown, max(settings.draws // 2, 1), seed=1)
        written = self.r.write(self.part, state[self.part].weights, [items for _, items in drawn])
        near = text_metrics.nearness(written, [n for n, _ in drawn], [c.name for c in found], self.r.embed)
        means = {f"val/{name}": values.mean() for name, values in near.items()}
        return means | {"val/reward": means["val/cosine"]}


def schedule(r: JourneyNamer) -> list[Phase]:
    """All phases in order."""
    names = config_lib.listed(r.config.phases)
    return [NamingPhase(r, name).at(0, place) for place, name in enumerate(names)]


def test(r: JourneyNamer, stages: dict[str, dict], state: dict[str, Part], note: dict, trec: bool = False) -> dict:
    """How well journeys are found, named and ranked by, on names and users that training did not see; results and report."""
    if trec:
        print("lpt_jax: the system journeys writes no TREC files.", flush=True)
    weights = list(stages.values())[-1]
    trained = {name: (TRAINS[name], weights[TRAINS[name]]) for name in config_lib.listed(r.config.phases)}
    results, values = journeys_evaluation.test(r, trained, note)
    if devices.first():
        report.write_results(r.run.workdir, results, values)
        journeys_report.write(r.run.workdir, results, files.read_jsonl(r.run.workdir / "metrics.jsonl"))
    print(
        journeys_report.tables(results), f"\nresults.json and report.html are in {r.run.workdir}", sep="\n", flush=True
    )
    return results


def name(r: JourneyNamer, state, groups: list[list[int]]) -> list[str]:
    """Names of groups of items, as config.names.by says: by the last phase's model, or their most telling words."""
    if r.config.names.by == "words":
        return [" ".join(r.words(group, journeys_evaluation.WORDS)) for group in groups]
    part = TRAINS[config_lib.listed(r.config.phases)[-1]]
    write = r.best if r.config.names.samples > 1 else r.write
    return write(part, r.weights(state, part), groups)


def write(r: JourneyNamer, state, split: str, file: Path, at_once: int = AT_ONCE) -> list[dict]:
    """The journeys of a split's users and their names, a line each; `file` keeps them, so that a killed call goes on.

    Its lines: row (in the split), user, journey (0 is what began first), name, items (ids, oldest first). at_once: users at a time.
    """
    sessions, ids, lines = r.sessions[split], r.data.catalogue.ids, files.read_jsonl(file)
    start = lines[-1]["row"] // at_once * at_once if lines else 0  # what was written with the last line may lack others
    lines = [line for line in lines if line["row"] < start]
    devices.wait_for_all(f"read {file}")
    if devices.first():
        files.write_file(file, (json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    starts = range(start, len(sessions), at_once)
    for first in tqdm(starts, f"{split} journeys", unit=f"{at_once} users", disable=not devices.first()):
        rows = range(first, min(first + at_once, len(sessions)))
        found = [
            (row, number, group) for row in rows for number, group in enumerate(r.journeys(list(sessions[row].history)))
        ]
        names = name(r, state, [group for _, _, group in found])
        new = [
            dict(zip(COLUMNS, (row, sessions[row].user, number, of_group, [ids[i] for i in group]), strict=True))
            for (row, number, group), of_group in zip(found, names, strict=True)
        ]
        if devices.first():
            with open(file, "a", encoding="utf-8") as out:
                out.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in new)
        lines += new
    return lines
