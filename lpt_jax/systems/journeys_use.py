"""What a trained run of interest journeys is used for: a person's journeys with a list by them, and folders for other libraries."""

import os
from pathlib import Path

from lpt_jax import config as config_lib
from lpt_jax import devices, files, journeys_evaluation, report, train
from lpt_jax import export as export_lib
from lpt_jax import recommend as recommend_lib
from lpt_jax.data.sessions import Session, known_session
from lpt_jax.run import Run

CARDS = {  # folder -> how its model writes a name
    "lm": """from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer, model = AutoTokenizer.from_pretrained("lm"), AutoModelForCausalLM.from_pretrained("lm")
prompt = tokenizer({prompt!r}, add_special_tokens=False, return_tensors="pt")
name = model.generate(**prompt, max_new_tokens={most}, do_sample=False)[0, prompt.input_ids.shape[1]:]
print(tokenizer.decode(name, skip_special_tokens=True))""",
    "lm_adapter": """from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained({base!r})
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base!r}), "lm_adapter")
prompt = tokenizer({prompt!r}, add_special_tokens=False, return_tensors="pt")
name = model.generate(**prompt, max_new_tokens={most}, do_sample=False)[0, prompt.input_ids.shape[1]:]
print(tokenizer.decode(name, skip_special_tokens=True))""",
    "lm_soft_prompt": """import torch  # PEFT reads this folder too, but its generate() leaves out positions and writes other tokens
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer, model = AutoTokenizer.from_pretrained({base!r}), AutoModelForCausalLM.from_pretrained({base!r})
prompt = tokenizer({prompt!r}, add_special_tokens=False, return_tensors="pt").input_ids
soft_prompt = load_file("lm_soft_prompt/adapter_model.safetensors")["prompt_embeddings"][None]
embedded = torch.cat([soft_prompt, model.get_input_embeddings()(prompt)], 1)
name = model.generate(inputs_embeds=embedded, max_new_tokens={most}, do_sample=False)[0]
print(tokenizer.decode(name, skip_special_tokens=True))""",
}


def recommend(system, config, workdir: Path, kind: str, text: str, k: int) -> str:
    """A user's journeys with their names, and the best k items, each with the journey that speaks for it.

    kind, text: "user" and an id, "history" and items; or "profile" and a journey in one's own words.
    """
    r, state, _ = train.ready(system, Run(config, workdir))
    catalogue, notes, history, found = r.data.catalogue, [], [], [[]]
    if kind == "profile":
        if (length := r.embedder.length(text)) > r.embedder.spec.max_tokens:
            raise recommend_lib.too_long(length, r.embedder.spec.max_tokens)
        names, queries = [text], r.embed([text])
    else:
        if kind == "user":
            session = known_session(r.data, text)
        else:
            items, notes = recommend_lib.find_items(text, catalogue)
            session = Session("", items, None, None, (), float("nan"))
        history = list(session.history)
        found = r.journeys(history)
        names = system.name(r, state, found)
        queries = journeys_evaluation.by_journeys(r, history, found, config.journeys.decay)
    if not found:
        notes.append(
            f"No {config.journeys.fewest} of {len(history)} items are alike enough to be a journey: the list is by all of them."
        )
        names, found = ["all items"], [history]
    best, scores = journeys_evaluation.listed(r, queries, history, k)
    for number, (of_journey, group) in enumerate(zip(names, found, strict=True), 1):
        notes.append(recommend_lib.journey_line(number, of_journey, [catalogue.titles[item] for item in group]))
    table = recommend_lib.table(catalogue, best, scores.max(0))
    return "\n".join([*notes, "", recommend_lib.with_speakers(table, scores.T)])


def export(system, config, workdir: Path, folder: Path) -> None:
    """Writes what each phase trained into a new folder, in a folder of the phase's name, each with a card.

    A soft prompt or LoRA as PEFT's adapter, else the whole language model. InputError if the folder is there, can't be written, or
    there is no checkpoint.
    """
    part = export_lib.aside(folder)
    r, phases, state, _ = train.trained(system, Run(config, workdir))
    copies = {phase.name: export_lib.host_copy(phase.lm, r.weights(state, phase.part)) for phase in phases}
    base, lm = export_lib.named(config.lm.source).partition("@")[0], phases[0].lm
    example = lm.source.tokenizer.decode(r.prompt(list(r.collections["train"][0].items[:5]), lm=lm))
    if not devices.first():
        return
    with export_lib.writing(folder):
        for name in config_lib.listed(config.phases):
            settings = config[name]
            export_lib.save_lm(part / name, *copies[name], settings.trains, config, settings, config.names.max_tokens)
            for to in (part / name).iterdir():
                code = CARDS[to.name].format(base=base, prompt=example, most=config.names.max_tokens)
                files.write_file(to / "README.md", card(to, config, name, code))
        os.rename(part, folder)
    print(f"lpt_jax: {', '.join(sorted(p.name for p in folder.iterdir()))} in {folder}")


def card(folder: Path, config, phase: str, code: str) -> str:
    """The model card (README.md) of a folder of export()."""
    to = report.Markdown(folder)
    head = {"library_name": "transformers" if folder.name == "lm" else "peft", "pipeline_tag": "text-generation"}
    words = f"Names what items have in common. Trained from {export_lib.named(config.lm.source)} by lpt_jax"
    words += " (interest journeys, arXiv 2305.15498)"
    return to.page("", export_lib.opening(to, config, phase, head, words, code))
