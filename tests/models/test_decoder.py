"""The decoder against transformers, against itself (packed, chunked, cached), and by hand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

from lpt_jax.data.made_up import tiny_tokenizer
from lpt_jax.errors import InputError
from lpt_jax.models import decoder, layers
from lpt_jax.models.decoder import Decoder
from tests.tiny_models import SPECS, divided, full_logits, joined, left_padded, random_decoder


def arrays(module) -> dict:
    """A module's arrays by path."""
    return layers.plain(nnx.state(module))


# ---- equal to transformers

BASE = dict(
    vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, max_position_embeddings=512,
    pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
ROPE_LLAMA3 = dict(
    rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=64,
)  # fmt: skip
ROPE_LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e5}
ROPE_GEMMA3 = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
LOCAL, GLOBAL = "sliding_attention", "full_attention"
CONFIGS = {
    "llama3": ("llama", dict(rope_parameters=ROPE_LLAMA3)),
    "llama, linear rope, tied": ("llama", dict(tie_word_embeddings=True, rope_parameters=ROPE_LINEAR)),
    "qwen2": ("qwen2", dict(head_dim=8)),
    "qwen2, windows": ("qwen2", dict(head_dim=8, use_sliding_window=True, sliding_window=5, max_window_layers=2)),
    "qwen3": ("qwen3", {}),
    "gemma": ("gemma", {}),
    "gemma2": (
        "gemma2",
        dict(sliding_window=5, query_pre_attn_scalar=24, attn_logit_softcapping=5.0, final_logit_softcapping=3.0),
    ),
    "gemma3": (
        "gemma3_text",
        dict(
            sliding_window=5,
            query_pre_attn_scalar=24,
            rope_parameters=ROPE_GEMMA3,
            layer_types=[LOCAL, LOCAL, GLOBAL, LOCAL],
        ),
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers(name, tmp_path):
    torch = pytest.importorskip("torch")
    import transformers

    model_type, settings = CONFIGS[name]
    config = transformers.AutoConfig.for_model(model_type, **(BASE | settings), attn_implementation="eager")
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in theirs.parameters():
        parameter.data = 0.3 * torch.randn_like(parameter)
    theirs.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    loaded = Decoder.load(str(tmp_path))

    length = decoder.CHUNK + 12  # more than one block of chunked attention
    tokens = np.random.default_rng(0).integers(3, 97, (3, length))
    mask = np.arange(length)[None] >= np.array([0, 7, length - 2])[:, None]
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    with torch.no_grad():
        inputs = [torch.tensor(a) for a in (tokens, mask.astype(int), positions)]
        wanted = theirs(inputs[0], attention_mask=inputs[1], position_ids=inputs[2]).logits.numpy()
    found = loaded(jnp.array(tokens), jnp.array(mask))
    assert np.abs(wanted[mask]).max() > 0.5
    np.testing.assert_allclose(np.asarray(found)[mask], wanted[mask], atol=1e-4, rtol=0)


# ---- specs


def test_spec_of_what_configs_say():
    spec = decoder.spec_from_hf({"model_type": "gemma3", "text_config": BASE | {
        "model_type": "gemma3_text", "query_pre_attn_scalar": 16, "num_hidden_layers": 7,
        "sliding_window": 9, "rope_theta": 1e6, "rope_local_base_freq": 2e4,
        "rope_scaling": {"type": "linear", "factor": 8.0},
    }})  # fmt: skip
    assert spec.windows == (9, 9, 9, 9, 9, 0, 9)
    assert (spec.query_scale, spec.rope_theta, spec.local_rope_theta) == (0.25, 1e6, 2e4)
    assert dict(spec.rope_scaling)["factor"] == 8.0 and spec.tied and spec.qk_norm and spec.post_norms
    gemma2 = BASE | {"model_type": "gemma2", "query_pre_attn_scalar": 16, "sliding_window": 9}
    assert decoder.spec_from_hf(gemma2).windows == (9, 0, 9, 0)
    qwen = decoder.spec_from_hf(BASE | {"model_type": "qwen2", "sliding_window": 9})
    assert qwen.windows == () and qwen.qkv_bias and not qwen.tied  # use_sliding_window isn't set
    hash(spec)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "mistral"}, "model_type 'mistral' is not supported"),
        ({}, "model_type '' is not supported"),
        ({"model_type": "qwen3", "rope_scaling": {"type": "yarn"}}, "rope scaling 'yarn'"),
        ({"model_type": "llama", "rope_parameters": {"rope_type": "dynamic"}}, "scaling 'dynamic'"),
        ({"model_type": "llama", "attention_bias": True}, "this llama model has biases"),
        ({"model_type": "llama", "mlp_bias": True}, "this llama model has biases"),
    ],
)
def test_unsupported_configs_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        decoder.spec_from_hf(BASE | change)


