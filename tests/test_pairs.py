"""Pairs of image and mask are found in folders and zips, and errors name everything that can be wrong with them."""

import io
import logging
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.made_sets import assert_holds, noise_image, rectangle_mask, write_set, zipped
from PIL import Image

from purinet_jax.data import masks as masks_module
from purinet_jax.data import pairs as pairs_module
from purinet_jax.data import storage
from purinet_jax.data.images import to_png
from purinet_jax.data.masks import Coding
from purinet_jax.data.pairs import check_pairs, open_pairs
from purinet_jax.data.results import RESULT_KINDS, without_results
from purinet_jax.data.sets import COPIES_OF_TEST_IMAGES, TWINS
from purinet_jax.data.synthetic import write_synthetic
from purinet_jax.errors import InputError
from purinet_jax.prediction.rendering import KINDS

PIXELS = np.zeros((4, 6, 3), np.uint8)


def fill(folder: Path, *names: str, array: np.ndarray = PIXELS) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(to_png(array))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_synthetic(tmp_path / "data", 6, (20, 40))
    return tmp_path / "data"


def test_synthetic_data_is_seeded_and_sound(data: Path, tmp_path: Path) -> None:
    again = write_synthetic(tmp_path / "again", 2, (20, 40))
    for file in again.rglob("*.*"):
        assert file.read_bytes() == (data / "DUTS-TR" / file.relative_to(again)).read_bytes()
    other = write_synthetic(tmp_path / "other", 2, (20, 40), seed=1)
    assert open_pairs(other).fingerprint != open_pairs(again).fingerprint
    shapes = set()
    for example in open_pairs(data):  # type: ignore[attr-defined]
        shapes.add(example["mask"].shape)
        assert 0.01 < example["mask"].mean() < 0.8
        inside = example["image"][example["mask"] == 1].mean(0)
        outside = example["image"][example["mask"] == 0].mean(0)
        assert np.ptp(inside) > 2 * np.ptp(outside)  # vivid on muted: there is something to learn
    assert len(shapes) > 3
    assert all(20 <= side <= 40 for shape in shapes for side in shape)


@pytest.mark.parametrize("arguments", [{"count": 0}, {"count": 1, "size": (8, 20)}])
def test_synthetic_settings(tmp_path: Path, arguments: dict) -> None:
    with pytest.raises(InputError):
        write_synthetic(tmp_path, **arguments)


def test_folder_parent_and_zip_are_the_same_data(data: Path, tmp_path: Path) -> None:
    outer = open_pairs(data)
    assert outer.names == tuple(f"synthetic_{index:05d}" for index in range(6))
    assert len(outer.fingerprint) == 64
    for other in (open_pairs(data / "DUTS-TR"), open_pairs(zipped(data, tmp_path / "data.zip"))):
        assert other.names == outer.names
        assert other.fingerprint == outer.fingerprint
        for index in range(6):
            for key, value in outer[index].items():
                np.testing.assert_array_equal(other[index][key], value)  # type: ignore[literal-required]


def test_example(data: Path) -> None:
    example = open_pairs(data)[np.int64(3)]
    assert set(example) == {"image", "mask", "index"}
    assert example["image"].shape == (*example["mask"].shape, 3)
    assert set(np.unique(example["mask"])) == {0, 1}
    assert example["index"] == 3
    for wrong in (6, -1):
        with pytest.raises(IndexError):
            open_pairs(data)[wrong]


def test_pickled_zip_is_reopened(data: Path, tmp_path: Path) -> None:
    pairs = open_pairs(zipped(data, tmp_path / "data.zip"))
    pairs[0]
    copy = pickle.loads(pickle.dumps(pairs))
    np.testing.assert_array_equal(copy[5]["image"], pairs[5]["image"])
    assert copy.fingerprint == pairs.fingerprint


def test_subset(data: Path) -> None:
    pairs = open_pairs(data)
    part = pairs.subset([4, 1])
    assert part.names == (pairs.names[4], pairs.names[1])
    assert part[0]["index"] == 0
    np.testing.assert_array_equal(part[0]["image"], pairs[4]["image"])
    assert part.fingerprint != pairs.fingerprint
    assert part.subset([1]).names == (pairs.names[1],)
    with pytest.raises(IndexError):
        pairs.subset([6])


