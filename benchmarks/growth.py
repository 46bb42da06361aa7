"""How time and memory of each part grow with users, items, prompt length, profile length and G.

One thing changes at a time; the others stay at 8 users, prompts of 192 tokens, profiles of 32, G = 4. Tokens are
random, no profile ends early. Seconds are the fastest of three calls; memory is what XLA plans for the program:
arguments, results and temporaries. The exponent is the logarithm of the last step's ratio over that of the sizes: 1
is linear, 2 quadratic. Pictures: benchmarks/growth_<axis>.png, with the straight line through the first two points
dashed.
"""

import math
import time

import numpy as np

from benchmarks import harness, inputs

BASE = {"users": 8, "prompt": 192, "profile": 32, "G": 4}
AXES = {
    "users": (4, 8, 16, 32), "prompt": (96, 192, 384, 768), "profile": (16, 32, 64, 128), "G": (2, 4, 8, 16),
    "items": (12_500, 50_000, 200_000, 800_000), "catalogue": (256, 512, 1024, 2048),
}  # fmt: skip
SMALL = {"users": 2, "prompt": 16, "profile": 4, "G": 2}  # --tiny
SMALL_AXES = {axis: tuple(2 * n for n in (1, 2, 4)) for axis in BASE} | {
    "items": (500, 1000, 2000),
    "catalogue": (8, 16, 32),
}
HISTORY, TEXT, TEXTS, REPEATS = 128, 32, 64, 3


def timed(function, static: dict, given: dict, carried: str = ""):
    """Seconds and planned bytes of a jitted function, and its result; its static and its other arguments by name.

    carried: an argument that is donated, which the first result replaces.
    """
    import jax

    compiled = function.lower(**static, **given).compile()
    planned = compiled.memory_analysis()
    own = planned.argument_size_in_bytes + planned.output_size_in_bytes - planned.alias_size_in_bytes
    where = jax.tree.map(lambda a: a.sharding, given.get(carried))
    seconds, out = [], None
    for _ in range(1 + REPEATS):
        out = None  # the last call's results, before new ones are made
        started = time.perf_counter()
        out = jax.block_until_ready(compiled(**given))
        seconds.append(time.perf_counter() - started)
        if carried:
            given = given | {carried: jax.device_put(out[0], where)}
    return {"seconds": min(seconds[1:]), "bytes": own + planned.temp_size_in_bytes}, out


def of_policy(r, users: int, prompt: int, profile: int, G: int) -> dict:
    """Generation, scoring and one update."""
    import jax
    import jax.numpy as jnp

    from lpt_jax import generation
    from lpt_jax.learning import optimisers, policy
    from lpt_jax.learning.loop import Part

    rng, found = np.random.default_rng(0), {}
    tokens = jnp.asarray(rng.integers(inputs.FIRST_WORD, r.lm.spec.vocab, (users, prompt)), jnp.int32)
    mask, keys = jnp.ones((users, prompt), bool), jnp.asarray(rng.integers(0, 2**31, (users, 2)), jnp.uint32)
    rewards = jnp.asarray(rng.standard_normal((users, G)), jnp.float32)
    weights, optimiser = r.fresh("lm"), optimisers.of(r.config.policy, 1)

    how = generation.Sampling(profile, ends=(-1,), pad=0, samples=G, temperature=1.0, keep_hidden=True)
    given = {"weights": r.lm.prepared(weights), "prompts": tokens, "mask": mask, "keys": keys}
    found["generation"], profiles = timed(generation.sample, {"how": how}, given)

    plan = {"plan": policy.plan_of(r, optimiser)}
    rollout = {"frozen": r.lm.frozen, "profiles": profiles, "context_mask": mask[:, :-1]}
    found["scoring"], old = timed(policy.score, plan, rollout | {"weights": weights})
    part = Part(weights, jax.tree.map(jnp.asarray, optimiser.init(weights)))
    given = rollout | {"part": part, "old": old, "rewards": rewards}
    found["update"], _ = timed(policy.update, plan, given, carried="part")
    return found


def of_ranking(profiles: int, items: int, width: int) -> dict:
    """Ranks of one target for each profile."""
    import jax.numpy as jnp

    from lpt_jax import ranking

    rng = np.random.default_rng(0)
    chosen = jnp.asarray(rng.integers(0, items, (profiles, HISTORY + 1)), jnp.int32)
    catalogue, rows = (jnp.asarray(rng.standard_normal((n, width), np.float32)) for n in (items, profiles))
    given = {"profiles": rows, "items": catalogue, "targets": chosen[:, :1], "hidden": chosen[:, 1:]}
    return {"ranking": timed(ranking.counted, {}, given)[0]}