def test_rope_by_hand():
    """Wavelengths 2π · (1, 10, 100, 1000): kept below 64 / 4 = 16, divided by 8 above 64 / 1."""
    scaling = dict(ROPE_LLAMA3, rope_theta=None)
    spec = dataclasses.replace(SPECS["llama"], rope_theta=1e4, rope_scaling=tuple(scaling.items()))
    smooth = (64 / (20 * np.pi) - 1) / 3
    wanted = [1.0, (1 - smooth) * 0.1 / 8 + smooth * 0.1, 0.01 / 8, 0.001 / 8]
    [(cos, sin)] = decoder.rope_tables(spec, jnp.array([0, 2]))
    np.testing.assert_allclose(np.arctan2(sin, cos), [[0] * 4, np.multiply(2, wanted)], rtol=1e-5)
    spec = dataclasses.replace(spec, local_rope_theta=16.0)
    (_, local) = decoder.rope_tables(spec, jnp.array([1]))  # windowed layers aren't scaled
    np.testing.assert_allclose(np.arctan2(local[1], local[0]), [[1, 0.5, 0.25, 0.125]], rtol=1e-5)


def test_initial_weights():
    spec = dataclasses.replace(SPECS["gemma3"], tied=False)
    lm, again = (Decoder(spec, nnx.Rngs(params=jax.random.key(0))) for _ in range(2))
    assert not lm.upper.attention.q_norm.scale[...].any() and not lm.final_norm.scale[...].any()  # 1 + 0
    assert abs(lm.head.kernel[...].std() - 0.02) < 1e-3
    assert lm.upper.attention.k.kernel.shape == (spec.layers, spec.width, spec.kv_heads * spec.head_dim)
    assert not np.allclose(lm.upper.attention.k.kernel[...], lm.upper.attention.v.kernel[...])
    jax.tree.map(np.testing.assert_array_equal, arrays(lm), arrays(again))


# ---- equal to itself


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_chunked_attention_equals_one_block(name):
    spec, rng = SPECS[name], np.random.default_rng(0)
    length, rep = 2 * decoder.CHUNK + 44, spec.heads // spec.kv_heads
    _, mask = left_padded(2, length)
    q = rng.standard_normal((2, length, spec.kv_heads, rep, spec.head_dim)).astype(np.float32)
    k, v = rng.standard_normal((2, 2, spec.kv_heads, length, spec.head_dim)).astype(np.float32)
    attend = jax.jit(decoder.context_attention, static_argnames=("softcap", "chunk"))
    for window in (150, 0, 5):
        chunked, whole = (attend(q, k, v, mask, window, spec.attn_softcap, chunk) for chunk in (decoder.CHUNK, length))
        np.testing.assert_allclose(np.asarray(chunked)[mask], np.asarray(whole)[mask], atol=2e-5)


def passes(lm, split):
    """The arguments of every_pass: the decoder whole and in two stacks, and its layers for decoding."""
    graph, weights = nnx.split(lm)
    graph_in_two, in_two = nnx.split(divided(lm, split))
    block, trees = decoder.decoding_layers(nnx.graphdef(lm.upper), arrays(lm.upper), "float32", joined=True)
    return (graph, graph_in_two, block), (layers.plain(weights), layers.plain(in_two), trees)


