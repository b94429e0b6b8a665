"""Augmentation keeps an example's parts together, and batches are the same for any number of workers and shards."""

import os
import subprocess
import sys
import threading
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from purinet_jax.data.augment import (
    augment,
    jitter_colours,
    random_crop,
    resize_image,
    resize_labels,
    sample_image,
    sample_labels,
    sampling,
)
from purinet_jax.data.pairs import Pairs, open_pairs
from purinet_jax.data.pipeline import Batch, Batches, evaluation_batches, training_batches
from purinet_jax.data.synthetic import draw_example, write_synthetic
from purinet_jax.errors import InputError

COUNT = 7


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("pipeline"), COUNT, (24, 40))


@pytest.fixture(scope="module")
def pairs(root: Path) -> Pairs:
    folder = root.parent / "superpixels"
    folder.mkdir()
    plain = open_pairs(root)
    for index, name in enumerate(plain.names):
        rows, columns = np.indices(plain[index]["mask"].shape) // 4
        savemat(folder / f"{name}.mat", {"sp": rows * 10 + columns + 1})
    return open_pairs(root, superpixels=folder)


def take(batches: Batches, count: int) -> list[Batch]:
    with batches:
        return list(islice(batches, count))


def equal(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)
        for a, b in zip(first, second, strict=True)
    )


def test_resizing() -> None:
    labels = np.arange(12, dtype=np.int32).reshape(3, 4) * 100_000
    np.testing.assert_array_equal(resize_labels(labels, 6, 8), labels.repeat(2, 0).repeat(2, 1))
    ramp = np.tile(np.arange(0, 240, 10, dtype=np.uint8), (6, 1))
    inner = resize_image(ramp, 6, 12)[0, 1:-1]  # at the edges the filter is cut off
    np.testing.assert_array_equal(inner, np.arange(25, 220, 20))  # centres aligned
    assert resize_image(np.zeros((5, 6, 3), np.uint8), 7, 9).shape == (7, 9, 3)


def test_sampling_quarter_turns_and_mirroring_is_exact() -> None:
    values = np.arange(81, dtype=np.int32).reshape(9, 9)
    image = np.repeat(values.astype(np.uint8)[..., None], 3, axis=2)
    for mirrored, source in ((False, values), (True, values[:, ::-1])):
        matrix = sampling(9, 9, 9, mirrored, 90)
        np.testing.assert_array_equal(sample_labels(values, matrix, 9), np.rot90(source))
        np.testing.assert_array_equal(sample_image(image, matrix, 9)[..., 1], np.rot90(source))


def test_sampling_without_rotation_equals_resizing() -> None:
    labels = np.random.default_rng(0).integers(0, 9, (20, 30)).astype(np.int32)
    np.testing.assert_array_equal(
        sample_labels(labels, sampling(20, 30, 56, False, 0), 56), resize_labels(labels, 56, 56)
    )
    smooth = (np.add.outer(np.arange(20) * 4, np.arange(30) * 5)).astype(np.uint8)[..., None].repeat(3, 2)
    difference = sample_image(smooth, sampling(20, 30, 56, False, 0), 56).astype(int) - resize_image(smooth, 56, 56)
    assert np.abs(difference[2:-2, 2:-2]).max() <= 1  # zeros are outside


def test_rotation_fills_in_zeros_and_invents_no_labels() -> None:
    labels = np.where(np.arange(40)[:, None] < 20, 5, 9).astype(np.int32).repeat(40, 1)
    matrix = sampling(40, 40, 60, False, 10)
    turned = sample_labels(labels, matrix, 60)
    assert set(np.unique(turned)) == {0, 5, 9}
    assert turned[0, 0] == turned[-1, -1] == 0
    assert sample_image(np.full((40, 40, 3), 200, np.uint8), matrix, 60)[0, 0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("seed", range(6))
def test_image_mask_and_superpixels_stay_together(seed: int) -> None:
    _, mask = draw_example(np.random.default_rng(seed), (90, 120))
    image = np.repeat(mask[..., None] * np.uint8(255), 3, axis=2)
    image, mask, superpixels = augment(
        image, mask, mask.astype(np.int32) * 3, size=128, generator=np.random.default_rng(seed)
    )
    assert superpixels is not None
    np.testing.assert_array_equal(superpixels, mask.astype(np.int32) * 3)
    assert ((image[..., 0] >= 128) == mask).mean() > 0.99


def test_augmentation_settings() -> None:
    image, mask = draw_example(np.random.default_rng(0), (32, 32))
    plain = augment(image, mask, None, size=32, generator=np.random.default_rng(0), flip=0, rotate=0)
    np.testing.assert_array_equal(plain[0], image)
    np.testing.assert_array_equal(plain[1], mask)
    assert plain[2] is None
    mirrored = augment(image, mask, None, size=32, generator=np.random.default_rng(0), flip=1, rotate=0)
    np.testing.assert_array_equal(mirrored[0], image[:, ::-1])
    np.testing.assert_array_equal(mirrored[1], mask[:, ::-1])
    turned = augment(image, mask, None, size=32, generator=np.random.default_rng(0), flip=0)
    assert (turned[0] != image).any()


def test_a_large_image_is_smoothed_before_it_is_rotated() -> None:
    stripes = np.tile(np.array([0, 255], np.uint8), (256, 128))[..., None].repeat(3, 2)
    mask = np.ones((256, 256), np.uint8)
    image, *_ = augment(stripes, mask, None, size=64, generator=np.random.default_rng(0), flip=0)
    inner = image[20:-20, 20:-20].astype(int)
    assert inner.min() > 100
    assert inner.max() < 155  # sampled without smoothing, stripes would come out black and white


def test_crops_keep_their_share_and_vary() -> None:
    generator = np.random.default_rng(0)
    drawn = [random_crop(60, 90, 0.4, generator) for _ in range(500)]
    shares, corners = [], set()
    for rows, columns in drawn:
        assert 0 <= rows.start < rows.stop <= 60
        assert 0 <= columns.start < columns.stop <= 90
        shares.append((rows.stop - rows.start) * (columns.stop - columns.start) / 5400)
        corners.add((rows.start, columns.start))
    assert 0.33 < min(shares) < 0.45
    assert max(shares) > 0.95
    assert len(corners) > 200
    for least in (0.85, 1.0):  # where most aspect ratios do not fit
        for rows, columns in [random_crop(600, 900, least, generator) for _ in range(50)]:
            assert (rows.stop - rows.start) * (columns.stop - columns.start) / 540_000 > least - 0.002
            assert max(rows.stop / 600, columns.stop / 900) <= 1


def test_sides_that_opencv_does_not_sample_from_are_resized_first() -> None:
    image, mask = np.zeros((8, 40_000, 3), np.uint8), np.zeros((8, 40_000), np.uint8)
    image[:, :20_000], mask[:, :20_000] = 255, 1
    seen, labels, _ = augment(image, mask, None, size=32, generator=np.random.default_rng(0), flip=0.0)
    np.testing.assert_array_equal(labels[8:24, 4:14], 1)
    np.testing.assert_array_equal(seen[8:24, 4:14], 255)
    assert labels[8:24, 18:].max() == 0


def test_jitter_changes_colours_within_its_bounds() -> None:
    image, _ = draw_example(np.random.default_rng(0), (32, 32))
    np.testing.assert_array_equal(jitter_colours(image, 0.0, np.random.default_rng(0)), image)
    grey = np.full((8, 8, 3), 100, np.uint8)
    levels = {int(jitter_colours(grey, 0.2, np.random.default_rng(seed))[0, 0, 0]) for seed in range(50)}
    assert min(levels) >= 79  # contrast and saturation leave an even grey as it is
    assert max(levels) <= 121
    assert max(levels) - min(levels) > 20
    varied = [jitter_colours(image, 0.5, np.random.default_rng(seed)).std() for seed in range(20)]
    assert max(varied) > 1.2 * min(varied)


def test_crops_and_jitter_leave_the_parts_together(pairs: Pairs) -> None:
    _, mask = draw_example(np.random.default_rng(1), (90, 120))
    image = np.repeat(mask[..., None] * np.uint8(200) + np.uint8(20), 3, axis=2)
    plain = augment(image, mask, mask.astype(np.int32), size=96, generator=np.random.default_rng(3))
    image, mask, superpixels = augment(
        image, mask, mask.astype(np.int32), size=96, generator=np.random.default_rng(3), crop=0.3, jitter=0.3
    )
    assert superpixels is not None
    np.testing.assert_array_equal(superpixels, mask)
    middle = (int(image.max()) + 20) // 2
    assert ((image[..., 0] >= middle) == mask).mean() > 0.98
    assert (plain[1] != mask).any()


def test_each_batch_has_one_of_the_sizes_for_any_reader(pairs: Pairs) -> None:
    settings = {"batch_size": 2, "size": 16, "sizes": (16, 24, 32), "seed": 3, "crop": 0.5, "jitter": 0.2}
    expected = take(training_batches(pairs, **settings), 12)
    sides = [batch["image"].shape[1] for batch in expected]
    assert set(sides) == {16, 24, 32}
    assert all(
        batch["superpixels"].shape[1] == batch["mask"].shape[2] == side
        for batch, side in zip(expected, sides, strict=True)
    )
    assert equal(take(training_batches(pairs, **settings, start=5, workers=2), 7), expected[5:])
    shares = [
        take(training_batches(pairs, **settings | {"batch_size": 1}, shard=shard, shards=2), 12) for shard in range(2)
    ]
    for share in shares:
        assert [batch["image"].shape[1] for batch in share] == sides


def test_training_batch(pairs: Pairs) -> None:
    (batch,) = take(training_batches(pairs, batch_size=3, size=32, seed=0), 1)
    expected = {
        "image": ((3, 32, 32, 3), np.uint8),
        "mask": ((3, 32, 32, 1), np.uint8),
        "superpixels": ((3, 32, 32), np.int32),
        "index": ((3,), np.int32),
    }
    assert {key: (value.shape, value.dtype) for key, value in batch.items()} == expected
    assert set(np.unique(batch["mask"])) == {0, 1}
    assert all(type(value) is np.ndarray for value in batch.values())
    (without,) = take(training_batches(open_pairs(pairs.path), batch_size=3, size=32, seed=0), 1)
    assert without.keys() == {"image", "mask", "index"}
    np.testing.assert_array_equal(without["image"], batch["image"])


def test_examples_follow_from_seed_epoch_and_index(pairs: Pairs) -> None:
    batches = take(training_batches(pairs, batch_size=1, size=32, seed=5), 2 * COUNT)
    for position, batch in enumerate(batches):
        index = int(batch["index"][0])
        example = pairs[index]
        generator = np.random.default_rng((5, position // COUNT, index))
        image, mask, superpixels = augment(
            example["image"], example["mask"], example["superpixels"], size=32, generator=generator
        )
        np.testing.assert_array_equal(batch["image"][0], image)
        np.testing.assert_array_equal(batch["mask"][0, :, :, 0], mask)
        np.testing.assert_array_equal(batch["superpixels"][0], superpixels)


def test_each_epoch_has_every_example_in_a_new_order(pairs: Pairs) -> None:
    batches = take(training_batches(pairs, batch_size=2, size=16, seed=0), 3 * COUNT)
    indices = np.concatenate([batch["index"] for batch in batches]).reshape(6, COUNT)
    for epoch in indices:
        assert sorted(epoch) == list(range(COUNT))
    assert len({tuple(epoch) for epoch in indices}) > 3
    other = take(training_batches(pairs, batch_size=2, size=16, seed=1), 3 * COUNT)
    assert not np.array_equal(indices.ravel(), np.concatenate([batch["index"] for batch in other]))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_and_start_give_the_same_bytes(pairs: Pairs, workers: int) -> None:
    settings = {"batch_size": 3, "size": 32, "seed": 4}
    expected = take(training_batches(pairs, **settings), 12)
    assert equal(take(training_batches(pairs, **settings), 12), expected)
    assert equal(take(training_batches(pairs, **settings, start=5), 7), expected[5:])
    read = take(training_batches(pairs, **settings, start=3, workers=workers), 9)
    assert equal(read, expected[3:])
    assert all(type(value) is np.ndarray for batch in read for value in batch.values())


def test_shards_together_are_the_batches_of_one_host(pairs: Pairs) -> None:
    expected = take(training_batches(pairs, batch_size=4, size=16, seed=2, start=1), 5)
    shares = [
        take(training_batches(pairs, batch_size=2, size=16, seed=2, start=1, shard=shard, shards=2), 5)
        for shard in range(2)
    ]
    for index, batch in enumerate(expected):
        for key, value in batch.items():
            np.testing.assert_array_equal(np.concatenate([share[index][key] for share in shares]), value)


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_pads_the_last_batch(pairs: Pairs, workers: int) -> None:
    batches = list(evaluation_batches(pairs, batch_size=3, size=24, workers=workers))
    assert [batch["index"].tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5], [6, -1, -1]]
    assert [batch["valid"].tolist() for batch in batches] == [[True] * 3, [True] * 3, [True, False, False]]
    for batch in batches:
        assert batch["image"].shape == (3, 24, 24, 3)
        assert batch["mask"].shape == (3, 24, 24, 1)
        assert batch["superpixels"].shape == (3, 24, 24)
    assert batches[2]["image"][1:].sum() == 0
    example = pairs[6]
    np.testing.assert_array_equal(batches[2]["image"][0], resize_image(example["image"], 24, 24))
    np.testing.assert_array_equal(batches[2]["mask"][0, ..., 0], resize_labels(example["mask"], 24, 24))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_file_arrives_as_one_line(tmp_path: Path, workers: int) -> None:
    root = write_synthetic(tmp_path, 2, (16, 20))
    (root / "DUTS-TR-Image" / "synthetic_00001.jpg").write_bytes(b"text")
    batches = training_batches(open_pairs(root), batch_size=2, size=16, seed=0, workers=workers)
    with pytest.raises(InputError, match=r"DUTS-TR-Image/synthetic_00001\.jpg: not an image") as caught:
        next(batches)
    assert "\n" not in str(caught.value)
    assert list(batches) == []  # closed


def test_labels_beyond_the_bound_are_refused(pairs: Pairs) -> None:
    highest = int(pairs[0]["superpixels"].max())
    one = pairs.subset([0])
    take(training_batches(one, batch_size=1, size=16, seed=0, max_regions=highest + 1), 1)
    for batches in (
        training_batches(one, batch_size=1, size=16, seed=0, max_regions=highest),
        evaluation_batches(one, batch_size=1, size=16, max_regions=highest),
    ):
        message = rf"synthetic_00000\.jpg: its superpixels reach label {highest}"
        with pytest.raises(InputError, match=message):
            next(batches)


@pytest.mark.parametrize(
    "wrong",
    [
        {"seed": -1},
        {"seed": 2**32},
        {"start": -1},
        {"shard": 1},
        {"batch_size": 0},
        {"size": 0},
        {"workers": -1},
        {"prefetch": 0},
        {"flip": float("nan")},
        {"rotate": -1},
        {"crop": 0},
        {"jitter": 1.5},
        {"sizes": (8, 0)},
    ],
)
def test_settings_out_of_range(pairs: Pairs, wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong)).removesuffix("s")):
        training_batches(pairs, **({"batch_size": 1, "size": 8, "seed": 0} | wrong))


