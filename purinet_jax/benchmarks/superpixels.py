"""How well superpixels follow images and masks, and what making them costs: scikit-image's, which are stored, against
those that the train step makes itself.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from purinet_jax.benchmarks.machine import describe_machine, milliseconds
from purinet_jax.benchmarks.network import repeatable_train_step
from purinet_jax.data import open_pairs, resize_image, resize_labels
from purinet_jax.data.superpixel_files import slic_labels
from purinet_jax.training.losses import Objective
from purinet_jax.training.superpixels import grid_regions, slic_regions

TOLERANCE = 2
"""How far, in pixels and in either direction, a superpixel's boundary may be from the mask's that it recalls."""

OBJECTIVES = {
    "stored": Objective(),
    "slic": Objective(superpixels="slic"),
    "grid": Objective(superpixels="grid"),
    "none": Objective("none"),
}
"""The train steps that are compared, stage 3's losses but for the superpixels."""


def benchmark_superpixels(
    data: str | Path,
    *,
    images: int,
    backbone: str,
    channels: int,
    size: int,
    batch_size: int,
    dtype: str,
    repeats: int,
) -> dict[str, Any]:
    """Measures superpixels on images of a data set, and the train step with each kind of them.

    Args:
      data: pairs of image and mask, a folder or zip; images and masks are squashed to squares.
      images: how many pairs to draw (the same ones each time), or all if there are fewer.
      backbone: of the train step, an extractor's name as in `build_model`.
      channels: the decoder's width.
      size: side of the square images in pixels.
      batch_size: images in a train step.
      dtype: what convolutions compute in.
      repeats: timed train steps of each kind, in turn; two of each come before and are not counted.

    Returns:
      JSON values. `superpixels`: for scikit-image's SLIC, ours and the grid, the means of `measures` and the median of
      the milliseconds an image takes. `train_step`: for each of `OBJECTIVES` the median and minimum in milliseconds,
      and `to_stored`, the median of the ratios to the step with stored superpixels of the same turn.

    Raises:
      InputError: the data set or one of its files cannot be used.
    """
    settings = {"backbone": backbone, "channels": channels, "size": size, "batch_size": batch_size, "dtype": dtype}
    pairs = open_pairs(data)
    chosen = np.sort(np.random.default_rng(0).permutation(len(pairs))[:images])
    examples = []
    for index in chosen.tolist():
        example = pairs[index]
        examples.append((resize_image(example["image"], size, size), resize_labels(example["mask"], size, size)))
    return {
        "machine": describe_machine(),
        "date": time.strftime("%Y-%m-%d"),
        "settings": {"data": str(data), "images": len(examples), **settings, "repeats": repeats},
        "superpixels": _quality(examples),
        "train_step": _train_steps(settings, repeats),
    }


def measures(image: np.ndarray, mask: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """How an image's superpixels do.

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
      - `pieces`: connected pieces, with four neighbours, that the regions lie in.
    """
    from skimage.measure import label as connected_pieces

    flat, colours = labels.ravel(), image.reshape(-1, 3).astype(np.float64)
    pixels = np.bincount(flat)
    sums = np.stack([np.bincount(flat, colours[:, channel]) for channel in range(3)], axis=1)
    means = sums / np.maximum(pixels, 1)[:, None]
    average = colours.mean(0)
    variance = ((colours - average) ** 2).sum()
    salient = np.bincount(flat, mask.ravel())
    edges, mask_edges = _boundary(labels), _boundary(mask)
    near = cv2.dilate(edges.astype(np.uint8), np.ones((2 * TOLERANCE + 1,) * 2, np.uint8)) > 0
    return {
        "explained_variation": float(((means[flat] - average) ** 2).sum() / variance) if variance else 1.0,
        "boundary_recall": float(near[mask_edges].mean()) if mask_edges.any() else 1.0,
        "boundary_density": float(edges.mean()),
        "achievable_accuracy": float(np.maximum(salient, pixels - salient).sum() / flat.size),
        "regions": float((pixels > 0).sum()),
        "pieces": float(connected_pieces(labels, background=-1, connectivity=1).max()),
    }


def _boundary(labels: np.ndarray) -> np.ndarray:
    """Pixels whose right or lower neighbour has another label, bool [height, width]."""
    edges = np.zeros(labels.shape, bool)
    edges[:-1] |= labels[1:] != labels[:-1]
    edges[:, :-1] |= labels[:, 1:] != labels[:, :-1]
    return edges


def _quality(examples: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    from tqdm import tqdm

    methods: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "scikit_image": slic_labels,
        "slic": lambda image: np.asarray(slic_regions(image[None]))[0],
        "grid": lambda image: grid_regions(*image.shape[:2]),
    }
    results: dict[str, Any] = {}
    for name, method in methods.items():
        method(examples[0][0])  # compiles
        values, times = [], []
        for image, mask in tqdm(examples, name, leave=False):
            start = time.perf_counter()
            labels = method(image)
            times.append((time.perf_counter() - start) * 1000)
            values.append(measures(image, mask, labels))
        results[name] = {key: round(statistics.mean(value[key] for value in values), 4) for key in values[0]}
        results[name]["milliseconds"] = round(statistics.median(times), 2)
    return results


def _train_steps(settings: dict[str, Any], repeats: int) -> dict[str, Any]:
    steps, times = {}, {}
    for name, objective in OBJECTIVES.items():
        print(f"compiling the train step, superpixels {name} …", file=sys.stderr, flush=True)
        steps[name] = repeatable_train_step(settings, objective)
        times[name] = [milliseconds(steps[name]) for _ in range(2)]
    for _ in range(repeats):
        for name, step in steps.items():
            times[name].append(milliseconds(step))
    return {
        name: {
            "median_ms": round(statistics.median(timed[2:]), 1),
            "minimum_ms": round(min(timed[2:]), 1),
            "to_stored": round(statistics.median(np.divide(timed[2:], times["stored"][2:]).tolist()), 3),
        }
        for name, timed in times.items()
    }
