"""A transformers tokenizer from the fields of a GGUF file, which carries no tokenizer.json."""

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from lpt_jax.errors import InputError

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


def from_gguf(fields: dict) -> PreTrainedTokenizerFast:
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
    special = {f"{ours}_token": tokens[get(f"{theirs}_token_id")]
               for ours, theirs in names.items() if get(f"{theirs}_token_id") is not None}  # fmt: skip
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
