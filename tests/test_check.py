"""--mode=check: its programs beside a real run's, what the run holds, and one small config compiled for a slice that isn't there."""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import PartitionSpec as P

from lpt_jax import (
    config,
    devices,
    generation,
    profiles_programs,
    ranking,
    search,
    similarity,
    tasks_programs,
    topologies,
    train,
)
from lpt_jax.learning import contrastive, next_token, policy
from lpt_jax.main import main
from lpt_jax.models import layers
from lpt_jax.run import Run
from lpt_jax.systems import knowledge, peapod, profiles
from tests.conftest import ROOT


def test_bytes_are_those_of_one_device():
    mesh = devices.make_mesh({"data": 2, "fsdp": 2, "model": 2})
    spread, whole = (jax.sharding.NamedSharding(mesh, p) for p in (P("fsdp", "model"), P()))
    tree = [
        jax.ShapeDtypeStruct((8, 6), jnp.float32, sharding=spread),
        jax.ShapeDtypeStruct((5,), "bfloat16", sharding=whole),
    ]
    assert topologies.bytes_of(tree) == 8 * 6 * 4 / 4 + 5 * 2


def test_topology_is_for_check_alone(capsys):
    assert main(["main", f"--config={ROOT}/configs/movielens.py:tiny", "--topology=v5e:2x4"]) == 2
    assert "--topology is for --mode=check, and the mode is train" in capsys.readouterr().err
    assert main(["main", f"--config={ROOT}/configs/movielens.py:tiny", "--mode=check", "--processes=auto"]) == 2
    assert "--processes is not for --mode=check" in capsys.readouterr().err


# ---- beside a real run


class Both:
    """A tiny run with its state and phases by name, and the same in shapes."""

    def __init__(self, name, folder, **changes):
        asked = config.load(f"{ROOT}/configs/{name}", changes)
        self.r = profiles.build(Run(asked, folder))
        self.phases = {phase.name: phase for phase in profiles.schedule(self.r)}
        self.state = train.initial_state(self.r, list(self.phases.values()))
        self.shapes = profiles_programs.Shapes(asked, self.r.run.mesh, "cpu")
        self.programs = profiles_programs.programs(self.shapes)


@pytest.fixture(scope="module", params=["movielens.py:tiny", "movies_tv_gemma.py:tiny"])
def both(request, tmp_path_factory):
    return Both(request.param, tmp_path_factory.mktemp("run"))


def described(tree):
    """The shape and type of every array of a tree, by its path."""
    return {jax.tree_util.keystr(path): (a.shape, a.dtype) for path, a in jax.tree.leaves_with_path(tree)}


def assert_alike(shapes, arrays):
    """The same paths, shapes, types and devices."""
    assert described(shapes) == described(arrays)
    for shape, array in zip(jax.tree.leaves(shapes), jax.tree.leaves(arrays)):
        assert shape.sharding.is_equivalent_to(array.sharding, array.ndim), (shape, array.sharding)


def graph_of(graph, *trees):
    """A model's graph without its source, which equals none but itself."""
    model = nnx.merge(graph, *trees)
    model.set_attributes(source=None)
    return nnx.split(model)[0]


def static(plan, *trees):
    """A plan without its optimiser, which equals none but itself."""
    return dataclasses.replace(plan, graph=graph_of(plan.graph, *trees), optimiser=None)


def test_the_functions_are_those_that_train(both):
    imitates = [next_token.update] * ("imitation" in both.shapes.config.phases)
    assert [program.function for program in both.programs.values()] == [
        generation.sample,
        *imitates,
        generation.sample,
        policy.score,
        policy.update,
        contrastive.update,
        similarity.embed_batch,
        ranking.counted,
    ]


