"""GGUF files: configuration, tensors of any quantization that the gguf package can undo, and the tokenizer they carry."""

import functools
import math
import pathlib

import gguf
import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from lpt_jax.errors import InputError, blame

ARCHITECTURES = {  # GGUF's name: config.json's model_type
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
}
SETTINGS = {  # config.json key: GGUF key; the first four are a must
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "intermediate_size": "feed_forward_length",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
KEYS = {  # our module: GGUF's; {i} is the layer
    "embed": "token_embd",
    "final_norm": "output_norm",
    "head": "output",
    "attn_norm": "blk.{i}.attn_norm",
    "attention.q": "blk.{i}.attn_q",
    "attention.k": "blk.{i}.attn_k",
    "attention.v": "blk.{i}.attn_v",
    "attention.o": "blk.{i}.attn_output",
    "attention.q_norm": "blk.{i}.attn_q_norm",
    "attention.k_norm": "blk.{i}.attn_k_norm",
    "post_attn_norm": "blk.{i}.post_attention_norm",
    "mlp_norm": "blk.{i}.ffn_norm",
    "mlp.gate": "blk.{i}.ffn_gate",
    "mlp.up": "blk.{i}.ffn_up",
    "mlp.down": "blk.{i}.ffn_down",
    "post_mlp_norm": "blk.{i}.post_ffw_norm",
}


class _Reader(gguf.GGUFReader):
    """The package's reader on a plain array: slicing its memmap, once for every word of the vocabulary, is slow."""

    def __setattr__(self, name, value):
        super().__setattr__(name, np.asarray(value) if name == "data" else value)


def read(path: pathlib.Path) -> tuple[dict, object, dict]:
    """A file's config.json, its tokenizer, and its tensors by key: (shape, a function that reads it)."""
    with blame(f"{path}: not a readable GGUF file; give a .gguf file or a model's folder"):
        reader = _Reader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {t.name: (tuple(map(int, t.shape[::-1])), t) for t in reader.tensors}
    config = _config(fields, tensors, path)
    load = functools.partial(_load, config=config, path=path)
    reads = {name: (shape, functools.partial(load, tensor)) for name, (shape, tensor) in tensors.items()}
    return config, tokenizer_of(fields), reads


def _load(tensor, config: dict, path) -> np.ndarray:
    """A tensor as Hugging Face's files have it."""
    array = _dequantize(tensor, path)
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    count = heads.get(tensor.name.split(".")[-2])
    if config["model_type"] == "llama" and count:  # halves that rotary embedding pairs are interleaved
        halves = array.reshape(count, config["head_dim"] // 2, 2, -1)
        array = halves.swapaxes(1, 2).reshape(array.shape)
    plus_one = config["model_type"].startswith("gemma") and tensor.name.endswith("norm.weight")
    return array - 1 if plus_one else array


def _dequantize(tensor, path) -> np.ndarray:
    how = f"{tensor.name} is {tensor.tensor_type.name}, which the gguf package can't undo"
    with blame(f"{path}: {how}; use another quantization, such as Q8_0"):
        return gguf.dequantize(tensor.data, tensor.tensor_type)


def _config(fields: dict, tensors: dict, path) -> dict:
    """The config.json that the metadata amount to."""
    architecture = fields.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise InputError(f"{path}: architecture {architecture!r} is not supported, only {', '.join(ARCHITECTURES)}")
    if fields.get("split.count", 1) > 1:
        raise InputError(f"{path}: a part of a split GGUF; join it with llama-gguf-split --merge")
    get = lambda key: fields.get(f"{architecture}.{key}")  # noqa: E731
    absent = [f"{architecture}.{key}" for key in list(SETTINGS.values())[:4] if get(key) is None]
    absent += [name for name in ("token_embd.weight",) if name not in tensors]
    if absent:
        raise InputError(f"{path}: no {', '.join(absent)} in it; convert the model again")
    config = {ours: get(key) for ours, key in SETTINGS.items() if get(key) is not None}
    config |= {"model_type": ARCHITECTURES[architecture], "vocab_size": tensors["token_embd.weight"][0][0]}
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


# ---- the tokenizer

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split(digits: str) -> list:
    """Pre-tokenizers that cut words by the GPT-4 regex, with runs of `digits` numerals, then spell bytes."""
    cut = pre_tokenizers.Split(Regex(_WORDS % digits), behavior="isolated")
    return [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]


_GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
# tokenizer.ggml.pre: how text is cut before the merges
PRE_TOKENIZERS = {
    "gpt-2": [_GPT2],
    "smollm": [pre_tokenizers.Digits(individual_digits=True), _GPT2],
    "llama-bpe": _split("{1,3}"),
    "qwen2": _split(""),
}


def tokenizer_of(fields: dict):
    """The tokenizer, special tokens and chat template that the metadata of a GGUF file describe."""
    get = lambda key, default=None: fields.get(f"tokenizer.ggml.{key}", default)  # noqa: E731
    kind, pre, tokens = get("model"), get("pre", "gpt-2"), get("tokens", [])
    vocab = {token: index for index, token in enumerate(tokens)}
    if kind == "gpt2" and pre in PRE_TOKENIZERS:
        merges = [tuple(merge.split(" ")) for merge in get("merges", [])]
        tokenizer = Tokenizer(BPE(vocab=vocab, merges=merges, ignore_merges=pre == "llama-bpe"))
        tokenizer.normalizer = normalizers.NFC() if pre == "qwen2" else None
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(PRE_TOKENIZERS[pre])
        tokenizer.decoder = decoders.ByteLevel()
    elif kind == "llama":
        tokenizer = _sentencepiece(vocab, get, fields["general.architecture"].startswith("gemma"))
    else:
        raise InputError(
            f"the GGUF file's tokenizer (model {kind!r}, pre {pre!r}) is not supported; known are model 'llama' and"
            f" model 'gpt2' with pre {', '.join(PRE_TOKENIZERS)}: use the model's Hugging Face folder instead"
        )
    added = [
        AddedToken(token, normalized=False, special=token_type == 3)  # 3: control, 4: user-defined
        for token, token_type in zip(tokens, get("token_type", []), strict=False)
        if token_type in (3, 4) and tokenizer.token_to_id(token) is not None
    ]
    tokenizer.add_special_tokens([token for token in added if token.special])
    tokenizer.add_tokens([token for token in added if not token.special])
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    special = {
        f"{ours}_token": tokens[get(f"{theirs}_token_id")]
        for ours, theirs in names.items()
        if get(f"{theirs}_token_id") is not None
    }
    from transformers import PreTrainedTokenizerFast  # here, as its import is slow

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=fields.get("tokenizer.chat_template"),
        add_bos_token=get("add_bos_token", kind == "llama"),
        add_eos_token=get("add_eos_token", False),
        clean_up_tokenization_spaces=False,
        **special,
    )


def _sentencepiece(vocab, get, gemma):
    """SentencePiece BPE with byte fallback; the file holds no merges: every split of a token into two is one.

    The better token's merges come first: by score, and for Gemma, whose scores are not its merge order, by id.
    """
    if gemma:  # runs of spaces are stored as spaces
        vocab = {"▁" * len(t) if t and not t.strip(" ") else t: i for t, i in vocab.items()}
    scores = get("scores")
    order = sorted(vocab, key=lambda token: vocab[token] if gemma or scores is None else -scores[vocab[token]])
    merges = []
    for token in order:
        pairs = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        pairs = [pair for pair in pairs if pair[0] in vocab and pair[1] in vocab]
        merges += sorted(pairs, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
    unknown = get("unknown_token_id")
    tokenizer = Tokenizer(
        BPE(
            vocab=vocab,
            merges=merges,
            byte_fallback=True,
            fuse_unk=True,
            unk_token=None if unknown is None else get("tokens")[unknown],
        )
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if get("add_space_prefix", not gemma):
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        steps.append(decoders.Strip(content=" ", left=1))
    else:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer
