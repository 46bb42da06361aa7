"""Compiles the training functions of a config for machines that need not be there: does it fit, and what is sent?

    python -m lpt_jax.main --config=configs/movies_tv_gemma.py --mode=check --topology=v5e:2x4

TPU slices compile with the package libtpu and H100s with jax's CUDA wheels, without the devices. No weights are read: of
models on the hub only the config, and for the two recipes' not even that (PUBLISHED).
"""

import dataclasses
import math
import os
import re
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache
from tqdm import tqdm

from lpt_jax import devices, generation, ranking, recommender, similarity
from lpt_jax.config import listed
from lpt_jax.errors import InputError
from lpt_jax.learning import contrastive, optimisers, policy
from lpt_jax.learning.loop import Part
from lpt_jax.models import decoder, encoder, layers, weights

GIB = 1 << 30
MEMORY = {"v4": 31.25, "v5e": 15.75, "v5p": 95.74, "v6e": 31.25, "h100": 79.1}  # GiB that programs can have on a device
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
ITEMS, HISTORY = 100_000, 256  # the catalogue, and the longest hidden history: the data aren't read
H100 = """
device_description_str: "NVIDIA H100 80GB HBM3" platform_name: "CUDA"
runtime_version { major: 12 minor: 8 } dnn_version_info { major: 9 minor: 8 }
gpu_device_info {
  cuda_compute_capability { major: 9 } core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98 threads_per_warp: 32
  threads_per_core_limit: 2048 threads_per_block_limit: 1024
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_core: 233472 shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  l2_cache_size: 52428800 memory_bandwidth: 3352320000000 device_memory_size: 84929347584
}"""  # what the compiler asks of the device
PUBLISHED = {  # config.json of the recipes' models
    "google/gemma-2b-it": {
        "model_type": "gemma", "vocab_size": 256000, "hidden_size": 2048, "num_hidden_layers": 18, "head_dim": 256,
        "num_attention_heads": 8, "num_key_value_heads": 1, "intermediate_size": 16384, "rms_norm_eps": 1e-6,
    },
    "meta-llama/Meta-Llama-3-8B-Instruct": {
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "num_hidden_layers": 32, "rope_theta": 5e5,
        "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    },
    "mixedbread-ai/mxbai-embed-large-v1": {
        "vocab_size": 30522, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
        "intermediate_size": 4096, "max_position_embeddings": 512, "layer_norm_eps": 1e-12, "type_vocab_size": 2,
    },
}  # fmt: skip


class Program(NamedTuple):
    """What is compiled: a jitted function and its arguments, of which `data` are no part of the run's state."""

    function: object
    arguments: tuple
    data: tuple
    setting: str  # what to lower where it doesn't fit


# ---- a machine and a run, without either


def machine(topology: str):
    """The devices of a topology such as "v5e:2x4" or "h100:8", its platform, and a device's memory in bytes."""
    from jax.experimental import topologies

    kind, _, shape = topology.partition(":")
    if kind not in MEMORY or not re.fullmatch(r"\d+(x\d+)*", shape):
        known = "v5e:2x4, v5p:2x2x1, v6e:2x4, v4:2x2x1 or h100:8"
        raise InputError(f"--topology={topology} is not known: say, for example, {known}.")
    count = math.prod(map(int, shape.split("x")))
    os.environ.update(TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    jax.config.update("jax_platforms", "cpu")  # what is here takes no part
    try:
        if kind == "h100":
            found = topologies.get_topology_desc(platform="cuda", target_config=H100, topology=f"1x1x{count}")
        else:
            alone = {"chips_per_host_bounds": (1, 1, 1)} if count == 1 else {}
            found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **alone)
    except Exception as error:
        package = "jax[cuda12]" if kind == "h100" else "libtpu"
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"Nothing compiles for {topology} here: pip install '{package}' first ({reason}).") from None
    return list(found.devices), "cuda" if kind == "h100" else "tpu", MEMORY[kind] * GIB


def bytes_of(tree) -> float:
    """Bytes of a tree of placed shapes on one device."""
    return sum(math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize for a in jax.tree.leaves(tree))


def models(config) -> tuple[decoder.Decoder, encoder.TextEncoder]:
    """The config's models with shapes in place of weights, of which none are read."""
    sources = config.lm.source, config.embedder.source
    if "tiny" in sources:
        return tuple(
            nnx.eval_shape(lambda load=load: load(config))
            for load in (recommender.load_decoder, recommender.load_encoder)
        )
    if all(source in PUBLISHED for source in sources):
        of_decoder, of_encoder = (weights.filled(PUBLISHED[source], source) for source in sources)
        of_encoder = {"config.json": of_encoder}
    else:
        of_decoder, of_encoder = weights.configs(*sources)
    spec, dtype = decoder.spec_from_hf(of_decoder), devices.product_type(config.lm.dtype)
    lm = nnx.eval_shape(lambda: decoder.Decoder(spec, nnx.Rngs(0)))
    graph, shapes = nnx.split(lm)
    lm = nnx.merge(graph, jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, dtype), layers.plain(shapes)))
    lm.set_attributes(dtype=dtype)
    lm.source = weights.Source(None, 0, frozenset({1}))
    spec = encoder.spec_from_hf(of_encoder)
    text_encoder = nnx.eval_shape(lambda: encoder.TextEncoder(spec, nnx.Rngs(0)))
    text_encoder.source = weights.Source(None, 0)
    return lm, text_encoder


