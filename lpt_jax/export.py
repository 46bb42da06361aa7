"""What was trained, as folders that others read: transformers and vLLM, PEFT, sentence-transformers."""

import contextlib
import json
import os
import re
import shutil
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from lpt_jax import devices, files, report, train
from lpt_jax.data import prompts
from lpt_jax.data.sessions import Session
from lpt_jax.errors import InputError
from lpt_jax.generation import LanguageModel
from lpt_jax.models import layers, low_rank, weights
from lpt_jax.models.decoder import Decoder
from lpt_jax.models.encoder import TextEncoder
from lpt_jax.recommender import ProfileRecommender
from lpt_jax.run import Run

SERVED = 512  # the largest rank that vLLM knows (--max-lora-rank)
CARDS = {  # folder -> Hugging Face's library and pipeline, what it is, how it is used (from the folder it lies in)
    "lm": (
        "transformers",
        "text-generation",
        "A language model that writes user profiles in plain language",
        """from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("lm")
model = AutoModelForCausalLM.from_pretrained("lm")
prompt = tokenizer({prompt!r}, add_special_tokens=False, return_tensors="pt")
print({start!r} + tokenizer.decode(model.generate(**prompt)[0, prompt.input_ids.shape[1]:], skip_special_tokens=True))""",
    ),
    "lm_soft_prompt": (
        "peft",
        "text-generation",
        "A soft prompt with which a language model writes user profiles in plain language",
        """from peft import PeftModel
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained({base!r})
model = PeftModel.from_pretrained(base, "lm_soft_prompt")""",
    ),
    "lm_adapter": (
        "peft",
        "text-generation",
        "The LoRA matrices of a language model that writes user profiles in plain language",
        """from peft import PeftModel
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained({base!r})
model = PeftModel.from_pretrained(base, "lm_adapter")""",
    ),
    "embedder": (
        "sentence-transformers",
        "sentence-similarity",
        "A text embedder that ranks items by user profiles",
        """from sentence_transformers import SentenceTransformer
model = SentenceTransformer("embedder")
profile = model.encode("Slow science fiction with ideas.", prompt_name="query")
items = model.encode({items!r})  # cut to {limit} tokens in training
print(model.similarity(profile, items))""",
    ),
    "items": (
        "sentence-transformers",
        "sentence-similarity",
        "The catalogue as it is ranked: the items' vectors, with what interactions taught of them, and popularity's bias",
        """import json
from safetensors.numpy import load_file
from sentence_transformers import SentenceTransformer
items, ids = load_file("items/items.safetensors"), json.load(open("items/ids.json"))
profile = SentenceTransformer("embedder").encode("Slow science fiction with ideas.", prompt_name="query")
best = (items["vectors"] @ profile + items["bias"]).argsort()[::-1][:10]
print([ids[i] for i in best])""",
    ),
}
SIGNED = (
    "Of a profile that rejects something lpt_jax embeds what it affirms, less {weight:g} times the vector of {phrase!r} for "
    "each thing X that it rejects (prompts.clauses)."
)
TIED = (
    "The head was trained apart from the embeddings, with which the base shares it: don't merge this adapter there, use "
    "the merged lm instead."
)


def main(system, config, workdir: Path, folder: Path) -> None:
    """Exports a run, as its system does."""
    getattr(system, "export", export)(system, config, workdir, folder)


def export(system, config, workdir: Path, folder: Path, shard: int = weights.SHARD) -> None:
    """Writes the trained models of a run, as its last checkpoint has them, into a new folder, each with a model card.

    lm: for transformers, LoRA merged, in the type it was loaded in (config.lm.dtype: a bfloat16 source
    loaded as float32 is written as float32, of the same values); lm_adapter: for PEFT, where LoRA was trained; embedder:
    for sentence-transformers, in float32; items: their vectors, biases and ids. Where a soft prompt was trained, the language
    model itself was not, and lm_soft_prompt, for PEFT, is in lm's place. `shard`: bytes of a weights file at most.
    Written aside and renamed. InputError if the folder is there, can't be written, or there is no checkpoint.
    """
    part = aside(folder)
    r, phases, state, note = train.trained(system, Run(config, workdir))
    trains = config.policy.trains if "lm" in state or config.begin_from else ""
    lm, encoder = host_copy(r.lm, r.weights(state, "lm")), whole_encoder(r, r.weights(state, "embedder"))
    items = r.catalogue(r.weights(state, "embedder"))
    items = r.with_terms(items, state["residuals"].weights) if "residuals" in state else items
    items, results = devices.fetch(items)[: r.run.count], Path(workdir) / "results.json"
    if not devices.first():
        return
    finished = note["position"] == len(phases) and results.exists()
    results = json.loads(results.read_text()) if finished else {}
    with writing(folder):
        save_lm(part, *lm, trains, config, config.policy, config.profile.max_tokens, shard)
        weights.save_encoder(part / "embedder", encoder, shard)
        weights.save_items(part / "items", r.data.catalogue.ids, items)
        for to in part.iterdir():
            files.write_file(to / "README.md", card(r, to, results))
        os.rename(part, folder)
    if trains == "lora" and config.policy.lora.rank > SERVED:
        print(
            f"lpt_jax: warning: servers such as vLLM refuse adapters of a rank above {SERVED}, and this one's is "
            f"{config.policy.lora.rank}: serve the merged lm."
        )
    print(f"lpt_jax: {', '.join(sorted(p.name for p in folder.iterdir()))} in {folder}")


