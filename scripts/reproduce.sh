#!/usr/bin/env bash
# Trains the three stages of the released recipe and evaluates the last: hours to days on a GPU (docs/reproduce.md).
# It resumes when it is run again.
#   bash scripts/reproduce.sh DUTS-TR.zip DUTS-TE.zip resnet50.safetensors runs
set -euo pipefail
if [ $# -ne 4 ]; then
  echo "usage: $0 TRAINING-DATA TEST-DATA RESNET50-WEIGHTS OUTPUT" >&2
  exit 2
fi
training=$1 test=$2 init=$3 output=$4

steps=(50000 250000 200000)
for stage in 1 2 3; do
  purinet train --config "purnet_resnet50_stage$stage" --data "$training" --init "$init" \
    --output "$output/stage$stage"
  # A run that was asked to stop exits with 0 before its last step, which the next stage needs.
  [ -d "$output/stage$stage/checkpoints/${steps[stage - 1]}" ] || exit 0
  init=$output/stage$stage
done
purinet evaluate --checkpoint "$init" --data "$test" --json