class Shapes:
    """A run's models and state with shapes in place of arrays, placed on a mesh."""

    def __init__(self, config, mesh, platform: str):
        lm, text_encoder = models(config)
        self.config, self.mesh = config, mesh
        self.lm = recommender.language_model(config, lm, mesh, jax.random.key(0), platform)
        dual = similarity.DualEncoder(text_encoder)
        self.embedder = similarity.Embedder(dual, config.embedder, mesh, ".")
        self.optimisers = {"lm": optimisers.of(config.policy, 1), "embedder": optimisers.of(config.contrastive, 1)}
        self.state = {"lm": self.part("lm", self.lm), "embedder": self.part("embedder", self.embedder)}
        if {"history_trained", "contrastive"} <= {*listed(config.evaluation.baselines), *listed(config.phases)}:
            self.state["control"] = self.state["embedder"]
        of_layer = {path[1:]: axes for path, axes in self.lm.axes.items() if path[0] == "upper"}
        prepared = self.lm.prepared(self.state["lm"].weights)
        self.writing = dataclasses.replace(prepared, layers=devices.place(prepared.layers, mesh, of_layer))
        items = jax.ShapeDtypeStruct((ITEMS + -ITEMS % mesh.size, self.embedder.spec.width), jnp.float32)
        self.items = jax.ShapeDtypeStruct(items.shape, items.dtype, sharding=devices.row_sharding(mesh))

    def part(self, name: str, model) -> Part:
        fresh = model.fresh()
        return Part(fresh, model.place(jax.eval_shape(self.optimisers[name].init, fresh)))

    def batch(self, *shape, dtype=jnp.int32):
        """An array whose first axis is spread over the devices."""
        return jax.ShapeDtypeStruct(shape, dtype, sharding=devices.batch_sharding(shape, self.mesh))

    def resident(self) -> dict[str, float]:
        """Bytes that each part of the run holds on a device."""
        lower, upper = self.writing.layers
        trained = self.state["lm"].weights
        if any(
            map(layers.is_listed, jax.tree.leaves(self.lm.frozen, is_leaf=layers.is_listed))
        ):  # decoding reads the lists
            lower, upper = [], trained["upper"]
        return {
            "language model, frozen": bytes_of(self.lm.frozen),
            "its layers for decoding": bytes_of((lower, upper)),
            "its reference": bytes_of(self.lm.reference[1]),
            **{name: bytes_of(part.weights) for name, part in self.state.items()},
            **{f"{name}'s optimiser": bytes_of(part.optimiser) for name, part in self.state.items()},
            "items": bytes_of(self.items),
        }


# ---- the programs


def programs(run: Shapes) -> dict[str, Program]:
    """Every program of a config, at its largest static shapes."""
    settings = run.config.policy
    return {
        "write profiles": writing(run, run.config.profile.batch, run.lm.how(1, 1.0), "profile.batch"),
        "rollout": writing(run, settings.users, run.lm.how(settings.samples, 1.0, True), "policy.users"),
        "scoring": scoring(run),
        "policy update": policy_update(run),
        "contrastive step": contrastive_step(run),
        "embed catalogue": embedding(run),
        "ranking": rank(run),
    }


def writing(run: Shapes, users: int, how: generation.Sampling, setting: str) -> Program:
    prompt = run.config.prompt.max_tokens
    data = run.batch(users, prompt), run.batch(users, prompt, dtype=bool), run.batch(users, 2, dtype=jnp.uint32)
    return Program(generation.sample, (run.writing, *data, how), data, setting)


def rollout(run: Shapes, users: int) -> tuple[generation.Profiles, jax.ShapeDtypeStruct]:
    """Profiles of so many users, and the context's mask."""
    config, f32 = run.config, jnp.float32
    rows, prompt = (users, config.policy.samples, config.profile.max_tokens), config.prompt.max_tokens - 1
    width = run.lm.spec.width
    states = run.batch(users, prompt, width, dtype=f32), run.batch(*rows, width, dtype=f32)
    tokens, mask, log_probs = run.batch(*rows), run.batch(*rows, dtype=bool), run.batch(*rows, dtype=f32)
    return generation.Profiles(tokens, mask, log_probs, *states), run.batch(users, prompt, dtype=bool)


def scoring(run: Shapes) -> Program:
    plan, data = policy.plan_of(run, run.optimisers["lm"]), rollout(run, run.config.policy.users)
    arguments = plan, run.lm.frozen, run.state["lm"].weights, *data
    return Program(policy.score, arguments, data, "policy.users, or raise policy.accumulation")


