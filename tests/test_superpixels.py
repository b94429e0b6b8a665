"""Superpixels: those made in the train step, and the authors' files."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np
import pytest
from helpers.tiny import tiny_batch, tiny_model
from scipy.io import savemat
from skimage.color import rgb2lab
from skimage.segmentation import slic

from purinet_jax.data.pairs import check_pairs, open_pairs
from purinet_jax.data.superpixel_files import find_superpixels, read_superpixels
from purinet_jax.data.synthetic import draw_example, write_synthetic
from purinet_jax.errors import InputError
from purinet_jax.training import train
from purinet_jax.training.configurations import load_config
from purinet_jax.training.losses import Objective
from purinet_jax.training.optim import OptimizerConfig, make_optimizer
from purinet_jax.training.step import create_state, train_step, with_superpixels
from purinet_jax.training.superpixels import grid_regions, slic_regions


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray]:
    return draw_example(np.random.default_rng(3), (80, 100))


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def purity(labels: np.ndarray, areas: np.ndarray) -> float:
    """Share of pixels that lie in the area where most of their region lies."""
    counts = np.stack([np.bincount(labels.ravel(), areas.ravel() == area) for area in np.unique(areas)])
    return float(counts.max(0).sum() / labels.size)


def test_slic_regions_follow_edges() -> None:
    areas = np.zeros((61, 83), int)
    areas[:, 30:] = 1
    areas[37:, 30:] = 2
    image = np.array([[200, 30, 30], [30, 160, 60], [20, 40, 220]], np.uint8)[areas]
    labels = np.asarray(slic_regions(image[None], 50))[0]
    # Where an edge meets the border of two regions, the majority of a window can be across it: a few pixels each.
    assert purity(labels, areas) > 0.995
    assert purity(grid_regions(61, 83, 50), areas) < 0.97


def test_slic_regions_follow_the_border_of_the_object(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    image, mask = drawn
    labels = np.asarray(slic_regions(image[None]))[0]
    assert 150 < labels.max() + 1 <= 200
    reference = slic(image, n_segments=200, compactness=20.0, max_num_iter=5, start_label=0)
    assert purity(labels, mask) >= purity(reference, mask) - 0.005
    assert purity(labels, mask) > purity(grid_regions(*mask.shape), mask) + 0.02


def naive_slic(image: np.ndarray, rows: int, columns: int, side: tuple[int, int], pad: tuple[int, int]) -> np.ndarray:
    """SLIC pixel by pixel, from the definition: compactness 20, five rounds, majority in 5×5."""
    height, width, _ = image.shape
    y, x = np.mgrid[:height, :width]
    scale = 20 / np.sqrt(side[0] * side[1])
    pixels = np.dstack([rgb2lab(image), scale * y, scale * x])
    row, column = (y + pad[0]) // side[0], (x + pad[1]) // side[1]
    labels = row * columns + column
    for _ in range(5):
        centres = {int(label): pixels[labels == label].mean(0) for label in np.unique(labels)}
        chosen = np.empty_like(labels)
        for at in np.ndindex(height, width):
            around = [
                r * columns + c
                for r in range(max(row[at] - 1, 0), min(row[at] + 2, rows))
                for c in range(max(column[at] - 1, 0), min(column[at] + 2, columns))
            ]
            chosen[at] = min(around, key=lambda label: ((pixels[at] - centres[label]) ** 2).sum())
        labels = chosen
    result = labels.copy()
    for i, j in np.ndindex(height, width):
        counts = Counter(labels[max(i - 2, 0) : i + 3, max(j - 2, 0) : j + 3].ravel().tolist())
        most = max(counts.values())
        if counts[int(labels[i, j])] < most:
            result[i, j] = min(label for label, count in counts.items() if count == most)
    return result


def test_slic_regions_equal_the_definition() -> None:
    # 5 × 6 cells of 9 × 9 pixels, padded by 2 rows on either side and by 0 and 1 columns.
    image = draw_example(np.random.default_rng(4), (60, 60))[0][:41, :53]
    labels = np.asarray(slic_regions(image[None], 30))[0]
    expected = naive_slic(image, 5, 6, (9, 9), (2, 0))
    # Single against double precision: a pixel halfway between two centres may fall to either.
    assert (labels != expected).sum() <= 3
    assert (labels != grid_regions(41, 53, 30)).mean() > 0.1


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (33, 20), (7, 301)], ids=str)
@pytest.mark.slow
def test_slic_regions_of_any_size_stay_below_the_bound(size: tuple[int, int]) -> None:
    images = np.stack([np.full((*size, 3), 7, np.uint8), noise(*size), noise(*size, seed=1)])
    labels = slic_regions(images, 100)
    assert labels.dtype == np.int32
    assert labels.shape == (3, *size)
    assert labels.min() >= 0
    assert labels.max() < 100
    assert labels.max() > 0 or size == (1, 1)


def test_a_plain_image_is_cut_into_its_cells() -> None:
    plain = np.full((1, 60, 90, 3), 90, np.uint8)
    np.testing.assert_array_equal(slic_regions(plain, 24)[0], grid_regions(60, 90, 24))


def test_slic_regions_of_a_batch_are_those_of_each_image_every_time() -> None:
    images = np.stack([draw_example(np.random.default_rng(seed), (70, 70))[0][:48] for seed in range(3)])
    together = np.asarray(slic_regions(images))
    np.testing.assert_array_equal(slic_regions(images.copy()), together)
    np.testing.assert_array_equal(jax.vmap(lambda image: slic_regions(image[None])[0])(images), together)
    for image, labels in zip(images, together, strict=True):
        np.testing.assert_array_equal(slic_regions(image[None])[0], labels)
    assert (together[0] != together[1]).any()


def test_slic_regions_need_the_images_colours() -> None:
    with pytest.raises(ValueError, match="needs uint8 images, not float32"):
        slic_regions(np.zeros((1, 8, 8, 3), np.float32))


def test_slic_regions_lower_for_cuda_and_tpu_without_a_scatter() -> None:
    platforms = ("cpu", "cuda", "tpu")
    images = jax.ShapeDtypeStruct((2, 320, 320, 3), np.uint8)
    exported = jax.export.export(slic_regions, platforms=platforms)(images)
    assert exported.platforms == platforms
    assert exported.out_avals[0].shape == (2, 320, 320)
    assert "stablehlo.while" in exported.mlir_module()
    assert "stablehlo.scatter" not in exported.mlir_module()


@pytest.mark.parametrize("regions", [1, 16, 200, 256])
def test_grid_regions_are_nearly_equal_rectangles_below_the_bound(regions: int) -> None:
    for height, width in [(1, 1), (3, 1), (1, 5000), (16, 16), (320, 320), (240, 320), (321, 57), (64, 2000)]:
        labels = grid_regions(height, width, regions)
        assert labels.dtype == np.int32
        assert labels.shape == (height, width)
        np.testing.assert_array_equal(np.unique(labels), np.arange(labels.max() + 1))
        assert labels.max() < regions
        # Rectangles: a row's label and a column's, added; none much larger than another.
        np.testing.assert_array_equal(labels, labels[:, :1] + labels[:1])
        for line in (labels[:, 0], labels[0]):
            assert np.ptp(np.unique(line, return_counts=True)[1]) <= 1


def test_grid_regions_at_the_size_of_training() -> None:
    labels = grid_regions(320, 320)
    assert labels.max() == 14 * 14 - 1
    assert set(np.bincount(labels.ravel()).tolist()) == {22 * 22, 22 * 23, 23 * 23}


def test_an_objective_with_unknown_superpixels_is_refused() -> None:
    with pytest.raises(InputError, match=r"losses\.superpixels: 'SLIC' is none of slic, grid, files"):
        Objective(superpixels="SLIC")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def step() -> Callable[..., Any]:
    """A train step of stage 1's network, from the same state for any objective."""
    model = tiny_model(attention=())
    generator = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 16, 16, 3), np.float32))
    variables = jax.tree.map(lambda x: generator.normal(0, 0.2, x.shape).astype(np.float32), dict(shapes))
    optimizer = make_optimizer(OptimizerConfig(rate=0.01), 100)
    take = jax.jit(train_step)
    return lambda objective, batch: take(create_state(model, variables, optimizer, objective), batch)


