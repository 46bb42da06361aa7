"""benchmarks/operations.py: what is counted, by programs worked by hand and by the programs of the recipes."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import operations
from lpt_jax import config, devices, profiles_programs, topologies
from lpt_jax.models.products import product
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
        assert operations.traced_operations(traced(function, (3, 5), (5, 4)), trips=11) == times * product
    squared = jax.grad(lambda a, b: jnp.sum((a @ b) ** 2))
    assert operations.traced_operations(traced(squared, (3, 5), (5, 4)), 1) == 2 * product


def test_positions_with_logits_are_found_inside_loops():
    def head(x, w):
        return jax.lax.map(lambda rows: (rows @ w.T).max(), x.reshape(2, 2, 3, 5))  # w.T is no logits

    assert operations.most_logits(traced(head, (12, 5), (32, 5)), 32) == 6
    assert operations.most_logits(traced(jnp.matmul, (3, 4, 5), (5, 32)), 32) == 12
    assert operations.most_logits(traced(jnp.matmul, (3, 4, 5), (5, 32)), 33) == 0


def done(program: topologies.Program, length: int):
    """A program's jaxpr and its operations, with profiles of so many tokens."""
    jaxpr = operations.needed(program.function.trace(*program.arguments))
    return jaxpr, operations.traced_operations(jaxpr, length)


@pytest.mark.parametrize("name", ["movies_tv_gemma.py", "movies_tv_gemma.py:colab", "movies_tv_llama.py"])
def test_the_recipes_do_what_the_mathematics_needs(name):
    """Traced at their real sizes: operations within 1.25 of the formulas, and never logits of a prompt."""
    asked = config.load(f"{ROOT}/configs/{name}", {})
    run = profiles_programs.Shapes(asked, devices.make_mesh(asked.mesh), "cpu")
    needs, programs = operations.needs(run), profiles_programs.programs(run)
    assert needs.keys() == programs.keys()
    for what, program in programs.items():
        jaxpr, count = done(program, asked.profile.max_tokens)
        assert 0.95 * needs[what].need <= count - needs[what].again <= 1.25 * needs[what].need, what
        rows = max(asked.policy.users * asked.policy.samples, asked.profile.batch)
        assert operations.most_logits(jaxpr, run.lm.spec.vocab) <= max(asked.policy.logits_chunk, rows)


def test_a_tiny_run_does_no_more_than_twice_what_it_needs():
    asked = config.load(f"{ROOT}/configs/movies_tv_gemma.py:tiny", {})
    run = profiles_programs.Shapes(asked, devices.make_mesh(asked.mesh), "cpu")
    needs = operations.needs(run)
    for what, program in profiles_programs.programs(run).items():
        _, count = done(program, asked.profile.max_tokens)
        ratio = (count - needs[what].again) / needs[what].need
        assert 0.9 < ratio < 2, what  # attention counts when so small


def test_frozen_weights_have_no_gradient_in_the_count():
    def loss(a, b):
        return jnp.sum(product(product(a, b, "float32"), jnp.ones((4, 2)), "float32"))

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((3, 5), (5, 4))]
    both, one = (jax.jit(jax.grad(loss, argnums)).trace(*shapes) for argnums in ((0, 1), 1))
    count = [operations.traced_operations(operations.needed(traced), 1) for traced in (both, one)]
    assert count[0] - count[1] == 2 * 3 * 5 * 4  # what the derivative by a takes
