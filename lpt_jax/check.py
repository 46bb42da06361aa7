"""Compiles every program of a config for machines that need not be there: does it fit, what does it compute and send?

    python -m lpt_jax.main --config=configs/movies_tv_gemma.py --mode=check --topology=v5e:2x4

TPU slices compile with the package libtpu and H100s with jax's CUDA wheels, without the devices. No weights are read: of
models on the hub only the config, and for the two recipes' not even that (PUBLISHED).
"""

import dataclasses
import functools
import math
import os
import re
import time

import jax
import jax.numpy as jnp
from jax.experimental.compilation_cache import compilation_cache
from jax.extend import core
from jax.interpreters import partial_eval
from tqdm import tqdm

from lpt_jax import devices, generation, ranking, recommender, similarity
from lpt_jax.config import listed
from lpt_jax.errors import InputError
from lpt_jax.learning import contrastive, policy
from lpt_jax.models import decoder, encoder, weights

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


@dataclasses.dataclass
class Program:
    """What is compiled, and what the mathematics needs of it."""

    function: object  # a jitted function
    arguments: tuple
    static: dict
    parts: tuple[str, ...]  # of the run's state, those among the arguments
    need: float  # floating-point operations of its matrix products, over all devices
    again: float  # those that recomputation (remat, a trained head's logits) does once more
    working: float  # bytes on a device beside arguments and results
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


def specs(config) -> tuple[decoder.DecoderSpec, encoder.EncoderSpec]:
    """The specs of a config's models, for which no weights are read."""
    sources = config.lm.source, config.embedder.source
    if "tiny" in sources:
        return tuple(model.spec for model in recommender.load_models(config))
    if not all(source in PUBLISHED for source in sources):
        return weights.specs(*sources)
    writer, ranker = (weights.filled(PUBLISHED[source], source) for source in sources)
    return decoder.spec_from_hf(writer), encoder.spec_from_hf({"config.json": ranker})


