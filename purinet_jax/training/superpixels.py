"""Superpixels for the structural similarity loss: small regions of alike pixels, as labels per pixel.

They come from scikit-image's SLIC, computed once per image and kept as PNG files beside the data set; from files the
user has (the authors' `.mat` files, or PNGs); or, with nothing stored, from `slic_regions` or `grid_regions` inside the
train step.
"""

import math
import os
import tempfile
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from purinet_jax.data.images import read_values, to_png, write_atomically
from purinet_jax.errors import InputError

REGIONS = 200
"""About how many superpixels an image is cut into."""

_SIGNATURE = "purinet superpixels"
# Linear RGB to CIE XYZ, over the white point D65.
_RGB_TO_XYZ = np.array(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]], np.float32
) / np.array([[0.95047], [1.0], [1.08883]], np.float32)
# A cell and the eight around it, as offsets into a grid that is padded by one cell on each side.
_AROUND = tuple((y, x) for y in range(3) for x in range(3))


def slic_labels(image: np.ndarray, regions: int = REGIONS) -> np.ndarray:
    """Cuts an image into connected regions of alike colour with SLIC.

    Args:
      image: uint8 [height, width, 3].
      regions: about how many regions to make; SLIC usually makes somewhat fewer.

    Returns:
      int32 [height, width], labels 0 to k - 1, each of them in use. The same image gives the same labels.
    """
    from skimage.segmentation import slic

    # Measured on DUTS-TR: compactness 20 follows masks better than the usual 10, and ten rounds instead of
    # five gain little for twice the time.
    labels = slic(image, n_segments=regions, compactness=20.0, max_num_iter=5, start_label=0, channel_axis=-1)
    used = np.bincount(labels.ravel()) > 0
    return (np.cumsum(used, dtype=np.int32) - 1)[labels]


