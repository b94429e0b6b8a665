"""Files of named arrays: PyTorch checkpoints (read), NumPy's `.npz` and `.safetensors` (read and written).

Checkpoints come from strangers, and PyTorch's are pickles, programs that can run anything. So nothing here
trusts a file: the pickle is walked by a small interpreter that only ever builds plain containers and
descriptions of tensors and calls nothing that the file names, every size is checked against the file before
memory is taken, and whatever cannot be used ends as one `InputError` that names the file. PyTorch itself is
not needed.

Formats, as their authors describe them:

* PyTorch's zip and legacy formats: `torch/serialization.py`, functions `_save` and `_legacy_save`,
  https://docs.pytorch.org/docs/stable/notes/serialization.html
* pickle's opcodes: the standard library's `pickletools`
* `.npy` in `.npz`: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
* `.safetensors`: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import io
import json
import math
import os
import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
import safetensors

from purinet_jax.errors import InputError

PYTORCH_SUFFIXES = (".pth", ".pt", ".tar")
WRITABLE_SUFFIXES = (".npz", ".safetensors")

# What a file unfolds to may be this many times its own size, plus a mebibyte for small files. Weights
# compress by a few per cent and tensors share storages now and then; only bombs come near it.
_LARGEST_EXPANSION = 64
# A checkpoint of 1,200 tensors has 50,000 opcodes; two million take seconds to walk.
_MOST_OPCODES = 2_000_000
_METADATA = "__metadata__"  # the name that .safetensors reserves; .npz files get a text array of that name

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001

_STORAGE_DTYPES: dict[str, np.dtype[Any]] = {
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "BoolStorage": np.dtype(np.bool_),
    "ByteStorage": np.dtype(np.uint8),
    "CharStorage": np.dtype(np.int8),
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "IntStorage": np.dtype(np.int32),
    "LongStorage": np.dtype(np.int64),
    "ShortStorage": np.dtype(np.int16),
}
# Files of PyTorch before 1.6 name the storages of GPU tensors by the second module.
_STORAGE_MODULES = ("torch", "torch.cuda")
_BUILDERS = frozenset(
    {
        "collections.OrderedDict",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_parameter_with_state",
    }
)
# Where training scripts put the network's tensors beside the optimiser's.
_NESTED_NAMES = ("state_dict", "model", "model_state_dict", "net", "network")

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
        return _read_safetensors(path) if ending == ".safetensors" else _read_pytorch(path)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The texts that `write_tensors` stored beside the tensors; {} where a file has none, as PyTorch's.

    Raises InputError, naming the file, where it is missing, of another kind or damaged.
    """
    path = Path(path)
    with _naming(path):
        ending = _known_ending(path)
        if ending == ".npz":
            with _open_archive(path) as archive:
                if f"{_METADATA}.npy" not in archive.members:
                    return {}
                array = _parse_npy(archive.read(f"{_METADATA}.npy"), _METADATA)
            if array.dtype.kind != "U" or array.shape != ():
                raise _Unusable(f"{_METADATA} is not one text")
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
            raise _Unusable(f"{_METADATA} is not a table of texts")
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
            raise _Unusable(f"{_METADATA} cannot name a tensor")
        texts = {name: metadata[name] for name in sorted(metadata)} if metadata else {}
        if path.suffix.lower() not in WRITABLE_SUFFIXES:
            raise _Unusable(f"tensors are written to {' or '.join(WRITABLE_SUFFIXES)}")
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


def readable(name: object) -> str:
    """A name out of a file, fit for a message of one line: printable and short."""
    text = str(name) if isinstance(name, str) else type(name).__name__
    return "".join(letter if letter.isprintable() else "?" for letter in text[:100])


def _known_ending(path: Path) -> str:
    """The ending of a file's name in lower case, if it is one that is read."""
    endings = (*PYTORCH_SUFFIXES, *WRITABLE_SUFFIXES)
    if path.suffix.lower() not in endings:
        raise _Unusable(f"tensor files end in {', '.join(endings)}")
    return path.suffix.lower()


