"""What it costs to measure a map, beside PySODMetrics, which most of the field measures with. The two are timed in
turn, each in a process of its own with one thread, since a machine's own speed drifts.
"""

import importlib.util
import multiprocessing
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

from purinet_jax.benchmarks.machine import describe_machine, milliseconds

_HEIGHT, _WIDTH = 300, 400


def benchmark_metrics(*, images: int = 20, repeats: int = 7) -> dict[str, Any]:
    """Times all measures of made-up maps of 300 × 400 pixels, "pysod" protocol.

    Args:
      images: how many maps each timing takes.
      repeats: timings of each, in turn; one of each comes before and is not counted.

    Returns:
      JSON values: `ours` and `pysodmetrics` (null if it is not installed), each the median and minimum of the
      milliseconds an image takes for mean absolute error, F, weighted F, S and E (ours with boundary IoU, which
      PySODMetrics does not have), and the medians of its parts; `to_pysodmetrics`, the median of the ratios of a turn.
    """
    sides: dict[str, Callable[[int], dict[str, float]]] = {"ours": _time_ours}
    if importlib.util.find_spec("py_sod_metrics") is not None:
        sides["pysodmetrics"] = _time_pysodmetrics
    context = multiprocessing.get_context("spawn")
    pools = {side: ProcessPoolExecutor(1, context, initializer=_use_one_thread) for side in sides}
    turns: list[dict[str, dict[str, float]]] = []
    try:
        for turn in range(repeats + 1):
            print(f"measuring, turn {turn} of {repeats} …", file=sys.stderr, flush=True)
            turns.append({side: pools[side].submit(run, images).result() for side, run in sides.items()})
    finally:
        for pool in pools.values():
            pool.shutdown()
    turns = turns[1:]
    ratios = [turn["ours"]["all"] / turn["pysodmetrics"]["all"] for turn in turns if "pysodmetrics" in turn]
    return {
        "machine": describe_machine(),
        "date": time.strftime("%Y-%m-%d"),
        "settings": {"images": images, "repeats": repeats, "size": [_HEIGHT, _WIDTH], "threads": 1},
        "ours": _summary([turn["ours"] for turn in turns]),
        "pysodmetrics": _summary([turn["pysodmetrics"] for turn in turns]) if ratios else None,
        "to_pysodmetrics": round(statistics.median(ratios), 3) if ratios else None,
    }


def _use_one_thread() -> None:
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ[f"{library}_NUM_THREADS"] = "1"  # they ask when they are imported, which they are not yet
    import cv2

    cv2.setNumThreads(0)


def _summary(timings: list[dict[str, float]]) -> dict[str, Any]:
    whole = [timing["all"] for timing in timings]
    parts = {name: [timing[name] for timing in timings] for name in timings[0] if name != "all"}
    return {
        "median_ms": round(statistics.median(whole), 3),
        "minimum_ms": round(min(whole), 3),
        "parts_ms": {name: round(statistics.median(times), 3) for name, times in parts.items()},
    }


def _examples(count: int) -> list[tuple[Any, Any]]:
    """Masks of the made-up data set, and maps like a network's: soft, and not quite right."""
    import cv2
    import numpy as np

    from purinet_jax.data.synthetic import draw_example

    examples = []
    for index in range(count):
        generator = np.random.default_rng((0, index))
        mask = draw_example(generator, (_WIDTH, _WIDTH))[1][:_HEIGHT] * np.uint8(255)
        wrong = cv2.resize(generator.normal(0, 60, (8, 10)), (_WIDTH, _HEIGHT), interpolation=cv2.INTER_CUBIC)
        saliency = np.clip(cv2.GaussianBlur(mask.astype(np.float64), (0, 0), 4) + wrong, 0, 255).astype(np.uint8)
        examples.append((saliency, mask))
    return examples


def _time_ours(images: int) -> dict[str, float]:
    """Milliseconds an image takes, as a whole and by part."""
    from purinet_jax.evaluation.metrics import measure
    from purinet_jax.evaluation.metrics.boundary import boundary_iou
    from purinet_jax.evaluation.metrics.comparison import GROUND, OBJECT, compare
    from purinet_jax.evaluation.metrics.structure import s_measure
    from purinet_jax.evaluation.metrics.weighted import weighted_f

    examples = _examples(images)
    whole = sum(milliseconds(partial(measure, saliency, mask, "pysod")) for saliency, mask in examples)
    parts = dict.fromkeys(("weighted_f", "s_measure", "boundary_iou"), 0.0)
    for saliency, mask in examples:
        comparison = compare(saliency, mask, "pysod")
        values, objects = comparison.values, comparison.objects
        levels, counts = comparison.levels, comparison.counts
        parts["weighted_f"] += milliseconds(partial(weighted_f, values, objects))
        parts["s_measure"] += milliseconds(partial(s_measure, levels, counts[:, GROUND], counts[:, OBJECT]))
        parts["boundary_iou"] += milliseconds(partial(boundary_iou, values, objects))
    parts["counts, mae, f and e"] = whole - sum(parts.values())
    return {name: value / images for name, value in {"all": whole, **parts}.items()}


def _time_pysodmetrics(images: int) -> dict[str, float]:
    """Milliseconds an image takes, as a whole and by part."""
    import py_sod_metrics

    names = {"mae": "MAE", "f": "Fmeasure", "weighted_f": "WeightedFmeasure", "s_measure": "Smeasure", "e": "Emeasure"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that Fmeasure will go; what replaces it computes the same
        measures = {name: getattr(py_sod_metrics, what)() for name, what in names.items()}
    examples = _examples(images)
    parts = {
        name: sum(milliseconds(partial(measure.step, saliency, mask)) for saliency, mask in examples)
        for name, measure in measures.items()
    }
    return {name: value / images for name, value in {"all": sum(parts.values()), **parts}.items()}
