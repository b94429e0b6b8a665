"""Small made-up data sets in any layout: photographs are noise of all colours, masks have grey values at an edge."""

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from purinet_jax.data.images import to_png
from purinet_jax.data.pairs import Pairs


def picture(seed: int) -> np.ndarray:
    """Colours of all values, uint8 [24, 32, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (24, 32, 3), np.uint8)


def drawing(seed: int) -> np.ndarray:
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
    """Pairs of a photograph and a mask, each another one."""
    for seed, name in enumerate(names):
        images.mkdir(parents=True, exist_ok=True)
        masks.mkdir(parents=True, exist_ok=True)
        image = to_jpeg(picture(seed)) if kind in (".jpg", ".jpeg", ".JPG") else to_png(picture(seed))
        (images / f"{name}{kind}").write_bytes(image)
        (masks / f"{name}.png").write_bytes(to_png(drawing(seed)))


def assert_holds(pairs: Pairs, *names: str) -> None:
    assert pairs.names == names
    for seed in range(len(names)):
        assert len(np.unique(pairs[seed]["image"])) > 100
        np.testing.assert_array_equal(pairs[seed]["mask"], drawing(seed) >= 128)


def zipped(folder: Path, path: Path) -> Path:
    # Listed first: a zip in the folder it is made of would take itself in, and grow for ever.
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file != path]
    with zipfile.ZipFile(path, "w") as archive:
        for file in files:
            archive.write(file, file.relative_to(folder))
    return path
