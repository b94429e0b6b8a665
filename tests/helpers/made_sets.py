"""Small data sets in any layout: images are noise of all colours, masks are rectangles with a grey edge."""

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from purinet_jax.data.images import to_png
from purinet_jax.data.pairs import Pairs


def noise_image(seed: int) -> np.ndarray:
    """Colours of all values, uint8 [24, 32, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (24, 32, 3), np.uint8)


def rectangle_mask(seed: int) -> np.ndarray:
    """A mask, uint8 [24, 32], of a rectangle with a soft edge."""
    mask = np.zeros((24, 32), np.uint8)
    mask[4 + seed : 20, 5:20] = 255
    mask[4 + seed, 5:20] = 90
    return mask


def to_jpeg(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_set(images: Path, masks: Path, *names: str, kind: str = ".jpg") -> None:
    """Writes a pair of image and mask for each name, all different."""
    for seed, name in enumerate(names):
        images.mkdir(parents=True, exist_ok=True)
        masks.mkdir(parents=True, exist_ok=True)
        image = to_jpeg(noise_image(seed)) if kind in (".jpg", ".jpeg", ".JPG") else to_png(noise_image(seed))
        (images / f"{name}{kind}").write_bytes(image)
        (masks / f"{name}.png").write_bytes(to_png(rectangle_mask(seed)))


def assert_holds(pairs: Pairs, *names: str) -> None:
    assert pairs.names == names
    for seed in range(len(names)):
        assert len(np.unique(pairs[seed]["image"])) > 100
        np.testing.assert_array_equal(pairs[seed]["mask"], rectangle_mask(seed) >= 128)


def zipped(folder: Path, path: Path) -> Path:
    # Listed first, because a zip inside the folder would include itself and grow without end.
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file != path]
    with zipfile.ZipFile(path, "w") as archive:
        for file in files:
            archive.write(file, file.relative_to(folder))
    return path