def test_no_pairs(pairs: Pairs) -> None:
    with pytest.raises(InputError, match="no pairs"):
        training_batches(pairs.subset([]), batch_size=1, size=8, seed=0)


def test_closing_ends_the_threads(pairs: Pairs) -> None:
    before = threading.active_count()
    batches = training_batches(pairs, batch_size=2, size=16, seed=0, workers=2)
    next(batches)
    assert threading.active_count() > before
    batches.close()
    batches.close()
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= before
    with pytest.raises(StopIteration):
        next(batches)


PROGRAM = """
import sys
import cv2
cv2.setNumThreads(3)
from purinet_jax.data.pairs import open_pairs
from purinet_jax.data.pipeline import training_batches

if __name__ == "__main__":
    batches = training_batches(open_pairs(sys.argv[1]), batch_size=2, size=16, seed=0, workers=1)
    next(batches)
    print(cv2.getNumThreads(), flush=True)
"""


@pytest.fixture
def program(root: Path, tmp_path: Path) -> list[str]:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return [sys.executable, "-W", "error", str(path), str(root)]


def environment() -> dict[str, str]:
    here = str(Path(__file__).resolve().parents[1])
    return os.environ | {"PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])}


def test_a_program_keeps_its_opencv_threads_and_may_end_without_closing(program: list[str]) -> None:
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, env=environment())
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")
