"""The process that starts again: same number, same arguments, huge pages for what it allocates."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a setting of Linux's C library")
CODE = """
import os, sys
from lpt_jax.huge_pages import use_huge_pages
use_huge_pages()
import numpy as np
kept = np.ones(1 << 24)  # 128 MiB
with open("/proc/self/smaps_rollup") as file:
    huge = [line.split()[1] for line in file if line.startswith("AnonHugePages")][0]
print(os.getpid(), sys.argv[1:], os.environ["GLIBC_TUNABLES"], huge)
"""


def start(**environment):
    clean = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    command = [sys.executable, "-c", CODE, "--flag=a b", "c"]
    process = subprocess.Popen(command, env=clean | environment, stdout=subprocess.PIPE, text=True)
    answer = process.communicate(timeout=60)[0]
    assert process.returncode == 0
    return process.pid, answer.split("\n")[0]


def test_the_process_starts_again_with_huge_pages():
    pid, answer = start()
    assert answer.startswith(f"{pid} ['--flag=a b', 'c'] glibc.malloc.hugetlb=1 ")
    modes = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if modes.exists() and "[never]" not in modes.read_text():
        assert int(answer.split()[-1]) > 64 * 1024  # KiB


def test_a_setting_that_is_there_stays():
    pid, answer = start(GLIBC_TUNABLES="glibc.malloc.arena_max=4")
    assert answer.startswith(f"{pid} ['--flag=a b', 'c'] glibc.malloc.arena_max=4 ")
