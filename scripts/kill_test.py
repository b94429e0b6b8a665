"""Kills a training run repeatedly, at moments drawn from a seed, and checks that it resumes bit for bit.

    python scripts/kill_test.py OUTPUT --kills 50 --seed 0

The configuration tiny trains on synthetic images, once without interruption and once killed (SIGKILL) at random
moments: while it starts, between steps, while it saves. After each kill every checkpoint must be readable, and the run
is started again. Prints JSON; the exit code is 1 if the parameters of the two runs differ.
"""

import argparse
import contextlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def kill_test(command: Sequence[str], output: Path, expected: Path, kills: int, seed: int) -> dict[str, object]:
    """Runs a command that trains in `output`, kills it `kills` times, lets it end, and compares its parameters.

    Args:
      command: started again after each kill, with `output` as its last argument.
      output: the run's folder.
      expected: the folder of the same run without interruption.
      kills: how many times it is killed.
      seed: determines the moments, as far as the machine's speed does not.

    Returns:
      JSON values: the stage of each kill, and the names of the tensors that differ.
    """
    generator = random.Random(seed)
    stages = []
    steps = sorted(int(child.name) for child in (expected / "checkpoints").iterdir() if child.name.isdigit())
    last = steps[-1]
    for index in range(kills):
        process = subprocess.Popen([*command, str(output)], stderr=subprocess.PIPE, text=True)
        try:
            stages.append(_kill(process, output, generator, last * (index + 1) // (kills + 1)))
        finally:
            process.kill()
            _, said = process.communicate()
        if process.returncode > 0:
            raise SystemExit(f"kill {index}: the run ended with code {process.returncode}: {said}")
        _check_readable(output)
        print(f"kill {index + 1} of {kills}: {stages[-1]}", file=sys.stderr)
    done = subprocess.run([*command, str(output)], stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the run failed: {done.stderr}")
    ours, theirs = _parameters(output, last), _parameters(expected, last)
    same = ours.keys() == theirs.keys()
    different = [name for name in theirs if not same or ours[name].tobytes() != theirs[name].tobytes()]
    return {"seed": seed, "kills": kills, "stages": stages, "tensors": len(theirs), "different": different}


def _kill(process: "subprocess.Popen[str]", output: Path, generator: random.Random, step: int) -> str:
    """Kills a process in a random stage, for which it waits up to five minutes, and returns the stage."""
    stage = generator.choice(("starting", "stepping", "saving"))
    limit = time.monotonic() + 300
    log = output / "log.jsonl"
    left = _unfinished(output)  # by the kill before
    written = log.stat().st_size if log.exists() else 0

    def reached() -> bool:
        if stage == "saving":
            return not _unfinished(output) <= left
        lines = log.read_bytes()[written:].splitlines() if log.exists() else []
        return bool(lines) and _step(lines[-1]) > step

    if stage == "starting":
        time.sleep(generator.uniform(0.0, 6.0))
    else:
        while process.poll() is None and time.monotonic() < limit and not reached():
            time.sleep(0.001)
        time.sleep(generator.uniform(0.0, 0.05))
    ended = process.poll() is not None
    process.kill()
    return "ended before" if ended else stage


def _unfinished(output: Path) -> set[tuple[str, int]]:
    """Names and inodes of incomplete checkpoints."""
    found = set()
    for child in _children(output / "checkpoints"):
        with contextlib.suppress(FileNotFoundError):  # it has just been renamed
            if "tmp" in child.name:
                found.add((child.name, child.stat().st_ino))
    return found


def _step(line: bytes) -> int:
    try:
        return int(json.loads(line)["step"])
    except ValueError:  # half a line
        return -1


def _children(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []


def _check_readable(output: Path) -> None:
    """Loads every complete checkpoint."""
    for child in _children(output / "checkpoints"):
        if child.name.isdigit():
            _parameters(output, int(child.name))


def _parameters(run: Path, step: int) -> dict[str, np.ndarray]:
    import jax

    from purinet_jax.weights.runs import load_checkpoint

    variables, _ = load_checkpoint(run / "checkpoints" / str(step))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(variables)}


def main() -> int:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    killed, expected = arguments.output / "killed", arguments.output / "uninterrupted"
    if killed.exists():
        parser.error(f"{killed}: exists already; name another folder")

    from purinet_jax.data import write_synthetic

    data = write_synthetic(arguments.output / "data", 24, size=(48, 64), seed=0)
    settings = {
        "steps": 200,
        "batch_size": 2,
        "model.channels": 4,
        "data.size": 32,
        "loop.log_every": 1,
        "loop.checkpoint_every": 3,
        "loop.panel_every": 0,
    }
    command = [sys.executable, "-m", "purinet_jax.commands.main", "train", "--config", "tiny"]
    command += ["--data", str(data), "--quiet"]
    command += [f"--config.{key}={value}" for key, value in settings.items()] + ["-o"]
    subprocess.run([*command, str(expected)], check=True)
    result = kill_test(command, killed, expected, arguments.kills, arguments.seed)
    print(json.dumps(result, indent=2))
    return 1 if result["different"] else 0


if __name__ == "__main__":
    sys.exit(main())
