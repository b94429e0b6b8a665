"""Compares one node of `purinet predict --ray` with the plain command, and kills one of two nodes half-way.

    python scripts/ray_check.py --images 2000 --damaged 20

prints JSON. Rates are images per second of processor time, with and without the startup (a run over one image).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
from PIL import Image

from purinet_jax.data.synthetic import draw_example


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--damaged", type=int, default=20)
    parser.add_argument("--size", type=int, default=288, help="side of the network's square")
    parser.add_argument("--width", type=int, default=400, help="approximate width of the images")
    arguments = parser.parse_args()
    if arguments.damaged > arguments.images:
        parser.error(f"--damaged: {arguments.damaged} of {arguments.images} images")
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(scratch / "cache"))
        folder = make_images(scratch / "photos", arguments.images, arguments.damaged, arguments.width)
        one = make_images(scratch / "one", 1, 0, arguments.width)
        size = ["--size", str(arguments.size), "--quiet"]
        predict([str(one), "-o", str(scratch / "warm"), *size])
        rates = {}
        for kind, more in (("plain", []), ("ray", ["--ray", "local"])):
            start = predict([str(one), "-o", str(scratch / f"one_{kind}"), *size, *more])
            entire = predict([str(folder), "-o", str(scratch / kind), *size, *more], 2 if arguments.damaged else 0)
            made = sum(1 for _ in (scratch / kind).rglob("*.png"))
            if made != arguments.images - arguments.damaged:
                sys.exit(f"{kind}: {made} images were written")
            rates[kind] = {
                "seconds": entire["seconds"],
                "processor_seconds": entire["processor_seconds"],
                "of_which_start": start["processor_seconds"],
                "images_per_processor_second": round(arguments.images / entire["processor_seconds"], 2),
                "without_start": round(
                    arguments.images / (entire["processor_seconds"] - start["processor_seconds"]), 2
                ),
            }
        same = sum(
            (scratch / "ray" / file.relative_to(scratch / "plain")).read_bytes() == file.read_bytes()
            for file in (scratch / "plain").rglob("*.png")
        )
        lost = lose_a_node(folder, scratch / "maps.parquet", size)
        print(
            json.dumps({"settings": vars(arguments), "rates": rates, "same_files": same, "node_lost": lost}, indent=2)
        )


def make_images(folder: Path, count: int, damaged: int, width: int) -> Path:
    drawings = [draw_example(np.random.default_rng(seed), (width * 3 // 4, width))[0] for seed in range(10)]
    for index in range(count):
        path = folder / f"{index // 500}" / f"{index:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawings[index % 10]).save(path, quality=90)
        if index * damaged % count < damaged:
            path.write_bytes(path.read_bytes()[: 100 * (index % 3)])
    return folder


def predict(arguments: list[str], code: int = 0) -> dict[str, float]:
    """Runs the command; returns its seconds, and the processor seconds of it and its child processes."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "purinet_jax.commands.main", "predict", *arguments])
    used: dict[tuple[int, float], float] = {}

    def watch() -> None:  # Ray's processes are not waited for, so their times are polled
        while process.poll() is None:
            with suppress(psutil.NoSuchProcess):  # ended in between
                main_process = psutil.Process(process.pid)
                for child in [main_process, *main_process.children(recursive=True)]:
                    times = child.cpu_times()
                    used[child.pid, child.create_time()] = times.user + times.system
            time.sleep(0.2)

    thread = threading.Thread(target=watch)
    thread.start()
    returned = process.wait()
    thread.join()
    if returned != code:
        raise subprocess.CalledProcessError(returned, arguments)
    return {"seconds": round(time.perf_counter() - began, 1), "processor_seconds": round(sum(used.values()), 1)}


def lose_a_node(folder: Path, output: Path, size: list[str]) -> dict[str, Any]:
    """Starts two nodes, and kills one when half of the outputs are written."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # on loopback
    from ray.cluster_utils import Cluster

    files = [file.relative_to(folder).as_posix() for file in sorted(folder.rglob("*.jpg"))]
    cluster = Cluster()
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1, object_store_memory=100 << 20, include_dashboard=False)
        command = ["predict", str(folder), "--ray", cluster.address, "-o", str(output), *size]
        process = subprocess.Popen(
            [sys.executable, "-m", "purinet_jax.commands.main", *command], stderr=subprocess.PIPE
        )
        written = 0
        while 2 * written < len(files) and process.poll() is None:
            time.sleep(0.2)
            written = sum(pq.ParquetFile(part).metadata.num_rows for part in output.glob("part-*.parquet"))
        cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
        _, stderr = process.communicate()
    finally:
        cluster.shutdown()
    rows = pq.read_table(output).to_pylist()
    count = Counter(row["name"] for row in rows)
    return {
        "exit_code": process.returncode,
        "written_when_the_node_was_killed": written,
        "workers_were_lost": b"workers were lost" in stderr,
        "images": len(files),
        "predicted_once": sum(count[name] == 1 for name in files),
        "rows": len(rows),
        "with_map": sum(row["map"] is not None and row["error"] is None for row in rows),
        "with_error": sum(row["map"] is None and row["error"] is not None for row in rows),
    }


if __name__ == "__main__":
    main()