class Run:
    """What recommender.ProfileRecommender and a run's state hold, as shapes on a mesh."""

    def __init__(self, config, mesh, platform: str):
        self.config, self.mesh = config, mesh
        spec, ranker = specs(config)
        self.decoder = recommender.with_settings(spec, config, mesh)
        self.encoder = dataclasses.replace(ranker, mesh=mesh)
        self.optimisers = recommender.make_optimisers(config)

        def shaped(shapes, dtype):
            return jax.tree.map(
                lambda s: jax.ShapeDtypeStruct(s, dtype), shapes, is_leaf=lambda s: isinstance(s, tuple)
            )

        lora = config.policy.trains == "lora"
        split = functools.partial(policy.split, self.decoder, settings=config.policy, key=jax.random.key(0))
        trunk, upper, trained = jax.eval_shape(split, shaped(decoder.shapes(self.decoder), self.decoder.dtype))
        self.start = trunk["layers"]["q"].shape[0]
        if recommender.frozen_listed(config, mesh, platform):
            trunk, upper = jax.eval_shape(recommender.with_lists, trunk, upper)
        masters = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.float32), trained)
        ranker = shaped(encoder.shapes(self.encoder), jnp.float32)
        writing = jax.eval_shape(policy.assemble, upper, masters)
        writing.pop("embed", None)

        def unstacked(layers):
            unstack = functools.partial(generation.unstack, dtype=self.decoder.dtype, joined=mesh.size == 1)
            return None if isinstance(layers, list) else jax.eval_shape(unstack, layers)

        parts = {
            "trunk": trunk, "trunk_list": unstacked(trunk["layers"]), "upper": upper,
            "policy": masters, "policy_optimiser": jax.eval_shape(self.optimisers["policy"].init, masters),
            "encoder": ranker, "encoder_optimiser": jax.eval_shape(self.optimisers["encoder"].init, ranker),
            "writing": writing, "writing_list": unstacked(writing["layers"]),
            "items": jax.ShapeDtypeStruct((ITEMS + -ITEMS % mesh.size, self.encoder.width), jnp.float32),
        } | ({} if lora else {"reference": trained})  # fmt: skip
        if {"history_trained", "contrastive"} <= {*listed(config.evaluation.baselines), *listed(config.phases)}:
            parts |= {f"control{end}": parts[f"encoder{end}"] for end in ("", "_optimiser")}
        self.parts = {name: self.placed(tree, devices.shardings(tree, mesh)) for name, tree in parts.items()}
        self.parts["items"] = self.placed(parts["items"], devices.row_sharding(mesh))

    @staticmethod
    def placed(tree, shardings):
        """Shapes that lie where these shardings say."""
        return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree, shardings)

    def batch(self, *shape, dtype=jnp.int32):
        """An array whose first axis is spread over the devices."""
        return jax.ShapeDtypeStruct(shape, dtype, sharding=devices.batch_sharding(shape, self.mesh))

    def resident(self) -> dict[str, float]:
        """Bytes that each part of the run holds on a device; what is one buffer in two parts counts once."""
        sizes = {name: bytes_of(tree) for name, tree in self.parts.items()}
        slices = bytes_of(self.parts["policy"].get("layers", ())) if self.listed else 0.0  # what trains, beside a list
        return sizes | {"upper": sizes["upper"] - self.tied_embed(), "writing": slices}

    @property
    def listed(self) -> bool:
        """Whether the writer's upper layers lie in a list."""
        return isinstance(self.parts["writing"]["layers"], list)

    def gathered(self, *parts: str) -> float:
        """Bytes that a device lacks of the head and of a layer of each part: whole while it computes with them."""

        def lacking(tree):
            return sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(tree)) - bytes_of(tree)

        trees = [self.parts[name] for name in parts]
        tops = {n: a for tree in trees for n, a in tree.items() if n.startswith(("head", "embed"))}
        if "head" in tops:
            tops.pop("embed", None)
        stacks = [tree["layers"] for tree in trees if jax.tree.leaves(tree["layers"])]
        counts = [len(s) if isinstance(s, list) else max(jax.tree.leaves(s)[0].shape[0], 1) for s in stacks]
        return lacking(tops) + sum(lacking(stack) / count for stack, count in zip(stacks, counts))

    def tied_embed(self) -> float:
        """Bytes on a device of the table that the trunk and a tied head share."""
        return bytes_of(self.parts["upper"].get("embed", ()))

    def beside(self, parts: tuple[str, ...]) -> float:
        """Bytes that the run holds on a device while a program runs whose arguments these parts are."""
        others = sum(size for name, size in self.resident().items() if name not in parts)
        if "upper" in parts and "trunk" not in parts:
            others -= self.tied_embed()
        if "writing" in parts and "policy" not in parts:  # of what trains only the layers' slices are new
            others -= bytes_of({name: a for name, a in self.parts["policy"].items() if name != "layers"})
        return others


# ---- what the mathematics needs


def pass_operations(spec, users, prompt, rows, length, layers, top=False) -> float:
    """Operations of a pass of packed rows (`rows` continuations in all) through decoder layers.

    top: in the last of them the context gives keys and values only.
    """
    heads, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    token = 2 * (2 * spec.width * (heads + kv) + 3 * spec.width * spec.hidden)
    context, own = users * prompt, rows * length
    pairs = users * prompt * (prompt + 1) / 2, own * (prompt + (length + 1) / 2)
    total = layers * (token * (context + own) + 4 * heads * sum(pairs))
    return total - (token * context + 4 * heads * pairs[0] - 4 * context * spec.width * kv if top else 0)


def embedding_operations(spec, texts, length) -> float:
    """Operations of embedding so many texts of one length."""
    token = 2 * (4 * spec.width**2 + 2 * spec.width * spec.hidden) + 4 * spec.width * length
    return spec.layers * texts * length * token