def test_a_rollout_and_its_update_are_a_run_s(both):
    """Prompts, profiles, what scores them and what trains on them: all but the values."""
    r, state, phase = both.r, both.state["lm"], both.phases["policy"]
    users, samples = r.config.policy.users, r.config.policy.samples
    how = r.lm.how(samples, r.config.policy.temperature, keep_hidden=True)
    prompts = [r.prompt(session)[0] for session in r.sessions["train"][:users]]
    writing, tokens, mask, keys, asked = both.programs["rollout"].arguments
    assert asked == how
    assert (keys.shape, keys.dtype) == ((users, 2), jnp.uint32)
    assert_alike(writing, r.lm.prepared(state.weights))
    assert_alike((tokens, mask), r.lm.pad_prompts(prompts))

    written, mask = r.lm.sample(state.weights, prompts, np.arange(users), r.run.key, how)
    rollout = written, mask[:, :-1]
    plan, frozen, weights, *data = both.programs["scoring"].arguments
    assert static(plan, weights, frozen) == static(phase.plan, state.weights, r.lm.frozen)
    assert_alike((frozen, weights), (r.lm.frozen, state.weights))
    assert described(data) == described(list(rollout))

    old, rewards = phase.score(phase.plan, state.weights, rollout), np.zeros((users, samples), np.float32)
    plan, frozen, part, *data = both.programs["policy update"].arguments
    assert static(plan, part.weights, frozen) == static(phase.plan, state.weights, r.lm.frozen)
    assert_alike((frozen, part), (r.lm.frozen, state))
    assert described(data) == described([*rollout, old, rewards])


