"""PyTorch's checkpoints, read without PyTorch. They come from strangers and are pickles, programs that can run
anything: so the pickle is walked by a small interpreter that only ever builds plain containers and descriptions of
tensors and calls nothing that the file names.

Formats: `torch/serialization.py`, functions `_save` and `_legacy_save`,
https://docs.pytorch.org/docs/stable/notes/serialization.html; the opcodes are those of the standard library's
`pickletools`.
"""

from __future__ import annotations

import io
import math
import pickletools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from purinet_jax.weights.archives import Room, Unusable, open_archive, readable

# A checkpoint of 1,200 tensors has 50,000 opcodes; two million take seconds to walk.
_MOST_OPCODES = 2_000_000

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


def read_pytorch(path: Path) -> dict[str, np.ndarray]:
    """The state dict of a checkpoint in either of PyTorch's formats."""
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
    room = Room(path)
    if is_zip:
        with open_archive(path) as archive:
            pickles = [name for name in archive.members if name == "data.pkl" or name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise Unusable(f"a zip file with {len(pickles)} members data.pkl is not PyTorch's")
            folder = pickles[0].removesuffix("data.pkl")
            byte_order = archive.read(f"{folder}byteorder") if f"{folder}byteorder" in archive.members else b"little"
            if byte_order != b"little":
                raise Unusable("written by a big-endian machine, which is not read")
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
        raise Unusable("not a PyTorch checkpoint (neither the zip format nor the one before PyTorch 1.6)")
    system = _read_pickle(stream)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Unusable("written by a big-endian machine, which is not read")
    storages: dict[str, _Storage] = {}
    tensors = _state_dict(_read_pickle(stream, storages))
    keys = _read_pickle(stream)
    if not isinstance(keys, list) or not all(isinstance(key, str) and key in storages for key in keys):
        raise Unusable("its list of storages does not fit its tensors")
    raw = {}
    everything, position = memoryview(content), stream.tell()
    for key in keys:
        storage = storages[key]
        size = storage.count * storage.dtype.itemsize
        count = int.from_bytes(everything[position : position + 8], "little")
        if count != storage.count or position + 8 + size > len(everything):
            raise Unusable(f"cut short or damaged at byte {position} (storage {key[:40]})")
        raw[key] = everything[position + 8 : position + 8 + size]
        position += 8 + size
    for name, tensor in tensors.items():
        if tensor.storage.key not in raw:
            raise Unusable(f"has no storage for {name}")
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
            raise Unusable("damaged pickle: sets items of what is no dictionary")
        stack[-1].update(_pairs(zip(items[::2], items[1::2], strict=True)))

    steps: Iterator[tuple[Any, Any, Any]] = pickletools.genops(stream)
    for number, (opcode, argument, _) in enumerate(steps):
        if number == _MOST_OPCODES:
            raise Unusable(f"refuses a pickle of more than {_MOST_OPCODES:,} steps")
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                if len(stack) != 1:
                    raise Unusable("damaged pickle: ends early")
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
                    raise Unusable("damaged pickle: takes more than there is")
                stack[-length:] = [tuple(stack[-length:])]
            case "EMPTY_LIST":
                stack.append([])
            case "LIST":
                stack.append(since_mark())
            case "APPEND" | "APPENDS":
                items = since_mark() if opcode.name == "APPENDS" else [stack.pop()]
                if type(stack[-1]) is not list:
                    raise Unusable("damaged pickle: appends to what is no list")
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
                raise Unusable(f"refuses to load {readable('.'.join(argument.split(' ', 1)))}")
            case "REDUCE":
                arguments, symbol = stack.pop(), stack.pop()
                stack.append(_reduce(symbol, arguments))
            case "BUILD":
                # An OrderedDict's state is its attributes: PyTorch keeps the versions of modules there
                # (_metadata).
                stack.pop()
                if type(stack[-1]) is not dict:
                    raise Unusable("refuses to set the state of what is no dictionary")
            case "BINPERSID":
                storage = _persistent(stack.pop())
                if storages is not None:
                    known = storages.setdefault(storage.key, storage)
                    if (known.dtype, known.count) != (storage.dtype, storage.count):
                        raise Unusable(f"describes storage {storage.key[:40]} in two ways")
                stack.append(storage)
            case _:
                raise Unusable(f"refuses the pickle opcode {opcode.name}")
    raise Unusable("damaged pickle: has no end")


def _pairs(pairs: Any) -> dict[Any, Any]:
    """A dictionary of pairs; only plain keys, since a tuple nested a million deep crashes Python's hash."""
    dictionary = {}
    for key, value in pairs:
        if key is not None and type(key) not in (str, int, float, bool):
            raise Unusable(f"refuses a dictionary key of type {type(key).__name__}")
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
    raise Unusable(f"refuses to load {full}: only tensors and plain containers are read")


def _reduce(symbol: object, arguments: object) -> Any:
    """What a call in a pickle stands for: a dictionary or a tensor."""
    if not isinstance(symbol, _Symbol) or type(arguments) is not tuple or symbol.name not in _BUILDERS:
        called = symbol.name if isinstance(symbol, _Symbol) else type(symbol).__name__
        raise Unusable(f"refuses to call {called}")
    if symbol.name == "collections.OrderedDict":
        if len(arguments) > 1:
            raise Unusable("damaged pickle: an OrderedDict of more than one argument")
        items = arguments[0] if arguments else []
        return _pairs(items.items() if type(items) is dict else items)
    if symbol.name.startswith("torch._utils._rebuild_parameter"):
        # (tensor, requires_grad, hooks): a parameter is its tensor.
        if not arguments or not isinstance(arguments[0], _Tensor):
            raise Unusable("damaged pickle: a parameter without a tensor")
        return arguments[0]
    # (storage, offset, shape, strides, requires_grad, hooks, flags); _rebuild_tensor ends after the strides
    storage, offset, shape, strides, *rest = arguments
    if not isinstance(storage, _Storage):
        raise Unusable("damaged pickle: a tensor without a storage")
    if len(rest) > 2 and rest[2]:
        raise Unusable(f"refuses tensors with flags ({readable(', '.join(map(readable, rest[2])))})")
    if type(shape) is not tuple or type(strides) is not tuple or len(shape) != len(strides) or len(shape) > 32:
        raise Unusable("damaged pickle: a tensor's shape and strides do not fit")
    if not all(map(_is_count, (offset, *shape, *strides))):
        raise Unusable("damaged pickle: a tensor's shape, strides or offset are no counts")
    if math.prod(shape) > 0:
        last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
        if last >= storage.extent:
            raise Unusable(f"a tensor of shape {shape} reaches beyond its storage of {storage.extent} elements")
    return _Tensor(storage, storage.start + offset, shape, strides)


def _persistent(description: object) -> _Storage:
    """The storage that a persistent id describes: ("storage", type, key, device, count[, view of it])."""
    if type(description) is not tuple or len(description) not in (5, 6) or description[0] != "storage":
        kind = description[0] if type(description) is tuple and description else description
        raise Unusable(f"refuses a persistent object that is no storage ({readable(kind)})")
    symbol, key, _, count = description[1:5]
    if not isinstance(symbol, _Symbol) or symbol.name in _BUILDERS:
        raise Unusable("damaged pickle: a storage without a type")
    if not isinstance(key, str) or not _is_count(count):
        raise Unusable("damaged pickle: a storage without key or size")
    start, extent = 0, count
    if len(description) == 6 and description[5] is not None:
        _, start, extent = description[5]
        if not _is_count(start) or not _is_count(extent) or start + extent > count:
            raise Unusable(f"a view reaches beyond its storage of {count} elements")
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
        raise Unusable(f"holds no named tensors where they are looked for (found {kind})")
    if all(name.startswith("module.") for name in found):
        found = {name.removeprefix("module."): tensor for name, tensor in found.items()}
    return found


def _build_array(tensor: _Tensor, raw: bytes | memoryview, room: Room) -> np.ndarray:
    """The array that `tensor` describes, copied out of its storage's bytes."""
    dtype = tensor.storage.dtype
    # Zero lengths are left out: beside them the others could be any number, and still overflow in NumPy.
    room.take(math.prod(length for length in tensor.shape if length) * dtype.itemsize)
    if len(raw) < tensor.storage.count * dtype.itemsize:
        raise Unusable(f"storage {tensor.storage.key[:40]} is cut short")
    if math.prod(tensor.shape) == 0:
        return np.zeros(tensor.shape, dtype)
    # A byte other than 0 and 1 is no bool to NumPy, whatever it prints.
    stored = np.frombuffer(raw, np.uint8 if dtype == np.bool_ else dtype, tensor.storage.count)
    strides = tuple(stride * dtype.itemsize for stride in tensor.strides)
    # A length of 1 may have any stride; NumPy wants to multiply it all the same.
    strides = tuple(stride if length > 1 else 0 for stride, length in zip(strides, tensor.shape, strict=True))
    view = np.lib.stride_tricks.as_strided(stored[tensor.offset :], tensor.shape, strides, writeable=False)
    return view != 0 if dtype == np.bool_ else np.array(view, order="C")
