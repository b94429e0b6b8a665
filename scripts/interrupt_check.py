"""Interrupts every command by SIGINT at many moments, and checks that it ends with exit code 130 and leaves no part.

    python scripts/interrupt_check.py FOLDER --moments 40 --command predict

Each command runs to its end twice; then it is interrupted at moments spread evenly over the time of the second run. It
must end with exit code 130, say nothing but one line, and leave nothing but complete files. Before Python runs its
first line, and while it ends, the signal itself may end it (shells report 130), or Python with "init_import_site".
Prints JSON; the exit code is 1 if anything else happened.
"""

import argparse
import json
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

from PIL import Image

ENDING = 0.1
"""Seconds that the system takes to end a process, which signals no longer reach."""

SMALL = ["--config.batch_size=2", "--config.loop.workers=0", "--quiet"]


def commands(folder: Path) -> dict[str, list[str]]:
    """Returns the arguments of each command, of which the first OUT is to be replaced."""
    from purinet_jax.data import write_synthetic
    from purinet_jax.weights.shipped import shipped_file

    data = write_synthetic(folder / "data", 24, size=(48, 64), seed=0)
    images, masks = str(data / "DUTS-TR-Image"), str(data / "DUTS-TR-Mask")
    return {
        "prepare": ["duts", "--data", str(data), "-o", "OUT"],
        "train": ["--config", "tiny", "--data", str(data), "-o", "OUT", "--config.steps=6", *SMALL],
        "finetune": [str(data), "-o", "OUT", "--size", "64", "--steps", "3", *SMALL],
        "predict": [images, "-o", "OUT", "--json"],
        "serve": ["--port", "0"],
        "evaluate": ["--maps", masks, "--masks", masks, "--workers", "2", "--per-image", "OUT/images.csv"],
        "convert": [str(shipped_file("context")), "OUT/weights.safetensors"],
        "export": ["OUT/network.stablehlo", "--to", "stablehlo", "--size", "64"],
        "benchmark": ["--size", "64", "--repeats", "1", "--backbone", "mobilenet_v2", "--channels", "8"],
    }


def interrupt(command: list[str], output: Path, seconds: float | None) -> tuple[float, int, str]:
    """Runs a command and interrupts it after some time, None for never; returns its time, exit code and last words."""
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    # A shell makes its background processes ignore SIGINT, and this one may be one.
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    start = time.monotonic()
    try:
        process = subprocess.Popen(
            [part.replace("OUT", str(output)) for part in command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        try:
            _, said = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=300)  # training ends its step first
        finally:
            process.kill()
    return time.monotonic() - start, process.returncode, said


def faults(output: Path, code: int, said: str) -> list[str]:
    """Returns what an interrupted command did wrong."""
    ended = code in (130, -signal.SIGINT) or (code == 1 and "init_import_site" in said)
    found = [] if ended else [f"exit code {code}"]
    if ("Traceback" in said or "Warning" in said) and code == 130:
        found.append(said[-2000:])
    for file in output.rglob("*"):
        if ".part" in file.name:
            found.append(f"{file}: left")
        elif file.suffix == ".png":
            with Image.open(file) as image:
                image.load()
        elif file.suffix == ".safetensors":
            from purinet_jax.weights.tensor_files import read_tensors

            read_tensors(file)
        elif file.suffix == ".stablehlo" and not file.stat().st_size:
            found.append(f"{file}: empty")
        elif file.suffix in (".zip", ".npz") and not zipfile.is_zipfile(file):
            found.append(f"{file}: damaged")
    return found


def main() -> int:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--moments", type=int, default=40)
    parser.add_argument("--command", action="append", help="only this one; may be given several times")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    output = arguments.folder / "output"
    if output.exists():
        parser.error(f"{output}: exists already, and would be removed; name another folder")
    result: dict[str, dict[str, object]] = {}
    for name, options in commands(arguments.folder).items():
        if arguments.command and name not in arguments.command:
            continue
        command = [sys.executable, "-m", "purinet_jax.commands.main", name, *options]
        if name == "serve":
            duration = 6.0
        else:
            for _ in range(2):  # the first run fills caches
                duration, code, said = interrupt(command, output, None)
                if code:
                    raise SystemExit(f"{name}: ended with code {code}: {said}")
        codes: dict[int, int] = {}
        wrong = []
        for moment in range(arguments.moments):
            after = duration * (moment + 0.5) / arguments.moments
            took, code, said = interrupt(command, output, after)
            while code == 0 and took < after + ENDING:  # it was faster this time
                after *= 0.8
                took, code, said = interrupt(command, output, after)
            codes[code] = codes.get(code, 0) + 1
            wrong += [f"after {after:.2f} s: {fault}" for fault in faults(output, code, said)]
        result[name] = {"seconds": round(duration, 2), "exit_codes": codes, "faults": wrong}
        print(f"{name}: {result[name]}", file=sys.stderr, flush=True)
    print(json.dumps(result, indent=2))
    return 1 if any(each["faults"] for each in result.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
