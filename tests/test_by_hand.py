"""What a researcher does from outside: one RLSO update by hand, with the package's parts and no config."""

import types

import jax
import numpy as np
import optax
from flax import nnx

from lpt_jax import devices
from lpt_jax.data.made_up import tiny_tokenizer
from lpt_jax.generation import LanguageModel
from lpt_jax.learning import policy
from lpt_jax.learning.loop import Part
from lpt_jax.models import decoder, low_rank, weights


def saved_model(folder):
    """A tiny random decoder in a Hugging Face folder."""
    tokenizer = tiny_tokenizer()
    lm = decoder.Decoder(
        decoder.DecoderSpec("llama", len(tokenizer), 32, 3, 4, 2, 8, 48), nnx.Rngs(params=jax.random.key(0))
    )
    lm.source = weights.Source(tokenizer, tokenizer.pad_token_id, frozenset({tokenizer.eos_token_id}))
    weights.save_decoder(folder, lm)


def test_one_update_by_hand(tmp_path):
    saved_model(tmp_path)
    lm = decoder.Decoder.load(tmp_path)
    low_rank.attach(lm, "q|v|up", rank=4, alpha=8.0, key=jax.random.key(1))
    mesh = devices.make_mesh({"data": 1, "fsdp": 1, "model": 1}, jax.devices()[:1])
    model = LanguageModel(lm, nnx.LoRAParam, mesh, types.SimpleNamespace(max_tokens=5, batch=4))
    model.lengths = (16,)
    lora, prompts = model.fresh(), [lm.tokenizer(text)["input_ids"] for text in ("space comet films", "crime heist")]
    how = model.how(samples=4, temperature=1.0, keep_hidden=True)
    profiles, mask = model.sample(lora, prompts, range(2), jax.random.key(2), how)
    texts, _ = model.texts(profiles)
    rewards = np.array([[float(len(set(text.split()))) for text in of_user] for of_user in texts], np.float32)
    rewards -= rewards.mean(1, keepdims=True)
    plan = policy.Plan(model.graph, optax.sgd(0.3), below=0, loss="rloo")
    old = policy.score(plan, model.frozen, lora, profiles, mask[:, :-1])
    part = Part(lora, plan.optimiser.init(lora))
    part, metrics = policy.update(plan, model.frozen, part, profiles, mask[:, :-1], old, rewards)
    new = policy.score(plan, model.frozen, part.weights, profiles, mask[:, :-1])
    gained = np.asarray((new - old).sum(-1))
    assert np.isfinite(metrics["loss"]) and len({len(set(row)) for row in rewards.tolist()} - {1}) > 0
    assert (gained * rewards).sum() > 0  # what earned more has become likelier
