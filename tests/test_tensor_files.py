"""Tensor files: PyTorch's two formats as PyTorch wrote them, other libraries' files, and hostile ones."""

import io
import json
import os
import pickle
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from purinet_jax.errors import InputError
from purinet_jax.weights import pytorch_files
from purinet_jax.weights.tensor_files import read_metadata, read_tensors, write_tensors
from purinet_jax.weights.untrusted import any_error_named

FIXTURES = Path(__file__).with_name("fixtures") / "tensor_files"
MAGIC = 0x1950A86A20F9469CFC6C


def expected() -> dict[str, np.ndarray]:
    """What both checkpoints of the fixtures hold (their README.md made them)."""
    base = np.arange(48, dtype=np.float32).reshape(6, 8)
    return {
        "rows": base[1:4, 2:7],
        "columns": base.T,
        "sparse": base[::2, ::3],
        "parameter": np.arange(6, dtype=np.float64).reshape(3, 2) / 3,
        "repeated": np.array([[1, 1, 1], [2, 2, 2]], np.float32),
        "count": np.array(2**40, np.int64),
        "nothing": np.zeros((0, 4), np.float32),
        "flags": np.array([True, False, True]),
        "half": np.array([0.5, -1.5], np.float16),
        "brain": np.array([0.5, -1.5, 3.0], ml_dtypes.bfloat16),
        "bytes": np.array([0, 255], np.uint8),
        "shorts": np.array([-1, 300], np.int16),
    }


