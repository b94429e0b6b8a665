"""Files of named arrays: PyTorch checkpoints and NumPy's `.npz` are read, `.safetensors` read and written.

Files are not trusted: every size is checked against the file before memory is reserved, and a file that cannot be used
raises one `InputError` that names it. `pytorch_files` reads PyTorch's.

Formats, as their authors describe them:

* `.npy` in `.npz`: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
* `.safetensors`: https://github.com/huggingface/safetensors#format
"""

import io
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from purinet_jax.errors import InputError
from purinet_jax.files import atomic_path, is_special
from purinet_jax.weights.pytorch_files import read_pytorch
from purinet_jax.weights.untrusted import any_error_named, open_zip, printable

_SUFFIXES = (".pth", ".pt", ".tar", ".npz", ".safetensors")
_METADATA = "__metadata__"  # reserved by .safetensors; version 0.2.0 wrote a text array of that name to .npz files

_SAFETENSORS_DTYPES: dict[str, np.dtype[Any]] = {
    **{"BOOL": np.dtype(np.bool_), "BF16": np.dtype(ml_dtypes.bfloat16)},
    **{f"F{8 * size}": np.dtype(f"f{size}") for size in (2, 4, 8)},
    **{f"{kind}{8 * size}": np.dtype(f"{kind.lower()}{size}") for kind in "IU" for size in (1, 2, 4, 8)},
}


def read_tensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads all named tensors of a file: C-contiguous arrays of the stored shapes and dtypes.

    `.npz` and `.safetensors` give every array except the metadata. `.pth`, `.pt` and `.tar` may be in PyTorch's zip
    format or in the one before 1.6; the state dict is at the top or under "state_dict", "model", "model_state_dict",
    "net" or "network". Entries that are not tensors are left out, and so is the prefix `module.` of DataParallel where
    all names have it.

    Raises:
      InputError: the file is missing, of another format or damaged, or contains anything but tensors and plain
        containers; the message names the file and what is refused.
    """
    path = Path(path)
    with any_error_named(path):
        suffix = _checked_suffix(path)
        if suffix == ".npz":
            return _read_npz(path)
        return _read_safetensors(path) if suffix == ".safetensors" else read_pytorch(path)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Reads the texts that a file stores next to its tensors; {} if it has none.

    Raises:
      InputError: the file is missing, of another format or damaged; the message names it.
    """
    path = Path(path)
    with any_error_named(path):
        suffix = _checked_suffix(path)
        path.stat()
        metadata: Any = {}
        if suffix == ".npz":
            with open_zip(path) as archive:
                if f"{_METADATA}.npy" in archive.members:
                    array = _parse_npy(archive.read(f"{_METADATA}.npy"), _METADATA)
                    if array.dtype.kind != "U" or array.shape != ():
                        raise InputError(f"{_METADATA} is not one text")
                    metadata = json.loads(str(array))
        elif suffix == ".safetensors":
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                # Reading more than the file's size would first reserve that much memory.
                metadata = json.loads(file.read(min(length, path.stat().st_size))).get(_METADATA, {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise InputError(f"{_METADATA} is not a table of texts")
        return metadata


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes named arrays of any shapes to a `.safetensors` file, atomically.

    Shapes and dtypes are kept. The same content gives the same bytes, whatever its order; the library's own writer
    orders metadata differently from run to run. `metadata` is for `read_metadata`.

    Raises:
      InputError: the ending, a name or a dtype is not supported, or the file cannot be written; the message names it.
    """
    path = Path(path)
    with any_error_named(path):
        if path.suffix.lower() != ".safetensors":
            raise InputError("tensors are written to .safetensors")
        if _METADATA in tensors:
            raise InputError(f"{_METADATA} cannot name a tensor")
        arrays = [(name, np.asarray(tensors[name], order="C")) for name in tensors]
        arrays.sort(key=lambda item: (-item[1].dtype.itemsize, item[0]))  # wide elements first: each tensor is aligned
        dtype_names = {dtype: name for name, dtype in _SAFETENSORS_DTYPES.items()}
        header: dict[str, Any] = {_METADATA: dict(sorted(metadata.items()))} if metadata else {}
        position = 0
        for name, array in arrays:
            if array.dtype not in dtype_names:
                raise InputError(f"{name}: .safetensors cannot hold {array.dtype}")
            header[name] = {
                "dtype": dtype_names[array.dtype],
                "shape": list(array.shape),
                "data_offsets": [position, position + array.nbytes],
            }
            position += array.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for _, array in arrays:
                file.write(array.tobytes())
            file.flush()
            os.fsync(file.fileno())


def _checked_suffix(path: Path) -> str:
    """The ending of a file's name in lower case. Raises InputError if it is none that is read, or for a device."""
    if path.suffix.lower() not in _SUFFIXES:
        raise InputError(f"tensor files end in {', '.join(_SUFFIXES)}")
    if is_special(path):
        raise InputError("is a device, pipe or socket, not a file")
    return path.suffix.lower()


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file; pickled ones are refused."""
    tensors = {}
    with open_zip(path) as archive:
        for name in archive.members:
            if not name.endswith(".npy"):
                raise InputError(f"{printable(name)} in it is not an array")
            if name != f"{_METADATA}.npy":
                array = _parse_npy(archive.read(name), name)
                if array.dtype.kind not in "biuf":
                    raise InputError(f"{printable(name)} holds {array.dtype}, which is not numeric")
                tensors[name.removesuffix(".npy")] = array
    return tensors


def _parse_npy(content: bytes, name: str) -> np.ndarray:
    """The array of one `.npy` file.

    `np.load` first reserves the memory that the header states; here the header must fit the bytes.
    """
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, column_major, dtype = read_header(stream)
    if dtype.hasobject:
        raise InputError(f"refuses {printable(name)}: it holds pickled Python objects")
    if any(length < 0 for length in shape) or math.prod(shape) * dtype.itemsize != len(content) - stream.tell():
        raise InputError(f"{printable(name)} is not as long as its shape {shape} says")
    flat = np.frombuffer(content, dtype, math.prod(shape), stream.tell())
    array = flat.reshape(shape[::-1]).T if column_major else flat.reshape(shape)
    return np.array(array, array.dtype.newbyteorder("="), order="C")


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a `.safetensors` file; the library checks offsets and sizes."""
    tensors = {}
    for name, entry in sorted(safetensors.deserialize(path.read_bytes())):  # the library's order varies
        if entry["dtype"] not in _SAFETENSORS_DTYPES:
            raise InputError(f"{printable(name)} holds {entry['dtype']}, which is not supported")
        # The library's own NumPy reader has no bfloat16.
        dtype = _SAFETENSORS_DTYPES[entry["dtype"]]
        stored = np.frombuffer(entry["data"], np.uint8 if dtype == np.bool_ else dtype).reshape(entry["shape"])
        tensors[name] = stored != 0 if dtype == np.bool_ else stored.copy()
    return tensors
