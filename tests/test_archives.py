"""Tar archives are read as folders are, and damaged or hostile ones are refused with the reason."""

import errno
import gc
import gzip
import io
import os
import pickle
import shutil
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pytest
from helpers.made_sets import assert_holds, write_set

import purinet_jax.data.archives
from purinet_jax.data import open_pairs
from purinet_jax.data.archives import open_archive, without_ending
from purinet_jax.data.sets import SETS
from purinet_jax.data.sources import find_splits
from purinet_jax.errors import InputError
from purinet_jax.evaluation import open_data, open_maps


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_set(tmp_path / "XPIE" / "images", tmp_path / "XPIE" / "masks", "a", "b", "c")
    return tmp_path / "XPIE"


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that temporary files are made in."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def tarred(folder: Path, path: Path, mode: str = "w", name: str | None = None) -> Path:
    with tarfile.open(path, mode) as archive:
        archive.add(folder, name or folder.name)
    return path


def with_member(path: Path, member: tarfile.TarInfo, data: bytes = b"") -> Path:
    with tarfile.open(path, "w") as archive:
        archive.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize(("ending", "mode"), [(".tar", "w"), (".tar.gz", "w:gz"), (".tgz", "w:gz")])
def test_a_tar_is_the_same_data_as_its_folder(folder: Path, tmp_path: Path, ending: str, mode: str) -> None:
    for name in ("XPIE", "."):  # `tar c XPIE` and `tar c .`
        pairs = open_pairs(tarred(folder, tmp_path / f"XPIE{ending}", mode, name))
        assert_holds(pairs, "a", "b", "c")
        assert pairs.fingerprint == open_pairs(folder).fingerprint


def test_names_of_sets_and_methods_are_without_the_ending(folder: Path, tmp_path: Path) -> None:
    path = tarred(folder, tmp_path / "XPIE.tar.gz", "w:gz")
    assert open_data(path).name == "XPIE"
    assert open_maps(tarred(folder / "masks", tmp_path / "U2Net.tar")).name == "U2Net"
    names = {"DUTS-TE.tar.gz": "DUTS-TE", "a.zip.zip": "a", "B.TGZ": "B", "tar": "tar", "maps.v2": "maps.v2"}
    assert {name: without_ending(name) for name in names} == names


def test_a_published_set_is_found_in_its_tar(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "downloads").mkdir()
    tarred(folder, tmp_path / "downloads" / "XPIE.tar.gz", "w:gz")
    for path in (tmp_path / "downloads", tmp_path / "downloads" / "XPIE.tar.gz"):
        assert_holds(find_splits(SETS["xpie"], path)["test"], "a", "b", "c")


def test_a_compressed_tar_is_decompressed_once_and_leaves_nothing(
    folder: Path, tmp_path: Path, temporary: Path
) -> None:
    pairs = open_pairs(tarred(folder, tmp_path / "XPIE.tar.gz", "w:gz"))
    copy = pickle.loads(pickle.dumps(pairs))
    assert_holds(copy, "a", "b", "c")
    assert len(list(temporary.iterdir())) == 1
    del copy
    gc.collect()
    assert_holds(pairs, "a", "b", "c")
    del pairs
    gc.collect()
    assert list(temporary.iterdir()) == []
    tarred_plain = open_pairs(tarred(folder, tmp_path / "XPIE.tar"))
    assert_holds(pickle.loads(pickle.dumps(tarred_plain)), "a", "b", "c")
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("name", ["/etc/a.png", "../a.png", "images/../../a.png", "images\\..\\a.png", "C:/a.png"])
def test_a_member_that_leaves_the_folder(tmp_path: Path, name: str) -> None:
    path = with_member(tmp_path / "set.tar", tarfile.TarInfo(name))
    with pytest.raises(InputError, match=r"set\.tar: the member .* leaves the folder"):
        open_pairs(path)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (tarfile.SYMTYPE, "a link"),
        (tarfile.LNKTYPE, "a link"),
        (tarfile.FIFOTYPE, "not a plain file"),
        (tarfile.CHRTYPE, "not a plain file"),
    ],
)
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes, words: str) -> None:
    member = tarfile.TarInfo("images/a.png")
    member.type, member.linkname = kind, "/etc/passwd"
    with pytest.raises(InputError, match=f"the member 'images/a.png' is {words}"):
        open_pairs(with_member(tmp_path / "set.tar", member))


