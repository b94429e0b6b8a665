"""Files of named arrays: PyTorch checkpoints (read), NumPy's `.npz` and `.safetensors` (read and written).

Files come from strangers, so nothing here trusts one: every size is checked against the file before memory is taken,
and whatever cannot be used ends as one `InputError` that names the file. PyTorch's are read by `pytorch_files`.

Formats, as their authors describe them:

* `.npy` in `.npz`: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
* `.safetensors`: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import io
import json
import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
import safetensors

from purinet_jax.errors import InputError
from purinet_jax.weights.archives import Unusable, open_archive, readable
from purinet_jax.weights.pytorch_files import read_pytorch

PYTORCH_SUFFIXES = (".pth", ".pt", ".tar")
WRITABLE_SUFFIXES = (".npz", ".safetensors")

_METADATA = "__metadata__"  # the name that .safetensors reserves; .npz files get a text array of that name

_SAFETENSORS_DTYPES: dict[str, np.dtype[Any]] = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "BOOL": np.dtype(np.bool_),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "I8": np.dtype(np.int8),
    "I16": np.dtype(np.int16),
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
    "U8": np.dtype(np.uint8),
    "U16": np.dtype(np.uint16),
    "U32": np.dtype(np.uint32),
    "U64": np.dtype(np.uint64),
}


def read_tensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """All named tensors of a file, in the file's order: C-contiguous arrays of the stored shapes and dtypes.

    `.npz` and `.safetensors` give every array but the metadata. `.pth`, `.pt` and `.tar` may be in PyTorch's
    zip format or in the one before 1.6; a state dict is found at the top or under "state_dict", "model",
    "model_state_dict", "net" or "network", entries in it that are no tensors are left out, and the prefix
    `module.` of DataParallel is taken off where all names have it.

    Raises InputError, naming the file, where it is missing, of another kind, damaged, or asks for anything
    but tensors and plain containers; what is refused is named.
    """
    path = Path(path)
    with _naming(path):
        ending = _known_ending(path)
        if ending == ".npz":
            return _read_npz(path)
        return _read_safetensors(path) if ending == ".safetensors" else read_pytorch(path)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The texts that `write_tensors` stored beside the tensors; {} where a file has none, as PyTorch's.

    Raises InputError, naming the file, where it is missing, of another kind or damaged.
    """
    path = Path(path)
    with _naming(path):
        ending = _known_ending(path)
        if ending == ".npz":
            with open_archive(path) as archive:
                if f"{_METADATA}.npy" not in archive.members:
                    return {}
                array = _parse_npy(archive.read(f"{_METADATA}.npy"), _METADATA)
            if array.dtype.kind != "U" or array.shape != ():
                raise Unusable(f"{_METADATA} is not one text")
            metadata = json.loads(str(array))
        elif ending == ".safetensors":
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                # Reading more than there is would first reserve the memory for it.
                header = json.loads(file.read(min(length, path.stat().st_size)))
            metadata = header.get(_METADATA, {})
        else:
            path.stat()  # missing is missing
            metadata = {}
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise Unusable(f"{_METADATA} is not a table of texts")
        return metadata


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> None:
    """Write named arrays of any shapes to `.npz` or `.safetensors`, as the ending of `path` says.

    Shapes and dtypes are kept (int64 too). The same content gives the same bytes, whatever its order, and
    the file appears whole or not at all. `metadata` is read back by `read_metadata`.

    Raises InputError, naming the file, where the ending, a name or a dtype does not suit (`.npz` has no
    bfloat16), or where the file cannot be written.
    """
    path = Path(path)
    with _naming(path):
        arrays = {name: np.asarray(tensors[name], order="C") for name in sorted(tensors)}
        if _METADATA in arrays:
            raise Unusable(f"{_METADATA} cannot name a tensor")
        texts = {name: metadata[name] for name in sorted(metadata)} if metadata else {}
        if path.suffix.lower() not in WRITABLE_SUFFIXES:
            raise Unusable(f"tensors are written to {' or '.join(WRITABLE_SUFFIXES)}")
        write = _write_npz if path.suffix.lower() == ".npz" else _write_safetensors

        temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with temporary.open("wb") as file:
                write(file, arrays, texts)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _known_ending(path: Path) -> str:
    """The ending of a file's name in lower case, if it is one that is read."""
    endings = (*PYTORCH_SUFFIXES, *WRITABLE_SUFFIXES)
    if path.suffix.lower() not in endings:
        raise Unusable(f"tensor files end in {', '.join(endings)}")
    return path.suffix.lower()


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong inside into an InputError of one line that begins with the file's name."""
    try:
        yield
    except InputError:
        raise
    except Unusable as error:
        raise InputError(f"{path}: {error}") from error
    except FileNotFoundError as error:
        missing = "no such file" if path.parent.is_dir() else f"there is no folder {path.parent}"
        raise InputError(f"{path}: {missing}") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except Exception as error:  # the parsers of damaged files raise nearly every kind there is
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: damaged or not what its ending says ({type(error).__name__}: {reason})") from error


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file, pickled ones refused."""
    tensors = {}
    with open_archive(path) as archive:
        for name in archive.members:
            if not name.endswith(".npy"):
                raise Unusable(f"{readable(name)} in it is no array")
            if name != f"{_METADATA}.npy":
                array = _parse_npy(archive.read(name), name)
                if array.dtype.kind not in "biuf":
                    raise Unusable(f"{readable(name)} holds {array.dtype}, which is no number")
                tensors[name.removesuffix(".npy")] = array
    return tensors


def _parse_npy(content: bytes, name: str) -> np.ndarray:
    """The array of one `.npy` file.

    `np.load` would first reserve whatever the header asks for; here the header must fit the bytes that are
    there.
    """
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, column_major, dtype = read_header(stream)
    if dtype.hasobject:
        raise Unusable(f"refuses {readable(name)}: it holds pickled Python objects")
    if any(length < 0 for length in shape) or math.prod(shape) * dtype.itemsize != len(content) - stream.tell():
        raise Unusable(f"{readable(name)} is not as long as its shape {shape} says")
    flat = np.frombuffer(content, dtype, math.prod(shape), stream.tell())
    array = flat.reshape(shape[::-1]).T if column_major else flat.reshape(shape)
    return np.array(array, array.dtype.newbyteorder("="), order="C")


def _write_npz(file: BinaryIO, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Write arrays as `np.savez` does, with no time and no machine in the bytes."""
    if metadata:
        arrays = {_METADATA: np.array(json.dumps(metadata)), **arrays}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            if array.dtype.kind not in "biufU":
                raise Unusable(f"{name}: .npz cannot hold {array.dtype} (.safetensors holds bfloat16)")
            member = zipfile.ZipInfo(f"{name}.npy")  # dated 1980
            member.create_system = 3  # Unix, also where written elsewhere
            with archive.open(member, "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, array, version=(1, 0), allow_pickle=False)


# Safetensors -----------------------------------------------------------------------------------------------


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a `.safetensors` file; the library checks offsets and sizes."""
    tensors = {}
    for name, entry in safetensors.deserialize(path.read_bytes()):
        if entry["dtype"] not in _SAFETENSORS_DTYPES:
            raise Unusable(f"{readable(name)} holds {entry['dtype']}, which is not read")
        # The library's own NumPy reader has no bfloat16.
        dtype = _SAFETENSORS_DTYPES[entry["dtype"]]
        stored = np.frombuffer(entry["data"], np.uint8 if dtype == np.bool_ else dtype).reshape(entry["shape"])
        tensors[name] = stored != 0 if dtype == np.bool_ else stored.copy()
    return tensors


def _write_safetensors(file: BinaryIO, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Write the format itself: the library's writer orders metadata differently from run to run."""
    names_of_dtypes = {dtype: name for name, dtype in _SAFETENSORS_DTYPES.items()}
    header: dict[str, Any] = {_METADATA: metadata} if metadata else {}
    position = 0
    # Wide elements first, so that each tensor is aligned to its own element.
    ordered = sorted(arrays.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    for name, array in ordered:
        if array.dtype not in names_of_dtypes:
            raise Unusable(f"{name}: .safetensors cannot hold {array.dtype}")
        header[name] = {
            "dtype": names_of_dtypes[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [position, position + array.nbytes],
        }
        position += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    for _, array in ordered:
        file.write(array.tobytes())