def of_catalogue(r, weights: dict, texts: int) -> dict:
    """Embedding texts of 32 tokens, 64 at once."""
    import jax
    import jax.numpy as jnp

    from lpt_jax import similarity

    spec, shape = r.embedder.spec, (min(TEXTS, texts), TEXT)
    tokens = jnp.asarray(np.random.default_rng(0).integers(inputs.FIRST_WORD, spec.vocab, shape), jnp.int32)
    room, most = similarity.line_of(TEXT)
    tokens, segments = (
        tokens.reshape(-1, room),
        jnp.tile(jnp.repeat(jnp.arange(1, room // TEXT + 1), TEXT), (tokens.size // room, 1)),
    )
    batches = texts // shape[0]
    compiled = similarity.embed_batch.lower(r.embedder.graph, weights, tokens, segments, most).compile()
    seconds = []
    for _ in range(1 + REPEATS):
        started = time.perf_counter()
        jax.block_until_ready([compiled(weights, tokens, segments) for _ in range(batches)])
        seconds.append(time.perf_counter() - started)
    planned = compiled.memory_analysis()
    held = planned.argument_size_in_bytes + planned.temp_size_in_bytes + texts * spec.width * 4
    return {"embedding": {"seconds": min(seconds[1:]), "bytes": held}}


def measure(options) -> dict:
    """{axis: {part: {"sizes", "seconds", "bytes", "exponent"}}}; writes the pictures unless options.tiny."""
    import jax

    base, axes = (SMALL, SMALL_AXES) if options.tiny else (BASE, AXES)
    r, found = inputs.recommender(options), {}
    encoder, width = r.fresh("embedder"), r.embedder.spec.width
    for axis, sizes in axes.items():
        rows = []
        for size in sizes:
            if axis == "items":
                rows.append(of_ranking(64, size, width))
            elif axis == "catalogue":
                rows.append(of_catalogue(r, encoder, size))
            else:
                point = base | {axis: size}
                rows.append(of_policy(r, **point))
                if axis in ("users", "G"):
                    rows[-1] |= of_ranking(point["users"] * point["G"], axes["items"][1], width)
            jax.clear_caches()
            said = ", ".join(
                f"{part} {of['seconds']:.3g} s {of['bytes'] / harness.GIB:.2f} GiB" for part, of in rows[-1].items()
            )
            print(f"growth over {axis}, {size}: {said}", flush=True)
        found[axis] = {part: _curve(sizes, [row[part] for row in rows]) for part in rows[0]}
        if not options.tiny:
            picture(axis, found[axis])
    return found


def _curve(sizes, points: list[dict]) -> dict:
    curve = {"sizes": list(sizes)} | {name: [point[name] for point in points] for name in ("seconds", "bytes")}
    step = math.log(sizes[-1] / sizes[-2])
    exponents = {name: math.log(curve[name][-1] / curve[name][-2]) / step for name in ("seconds", "bytes")}
    return curve | {"exponent": exponents}


def picture(axis: str, curves: dict) -> None:
    """growth_<axis>.png: seconds and GiB of each part over the sizes."""
    from matplotlib.figure import Figure

    from lpt_jax.files import write_file
    from lpt_jax.report import ACCENT, GREY, INK, SECOND, axes_of, png

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    panels = (("seconds", "Seconds", 1), ("bytes", "GiB", harness.GIB))
    for place, (name, title, unit) in enumerate(panels, 1):
        axes = axes_of(figure, 1, 2, place)
        for color, (part, curve) in zip((ACCENT, SECOND, INK, GREY), curves.items()):
            sizes, values = curve["sizes"], [value / unit for value in curve[name]]
            slope = (values[1] - values[0]) / (sizes[1] - sizes[0])
            straight = [values[0] + slope * (size - sizes[0]) for size in sizes]
            axes.plot(sizes, straight, color=color, linewidth=0.8, linestyle="--")
            axes.plot(sizes, values, color=color, linewidth=1.5, marker="o", ms=3.5, label=part)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.set_title(title, fontsize=10, color=INK, loc="left")
        axes.set_xlabel(axis, fontsize=9, color=INK)
        axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    write_file(harness.HERE / f"growth_{axis}.png", png(figure))
