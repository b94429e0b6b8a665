#!/usr/bin/env bash
# Trains the shipped weights in phases on growing images, each starting from the averaged weights of the one before.
# It takes a day on two CPU cores at low priority, and resumes when it is run again.
#   bash scripts/train_shipped.sh DUTS-TR.zip efficientnet_lite2_imagenet.pth runs/shipped
# From the weights of an earlier phase, with the phase that follows:
#   bash scripts/train_shipped.sh DUTS-TR.zip purnet_context.safetensors runs/shipped 288
set -euo pipefail
if [ $# -lt 3 ] || [ $# -gt 4 ]; then
  echo "usage: $0 TRAINING-DATA WEIGHTS OUTPUT [FIRST-PHASE]" >&2
  exit 2
fi
training=$1 init=$2 output=$3 first=${4:-192}
case $first in 192 | 224 | 288 | 320) ;; *)
  echo "$0: $first is none of the phases 192, 224, 288, 320" >&2
  exit 2
  ;;
esac

phase() { # SIZE STEPS OPTION...
  local size=$1 steps=$2
  shift 2
  [ "$size" -ge "$first" ] || return 0
  if [ ! -d "$output/$size/checkpoints/$steps" ]; then
    nice -n 19 purinet train --config purnet_context --data "$training" --init "$init" -o "$output/$size" --quiet \
      --config.data.size="$size" --config.steps="$steps" "$@"
  fi
  # A run that was asked to stop exits with 0 before its last step, which the next phase needs.
  [ -d "$output/$size/checkpoints/$steps" ] || exit 0
  init=$output/$size
}

phase 192 2564                     # 4 epochs of 10,253
eights=(--config.batch_size=8 --config.average_decay=0.999)
phase 224 1900 "${eights[@]}" --config.optimizer.rate=1e-3 --config.optimizer.warmup_steps=100 --config.average_decay=0.998
phase 288 1800 "${eights[@]}" --config.optimizer.rate=7e-4 --config.optimizer.warmup_steps=100
# Eight images of 320² need more than 13 GB. The statistics of four are noisy, so BatchNorm's are frozen.
phase 320 3000 --config.batch_size=4 --config.average_decay=0.9995 --config.optimizer.rate=3e-4 \
  --config.optimizer.warmup_steps=100 --config.freeze_statistics=True