def assert_same(got: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert got.keys() == wanted.keys()
    for name, array in wanted.items():
        assert got[name].dtype == array.dtype, name
        assert got[name].shape == array.shape, name
        assert got[name].tobytes() == array.tobytes(), name
        assert got[name].flags.c_contiguous, name
        assert got[name].flags.writeable, name


@pytest.mark.parametrize("name", ["link.pth", "link.npz", "link.safetensors"])
@pytest.mark.parametrize("read", [read_tensors, read_metadata])
def test_devices_and_pipes_are_not_read(tmp_path: Path, name: str, read: Callable[[Path], object]) -> None:
    path = tmp_path / name
    os.mkfifo(path)
    with pytest.raises(InputError, match=rf"{name}: is a device, pipe or socket"):
        read(path)


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth"])
def test_reads_what_pytorch_wrote(name: str) -> None:
    tensors = read_tensors(FIXTURES / name)
    assert list(tensors) == list(expected())
    assert_same(tensors, expected())
    assert read_metadata(FIXTURES / name) == {}


def test_a_checkpoint_may_end_in_tar(tmp_path: Path) -> None:
    path = tmp_path / "stage3.pth.tar"
    path.write_bytes((FIXTURES / "legacy.pth").read_bytes())
    assert_same(read_tensors(path), expected())


# Pickles by hand: the values that need no PyTorch come from `pickle`, without its first opcode (the
# protocol) and its last one (stop).


def plain(value: Any) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def storage(kind: str = "torch FloatStorage", key: str = "0", count: int = 6, view: Any = ...) -> bytes:
    name = kind.replace(" ", "\n").encode()
    last = b"" if view is ... else plain(view)
    return b"(" + plain("storage") + b"c" + name + b"\n" + plain(key) + plain("cuda:0") + plain(count) + last + b"tQ"


def tensor(
    stored: bytes | None = None,
    offset: Any = 0,
    shape: Any = (2, 3),
    strides: Any = (3, 1),
    rest: bytes = b"",
) -> bytes:
    arguments = plain(offset) + plain(shape) + plain(strides) + plain(False) + b"ccollections\nOrderedDict\n)R" + rest
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + (storage() if stored is None else stored) + arguments + b"tR"


def state(**tensors: bytes) -> bytes:
    """A pickle of a dictionary of tensors."""
    return b"\x80\x02}(" + b"".join(plain(name) + item for name, item in tensors.items()) + b"u."


def zip_file(path: Path, program: bytes, storages: dict[str, bytes] | None = None, compress: bool = False) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", program)
        for key, content in (storages or {"0": np.arange(6, dtype=np.float32).tobytes()}).items():
            archive.writestr(f"archive/data/{key}", content)
    return path


def legacy_file(path: Path, program: bytes, keys: Any = ("0",), storages: bytes | None = None) -> Path:
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    raw = (6).to_bytes(8, "little") + np.arange(6, dtype=np.float32).tobytes() if storages is None else storages
    head = b"".join(pickle.dumps(value, 2) for value in (MAGIC, 1001, system))
    path.write_bytes(head + program + pickle.dumps(list(keys), 2) + raw)
    return path


@pytest.mark.parametrize("write", [zip_file, legacy_file])
def test_reads_handmade_files(tmp_path: Path, write: Callable[[Path, bytes], Path]) -> None:
    """Storages of GPU tensors as files before PyTorch 1.6 name them; a number next to the tensors."""
    program = state(a=tensor(), b=tensor(storage("torch.cuda FloatStorage"), 1, (2,), (2,)), epoch=plain(7))
    stored = np.arange(6, dtype=np.float32)
    assert_same(read_tensors(write(tmp_path / "a.pth", program)), {"a": stored.reshape(2, 3), "b": stored[1:5:2]})


def test_legacy_storage_views(tmp_path: Path) -> None:
    """A sixth entry of the persistent id makes the storage a window on another: (key, start, length)."""
    program = state(a=tensor(storage(view=("1", 2, 3)), 1, (2,), (1,)), b=tensor(storage(view=None)))
    tensors = read_tensors(legacy_file(tmp_path / "a.pth", program))
    np.testing.assert_array_equal(tensors["a"], [3, 4])
    beyond = state(a=tensor(storage(view=("1", 2, 3)), 1, (3,), (1,)))
    with pytest.raises(InputError, match="beyond its storage of 3"):
        read_tensors(legacy_file(tmp_path / "a.pth", beyond))
    with pytest.raises(InputError, match="view reaches beyond"):
        read_tensors(legacy_file(tmp_path / "a.pth", state(a=tensor(storage(view=("1", 4, 3))))))


class Call:
    """What pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("write", [zip_file, legacy_file])
@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Call(os.system, "touch ran"), f"{os.system.__module__}.system"),
        (Call(eval, "open('ran', 'w')"), "eval"),
        (Call(getattr, "a", "b"), "getattr"),
        (Call(subprocess.check_output, ["touch", "ran"]), "check_output"),
        ({"state_dict": {}, "arguments": Path("x")}, "Path"),
        (np.float64(3), "numpy"),
    ],
)
def test_refuses_by_name_and_runs_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[Path, bytes], Path],
    value: Any,
    name: str,
    protocol: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(Path("stage3.pth"), pickle.dumps(value, protocol))
    with pytest.raises(InputError, match=rf"^stage3\.pth: refuses to load [\w.]*{name}") as caught:
        read_tensors(path)
    assert "\n" not in str(caught.value)
    assert not Path("ran").exists()


ORDERED = b"ccollections\nOrderedDict\n"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


@pytest.mark.parametrize(
    ("program", "complaint"),
    [
        # `OrderedDict` and the builders are no objects here, so nothing can be set on them or got from them.
        (b"\x80\x02" + REBUILD + plain({"__defaults__": ()}) + b"b.", "set the state of"),
        (b"\x80\x02" + REBUILD + plain((None, {"__code__": 1})) + b"b.", "set the state of"),
        (b"\x80\x02" + ORDERED + b")\x81.", "opcode NEWOBJ"),
        (b"\x80\x02(" + ORDERED + b"o.", "opcode OBJ"),
        (b"\x80\x02(ios\nsystem\n.", r"load ios\.system|load os\.system"),
        (b"\x80\x04" + plain("os") + plain("system") + b"\x93.", r"load os\.system"),
        (
            b"\x80\x04" + plain("collections") + plain("OrderedDict.fromkeys") + b"\x93.",
            r"OrderedDict\.fromkeys",
        ),
        (b"\x80\x02\x82\x01.", "opcode EXT1"),
        (b"\x80\x02" + plain("x") + b")R.", "refuses to call str"),
        (b"\x80\x02ctorch\nFloatStorage\n)R.", r"refuses to call torch\.FloatStorage"),
        (b"\x80\x02ctorch.cuda\nset_device\n.", r"load torch\.cuda\.set_device"),
        (b"\x80\x02ctorch\nFloatStorage\n.", "no named tensors"),
        (
            b"\x80\x02" + plain(("module", "net", "source")) + b"Q.",
            r"persistent object that is not a storage \(module\)",
        ),
        # With Python's own unpickler these two take 64 GiB.
        (b"\x80\x02Nr\xff\xff\xff\xff.", "no named tensors"),
        (b"\x80\x05\x96" + (2**36).to_bytes(8, "little") + b".", "damaged"),
        (b"\x80\x02}" + b"(" * 1000 + b"t" * 1000 + b"Ns.", "key of type tuple"),
        (b"\x80\x02]q\x00h\x00a.", "no named tensors"),  # a list that holds itself
        (b"\x80\x02}q\x00" + plain("state_dict") + b"h\x00s.", "no named tensors"),
        (b"\x80\x02" + ORDERED + plain(([], [])) + b"R.", "more than one argument"),
        (b"\x80\x02t.", "damaged"),
        (b"\x80\x02a.", "damaged"),
        (b"\x80\x02\x86.", "damaged"),
        (b"\x80\x02h\x07.", "damaged"),
        (b"\x80\x02", "damaged|no named tensors"),
        (b"\x80\x02I" + b"9" * 5000 + b"\n.", "damaged"),
        (b"", "damaged"),
    ],
)
def test_hostile_pickles(tmp_path: Path, program: bytes, complaint: str) -> None:
    for write in (zip_file, legacy_file):
        path = write(tmp_path / "a.pth", program)
        with pytest.raises(InputError, match=complaint) as caught:
            read_tensors(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert len(str(caught.value)) < len(str(path)) + 400


@pytest.mark.parametrize(
    ("item", "complaint"),
    [
        (tensor(offset=1), "reaches beyond its storage of 6"),
        (tensor(shape=(3, 3)), "reaches beyond"),
        (tensor(strides=(4, 1)), "reaches beyond"),
        (tensor(strides=(-3, 1)), "not counts"),
        (tensor(offset=-1), "not counts"),
        (tensor(offset=0.5), "not counts"),
        (tensor(shape=(True, 3)), "not counts"),
        (tensor(shape=(2, 10 ** (10**5))), "not counts"),
        (tensor(shape=(2,)), "shape and strides"),
        (tensor(shape=[2, 3]), "shape and strides"),
        (tensor(shape=(1,) * 33, strides=(1,) * 33), "shape and strides"),
        (tensor(shape=(2**40, 2**40), strides=(0, 0)), "expands to more"),
        (tensor(shape=(0, 2**40, 2**40), strides=(0, 0, 0)), "expands to more"),
        (tensor(plain("storage")), "without a storage"),
        (tensor(rest=plain({"conj": True})), "flags"),
        (tensor(storage(count=7)), "cut short|fit its tensors|damaged"),
        (tensor(storage(count=2**40)), "cut short|damaged"),
        (tensor(storage(count=-1)), "without key or size"),
        (tensor(storage(key="../0")), "has no|storages does not fit"),
        (tensor(storage("torch DoubleStorage")), "cut short|damaged"),
        (tensor(storage("torch ComplexFloatStorage")), r"load torch\.ComplexFloatStorage"),
        (tensor(storage("torch.nn FloatStorage")), r"load torch\.nn\.FloatStorage"),
        (tensor(storage("collections OrderedDict")), "without a type"),
    ],
)
def test_hostile_tensors(tmp_path: Path, item: bytes, complaint: str) -> None:
    for write in (zip_file, legacy_file):
        path = write(tmp_path / "a.pth", state(weight=item))
        with pytest.raises(InputError, match=complaint):
            read_tensors(path)


def test_copies_of_a_dictionary_and_a_lack_of_memory_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pytorch_files, "_MOST_OPCODES", 10_000)
    items = b"".join(b"K" + bytes([key]) + b"N" for key in range(100))
    program = b"\x80\x02" + ORDERED + b"q\x00}q\x01(" + items + b"u" + b"h\x00h\x01\x85R" * 101 + b"."
    with pytest.raises(InputError, match="refuses a pickle that copies more than 10,000 items"):
        read_tensors(zip_file(tmp_path / "a.pth", program))
    with pytest.raises(InputError, match=r"^a\.pth: needs more memory than there is$"), any_error_named(Path("a.pth")):
        raise MemoryError


def test_many_tensors_cannot_multiply_a_storage(tmp_path: Path) -> None:
    count = 2**16
    item = tensor(storage(count=count), 0, (count,), (1,))
    program = state(**{f"t{i}": item for i in range(200)})
    with pytest.raises(InputError, match="64 times"):
        read_tensors(zip_file(tmp_path / "a.pth", program, {"0": bytes(4 * count)}, compress=True))


def test_inconsistent_legacy_files_are_refused(tmp_path: Path) -> None:
    program = state(weight=tensor())
    for keys in (["0", "1"], ["1"], [0], "0x"):
        with pytest.raises(InputError, match=r"list of storages|no storage"):
            read_tensors(legacy_file(tmp_path / "a.pth", program, keys))
    with pytest.raises(InputError, match="has no storage for weight"):
        read_tensors(legacy_file(tmp_path / "a.pth", program, []))
    two = state(a=tensor(), b=tensor(storage(count=5), 0, (1,), (1,)))
    with pytest.raises(InputError, match="storage 0 in two ways"):
        read_tensors(legacy_file(tmp_path / "a.pth", two))
    big_endian = b"".join(pickle.dumps(value, 2) for value in (MAGIC, 1001, {"little_endian": False}))
    (tmp_path / "b.pth").write_bytes(big_endian)
    with pytest.raises(InputError, match="big-endian"):
        read_tensors(tmp_path / "b.pth")


def test_zip_bombs(tmp_path: Path) -> None:
    program = state(weight=tensor(storage(count=2**24), 0, (2**24,), (1,)))
    path = zip_file(tmp_path / "a.pth", program, {"0": bytes(2**26)}, compress=True)
    with pytest.raises(InputError, match="64 times"):
        read_tensors(path)
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(2**24, np.float32))
    with pytest.raises(InputError, match="64 times"):
        read_tensors(tmp_path / "a.npz")
    # A member that unpacks to more than the directory says: 3 MB of zeros that claim to be 10 bytes.
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(3 * 2**20))
    data = content.getvalue().replace((3 * 2**20).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    (tmp_path / "b.npz").write_bytes(data)
    with pytest.raises(InputError, match=r"damaged|shorter than stated"):
        read_tensors(tmp_path / "b.npz")


def test_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("a")
    Path("a.pth").write_text("no checkpoint\n")
    Path("a.npz").write_text("no archive")
    Path("a.safetensors").write_bytes(b"\xff" * 100)
    Path("folder.npz").mkdir()
    zipfile.ZipFile("b.pth", "w").close()
    with zipfile.ZipFile("c.pth", "w") as archive:
        archive.writestr("a/other", "x")
    for name, complaint in {
        "a.txt": "tensor files end in .pth",
        "a.pth": "not a PyTorch checkpoint",
        "b.pth": "not a PyTorch checkpoint",
        "c.pth": "0 members data.pkl",
        "a.npz": "damaged",
        "a.safetensors": "damaged",
        "folder.npz": "directory",
        "missing.pth": "no such file",
        "missing.npz": "no such file",
        "nowhere/a.npz": "no folder nowhere",
    }.items():
        with pytest.raises(InputError, match=complaint) as caught:
            read_tensors(name)
        assert str(caught.value).startswith(f"{name}: ")
    for name in ("missing.pth", "missing.npz", "missing.safetensors", "a.txt", "a.npz", "a.safetensors"):
        with pytest.raises(InputError, match=name):
            read_metadata(name)


def without_bfloat16() -> dict[str, np.ndarray]:
    return {name: array for name, array in expected().items() if name != "brain"}


def write_npz(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """As version 0.2.0 wrote `.npz`."""
    np.savez(path, **tensors, __metadata__=np.array(json.dumps(metadata)))


def test_written_files_are_read(tmp_path: Path) -> None:
    path, again = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    tensors = expected()
    metadata = {"model": json.dumps({"é": 1}), "format": "x", "another": "line\nline"}
    write_tensors(path, tensors, metadata)
    assert_same(read_tensors(path), tensors)
    assert read_metadata(path) == metadata
    # Neither the order nor the time is in the bytes.
    write_tensors(again, dict(reversed(tensors.items())), dict(reversed(metadata.items())))
    assert again.read_bytes() == path.read_bytes()
    write_tensors(again, {"path/to/leaf": np.ones((2, 1), np.float32)})
    assert_same(read_tensors(again), {"path/to/leaf": np.ones((2, 1), np.float32)})
    assert read_metadata(again) == {}
    assert sorted(tmp_path.iterdir()) == [path, again]


def test_other_libraries_read_what_is_written(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", without_bfloat16(), {"format": "x"})
    theirs = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    assert_same({name: np.array(array) for name, array in theirs.items()}, without_bfloat16())
    with safetensors.safe_open(tmp_path / "a.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "x"}


def test_reads_what_other_libraries_write(tmp_path: Path) -> None:
    columns = {name: np.array(array, order="F") for name, array in without_bfloat16().items()}
    np.savez_compressed(tmp_path / "a.npz", swapped=np.arange(3, dtype=">f4"), **columns)
    assert_same(read_tensors(tmp_path / "a.npz"), {"swapped": np.arange(3, dtype=np.float32)} | without_bfloat16())
    write_npz(tmp_path / "b.npz", without_bfloat16(), {"format": "x"})
    assert_same(read_tensors(tmp_path / "b.npz"), without_bfloat16())
    assert read_metadata(tmp_path / "b.npz") == {"format": "x"}
    contiguous = {name: np.array(array, order="C") for name, array in without_bfloat16().items()}  # all they can write
    safetensors.numpy.save_file(contiguous, tmp_path / "a.safetensors", {"by": "them"})
    assert_same(read_tensors(tmp_path / "a.safetensors"), without_bfloat16())
    assert read_metadata(tmp_path / "a.safetensors") == {"by": "them"}


def npz_member(path: Path, name: str, content: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, content)
    return path


def test_hostile_npz(tmp_path: Path) -> None:
    def header(text: str) -> bytes:
        return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()

    path = tmp_path / "a.npz"
    np.savez(path, x=np.array([Call(os.system, "false")], object))
    with pytest.raises(InputError, match=r"x\.npy: it holds pickled Python objects"):
        read_tensors(path)
    for text, complaint in {
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,)}": "not as long as its shape",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}": "not as long as its shape",
        "{'descr': '<U1', 'fortran_order': False, 'shape': (1,)}": "which is not numeric",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "(" * 500: "damaged",
        "__import__('os').system('false')": "damaged",
    }.items():
        with pytest.raises(InputError, match=complaint):
            read_tensors(npz_member(path, "x.npy", header(text) + b"\0\0\0\0"))
    with pytest.raises(InputError, match="is not an array"):
        read_tensors(npz_member(path, "x.txt", b""))
    for value in ("[1]", '{"a": 1}', "no JSON"):
        np.savez(path, __metadata__=np.array(value))
        with pytest.raises(InputError, match=r"__metadata__|damaged"):
            read_metadata(path)
    np.savez(path, __metadata__=np.zeros(3))
    with pytest.raises(InputError, match="is not one text"):
        read_metadata(path)


def test_unsupported_zip_members_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=np.zeros(1))
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x.npy", b"")
    with pytest.raises(InputError, match=r"has 2 members x\.npy"):
        read_tensors(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("y.npy", b"")
    with pytest.raises(InputError, match=r"y\.npy is encrypted or compressed by a method that is not supported"):
        read_tensors(path)


def test_a_refused_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_tensors("kept.safetensors", {"a": np.zeros(2)})
    before = Path("kept.safetensors").read_bytes()
    for name, tensors, complaint in (
        ("kept.safetensors", {"a": np.array([None])}, "cannot hold object"),
        ("a.safetensors", {"a": np.zeros(2, complex)}, "cannot hold complex128"),
        ("a.safetensors", {"__metadata__": np.zeros(2)}, "cannot name a tensor"),
        ("a.npz", {"a": np.zeros(2)}, "tensors are written to .safetensors"),
        ("nowhere/a.safetensors", {"a": np.zeros(2)}, "no folder nowhere"),
    ):
        with pytest.raises(InputError, match=complaint) as caught:
            write_tensors(name, tensors)
        assert str(caught.value).startswith(f"{name}: ")
    assert Path("kept.safetensors").read_bytes() == before
    assert os.listdir() == ["kept.safetensors"]


def message_of(read: Callable[[Path], Any], path: Path) -> str | None:
    """What a reader says of a file that it refuses; None where it reads it. Nothing else may be raised."""
    try:
        read(path)
    except InputError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth", "a.npz", "a.safetensors"])
def test_damaged_files_never_raise_anything_else(tmp_path: Path, name: str) -> None:
    """Cut short and with bytes changed, half of them near the start, where formats keep what matters."""
    path, source = tmp_path / f"x{Path(name).suffix}", FIXTURES / name
    if not source.exists():
        source = tmp_path / name
        (write_npz if source.suffix == ".npz" else write_tensors)(source, without_bfloat16(), {"format": "x"})
    data, generator = source.read_bytes(), random.Random(0)
    refused = 0
    for attempt in range(150):
        damaged = bytearray(data)
        if attempt % 3 == 0:
            del damaged[generator.randrange(len(data)) :]
        else:
            end = len(data) if attempt % 3 == 1 else min(len(data), 1500)
            for _ in range(generator.choice((1, 1, 2, 16))):
                damaged[generator.randrange(end)] = generator.choice((generator.randrange(256), *b"(.)cRbQtu\x93"))
        path.write_bytes(damaged)
        for read in (read_tensors, read_metadata):
            message = message_of(read, path)
            if message is not None:
                refused += 1
                assert message.startswith(f"{path}: ")
                assert "\n" not in message
    assert refused > 50


def test_needs_no_pytorch() -> None:
    program = "import purinet_jax.weights.tensor_files, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
