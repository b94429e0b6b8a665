"""Four host devices for all tests (what runs on one uses the first), and one cache of compiled programs."""

import atexit
import gc
import os
import shutil
import tempfile

import pytest
from helpers.versions import FUSION_EMITTERS

# LLVM's passes, fusions by way of MLIR and a split for more cores than each process has would double the time that
# compiling takes, for programs that run for milliseconds. The golden tests, whose programs run for minutes, turn the
# first two on again (`OPTIMISED`).
FLAGS = (
    "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0 "
    "--xla_cpu_parallel_codegen_split_count=1"
)
if FUSION_EMITTERS:
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"
# Many tests train the same small network; what one has compiled the others load, subprocesses too. Workers inherit the
# folder of the process that starts them, and on a GPU, where compiling takes minutes, one that is named is kept.
kept = os.environ.get("JAX_PLATFORMS") == "cuda" and "JAX_COMPILATION_CACHE_DIR" in os.environ
if "PYTEST_XDIST_WORKER" not in os.environ and not kept:
    CACHE = tempfile.mkdtemp(prefix="purinet-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
    atexit.register(shutil.rmtree, CACHE, ignore_errors=True)

# Tracing makes millions of small objects, none of them in circles; looking for circles took a fifth of its time.
gc.set_threshold(100_000, 50, 100)

# Files are dealt out to processes in this order: the longest first, so that none of them runs alone at the end.
LONGEST = ("test_golden.py", "test_train.py", "test_step.py", "test_benchmarks.py", "test_convert.py")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Names what failed at once: a run that is ended from outside has no summary."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        crash = getattr(report.longrepr, "reprcrash", None)
        print(f"\n{report.nodeid}, {report.when}: {crash.message if crash else report.longrepr}", flush=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