@pytest.mark.parametrize("made", ["slic", "grid"])
@pytest.mark.slow
def test_a_step_that_computes_superpixels_equals_one_that_is_given_them(step: Callable[..., Any], made: str) -> None:
    batch = tiny_batch(0)
    objective = Objective(max_regions=16, superpixels=made)  # type: ignore[arg-type]
    labels = np.asarray(with_superpixels(batch, objective)["superpixels"])
    if made == "grid":
        np.testing.assert_array_equal(labels, batch["superpixels"])
    else:
        np.testing.assert_array_equal(labels, slic_regions(batch["image"], 16))
        assert (labels != batch["superpixels"]).any()
    expected, expected_metrics = step(Objective(max_regions=16, superpixels="files"), batch | {"superpixels": labels})
    after, metrics = step(objective, {"image": batch["image"], "mask": batch["mask"]})
    assert metrics["structural"].all()
    # The labels are the same; the operations around them are fused, and rounded, differently.
    for name, value in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    for value, reference in zip(jax.tree.leaves(after.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(value, reference, rtol=1e-5, atol=1e-7)


def test_other_objectives_leave_the_batch_alone() -> None:
    batch = {"image": np.zeros((1, 8, 8, 3), np.float32)}
    for objective in (Objective("none"), Objective("ssim", superpixels="grid"), Objective(superpixels="files")):
        assert with_superpixels(batch, objective) is batch  # type: ignore[arg-type]


class Opened(Exception):
    """Ends a run when it opens its data set."""


@pytest.mark.parametrize(
    ("structural", "superpixels", "reads"),
    [("region", "files", True), ("region", "slic", False), ("region", "grid", False), ("none", "files", False)],
)
def test_training_reads_superpixels_only_for_an_objective_with_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, structural: str, superpixels: str, reads: bool
) -> None:
    def open_pairs(path: Path, *, superpixels: str | None = None, **_: object) -> None:
        raise Opened(superpixels)

    monkeypatch.setattr(train, "open_pairs", open_pairs)
    config = load_config("tiny")
    config.losses.structural, config.losses.superpixels = structural, superpixels
    config.batch_size = jax.device_count()
    with pytest.raises(InputError if reads else Opened) as opened:
        train.train(config, tmp_path, tmp_path / "run")
    needs = "config.losses.superpixels: 'files' needs --superpixels DIR, a folder of the authors' .mat files"
    assert opened.value.args == ((needs if reads else None),)
    # A folder that is given is read or refused.
    with pytest.raises(Opened if reads else InputError) as named:
        train.train(config, tmp_path, tmp_path / "run", superpixels="own")
    message = (
        f"--superpixels own: not read with losses.structural '{structural}' and losses.superpixels '{superpixels}'"
    )
    assert named.value.args == (("own",) if reads else (message,))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float64])