def programs(run: Run) -> dict[str, Program]:
    """Every program of a config, at its largest static shapes."""
    c, spec, enc, parts, batch = run.config, run.decoder, run.encoder, run.parts, run.batch
    settings, f32 = c.policy, jnp.float32
    prompt, length, samples, users = c.prompt.max_tokens - 1, c.profile.max_tokens, settings.samples, settings.users
    depth, width, found = spec.layers - run.start, spec.width, {}
    lora = settings.trains == "lora"

    ways = run.mesh.shape["data"] * run.mesh.shape["fsdp"]

    def share(count):  # of a batch, on a device
        return count / ways

    def adapters(tokens, rows):  # x·a·b of every LoRA matrix
        if not lora:
            return 0.0
        sizes = [(path[0].key, math.prod(a.shape)) for path, a in jax.tree.leaves_with_path(parts["policy"])]
        return 2 * sum((tokens if where == "layers" else rows) * n for where, n in sizes)

    def writing(users, samples, keep):
        rows = users * samples
        need = pass_operations(spec, users, prompt, 0, 0, spec.layers, top=True)
        need += pass_operations(spec, 0, prompt, rows, length, spec.layers) + 2 * rows * length * width * spec.vocab
        need += adapters(users * prompt + rows * length, rows * length)
        tokens = users * prompt + rows * length
        cache = tokens * 2 * spec.layers * spec.kv_heads * spec.head_dim * jnp.dtype(spec.dtype).itemsize
        step = users * prompt * 4 * (2 * spec.hidden + 4 * width) + rows * spec.vocab * 8
        return Program(
            generation.sample,
            (spec, parts["trunk"], parts["trunk_list"], parts["writing"], parts["writing_list"],
             batch(users, prompt + 1), batch(users, prompt + 1, dtype=bool), batch(users, 2, dtype=jnp.uint32)),
            {"samples": samples, "max_tokens": length, "temperature": 1.0, "eos": (1,), "pad": 0, "keep_hidden": keep},
            ("trunk", "trunk_list", "writing", "writing_list", "upper", *(() if run.listed else ("policy",))), need, 0.0,
             share(cache + step + keep * tokens * width * 4) + run.gathered("trunk", "writing"),
            "profile.batch" if samples == 1 else "policy.users",
        )  # fmt: skip

    found["write profiles"] = writing(c.profile.batch, 1, False)
    found["rollout"] = writing(users, samples, True)

    def rollouts(users):
        rows = (users, samples, length)
        states = batch(users, prompt, width, dtype=f32), batch(*rows, width, dtype=f32)
        return generation.Profiles(batch(*rows), batch(*rows, dtype=bool), batch(*rows, dtype=f32), *states), batch(
            users, prompt, dtype=bool
        )

    def scoring(users, training):
        """Operations of the layers, the head and the adapters; working bytes on a device."""
        rows, tokens = users * samples, users * (prompt + samples * length)
        layers = pass_operations(spec, users, prompt, rows, length, depth, top=True)
        states = width * tokens * (depth if training and c.lm.remat else 2) * 4
        layer = tokens * 4 * (3 * spec.hidden + 8 * width) * (1 + training)
        words = max(settings.logits_chunk, rows) * spec.vocab * 4 * (1 + training)
        return (
            layers,
            2 * rows * length * width * spec.vocab,
            adapters(tokens, rows * length),
            share(states + layer + words),
        )

    static = {"start": run.start, "temperature": 1.0, "chunk": settings.logits_chunk}
    layers, head, low, _ = scoring(users, False)
    working = scoring(users // settings.accumulation, False)[-1]
    found["scoring"] = Program(
        policy.score, (spec, parts["upper"], parts["policy"], *rollouts(users)),
        static | {"accumulation": settings.accumulation}, ("upper", "policy"),
        layers + head + low, 0.0, working + run.gathered("upper", "policy"), "policy.users, or raise policy.accumulation",
    )  # fmt: skip
    users //= settings.minibatches
    layers, head, low, _ = scoring(users, True)
    working = scoring(users // settings.accumulation, True)[-1]
    # nobody asks for it again
    down = 2 * spec.hidden * width * (depth * users * (prompt + samples * length) - users * prompt)
    trains_head = any(name.startswith("head") for name in parts["policy"])
    old = None if settings.epochs * settings.minibatches == 1 else batch(users, samples, length, dtype=f32)
    found["policy update"] = Program(
        policy.update,
        (spec, parts["upper"], parts["policy"], parts["policy_optimiser"], *rollouts(users), old,
         batch(users, samples, dtype=f32)),
        static | {"optimiser": run.optimisers["policy"], "loss": settings.loss, "eta": settings.eta,
                  "clip_ratio": settings.clip_ratio, "remat": c.lm.remat, "accumulation": settings.accumulation},
        ("upper", "policy", "policy_optimiser"),
        (2 if lora else 3) * layers + (3 if trains_head and not lora else 2) * head + 3 * low,
        (layers - down + low if c.lm.remat else 0.0) + (head if trains_head else 0.0),
        working + bytes_of(parts["policy"]) + run.gathered("upper", "policy") + run.gathered("policy"), "policy.logits_chunk, or raise policy.accumulation",
    )  # fmt: skip

    candidates = c.contrastive.batch + c.contrastive.hard_negatives
    limits = [min(n, enc.max_tokens) for n in (c.embedder.max_profile_tokens, c.embedder.max_item_tokens)]
    texts = -(-(c.contrastive.batch + candidates) // ways) * ways  # at most a line for each

    def lines(count, longest):  # Tokens and Segments, and how many texts a line can have
        room, most = similarity.line_of(longest)
        return {"tokens": batch(count, room), "texts": batch(count, room)}, room, most

    def embedding_bytes(texts, length):
        return texts * length * 4 * (2 * enc.hidden + 8 * enc.width + 2 * enc.heads * length)

    data, room, most = lines(texts, max(limits))
    data |= {"profiles": batch(c.contrastive.batch), "items": batch(candidates), "correction": batch(candidates, dtype=f32),
             "excluded": batch(c.contrastive.batch, candidates, dtype=bool)}  # fmt: skip
    need = embedding_operations(enc, texts, room)
    kept = texts * room * 4 * enc.width * enc.layers + 2 * embedding_bytes(texts, room)
    dtype = devices.product_type(c.embedder.dtype)
    found["contrastive step"] = Program(
        contrastive.update, (enc, parts["encoder"], parts["encoder_optimiser"], data),
        {"optimiser": run.optimisers["encoder"], "temperature": c.contrastive.temperature, "most": most, "dtype": dtype,
         "remat": c.lm.remat},
        ("encoder", "encoder_optimiser"), 3 * need, need if c.lm.remat else 0.0,
        share(kept) + bytes_of(parts["encoder"]), "contrastive.batch",
    )  # fmt: skip
    data, room, most = lines(c.embedder.batch, limits[1])
    found["embed catalogue"] = Program(
        similarity.embed_batch, (enc, parts["encoder"], data["tokens"], data["texts"]), {"most": most, "dtype": dtype},
        ("encoder",), embedding_operations(enc, c.embedder.batch, room), 0.0,
        share(embedding_bytes(c.embedder.batch, room)), "embedder.batch",
    )  # fmt: skip
    profiles = settings.users * samples
    found["ranking"] = Program(
        ranking.counted,
        (batch(profiles, enc.width, dtype=f32), parts["items"], batch(profiles, c.data.targets),
         batch(profiles, HISTORY), jax.ShapeDtypeStruct((), jnp.int32)),
        {"ways": run.mesh.size, "room": ranking.ACCELERATOR}, ("items",), 2.0 * profiles * ITEMS * enc.width, 0.0,
        2 * 4 * profiles * ITEMS / run.mesh.size, "policy.users",
    )  # fmt: skip
    return found


# ---- what the program does


def needed(traced):
    """The jaxpr of a traced program without what no result needs, such as frozen weights' gradients: XLA drops it too."""
    jaxpr = traced.jaxpr.jaxpr
    return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]


def traced_operations(jaxpr, trips: int) -> float:
    """Operations of all matrix products of a traced program; a scan's body counts its length, a while-loop's `trips`."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            contracted = equation.params["dimension_numbers"][0][0]
            left = equation.invars[0].aval.shape
            total += 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[d] for d in contracted)
            continue
        times = {"scan": equation.params.get("length"), "while": trips}.get(equation.primitive.name, 1)
        total += times * sum(traced_operations(inner, trips) for inner in core.jaxprs_in_params(equation.params))
    return total


def most_logits(jaxpr, vocab: int) -> int:
    """For how many positions the traced program ever holds logits at once."""
    shapes = [v.aval.shape for e in jaxpr.eqns for v in e.outvars if hasattr(v.aval, "shape")]
    found = [math.prod(s[:-1]) for s in shapes if len(s) > 2 and s[-1] == vocab]  # a matrix [D, V] is a head
    found += [most_logits(inner, vocab) for e in jaxpr.eqns for inner in core.jaxprs_in_params(e.params)]
    return max(found, default=0)


def measure(program: Program, run: Run, platform: str) -> dict:
    """Compiles one program: bytes on a device, operations, collectives, positions with logits, and seconds."""
    started = time.monotonic()
    traced = program.function.trace(*program.arguments, **program.static)
    jaxpr = needed(traced)
    found = {
        "operations": traced_operations(jaxpr, run.config.profile.max_tokens),
        "need": program.need, "again": program.again, "setting": program.setting,
        "logits": most_logits(jaxpr, run.decoder.vocab),
    }  # fmt: skip
    cached = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)  # what it holds only a device that is there can load
    compilation_cache.reset_cache()  # or an earlier compilation's answer to whether there is one holds
    try:
        compiled = traced.lower(lowering_platforms=(platform,)).compile()
    except jax.errors.JaxRuntimeError as error:
        return found | {"error": " ".join(str(error).split())[:300]}
    finally:
        jax.config.update("jax_enable_compilation_cache", cached)
        compilation_cache.reset_cache()
    memory, text = compiled.memory_analysis(), compiled.as_text()
    own = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    others = run.beside(program.parts)
    return found | {
        "peak": own + memory.temp_size_in_bytes + others,
        "resident": own + program.working + others,
        "collectives": {n: len(re.findall(rf" {n}(?:-start)?\(", text)) for n in COLLECTIVES},
        "seconds": time.monotonic() - started,
    }


def check(config, topology: str) -> bool:
    """Compiles and measures every program of a config on a topology, and prints the table: whether all fit."""
    found, platform, memory = machine(topology)
    run = Run(config, devices.make_mesh(config.mesh, found), platform)
    rows = {}
    for name, program in (bar := tqdm(programs(run).items(), unit="program")):
        bar.set_description(name)
        rows[name] = measure(program, run, platform) | {"memory": memory}
        rows[name]["fits"] = rows[name].get("peak", math.inf) <= memory
    print(table(rows, config, topology, run))
    return all(row["fits"] for row in rows.values())


def table(rows: dict, config, topology: str, run: Run) -> str:
    """The figures as a Markdown table, and what to change where a program does not fit."""
    parts = sorted(run.resident().items(), key=lambda part: -part[1])
    lines = [
        f"{config.name} on {topology} ({next(iter(rows.values()))['memory'] / GIB:.2f} GiB a device); the run's state: "
        + ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts if size > 0.005 * GIB) + " GiB a device", "",
        "| program | fits | peak GiB a device | of what must be there | TFLOP | of what is needed | recomputed "
        "| positions with logits | collectives | compiled in |", "|---" * 10 + "|",
    ]  # fmt: skip
    for name, row in rows.items():
        if "error" in row:
            lines.append(f"| {name} | **no** | {row['error'][:120]} |" + " |" * 7)
            continue
        sent = ", ".join(f"{count} {kind}" for kind, count in row["collectives"].items() if count) or "none"
        ratio = (row["operations"] - row["again"]) / row["need"]
        lines.append(
            f"| {name} | {'yes' if row['fits'] else '**no**'} | {row['peak'] / GIB:.2f} "
            f"| {row['peak'] / row['resident']:.2f} × | {row['operations'] / 1e12:.3g} | {ratio:.2f} × "
            f"| {row['again'] / 1e12:.3g} | {row['logits']} | {sent} | {row['seconds']:.0f} s |"
        )
    for name, row in rows.items():
        if not row["fits"]:
            lines += ["", f"{name} does not fit: lower --config.{row['setting']}, or take more devices."]
    return "\n".join(lines)