def test_without_leaks(tmp_path: Path) -> None:
    (copy,), (second, first), (lonely, _) = COPIES_OF_TEST_IMAGES, *list(TWINS.items())[:2]
    write_set(tmp_path / "images", tmp_path / "masks", *sorted([copy, first, second, lonely, "other"]))
    for path in (tmp_path, zipped(tmp_path, tmp_path / "set.zip")):
        pairs = open_pairs(path)
        kept = pairs.without_leaks()
        assert kept.names == tuple(sorted([first, lonely, "other"]))  # what has no twin here is the only copy
        assert kept.fingerprint != pairs.fingerprint
        assert kept.without_leaks().names == kept.names


def test_fingerprint_follows_names_and_sizes(data: Path) -> None:
    before = open_pairs(data).fingerprint
    file = data / "DUTS-TR/DUTS-TR-Mask/synthetic_00000.png"
    file.write_bytes(file.read_bytes() + b"\0")
    assert open_pairs(data).fingerprint != before


IMAGE_FOLDERS = ("images", "Imgs", "image", "im", "img", "IMAGES", "DUTS-TR-Image", "DUT-OMRON-image", "Test-Image")
MASK_FOLDERS = ("masks", "GT", "gt", "ground_truth_mask", "groundtruth", "ground truth", "Mask", "mask",
                "pixelwiseGT-new-PNG", "DUTS-TR-Mask")  # fmt: skip


@pytest.mark.parametrize("masks", MASK_FOLDERS)
@pytest.mark.parametrize("images", IMAGE_FOLDERS)
def test_folder_names(tmp_path: Path, images: str, masks: str) -> None:
    depth = (len(images) + len(masks)) % 3  # one in three right here, one and two folders down
    root = tmp_path / "set" / "/".join(["DUTS", "deeper"][:depth])
    write_set(root / images, root / masks, "a", "b")
    fill(root / "edges", "a.png")
    (root / images / "Thumbs.db").touch()
    fill(root / masks, "._a.png")
    fill(tmp_path / "set" / "set.superpixels", "a.png", "b.png")
    found = open_pairs(tmp_path / "set")
    assert_holds(found, "a", "b")
    in_zip = open_pairs(zipped(tmp_path / "set", tmp_path / "set.zip"))
    assert_holds(in_zip, "a", "b")
    assert in_zip.fingerprint == found.fingerprint


@pytest.mark.parametrize("kind", [".jpg", ".jpeg", ".JPG", ".bmp"])
@pytest.mark.parametrize("folder", ["", "Imgs", "ECSSD/all"])
def test_images_and_masks_in_one_folder(tmp_path: Path, folder: str, kind: str) -> None:
    root = tmp_path / "set" / folder
    write_set(root, root, "0001", "0002", "0003", kind=kind)
    for path in (tmp_path / "set", zipped(tmp_path / "set", tmp_path / "set.zip")):
        assert_holds(open_pairs(path), "0001", "0002", "0003")
    (root / "0002.png").unlink()
    with pytest.raises(InputError, match=r"no mask in \S+ for 1 image: 0002"):
        open_pairs(tmp_path / "set")


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("imgs/pascal", "masks/pascal"),
        ("images/images", "ground_truth_mask/ground_truth_mask"),
        ("DUT-OMRON-image/DUT-OMRON-image", "gt-pixelwise.zip/pixelwiseGT-new-PNG"),
        ("images/test", "masks/test"),
        ("one/images", "other/GT"),
    ],
)
def test_folders_further_apart(tmp_path: Path, images: str, masks: str) -> None:
    write_set(tmp_path / "set" / images, tmp_path / "set" / masks, "1", "2")
    fill(tmp_path / "set" / "imgs" / "judd", "x.png")
    for path in (tmp_path / "set", zipped(tmp_path / "set", tmp_path / "set.zip")):
        assert_holds(open_pairs(path), "1", "2")