def aside(folder: Path) -> Path:
    """Where a new folder's files are written before it is renamed; InputError if it is there or can't be."""
    if folder.exists():
        raise InputError(f"{folder} is there already: name another --export_to, or move it away.")
    part = folder.with_name(f"{folder.name}.lpt_jax.part")
    with writing(folder):
        if devices.first():
            shutil.rmtree(part, ignore_errors=True)  # of a call that was killed
            part.mkdir(parents=True)
            part.rmdir()
    return part


@contextlib.contextmanager
def writing(folder):
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"--export_to={folder} can't be written ({reason}): name another folder.") from None


def host_copy(lm: LanguageModel, trained: dict) -> tuple[Decoder, dict]:
    """A language model on the host, whole, and what trained of it."""
    return whole_decoder(lm, trained), devices.fetch(trained)


def save_lm(
    part: Path, whole: Decoder, trained: dict, trains: str, config, settings, most: int, shard: int = weights.SHARD
) -> None:
    """Writes a language model, or what trained of it where that is LoRA's or a soft prompt.

    trains: what did ("": nothing); settings: the group that says so; most: tokens that it writes at most.
    """
    base = named(config.lm.source)
    if trains == "soft_prompt":
        weights.save_soft_prompt(part / "lm_soft_prompt", whole, trained["soft_prompt"]["table"], base)
        return
    weights.save_decoder(part / "lm", whole, most, shard)
    if trains == "lora":
        weights.save_adapter(part / "lm_adapter", whole, trained, settings.lora.rank, settings.lora.alpha, base)


def whole_decoder(language_model: LanguageModel, trained: dict) -> Decoder:
    """A language model on the host, LoRA merged and without a soft prompt, in the type that it was loaded in."""
    return on_host(language_model.merged(trained))


def on_host(lm: Decoder) -> Decoder:
    """A Decoder as whole_decoder has it."""
    low_rank.merge(lm)
    lm.soft_prompt = None
    graph, arrays = nnx.split(lm)
    arrays = devices.fetch(layers.plain(arrays))
    dtype = arrays["embed"]["table"].dtype
    return nnx.merge(graph, jax.tree.map(lambda a: np.asarray(a).astype(dtype, copy=False), arrays))


def whole_encoder(r: ProfileRecommender, trained: dict) -> TextEncoder:
    """The embedder's encoder on the host."""
    return nnx.merge(r.embedder.graph, devices.fetch(trained)).encoder


def named(source: str) -> str:
    """A model's source without where it lies on this machine."""
    path = Path(source).expanduser()
    return path.name if path.is_absolute() else source


def opening(to, config, name: str, head: dict, words: str, code: str) -> list[str]:
    """How a model card begins: Hugging Face's header, the title, what it is and from which data, and how it is used."""
    return [
        "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in head.items()), "---"]),
        to.heading(1, f"{config.name}: {name.replace('_', ' ')}"),
        to.paragraph(f"{words} on {config.data.source} {config.data.name} data, seed {config.seed}."),
        "```python\n" + code + "\n```",
    ]


def card(r: ProfileRecommender, folder: Path, results: dict) -> str:
    """The model card (README.md) of a folder of export(); results: results.json's content, {} if the run has not ended.

    What users can choose (names, items' texts, the protocol) is escaped or written as Python's literals.
    """
    config, name, to = r.config, folder.name, report.Markdown(folder)
    library, pipeline, what, code = CARDS[name]
    source = config.embedder.source if name in ("embedder", "items") else config.lm.source
    head = {"library_name": library, "pipeline_tag": pipeline}
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(@[\w./-]+)?", source) and not Path(source).exists():
        head["base_model"] = source.partition("@")[0]
    head["tags"] = ["lpt_jax", "user-profiles", "recommender-systems"]
    train, items = r.sessions["train"][0], tuple(range(min(2, r.run.count)))
    rated, said = (
        value and (best,) * len(items)
        for value, best in ((train.ratings, config.data.best_rating), (train.reviews, "…"))
    )
    example = Session("", items, rated, said, (), float("nan"))  # of no user
    ids, _ = r.prompt(example)
    values = {
        "prompt": r.lm.source.tokenizer.decode(ids, clean_up_tokenization_spaces=False),
        "start": r.lm.start,
        "base": named(config.lm.source).partition("@")[0],
        "items": [r.data.catalogue.texts[i][:200] for i in items],
        "limit": r.embedder.item_limit,
    }
    words = f"{what}. Trained from {named(source)} by lpt_jax (LangPTune, arXiv 2410.18870)"
    blocks = opening(to, config, name, head, words, code.format(**values))
    head_alone = library == "peft" and r.lm.spec.tied and "lm_head" in (folder / "adapter_config.json").read_text()
    blocks += [to.paragraph(TIED)] * head_alone
    if name == "items" and config.score.rejected:
        phrase = prompts.LIKED_THING.format(n="X")
        blocks.append(to.paragraph(SIGNED.format(weight=config.score.rejected, phrase=phrase)))
    blocks += [to.heading(2, "Results"), to.paragraph(r.data.protocol)]
    blocks += report.results_blocks(to, results["rows"]) if results else [to.paragraph("The run has not ended yet.")]
    return to.page("", blocks)
