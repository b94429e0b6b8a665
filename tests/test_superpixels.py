"""Superpixels: SLIC labels, the authors' files, and the cache beside a data set."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from purinet_jax.data.images import to_png
from purinet_jax.data.pairs import check_pairs, open_pairs
from purinet_jax.data.synthetic import draw_example, write_synthetic
from purinet_jax.errors import InputError
from purinet_jax.superpixels import SuperpixelCache, SuperpixelFolder, cache_folder, load_mat, slic_labels


@pytest.fixture(scope="module")
def picture() -> tuple[np.ndarray, np.ndarray]:
    return draw_example(np.random.default_rng(3), (80, 100))


def test_slic_labels(picture: tuple[np.ndarray, np.ndarray]) -> None:
    image, mask = picture
    labels = slic_labels(image)
    assert labels.dtype == np.int32
    assert labels.shape == image.shape[:2]
    assert 100 < labels.max() + 1 <= 250
    np.testing.assert_array_equal(np.unique(labels), np.arange(labels.max() + 1))
    np.testing.assert_array_equal(slic_labels(image.copy()), labels)
    # A superpixel lies in the object or beside it: few pixels differ from their region's majority.
    share = np.bincount(labels.ravel(), mask.ravel()) / np.bincount(labels.ravel())
    assert ((share[labels] > 0.5) == mask).mean() > 0.96
    assert slic_labels(image, 20).max() < 40


@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 3, 3), (1, 50, 3), (40, 40, 3)])
def test_slic_of_tiny_and_plain_images(shape: tuple[int, int, int]) -> None:
    labels = slic_labels(np.full(shape, 7, np.uint8))
    assert labels.shape == shape[:2]
    np.testing.assert_array_equal(np.unique(labels), np.arange(labels.max() + 1))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float64])
def test_mat_starts_at_zero_and_keeps_gaps(tmp_path: Path, dtype: type) -> None:
    labels = np.array([[1, 2, 2], [5, 5, 1]])
    savemat(tmp_path / "a.mat", {"sp": labels.astype(dtype), "other": 1})
    loaded = load_mat(tmp_path / "a.mat")
    assert loaded.dtype == np.int32
    np.testing.assert_array_equal(loaded, labels - 1)
    savemat(tmp_path / "b.mat", {"sp": labels - 1})
    np.testing.assert_array_equal(load_mat(tmp_path / "b.mat"), labels - 1)


def test_unusable_mat_files(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    with pytest.raises(InputError, match="cannot be read"):
        load_mat(path)
    for content in (b"", b"text that is no MATLAB file" * 20):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"a\.mat: not a MATLAB file"):
            load_mat(path)
    for values, message in (
        ({"x": 1}, "no variable `sp`"),
        ({"sp": np.full((2, 2), 0.5)}, "not whole numbers"),
        ({"sp": np.full((2, 2), np.nan)}, "not whole numbers"),
        ({"sp": np.zeros((2, 2, 2))}, "not a matrix"),
        ({"sp": "text"}, "not a matrix"),
    ):
        savemat(path, values)
        with pytest.raises(InputError, match=message):
            load_mat(path)


def test_cache_computes_once(
    tmp_path: Path, picture: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    image, _ = picture
    cache = SuperpixelCache(tmp_path)
    labels = cache.get("a", image)
    np.testing.assert_array_equal(labels, slic_labels(image))
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]

    def fail(*_: object) -> None:
        raise AssertionError("computed again")

    with monkeypatch.context() as patch:
        patch.setattr("purinet_jax.superpixels.slic_labels", fail)
        stored = cache.get("a", image)
        with pytest.raises(AssertionError):  # another image, and other settings, are not served from the file
            cache.get("a", image[::-1])
        with pytest.raises(AssertionError):
            SuperpixelCache(tmp_path, 50).get("a", image)
    assert stored.dtype == np.int32
    np.testing.assert_array_equal(stored, labels)


@pytest.mark.parametrize("damage", [lambda data: data[:-40], lambda data: b"", lambda data: b"text"])
def test_damaged_cache_is_computed_anew(tmp_path: Path, picture: tuple[np.ndarray, np.ndarray], damage: object) -> None:
    image, _ = picture
    cache = SuperpixelCache(tmp_path)
    labels = cache.get("a", image)
    path = tmp_path / "a.png"
    whole = path.read_bytes()
    path.write_bytes(damage(whole))  # type: ignore[operator]
    np.testing.assert_array_equal(cache.get("a", image), labels)
    assert path.read_bytes() == whole


def test_many_labels_take_sixteen_bits(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    cache = SuperpixelCache(tmp_path, regions=900)
    labels = cache.get("a", image)
    assert labels.max() > 255
    np.testing.assert_array_equal(cache.get("a", image), labels)


def test_cache_race(tmp_path: Path, picture: tuple[np.ndarray, np.ndarray]) -> None:
    image, _ = picture
    expected = slic_labels(image)
    with ThreadPoolExecutor(4) as pool:
        for labels in pool.map(lambda _: SuperpixelCache(tmp_path).get("a", image), range(8)):
            np.testing.assert_array_equal(labels, expected)
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_cache_that_cannot_be_written(tmp_path: Path, picture: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(InputError, match=r"a\.png: cannot be written"):
        SuperpixelCache(tmp_path / "none").get("a", picture[0])


def test_where_the_cache_lies(tmp_path: Path) -> None:
    assert cache_folder(tmp_path / "DUTS-TR.zip") == tmp_path / "DUTS-TR.superpixels"
    assert cache_folder(tmp_path / "DUTS-TR/") == tmp_path / "DUTS-TR.superpixels"
    assert (tmp_path / "DUTS-TR.superpixels").is_dir()
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o555)
    fallback = tmp_path / "fallback"
    assert cache_folder(locked / "a.zip", fallback) == fallback / "a.superpixels"
    assert list(locked.iterdir()) == []
    with pytest.raises(InputError, match=r"locked/a\.superpixels: not writable"):
        cache_folder(locked / "a.zip")
    with pytest.raises(InputError, match=r" nor .*: not writable"):
        cache_folder(locked / "a.zip", locked)


def test_pairs_with_computed_superpixels(tmp_path: Path) -> None:
    root = write_synthetic(tmp_path, 2, (24, 32))
    pairs = open_pairs(root, superpixels="slic")
    example = pairs[1]
    np.testing.assert_array_equal(example["superpixels"], slic_labels(example["image"]))
    assert [file.name for file in (tmp_path / "DUTS-TR.superpixels").iterdir()] == ["synthetic_00001.png"]
    assert len(open_pairs(tmp_path, superpixels="slic")) == 2  # the cache beside the data is not data


def test_pairs_with_the_users_superpixels(tmp_path: Path) -> None:
    root = write_synthetic(tmp_path, 2, (24, 32))
    own = tmp_path / "own"
    own.mkdir()
    first, second = (example["mask"].shape for example in open_pairs(root))  # type: ignore[attr-defined]
    labels = np.arange(first[0] * first[1], dtype=np.uint16).reshape(first)
    (own / "synthetic_00000.png").write_bytes(to_png(labels))
    with pytest.raises(InputError, match="no superpixels for 1 image: synthetic_00001"):
        open_pairs(root, superpixels=own)
    savemat(own / "synthetic_00001.mat", {"sp": np.ones(second)})
    pairs = open_pairs(root, superpixels=str(own))
    np.testing.assert_array_equal(pairs[0]["superpixels"], labels)
    np.testing.assert_array_equal(pairs[1]["superpixels"], np.zeros(second))
    assert check_pairs(pairs, progress=False) == []
    savemat(own / "synthetic_00001.mat", {"sp": np.ones((second[0], second[1] + 1))})
    with pytest.raises(InputError, match=r"synthetic_00001\.mat: the superpixels are"):
        pairs[1]
    assert [index for index, _ in check_pairs(pairs, progress=False)] == [1]
    (own / "synthetic_00000.png").write_bytes(to_png(np.zeros((*first, 3), np.uint8)))
    with pytest.raises(InputError, match="one channel"):
        pairs[0]
    shutil.rmtree(own)
    with pytest.raises(InputError, match="cannot be read"):
        SuperpixelFolder(own)
