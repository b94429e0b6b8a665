"""Cutting objects out by `purinet` and by rembg: processor time and peak memory of commands on the same photographs.

rembg is run from an environment of its own, and its models must be where it looks for them ($U2NET_HOME/u2netp.onnx):

    python benchmarks/background_removal.py photos/ --rembg /tmp/rembg/bin/rembg --custom /tmp/models/purnet.onnx

Each command runs twice before it is measured, since both keep compiled programs.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

_EARLIER_RUNS = 2


def measure(command: list[str]) -> tuple[float, float, int]:
    """Runs a command; returns its seconds, its processor's seconds and its peak memory in MiB."""
    start = time.monotonic()
    process = os.posix_spawn(
        command[0],
        command,
        os.environ,
        file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)],
    )
    _, status, usage = os.wait4(process, 0)
    if status:
        sys.exit(f"failed: {' '.join(command)}")
    return time.monotonic() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss >> 10


def main() -> None:
    """Prints a table: a row for each program, for one photograph and for all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("photos", type=Path, help="folder of photographs")
    parser.add_argument("--rembg", required=True, help="the command of another environment")
    parser.add_argument("--models", nargs="+", default=["u2netp", "u2net"], help="of rembg (default u2netp u2net)")
    parser.add_argument("--custom", type=Path, help="file of purinet export --to onnx --layout rembg")
    arguments = parser.parse_args()
    photos = sorted(path for path in arguments.photos.iterdir() if path.is_file())
    purinet = [str(Path(sys.executable).with_name("purinet")), "predict", "--output-kind", "cutout", "--quiet"]
    with tempfile.TemporaryDirectory() as name:
        one, all_of_them, output = (Path(name, part) for part in ("one", "all", "output"))
        for folder, chosen in ((one, photos[:1]), (all_of_them, photos)):
            folder.mkdir()
            for photo in chosen:
                shutil.copy(photo, folder)

        def ours(*options: str) -> list[list[str]]:
            return [[*purinet, str(folder), "-o", str(output), *options] for folder in (one, all_of_them)]

        def theirs(*options: str) -> list[list[str]]:
            return [[arguments.rembg, "p", *options, str(folder), str(output)] for folder in (one, all_of_them)]

        commands = {
            "purinet": ours(),
            "purinet --checkpoint lite": ours("--checkpoint", "lite"),
            "purinet --matting": ours("--matting"),
        }
        for model in arguments.models:
            commands[f"rembg {model}"] = theirs("-m", model)
        commands[f"rembg {arguments.models[0]} -a"] = theirs("-m", arguments.models[0], "-a")
        if arguments.custom is not None:
            extras = json.dumps({"model_path": str(arguments.custom.absolute())})
            commands["rembg with purinet's network"] = theirs("-m", "u2net_custom", "-x", extras)
        print(f"| | 1 photograph: processor time, time | {len(photos)} photographs | peak memory |")
        print("| --- | --- | --- | --- |")
        for label, pair in commands.items():
            cells, peak = [], 0
            for command in pair:
                for _ in range(_EARLIER_RUNS + 1):
                    shutil.rmtree(output, ignore_errors=True)
                    output.mkdir()
                    seconds, processor, memory = measure(command)
                cells.append(f"{processor:.1f} s, {seconds:.1f} s")
                peak = max(peak, memory)
            print(f"| {label} | {' | '.join(cells)} | {peak:,} MiB |", flush=True)


if __name__ == "__main__":
    main()