@pytest.mark.parametrize(("images", "masks"), [("a", "b"), ("b", "a"), ("sources", "labels"), ("images", "labels")])
def test_folders_whose_names_do_not_tell(tmp_path: Path, images: str, masks: str) -> None:
    write_set(tmp_path / "set" / images, tmp_path / "set" / masks, "1", "2", kind=".png")
    for path in (tmp_path / "set", zipped(tmp_path / "set", tmp_path / "set.zip")):
        assert_holds(open_pairs(path), "1", "2")
    # Two folders of photographs are not a data set, nor are two of masks.
    for array in (noise_image(0), rectangle_mask(0)):
        fill(tmp_path / "other" / "a", "1.png", "2.png", array=array)
        fill(tmp_path / "other" / "b", "1.png", "2.png", array=array)
        with pytest.raises(InputError, match="no folders of images"):
            open_pairs(tmp_path / "other")


@pytest.mark.parametrize("values", [(0, 1), (0, 60, 120, 180, 240)])
def test_masks_of_other_values_are_recognised(tmp_path: Path, values: tuple[int, ...]) -> None:
    mask = np.array(values, np.uint8)[np.random.default_rng(0).integers(0, len(values), (24, 32))]
    fill(tmp_path / "first", "1.png", "2.png", array=mask)
    fill(tmp_path / "second", "1.png", "2.png", array=noise_image(0))
    (tmp_path / "second" / "1.png").write_bytes(b"damaged")
    assert open_pairs(tmp_path).masks == ("first/1.png", "first/2.png")


def test_other_folders_do_not_hide_one_that_is_named(tmp_path: Path) -> None:
    write_set(tmp_path / "images", tmp_path / "masks", "1", "2")
    write_set(tmp_path / "more" / "panels", tmp_path / "more" / "panels", "1", "2")
    write_set(tmp_path / "some" / "left", tmp_path / "some" / "right", "1", "2")
    assert open_pairs(tmp_path).images == ("images/1.jpg", "images/2.jpg")


