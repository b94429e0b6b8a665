"""Measures the metrics of `purinet evaluate` against PySODMetrics; prints JSON.

    python benchmarks/metrics.py > metrics.json

Both measure the same made-up maps of 300 × 400 pixels (protocol pysod), in turn, because a machine's speed drifts, and
each in a process of its own with one thread.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import warnings
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

from purinet_jax.benchmarks.machine import heading, milliseconds, say

HEIGHT, WIDTH = 300, 400


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20, help="maps that each timing takes (default 20)")
    parser.add_argument("--repeats", type=int, default=7, help="timings of each, after one that is not counted")
    arguments = parser.parse_args()
    sides = {"ours": time_ours, "pysodmetrics": time_pysodmetrics}
    context = multiprocessing.get_context("spawn")
    pools = {side: ProcessPoolExecutor(1, context, initializer=use_one_thread) for side in sides}
    turns = []
    for turn in range(arguments.repeats + 1):
        say(f"measuring, turn {turn} of {arguments.repeats}")
        turns.append({side: pools[side].submit(run, arguments.images).result() for side, run in sides.items()})
    for pool in pools.values():
        pool.shutdown()
    settings = {**vars(arguments), "size": [HEIGHT, WIDTH], "threads": 1}
    result = heading(settings, uses_jax=False) | {side: summary([turn[side] for turn in turns[1:]]) for side in sides}
    ratios = [sum(turn["ours"].values()) / sum(turn["pysodmetrics"].values()) for turn in turns[1:]]
    print(json.dumps({**result, "to_pysodmetrics": round(statistics.median(ratios), 3)}, indent=2))


def use_one_thread() -> None:
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ[f"{library}_NUM_THREADS"] = "1"  # read when the libraries are imported, which they are not yet
    import cv2

    cv2.setNumThreads(0)


def summary(timings: list[dict[str, float]]) -> dict[str, Any]:
    """Milliseconds an image takes: median and minimum of all parts together, and each part's median."""
    totals = [sum(timing.values()) for timing in timings]
    parts = {name: round(statistics.median(timing[name] for timing in timings), 3) for name in timings[0]}
    return {"median_ms": round(statistics.median(totals), 3), "minimum_ms": round(min(totals), 3), "parts_ms": parts}


def examples(count: int) -> list[tuple[Any, Any]]:
    """Made-up masks, and maps like a network's: soft, and not quite right."""
    import cv2
    import numpy as np

    from purinet_jax.data.synthetic import draw_example

    pairs = []
    for index in range(count):
        generator = np.random.default_rng((0, index))
        mask = draw_example(generator, (WIDTH, WIDTH))[1][:HEIGHT] * np.uint8(255)
        wrong = cv2.resize(generator.normal(0, 60, (8, 10)), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        saliency = np.clip(cv2.GaussianBlur(mask.astype(np.float64), (0, 0), 4) + wrong, 0, 255).astype(np.uint8)
        pairs.append((saliency, mask))
    return pairs


def time_ours(images: int) -> dict[str, float]:
    """Milliseconds of each part, per image."""
    from purinet_jax.evaluation.metrics import measure
    from purinet_jax.evaluation.metrics.boundary import boundary_iou
    from purinet_jax.evaluation.metrics.comparison import BACKGROUND, OBJECT, compare
    from purinet_jax.evaluation.metrics.structure import s_measure
    from purinet_jax.evaluation.metrics.weighted import weighted_f

    pairs = examples(images)
    total = sum(milliseconds(partial(measure, saliency, mask, "pysod")) for saliency, mask in pairs)
    parts = dict.fromkeys(("weighted_f", "s_measure", "boundary_iou"), 0.0)
    for saliency, mask in pairs:
        values, objects, levels, counts, _ = compare(saliency, mask, "pysod")
        parts["weighted_f"] += milliseconds(partial(weighted_f, values, objects))
        parts["s_measure"] += milliseconds(partial(s_measure, levels, counts[:, BACKGROUND], counts[:, OBJECT]))
        parts["boundary_iou"] += milliseconds(partial(boundary_iou, values, objects))
    parts["counts, mae, f and e"] = total - sum(parts.values())
    return {name: value / images for name, value in parts.items()}


def time_pysodmetrics(images: int) -> dict[str, float]:
    """Milliseconds of each part, per image. PySODMetrics has no boundary IoU."""
    import py_sod_metrics

    names = {"mae": "MAE", "f": "Fmeasure", "weighted_f": "WeightedFmeasure", "s_measure": "Smeasure", "e": "Emeasure"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Fmeasure is deprecated; what replaces it computes the same
        measures = {name: getattr(py_sod_metrics, theirs)() for name, theirs in names.items()}
    pairs = examples(images)
    return {
        name: sum(milliseconds(partial(measure.step, *pair)) for pair in pairs) / images
        for name, measure in measures.items()
    }


if __name__ == "__main__":
    main()
