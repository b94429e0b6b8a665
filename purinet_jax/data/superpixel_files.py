"""Superpixels in files: SLIC's, computed once per image and kept as PNG files beside the data set, and those that the
user has (the authors' `.mat` files, or PNGs).
"""

import os
import tempfile
import zlib
from pathlib import Path

import numpy as np

from purinet_jax.data.archives import without_ending
from purinet_jax.data.images import read_values, to_png
from purinet_jax.errors import InputError
from purinet_jax.files import write_atomically

REGIONS = 200
"""About how many superpixels an image is cut into."""

_SIGNATURE = "purinet superpixels"


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
      data: the data set's folder or archive.
      fallback: a folder to use where the data set's own place is not writable.

    Returns:
      `<data without .zip>.superpixels` (or `.tar.gz`) beside the data set, or a folder of that name in `fallback`.

    Raises:
      InputError: neither place is writable.
    """
    data = Path(os.path.abspath(data))
    name = without_ending(data.name) + ".superpixels"
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
