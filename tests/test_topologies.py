"""Machines that need not be there: those that are not known, and compilers that are not installed."""

import importlib.util
import re

import pytest

from lpt_jax import topologies
from lpt_jax.errors import InputError


@pytest.mark.parametrize("topology", ["v5e", "v9:2x2", "v5e:2,4", "h100:many", ""])
def test_unknown_machines_are_told(topology):
    with pytest.raises(InputError, match=re.escape(f"--topology={topology} is not known")):
        topologies.machine(topology)


def test_a_missing_compiler_is_told():
    if importlib.util.find_spec("jax_cuda12_plugin"):
        pytest.skip("jax's CUDA wheels are installed")
    with pytest.raises(InputError, match=r"pip install 'jax\[cuda12\]' first"):
        topologies.machine("h100:8")
