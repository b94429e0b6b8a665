"""Measures how well superpixels follow images and masks, and what making them costs; prints JSON.

    python benchmarks/superpixels.py DUTS-TR.zip > superpixels.json

Compares the SLIC and the grid of the train step with scikit-image's SLIC by the quality of their regions, and with
superpixels from files by the time of the train step.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from skimage.measure import label as connected_pieces
from skimage.segmentation import slic

from purinet_jax.benchmarks.machine import heading, milliseconds, say
from purinet_jax.benchmarks.network import repeatable_train_step
from purinet_jax.data import open_pairs, resize_image, resize_labels
from purinet_jax.errors import InputError
from purinet_jax.network.config import ModelConfig
from purinet_jax.progress import progress_bar
from purinet_jax.training.losses import Objective
from purinet_jax.training.superpixels import REGIONS, grid_regions, slic_regions

# A superpixel's boundary recalls the mask's within so many pixels in either direction.
TOLERANCE = 2

# The train steps that are compared: stage 3's losses but for the superpixels.
OBJECTIVES = {
    "files": Objective(superpixels="files"),
    "slic": Objective(superpixels="slic"),
    "grid": Objective(superpixels="grid"),
    "none": Objective("none"),
}


def slic_labels(image: np.ndarray, regions: int = REGIONS) -> np.ndarray:
    """Returns scikit-image's SLIC labels of an image, int32 [height, width], 0 to k - 1, each of them in use."""
    # On DUTS-TR, compactness 20 follows masks better than the default 10, and ten iterations gain little over five.
    labels = slic(image, n_segments=regions, compactness=20.0, max_num_iter=5, start_label=0, channel_axis=-1)
    used = np.bincount(labels.ravel()) > 0
    return (np.cumsum(used, dtype=np.int32) - 1)[labels]


METHODS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "scikit_image": slic_labels,
    "slic": lambda image: np.asarray(slic_regions(image[None]))[0],
    "grid": lambda image: grid_regions(*image.shape[:2]),
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="pairs of image and mask, a folder or zip")
    parser.add_argument("--images", type=int, default=100, help="pairs drawn, the same ones each time (default 100)")
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--size", type=int, default=320, help="side that images are resized to (default 320)")
    parser.add_argument("--batch", type=int, default=2, help="images in a train step (default 2)")
    parser.add_argument("--repeats", type=int, default=7, help="timed train steps of each kind (default 7)")
    arguments = parser.parse_args(argv)
    try:
        pairs = open_pairs(arguments.data)
    except InputError as error:
        sys.exit(str(error))
    result = heading(vars(arguments))
    chosen = np.sort(np.random.default_rng(0).permutation(len(pairs))[: arguments.images])
    examples = []
    for pair in (pairs[index] for index in chosen.tolist()):
        size = (arguments.size, arguments.size)
        examples.append((resize_image(pair["image"], *size), resize_labels(pair["mask"], *size)))
    result["superpixels"] = quality(examples)
    config = ModelConfig(arguments.backbone, arguments.channels)
    result["train_step"] = train_steps(config, arguments.size, arguments.batch, arguments.repeats)
    print(json.dumps(result, indent=2))


def quality(examples: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """Of each of `METHODS` the means of `measures`, and the median milliseconds an image takes."""
    results: dict[str, Any] = {}
    for name, method in METHODS.items():
        method(examples[0][0])  # compiles
        values, times = [], []
        for image, mask in progress_bar(examples, total=len(examples), desc=name, leave=False):
            start = time.perf_counter()
            labels = method(image)
            times.append((time.perf_counter() - start) * 1000)
            values.append(measures(image, mask, labels))
        results[name] = {key: round(statistics.mean(value[key] for value in values), 4) for key in values[0]}
        results[name]["milliseconds"] = round(statistics.median(times), 2)
    return results


def measures(image: np.ndarray, mask: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Measures an image's superpixels.

    Args:
      image: uint8 [height, width, 3].
      mask: uint8 [height, width], 0 or 1.
      labels: int32 [height, width], from 0.

    Returns:
      - `explained_variation`: share of the colours' variance (RGB) that the regions' means keep (Moore et al. 2008).
      - `boundary_recall`: share of the mask's boundary pixels with a superpixel's boundary within `TOLERANCE` (Neubert
        and Protzel 2012), 1 if the mask has none. Ragged boundaries raise it, hence the next:
      - `boundary_density`: share of pixels on superpixels' boundaries (contour density, Machairas et al. 2015).
      - `achievable_accuracy`: share of pixels that are right if each region takes its majority in the mask (achievable
        segmentation accuracy, Liu et al. 2011).
      - `regions`: labels in use.
      - `pieces`: connected pieces, with four neighbours, of all regions.
    """
    flat, colours = labels.ravel(), image.reshape(-1, 3).astype(np.float64)
    pixels = np.bincount(flat)
    sums = np.stack([np.bincount(flat, colours[:, channel]) for channel in range(3)], axis=1)
    means = sums / np.maximum(pixels, 1)[:, None]
    average = colours.mean(0)
    variance = ((colours - average) ** 2).sum()
    salient = np.bincount(flat, mask.ravel())
    edges, mask_edges = boundary(labels), boundary(mask)
    near = cv2.dilate(edges.astype(np.uint8), np.ones((2 * TOLERANCE + 1,) * 2, np.uint8)) > 0
    return {
        "explained_variation": float(((means[flat] - average) ** 2).sum() / variance) if variance else 1.0,
        "boundary_recall": float(near[mask_edges].mean()) if mask_edges.any() else 1.0,
        "boundary_density": float(edges.mean()),
        "achievable_accuracy": float(np.maximum(salient, pixels - salient).sum() / flat.size),
        "regions": float((pixels > 0).sum()),
        "pieces": float(connected_pieces(labels, background=-1, connectivity=1).max()),
    }


def boundary(labels: np.ndarray) -> np.ndarray:
    """Pixels whose right or lower neighbour has another label, bool [height, width]."""
    edges = np.zeros(labels.shape, bool)
    edges[:-1] |= labels[1:] != labels[:-1]
    edges[:, :-1] |= labels[:, 1:] != labels[:, :-1]
    return edges


def train_steps(config: ModelConfig, size: int, batch_size: int, repeats: int) -> dict[str, Any]:
    """Of each of `OBJECTIVES` the milliseconds of a step, and the median ratio to that with superpixels from files of
    the same turn."""
    steps = {}
    for name, objective in OBJECTIVES.items():
        say(f"compiling the train step, superpixels {name}")
        steps[name] = repeatable_train_step(
            config, size=size, batch_size=batch_size, dtype="float32", objective=objective
        )
        steps[name]()
    turns = [{name: milliseconds(step) for name, step in steps.items()} for _ in range(repeats + 1)][1:]
    return {
        name: {
            "median_ms": round(statistics.median(turn[name] for turn in turns), 1),
            "minimum_ms": round(min(turn[name] for turn in turns), 1),
            "to_files": round(statistics.median(turn[name] / turn["files"] for turn in turns), 3),
        }
        for name in steps
    }


if __name__ == "__main__":
    main()