@functools.partial(jax.jit, static_argnames="graphs")
def every_pass(graphs, weights, context, mask, own):
    """The continuations' hidden states [B, G, T, D] by each way, and the contexts' caches."""
    lm, in_two = nnx.merge(graphs[0], weights[0]), nnx.merge(graphs[1], weights[1])
    blocks = [nnx.merge(graphs[2], tree) for tree in weights[2]]
    spec, split, (B, G, T), P = lm.spec, in_two.start, own.shape, context.shape[1]
    rows = lm.embed_tokens(jnp.concatenate([context, own.reshape(B, -1)], 1))
    tokens, alone = joined(context, mask, own)
    plain, kept = decoder.run(lm.upper, lm.embed_tokens(tokens), alone)
    plain = plain.reshape(B, G, P + T, -1)
    # of a prompt's G rows, all have its keys and values
    kept = [tuple(a.reshape(B, G, spec.kv_heads, P + T, -1)[:, 0, :, :P] for a in pair) for pair in kept]
    states, caches = {"plain": plain[:, :, P:]}, {"plain": kept}

    packed, caches["packed"] = decoder.run(lm.upper, rows, mask, G)
    states["packed"] = packed[:, P:].reshape(B, G, T, -1)
    middle, first = decoder.run(in_two.lower, rows, mask, G)
    last, second = decoder.run(in_two.upper, middle, mask, G, start=split, last=True, remat=True)
    states["lower and upper"] = last.reshape(B, G, T, -1)
    caches["lower and upper"] = first + second

    graph, stack = nnx.split(lm.upper)
    listed = nnx.merge(graph, layers.list_layers(layers.plain(stack)))
    states["listed"], caches["listed"] = decoder.run(listed, rows, mask, G, last=True, remat=True)
    states["listed"] = states["listed"].reshape(B, G, T, -1)
    empty = jnp.zeros((B, spec.kv_heads, G, T, spec.head_dim))

    def step(own_caches, t):
        x, kept = lm.embed_tokens(own[:, :, t]), []
        for part, at in ((slice(split), 0), (slice(split, None), split)):
            x, new = decoder.decode_step(blocks[part], x, t, caches["packed"][part], mask, own_caches[part], at)
            kept += new
        return kept, x

    _, cached = jax.lax.scan(step, [(empty, empty)] * spec.layers, jnp.arange(T))
    return states | {"cached": jnp.moveaxis(cached, 0, 2)}, caches, plain[:, 0, :P], packed[:, :P]


@pytest.mark.parametrize("name", SPECS)
def test_packed_and_cached_passes_equal_the_plain_one(name):
    """Context + G continuations, whole, in two parts or by position = each sequence alone."""
    graphs, weights = passes(random_decoder(SPECS[name]), 1)
    context, mask = left_padded(3, 7)  # the last row has 3 real tokens: windows reach into the padding
    own = left_padded(6, 6, seed=1)[0].reshape(3, 2, 6)
    states, caches, plain, packed = jax.device_get(every_pass(graphs, weights, context, mask, own))
    np.testing.assert_allclose(packed[mask], plain[mask], atol=2e-5)
    for way in ("packed", "lower and upper", "listed", "cached"):
        np.testing.assert_allclose(states[way], states["plain"], atol=2e-5, err_msg=way)
    for way in ("packed", "lower and upper", "listed"):  # and their caches hold the same where the context is real
        for a, b in zip(jax.tree.leaves(caches[way]), jax.tree.leaves(caches["plain"]), strict=True):
            real = np.broadcast_to(mask[:, None, :, None], a.shape)
            np.testing.assert_allclose(a[real], b[real], atol=2e-5, err_msg=way)


def test_padding_changes_nothing():
    lm, tokens = random_decoder(SPECS["gemma3"]), left_padded(2, 9)[0]
    short = full_logits(lm, tokens, np.ones((2, 9), bool))
    padded = np.pad(tokens, ((0, 0), (5, 0)), constant_values=8)
    long = full_logits(lm, padded, np.broadcast_to(np.arange(14) >= 5, (2, 14)))
    np.testing.assert_allclose(long[:, 5:], short, atol=2e-5)


