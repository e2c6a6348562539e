"""The allocator's settings, tested in a separate process, because they last as long as the process."""

import platform
import subprocess
import sys

import pytest

STEPS = """
import resource, sys
from w2skd.platform.memory import keep_freed_memory
import numpy as np

def step():
    parts = [np.ones(size, dtype=np.uint8) for size in (2**21, 2**22, 3 * 2**20) * 4]

def faults():
    step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 10

print(faults(), keep_freed_memory(), faults())
"""


def run(**environment: str) -> tuple[float, bool, float]:
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True, env=environment)
    before, changed, after = done.stdout.split()
    return float(before), changed == "True", float(after)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_kept_for_the_next_step() -> None:
    before, changed, after = run()
    assert changed
    assert before > 1000  # pages of 4 KiB
    assert after < before / 20


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_the_users_own_settings_stay(name: str) -> None:
    assert run(**{name: "glibc.malloc.perturb=0" if name == "GLIBC_TUNABLES" else "131072"})[1] is False
