"""A soft prompt stands before a prompt's tokens, as transformers reads embeddings; it alone trains, and decoding sees it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from ml_collections import ConfigDict

from lpt_jax import devices
from lpt_jax.data.made_up import tiny_tokenizer
from lpt_jax.errors import InputError
from lpt_jax.generation import LanguageModel
from lpt_jax.learning import next_token, policy
from lpt_jax.learning.loop import Part
from lpt_jax.models import layers, soft_prompts, weights
from tests.tiny_models import SPECS, left_padded, random_decoder

B, P, M, G, T = 3, 7, 4, 2, 5


def with_prompt(name="llama", table=None):
    lm = random_decoder(SPECS[name])
    table = np.random.default_rng(5).standard_normal((M, SPECS[name].width)) if table is None else table
    lm.soft_prompt = soft_prompts.SoftPrompt(jnp.asarray(table, jnp.float32))
    return lm


def parts(lm):
    graph, trained, frozen = nnx.split(lm, soft_prompts.SoftPromptParam, ...)
    return graph, layers.plain(trained), layers.plain(frozen)


@pytest.mark.parametrize("name", SPECS)
def test_vectors_that_are_tokens_embeddings_do_what_the_tokens_do(name):
    """In rows of different padding, and where windows count what is near."""
    tokens, mask = left_padded(B, P)
    ids, plain = np.array([11, 4, 50, 7]), random_decoder(SPECS[name])
    lm = with_prompt(name, plain.embed.table[...][ids] * plain.spec.embed_scale)
    found = lm(tokens, mask)
    assert found.shape == (B, P, 97)
    for row in range(B):
        real = np.concatenate([ids, tokens[row][mask[row]]])[None]
        wanted = plain(real, np.ones(real.shape, bool))[0, M:]
        np.testing.assert_allclose(found[row][mask[row]], wanted, rtol=1e-4, atol=1e-4)
    assert float(jnp.abs(found - plain(tokens, mask)).max()) > 0.1


def test_transformers_reads_the_same_from_embeddings(tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    lm, (tokens, _) = with_prompt(), left_padded(B, P)
    tokenizer = tiny_tokenizer()
    plain = random_decoder(SPECS["llama"])
    plain.source = weights.Source(tokenizer, tokenizer.pad_token_id, frozenset({5}))
    graph, arrays = nnx.split(plain)
    weights.save_decoder(tmp_path / "lm", nnx.merge(graph, jax.tree.map(np.asarray, layers.plain(arrays))))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "lm").eval()
    table = torch.tensor(np.asarray(lm.soft_prompt.table[...]))[None].expand(B, -1, -1)
    with torch.no_grad():
        embedded = torch.cat([table, theirs.get_input_embeddings()(torch.tensor(tokens).long())], 1)
        wanted = theirs(inputs_embeds=embedded).logits.numpy()[:, M:]
    np.testing.assert_allclose(lm(tokens, np.ones(tokens.shape, bool)), wanted, atol=1e-4)


def language_model(lm, length=T):
    lm.source = weights.Source(tiny_tokenizer(), 0, frozenset({96}))
    mesh = devices.make_mesh(ConfigDict({"data": 1, "fsdp": 1, "model": 1}), jax.devices()[:1])
    made = LanguageModel(lm, soft_prompts.SoftPromptParam, mesh, ConfigDict({"max_tokens": length, "batch": 3}))
    made.lengths = (P,)
    return made


def test_sampled_tokens_have_the_full_passes_probabilities():
    """Drawn with cached states by the sampler; scored by learning; and by the whole model one continuation at a time."""
    made, whole = language_model(with_prompt()), with_prompt()
    tokens, mask = left_padded(B, P)
    prompts = [row[real].tolist() for row, real in zip(tokens, mask, strict=True)]
    profiles, put = made.sample(made.fresh(), prompts, range(B), jax.random.key(3), made.how(G, 1.0, keep_hidden=True))
    plan = policy.Plan(made.graph, optax.sgd(0.1), below=made.below, chunk=4)
    scored = policy.score(plan, made.frozen, made.fresh(), profiles, put[:, :-1])
    np.testing.assert_allclose(scored, profiles.log_probs, atol=1e-4)
    for row, prompt in enumerate(prompts):
        for g in range(G):
            ids = np.concatenate([prompt, np.asarray(profiles.tokens[row, g])])[None]
            logits = whole(ids, np.ones(ids.shape, bool))[0, len(prompt) - 1 : -1]
            wanted = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), ids[0, len(prompt) :, None], 1)[:, 0]
            real = np.asarray(profiles.mask[row, g])
            np.testing.assert_allclose(np.asarray(scored[row, g])[real], wanted[real], atol=1e-4)


def test_only_the_vectors_move_and_along_the_losses_slope():
    graph, trained, frozen = parts(with_prompt())
    assert jax.tree.map(jnp.shape, trained) == {"soft_prompt": {"table": (M, 32)}}
    prompts, mask = left_padded(B, P)
    rng = np.random.default_rng(1)
    texts, counts = rng.integers(3, 97, (B, G, T)).astype(np.int32), np.array([[5, 2], [3, 0], [1, 4]])
    plan = policy.Plan(graph, optax.sgd(1.0), below=0, chunk=4, remat=False)

    def loss(weights):
        part = Part(jax.tree.map(jnp.array, weights), plan.optimiser.init(weights))
        return next_token.update(plan, frozen, part, prompts, mask, texts, counts)

    moved, first = loss(trained)
    slope = trained["soft_prompt"]["table"] - moved.weights["soft_prompt"]["table"]  # of a step of 1
    way = jnp.asarray(rng.standard_normal((M, 32)), jnp.float32)
    way /= jnp.linalg.norm(way)
    ends = [
        float(loss({"soft_prompt": {"table": trained["soft_prompt"]["table"] + h * way}})[1]["loss"])
        for h in (-0.01, 0.01)
    ]
    assert (ends[1] - ends[0]) / 0.02 == pytest.approx(float(jnp.sum(slope * way)), rel=0.02)
    smaller, _ = loss(jax.tree.map(lambda a, s: a - 0.05 * s, trained, {"soft_prompt": {"table": slope}}))
    assert float(loss(smaller.weights)[1]["loss"]) < float(first["loss"])


def test_it_begins_as_a_texts_tokens():
    lm = random_decoder(SPECS["gemma2"])
    lm.source = weights.Source(tiny_tokenizer(), 0, frozenset({5}))
    ids = lm.tokenizer("space films", add_special_tokens=False)["input_ids"]
    soft_prompts.attach(lm, 5, "space films")
    wanted = lm.embed.table[...][np.array([*ids, *ids, ids[0]])] * lm.spec.embed_scale
    np.testing.assert_allclose(lm.soft_prompt.table[...], wanted, rtol=1e-6)
    with pytest.raises(InputError, match="'' has none"):
        soft_prompts.attach(lm, 5, "")