@jax.jit(static_argnames=("regions", "iterations", "compactness"))
def slic_regions(images: Array, regions: int = REGIONS, iterations: int = 5, compactness: float = 20.0) -> Array:
    """Cuts images into regions of alike colour with SLIC (Achanta et al. 2012), on the device and under `jit`.

    A pixel chooses among nine centres, those of the grid cell it lies in and of the eight around it (gSLIC, Ren and
    Reid 2011), by D² = (colour distance in CIELAB)² + (compactness · distance / cell side)². A last pass gives each
    pixel the label most frequent in a window about it: 5×5 pixels where cells are at least 8 wide, 3×3 from 4 on.

    What it gives up against `slic_labels`: regions are not forced to be connected (at 320² the 196 lie in 272 pieces on
    average), the number of iterations is fixed, and it sees the augmented image, so that the black corners of a turned
    one become regions (in stored labels they are region 0). What it reaches (`purinet benchmark --superpixels`, 100
    images of DUTS-TR at 320²; `benchmarks.superpixels.measures` has the definitions):

    | | explained variation | boundary recall | boundary density | achievable accuracy | regions |
    | --- | --- | --- | --- | --- | --- |
    | `slic_labels` | .857 | .845 | .103 | .980 | 182 |
    | `slic_regions` | .899 | .868 | .099 | .983 | 196 |
    | `grid_regions` | .719 | .381 | .080 | .958 | 196 |

    On 2 CPU cores, 13 ms an image; a train step of the ResNet-50 network takes about 1 % longer.

    Args:
      images: uint8 RGB [batch, height, width, 3].
      regions: the most regions to make, at least 1; sides that their grid does not divide make them fewer.
      iterations: how often pixels choose, at least 1.
      compactness: the colour distance, in CIELAB units, that weighs as much as one cell's side.

    Returns:
      int32 [batch, height, width], labels 0 to at most `regions` - 1, possibly with gaps.

    Raises:
      ValueError: the images are not uint8.
    """
    if images.dtype != jnp.uint8:
        raise ValueError(f"SLIC needs uint8 images, not {images.dtype}: colours of normalised ones are not known")
    _, height, width, _ = images.shape
    rows, columns, tall, wide = _grid(height, width, regions)
    # Cells that reach beyond the image are filled up with pixels of weight 0.
    missing_y, missing_x = rows * tall - height, columns * wide - width
    top, left = missing_y // 2, missing_x // 2
    scale = compactness / math.sqrt(tall * wide)
    y, x = jnp.meshgrid(scale * jnp.arange(height), scale * jnp.arange(width), indexing="ij")
    place_and_weight = jnp.broadcast_to(jnp.stack([y, x, jnp.ones_like(y)], axis=-1), images.shape)
    pixels = jnp.concatenate([_cielab(images), place_and_weight], axis=-1)
    pixels = jnp.pad(pixels, ((0, 0), (top, missing_y - top), (left, missing_x - left), (0, 0)))
    # [batch, rows, columns, 6, pixels of a cell]: all that follows is products and sums within a cell, and no scatter.
    pixels = pixels.reshape(-1, rows, tall, columns, wide, 6).transpose(0, 1, 3, 5, 2, 4)
    pixels = pixels.reshape(-1, rows, columns, 6, tall * wide)

    def choose(centres: Array) -> Array:
        """The nearest centre of each pixel, as an index into `_AROUND`."""
        around = jnp.pad(centres, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=jnp.inf)
        nearest = jnp.full((*pixels.shape[:3], tall * wide), jnp.inf)
        choice = jnp.zeros(nearest.shape, jnp.int32)
        for i, (y, x) in enumerate(_AROUND):
            centre = around[:, y : y + rows, x : x + columns, :, None]
            distance = ((pixels[..., :5, :] - centre) ** 2).sum(-2)
            choice = jnp.where(distance < nearest, i, choice)
            nearest = jnp.minimum(distance, nearest)
        return choice

    def move(_: int, centres: Array) -> Array:
        """Each centre to the mean of the pixels that chose it; one that none chose stays."""
        chosen = jax.nn.one_hot(choose(centres), len(_AROUND), axis=-2)
        sums = jnp.einsum("byxkp,byxfp->byxkf", chosen, pixels, precision=lax.Precision.HIGHEST)
        # What the pixels of a cell add to the centre at some offset belongs to the cell at that offset.
        offsets = [((0, 0), (y, 2 - y), (x, 2 - x), (0, 0)) for y, x in _AROUND]
        shifted = [jnp.pad(sums[..., i, :], offset) for i, offset in enumerate(offsets)]
        total = jnp.stack(shifted).sum(0)[:, 1:-1, 1:-1]
        return jnp.where(total[..., 5:] > 0, total[..., :5] / jnp.maximum(total[..., 5:], 1), centres)

    cells = pixels.sum(-1)
    centres = lax.fori_loop(0, iterations - 1, move, cells[..., :5] / cells[..., 5:])
    choice = choose(centres).reshape(-1, rows, columns, tall, wide).transpose(0, 1, 3, 2, 4)
    choice = choice.reshape(-1, rows * tall, columns * wide)[:, top : top + height, left : left + width]
    row, column = (np.arange(height)[:, None] + top) // tall, (np.arange(width) + left) // wide
    labels = (choice // 3 - 1 + row) * columns + choice % 3 - 1 + column
    candidates = [(row + y - 1) * columns + column + x - 1 for y, x in _AROUND]
    return _most_frequent(labels, candidates, min(2, min(tall, wide) // 4))


def grid_regions(height: int, width: int, regions: int = REGIONS) -> np.ndarray:
    """Cuts any image of a size into nearly equal rectangles, as many as `slic_regions` has.

    Free, and blind to the image: 4.2 % of the pixels are not what most of their region is, object or ground, against
    1.7 % with `slic_regions`, whose table has the other measures.

    Args:
      height: of the images, pixels.
      width: of the images, pixels.
      regions: the most regions to make, at least 1.

    Returns:
      int32 [height, width], labels 0 to at most `regions` - 1, each of them in use.
    """
    rows, columns, _, _ = _grid(height, width, regions)
    row, column = np.arange(height)[:, None] * rows // height, np.arange(width) * columns // width
    return (row * columns + column).astype(np.int32)


def _grid(height: int, width: int, regions: int) -> tuple[int, int, int, int]:
    """Rows and columns of nearly square cells, at most `regions` in all, and a cell's height and width in pixels."""
    rows = min(height, regions, max(1, round(math.sqrt(regions * height / width))))
    columns = min(width, regions // rows)
    tall, wide = -(-height // rows), -(-width // columns)
    return -(-height // tall), -(-width // wide), tall, wide


def _cielab(images: Array) -> Array:
    """uint8 sRGB [..., 3] → CIELAB float32 [..., 3] under D65, L from 0 to 100."""
    rgb = images.astype(jnp.float32) / 255
    linear = jnp.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = jnp.einsum("...c,dc->...d", linear, _RGB_TO_XYZ, precision=lax.Precision.HIGHEST)
    x, y, z = jnp.unstack(jnp.where(xyz > 0.008856, jnp.cbrt(xyz), 7.787 * xyz + 16 / 116), axis=-1)
    return jnp.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def _most_frequent(labels: Array, candidates: list[np.ndarray], radius: int) -> Array:
    """Each pixel's most frequent label in the window of this radius, its own where it is among them.

    `labels` are [batch, height, width], and each of the `candidates` [height, width].
    """
    _, height, width = labels.shape
    side = 2 * radius + 1
    window = jnp.pad(labels, ((0, 0), (radius, radius), (radius, radius)), constant_values=np.iinfo(np.int32).min)

    shifted = [window[:, y : y + height, x : x + width] for y in range(side) for x in range(side)]

    def count(label: Array | np.ndarray) -> Array:
        return sum((other == label).astype(jnp.int8) for other in shifted)  # type: ignore[return-value]

    result, most = labels, count(labels)
    for label in candidates:
        frequency = count(label)
        result = jnp.where(frequency > most, label, result)
        most = jnp.maximum(frequency, most)
    return result


def load_mat(path: str | Path) -> np.ndarray:
    """Reads labels from one of the authors' MATLAB files.

    Args:
      path: a `.mat` file (MATLAB 7.2 or older) with the labels [height, width] under `sp`.

    Returns:
      int32 [height, width]. The smallest label becomes 0 (MATLAB counts from 1); gaps between labels stay.

    Raises:
      InputError: the file is missing, damaged, has no `sp`, or `sp` is not a matrix of whole numbers.
    """
    from scipy.io import loadmat

    try:
        values = loadmat(str(path), variable_names=["sp"]).get("sp")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # scipy raises nearly every type on files that are not MATLAB's
        raise InputError(f"{path}: not a MATLAB file, or a damaged one (7.3 files are not read)") from error
    if values is None:
        raise InputError(f"{path}: has no variable `sp`")
    if values.ndim != 2 or values.size == 0 or values.dtype.kind not in "uif":
        raise InputError(f"{path}: `sp` is not a matrix of numbers but {values.dtype} {values.shape}")
    # Written so that NaN fails as well.
    if not ((values == np.floor(values)) & (np.abs(values.astype(np.float64)) < 2**31)).all():
        raise InputError(f"{path}: `sp` holds values that are not whole numbers")
    return (values.astype(np.int64) - int(values.min())).astype(np.int32)


class SuperpixelCache:
    """SLIC labels, computed when first asked for and kept as one PNG per image.

    A file carries a checksum of the image and the settings it was computed from, so that a changed image is
    computed anew, as is a damaged file. Several processes may ask for the same image at once: each writes the
    same file, and whole.
    """

    def __init__(self, folder: str | Path, regions: int = REGIONS) -> None:
        """Names the place and the setting.

        Args:
          folder: where the files are; it must exist.
          regions: see `slic_labels`.
        """
        self.folder = Path(folder)
        self.regions = regions

    def get(self, name: str, image: np.ndarray) -> np.ndarray:
        """Reads an image's labels, or computes and keeps them.

        Args:
          name: the image's name, without ending; names the file.
          image: uint8 [height, width, 3].

        Returns:
          int32 [height, width], labels 0 to k - 1.

        Raises:
          InputError: the file cannot be written.
        """
        path = self.folder / f"{name}.png"
        checksum = zlib.crc32(np.ascontiguousarray(image).data)
        signature = f"slic 1, {self.regions} regions, image {checksum:08x}"
        try:
            labels, texts = read_values(path)
        except InputError:
            pass
        else:
            if texts.get(_SIGNATURE) == signature and labels.shape == image.shape[:2]:
                return labels
        labels = slic_labels(image, self.regions)
        stored = labels.astype(np.uint8 if labels.max() < 256 else np.uint16)
        write_atomically(path, to_png(stored, {_SIGNATURE: signature}))
        return labels

    def check(self, name: str, height: int, width: int) -> None:
        """Nothing to find out beforehand: whatever is missing or damaged is computed."""


class SuperpixelFolder:
    """Labels that the user has: `<name>.mat` (see `load_mat`) or `<name>.png` (8- or 16-bit grey) per
    image."""

    def __init__(self, folder: str | Path) -> None:
        """Lists the files.

        Args:
          folder: where they are.

        Raises:
          InputError: there is no such folder, or it holds no such files.
        """
        self.folder = Path(folder)
        try:
            files = sorted(entry.name for entry in os.scandir(self.folder) if entry.is_file())
        except OSError as error:
            raise InputError(f"{folder}: cannot be read: {error.strerror or error}") from error
        wanted = [file for file in files if file.lower().endswith((".mat", ".png")) and file[0] != "."]
        if not wanted:
            raise InputError(f"{folder}: holds no .mat or .png files")
        self._files = {Path(file).stem: file for file in wanted}

    def missing(self, names: tuple[str, ...]) -> list[str]:
        """Those of the names for which there is no file."""
        return [name for name in names if name not in self._files]

    def get(self, name: str, image: np.ndarray) -> np.ndarray:
        """Reads an image's labels.

        Args:
          name: the image's name, without ending.
          image: uint8 [height, width, 3]; only its size matters.

        Returns:
          int32 [height, width], labels from 0, possibly with gaps.

        Raises:
          InputError: the file cannot be used, or its size is not the image's.
        """
        return self._read(name, image.shape[0], image.shape[1])

    def check(self, name: str, height: int, width: int) -> None:
        """Raises InputError as `get` would for an image of this size, pixels."""
        self._read(name, height, width)

    def _read(self, name: str, height: int, width: int) -> np.ndarray:
        if name not in self._files:
            raise InputError(f"{self.folder}: holds no superpixels for {name}")
        path = self.folder / self._files[name]
        labels = load_mat(path) if path.suffix.lower() == ".mat" else read_values(path)[0]
        if labels.shape != (height, width):
            size = f"{labels.shape[1]}×{labels.shape[0]}"
            raise InputError(f"{path}: the superpixels are {size}, but the image is {width}×{height}")
        return labels


def cache_folder(data: str | Path, fallback: str | Path | None = None) -> Path:
    """Finds and makes the folder for a data set's computed superpixels.

    Args:
      data: the data set's folder or zip.
      fallback: a folder to use where the data set's own place is not writable.

    Returns:
      `<data without .zip>.superpixels` beside the data set, or a folder of that name in `fallback`.

    Raises:
      InputError: neither place is writable.
    """
    data = Path(os.path.abspath(data))
    name = (data.stem if data.suffix.lower() == ".zip" else data.name) + ".superpixels"
    places = [data.parent] + ([Path(fallback)] if fallback is not None else [])
    for place in places:
        if _writable(place / name):
            return place / name
    listed = " nor ".join(str(place / name) for place in places)
    raise InputError(f"{listed}: not writable, and computed superpixels need a place")


def _writable(folder: Path) -> bool:
    try:
        nearest = next(place for place in (folder, *folder.parents) if place.exists())
        # For root every folder is writable, and containers run as root; one that nobody may write to stays
        # untouched.
        if not nearest.stat().st_mode & 0o222:
            return False
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            return True
    except OSError:
        return False