def test_mat_starts_at_zero_and_keeps_gaps(tmp_path: Path, dtype: type) -> None:
    labels = np.array([[1, 2, 2], [5, 5, 1]])
    savemat(tmp_path / "a.mat", {"sp": labels.astype(dtype), "other": 1})
    loaded = read_superpixels(tmp_path / "a.mat", 2, 3)
    assert loaded.dtype == np.int32
    np.testing.assert_array_equal(loaded, labels - 1)
    savemat(tmp_path / "b.mat", {"sp": labels - 1})
    np.testing.assert_array_equal(read_superpixels(tmp_path / "b.mat", 2, 3), labels - 1)


def test_unusable_mat_files(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    with pytest.raises(InputError, match="cannot be read"):
        read_superpixels(path, 2, 2)
    for content in (b"", b"text that is no MATLAB file" * 20):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"a\.mat: not a MATLAB file"):
            read_superpixels(path, 2, 2)
    for values, message in (
        ({"x": 1}, "no variable `sp`"),
        ({"sp": np.full((2, 2), 0.5)}, "not whole numbers"),
        ({"sp": np.full((2, 2), np.nan)}, "not whole numbers"),
        ({"sp": np.zeros((2, 2, 2))}, "not a matrix"),
        ({"sp": "text"}, "not a matrix"),
    ):
        savemat(path, values)
        with pytest.raises(InputError, match=message):
            read_superpixels(path, 2, 2)


def test_pairs_with_the_authors_superpixels(tmp_path: Path) -> None:
    root = write_synthetic(tmp_path, 2, (24, 32))
    folder = tmp_path / "superpixels"
    folder.mkdir()
    with pytest.raises(InputError, match=r"superpixels: holds no \.mat files"):
        open_pairs(root, superpixels=folder)
    first, second = (example["mask"].shape for example in open_pairs(root))  # type: ignore[attr-defined]
    labels = np.arange(first[0] * first[1]).reshape(first)
    savemat(folder / "synthetic_00000.mat", {"sp": labels + 1})
    with pytest.raises(InputError, match="no superpixels for 1 image: synthetic_00001"):
        open_pairs(root, superpixels=folder)
    savemat(folder / "synthetic_00001.mat", {"sp": np.ones(second)})
    pairs = open_pairs(root, superpixels=str(folder))
    np.testing.assert_array_equal(pairs[0]["superpixels"], labels)
    np.testing.assert_array_equal(pairs.subset([1])[0]["superpixels"], np.zeros(second))
    assert check_pairs(pairs, progress=False) == []
    savemat(folder / "synthetic_00001.mat", {"sp": np.ones((second[0], second[1] + 1))})
    with pytest.raises(InputError, match=r"synthetic_00001\.mat: the superpixels are"):
        pairs[1]
    assert [index for index, _ in check_pairs(pairs, progress=False)] == [1]
    shutil.rmtree(folder)
    with pytest.raises(InputError, match="cannot be read"):
        find_superpixels(folder, pairs.names)