def policy_update(run: Shapes) -> Program:
    settings, plan = run.config.policy, policy.plan_of(run, run.optimisers["lm"])
    users = settings.users // settings.minibatches
    data = rollout(run, users)
    once = settings.epochs * settings.minibatches == 1  # then the update itself has the old policy's
    old = None if once else data[0].log_probs
    data = *data, old, run.batch(users, settings.samples, dtype=jnp.float32)
    arguments = plan, run.lm.frozen, run.state["lm"], *data
    return Program(policy.update, arguments, data, "policy.logits_chunk, or raise policy.accumulation")


def contrastive_step(run: Shapes) -> Program:
    settings, f32 = run.config.contrastive, jnp.float32
    candidates, ways = settings.batch + settings.hard_negatives, devices.ways(run.mesh)
    lines = -(-(settings.batch + candidates) // ways) * ways  # at most a line for each
    room, most = similarity.line_of(max(run.embedder.profile_limit, run.embedder.item_limit))
    data = {
        "tokens": run.batch(lines, room),
        "texts": run.batch(lines, room),
        "profiles": run.batch(settings.batch),
        "items": run.batch(candidates),
        "correction": run.batch(candidates, dtype=f32),
        "excluded": run.batch(settings.batch, candidates, dtype=bool),
    }
    plan = contrastive.plan_of(run, run.optimisers["embedder"], most)
    return Program(contrastive.update, (plan, run.state["embedder"], data), (data,), "contrastive.batch")


def embedding(run: Shapes) -> Program:
    room, most = similarity.line_of(run.embedder.item_limit)
    data = run.batch(run.config.embedder.batch, room), run.batch(run.config.embedder.batch, room)
    arguments = run.embedder.graph, run.state["embedder"].weights, *data, most
    return Program(similarity.embed_batch, arguments, data, "embedder.batch")


def rank(run: Shapes) -> Program:
    profiles = run.config.policy.users * run.config.policy.samples
    vectors = run.batch(profiles, run.embedder.spec.width, dtype=jnp.float32)
    targets, hidden = run.batch(profiles, run.config.data.targets), run.batch(profiles, HISTORY)
    valid = jax.ShapeDtypeStruct((), jnp.int32)
    arguments = vectors, run.items, targets, hidden, valid, run.mesh.size, ranking.ACCELERATOR
    return Program(ranking.counted, arguments, (vectors, targets, hidden), "policy.users")


# ---- compiling


def measure(program: Program, run: Shapes, platform: str) -> dict:
    """Compiles one program: bytes on a device, collectives, and seconds."""
    started, cached = time.monotonic(), jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)  # what it holds only a device that is there can load
    compilation_cache.reset_cache()  # or an earlier compilation's answer to whether there is one holds
    try:
        compiled = program.function.trace(*program.arguments).lower(lowering_platforms=(platform,)).compile()
    except jax.errors.JaxRuntimeError as error:
        return {"error": " ".join(str(error).split())[:300], "setting": program.setting}
    finally:
        jax.config.update("jax_enable_compilation_cache", cached)
        compilation_cache.reset_cache()
    memory, text = compiled.memory_analysis(), compiled.as_text()
    new = memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.temp_size_in_bytes
    return {
        "peak": sum(run.resident().values()) + bytes_of(program.data) + new,
        "collectives": {n: len(re.findall(rf" {n}(?:-start)?\(", text)) for n in COLLECTIVES},
        "seconds": time.monotonic() - started,
        "setting": program.setting,
    }


def check(config, topology: str) -> bool:
    """Compiles and measures every program of a config on a topology, and prints the table: whether all fit."""
    found, platform, memory = machine(topology)
    run = Shapes(config, devices.make_mesh(config.mesh, found), platform)
    rows = {}
    for name, program in (bar := tqdm(programs(run).items(), unit="program")):
        bar.set_description(name)
        rows[name] = measure(program, run, platform)
        rows[name]["fits"] = rows[name].get("peak", math.inf) <= memory
    print(table(rows, f"{config.name} on {topology} ({memory / GIB:.2f} GiB a device)", run))
    return all(row["fits"] for row in rows.values())


def table(rows: dict, title: str, run: Shapes) -> str:
    """The figures as a Markdown table, and what to change where a program does not fit."""
    parts = sorted(run.resident().items(), key=lambda part: -part[1])
    state = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts if size > 0.005 * GIB)
    lines = [
        f"{title}; the run's state: {sum(run.resident().values()) / GIB:.2f} GiB a device ({state})",
        "",
        "| program | fits | peak GiB a device | collectives | compiled in |",
        "|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        if "error" in row:
            lines.append(f"| {name} | **no** | {row['error'][:120]} | | |")
            continue
        sent = ", ".join(f"{count} {kind}" for kind, count in row["collectives"].items() if count) or "none"
        fits = "yes" if row["fits"] else "**no**"
        lines.append(f"| {name} | {fits} | {row['peak'] / GIB:.2f} | {sent} | {row['seconds']:.0f} s |")
    for name, row in rows.items():
        if not row["fits"]:
            lines += ["", f"{name} does not fit: lower --config.{row['setting']}, or take more devices."]
    return "\n".join(lines)
