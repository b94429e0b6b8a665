"""PyTorch's checkpoints, read without PyTorch. They are pickles, programs that can call anything: a small interpreter
builds plain containers and descriptions of tensors, and calls nothing that the file names.

Formats: `torch/serialization.py`, functions `_save` and `_legacy_save`,
https://docs.pytorch.org/docs/stable/notes/serialization.html; the opcodes are those of the standard library's
`pickletools`.
"""

import io
import math
import pickletools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from purinet_jax.errors import InputError
from purinet_jax.weights.untrusted import check_expansion, open_zip, printable

# A checkpoint of 1,200 tensors has 50,000 opcodes; two million take seconds.
_MOST_OPCODES = 2_000_000

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001

_C_TYPES = {"Bool": "?", "Byte": "u1", "Char": "i1", "Short": "i2", "Int": "i4", "Long": "i8"}
_FLOATS = {"Half": "f2", "BFloat16": ml_dtypes.bfloat16, "Float": "f4", "Double": "f8"}
_STORAGE_DTYPES = {f"{name}Storage": np.dtype(dtype) for name, dtype in (_C_TYPES | _FLOATS).items()}
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
# Opcodes that push a constant, and those that push their argument.
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_ARGUMENTS = re.compile(
    "INT|BININT[12]?|LONG[14]?|(BIN)?FLOAT|UNICODE|BIN(BYTES|UNICODE)8|(SHORT_)?BIN(BYTES|UNICODE|STRING)"
)
# Where training scripts put the network's tensors next to the optimiser's.
_NESTED_NAMES = ("state_dict", "model", "model_state_dict", "net", "network")


@dataclass(frozen=True)
class _Symbol:
    """A permitted global of a pickle: a name that is never looked up."""

    name: str


@dataclass(frozen=True)
class _Storage:
    """`count` elements that the file stores under `key`; tensors use `extent` of them, from `start` on."""

    key: str
    dtype: np.dtype[Any]
    count: int
    start: int
    extent: int


@dataclass(frozen=True)
class _Tensor:
    """A tensor as the pickle describes it: its elements in a storage; offset and strides in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_pytorch(path: Path) -> dict[str, np.ndarray]:
    """Reads the state dict of a checkpoint in either of PyTorch's formats."""
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
    tensors, raw = _read_zip(path) if is_zip else _read_legacy(path.read_bytes())
    # Zero lengths are left out: next to one, the others could be so large that they overflow in NumPy.
    counts = (math.prod(filter(None, x.shape)) * x.storage.dtype.itemsize for x in tensors.values())
    check_expansion(path, sum(counts))
    return {name: _build_array(tensor, raw[tensor.storage.key]) for name, tensor in tensors.items()}