def test_module_holds_the_weights():
    lm, (tokens, mask) = random_decoder(SPECS["llama"]), left_padded(2, 9)
    call = nnx.jit(lambda module: module(tokens, mask))
    wanted = np.asarray(full_logits(lm, tokens, mask))
    np.testing.assert_allclose(np.asarray(call(lm))[mask], wanted[mask], atol=2e-5)
    lm.final_norm.scale[...] = jnp.zeros(lm.spec.width)  # an NNX parameter: what is set is used
    assert not np.asarray(call(lm)).any()


def test_what_trains_is_selected_by_a_filter():
    lm = divided(random_decoder(SPECS["llama"]), 1)
    graph, trained, frozen = nnx.split(lm, decoder.top_layers, ...)
    assert set(layers.plain(trained)) == {"upper", "final_norm", "head"}
    assert set(layers.plain(frozen)) == {"embed", "lower"}
    again = nnx.merge(graph, layers.plain(trained), layers.plain(frozen))
    tokens, mask = left_padded(2, 9)
    np.testing.assert_array_equal(again(tokens, mask), lm(tokens, mask))


def test_bfloat16_stays_close():
    lm, (tokens, mask) = random_decoder(SPECS["llama"]), left_padded(2, 9)
    exact = np.asarray(full_logits(lm, tokens, mask))
    lm.set_attributes(dtype="bfloat16")
    rounded = np.asarray(full_logits(lm, tokens, mask))
    error = np.abs(rounded - exact)[mask].max() / np.abs(exact).max()
    assert rounded.dtype == np.float32 and 1e-5 < error < 0.03


# ---- log-probabilities


def naive_log_probs(lm, x, tokens, temperature):
    scores = jax.nn.log_softmax(lm.logits(x) / temperature)
    return jnp.take_along_axis(scores, tokens[..., None], -1)[..., 0]


def hidden_and_tokens(spec, *shape):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((*shape, spec.width)).astype(np.float32)
    return x, rng.integers(0, spec.vocab, shape), rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("name, temperature", [("llama", 0.7), ("gemma2", 1.0)])  # own head; tied, soft-capped
def test_log_probs_in_chunks(name, temperature):
    spec = SPECS[name]
    graph, weights = nnx.split(random_decoder(spec))
    x, tokens, _ = hidden_and_tokens(spec, 2, 3, 7)

    @jax.jit
    def both(weights):
        lm = nnx.merge(graph, weights)
        chunks = (1, 12, 18, 10_000)  # 1, 2, 3 (not dividing 7) and all positions at once
        found = [lm.log_probs(x, tokens, temperature, chunk) for chunk in chunks]
        return found, naive_log_probs(lm, x, tokens, temperature)

    found, wanted = both(layers.plain(weights))
    for a in found:
        np.testing.assert_allclose(a, wanted, atol=1e-5)


@pytest.mark.parametrize("name", ("llama", "gemma2"))  # own head; tied, soft-capped
@pytest.mark.parametrize("frozen_head", (False, True))
def test_gradients_of_log_probs(name, frozen_head):
    """Equal to those of log_softmax over all logits, and to a finite difference; with a frozen head, the others'."""
    spec = SPECS[name]
    x, tokens, factor = hidden_and_tokens(spec, 2, 2, 5)
    graph, weights = nnx.split(random_decoder(spec))
    top = {name: part for name, part in layers.plain(weights).items()}
    moving = ("final_norm",) if frozen_head else ("final_norm", "embed" if spec.tied else "head")

    def total(log_probs, *rest):
        def value(moved, x):
            return jnp.sum(factor * log_probs(nnx.merge(graph, top | moved), x, tokens, 0.8, *rest))

        return jax.jit(value)

    chunked, naive = total(Decoder.log_probs, 8, frozen_head), total(naive_log_probs)
    at = {name: top[name] for name in moving}, x
    found, wanted = (jax.jit(jax.grad(f, (0, 1)))(*at) for f in (chunked, naive))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, wanted)
    check_grads(chunked, at, order=1, modes=["rev"], atol=0.02, rtol=0.02, eps=1e-2)
