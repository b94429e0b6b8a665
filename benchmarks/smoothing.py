"""Measures how steady the maps of a made clip are with and without `--smooth`, and how near to the truth; prints JSON.

    python benchmarks/smoothing.py > smoothing.json

An object turns and moves over a background that moves as well; its maps are its blurred mask with other errors in each
frame.
"""

import argparse
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from purinet_jax.benchmarks.machine import heading, milliseconds
from purinet_jax.prediction.smoothing import Smoother

SPEEDS = {"still": (0.5, 0), "moving": (6, 2), "fast": (14, 5)}
"""Of object and background, pixels of 320 per frame."""


class Frame(NamedTuple):
    """A frame, uint8 [size, size, 3]; its true mask and its map, float32 [size, size] in [0, 1]."""

    image: np.ndarray
    mask: np.ndarray
    saliency: np.ndarray


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=40, help="of each clip (default 40)")
    parser.add_argument("--size", type=int, default=320, help="side of the frames, pixels (default 320)")
    arguments = parser.parse_args(argv)
    result = heading(vars(arguments))
    for name, (speed, pan) in SPEEDS.items():
        result[name] = compare(make_clip(arguments.frames, arguments.size, speed, pan))
    print(json.dumps(result, indent=2))


def compare(clip: Sequence[Frame]) -> dict[str, Any]:
    """`measures` of a clip's maps as they are and steadied, and the median milliseconds that a frame takes."""
    smoother = Smoother()
    maps: list[np.ndarray] = []
    times = [milliseconds(lambda frame=frame: maps.append(smoother(frame.image, frame.saliency))) for frame in clip]
    plain = measures(clip, [frame.saliency for frame in clip])
    return {"plain": plain, "smooth": measures(clip, maps), "milliseconds": round(float(np.median(times)), 1)}


def make_clip(frames: int, size: int, speed: float, pan: float, seed: int = 0) -> list[Frame]:
    """Makes a clip of an object of three lobes; `speed` and `pan` are pixels of 320 per frame."""
    random = np.random.default_rng(seed)
    unit = size / 320
    back, front = _texture(random, size), _texture(random, size)
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    made = []
    for index in range(frames):
        travelled = speed * index % 340
        x, y = unit * (80 + min(travelled, 340 - travelled)), unit * (160 + 30 * np.sin(index / 6))
        angle = np.arctan2(rows - y, columns - x) - 0.03 * index
        outside = np.hypot(rows - y, columns - x) - 60 * unit * (1 + 0.2 * np.cos(3 * angle))
        mask = np.clip(0.5 - outside / (1.5 * unit), 0, 1).astype(np.float32)
        colours = [_moved(back, unit * pan * index, 0, size), _moved(front, size - x, size / 2 - y, size)]
        noise = random.normal(0, 3, colours[0].shape)
        image = np.clip(colours[0] + mask[..., None] * (colours[1] - colours[0]) + noise, 0, 255).astype(np.uint8)
        seen = np.clip(cv2.GaussianBlur(mask, (0, 0), 2 * unit), 0.01, 0.99)
        wrong = cv2.GaussianBlur(random.normal(size=mask.shape).astype(np.float32), (0, 0), 8 * unit)
        logits = np.log(seen / (1 - seen)) + 1.5 * wrong / wrong.std() + random.normal(0, 0.5)
        made.append(Frame(image, mask, (1 / (1 + np.exp(-logits))).astype(np.float32)))
    return made


def _texture(random: np.random.Generator, size: int) -> np.ndarray:
    """Noise in several octaves, float32 [size, 2 · size, 3]."""
    result = np.zeros((size, 2 * size, 3), np.float32) + random.uniform(60, 190, 3).astype(np.float32)
    for octave in range(2, 8):
        noise = random.normal(size=(2**octave, 2**octave, 3)).astype(np.float32)
        result += 60 * 2 ** (-octave / 2) * cv2.resize(noise, (2 * size, size), interpolation=cv2.INTER_CUBIC)
    return np.clip(result, 0, 255)


def _moved(texture: np.ndarray, left: float, top: float, size: int) -> np.ndarray:
    shift = np.array([[1, 0, -left], [0, 1, -top]], np.float32)
    return cv2.warpAffine(texture, shift, (size, size), borderMode=cv2.BORDER_WRAP)


def measures(clip: Sequence[Frame], maps: Sequence[np.ndarray]) -> dict[str, Any]:
    """Compares a clip's maps with each other and with the truth.

    Returns:
      `flicker`: mean absolute difference of a map from the one before, moved by the optical flow of the frames;
      `error`: of maps from masks; `mask_error`: share of pixels on the wrong side of 0.5.
    """
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    grey = [cv2.cvtColor(frame.image, cv2.COLOR_RGB2GRAY) for frame in clip]
    changes = []
    for index in range(1, len(clip)):
        sources = flow.calc(grey[index], grey[index - 1], None)
        sources += np.moveaxis(np.mgrid[: len(sources), : len(sources)][::-1], 0, 2)
        moved = cv2.remap(maps[index - 1], sources, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        changes.append(np.abs(moved - maps[index]).mean())
    pairs = [(saliency, frame.mask) for saliency, frame in zip(maps, clip, strict=True)]
    values = {
        "flicker": np.mean(changes),
        "error": np.mean([np.abs(saliency - mask).mean() for saliency, mask in pairs]),
        "mask_error": np.mean([((saliency >= 0.5) != (mask >= 0.5)).mean() for saliency, mask in pairs]),
    }
    return {name: round(float(value), 4) for name, value in values.items()}


if __name__ == "__main__":
    main()