def _read_zip(path: Path) -> tuple[dict[str, _Tensor], dict[str, bytes]]:
    """The tensors of a file in the zip format, and its storages by key."""
    with open_zip(path) as archive:
        pickles = [name for name in archive.members if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise InputError(f"a zip file with {len(pickles)} members data.pkl is not PyTorch's")
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.members and archive.read(f"{folder}byteorder") != b"little":
            raise InputError("written by a big-endian machine, which is not supported")
        tensors = _state_dict(_read_pickle(io.BytesIO(archive.read(pickles[0]))))
        keys = {tensor.storage.key for tensor in tensors.values()}
        return tensors, {key: archive.read(f"{folder}data/{key}") for key in keys}


def _read_legacy(content: bytes) -> tuple[dict[str, _Tensor], dict[str, memoryview]]:
    """As `_read_zip`, of a file in the format before PyTorch 1.6."""
    stream = io.BytesIO(content)
    if not _is_legacy(stream):
        raise InputError("not a PyTorch checkpoint (neither the zip format nor the one before PyTorch 1.6)")
    system = _read_pickle(stream)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise InputError("written by a big-endian machine, which is not supported")
    storages: dict[str, _Storage] = {}
    tensors = _state_dict(_read_pickle(stream, storages))
    keys = _read_pickle(stream)
    if not isinstance(keys, list) or not all(isinstance(key, str) and key in storages for key in keys):
        raise InputError("its list of storages does not fit its tensors")
    raw: dict[str, memoryview] = {}
    everything, position = memoryview(content), stream.tell()
    for key in keys:
        storage = storages[key]
        size = storage.count * storage.dtype.itemsize
        count = int.from_bytes(everything[position : position + 8], "little")
        if count != storage.count or position + 8 + size > len(everything):
            raise InputError(f"cut short or damaged at byte {position} (storage {printable(key)})")
        raw[key] = everything[position + 8 : position + 8 + size]
        position += 8 + size
    for name, tensor in tensors.items():
        if tensor.storage.key not in raw:
            raise InputError(f"has no storage for {printable(name)}")
    return tensors, raw


def _is_legacy(stream: io.BytesIO) -> bool:
    """Whether a stream starts with the two pickles of PyTorch's legacy format; if so, moves behind them."""
    # Other files may start with anything: only the few bytes of these two pickles are read.
    start = stream.getvalue()[:64]
    try:
        head = io.BytesIO(start)
        if _read_pickle(head) != _LEGACY_MAGIC or _read_pickle(head) != _LEGACY_PROTOCOL:
            return False
    except Exception:  # it is something else
        return False
    stream.seek(head.tell())
    return True


def _read_pickle(stream: io.BytesIO, storages: dict[str, _Storage] | None = None) -> Any:
    """Reads the pickle at the stream's position, made of plain values, `_Symbol`, `_Storage` and `_Tensor`.

    Opcodes that state dicts are not written with are refused. Nothing is imported or called: a global that describes
    tensors becomes a `_Symbol`, any other is refused by name; `_reduce` replaces calls. `storages` collects all
    storages by key.

    Python's own `Unpickler` with a restricted `find_class` is not safe: BUILD sets attributes on any object, functions
    included, and one LONG_BINPUT makes it reserve 64 GiB.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    copied = 0  # items of dictionaries, of which a step may repeat all

    def since_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    def into_dictionary(items: list[Any]) -> None:
        if type(stack[-1]) is not dict or len(items) % 2:
            raise InputError("damaged pickle: sets items of something that is not a dictionary")
        stack[-1].update(_pairs(zip(items[::2], items[1::2], strict=True)))

    steps: Iterator[tuple[Any, Any, Any]] = pickletools.genops(stream)
    for step, (opcode, argument, _) in enumerate(steps):
        if step == _MOST_OPCODES:
            raise InputError(f"refuses a pickle of more than {_MOST_OPCODES:,} steps")
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                if len(stack) != 1:
                    raise InputError("damaged pickle: ends early")
                return stack[0]
            case name if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case name if _ARGUMENTS.fullmatch(name):
                stack.append(argument)
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                length = int(opcode.name[-1])
                if len(stack) < length:
                    raise InputError("damaged pickle: takes more than the stack holds")
                stack[-length:] = [tuple(stack[-length:])]
            case "EMPTY_LIST":
                stack.append([])
            case "LIST":
                stack.append(since_mark())
            case "APPEND" | "APPENDS":
                items = since_mark() if opcode.name == "APPENDS" else [stack.pop()]
                if type(stack[-1]) is not list:
                    raise InputError("damaged pickle: appends to something that is not a list")
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
                raise InputError(f"refuses to load {printable('.'.join(argument.split(' ', 1)))}")
            case "REDUCE":
                arguments, symbol = stack.pop(), stack.pop()
                stack.append(_reduce(symbol, arguments))
                copied += len(stack[-1]) if type(stack[-1]) is dict else 0
                if copied > _MOST_OPCODES:
                    raise InputError(f"refuses a pickle that copies more than {_MOST_OPCODES:,} items")
            case "BUILD":
                # An OrderedDict's attributes: PyTorch stores the versions of modules there (_metadata).
                stack.pop()
                if type(stack[-1]) is not dict:
                    raise InputError("refuses to set the state of something that is not a dictionary")
            case "BINPERSID":
                storage = _persistent(stack.pop())
                if storages is not None:
                    known = storages.setdefault(storage.key, storage)
                    if (known.dtype, known.count) != (storage.dtype, storage.count):
                        raise InputError(f"describes storage {printable(storage.key)} in two ways")
                stack.append(storage)
            case _:
                raise InputError(f"refuses the pickle opcode {opcode.name}")
    raise InputError("damaged pickle: has no end")


def _pairs(pairs: Any) -> dict[Any, Any]:
    """A dictionary of pairs with plain keys only: hashing a tuple nested a million deep crashes Python."""
    dictionary = {}
    for key, value in pairs:
        if key is not None and type(key) not in (str, int, float, bool):
            raise InputError(f"refuses a dictionary key of type {type(key).__name__}")
        dictionary[key] = value
    return dictionary


def _is_count(value: object) -> bool:
    """Whether a value from a file can be a length, stride or offset."""
    # The bound keeps arithmetic fast: a pickle can hold an integer of a million digits.
    return type(value) is int and 0 <= value < 2**48


def _symbol(module: object, name: object) -> _Symbol:
    """The global `module.name`, if it is one that describes tensors."""
    full = f"{printable(module)}.{printable(name)}"
    if full in _BUILDERS or (module in _STORAGE_MODULES and name in _STORAGE_DTYPES):
        return _Symbol(full)
    raise InputError(f"refuses to load {full}: only tensors and plain containers are read")


def _reduce(symbol: object, arguments: object) -> Any:
    """The dictionary or tensor that a call in a pickle means."""
    if not isinstance(symbol, _Symbol) or type(arguments) is not tuple or symbol.name not in _BUILDERS:
        called = symbol.name if isinstance(symbol, _Symbol) else type(symbol).__name__
        raise InputError(f"refuses to call {called}")
    if symbol.name == "collections.OrderedDict":
        if len(arguments) > 1:
            raise InputError("damaged pickle: an OrderedDict of more than one argument")
        items = arguments[0] if arguments else []
        return _pairs(items.items() if type(items) is dict else items)
    if symbol.name.startswith("torch._utils._rebuild_parameter"):
        # (tensor, requires_grad, hooks): a parameter is its tensor.
        if not arguments or not isinstance(arguments[0], _Tensor):
            raise InputError("damaged pickle: a parameter without a tensor")
        return arguments[0]
    # (storage, offset, shape, strides, requires_grad, hooks, flags); _rebuild_tensor ends after the strides
    storage, offset, shape, strides, *rest = arguments
    if not isinstance(storage, _Storage):
        raise InputError("damaged pickle: a tensor without a storage")
    if len(rest) > 2 and rest[2]:
        raise InputError(f"refuses tensors with flags ({printable(', '.join(map(printable, rest[2])))})")
    if type(shape) is not tuple or type(strides) is not tuple or len(shape) != len(strides) or len(shape) > 32:
        raise InputError("damaged pickle: a tensor's shape and strides do not fit")
    if not all(map(_is_count, (offset, *shape, *strides))):
        raise InputError("damaged pickle: a tensor's shape, strides or offset are not counts")
    if math.prod(shape) > 0:
        last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
        if last >= storage.extent:
            raise InputError(f"a tensor of shape {shape} reaches beyond its storage of {storage.extent} elements")
    return _Tensor(storage, storage.start + offset, shape, strides)


def _persistent(description: object) -> _Storage:
    """The storage that a persistent id describes: ("storage", type, key, device, count[, view of it])."""
    if type(description) is not tuple or len(description) not in (5, 6) or description[0] != "storage":
        kind = description[0] if type(description) is tuple and description else description
        raise InputError(f"refuses a persistent object that is not a storage ({printable(kind)})")
    symbol, key, _, count = description[1:5]
    if not isinstance(symbol, _Symbol) or symbol.name in _BUILDERS:
        raise InputError("damaged pickle: a storage without a type")
    if not isinstance(key, str) or not _is_count(count):
        raise InputError("damaged pickle: a storage without key or size")
    start, extent = 0, count
    if len(description) == 6 and description[5] is not None:
        _, start, extent = description[5]
        if not _is_count(start) or not _is_count(extent) or start + extent > count:
            raise InputError(f"a view reaches beyond its storage of {count} elements")
    return _Storage(key, _STORAGE_DTYPES[symbol.name.rsplit(".", 1)[1]], count, start, extent)


def _state_dict(value: object) -> dict[str, _Tensor]:
    """The named tensors of a checkpoint's value, without the prefix of DataParallel."""
    found: dict[str, _Tensor] = {}
    if isinstance(value, dict):
        for candidate in (*(value.get(name) for name in _NESTED_NAMES), value):
            if isinstance(candidate, dict):
                found = {key: item for key, item in candidate.items() if isinstance(item, _Tensor)}
                if found:
                    break
    if not found or not all(isinstance(name, str) for name in found):
        kind = f"keys {', '.join(map(printable, list(value)[:5]))}" if isinstance(value, dict) else type(value).__name__
        raise InputError(f"holds no named tensors where they are expected (found {kind})")
    if all(name.startswith("module.") for name in found):
        found = {name.removeprefix("module."): tensor for name, tensor in found.items()}
    return found


def _build_array(tensor: _Tensor, raw: bytes | memoryview) -> np.ndarray:
    """The array that `tensor` describes, copied from its storage's bytes."""
    dtype = tensor.storage.dtype
    if len(raw) < tensor.storage.count * dtype.itemsize:
        raise InputError(f"storage {printable(tensor.storage.key)} is cut short")
    if math.prod(tensor.shape) == 0:
        return np.zeros(tensor.shape, dtype)
    # NumPy's bool has no bytes other than 0 and 1.
    stored = np.frombuffer(raw, np.uint8 if dtype == np.bool_ else dtype, tensor.storage.count)
    strides = tuple(stride * dtype.itemsize for stride in tensor.strides)
    # A length of 1 may have any stride, but NumPy multiplies by it.
    strides = tuple(stride if length > 1 else 0 for stride, length in zip(strides, tensor.shape, strict=True))
    view = np.lib.stride_tricks.as_strided(stored[tensor.offset :], tensor.shape, strides, writeable=False)
    return view != 0 if dtype == np.bool_ else np.array(view, order="C")
