"""The allocator's settings: freed memory is not faulted in again, pages are large, and idle memory is returned."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import resource, sys
import numpy as np
from purinet_jax.memory import keep_freed_memory

kept = keep_freed_memory() if sys.argv[1] == "keep" else None
faults = []
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(256 * 2**20, np.uint8)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
huge = [line.split()[1] for line in open("/proc/self/smaps_rollup") if line.startswith("AnonHugePages")]
print(kept, min(faults[1:]), *huge)
"""


HOLE = """
import numpy as np
from purinet_jax.memory import GrowthBound, keep_freed_memory

def mebibytes():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20

keep_freed_memory()
bound = GrowthBound()
returned = [bound.check(), bound.check()]
hole, after = np.ones(256 * 2**20, np.uint8), np.ones(16 * 2**20, np.uint8)
del hole
before = mebibytes()
returned.append(bound.check())
print(*returned, before - mebibytes())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the settings are those of the GNU C library")
def test_freed_memory_is_used_again() -> None:
    root = Path(__file__).resolve().parents[1]
    environment = os.environ | {"PYTHONPATH": str(root)}

    def run(mode: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True, env=environment
        )
        return done.stdout.split()

    kept, faults, huge_kib = run("keep")
    assert kept == "True"
    assert int(faults) < 64
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if setting.exists() and "[never]" not in setting.read_text():
        assert int(huge_kib) > 100 * 1024
    assert int(run("plain")[1]) > 100  # pages of at most 2 MiB: 128 of them


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the settings are those of the GNU C library")
def test_a_hole_in_the_heap_is_returned_to_the_system() -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    done = subprocess.run([sys.executable, "-c", HOLE], capture_output=True, text=True, check=True, env=environment)
    *returned, mebibytes = done.stdout.split()
    assert returned == ["False", "False", "True"]
    assert int(mebibytes) > 200
