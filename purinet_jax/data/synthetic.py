"""A small synthetic data set in the layout of DUTS, for tests and first steps without a download.

Vivid textured objects (ellipses, polygons, blobs) on muted textured backgrounds, which a network learns in minutes.
"""

import io
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from purinet_jax.data.images import to_png
from purinet_jax.errors import InputError
from purinet_jax.files import reason, write_atomically


def write_synthetic(folder: str | Path, count: int, size: tuple[int, int] = (96, 160), seed: int = 0) -> Path:
    """Writes `<folder>/DUTS-TR/DUTS-TR-Image/*.jpg` and `DUTS-TR-Mask/*.png`.

    Args:
      folder: the folder, made if missing. Files of the same names are replaced.
      count: how many pairs, at least 1.
      size: smallest and largest side of an image, pixels, at least 16; height and width are drawn independently.
      seed: the same seed gives the same images; example k does not depend on `count`.

    Returns:
      `<folder>/DUTS-TR`.

    Raises:
      InputError: count or size is out of range, or the folder cannot be written to.
    """
    if count < 1:
        raise InputError(f"count: must be at least 1, not {count}")
    if not 16 <= size[0] <= size[1]:
        raise InputError(f"size: must be two numbers from 16 up, the smaller first, not {size}")
    root = Path(folder) / "DUTS-TR"
    images, masks = root / "DUTS-TR-Image", root / "DUTS-TR-Mask"
    try:
        images.mkdir(parents=True, exist_ok=True)
        masks.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{root}: cannot be made: {reason(error)}") from error
    for index in range(count):
        image, mask = draw_example(np.random.default_rng((seed, index)), size)
        write_atomically(images / f"synthetic_{index:05d}.jpg", _to_jpeg(image))
        write_atomically(masks / f"synthetic_{index:05d}.png", to_png(mask * np.uint8(255)))
    return root


def draw_example(generator: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Draws one image and its mask.

    Args:
      generator: the source of all randomness.
      size: smallest and largest side, pixels.

    Returns:
      Image uint8 [height, width, 3] and mask uint8 [height, width], 0 or 1.
    """
    height, width = (int(side) for side in generator.integers(size[0], size[1], 2, endpoint=True))
    hue = generator.uniform(0, 180)
    image = _texture(generator, height, width, hue, saturation=(20, 80), value=(50, 190))
    cover = np.zeros((height, width), np.float32)
    for _ in range(1 + (generator.random() < 0.3)):
        shape = _shape(generator, height, width)
        # At least 45 of OpenCV's 180 hues away from the background.
        object_hue = hue + generator.uniform(45, 135)
        texture = _texture(generator, height, width, object_hue, saturation=(150, 250), value=(120, 250))
        image = image * (1 - shape[..., None]) + texture * shape[..., None]
        cover = np.maximum(cover, shape)
    image += generator.normal(0, 4, image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), (cover >= 0.5).astype(np.uint8)


def _texture(
    generator: np.random.Generator,
    height: int,
    width: int,
    hue: float,
    saturation: tuple[int, int],
    value: tuple[int, int],
) -> np.ndarray:
    """Returns stripes, checks or clouds in two similar colours, float32 [height, width, 3]."""
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    angle = generator.uniform(0, np.pi)
    across = rows * np.cos(angle) + columns * np.sin(angle)
    along = columns * np.cos(angle) - rows * np.sin(angle)
    wavelength = generator.uniform(8, 40)
    kind = generator.integers(3)
    if kind == 0:
        pattern = 0.5 + 0.5 * np.sin(across * 2 * np.pi / wavelength)
    elif kind == 1:
        pattern = 0.5 + 0.5 * np.sin(across * 2 * np.pi / wavelength) * np.sin(along * 2 * np.pi / wavelength)
    else:
        pattern = _clouds(generator, height, width, wavelength)
    first, second = (
        np.array([[[(hue + generator.uniform(-8, 8)) % 180, generator.uniform(*saturation), shade]]])
        for shade in generator.permutation([value[0] + 0.25 * np.ptp(value), value[1] - 0.1 * np.ptp(value)])
    )
    colours = [
        cv2.cvtColor(np.rint(colour).astype(np.uint8), cv2.COLOR_HSV2RGB).astype(np.float32)
        for colour in (first, second)
    ]
    return colours[0] * pattern[..., None] + colours[1] * (1 - pattern[..., None])


def _clouds(generator: np.random.Generator, height: int, width: int, wavelength: float) -> np.ndarray:
    """Returns smooth noise from 0 to 1, float32 [height, width]."""
    rows, columns = (int(side / wavelength) + 4 for side in (height, width))
    coarse = generator.random((rows, columns), dtype=np.float32)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth, 0, 1)


def _shape(generator: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Returns one object's coverage, 0 to 1 with soft edges, float32 [height, width]."""
    fine = 4  # drawn at four times the size, so that edges are smooth
    canvas = np.zeros((height * fine, width * fine), np.uint8)
    side = min(height, width) * fine
    centre = np.array([generator.uniform(0.3, 0.7) * width, generator.uniform(0.3, 0.7) * height]) * fine
    kind = generator.integers(3)
    if kind == 0:
        axes = generator.uniform(0.14, 0.38, 2) * side
        middle, radius = (int(centre[0]), int(centre[1])), (int(axes[0]), int(axes[1]))
        cv2.ellipse(canvas, middle, radius, generator.uniform(0, 180), 0, 360, 255, -1)
    else:
        if kind == 1:
            angles = np.sort(generator.uniform(0, 2 * np.pi, int(generator.integers(3, 8))))
            # Averaged with evenly spread corners, because corners on one side would make a sliver.
            angles = 0.5 * angles + 0.5 * np.linspace(0, 2 * np.pi, len(angles), endpoint=False)
            radii = generator.uniform(0.22, 0.42, len(angles)) * side
        else:
            angles = np.linspace(0, 2 * np.pi, 120, endpoint=False)
            waves = np.zeros(len(angles))
            for order in range(2, 6):
                height_of_wave = generator.uniform(-0.3, 0.3) / order
                waves += height_of_wave * np.cos(order * angles + generator.uniform(0, 2 * np.pi))
            radii = (1 + waves) * generator.uniform(0.18, 0.32) * side
        points = centre + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        cv2.fillPoly(canvas, [np.rint(points).astype(np.int32)], 255)
    return cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _to_jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()
