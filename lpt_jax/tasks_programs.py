"""The programs of systems that name items by codes (recommendation knowledge, PeaPOD), with shapes in place of arrays, for --mode=check."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lpt_jax import devices, item_writer, personal_writer, search
from lpt_jax.data.tasks import CODED, TASKS, longest
from lpt_jax.learning import optimisers, tasks
from lpt_jax.learning.loop import Part
from lpt_jax.models import decoder, encoder, layers, t5, weights
from lpt_jax.models.item_decoder import ItemDecoder
from lpt_jax.recommender import TINY_WIDTH
from lpt_jax.topologies import HISTORY, ITEMS, Program, bytes_of

WORDS = 8  # that an example has at least, where tasks.tokens says how many examples there are


# ---- a run without its data and weights


def model(config, of_codes: tuple[int, int]) -> t5.T5 | ItemDecoder:
    """The config's model; to be called within nnx.eval_shape."""
    settings, dtype, rngs = config.lm, devices.product_type(config.lm.dtype), nnx.Rngs(0)
    if settings.source == "scratch":
        lm = item_writer.random_model(settings, settings.vocab, of_codes, rngs)
    else:
        found = weights.config_of_lm(settings.source)
        if settings.kind == "t5":
            tied = found.get("scale_decoder_outputs", found.get("tie_word_embeddings", True))  # the files aren't read
            lm = t5.T5(t5.spec_from_hf(found, tied), rngs)
            lm.add_codes(*of_codes, rngs)
        else:
            lm = decoder.Decoder(decoder.spec_from_hf(found), rngs)
    lm.set_attributes(dtype=dtype)
    if settings.kind != "t5" and settings.source != "scratch":
        graph, arrays = nnx.split(lm)
        lm = nnx.merge(graph, jax.tree.map(lambda a: a.astype(dtype), layers.plain(arrays)))
    lm.source = weights.Source(None, 0)
    return item_writer.with_codes(lm, config, of_codes, rngs, size=1.0)


def width_of(source: str) -> int:
    """The size of an embedder's vectors."""
    return TINY_WIDTH if source == "tiny" else encoder.spec_from_hf(weights.configs_of_encoder(source)).width


class Shapes:
    """A run's model and state with shapes in place of arrays, placed on a mesh."""

    def __init__(self, config, mesh, platform: str):
        self.config, self.mesh, self.settings = config, mesh, config.tasks
        self.codes, personal = item_writer.code_shape(config, ITEMS), config.get("personal")
        self.kind = personal.kind if personal else "none"
        self.size = width_of(config.embedder.source) if self.kind == "profile" else personal and personal.size

        def whole():
            lm = model(config, self.codes)
            if self.kind != "none":
                kind = "own" if self.kind == "profile" else self.kind
                lm.personal = personal_writer.personal_prompt(personal, kind, self.size, lm.spec.width, 0)
            return lm

        self.lm = nnx.eval_shape(whole)
        self.lm.set_attributes(mesh=mesh)
        self.graph, trained, frozen = item_writer.divided(self.lm, config.tasks.trains)
        axes = layers.axes_of(self.lm)
        fresh, self.frozen = devices.place(trained, mesh, axes), devices.place(frozen, mesh, axes)
        self.optimiser = optimisers.of(config.tasks, config.tasks.steps)
        self.state = Part(fresh, devices.place(jax.eval_shape(self.optimiser.init, fresh), mesh, axes))
        levels, width = self.codes
        nodes = [min(width**level, ITEMS) for level in range(levels)]
        self.trie = tuple(jax.ShapeDtypeStruct((count, width), jnp.int32) for count in nodes)

    def batch(self, *shape, dtype=jnp.int32) -> jax.ShapeDtypeStruct:
        """An array whose first axis is spread over the devices."""
        return devices.split_batch(jax.ShapeDtypeStruct(shape, dtype), self.mesh)

    def resident(self) -> dict[str, float]:
        """Bytes that each part of the run holds on a device."""
        return {
            "language model, frozen": bytes_of(self.frozen),
            "lm": bytes_of(self.state.weights),
            "lm's optimiser": bytes_of(self.state.optimiser),
            "codes": float(sum(4 * np.prod(table.shape) for table in self.trie)),
        }


