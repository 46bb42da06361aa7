"""The programs of LangPTune's training, with shapes in place of arrays, for --mode=check."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from lpt_jax import devices, generation, ranking, recommender, similarity
from lpt_jax.config import listed
from lpt_jax.learning import contrastive, next_token, optimisers, policy
from lpt_jax.learning.loop import Part
from lpt_jax.models import decoder, encoder, layers, weights
from lpt_jax.topologies import HISTORY, ITEMS, Program, bytes_of

# ---- a run without its data and weights


def models(config) -> tuple[decoder.Decoder, encoder.TextEncoder]:
    """The config's models with shapes in place of arrays."""
    sources = config.lm.source, config.embedder.source
    if "tiny" in sources:
        load = recommender.load_decoder, recommender.load_encoder
        return tuple(nnx.eval_shape(functools.partial(model, config)) for model in load)
    of_lm, of_encoder = weights.config_of_lm(sources[0]), weights.configs_of_encoder(sources[1])
    dtype = devices.product_type(config.lm.dtype)
    lm = nnx.eval_shape(lambda: decoder.Decoder(decoder.spec_from_hf(of_lm), nnx.Rngs(0)))
    graph, shapes = nnx.split(lm)
    lm = nnx.merge(graph, jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, dtype), layers.plain(shapes)))
    lm.set_attributes(dtype=dtype)
    lm.source = weights.Source(None, 0, frozenset({1}))
    text_encoder = nnx.eval_shape(lambda: encoder.TextEncoder(encoder.spec_from_hf(of_encoder), nnx.Rngs(0)))
    text_encoder.source = weights.Source(None, 0)
    return lm, text_encoder


def part(model, optimiser) -> Part:
    """What trains of a model, and its optimiser's state."""
    fresh = model.fresh()
    return Part(fresh, model.place(jax.eval_shape(optimiser.init, fresh)))


class Shapes:
    """A run's models and state with shapes in place of arrays, placed on a mesh."""

    def __init__(self, config, mesh, platform: str):
        lm, text_encoder = models(config)
        self.config, self.mesh = config, mesh
        self.lm = recommender.language_model(config, lm, mesh, jax.random.key(0), platform)
        self.embedder = similarity.Embedder(similarity.DualEncoder(text_encoder), config.embedder, mesh, ".")
        of_lm, embedder = optimisers.of_lm(config), optimisers.of(config.contrastive, 1)
        lm = next(iter(of_lm.values()))  # any of them begins the state of all
        self.optimisers = of_lm | {"contrastive": embedder}
        self.state = {"lm": part(self.lm, lm), "embedder": part(self.embedder, embedder)}
        if {"history_trained", "contrastive"} <= {*listed(config.evaluation.baselines), *listed(config.phases)}:
            self.state["control"] = self.state["embedder"]
        of_layer = {path[1:]: axes for path, axes in self.lm.axes.items() if path[0] == "upper"}
        self.writing = self.lm.prepared(self.state["lm"].weights)
        self.writing = dataclasses.replace(self.writing, layers=devices.place(self.writing.layers, mesh, of_layer))
        items = ITEMS + -ITEMS % mesh.size, self.embedder.spec.width + 1  # the bias
        self.items = jax.ShapeDtypeStruct(items, jnp.float32, sharding=devices.row_sharding(mesh))

    def batch(self, *shape, dtype=jnp.int32) -> jax.ShapeDtypeStruct:
        """An array whose first axis is spread over the devices."""
        return devices.split_batch(jax.ShapeDtypeStruct(shape, dtype), self.mesh)

    def resident(self) -> dict[str, float]:
        """Bytes that each part of the run holds on a device; decoding reads listed layers where they are."""
        lists = filter(layers.is_listed, jax.tree.leaves(self.lm.frozen, is_leaf=layers.is_listed))
        return {
            "language model, frozen": bytes_of(self.lm.frozen),
            "its layers for decoding": bytes_of(self.writing.layers) - bytes_of(list(lists)),
            "its reference": bytes_of(self.lm.reference[1]),
            **{name: bytes_of(part.weights) for name, part in self.state.items()},
            **{f"{name}'s optimiser": bytes_of(part.optimiser) for name, part in self.state.items()},
            "items": bytes_of(self.items),
        }


# ---- the programs, at their largest static shapes


def programs(run: Shapes) -> dict[str, Program]:
    """Every program of a config."""
    settings, single = run.config.policy, run.lm.how(1, run.config.contrastive.sampling_temperature)
    found = {"write profiles": writing(run, run.config.profile.batch, single, "profile.batch")}
    if "knowledge" in run.optimisers:
        found["knowledge step"] = imitation_step(run, "knowledge", 1)
    if "imitation" in run.optimisers:
        found["imitation step"] = imitation_step(run, "imitation", next_token.texts_of_session(run.config.imitation))
    if "policy" in run.optimisers:
        found |= {"rollout": rollout(run, settings.users), "scoring": scoring(run), "policy update": policy_update(run)}
    return found | {"contrastive step": contrastive_step(run), "embed catalogue": embedding(run), "ranking": rank(run)}


