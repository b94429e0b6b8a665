"""The authors' superpixels: a folder with a MATLAB file per image."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from purinet_jax.errors import InputError, summarise
from purinet_jax.files import reason


def find_superpixels(folder: str | Path, names: Iterable[str]) -> dict[str, Path]:
    """Returns the path of each image's superpixels, by the image's name.

    Args:
      folder: the folder with `<name>.mat` files.
      names: the images' names, without extensions.

    Raises:
      InputError: there is no such folder, it holds no such files, or an image has none.
    """
    try:
        files = {entry.name for entry in os.scandir(folder) if entry.is_file()}
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {reason(error)}") from error
    found = {Path(file).stem: Path(folder, file) for file in sorted(files) if file.lower().endswith(".mat")}
    if not found:
        raise InputError(f"{folder}: holds no .mat files")
    if missing := [name for name in names if name not in found]:
        raise InputError(f"{folder}: no superpixels for {summarise(missing, 'image')}")
    return found


def read_superpixels(path: str | Path, height: int, width: int) -> np.ndarray:
    """Reads superpixel labels from one of the authors' MATLAB files.

    Args:
      path: a `.mat` file (MATLAB 7.2 or older) with the labels [height, width] under `sp`.
      height: of the image, pixels.
      width: of the image, pixels.

    Returns:
      int32 [height, width]. The smallest label becomes 0 (MATLAB counts from 1); gaps between labels stay.

    Raises:
      InputError: the file is missing, damaged, has no `sp`, or `sp` is not a matrix of integers of this size.
    """
    from scipy.io import loadmat

    try:
        values = loadmat(str(path), variable_names=["sp"]).get("sp")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from error
    except Exception as error:  # scipy raises nearly every type on files that are not MATLAB's
        raise InputError(f"{path}: not a MATLAB file, or a damaged one (7.3 files are not read)") from error
    if values is None:
        raise InputError(f"{path}: has no variable `sp`")
    if values.ndim != 2 or values.size == 0 or values.dtype.kind not in "uif":
        raise InputError(f"{path}: `sp` is not a matrix of numbers but {values.dtype} {values.shape}")
    # Written so that NaN fails as well.
    if not ((values == np.floor(values)) & (np.abs(values.astype(np.float64)) < 2**31)).all():
        raise InputError(f"{path}: `sp` holds values that are not whole numbers")
    if values.shape != (height, width):
        size = f"{values.shape[1]}×{values.shape[0]}"
        raise InputError(f"{path}: the superpixels are {size}, but the image is {width}×{height}")
    return (values.astype(np.int64) - int(values.min())).astype(np.int32)