# ---- the programs, at their largest static shapes


def programs(run: Shapes) -> dict[str, Program]:
    """Every program of a config: an update for each task that it asks for, and what finds items."""
    found = {}
    for task in TASKS:
        words = run.settings.title_words and run.settings.hidden_words
        if run.settings.weights[task] and (words or task != "hidden_words"):
            found[task.replace("_", " ")] = update(run, task)
    found |= {"search": beam(run), "candidates": candidates(run)}
    return found | ({"explanations": explanations(run)} if run.settings.weights.explanation else {})


def who(run: Shapes, *shape: int) -> dict | None:
    """What a personal prompt reads for each of so many texts."""
    if run.kind == "none":
        return None
    read = {"task": run.batch(*shape)}
    if run.kind != "task":
        read["user"] = run.batch(*shape, run.size, dtype=jnp.float32)
    if run.kind == "neighbours":
        read["neighbours"] = run.batch(*shape, run.config.personal.neighbours, run.size, dtype=jnp.float32)
    return read


def update(run: Shapes, task: str) -> Program:
    """A step of a task; a text may need a line of its own."""
    s, (levels, _), most = run.settings, run.codes, tasks.MOST if run.lm.packs else 1
    texts, room = (s.tokens // WORDS if s.tokens else s.batch), s.max_tokens
    # all lines but one are more than half full, or have as many texts as a line may
    packed = 2 * (s.tokens + room) // room + texts // most + 1
    lines = min(texts, packed) if s.tokens and most > 1 else texts
    lines, length = -(-lines // tasks.LINES) * tasks.LINES, longest(s, task, levels)
    answers = texts * (length // levels if task in CODED else length)
    data = {
        "tokens": run.batch(lines, room),
        "texts": run.batch(lines, room),
        "digits" if task in CODED else "words": run.batch(lines, most, length),
        "there": run.batch(-(-answers // tasks.SCORED) * tasks.SCORED),
    }
    if (people := who(run, lines, most)) is not None:
        data["who"] = people
    penalty = run.config.personal.penalty if run.kind == "pool" else 0.0
    plan = tasks.Plan(run.graph, run.optimiser, run.config.lm.dropout, penalty)
    key = jax.eval_shape(lambda: jax.random.key(0))
    setting = "tasks.tokens" if s.tokens else "tasks.batch"
    return Program(tasks.update, (plan, run.frozen, run.state, data, key), (data,), setting)


def read(run: Shapes) -> tuple:
    """A batch of texts to find items for: tokens and mask."""
    shape = run.config.search.batch, tasks.rounded(run.settings.max_tokens)
    return run.batch(*shape), run.batch(*shape, dtype=bool)


def beam(run: Shapes) -> Program:
    texts, people, s = read(run), who(run, run.config.search.batch, 1), run.config.search
    beams, hidden = s.beams + run.config.data.eval_targets - 1, run.batch(s.batch, HISTORY)
    whole = layers.joined(run.state.weights, run.frozen)
    arguments = run.graph, whole, *texts, run.trie, hidden, beams, people
    return Program(search.beam, arguments, (texts, hidden, people), "search.batch")


def candidates(run: Shapes) -> Program:
    texts, people, s = read(run), who(run, run.config.search.batch, 1), run.config.search
    digits = run.batch(s.batch, s.candidates, run.codes[0])
    whole = layers.joined(run.state.weights, run.frozen)
    return Program(
        search.likelihoods, (run.graph, whole, *texts, digits, people), (texts, digits, people), "search.batch"
    )


def explanations(run: Shapes) -> Program:
    texts, people = read(run), who(run, run.config.search.batch, 1)
    whole, most = layers.joined(run.state.weights, run.frozen), run.settings.max_words
    return Program(search.greedy, (run.graph, whole, *texts, most, 0, people), (texts, people), "search.batch")