def test_an_imitation_step_is_a_run_s(tmp_path):
    """Beside a policy phase, with whose optimiser it shares the state; alone, nothing of the policy is compiled."""
    both = Both("movielens.py:tiny", tmp_path, phases="imitation,policy")
    phase, asked, state = both.phases["imitation"], [], both.state["lm"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(next_token, "update", lambda *given: (asked.extend(given), (given[2], {}))[1])
        both.r.prepare()
        both.r.lm.lengths = both.shapes.lm.lengths or (both.r.config.prompt.max_tokens,)
        phase.rows, phase.left_out = [(row, [[7, 5]]) for row in range(len(both.r.sessions["train"]))], 0.0
        phase.step(both.state, 0)
    plan, frozen, part, *data = both.programs["imitation step"].arguments
    assert both.programs["imitation step"].function is next_token.update
    assert static(plan, part.weights, frozen) == static(asked[0], state.weights, both.r.lm.frozen)
    assert_alike((frozen, part), (both.r.lm.frozen, state))
    assert_alike(data, asked[3:])
    alone = profiles_programs.programs(Both("movielens.py:tiny", tmp_path / "alone", phases="imitation").shapes)
    assert "imitation step" in alone and not {"rollout", "scoring", "policy update"} & alone.keys()


def test_a_contrastive_step_is_a_run_s(both):
    """The control's, which needs no profiles written and has no edits; a batch has fewer lines where texts share them."""
    state, phase = both.state["control"], both.phases["control"]
    phase.begin(both.state)
    plan, part, data = both.programs["contrastive step"].arguments
    assert static(plan, part.weights) == static(phase.plan, state.weights)
    assert_alike(part, state)
    assert_alike(part, both.state["embedder"])
    drawn = contrastive.drawn_for_edits(both.r.config.contrastive)
    ways = devices.ways(both.r.run.mesh)
    lines = -(-(2 * both.r.config.contrastive.batch + drawn) // ways) * ways
    assert data["tokens"].shape == data["texts"].shape == (lines, phase.room)
    batch = phase.batch(0)
    assert data.keys() == batch.keys()
    for name, shape in data.items():
        assert shape.dtype == batch[name].dtype and shape.ndim == batch[name].ndim
    assert len(data["profiles"]) == len(batch["profiles"]) and len(data["items"]) == len(batch["items"]) + drawn
    assert data["excluded"].shape == data["correction"].shape == (len(data["profiles"]), len(data["items"]))


def test_embedding_and_ranking_are_a_run_s(both):
    r, weights = both.r, both.state["embedder"].weights
    graph, shapes, tokens, texts, most = both.programs["embed catalogue"].arguments
    assert graph_of(graph, shapes) == graph_of(r.embedder.graph, weights)
    assert_alike(shapes, weights)
    assert (tokens.shape[1], most) == similarity.line_of(r.embedder.item_limit)
    assert tokens.shape == texts.shape == (r.config.embedder.batch, tokens.shape[1])

    phase, users, samples = both.phases["policy"], r.config.policy.users, r.config.policy.samples
    phase.begin(both.state)
    earned = phase.earn([["Likes quiet films."] * samples] * users, r.sessions["train"][:users])
    vectors, items, targets, hidden, *_ = both.programs["ranking"].arguments
    assert vectors.shape == (users * samples, phase.earn.items.shape[1])
    assert targets.shape == (users * samples, earned.ranks.shape[-1])
    assert hidden.shape[1] >= phase.longest
    assert (items.shape[1], items.dtype) == (phase.earn.items.shape[1], phase.earn.items.dtype)
    assert items.sharding.is_equivalent_to(phase.earn.items.sharding, 2)


@pytest.mark.parametrize(
    ("name", "system", "changes"),
    [
        ("knowledge.py:tiny", knowledge, {}),
        ("knowledge_ml.py:tiny", knowledge, {"codes.levels": "1", "tasks.next_items": "3", "lm.remat": "true"}),
        ("knowledge.py:tiny", knowledge, {"lm.kind": "decoder", "tasks.trains": "last_layers"}),
        ("peapod.py:tiny", peapod, {"personal.kind": "neighbours"}),
        ("peapod.py:tiny", peapod, {"personal.kind": "profile"}),
        ("knowledge.py:tiny", knowledge, {"tasks.tokens": "2000", "tasks.max_tokens": "200", "codes.levels": "1"}),
    ],
    ids=["t5", "ratings", "decoder", "neighbours", "profile", "tokens"],
)
def test_updates_and_search_of_codes_are_a_run_s(name, system, changes, tmp_path):
    """All but the values, and how many lines and items there are: at least as many as in any batch."""
    changes = changes | {"codes.width": "100", "tasks.weights.preference": "0.1"}
    asked = config.load(f"{ROOT}/configs/{name}", changes)
    r = system.build(Run(asked, tmp_path))
    (phase,) = system.schedule(r)
    state = train.initial_state(r, [phase])["lm"]
    with asked.unlocked():
        asked.lm.vocab = r.lm.spec.vocab  # the made-up titles have fewer words
    programs = tasks_programs.programs(tasks_programs.Shapes(asked, r.run.mesh, "cpu"))
    phase.begin({"lm": state})
    assert {task.replace("_", " ") for task in phase.names} <= programs.keys()
    for step in range(12):
        task, batch = phase.batch(step)
        plan, frozen, part, data, key = programs[task.replace("_", " ")].arguments
        assert static(plan, part.weights, frozen) == static(phase.plan, state.weights, r.frozen)
        assert_alike((frozen, part), (r.frozen, state))
        assert data.keys() == batch.keys() and key.dtype == r.run.key.dtype
        for (path, shape), array in zip(jax.tree.leaves_with_path(data), jax.tree.leaves(batch), strict=True):
            assert (shape.dtype, shape.shape[2:]) == (array.dtype, array.shape[2:]), path
            assert all(most >= own for most, own in zip(shape.shape, array.shape, strict=True)), path
    (graph, whole, *texts, trie, hidden, beams, who), size = programs["search"].arguments, asked.search.batch
    assert graph_of(graph, whole) == graph_of(r.graph, r.whole(state.weights))
    assert described(whole) == described(r.whole(state.weights))
    for shape, table in zip(trie, r.trie, strict=True):
        assert (shape.dtype, shape.shape[1]) == (table.dtype, table.shape[1]) and shape.shape[0] >= table.shape[0]
    ids, _ = jax.eval_shape(
        lambda *given: search.beam(graph, *given[:-1], beams, given[-1]), whole, *texts, trie, hidden, who
    )
    assert ids.shape == (size, beams) and beams >= asked.search.beams
    _, _, *texts, digits, who = programs["candidates"].arguments
    chances = jax.eval_shape(lambda *given: search.likelihoods(graph, *given), whole, *texts, digits, who)
    assert chances.shape == (size, asked.search.candidates)


# ---- what a run holds


def bytes_on(device, tree):
    """Bytes of the distinct buffers of a tree's arrays on one device."""
    shards = [shard.data for a in jax.tree.leaves(tree) for shard in a.addressable_shards if shard.device == device]
    return sum({data.unsafe_buffer_pointer(): data.nbytes for data in shards}.values())


@pytest.mark.parametrize("trains", ["lora", "last_layers"])
@pytest.mark.parametrize("kind", ["stacked", "listed"])
def test_no_buffer_counts_twice(kind, trains, tmp_path):
    """The parts are together the distinct buffers that a real run holds on a device; decoding reads listed layers in place."""
    changes = {"lm.layers": kind, "policy.trains": trains}
    both = Both("movies_tv_gemma.py:tiny", tmp_path, **changes)
    lm, held, device = both.r.lm, both.shapes.resident(), both.r.run.mesh.devices.flat[0]
    assert {"control", "control's optimiser"} <= held.keys()
    decoding = lm.prepared(both.state["lm"].weights).layers
    arrays = lm.frozen, decoding, lm.reference[1], both.state
    assert bytes_on(device, arrays) == sum(held.values()) - held["items"]
    beside = bytes_on(device, (lm.frozen, decoding)) - bytes_on(device, lm.frozen)
    assert held["its layers for decoding"] == beside
    assert (beside < bytes_on(device, decoding)) == (kind == "listed")


def test_published_configs_are_those_of_the_recipes():
    for name in ("movies_tv_gemma", "movies_tv_llama"):
        asked = config.load(f"{ROOT}/configs/{name}.py", {})
        lm, encoder = profiles_programs.models(asked)
        assert (lm.spec.layers, lm.spec.width, encoder.spec.layers, encoder.spec.width) == (
            (18, 2048, 24, 1024) if "gemma" in name else (32, 4096, 24, 1024)
        )
        count = sum(a.size for a in jax.tree.leaves(layers.plain(nnx.state(lm))))
        assert round(count / 1e9, 2) == (2.51 if "gemma" in name else 8.03)


def test_published_t5s_have_their_sizes():
    for name, changes, billions in (
        ("knowledge_flan", {}, 0.25),
        ("knowledge_flan", {"lm.source": "google/flan-t5-xl"}, 2.85),
        ("peapod_t5", {}, 0.06),
    ):
        asked = config.load(f"{ROOT}/configs/{name}.py", changes)
        lm = nnx.eval_shape(lambda asked=asked: tasks_programs.model(asked, (3, 32)))
        count = sum(a.size for a in jax.tree.leaves(layers.plain(nnx.state(lm))))
        assert round(count / 1e9, 2) == billions


# ---- compiled


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu is not installed")
def test_a_small_config_compiles_for_a_slice_that_is_not_here(capsys, tmp_path):
    flags = [f"--config={ROOT}/configs/movies_tv_gemma.py:tiny", "--mode=check", "--topology=v5e:2x4"]
    kept = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))  # of this test alone: others write into theirs
    compilation_cache.reset_cache()
    jax.jit(lambda x: x * 2)(1.0)  # from here on this process has looked for a compilation cache
    try:
        assert main(["main", *flags, "--config.lm.dtype=bfloat16", "--config.embedder.dtype=bfloat16"]) == 0
    finally:
        jax.config.update("jax_compilation_cache_dir", kept)
        compilation_cache.reset_cache()
    assert not list(tmp_path.glob("jit_sample*"))  # no use to a machine without TPUs
    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("| ")]
    names = "write profiles, rollout, scoring, policy update, contrastive step, embed catalogue, ranking"
    assert [row[0] for row in rows[1:]] == names.split(", ")
    assert all(row[1] == "yes" for row in rows[1:])
    assert "all-gather" in out or "all-reduce" in out
