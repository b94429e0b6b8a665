"""Superpixels: SLIC labels, stored and made in the train step, the authors' files, and the cache beside a data set."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np
import pytest
from helpers.tiny import tiny_batch, tiny_model
from scipy.io import savemat
from skimage.color import rgb2lab

from purinet_jax.benchmarks import superpixels as benchmark
from purinet_jax.commands.main import main
from purinet_jax.data.images import to_png
from purinet_jax.data.pairs import check_pairs, open_pairs
from purinet_jax.data.superpixel_files import SuperpixelCache, SuperpixelFolder, cache_folder, load_mat, slic_labels
from purinet_jax.data.synthetic import draw_example, write_synthetic
from purinet_jax.errors import InputError
from purinet_jax.training import train
from purinet_jax.training.configurations import load_config
from purinet_jax.training.losses import Objective
from purinet_jax.training.optim import OptimizerConfig, make_optimizer
from purinet_jax.training.step import create_state, train_step, with_superpixels
from purinet_jax.training.superpixels import grid_regions, slic_regions


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


def test_slic_regions_lie_in_the_object_or_beside_it(picture: tuple[np.ndarray, np.ndarray]) -> None:
    image, mask = picture
    labels = np.asarray(slic_regions(image[None]))[0]
    assert 150 < labels.max() + 1 <= 200
    assert purity(labels, mask) >= purity(slic_labels(image), mask) - 0.005
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
    with pytest.raises(InputError, match=r"losses\.superpixels: 'SLIC' is none of stored, slic, grid"):
        Objective(superpixels="SLIC")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def step() -> Callable[..., Any]:
    """A train step of stage 1's network, from the same state for any objective."""
    model = tiny_model(attention=False)
    generator = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 16, 16, 3), np.float32))
    variables = jax.tree.map(lambda x: generator.normal(0, 0.2, x.shape).astype(np.float32), dict(shapes))
    optimizer = make_optimizer(OptimizerConfig(rate=0.01), 100)
    take = jax.jit(train_step)
    return lambda objective, batch: take(create_state(model, variables, optimizer, objective), batch)


