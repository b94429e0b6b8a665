#!/usr/bin/env bash
# Runs the golden tests and `purinet benchmark --accelerator` with ResNet-50 at 320², in under ten minutes on a GPU.
#   bash scripts/gpu_check.sh gpu_check.json
# Batches, side and network can be set, to try it without a GPU:
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

# Tests first, because the speed of a wrong network means nothing. The file says whether they passed.
verdict="not run"
if [ -n "$golden" ]; then
  verdict=passed
  # shellcheck disable=SC2086  # perhaps several files
  JAX_DEFAULT_MATMUL_PRECISION=highest timeout 230 "$python" -m pytest -q $golden >&2 || verdict="failed with code $?"
fi

# shellcheck disable=SC2086  # several batch sizes
result=$("$python" -m purinet_jax.commands.main benchmark --accelerator ${BATCHES-1 8 32 64} --repeats 5 \
  --backbone "${BACKBONE-resnet50}" --channels "${CHANNELS-128}" --size "${SIZE-320}")
echo "{ \"golden_tests\": \"$verdict\",${result#\{}" > "$output"
echo "$output: golden tests $verdict" >&2
[ "$verdict" = passed ] || [ "$verdict" = "not run" ]