def writing(run: Shapes, users: int, how: generation.Sampling, setting: str) -> Program:
    prompt = run.config.prompt.max_tokens
    data = run.batch(users, prompt), run.batch(users, prompt, dtype=bool), run.batch(users, 2, dtype=jnp.uint32)
    return Program(generation.sample, (run.writing, *data, how), data, setting)


def rollout(run: Shapes, users: int) -> Program:
    settings = run.config.policy
    return writing(run, users, run.lm.how(settings.samples, settings.temperature, keep_hidden=True), "policy.users")


def rolled_out(run: Shapes, users: int) -> tuple[generation.Profiles, jax.ShapeDtypeStruct]:
    """What a rollout gives, and the context's mask."""
    sample, (*arguments, how), (tokens, *_), _ = rollout(run, users)
    profiles = jax.eval_shape(functools.partial(sample, how=how), *arguments)
    return devices.split_batch(profiles, run.mesh), run.batch(users, tokens.shape[1] - 1, dtype=bool)


def scoring(run: Shapes) -> Program:
    plan, data = policy.plan_of(run, run.optimisers["policy"]), rolled_out(run, run.config.policy.users)
    arguments = plan, run.lm.frozen, run.state["lm"].weights, *data
    return Program(policy.score, arguments, data, "policy.users, or raise policy.accumulation")


def policy_update(run: Shapes) -> Program:
    settings, plan = run.config.policy, policy.plan_of(run, run.optimisers["policy"])
    users = settings.users // settings.minibatches
    profiles, context_mask = rolled_out(run, users)
    once = settings.epochs * settings.minibatches == 1  # then the update itself has the old policy's
    old = None if once else profiles.log_probs
    data = profiles, context_mask, old, run.batch(users, settings.samples, dtype=jnp.float32)
    arguments = plan, run.lm.frozen, run.state["lm"], *data
    return Program(policy.update, arguments, data, "policy.logits_chunk, or raise policy.accumulation")


def imitation_step(run: Shapes, phase: str, texts: int) -> Program:
    """A step of a phase in which the language model learns given texts, so many of a prompt."""
    users, prompt, length = run.config[phase].batch, run.config.prompt.max_tokens, run.config.profile.max_tokens
    asked = run.batch(users, prompt), run.batch(users, prompt, dtype=bool)
    data = *asked, run.batch(users, texts, length), run.batch(users, texts)
    plan = next_token.plan_of(run.lm, run.optimisers[phase], run.config.policy.logits_chunk, run.config.lm.remat)
    return Program(next_token.update, (plan, run.lm.frozen, run.state["lm"], *data), data, f"{phase}.batch")


def contrastive_step(run: Shapes) -> Program:
    settings, ways = run.config.contrastive, devices.ways(run.mesh)
    pairs, candidates = settings.batch, settings.batch + settings.hard_negatives + contrastive.drawn_for_edits(settings)
    lines = -(-(pairs + candidates) // ways) * ways  # at most one for each text
    room, most = similarity.line_of(max(run.embedder.profile_limit, run.embedder.item_limit))
    data = {
        "tokens": run.batch(lines, room),
        "texts": run.batch(lines, room),
        "profiles": run.batch(pairs),
        "items": run.batch(candidates),
        "correction": run.batch(pairs, candidates, dtype=jnp.float32),
        "excluded": run.batch(pairs, candidates, dtype=bool),
    }
    plan = contrastive.plan_of(run, run.optimisers["contrastive"], most)
    return Program(contrastive.update, (plan, run.state["embedder"], data), (data,), "contrastive.batch")


def embedding(run: Shapes) -> Program:
    room, most = similarity.line_of(run.embedder.item_limit)
    data = run.batch(run.config.embedder.batch, room), run.batch(run.config.embedder.batch, room)
    arguments = run.embedder.graph, run.state["embedder"].weights, *data, most
    return Program(similarity.embed_batch, arguments, data, "embedder.batch")


def rank(run: Shapes) -> Program:
    data, profiles = run.config.data, run.config.policy.users * run.config.policy.samples
    vectors = run.batch(profiles, run.items.shape[1], dtype=jnp.float32)
    targets, hidden = run.batch(profiles, max(data.targets, data.eval_targets)), run.batch(profiles, HISTORY)
    valid = jax.ShapeDtypeStruct((), jnp.int32)
    arguments = vectors, run.items, targets, hidden, valid, run.mesh.size, ranking.ACCELERATOR
    return Program(ranking.counted, arguments, (vectors, targets, hidden), "policy.users")
