"""Measures cut-outs' alpha on made images whose true alpha is known, and what it costs; prints JSON.

    python benchmarks/matting.py > matting.json
    python benchmarks/matting.py --photographs photos/ --pairs DUTS-TE.zip > matting.json

Compares guided edges (`cutout`) with matting (`matte`). An object with strands, soft or hard edges is drawn at eight
times the size over another texture; the map is its alpha as a network would see it: at 320 × 320, blurred, with errors
at the edge.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from purinet_jax.benchmarks.machine import heading, in_process, milliseconds, peak_memory, say
from purinet_jax.data import open_pairs, resize_image
from purinet_jax.data.images import read_srgb
from purinet_jax.errors import InputError
from purinet_jax.prediction.cutouts import cutout
from purinet_jax.prediction.matting import matte
from purinet_jax.prediction.refine import refine_map

DRAWN = 8
"""How many times larger alpha is drawn than the image."""
SQUARE = 320
"""Side of the made maps."""

METHODS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "guided": lambda image, saliency: cutout(image, saliency)[..., 3],
    "matting": lambda image, saliency: matte(image, saliency)[1],
}
Example = tuple[np.ndarray, np.ndarray, np.ndarray]
"""An image, its true alpha, and its map."""

KINDS = ("strands", "soft", "hard")
MEGAPIXELS = (0.3, 2.0, 12.0, 24.0)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=8, help="made images of each kind (default 8)")
    parser.add_argument("--width", type=int, default=640, help="of made images, pixels; height is 3/4 (default 640)")
    parser.add_argument("--photographs", type=Path, help="a folder of textures; by default they are generated")
    parser.add_argument("--pairs", help="photographs and masks, on which the package's network predicts maps")
    parser.add_argument("--megapixels", type=float, nargs="*", default=MEGAPIXELS, help="sizes whose cost is measured")
    arguments = parser.parse_args(argv)
    result = heading(
        {name: value if isinstance(value, int | list) else str(value) for name, value in vars(arguments).items()}
    )
    result["cost"] = []  # first, because a process starts with the peak memory of the one that starts it
    for megapixels in arguments.megapixels:
        for method in METHODS:
            say(f"{method} at {megapixels} megapixels")
            result["cost"].append(in_process(cost, method, megapixels))
    shape = arguments.width * 3 // 4, arguments.width
    try:
        for kind in KINDS:
            say(f"{kind} edges")
            made = (make(kind, seed, *shape, arguments.photographs) for seed in range(arguments.images))
            result[kind] = compare(made)
        if arguments.pairs is not None:
            say("pairs")
            result["pairs"] = compare(predicted(arguments.pairs))
    except InputError as error:
        sys.exit(str(error))
    print(json.dumps(result, indent=2))


def compare(examples: Iterable[Example]) -> dict[str, Any]:
    """Means of `errors` of each method over examples: image, true alpha, map."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in METHODS}
    for image, alpha, saliency in examples:
        for name, method in METHODS.items():
            found[name].append(errors(method(image, saliency) / np.float32(255), alpha))
    return {
        name: {key: round(float(np.mean([value[key] for value in values])), 3) for key in values[0]}
        for name, values in found.items()
    }


