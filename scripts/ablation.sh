#!/usr/bin/env bash
# What the paper's parts bring: the same network and budget with and without each of them (docs/ablation.md).
# Takes hours on two CPU cores, at low priority; run it again after an interruption and it continues.
#   bash scripts/ablation.sh DUTS-TR.zip mobilenet_v2.npz runs/ablation
# Steps, size and seed can follow; the rows of another seed are added to those that exist:
#   bash scripts/ablation.sh DUTS-TR.zip mobilenet_v2.npz runs/ablation 1500 160 1
# Writes runs/ablation/ablation.md and ablation.json, over all seeds.
# Overrides apply to every row: --config.model.backbone=efficientnet_lite2
set -euo pipefail
arguments=() overrides=()
for argument in "$@"; do
  case $argument in
    --config.steps=* | --config.data.size=* | --config.seed=*)
      echo "$0: $argument: give STEPS, SIZE and SEED after OUTPUT" >&2
      exit 2
      ;;
    --config.*) overrides+=("$argument") ;;
    *) arguments+=("$argument") ;;
  esac
done
if [ ${#arguments[@]} -lt 3 ] || [ ${#arguments[@]} -gt 6 ]; then
  echo "usage: $0 TRAINING-DATA WEIGHTS OUTPUT [STEPS [SIZE [SEED]]] [--config.KEY=VALUE …]" >&2
  exit 2
fi
set -- "${arguments[@]}"
training=$1 init=$2 output=$3 steps=${4:-1500} size=${5:-160} seed=${6:-0}

row() { # NAME ATTENTION STRUCTURAL IOU
  local run=$output/seed$seed/$1
  if [ ! -d "$run/checkpoints/$steps" ]; then
    echo "$0: $1, seed $seed" >&2
    nice -n 19 purinet train --config ablation --data "$training" --init "$init" -o "$run" --quiet \
      --config.steps="$steps" --config.data.size="$size" --config.seed="$seed" \
      --config.model.attention="$2" --config.losses.structural="$3" --config.losses.iou="$4" \
      "${overrides[@]}"
  fi
  # A run that was asked to stop also exits with 0, before its last step.
  [ -d "$run/checkpoints/$steps" ] || { echo "$0: $run: ended before step $steps; run this again" >&2; exit 0; }
}

none="()" promotion="('promotion',)" rectification="('rectification',)" both="('promotion', 'rectification')"
row baseline "$none" none False
row promotion "$promotion" none False
row rectification "$rectification" none False
row attentions "$both" none False
row structural "$none" region False
row all "$both" region False
row ssim "$both" ssim False
row iou "$both" none True

nice -n 19 python "$(dirname "$0")/ablation_table.py" "$training" "$output"
