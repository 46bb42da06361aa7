"""--mode=check: what it counts by hand-worked programs, and one small config compiled for a slice that isn't there."""

import functools
import importlib.util
import re

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import PartitionSpec as P

from lpt_jax import check, config, devices
from lpt_jax.errors import InputError
from lpt_jax.main import main
from tests.conftest import ROOT


def traced(function, *shapes):
    return jax.jit(function).trace(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)).jaxpr.jaxpr


def test_operations_of_products_are_counted_with_their_repeats():
    product = 2 * 3 * 5 * 4  # [3, 5] @ [5, 4]: multiplied and added

    def scanned(a, b):
        return jax.lax.scan(lambda x, _: (x + jnp.sum(a @ b), None), 0.0, length=7)[0]

    def looped(a, b):
        return jax.lax.while_loop(lambda x: x[0, 0] < 9, lambda x: x + a @ b, jnp.zeros((3, 4)))

    def batched(a, b):
        return jnp.einsum("bij,bjk->bik", jnp.stack([a, a]), jnp.stack([b, b]))

    for function, times in ((jnp.matmul, 1), (scanned, 7), (looped, 11), (batched, 2), (jax.jit(jnp.matmul), 1)):
        assert check.traced_operations(traced(function, (3, 5), (5, 4)), trips=11) == times * product
    assert (
        check.traced_operations(traced(jax.grad(lambda a, b: jnp.sum((a @ b) ** 2)), (3, 5), (5, 4)), 1) == 2 * product
    )


def test_positions_with_logits_are_found_inside_loops():
    def head(x, w):
        return jax.lax.map(lambda rows: (rows @ w.T).max(), x.reshape(2, 2, 3, 5))  # w.T is no logits

    assert check.most_logits(traced(head, (12, 5), (32, 5)), 32) == 6
    assert check.most_logits(traced(jnp.matmul, (3, 4, 5), (5, 32)), 32) == 12
    assert check.most_logits(traced(jnp.matmul, (3, 4, 5), (5, 32)), 33) == 0


def test_bytes_are_those_of_one_device():
    mesh = devices.make_mesh({"data": 2, "fsdp": 2, "model": 2})
    spread, whole = (jax.sharding.NamedSharding(mesh, p) for p in (P("fsdp", "model"), P()))
    tree = [
        jax.ShapeDtypeStruct((8, 6), jnp.float32, sharding=spread),
        jax.ShapeDtypeStruct((5,), "bfloat16", sharding=whole),
    ]
    assert check.bytes_of(tree) == 8 * 6 * 4 / 4 + 5 * 2


@pytest.mark.parametrize("topology", ["v5e", "v9:2x2", "v5e:2,4", "h100:many", ""])
def test_unknown_machines_are_told(topology):
    with pytest.raises(InputError, match=re.escape(f"--topology={topology} is not known")):
        check.machine(topology)


def test_a_missing_compiler_is_told():
    if importlib.util.find_spec("jax_cuda12_plugin"):
        pytest.skip("jax's CUDA wheels are installed")
    with pytest.raises(InputError, match=r"pip install 'jax\[cuda12\]' first"):
        check.machine("h100:8")


def test_topology_is_for_check_alone(capsys):
    assert main(["main", f"--config={ROOT}/configs/movielens.py:tiny", "--topology=v5e:2x4"]) == 2
    assert "--topology is for --mode=check, and the mode is train" in capsys.readouterr().err
    assert main(["main", f"--config={ROOT}/configs/movielens.py:tiny", "--mode=check", "--processes=auto"]) == 2
    assert "--processes is not for --mode=check" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["movies_tv_gemma.py", "movies_tv_gemma.py:colab", "movies_tv_llama.py"])
def test_the_recipes_do_what_the_mathematics_needs(name):
    """Traced at their real sizes: operations within 1.25 of the formulas, and never logits of a prompt."""
    asked = config.load(f"{ROOT}/configs/{name}", {})
    run = check.Run(asked, devices.make_mesh(asked.mesh), "cpu")
    for what, program in check.programs(run).items():
        jaxpr = check.needed(program.function.trace(*program.arguments, **program.static))
        done = check.traced_operations(jaxpr, asked.profile.max_tokens)
        assert 0.95 * program.need <= done - program.again <= 1.25 * program.need, what
        rows = max(asked.policy.users * asked.policy.samples, asked.profile.batch)
        assert check.most_logits(jaxpr, run.decoder.vocab) <= max(asked.policy.logits_chunk, rows)


def test_frozen_weights_have_no_gradient_in_the_count():
    def loss(a, b):
        return jnp.sum(check.decoder.product(check.decoder.product(a, b, "float32"), jnp.ones((4, 2)), "float32"))

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((3, 5), (5, 4))]
    both, one = (jax.jit(jax.grad(loss, argnums)).trace(*shapes) for argnums in ((0, 1), 1))
    count = [check.traced_operations(check.needed(traced), 1) for traced in (both, one)]
    assert count[0] - count[1] == 2 * 3 * 5 * 4  # what the derivative by a takes


@pytest.mark.parametrize("layers", ["stacked", "listed"])
def test_no_buffer_counts_twice(layers):
    """A program's own arguments and what is held beside them are together all that the run holds, whichever it is."""
    asked = config.load(f"{ROOT}/configs/movies_tv_gemma.py:tiny", {"lm.layers": layers})
    run = check.Run(asked, devices.make_mesh(asked.mesh), "cpu")
    held, programs = run.resident(), check.programs(run)
    lists = layers == "stacked"  # then the sampler has lists of its own
    assert (held["writing_list"] > 0) == lists and (held["writing"] > 0) != lists
    assert {"control", "control_optimiser"} <= held.keys()
    for what in ("rollout", "scoring", "policy update", "contrastive step", "ranking"):
        own = sum(check.bytes_of(run.parts[name]) for name in programs[what].parts if name not in ("upper", "policy"))
        own += (
            0
            if what == "rollout"
            else sum(check.bytes_of(run.parts[n]) for n in programs[what].parts if n in ("upper", "policy"))
        )
        assert own + run.beside(programs[what].parts) == pytest.approx(sum(held.values())), what


def test_published_configs_are_those_of_the_recipes():
    for name in ("movies_tv_gemma", "movies_tv_llama"):
        asked = config.load(f"{ROOT}/configs/{name}.py", {})
        writer, ranker = check.specs(asked)
        assert (writer.layers, writer.width, ranker.layers, ranker.width) == (
            (18, 2048, 24, 1024) if "gemma" in name else (32, 4096, 24, 1024)
        )  # fmt: skip
        shapes = jax.tree.leaves(check.decoder.shapes(writer), is_leaf=lambda s: isinstance(s, tuple))
        count = sum(functools.reduce(lambda a, b: a * b, s) for s in shapes)
        assert round(count / 1e9, 2) == (2.51 if "gemma" in name else 8.03)


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
    assert [row[0] for row in rows[1:]] == [
        "write profiles", "rollout", "scoring", "policy update", "contrastive step", "embed catalogue", "ranking",
    ]  # fmt: skip
    assert all(
        row[1] == "yes" and 0.9 < float(row[5].split()[0]) < 2 for row in rows[1:]
    )  # attention counts when so small
    assert "all-gather" in out or "all-reduce" in out