def errors(found: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Compares two alphas, float32 [height, width] in [0, 1], as alphamatting.com does (Rhemann et al., CVPR 2009).

    Returns:
      `sad`: sum of absolute differences, in thousands; `mse`: mean squared error, in thousandths; `gradient`: sum of
      squared differences of the gradients' magnitudes, at a standard deviation of 1.4 pixels.
    """
    difference = found - true
    slopes = _slopes(found) - _slopes(true)
    return {
        "sad": float(np.abs(difference).sum() / 1e3),
        "mse": float((difference**2).mean() * 1e3),
        "gradient": float((slopes**2).sum()),
    }


def _slopes(alpha: np.ndarray) -> np.ndarray:
    smooth = cv2.GaussianBlur(alpha, (0, 0), 1.4)
    return np.hypot(cv2.Sobel(smooth, cv2.CV_32F, 1, 0, scale=1 / 8), cv2.Sobel(smooth, cv2.CV_32F, 0, 1, scale=1 / 8))


def make(kind: str, seed: int, height: int, width: int, photographs: Path | None = None) -> Example:
    """Makes an image of an object over a background.

    Returns:
      uint8 [height, width, 3], the image; float32 [height, width] in [0, 1], the object's alpha; uint8 [height, width],
      the map with guided edges.
    """
    random = np.random.default_rng(seed)
    alpha = draw_alpha(random, height, width, strands=250 if kind == "strands" else 0)
    if kind == "soft":
        alpha = _out_of_focus(alpha)
    front, back = (_texture(random, height, width, photographs) for _ in range(2))
    share = alpha[..., None]
    noise = random.normal(0, 2, front.shape)
    image = np.clip(share * front + (1 - share) * back + noise + 0.5, 0, 255).astype(np.uint8)
    square = resize_image(image, SQUARE, SQUARE)
    saliency = refine_map(_as_seen(random, alpha), square, image)
    return image, alpha, (saliency * 255 + 0.5).astype(np.uint8)


def draw_alpha(random: np.random.Generator, height: int, width: int, strands: int) -> np.ndarray:
    """Draws a round object with bent strands, float32 [height, width] in [0, 1]."""
    drawn = np.zeros((height * DRAWN, width * DRAWN), np.uint8)
    side = min(drawn.shape)
    centre = np.array([drawn.shape[1] * random.uniform(0.4, 0.6), drawn.shape[0] * random.uniform(0.5, 0.6)])
    radius = side * random.uniform(0.2, 0.28)
    angles = np.linspace(0, 2 * np.pi, 200)
    waves = [random.uniform(0, 0.12) * np.cos(count * angles + random.uniform(0, 6.3)) for count in (1, 2, 3, 5)]
    outline = centre + radius * (1 + sum(waves))[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    cv2.fillPoly(drawn, [np.rint(outline).astype(np.int32)], 255)
    for _ in range(strands):
        root = random.integers(200)
        directions = angles[root] + random.normal(0, 0.5) + random.normal() * np.linspace(0, 1, 24)
        steps = np.stack([np.cos(directions), np.sin(directions)], axis=1) * radius * random.uniform(0.1, 0.6) / 24
        points = centre + 0.95 * (outline[root] - centre) + np.cumsum(steps, axis=0)
        thickness = max(1, round(side / 480 * random.uniform(0.4, 2.2)))  # 0.4 to 2.2 pixels at 640 × 480
        cv2.polylines(drawn, [np.rint(points).astype(np.int32)], False, 255, thickness)
    return cv2.resize(drawn, (width, height), interpolation=cv2.INTER_AREA) / np.float32(255)


def _out_of_focus(alpha: np.ndarray) -> np.ndarray:
    """Blurs alpha, from the left to the right the more."""
    side = min(alpha.shape)
    layers = [alpha, *(cv2.GaussianBlur(alpha, (0, 0), side * share) for share in (0.004, 0.012))]
    position = np.linspace(0, 2, alpha.shape[1], dtype=np.float32)
    return sum(np.clip(1 - abs(position - index), 0, 1) * layer for index, layer in enumerate(layers))


def _texture(random: np.random.Generator, height: int, width: int, photographs: Path | None) -> np.ndarray:
    """Returns a photograph, or noise in several octaves about a random colour, float32 [height, width, 3]."""
    if photographs is not None:
        files = sorted(path for path in photographs.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
        if not files:
            raise InputError(f"{photographs}: there are no photographs in it")
        image, _ = read_srgb(files[random.integers(len(files))])
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
    result = np.broadcast_to(random.uniform(40, 215, 3).astype(np.float32), (height, width, 3)).copy()
    for octave in range(2, 8):
        cells = 2**octave
        noise = 0.9 * random.normal(size=(cells, cells, 1)) + 0.35 * random.normal(size=(cells, cells, 3))
        large = cv2.resize(noise.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
        result += 70 * 2 ** (-octave / 2) * large
    return np.clip(result, 0, 255)


def _as_seen(random: np.random.Generator, alpha: np.ndarray) -> np.ndarray:
    """Returns alpha as a network might see it, float32 [SQUARE, SQUARE] in [0, 1]."""
    blurred = cv2.GaussianBlur(cv2.resize(alpha, (SQUARE, SQUARE), interpolation=cv2.INTER_AREA), (0, 0), 3)
    wrong = cv2.GaussianBlur(random.normal(size=blurred.shape).astype(np.float32), (0, 0), 6)
    wrong *= 0.12 / wrong.std() * 4 * blurred * (1 - blurred)
    return np.clip(2 * blurred - 0.5 + wrong, 0, 1)


def predicted(data: str) -> Iterator[Example]:
    """Yields photographs, their masks in [0, 1], and the maps of the package's network."""
    from purinet_jax.prediction.predictor import load

    predictor, pairs = load(), open_pairs(data)
    for pair in (pairs[index] for index in range(len(pairs))):
        saliency = predictor.predict(pair["image"])
        yield pair["image"], pair["mask"].astype(np.float32), (saliency * 255 + 0.5).astype(np.uint8)


def cost(method: str, megapixels: float) -> dict[str, Any]:
    """Seconds of a method, and the peak memory of the process, which should be a fresh one."""
    height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
    size = height * 4 // 3, height
    image, _, saliency = make("strands", 0, 480, 640)
    image = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
    saliency = cv2.resize(saliency, size, interpolation=cv2.INTER_LINEAR)
    time_ms = milliseconds(lambda: METHODS[method](image, saliency))
    return {"method": method, "megapixels": megapixels, "seconds": round(time_ms / 1000, 2), **peak_memory()}


if __name__ == "__main__":
    main()
