"""Published data sets are found in the authors' archives, unpacked folders, mirrors, and folders of all of these."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.made_sets import assert_holds, write_set, zipped

from purinet_jax.data.sets import COPIES_OF_TEST_IMAGES, SETS, TWINS
from purinet_jax.data.sources import find_splits
from purinet_jax.errors import InputError


def test_what_is_known_of_the_sets() -> None:
    counts = {key: tuple(known.counts.values()) for key, known in SETS.items()}
    assert counts == {
        "duts": (10_553, 5_019),
        "ecssd": (1_000,),
        "dut_omron": (5_168,),
        "pascal_s": (850,),
        "hku_is": (4_447,),
        "xpie": (10_000,),
        "sod": (300,),
    }
    for key, known in SETS.items():
        assert known.key == key
        assert known.citation.startswith("@inproceedings{")
        assert known.citation.count("{") == known.citation.count("}")
        assert known.homepage.startswith("http")
        assert known.licence
    assert len(TWINS) == 11
    assert not set(TWINS) & set(TWINS.values())
    assert not set(TWINS) & set(COPIES_OF_TEST_IMAGES)


def duts(root: Path, *splits: str) -> None:
    for split in splits or ("TR", "TE"):
        folder = root / f"DUTS-{split}"
        write_set(folder / f"DUTS-{split}-Image", folder / f"DUTS-{split}-Mask", f"{split}1", f"{split}2")


def packed(root: Path, folder: str, archive: str) -> None:
    """Zips `folder` with its name as `archive`, and removes it."""
    shutil.move(root / folder, root / "packing" / folder)
    zipped(root / "packing", root / archive)
    shutil.rmtree(root / "packing")


def duts_zips(root: Path) -> None:
    duts(root)
    packed(root, "DUTS-TR", "DUTS-TR.zip")
    packed(root, "DUTS-TE", "DUTS-TE.zip")


def duts_zip_beside_its_folder(root: Path) -> None:
    duts_zips(root)
    duts(root)


def duts_deeper_beside_others(root: Path) -> None:
    duts(root / "DUTS")
    write_set(root / "ECSSD" / "images", root / "ECSSD" / "ground_truth_mask", "0001")
    (root / "HKU-IS.zip").write_bytes(b"still being downloaded")


def duts_renamed(root: Path) -> None:
    for split, short in (("Train", "TR"), ("Test", "TE")):
        folder = root / split
        write_set(folder / "images", folder / "masks", f"{short}1", f"{short}2")


def duts_in_one_folder_each(root: Path) -> None:
    for split in ("TR", "TE"):
        write_set(root / f"duts_{split}", root / f"duts_{split}", f"{split}1", f"{split}2")


@pytest.mark.parametrize(
    "make",
    [
        duts,
        duts_zips,
        duts_zip_beside_its_folder,
        duts_deeper_beside_others,
        duts_renamed,
        duts_in_one_folder_each,
    ],
)
def test_duts(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path)
    found = find_splits(SETS["duts"], tmp_path)
    assert list(found) == ["train", "test"]
    assert_holds(found["train"], "TR1", "TR2")
    assert_holds(found["test"], "TE1", "TE2")


def test_part_of_duts(tmp_path: Path) -> None:
    duts(tmp_path / "x", "TE")
    assert list(find_splits(SETS["duts"], tmp_path)) == ["test"]
    assert list(find_splits(SETS["duts"], zipped(tmp_path / "x", tmp_path / "DUTS-TE-300.zip"))) == ["test"]


def test_split_by_the_name_of_what_was_given_or_by_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(tmp_path / "some" / "images", tmp_path / "some" / "masks", "1", "2", "3")
    assert list(find_splits(SETS["duts"], zipped(tmp_path / "some", tmp_path / "DUTS-TR.zip"))) == ["train"]
    unknown = zipped(tmp_path / "some", tmp_path / "download.zip")
    with pytest.raises(InputError, match=r"cannot tell to which part of DUTS the 3 pairs in images with masks belong"):
        find_splits(SETS["duts"], unknown)
    monkeypatch.setitem(SETS["duts"].counts, "test", 3)  # type: ignore[arg-type]
    assert list(find_splits(SETS["duts"], unknown)) == ["test"]


def test_ecssd_as_its_authors_pack_it(tmp_path: Path) -> None:
    root = tmp_path / "downloads" / "new"
    write_set(root / "images", root / "ground_truth_mask", "0001", "0002")
    packed(root, "images", "images.zip")
    packed(root, "ground_truth_mask", "ground_truth_mask.zip")
    for path in (root, root.parent, tmp_path):
        assert_holds(find_splits(SETS["ecssd"], path)["test"], "0001", "0002")


def test_omron_as_its_authors_pack_it(tmp_path: Path) -> None:
    write_set(tmp_path / "DUT-OMRON-image", tmp_path / "pixelwiseGT-new-PNG", "im005", "im006")
    packed(tmp_path, "DUT-OMRON-image", "DUT-OMRON-image.zip")
    packed(tmp_path, "pixelwiseGT-new-PNG", "DUT-OMRON-gt-pixelwise.zip.zip")
    assert_holds(find_splits(SETS["dut_omron"], tmp_path)["test"], "im005", "im006")


def test_pascal_as_its_authors_pack_it(tmp_path: Path) -> None:
    root = tmp_path / "salObj" / "datasets"
    write_set(root / "imgs" / "pascal", root / "masks" / "pascal", "1", "2")
    write_set(root / "imgs" / "ft", root / "masks" / "ft", "1", "2")
    write_set(root / "imgs" / "judd", root / "segments", "x")
    shutil.rmtree(root / "segments")
    for path in (tmp_path, zipped(tmp_path, tmp_path / "salObj.zip")):
        pairs = find_splits(SETS["pascal_s"], path)["test"]
        assert_holds(pairs, "1", "2")
        assert all("imgs/pascal" in image for image in pairs.images)


def test_one_set_among_several(tmp_path: Path) -> None:
    for name in ("HKU-IS", "hku-other", "XPIE"):
        write_set(tmp_path / name / "imgs", tmp_path / name / "gt", f"{name}1")
    with pytest.raises(InputError, match=r"more than one data set for HKU-IS test: 2 candidates: HKU-IS/imgs with"):
        find_splits(SETS["hku_is"], tmp_path)
    shutil.rmtree(tmp_path / "hku-other")
    assert_holds(find_splits(SETS["hku_is"], tmp_path)["test"], "HKU-IS1")
    # A folder of panels is less surely a data set than one called so.
    write_set(tmp_path / "HKU-IS" / "panels", tmp_path / "HKU-IS" / "panels", "9")
    assert_holds(find_splits(SETS["hku_is"], tmp_path)["test"], "HKU-IS1")


def test_another_set_is_not_taken_for_it(tmp_path: Path) -> None:
    duts(tmp_path)
    with pytest.raises(InputError, match="holds other data sets than ECSSD: 2 candidates: DUTS-TE/DUTS-TE-Image with"):
        find_splits(SETS["ecssd"], tmp_path)
    # SOD is also the abbreviation of the field, so the name of a folder inside counts more.
    shutil.move(tmp_path / "DUTS-TR", tmp_path / "sod" / "DUTS-TR")
    shutil.move(tmp_path / "DUTS-TE", tmp_path / "sod" / "DUTS-TE")
    assert list(find_splits(SETS["duts"], tmp_path)) == ["train", "test"]
    with pytest.raises(InputError, match="other data sets than SOD"):
        find_splits(SETS["sod"], tmp_path)


def test_nothing_to_find(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no images with masks; ECSSD comes as images\.zip and"):
        find_splits(SETS["ecssd"], tmp_path)
    with pytest.raises(InputError, match="none: no such file or folder"):
        find_splits(SETS["ecssd"], tmp_path / "none")
    write_set(tmp_path / "images", tmp_path / "masks", "1", "2")
    (tmp_path / "masks" / "2.png").unlink()
    with pytest.raises(InputError, match="no mask in masks for 1 image: 2"):
        find_splits(SETS["ecssd"], tmp_path)