def test_an_entire_disk_is_not_walked(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_FOLDER_LIMIT", 3)
    with pytest.raises(InputError, match="holds more than 3 folders"):
        open_pairs(data)
    monkeypatch.setattr(storage, "_FOLDER_LIMIT", 4)
    assert len(open_pairs(data)) == 6


def test_zip_from_a_mac(data: Path, tmp_path: Path) -> None:
    fill(data / "__MACOSX/DUTS-TR/DUTS-TR-Image", "._synthetic_00000.jpg")
    fill(data / "__MACOSX/DUTS-TR/DUTS-TR-Mask", "x.png")
    assert len(open_pairs(zipped(data, tmp_path / "data.zip"))) == 6


def lacks_mask(root: Path) -> None:
    fill(root / "images", "a.png", "b.png", "c.png", "d.png", "e.png")
    fill(root / "masks", "e.png")


def lacks_image(root: Path) -> None:
    fill(root / "images", "a.png")
    fill(root / "masks", "a.png", "b.png")


def same_stem(root: Path) -> None:
    fill(root / "images", "a.png", "a.jpg")
    fill(root / "masks", "a.png")


def empty_folders(root: Path) -> None:
    (root / "images").mkdir()
    (root / "masks").mkdir()


def two_sets(root: Path) -> None:
    for name in ("one", "two"):
        fill(root / name / "images", "a.png")
        fill(root / name / "masks", "a.png")


def test_a_circular_link_is_named_if_it_would_be_an_image(tmp_path: Path) -> None:
    write_set(tmp_path / "images", tmp_path / "masks", "a")
    (tmp_path / "images" / "README").symlink_to("README")
    assert len(open_pairs(tmp_path)) == 1
    (tmp_path / "images" / "b.jpg").symlink_to("b.jpg")
    with pytest.raises(InputError, match=r"images/b\.jpg: cannot be read: Too many levels of symbolic links"):
        open_pairs(tmp_path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lacks_mask, "no mask in masks for 4 images: a, b, c, …"),
        (lacks_image, "no image in images for 1 mask: b"),
        (same_stem, r"two files named a: images/a\.\w+ and images/a\.\w+"),
        (empty_folders, "no folders of images and of masks, such as"),
        (two_sets, "more than one data set: 2 candidates: one/images with one/masks"),
        (lambda root: None, "no folders of images"),
    ],
)
def test_wrong_data_sets(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    root = tmp_path / "set"
    root.mkdir()
    make(root)
    for path in (root, zipped(root, tmp_path / "set.zip")):
        with pytest.raises(InputError, match=f"^{re.escape(str(path))}: {message}"):
            open_pairs(path)


def test_missing_and_not_a_zip(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none: no such file or folder"):
        open_pairs(tmp_path / "none")
    (tmp_path / "a.zip").write_bytes(b"text")
    with pytest.raises(InputError, match=r"a\.zip: not a zip file"):
        open_pairs(tmp_path / "a.zip")


@pytest.mark.parametrize(
    "member",
    ["/etc/a.png", "../a.png", "images/../../a.png", "images\\..\\a.png", "C:/a.png", "C:\\a.png", "\\\\host\\a.png"],
)
def test_zip_member_that_leaves_the_folder(data: Path, tmp_path: Path, member: str) -> None:
    path = zipped(data, tmp_path / "data.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(member, b"x")
    with pytest.raises(InputError, match="leaves the folder"):
        open_pairs(path)


def test_zip_with_backslashes(data: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "windows.zip", "w") as archive:
        for file in sorted(data.rglob("*.*")):
            information = zipfile.ZipInfo()
            information.filename = str(file.relative_to(data)).replace("/", "\\")
            archive.writestr(information, file.read_bytes())
        folder = zipfile.ZipInfo()
        folder.filename = "DUTS-TR\\"
        archive.writestr(folder, b"")
    pairs, expected = open_pairs(tmp_path / "windows.zip"), open_pairs(data)
    assert pairs.fingerprint == expected.fingerprint
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(pairs))[1]["mask"], expected[1]["mask"])


def test_damage_inside_a_zip_is_named(data: Path, tmp_path: Path) -> None:
    path = zipped(data, tmp_path / "data.zip")
    pairs = open_pairs(path)
    image = (data / "DUTS-TR" / "DUTS-TR-Image" / "synthetic_00002.jpg").read_bytes()
    contents = path.read_bytes()
    at = contents.index(image) + len(image) // 2
    path.write_bytes(contents[:at] + b"\0\0\0\0" + contents[at + 4 :])
    with pytest.raises(InputError, match=r"data\.zip/DUTS-TR/DUTS-TR-Image/synthetic_00002\.jpg: damaged"):
        pairs[2]


def test_sizes_must_match(tmp_path: Path) -> None:
    fill(tmp_path / "images", "a.png")
    fill(tmp_path / "masks", "a.png", array=np.eye(3, 6, dtype=np.uint8) * 255)
    with pytest.raises(InputError, match=r"images/a\.png: the image has 6×4 .* masks/a\.png has 6×3"):
        open_pairs(tmp_path)[0]


def test_check_finds_all_that_is_bad(data: Path, tmp_path: Path) -> None:
    root = data / "DUTS-TR"
    assert check_pairs(open_pairs(data), progress=False) == []
    image = root / "DUTS-TR-Image/synthetic_00001.jpg"
    image.write_bytes(image.read_bytes()[:-100])
    (root / "DUTS-TR-Mask/synthetic_00003.png").write_bytes(b"")
    (root / "DUTS-TR-Mask/synthetic_00004.png").write_bytes(to_png(np.zeros((3, 3), np.uint8)))
    for path in (data, zipped(data, tmp_path / "data.zip")):
        pairs = open_pairs(path)
        bad = check_pairs(pairs, workers=2, progress=False)
        assert [index for index, _ in bad] == [1, 3, 4]
        for (_, reason), words in zip(bad, ("damaged", "empty", "has 3×3"), strict=True):
            assert words in reason
            assert str(path) in reason
        good = pairs.subset(sorted(set(range(6)) - {index for index, _ in bad}))
        assert check_pairs(good, progress=False) == []


def test_check_shows_progress(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_pairs(open_pairs(data))
    assert "6/6" in capsys.readouterr().err


def test_check_starts_a_thread_for_each_core_that_the_process_may_use(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    def executor(threads: int) -> ThreadPoolExecutor:
        started.append(threads)
        return ThreadPoolExecutor(threads)

    monkeypatch.setattr(pairs_module, "ThreadPoolExecutor", executor)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    assert check_pairs(open_pairs(data), progress=False) == []
    assert started == [3]


OBJECT = np.zeros((24, 32), bool)
OBJECT[6:18, 8:20] = True
SMALLER = OBJECT & (np.arange(32) < 14)
RIM = np.zeros((24, 32), bool)
RIM[5:19, 7:21] = True
RIM &= ~OBJECT


def labelled(inside: int, other: int = 0, rim: int = 0, dtype: type = np.uint8) -> np.ndarray:
    """Labels [24, 32] of the object, of a part of it if `other` is not 0, and of the pixels around it."""
    values = np.where(OBJECT, inside, 0) + np.where(RIM, rim, 0)
    return np.where(SMALLER & (other > 0), other, values).astype(dtype)


def palette_of(values: np.ndarray, colours: list[int]) -> Image.Image:
    image = Image.fromarray(values).convert("P")
    image.putpalette(colours)
    return image


def in_colours(*colours: tuple[int, int, int]) -> np.ndarray:
    return np.array([(0, 0, 0), *colours], np.uint8)[labelled(1, len(colours) - 1 and 2)]


def with_alpha(colours: np.ndarray) -> np.ndarray:
    return np.dstack([colours, OBJECT * np.uint8(255)])


VOC = [0, 0, 0, *[value for label in range(1, 21) for value in (label * 12, 128, 64)]]

CODINGS: dict[str, tuple[np.ndarray | Image.Image, str]] = {
    "red": (in_colours((255, 0, 0)), "in colour, all that is not black is the object"),
    "dark blue": (in_colours((0, 0, 90)), "in colour"),
    "two colours": (in_colours((200, 0, 0), (0, 30, 0)), "in colour"),
    "labels 0 and 2": (labelled(2), "labels 0 and 2, 2 is the object"),
    "labels 0 and 1": (labelled(1), "labels 0 and 1, 1 is the object"),
    "labels 0, 1 and 2": (labelled(1, 2), "labels 0, 1 and 2, 1 and 2 are the object"),
    "labels 0 and 15": (labelled(15), "labels 0 and 15"),
    "labels of 16 bits": (labelled(300, 1, dtype=np.uint16), "labels 0"),
    "labels in RGB": (np.repeat(labelled(2)[..., None], 3, axis=2), "labels 0 and 2"),
    "white LA": (np.dstack([np.full((24, 32), 255, np.uint8), OBJECT * np.uint8(255)]), "alpha that varies"),
    "white RGBA": (with_alpha(np.full((24, 32, 3), 255, np.uint8)), "alpha that varies"),
    "cut-out": (with_alpha(noise_image(0)), "alpha that varies"),
    "red palette": (palette_of(labelled(1), [0, 0, 0, 128, 0, 0]), "in colour"),
    "grey": (OBJECT * np.uint8(255), ""),
    "dim grey": (OBJECT * np.uint8(200), ""),
    "grey with noise": (np.where(np.eye(24, 32, dtype=bool) & RIM, 1, OBJECT * 255).astype(np.uint8), ""),
}


def coded(root: Path, *masks: np.ndarray | Image.Image) -> Path:
    """Writes a set of these masks."""
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    for index, mask in enumerate(masks):
        image = Image.fromarray(mask) if isinstance(mask, np.ndarray) else mask
        image.save(root / "masks" / f"{index}.png")
        Image.fromarray(noise_image(index)).save(root / "images" / f"{index}.png")
    return root


@pytest.mark.parametrize("coding", CODINGS)
def test_codings_of_masks(tmp_path: Path, coding: str, caplog: pytest.LogCaptureFixture) -> None:
    mask, said = CODINGS[coding]
    path = coded(tmp_path / "set", mask, mask)
    with caplog.at_level(logging.INFO, "purinet_jax"):
        for opened in (path, path, zipped(path, tmp_path / "set.zip")):
            pairs = open_pairs(opened)
            np.testing.assert_array_equal(pairs[1]["mask"], OBJECT)
    assert check_pairs(pickle.loads(pickle.dumps(pairs)), progress=False) == []
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == (2 if said else 0)  # once per set
    assert all(f": masks: {said}" in line for line in lines)


def test_a_void_value_is_no_object_only_if_said_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = coded(tmp_path, labelled(1, rim=255))
    with caplog.at_level(logging.INFO, "purinet_jax"):
        both, one = open_pairs(path), open_pairs(path, object_labels=[1])
    np.testing.assert_array_equal(both[0]["mask"], OBJECT | RIM)
    np.testing.assert_array_equal(one[0]["mask"], OBJECT)
    assert "labels 0, 1 and 255, 1 and 255 are the object; if 255 is void" in caplog.text
    assert "masks: 1 is the object, as --object-labels says" in caplog.text
    assert both.fingerprint != one.fingerprint  # a run goes on with the masks that it began with


@pytest.mark.parametrize(
    ("mask", "labels", "problem"),
    [
        (np.zeros((24, 32), np.uint8), (), "no mask holds an object, in 2 masks read as grey"),
        (np.full((24, 32), 255, np.uint8), (), "every pixel of every mask is object"),
        (OBJECT.astype(np.uint8) + np.uint8(1), (), "every pixel of every mask is object, .* labels 1 and 2"),
        (np.tile(np.arange(100, dtype=np.uint8), (24, 1)), (), "no mask holds an object"),
        (with_alpha(noise_image(0))[..., :3], (), "every pixel of every mask is object, .* in colour"),
        (labelled(2), (7,), "no mask holds an object, .* 7 is the object"),
        (labelled(255, 1, rim=255), (), "0, 1 and 255, which are grey, or class labels"),
        (palette_of(labelled(15), VOC), (), r"masks/\d\.png: a palette of several classes; .* --object-labels 15"),
        (in_colours((255, 0, 0)), (1,), "labels are whole numbers or a palette's indices"),
    ],
)
def test_masks_that_are_not_understood(tmp_path: Path, mask: np.ndarray, labels: tuple, problem: str) -> None:
    path = coded(tmp_path, mask, mask)
    with pytest.raises(InputError, match=problem) as caught:
        open_pairs(path, object_labels=labels)
    assert labels == (1,) or "--object-labels" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_labels_that_the_user_names(tmp_path: Path) -> None:
    for index, mask in enumerate((labelled(15), palette_of(labelled(15), VOC), labelled(15, dtype=np.uint16))):
        pairs = open_pairs(coded(tmp_path / str(index), mask, labelled(3)), object_labels=[15])
        np.testing.assert_array_equal(pairs[0]["mask"], OBJECT)
        assert not pairs[1]["mask"].any()


def test_one_mask_is_read_as_its_set_is(tmp_path: Path) -> None:
    grey = OBJECT * np.uint8(255)
    pairs = open_pairs(coded(tmp_path / "grey", grey, grey, (RIM & np.eye(24, 32, dtype=bool)) * np.uint8(3)))
    assert not pairs[2]["mask"].any()  # nearly black, among grey masks
    pairs = open_pairs(coded(tmp_path / "labels", labelled(1), labelled(3)))
    np.testing.assert_array_equal(pairs[1]["mask"], OBJECT)
    pairs = open_pairs(coded(tmp_path / "red", in_colours((255, 0, 0)), grey))
    np.testing.assert_array_equal(pairs[1]["mask"], OBJECT)
    with pytest.raises(InputError, match=r"1\.png: holds grey values, but .* class labels"):
        replace(pairs, coding=Coding("labels"), masks=("masks/0.png", "masks/1.png")).grey_mask(
            1, encoded_png(grey - 9)
        )


def encoded_png(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def test_an_object_is_looked_for_in_all_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    black = np.zeros((24, 32), np.uint8)
    path = coded(tmp_path, *[black] * 9, OBJECT * np.uint8(255))
    monkeypatch.setattr(masks_module, "_SAMPLES", 2)
    assert open_pairs(path)[9]["mask"].sum() == OBJECT.sum()


def test_own_results_next_to_images_are_left_out(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = open_pairs(data)
    images = data / "DUTS-TR" / "DUTS-TR-Image"
    for name in before.names:
        for kind in RESULT_KINDS:
            (images / f"{name}_{kind}.png").write_bytes(to_png(PIXELS))
        (images / f"{name}.jpg_map.png").write_bytes(to_png(PIXELS))
    with caplog.at_level(logging.INFO, "purinet_jax"):
        pairs = open_pairs(data)
    assert (pairs.names, pairs.images, pairs.fingerprint) == (before.names, before.images, before.fingerprint)
    assert "DUTS-TR/DUTS-TR-Image: 36 results of purinet predict are left out" in caplog.text
    assert open_pairs(zipped(data, tmp_path / "data.zip")).names == before.names


def test_own_results_in_one_folder_of_images_and_masks(tmp_path: Path) -> None:
    write_set(tmp_path, tmp_path, "1", "2")
    fill(tmp_path, "1.jpg_map.png", "1.png_map.png", "2.jpg_map.png", "2.png_map.png")
    assert_holds(open_pairs(tmp_path), "1", "2")


def test_images_named_like_results_are_kept_if_they_have_masks(tmp_path: Path) -> None:
    write_set(tmp_path / "images", tmp_path / "masks", "road", "road_map", "road_mask")
    assert_holds(open_pairs(tmp_path), "road", "road_map", "road_mask")
    fill(tmp_path / "images", "lake_map.png")  # of no other image
    with pytest.raises(InputError, match="no mask in masks for 1 image: lake_map"):
        open_pairs(tmp_path)


def test_maps_are_told_from_images_and_other_results() -> None:
    files = ["x/a.jpg", "x/a_map.png", "x/a_mask.png", "x/a_cutout.png", "x/b_mask.png", "x/c.jpg_map.png", "x/d.png"]
    maps, others = without_results(files, {"a", "b", "c", "d"})
    assert maps == {"a": "x/a_map.png", "b": "x/b_mask.png", "c": "x/c.jpg_map.png"}
    assert others == ["x/d.png"]
    assert without_results(["a_map.png", "y/a_map.png"], {"a"}) == ({"a": "a_map.png"}, ["y/a_map.png"])
    assert without_results(["a_map.png", "a.png"], {"a", "a_map"}) == ({}, ["a_map.png", "a.png"])
    assert RESULT_KINDS == KINDS


def test_folders_of_classes_are_one_set(tmp_path: Path) -> None:
    for index, kind in enumerate(("cats", "dogs", "great apes")):
        write_set(tmp_path / "images" / kind, tmp_path / "masks" / kind, f"{index}a", f"{index}b")
    pairs = open_pairs(tmp_path)
    assert pairs.names == ("0a", "0b", "1a", "1b", "2a", "2b")
    assert pairs.masks[2] == "masks/dogs/1a.png"
    fill(tmp_path / "images" / "dogs", "1c.png")
    with pytest.raises(InputError, match="no mask in masks for 1 image: 1c"):
        open_pairs(tmp_path)


def test_classes_may_use_the_same_names(tmp_path: Path) -> None:
    for kind in ("cats", "dogs"):
        write_set(tmp_path / "a" / "images" / kind, tmp_path / "a" / "masks" / kind, "1", "2")
    for path in (tmp_path, tmp_path / "a"):
        pairs = open_pairs(path)
        assert pairs.names == ("cats/1", "cats/2", "dogs/1", "dogs/2")
        assert pairs[3]["image"].shape == (24, 32, 3)
    fill(tmp_path / "a" / "images" / "cats", "1.png")
    with pytest.raises(InputError, match="two files named 1"):
        open_pairs(tmp_path)


def test_published_sets_are_no_classes(tmp_path: Path) -> None:
    for name in ("ECSSD", "PASCAL-S"):
        write_set(tmp_path / "images" / name, tmp_path / "masks" / name, f"{name}1")
    with pytest.raises(InputError, match="more than one data set"):
        open_pairs(tmp_path)
