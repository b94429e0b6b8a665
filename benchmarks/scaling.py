"""Fits the time of a train step, t = a + b · batch · size², over batch and image sizes; prints JSON.

    python benchmarks/scaling.py --backbone mobilenet_v2 --channels 16 --repeats 2

Of several timings the fastest counts. On a CPU the fit is of the process's CPU seconds, over all cores, which other
processes hardly change.
"""

import argparse
import json

import numpy as np

from purinet_jax.benchmarks.machine import heading, in_process, say, timings
from purinet_jax.benchmarks.network import repeatable_train_step
from purinet_jax.network.config import ModelConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--repeats", type=int, default=7, help="timed steps of each (default 7)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8], help="images in a step")
    parser.add_argument("--sizes", type=int, nargs="+", default=[160, 224, 320], help="sides of the images, pixels")
    arguments = parser.parse_args()
    config = ModelConfig(arguments.backbone, arguments.channels)
    result = heading(vars(arguments))
    rows = []
    for size in arguments.sizes:
        for batch_size in arguments.batches:
            say(f"measuring batch {batch_size} of {size}²")
            times = in_process(measure, config, size, batch_size, arguments.dtype, arguments.repeats)
            rows.append({"batch_size": batch_size, "size": size, **times})
    clock = "cpu_s" if result["machine"]["device"] == "cpu" else "s"
    print(json.dumps(result | fit(rows, clock), indent=2))


def measure(config: ModelConfig, size: int, batch_size: int, dtype: str, repeats: int) -> dict[str, float]:
    """Seconds and CPU seconds of the fastest step, in a fresh process."""
    run = repeatable_train_step(config, size=size, batch_size=batch_size, dtype=dtype)
    run()
    seconds, cpu_seconds = timings(run, repeats)
    return {"s": round(min(seconds), 4), "cpu_s": round(min(cpu_seconds), 4)}


def fit(rows: list[dict[str, float]], clock: str) -> dict[str, object]:
    """The fit, and the rows with the seconds that it expects and their measured ratio to them."""
    pixels = np.array([row["batch_size"] * row["size"] ** 2 for row in rows], float)
    times = np.array([row[clock] for row in rows])
    # Each row is divided by its time, so that relative errors count.
    design = np.stack([np.ones_like(pixels), pixels], 1) / times[:, None]
    (constant, per_pixel), *_ = np.linalg.lstsq(design, np.ones_like(times), rcond=None)
    expected = constant + per_pixel * pixels
    fitted = [
        {**row, "fit_s": round(float(seconds), 4), "to_fit": round(float(row[clock] / seconds), 3)}
        for row, seconds in zip(rows, expected, strict=True)
    ]
    found = {"of": clock, "constant_s": float(constant), "s_per_megapixel": float(per_pixel * 1e6)}
    return {"fit": found, "rows": fitted}


if __name__ == "__main__":
    main()
