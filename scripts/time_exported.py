"""Times networks in JAX and, exported, in onnxruntime and PyTorch, in turn in one process; a line of JSON for each.

    python scripts/time_exported.py --size 320 stage3.pth

The default is the package's network. Milliseconds for one image, medians of means over four runs: wall-clock time, and
processor time over all threads, which is reliable on a shared machine. PyTorch, if installed, runs the exported layers
(`torch_network.py`), channels last, with and without `torch.compile`.
"""

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnxruntime

from purinet_jax.export import export_onnx, export_stablehlo
from purinet_jax.network import saliency_maps
from purinet_jax.network.cpu.platform import compile_forward_pass
from purinet_jax.prediction import Predictor, load

_IN_A_ROW = 4


def compare(predictor: Predictor, repeats: int, threads: int = 2) -> dict[str, Any]:
    """JSON values: sizes of the exported files in bytes, milliseconds of each, and the largest difference of maps.

    Args:
      predictor: the network.
      repeats: how often each is timed over four runs.
      threads: the threads of onnxruntime and PyTorch.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # it would count as processor time
    exported = export_onnx(predictor)
    session = onnxruntime.InferenceSession(exported, options)
    backbone = predictor.model.backbone
    square = np.random.default_rng(0).integers(0, 256, (1, predictor.size, predictor.size, 3), np.uint8)
    normalised = (square.astype(np.float32) / 255 - np.float32(backbone.pixel_mean)) / np.float32(backbone.pixel_std)
    inputs = {"image": np.ascontiguousarray(normalised.transpose(0, 3, 1, 2))}
    trained = jax.device_put(predictor.variables)
    with_batchnorm = compile_forward_pass(saliency_maps.lower(predictor.model, trained, square))
    runs: dict[str, Callable[[], np.ndarray]] = {
        "jax": lambda: predictor.square_maps([square[0]], 1),  # as `purinet predict` does
        "jax_with_batchnorm": lambda: np.asarray(with_batchnorm(trained, square)),
        "onnxruntime": lambda: session.run(None, inputs)[0][:, 0],
    }
    if importlib.util.find_spec("torch") is not None:
        runs.update(_in_torch(exported, inputs["image"], threads))
    maps = {name: [run(), run()][0] for name, run in runs.items()}
    clock: dict[str, list[float]] = {name: [] for name in runs}
    processor: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            run()  # the previous program's threads may spin for a while
            start = time.perf_counter(), time.process_time()
            for _ in range(_IN_A_ROW):
                run()
            clock[name].append(1000 * (time.perf_counter() - start[0]) / _IN_A_ROW)
            processor[name].append(1000 * (time.process_time() - start[1]) / _IN_A_ROW)
    return {
        "size": predictor.size,
        "onnx_bytes": len(exported),
        "stablehlo_bytes": len(export_stablehlo(predictor)),
        "clock_ms": {name: round(statistics.median(times), 1) for name, times in clock.items()},
        "processor_ms": {name: round(statistics.median(times), 1) for name, times in processor.items()},
        "largest_difference": {name: float(np.abs(maps[name] - maps["jax"]).max()) for name in runs},
    }


def _in_torch(exported: bytes, image: np.ndarray, threads: int) -> dict[str, Callable[[], np.ndarray]]:
    import torch
    from torch_network import TorchNetwork

    torch.set_num_threads(threads)
    network = TorchNetwork(exported).eval().to(memory_format=torch.channels_last)
    images = torch.from_numpy(image).to(memory_format=torch.channels_last)

    def run(network: Callable[[torch.Tensor], torch.Tensor]) -> np.ndarray:
        with torch.inference_mode():
            saliency: np.ndarray = network(images)[:, 0].numpy()
            return saliency

    return {"torch": partial(run, network), "torch_compiled": partial(run, torch.compile(network))}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="*", type=Path, help="runs' folders or files (default: the package's)")
    parser.add_argument("--size", type=int)
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args()
    for path in arguments.weights or [None]:
        print(json.dumps({"weights": path and path.name, **compare(load(path, arguments.size), arguments.repeats)}))
