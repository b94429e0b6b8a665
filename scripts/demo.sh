#!/usr/bin/env bash
# PurNet end to end on two CPU cores, from nothing but a clone: finds the objects in photographs with the weights of the
# package; then makes a small data set, trains the configuration tiny on it, stops the run in the middle and resumes it, and
# shows what that network finds in pictures it has not seen.
# Needs Python 3.11 or newer, and at the first run the network. Everything is left in demo/.
set -euo pipefail
cd "$(dirname "$0")/.."

. scripts/environment.sh

step "pip install -e ., versions from constraints.txt"
.venv/bin/pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e . scikit-image

step "Photographs that come with scikit-image: what the package's weights find in them"
rm -rf demo/photographs demo/found
mkdir -p demo/photographs
.venv/bin/python - <<'PYTHON'
import shutil
from pathlib import Path

import skimage.data

folder = Path(skimage.data.__file__).parent
for name in ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg"):
    shutil.copy(folder / name, "demo/photographs")
PYTHON
for kind in map cutout; do
  .venv/bin/purinet predict demo/photographs -o "demo/found/$kind" --output-kind "$kind" --quiet
done
.venv/bin/purinet predict demo/photographs/chelsea.png -o demo/found/why_chelsea.png --output-kind attention --quiet
.venv/bin/python scripts/contact_sheet.py \
  demo/photographs demo/found/map demo/found/cutout demo/photographs.png --cell 240

step "Data: 96 generated pictures to train on, 16 to test on"
# A run that an earlier demo left would be resumed, and finished at once. The data come out the same each time.
rm -rf demo/run demo/maps
.venv/bin/python - <<'PYTHON'
from purinet_jax.data import write_synthetic

print(write_synthetic("demo/train", 96, seed=0))
print(write_synthetic("demo/validation", 16, seed=1))
PYTHON
validation=demo/validation/DUTS-TR

train=(.venv/bin/purinet train --config tiny --data demo/train/DUTS-TR --validation "$validation"
  --output demo/run)
# Progress bars are for people: without a terminal they would fill a log.
[ -t 2 ] || train+=(--quiet)

step "Training, to be stopped by SIGTERM after its first checkpoint (compiling comes first)"
"${train[@]}" &
run=$!
trap 'kill "$run" 2>/dev/null || true' EXIT
# Checkpoints appear whole, by a rename. A run that ends before it has one has failed, and `wait` says so.
first=(demo/run/checkpoints/[0-9]*)
until [ -d "${first[0]}" ] || ! kill -0 "$run" 2>/dev/null; do
  sleep 0.2
  first=(demo/run/checkpoints/[0-9]*)
done
kill -TERM "$run" 2>/dev/null || true
wait "$run"
trap - EXIT

step "The same command again: training goes on to the end"
"${train[@]}"

step "Maps of the 16 test pictures, and their error"
.venv/bin/purinet predict "$validation/DUTS-TR-Image" --checkpoint demo/run --output demo/maps --batch 16 --quiet
.venv/bin/python scripts/contact_sheet.py \
  "$validation/DUTS-TR-Image" "$validation/DUTS-TR-Mask" demo/maps demo/contact_sheet.png
.venv/bin/python - <<'PYTHON'
import json

lines = map(json.loads, open("demo/run/log.jsonl"))
errors = [(line["step"], line["validation/mae"]) for line in lines if "validation/mae" in line]
for when, (steps, error) in (("before the stop", errors[0]), ("at the end", errors[-1])):
    print(f"validation MAE {when}, after {steps} steps: {error:.4f}")
PYTHON

step "Done. Look at:"
cat <<'TEXT'
demo/photographs.png     photographs, the maps of the package's weights, and the objects cut out
demo/found/              these maps and cut-outs; why_chelsea.png shows image, map, promotion, rectification, error
demo/contact_sheet.png   image | mask | map of the network trained here, on pictures that it was not trained on
demo/maps/               the maps alone
demo/run/                the run: config.json, log.jsonl, checkpoints/, tensorboard/
demo/train/DUTS-TR/      the generated data set
TEXT
