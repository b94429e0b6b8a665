#!/usr/bin/env bash
# On a machine with a GPU, in under ten minutes: the golden tests there, and what the GPU makes of ResNet-50 at 320².
#   bash scripts/gpu_check.sh gpu_check.json
# Batches, side and network can be set, to see elsewhere that it runs:
#   PLATFORM=cpu GOLDEN= BACKBONE=mobilenet_v2 CHANNELS=4 SIZE=32 BATCHES=1 bash scripts/gpu_check.sh check.json
set -euo pipefail
if [ $# -ne 1 ]; then
  echo "usage: $0 OUTPUT.json" >&2
  exit 2
fi
output=$1 platform=${PLATFORM-cuda} golden=${GOLDEN-tests/test_golden.py}
python=python
[ ! -x .venv/bin/python ] || python=.venv/bin/python
export JAX_PLATFORMS=$platform JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR-$HOME/.cache/purinet_jax}

# Tests first: numbers of a network that is wrong are worth nothing. Their verdict stands in the file too.
verdict="not run"
if [ -n "$golden" ]; then
  verdict=passed
  # shellcheck disable=SC2086  # perhaps several files
  JAX_DEFAULT_MATMUL_PRECISION=highest timeout 170 "$python" -m pytest -q $golden >&2 || verdict="failed with code $?"
fi

VERDICT=$verdict OUTPUT=$output BACKBONE=${BACKBONE-resnet50} CHANNELS=${CHANNELS-128} SIZE=${SIZE-320} \
  BATCHES=${BATCHES-1 8 32 64} LIMIT=${LIMIT-360} "$python" - <<'PYTHON'
import json
import os
from pathlib import Path

from purinet_jax.benchmarks.accelerator import benchmark_accelerator
from purinet_jax.files import write_atomically

result = benchmark_accelerator(
    backbone=os.environ["BACKBONE"],
    channels=int(os.environ["CHANNELS"]),
    size=int(os.environ["SIZE"]),
    batches=[int(batch) for batch in os.environ["BATCHES"].split()],
    limit=float(os.environ["LIMIT"]),
)
result = {"golden_tests": os.environ["VERDICT"], **result}
write_atomically(Path(os.environ["OUTPUT"]), (json.dumps(result, indent=2) + "\n").encode())
PYTHON
echo "$output: golden tests $verdict" >&2
[ "$verdict" = passed ] || [ "$verdict" = "not run" ]