@pytest.mark.parametrize("made", ["slic", "grid"])
@pytest.mark.slow
def test_a_step_that_makes_superpixels_equals_one_that_is_given_them(step: Callable[..., Any], made: str) -> None:
    batch = tiny_batch(0)
    objective = Objective(max_regions=16, superpixels=made)  # type: ignore[arg-type]
    labels = np.asarray(with_superpixels(batch, objective)["superpixels"])
    if made == "grid":
        np.testing.assert_array_equal(labels, batch["superpixels"])
    else:
        np.testing.assert_array_equal(labels, slic_regions(batch["image"], 16))
        assert (labels != batch["superpixels"]).any()
    expected, expected_metrics = step(Objective(max_regions=16), batch | {"superpixels": labels})
    after, metrics = step(objective, {"image": batch["image"], "mask": batch["mask"]})
    assert metrics["structural"].all()
    # The labels are the same; what the compiler fuses around them differs, and rounds differently.
    for name, value in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    for value, reference in zip(jax.tree.leaves(after.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(value, reference, rtol=1e-5, atol=1e-7)


def test_other_objectives_leave_the_batch_alone() -> None:
    batch = {"image": np.zeros((1, 8, 8, 3), np.float32)}
    for objective in (Objective("none", superpixels="slic"), Objective("ssim", superpixels="grid"), Objective()):
        assert with_superpixels(batch, objective) is batch  # type: ignore[arg-type]


class Opened(Exception):
    """Ends a training where it opens its data set."""


@pytest.mark.parametrize(
    ("structural", "superpixels", "reads"),
    [("region", "stored", True), ("region", "slic", False), ("region", "grid", False), ("none", "stored", False)],
)
def test_training_reads_superpixels_only_where_stored_ones_are_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, structural: str, superpixels: str, reads: bool
) -> None:
    def open_pairs(path: Path, *, superpixels: str | None = None, **_: object) -> None:
        raise Opened(superpixels)

    monkeypatch.setattr(train, "open_pairs", open_pairs)
    config = load_config("tiny")
    config.losses.structural, config.losses.superpixels = structural, superpixels
    config.batch_size = jax.device_count()
    with pytest.raises(Opened) as opened:
        train.train(config, tmp_path, tmp_path / "run")
    assert opened.value.args == ("slic" if reads else None,)
    # A folder that is named is read, or else refused.
    with pytest.raises(Opened if reads else InputError) as named:
        train.train(config, tmp_path, tmp_path / "run", superpixels="own")
    message = (
        f"--superpixels own: not read with losses.structural '{structural}' and losses.superpixels '{superpixels}'"
    )
    assert named.value.args == (("own",) if reads else (message,))
    assert not (tmp_path / "run").exists()


def test_measures_of_superpixels() -> None:
    mask = np.zeros((20, 30), np.uint8)
    mask[:, 12:] = 1
    image = np.repeat(100 * mask[:, :, None] + np.uint8(50), 3, axis=2)
    columns = np.arange(30)

    def measure(labels: np.ndarray) -> dict[str, float]:
        return benchmark.measures(image, mask, np.broadcast_to(labels, mask.shape).astype(np.int32))

    follows = measure((columns >= 12) + 0)
    assert follows == {
        "explained_variation": pytest.approx(1),
        "boundary_recall": 1,
        "boundary_density": pytest.approx(1 / 30),
        "achievable_accuracy": 1,
        "regions": 2,
        "pieces": 2,
    }
    assert measure((columns >= 14) + 0)["boundary_recall"] == 1  # two pixels off
    assert measure((columns >= 15) + 0)["boundary_recall"] == 0  # three
    # Half of one region and all of the other: a sixth of the pixels are wrong, and the means are a third off.
    off = measure((columns >= 17) + 0)
    assert off["achievable_accuracy"] == pytest.approx(1 - 5 / 30)
    assert off["explained_variation"] == pytest.approx(1 - (17 * (12 / 17) * (5 / 17)) / (30 * 0.4 * 0.6))
    whole = measure(np.zeros(30))
    assert (whole["explained_variation"], whole["boundary_recall"], whole["regions"]) == (0, 0, 1)
    # A label in two places, and one label unused.
    apart = measure(np.where(columns < 10, 0, np.where(columns < 20, 2, 0)))
    assert (apart["regions"], apart["pieces"]) == (2, 3)


def test_the_benchmark_of_superpixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = []
    monkeypatch.setattr(
        benchmark, "repeatable_train_step", lambda settings, objective: lambda: taken.append((settings, objective))
    )
    root = write_synthetic(tmp_path, 3, (40, 60))
    arguments = ["benchmark", "--superpixels", str(root), "--images", "2", "--size", "48", "--repeats", "3"]
    assert main([*arguments, "--backbone", "vgg16"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["settings"]["images"] == 2
    assert result["settings"]["size"] == 48
    quality = result["superpixels"]
    assert list(quality) == ["scikit_image", "slic", "grid"]
    for values in quality.values():
        assert values["regions"] <= values["pieces"]
        assert 0.9 < values["achievable_accuracy"] <= 1
        assert values["milliseconds"] >= 0
    assert quality["slic"]["explained_variation"] > quality["grid"]["explained_variation"]
    # Two that compile, then three, the kinds in turn.
    assert [objective for _, objective in taken[8:]] == 3 * list(benchmark.OBJECTIVES.values())
    assert taken[0][0]["backbone"] == "vgg16"
    assert list(result["train_step"]) == ["stored", "slic", "grid", "none"]
    assert result["train_step"]["stored"]["to_stored"] == 1
    with pytest.raises(SystemExit):
        main([*arguments[:3], "--images", "0"])
    assert main(["benchmark", "--superpixels", str(tmp_path / "none")]) == 2


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
        patch.setattr("purinet_jax.data.superpixel_files.slic_labels", fail)
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