class _Unusable(Exception):
    """What is wrong with a file, said without its name; `_naming` adds that."""


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong inside into an InputError of one line that begins with the file's name."""
    try:
        yield
    except InputError:
        raise
    except _Unusable as error:
        raise InputError(f"{path}: {error}") from error
    except FileNotFoundError as error:
        missing = "no such file" if path.parent.is_dir() else f"there is no folder {path.parent}"
        raise InputError(f"{path}: {missing}") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except Exception as error:  # the parsers of damaged files raise nearly every kind there is
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: damaged or not what its ending says ({type(error).__name__}: {reason})") from error


# PyTorch ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Symbol:
    """A global that a pickle named and that may stand in it; it stays a name and is never looked up."""

    name: str


@dataclass(frozen=True)
class _Storage:
    """`count` elements that the file keeps under `key`; tensors see `extent` of them, from `start` on."""

    key: str
    dtype: np.dtype[Any]
    count: int
    start: int
    extent: int


@dataclass(frozen=True)
class _Tensor:
    """A tensor as the pickle describes it: where its elements lie in a storage, counted in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _read_pytorch(path: Path) -> dict[str, np.ndarray]:
    """The state dict of a checkpoint in either of PyTorch's formats."""
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
    room = _Room(path)
    if is_zip:
        with _open_archive(path) as archive:
            pickles = [name for name in archive.members if name == "data.pkl" or name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise _Unusable(f"a zip file with {len(pickles)} members data.pkl is not PyTorch's")
            folder = pickles[0].removesuffix("data.pkl")
            byte_order = archive.read(f"{folder}byteorder") if f"{folder}byteorder" in archive.members else b"little"
            if byte_order != b"little":
                raise _Unusable("written by a big-endian machine, which is not read")
            tensors = _state_dict(_read_pickle(io.BytesIO(archive.read(pickles[0]))))
            raw: dict[str, bytes | memoryview] = {}
            for tensor in tensors.values():
                key = tensor.storage.key
                if key not in raw:
                    raw[key] = archive.read(f"{folder}data/{key}")
            return {name: _build_array(tensor, raw[tensor.storage.key], room) for name, tensor in tensors.items()}

    content = path.read_bytes()
    stream = io.BytesIO(content)
    if not _is_legacy(stream):
        raise _Unusable("not a PyTorch checkpoint (neither the zip format nor the one before PyTorch 1.6)")
    system = _read_pickle(stream)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise _Unusable("written by a big-endian machine, which is not read")
    storages: dict[str, _Storage] = {}
    tensors = _state_dict(_read_pickle(stream, storages))
    keys = _read_pickle(stream)
    if not isinstance(keys, list) or not all(isinstance(key, str) and key in storages for key in keys):
        raise _Unusable("its list of storages does not fit its tensors")
    raw = {}
    everything, position = memoryview(content), stream.tell()
    for key in keys:
        storage = storages[key]
        size = storage.count * storage.dtype.itemsize
        count = int.from_bytes(everything[position : position + 8], "little")
        if count != storage.count or position + 8 + size > len(everything):
            raise _Unusable(f"cut short or damaged at byte {position} (storage {key[:40]})")
        raw[key] = everything[position + 8 : position + 8 + size]
        position += 8 + size
    for name, tensor in tensors.items():
        if tensor.storage.key not in raw:
            raise _Unusable(f"has no storage for {name}")
    return {name: _build_array(tensor, raw[tensor.storage.key], room) for name, tensor in tensors.items()}


def _is_legacy(stream: io.BytesIO) -> bool:
    """Whether a stream begins with the two numbers of PyTorch's legacy format, which are then behind it."""
    # Another file may begin with anything: look only at the few bytes that these two pickles take.
    start = stream.getvalue()[:64]
    try:
        head = io.BytesIO(start)
        if _read_pickle(head) != _LEGACY_MAGIC or _read_pickle(head) != _LEGACY_PROTOCOL:
            return False
    except Exception:  # whatever else it is, it is not that
        return False
    stream.seek(head.tell())
    return True


def _read_pickle(stream: io.BytesIO, storages: dict[str, _Storage] | None = None) -> Any:
    """The value of the pickle at the stream's position, made of plain values, `_Symbol`, `_Storage` and
    `_Tensor`.

    The interpreter knows the opcodes that state dicts are written with and refuses the others. Nothing is
    imported or called: a global becomes a `_Symbol` if it is one of those that describe tensors, and is
    refused by name if not; to "call" one is `_reduce`. `storages` collects every storage met, by key.

    Python's own `Unpickler` with a restricted `find_class` would be shorter, and leaves doors open: BUILD
    sets attributes on whatever objects it is given, functions too, and one LONG_BINPUT makes it reserve 64
    GiB.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    def into_dictionary(items: list[Any]) -> None:
        if type(stack[-1]) is not dict or len(items) % 2:
            raise _Unusable("damaged pickle: sets items of what is no dictionary")
        stack[-1].update(_pairs(zip(items[::2], items[1::2], strict=True)))

    steps: Iterator[tuple[Any, Any, Any]] = pickletools.genops(stream)
    for number, (opcode, argument, _) in enumerate(steps):
        if number == _MOST_OPCODES:
            raise _Unusable(f"refuses a pickle of more than {_MOST_OPCODES:,} steps")
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                if len(stack) != 1:
                    raise _Unusable("damaged pickle: ends early")
                return stack[0]
            case "NONE":
                stack.append(None)
            case "NEWTRUE":
                stack.append(True)
            case "NEWFALSE":
                stack.append(False)
            case "INT" | "BININT" | "BININT1" | "BININT2" | "LONG" | "LONG1" | "LONG4" | "FLOAT" | "BINFLOAT":
                stack.append(argument)
            case "UNICODE" | "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8" | "BINSTRING" | "SHORT_BINSTRING":
                stack.append(argument)  # the last two are Python 2's texts
            case "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8":
                stack.append(argument)
            case "MARK":
                marks.append(len(stack))
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                length = int(opcode.name[-1])
                if len(stack) < length:
                    raise _Unusable("damaged pickle: takes more than there is")
                stack[-length:] = [tuple(stack[-length:])]
            case "EMPTY_LIST":
                stack.append([])
            case "LIST":
                stack.append(since_mark())
            case "APPEND" | "APPENDS":
                items = since_mark() if opcode.name == "APPENDS" else [stack.pop()]
                if type(stack[-1]) is not list:
                    raise _Unusable("damaged pickle: appends to what is no list")
                stack[-1].extend(items)
            case "EMPTY_DICT":
                stack.append({})
            case "DICT":
                items = since_mark()
                stack.append({})
                into_dictionary(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                into_dictionary([key, value])
            case "SETITEMS":
                into_dictionary(since_mark())
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_symbol(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_symbol(module, name))
            case "INST":
                raise _Unusable(f"refuses to load {readable('.'.join(argument.split(' ', 1)))}")
            case "REDUCE":
                arguments, symbol = stack.pop(), stack.pop()
                stack.append(_reduce(symbol, arguments))
            case "BUILD":
                # An OrderedDict's state is its attributes: PyTorch keeps the versions of modules there
                # (_metadata).
                stack.pop()
                if type(stack[-1]) is not dict:
                    raise _Unusable("refuses to set the state of what is no dictionary")
            case "BINPERSID":
                storage = _persistent(stack.pop())
                if storages is not None:
                    known = storages.setdefault(storage.key, storage)
                    if (known.dtype, known.count) != (storage.dtype, storage.count):
                        raise _Unusable(f"describes storage {storage.key[:40]} in two ways")
                stack.append(storage)
            case _:
                raise _Unusable(f"refuses the pickle opcode {opcode.name}")
    raise _Unusable("damaged pickle: has no end")


def _pairs(pairs: Any) -> dict[Any, Any]:
    """A dictionary of pairs; only plain keys, since a tuple nested a million deep crashes Python's hash."""
    dictionary = {}
    for key, value in pairs:
        if key is not None and type(key) not in (str, int, float, bool):
            raise _Unusable(f"refuses a dictionary key of type {type(key).__name__}")
        dictionary[key] = value
    return dictionary


def _is_count(value: object) -> bool:
    """Whether a value out of a file can be a length, stride or offset."""
    # The bound keeps the arithmetic on them short: a pickle can hold a number of a million digits.
    return type(value) is int and 0 <= value < 2**48


def _symbol(module: object, name: object) -> _Symbol:
    """The global `module.name`, if it is one that describes tensors."""
    full = f"{readable(module)}.{readable(name)}"
    if full in _BUILDERS or (module in _STORAGE_MODULES and name in _STORAGE_DTYPES):
        return _Symbol(full)
    raise _Unusable(f"refuses to load {full}: only tensors and plain containers are read")


def _reduce(symbol: object, arguments: object) -> Any:
    """What a call in a pickle stands for: a dictionary or a tensor."""
    if not isinstance(symbol, _Symbol) or type(arguments) is not tuple or symbol.name not in _BUILDERS:
        called = symbol.name if isinstance(symbol, _Symbol) else type(symbol).__name__
        raise _Unusable(f"refuses to call {called}")
    if symbol.name == "collections.OrderedDict":
        if len(arguments) > 1:
            raise _Unusable("damaged pickle: an OrderedDict of more than one argument")
        items = arguments[0] if arguments else []
        return _pairs(items.items() if type(items) is dict else items)
    if symbol.name.startswith("torch._utils._rebuild_parameter"):
        # (tensor, requires_grad, hooks): a parameter is its tensor.
        if not arguments or not isinstance(arguments[0], _Tensor):
            raise _Unusable("damaged pickle: a parameter without a tensor")
        return arguments[0]
    # (storage, offset, shape, strides, requires_grad, hooks, flags); _rebuild_tensor ends after the strides
    storage, offset, shape, strides, *rest = arguments
    if not isinstance(storage, _Storage):
        raise _Unusable("damaged pickle: a tensor without a storage")
    if len(rest) > 2 and rest[2]:
        raise _Unusable(f"refuses tensors with flags ({readable(', '.join(map(readable, rest[2])))})")
    if type(shape) is not tuple or type(strides) is not tuple or len(shape) != len(strides) or len(shape) > 32:
        raise _Unusable("damaged pickle: a tensor's shape and strides do not fit")
    if not all(map(_is_count, (offset, *shape, *strides))):
        raise _Unusable("damaged pickle: a tensor's shape, strides or offset are no counts")
    if math.prod(shape) > 0:
        last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
        if last >= storage.extent:
            raise _Unusable(f"a tensor of shape {shape} reaches beyond its storage of {storage.extent} elements")
    return _Tensor(storage, storage.start + offset, shape, strides)


def _persistent(description: object) -> _Storage:
    """The storage that a persistent id describes: ("storage", type, key, device, count[, view of it])."""
    if type(description) is not tuple or len(description) not in (5, 6) or description[0] != "storage":
        kind = description[0] if type(description) is tuple and description else description
        raise _Unusable(f"refuses a persistent object that is no storage ({readable(kind)})")
    symbol, key, _, count = description[1:5]
    if not isinstance(symbol, _Symbol) or symbol.name in _BUILDERS:
        raise _Unusable("damaged pickle: a storage without a type")
    if not isinstance(key, str) or not _is_count(count):
        raise _Unusable("damaged pickle: a storage without key or size")
    start, extent = 0, count
    if len(description) == 6 and description[5] is not None:
        _, start, extent = description[5]
        if not _is_count(start) or not _is_count(extent) or start + extent > count:
            raise _Unusable(f"a view reaches beyond its storage of {count} elements")
    return _Storage(key, _STORAGE_DTYPES[symbol.name.rsplit(".", 1)[1]], count, start, extent)


def _state_dict(value: object) -> dict[str, _Tensor]:
    """The named tensors of a checkpoint's value, its prefix taken off."""
    found: dict[str, _Tensor] = {}
    if isinstance(value, dict):
        for candidate in (*(value.get(name) for name in _NESTED_NAMES), value):
            if isinstance(candidate, dict):
                found = {key: item for key, item in candidate.items() if isinstance(item, _Tensor)}
                if found:
                    break
    if not found or not all(isinstance(name, str) for name in found):
        kind = f"keys {', '.join(map(readable, list(value)[:5]))}" if isinstance(value, dict) else type(value).__name__
        raise _Unusable(f"holds no named tensors where they are looked for (found {kind})")
    if all(name.startswith("module.") for name in found):
        found = {name.removeprefix("module."): tensor for name, tensor in found.items()}
    return found


def _build_array(tensor: _Tensor, raw: bytes | memoryview, room: _Room) -> np.ndarray:
    """The array that `tensor` describes, copied out of its storage's bytes."""
    dtype = tensor.storage.dtype
    # Zero lengths are left out: beside them the others could be any number, and still overflow in NumPy.
    room.take(math.prod(length for length in tensor.shape if length) * dtype.itemsize)
    if len(raw) < tensor.storage.count * dtype.itemsize:
        raise _Unusable(f"storage {tensor.storage.key[:40]} is cut short")
    if math.prod(tensor.shape) == 0:
        return np.zeros(tensor.shape, dtype)
    # A byte other than 0 and 1 is no bool to NumPy, whatever it prints.
    stored = np.frombuffer(raw, np.uint8 if dtype == np.bool_ else dtype, tensor.storage.count)
    strides = tuple(stride * dtype.itemsize for stride in tensor.strides)
    # A length of 1 may have any stride; NumPy wants to multiply it all the same.
    strides = tuple(stride if length > 1 else 0 for stride, length in zip(strides, tensor.shape, strict=True))
    view = np.lib.stride_tricks.as_strided(stored[tensor.offset :], tensor.shape, strides, writeable=False)
    return view != 0 if dtype == np.bool_ else np.array(view, order="C")


# Archives --------------------------------------------------------------------------------------------------


class _Room:
    """How much a file may still unfold to: a multiple of its size on disk."""

    def __init__(self, path: Path) -> None:
        self.left = _LARGEST_EXPANSION * path.stat().st_size + 2**20

    def take(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise _Unusable(f"refuses what unfolds to more than {_LARGEST_EXPANSION} times the file's size")


@dataclass(frozen=True)
class _Archive:
    """An open zip file, its sizes checked, and its members by name."""

    file: zipfile.ZipFile
    members: dict[str, zipfile.ZipInfo]

    def read(self, name: str) -> bytes:
        """The bytes of one member, its checksum compared."""
        if name not in self.members:
            raise _Unusable(f"has no {readable(name)}")
        member = self.members[name]
        with self.file.open(member) as stream:
            # A size is given since `read()` without one unpacks all there is, whatever the directory
            # promised.
            content = stream.read(member.file_size)
            if stream.read(1) or len(content) != member.file_size:
                raise _Unusable(f"{readable(name)} is not as long as promised")
        return content


@contextmanager
def _open_archive(path: Path) -> Iterator[_Archive]:
    """A zip file whose members, all together, fit the room that its size gives."""
    room = _Room(path)
    with zipfile.ZipFile(path) as file:
        members: dict[str, zipfile.ZipInfo] = {}
        for member in file.infolist():
            name = readable(member.filename)
            if member.filename in members:
                raise _Unusable(f"has two members {name}")
            # The other methods unpack without a bound on what one call may return.
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & 0x1:
                raise _Unusable(f"{name} is encrypted or compressed by a method that is not read")
            room.take(member.file_size)
            members[member.filename] = member
        yield _Archive(file, members)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file, pickled ones refused."""
    tensors = {}
    with _open_archive(path) as archive:
        for name in archive.members:
            if not name.endswith(".npy"):
                raise _Unusable(f"{readable(name)} in it is no array")
            if name != f"{_METADATA}.npy":
                array = _parse_npy(archive.read(name), name)
                if array.dtype.kind not in "biuf":
                    raise _Unusable(f"{readable(name)} holds {array.dtype}, which is no number")
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
        raise _Unusable(f"refuses {readable(name)}: it holds pickled Python objects")
    if any(length < 0 for length in shape) or math.prod(shape) * dtype.itemsize != len(content) - stream.tell():
        raise _Unusable(f"{readable(name)} is not as long as its shape {shape} says")
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
                raise _Unusable(f"{name}: .npz cannot hold {array.dtype} (.safetensors holds bfloat16)")
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
            raise _Unusable(f"{readable(name)} holds {entry['dtype']}, which is not read")
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
            raise _Unusable(f"{name}: .safetensors cannot hold {array.dtype}")
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