def test_bombs_are_refused(tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(purinet_jax.data.archives, "_MEMBER_LIMIT", 1 << 20)
    bomb = tmp_path / "bomb.tar.gz"
    bomb.write_bytes(gzip.compress(bytes(50 << 20)))
    with pytest.raises(InputError, match=r"bomb\.tar\.gz: unpacks to more than [\d,]+ bytes"):
        open_pairs(bomb)
    gc.collect()
    assert list(temporary.iterdir()) == []

    member = tarfile.TarInfo("a.png")
    member.size = (1 << 20) + 1
    large = open_archive(with_member(tmp_path / "large.tar", member, bytes(member.size)))
    assert large.images() == [("a.png", member.size)]
    with pytest.raises(InputError, match=r"large\.tar/a\.png: unpacks to 1,048,577 bytes"):
        large.read("a.png")

    # A name that is two megabytes long, which the format keeps in a header of its own.
    with tarfile.open(tmp_path / "names.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("a" * (2 << 20)))
    with pytest.raises(InputError, match=r"names\.tar: has a header of more than [\d,]+ bytes"):
        open_pairs(tmp_path / "names.tar")


@pytest.mark.parametrize("ending", [".tar", ".tar.gz"])
def test_damage_is_named(folder: Path, tmp_path: Path, ending: str) -> None:
    path = tarred(folder, tmp_path / f"set{ending}", "w:gz" if ending.endswith("gz") else "w")
    complete = path.read_bytes()
    for length in (300, len(complete) // 2):
        path.write_bytes(complete[:length])
        with pytest.raises(InputError, match=rf"set{ending}: "):
            open_pairs(path)
    rng = np.random.default_rng(0)
    messages = []
    for _ in range(100):
        values = np.frombuffer(complete, np.uint8).copy()
        values[rng.integers(0, len(values), 20)] ^= 255
        path.write_bytes(values.tobytes())
        try:
            pairs = open_pairs(path)
            _ = [pairs[index] for index in range(len(pairs))]
        except InputError as error:
            messages.append(str(error))
    assert len(messages) > 50
    assert [line for line in messages if not line.startswith(str(path))] == []


def test_a_zip_of_a_version_that_is_not_known_and_a_full_disk_are_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytearray(Path(shutil.make_archive(str(tmp_path / "set"), "zip", folder.parent, folder.name)).read_bytes())
    data[data.index(b"PK\x01\x02") + 6] = 99
    (tmp_path / "set.zip").write_bytes(data)
    with pytest.raises(InputError, match=r"set\.zip: not a zip file, or a damaged one: zip file version 9\.9"):
        open_pairs(tmp_path / "set.zip")
    tarred(folder, tmp_path / "set.tar.gz", "w:gz")

    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("purinet_jax.data.archives.tempfile.mkstemp", full)
    with pytest.raises(InputError, match=r"set\.tar\.gz: does not fit, decompressed, into .*temporary \(TMPDIR\)"):
        open_pairs(tmp_path / "set.tar.gz")


def test_a_tar_that_shrinks_while_it_is_read(folder: Path, tmp_path: Path) -> None:
    path = tarred(folder, tmp_path / "set.tar")
    pairs = open_pairs(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputError, match=r"set\.tar/XPIE/masks/c\.png: damaged in the tar: it ends early"):
        pairs.storage.read(pairs.masks[2])
    path.unlink()
    with pytest.raises(InputError, match=r"set\.tar/XPIE/masks/c\.png: cannot be read"):
        pairs.storage.read(pairs.masks[2])


@pytest.mark.parametrize(
    ("name", "signature", "kind"),
    [
        ("HKU-IS.rar", b"Rar!\x1a\x07\x01\x00", "rar"),
        ("set.7z", b"7z\xbc\xaf\x27\x1c\x00", "7z"),
        ("set.tar.xz", b"\xfd7zXZ\x00", "xz"),
        ("set.tar.bz2", b"BZh91AY", "bzip2"),
    ],
)
def test_other_archives_are_refused_with_the_way_out(tmp_path: Path, name: str, signature: bytes, kind: str) -> None:
    path = tmp_path / name
    path.write_bytes(signature + bytes(100))
    with pytest.raises(InputError) as raised:
        open_pairs(path)
    assert str(raised.value) == f"{path}: a {kind} archive, which is not read; unpack it (unar {name}) first"
