"""Floating-point operations of matrix products: what the mathematics of each program needs, and what a traced program does.

    needs(run)["policy update"]                                    # of a profiles_programs.Shapes: needed, and recomputed on purpose
    traced_operations(needed(program.function.trace(*program.arguments)), trips)

An operation is an addition or a multiplication, over all devices; tests/test_operations.py holds the two together.
"""

import math
from typing import NamedTuple

import jax
from jax.extend import core
from jax.interpreters import partial_eval

from lpt_jax import devices, profiles_programs, similarity, topologies

# ---- what the mathematics needs


class Operations(NamedTuple):
    """Of one program."""

    need: float
    again: float = 0.0  # once more to save memory (remat, a trained head's logits), and trained matrices' second halves


def pass_operations(spec, users, prompt, rows, length, layers, top=False, attention=True) -> float:
    """Operations of a pass of packed rows (`rows` continuations in all) through decoder layers.

    top: in the last of them the context gives keys and values only; attention: its own are counted.
    """
    heads, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    token = 2 * (2 * spec.width * (heads + kv) + 3 * spec.width * spec.hidden)
    context, own = users * prompt, rows * length
    pairs = (users * prompt * (prompt + 1) / 2, own * (prompt + (length + 1) / 2)) if attention else (0, 0)
    total = layers * (token * (context + own) + 4 * heads * sum(pairs))
    return total - (token * context + 4 * heads * pairs[0] - 4 * context * spec.width * kv if top else 0)


def embedding_operations(spec, texts, length) -> float:
    """Operations of embedding so many texts of one length."""
    token = 2 * (4 * spec.width**2 + 2 * spec.width * spec.hidden) + 4 * spec.width * length
    return spec.layers * texts * length * token


def needs(run: profiles_programs.Shapes) -> dict[str, Operations]:
    """Of every program of profiles_programs.programs(run)."""
    settings = run.config.policy
    return {
        "write profiles": writing(run, run.config.profile.batch, 1),
        "rollout": writing(run, settings.users, settings.samples),
        "scoring": Operations(sum(scoring(run, settings.users)), sum(second_halves(run, settings.users))),
        "policy update": policy_update(run),
        "contrastive step": contrastive_step(run),
        "embed catalogue": embedding(run),
        "ranking": ranking(run),
    }


def sizes(run: profiles_programs.Shapes) -> tuple[int, int]:
    """Tokens of a context and of a profile."""
    return run.config.prompt.max_tokens - 1, run.config.profile.max_tokens


def lora_operations(run: profiles_programs.Shapes, tokens: int, own: int) -> float:
    """Operations of x·a·b of every LoRA matrix: of so many tokens, in the head of the profiles' own alone."""
    if run.config.policy.trains != "lora":
        return 0.0
    matrices = jax.tree.leaves_with_path(run.state["lm"].weights)
    return 2.0 * sum((tokens if path[0].key == "upper" else own) * matrix.size for path, matrix in matrices)


def writing(run: profiles_programs.Shapes, users: int, samples: int) -> Operations:
    """Of sampling profiles: a prefill, and every profile's tokens one by one."""
    spec, (prompt, length), rows = run.lm.spec, sizes(run), users * samples
    prefill = pass_operations(spec, users, prompt, 0, 0, spec.layers, top=True)
    decode = pass_operations(spec, 0, prompt, rows, length, spec.layers)
    head = 2 * rows * length * spec.width * spec.vocab
    need = prefill + decode + head + lora_operations(run, users * prompt + rows * length, rows * length)
    return Operations(need, sum(second_halves(run, users, samples)))


def second_halves(run: profiles_programs.Shapes, users: int, samples: int = 0) -> tuple[float, float]:
    """Of a pass through the trained layers and a trained head: their float32 matrices' second halves (models/products.py)."""
    if run.config.policy.trains == "lora" or devices.product_type(run.config.lm.dtype) == "float32":
        return 0.0, 0.0
    spec, (prompt, length), rows = run.lm.spec, sizes(run), users * (samples or run.config.policy.samples)
    layers = pass_operations(spec, users, prompt, rows, length, spec.layers - run.lm.below, top=True, attention=False)
    return layers, 2 * rows * length * spec.width * spec.vocab if "head" in run.state["lm"].weights else 0.0


def scoring(run: profiles_programs.Shapes, users: int) -> tuple[float, float, float]:
    """Of the trained layers, of the head, and of LoRA."""
    spec, (prompt, length), rows = run.lm.spec, sizes(run), users * run.config.policy.samples
    layers = pass_operations(spec, users, prompt, rows, length, spec.layers - run.lm.below, top=True)
    head = 2 * rows * length * spec.width * spec.vocab
    return layers, head, lora_operations(run, users * prompt + rows * length, rows * length)


def policy_update(run: profiles_programs.Shapes) -> Operations:
    """Three passes over what trains, two over what is frozen."""
    settings, spec, (prompt, length) = run.config.policy, run.lm.spec, sizes(run)
    users, frozen = settings.users // settings.minibatches, settings.trains == "lora"
    layers, head, lora = scoring(run, users)
    trains_head = "head" in run.state["lm"].weights
    need = (2 if frozen else 3) * layers + (3 if trains_head and not frozen else 2) * head + 3 * lora
    again = head if trains_head else 0.0
    if run.config.lm.remat:  # of the MLP's last product nobody asks for the result
        tokens = (spec.layers - run.lm.below) * users * (prompt + settings.samples * length) - users * prompt
        again += layers - 2 * spec.hidden * spec.width * tokens + lora
    halves = second_halves(run, users)
    again += halves[0] * (2 if run.config.lm.remat else 1) + 2 * halves[1]
    return Operations(need, again)


def contrastive_step(run: profiles_programs.Shapes) -> Operations:
    """Three passes over as many lines as there are texts."""
    program = profiles_programs.programs(run)["contrastive step"]
    need = embedding_operations(run.embedder.spec, *program.data[0]["tokens"].shape)
    return Operations(3 * need, need if run.config.lm.remat else 0.0)


def embedding(run: profiles_programs.Shapes) -> Operations:
    """Of a batch of the catalogue."""
    room, _ = similarity.line_of(run.embedder.item_limit)
    return Operations(embedding_operations(run.embedder.spec, run.config.embedder.batch, room))


def ranking(run: profiles_programs.Shapes) -> Operations:
    """Of all items' scores for a rollout's profiles."""
    profiles = run.config.policy.users * run.config.policy.samples
    return Operations(2.0 * profiles * topologies.ITEMS * run.embedder.spec.width)


# ---- what a program does


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
