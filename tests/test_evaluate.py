"""Evaluation of networks and of maps from files on data sets: equal numbers for any number of workers, and every file
without a counterpart named."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from helpers.commands import INTERRUPTIBLE
from PIL import Image

from purinet_jax.data.augment import resize_image
from purinet_jax.data.images import read_map, to_png
from purinet_jax.errors import InputError
from purinet_jax.evaluation.evaluate import Evaluation, evaluate, examples
from purinet_jax.evaluation.methods import Network, open_data, open_maps, open_masks
from purinet_jax.evaluation.metrics import NUMBERS, Totals, measure
from purinet_jax.evaluation.paper import PUBLISHED, is_same_set, known_test_set, published_numbers

GOLDEN = Path(__file__).parent / "fixtures" / "golden" / "metrics"


class Red:
    """A predictor whose map is each pixel's red."""

    size = 16

    def square_maps(self, images: Sequence[np.ndarray], batch_size: int) -> np.ndarray:
        assert len(images) <= batch_size
        return np.stack(images)[..., 0].astype(np.float32) / 255


def red_network() -> Network:
    predictor: Any = Red()
    return Network("red", predictor)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data set of five pairs in `set`, and the maps that `Red` predicts for it in `red`."""
    generator = np.random.default_rng(0)
    for folder in ("set/images", "set/masks", "red"):
        (tmp_path / folder).mkdir(parents=True)
    for index in range(5):
        height, width = (int(side) for side in generator.integers(20, 40, 2))
        image = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        grey = generator.choice(np.array([0, 100, 128, 129, 200, 255], np.uint8), (height, width))
        resized = (resize_image(image, 16, 16)[..., 0].astype(np.float32) / 255 * 255).astype(np.uint8)
        saliency = cv2.resize(resized, (width, height), interpolation=cv2.INTER_LINEAR)
        for folder, array in (("set/images", image), ("set/masks", grey), ("red", saliency)):
            (tmp_path / folder / f"{index}.png").write_bytes(to_png(array))
    return tmp_path


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image)


def numbers(evaluation: Evaluation) -> dict[str, dict[str, float]]:
    return {protocol: totals.average().numbers() for protocol, totals in evaluation.totals.items()}


def quietly(*arguments: Any, **settings: Any) -> list[Evaluation]:
    return evaluate(*arguments, progress=False, **settings)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_a_network_is_measured_on_the_maps_that_files_would_hold(root: Path, batch_size: int) -> None:
    (result,) = quietly([red_network()], [open_data(root / "set")], batch_size=batch_size)
    assert (result.method, result.ground_truth, result.images, result.skipped, result.size) == ("red", "set", 5, (), 16)
    for protocol in ("purnet", "pysod"):
        totals = Totals(protocol)
        for file in sorted((root / "red").iterdir()):
            totals += measure(pixels(file), pixels(root / "set" / "masks" / file.name), protocol)
        assert result.totals[protocol].images == 5
        assert numbers(result)[protocol] == totals.average().numbers()


def test_files_and_network_and_every_number_of_workers_agree_to_the_last_bit(root: Path) -> None:
    methods, truth = [red_network(), open_maps(root / "red", "files")], open_data(root / "set")
    results = quietly(methods, [truth])
    assert [result.method for result in results] == ["red", "files"]
    assert numbers(results[0]) == numbers(results[1])
    assert results[1].size is None
    in_workers = quietly(methods, [truth], workers=2, per_image=True)
    assert [numbers(result) for result in in_workers] == [numbers(result) for result in results]
    assert quietly(methods, [truth], per_image=True)[1].worst == in_workers[0].worst
    (alone,) = quietly(methods[1:], [open_masks(root / "set" / "masks")], protocols=["pysod"])
    assert numbers(alone) == {"pysod": numbers(results[0])["pysod"]}
    assert alone.ground_truth == "set"


def test_published_numbers_of_maps_in_files() -> None:
    expected = json.loads((GOLDEN / "expected.json").read_text())
    maps, truth = open_maps(GOLDEN / "pred"), open_masks(GOLDEN / "gt")
    (result,) = quietly([maps], [truth], protocols=["purnet"])
    found = numbers(result)["purnet"]
    assert found["mae"] == pytest.approx(expected["authors_matlab"]["mae"], abs=1e-6)
    assert found["f_adaptive"] == pytest.approx(expected["authors_matlab"]["f_adaptive"], abs=1e-6)
    with pytest.raises(InputError, match=r"pred/\w+\.png: the map has 200×135 .* mask 400×269.*--protocol purnet"):
        quietly([maps], [truth])


def test_each_images_numbers_and_the_worst_images(root: Path) -> None:
    for index in range(5, 25):
        for folder in ("set/masks", "red"):
            shutil.copy(root / folder / "0.png", root / folder / f"{index}.png")
    (result,) = quietly([open_maps(root / "red")], [open_masks(root / "set" / "masks")], per_image=True)
    errors = {}
    for image in result.per_image:
        assert image.numbers.shape == (2, len(NUMBERS))
        mask = pixels(root / "set" / "masks" / f"{image.name}.png")
        for row, protocol in zip(image.numbers, ("purnet", "pysod"), strict=True):
            expected = measure(pixels(root / "red" / f"{image.name}.png"), mask, protocol).numbers()
            assert list(row) == list(expected.values())
        errors[image.name] = image.numbers[0, 0]
    assert list(errors) == sorted(errors)
    worst = sorted(errors, key=lambda name: -errors[name])[:16]  # of equally bad ones, the first
    assert result.worst == tuple((name, errors[name]) for name in worst)


def test_masks_and_maps_of_every_pixel_format(root: Path) -> None:
    masks, maps = root / "set" / "masks", root / "red"
    for folder in (masks, maps):
        for file in folder.iterdir():
            file.write_bytes(to_png((pixels(file) > 128) * np.uint8(255)))
    truth, method = open_masks(masks), open_maps(maps)
    expected = numbers(quietly([method], [truth])[0])
    for folder in (masks, maps):
        for file in folder.iterdir():
            objects = pixels(file) > 0
            match int(file.stem) % 4:
                case 0:
                    file.write_bytes(to_png(objects.astype(np.uint8)))
                case 1:
                    file.write_bytes(to_png(objects * np.uint16(65535)))
                case 2:
                    Image.fromarray(objects).save(file)
                case 3 if folder == maps:
                    Image.fromarray(objects * np.float32(0.25)).save(file.with_suffix(".tif"))
                    file.unlink()
    assert numbers(quietly([open_maps(maps)], [truth])[0]) == expected


def test_maps_are_read_without_rescaling() -> None:
    fine = np.array([[7, 300, 65535]], np.uint16)
    np.testing.assert_array_equal(read_map(to_png(fine)), fine / 65535)
    faint = np.array([[0, 1, 1]], np.uint8)
    np.testing.assert_array_equal(read_map(to_png(faint)), faint)
    assert read_map(to_png(faint)).dtype == np.uint8
    np.testing.assert_array_equal(read_map(to_png(np.repeat(faint[..., None], 3, axis=-1))), faint)


def test_empty_and_full_masks_and_constant_maps(tmp_path: Path) -> None:
    for folder in ("masks", "maps"):
        (tmp_path / folder).mkdir()
    for name, mask, saliency in (("full", 255, 51), ("empty", 0, 51), ("ones", 255, 1)):
        (tmp_path / "masks" / f"{name}.png").write_bytes(to_png(np.full((6, 8), mask, np.uint8)))
        (tmp_path / "maps" / f"{name}.png").write_bytes(to_png(np.full((6, 8), saliency, np.uint8)))
    truth = open_masks(tmp_path / "masks")
    assert truth.name == tmp_path.name
    (result,) = quietly([open_maps(tmp_path / "maps")], [truth], per_image=True)
    errors = {image.name: list(image.numbers[:, 0]) for image in result.per_image}
    assert errors["full"] == [pytest.approx(0.8)] * 2
    assert errors["empty"] == [pytest.approx(0.2)] * 2
    assert errors["ones"] == [pytest.approx(254 / 255)] * 2  # not rescaled, unlike a mask


def test_unpaired_maps_and_masks_are_named_or_skipped(root: Path) -> None:
    truth, network = open_data(root / "set"), red_network()
    (root / "red" / "3.png").rename(root / "red" / "other.png")
    maps = open_maps(root / "red", "files")
    with pytest.raises(InputError, match=r"red: in set, no map for 1 mask: 3 and no mask for 1 map: other \(--skip"):
        quietly([network, maps], [truth])
    complete, part = quietly([network, maps], [truth], skip_unpaired=True)
    assert (complete.images, part.images) == (5, 4)
    assert complete.skipped == ()
    assert [Path(name).name for name in part.skipped] == ["3.png", "other.png"]
    for file in (root / "red").iterdir():
        file.rename(file.with_name(f"another{file.name}"))
    with pytest.raises(InputError, match="no map has the name of a mask of set"):
        quietly([open_maps(root / "red")], [truth], skip_unpaired=True)


def test_unpaired_images_and_masks_of_a_data_set_are_named_or_skipped(root: Path) -> None:
    (root / "set" / "images" / "1.png").unlink()
    (root / "set" / "masks" / "2.png").unlink()
    with pytest.raises(InputError, match=r"no mask in masks for 1 image: 2"):
        open_data(root / "set")
    truth = open_data(root / "set", skip_unpaired=True)
    (result,) = quietly([red_network()], [truth])
    assert result.images == 3
    assert result.skipped == ("images/2.png", "masks/1.png")


def test_every_unusable_file_is_named(root: Path) -> None:
    network, masks = red_network(), root / "set" / "masks"
    (masks / "3.png").write_bytes(to_png(np.zeros((7, 7), np.uint8)))
    truth = open_data(root / "set")
    with pytest.raises(InputError, match=r"images/3\.png: the image has \d+×\d+ pixels, but its mask .* 7×7"):
        quietly([network], [truth])
    (masks / "3.png").write_bytes(b"no image")
    (root / "set" / "images" / "0.png").write_bytes(b"")
    for workers in (0, 1):
        with pytest.raises(InputError, match=r"images/0\.png: the file is empty; .*masks/3\.png: not an image"):
            quietly([network], [truth], batch_size=2, workers=workers)
    for file in masks.iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(InputError, match=r"masks/2\.png: [^;]*; and 2 more files$"):
        quietly([open_maps(root / "red")], [truth])


def test_what_cannot_be_evaluated_is_refused(root: Path, tmp_path: Path) -> None:
    truth, maps = open_data(root / "set"), open_maps(root / "red")
    with pytest.raises(InputError, match="red: more than one method of this name"):
        quietly([red_network(), maps], [truth])
    with pytest.raises(InputError, match="set: more than one data set of this name"):
        quietly([maps], [truth, truth])
    with pytest.raises(InputError, match="masks alone, from which red can predict nothing"):
        quietly([red_network()], [open_masks(root / "set" / "masks")])
    with pytest.raises(InputError, match="workers: must be at least 0"):
        quietly([maps], [truth], workers=-1)
    (tmp_path / "none").mkdir()
    for opening in (open_maps, open_masks):
        with pytest.raises(InputError, match="none: holds no "):
            opening(tmp_path / "none")
        with pytest.raises(InputError, match="nowhere: no such file or folder"):
            opening(tmp_path / "nowhere")
    (tmp_path / "none" / "1.0.0").mkdir()
    (tmp_path / "none" / "1.0.0" / "dataset_info.json").write_text("{}")
    with pytest.raises(InputError, match=r"a prepared set is given with --data, as .*none:SPLIT"):
        open_masks(tmp_path / "none")
    shutil.copytree(root / "red", root / "red" / "copy")
    with pytest.raises(InputError, match=r"red: two files named 0: "):
        quietly([open_maps(root / "red")], [truth])


def test_maps_for_several_data_sets_lie_in_folders_of_their_names(root: Path) -> None:
    truths = [open_masks(root / "set" / "masks", name) for name in ("DUTS-TE", "ECSSD:test")]
    with zipfile.ZipFile(root / "method.zip", "w") as archive:
        for file in (root / "red").iterdir():
            archive.write(file, f"maps/duts_te/{file.name}")
            archive.writestr(f"maps/ECSSD/{file.name}", to_png(255 - pixels(file)))
    first, second = quietly([open_maps(root / "method.zip")], truths)
    assert (first.method, first.ground_truth, second.ground_truth) == ("method", "DUTS-TE", "ECSSD:test")
    right, wrong = (numbers(each)["purnet"]["mae"] for each in (first, second))
    (alone,) = quietly([open_maps(root / "red")], [truths[0]])
    assert numbers(alone)["purnet"]["mae"] == right
    assert wrong != right


@pytest.mark.parametrize("network", [False, True])
def test_examples_are_the_requested_images(root: Path, network: bool) -> None:
    truth = open_data(root / "set")
    method = red_network() if network else open_maps(root / "red")
    shown = list(examples(method, truth, ["4", "1"], batch_size=2))
    for name, (image, mask, saliency) in zip(("4", "1"), shown, strict=True):
        assert image is not None
        np.testing.assert_array_equal(image, pixels(root / "set" / "images" / f"{name}.png"))
        np.testing.assert_array_equal(mask, pixels(root / "set" / "masks" / f"{name}.png"))
        np.testing.assert_array_equal(saliency, pixels(root / "red" / f"{name}.png"))
    ((image, _, _),) = examples(open_maps(root / "red"), open_masks(root / "set" / "masks"), ["1"])
    assert image is None


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("DUTS-TE/DUTS-TE-Mask", "DUTS-TE"),
        ("ECSSD/ground_truth_mask", "ECSSD"),
        ("hku/GT", "hku"),
        ("pascal.zip", "pascal"),
        ("PASCAL-S-masks.zip", "PASCAL-S"),
    ],
)
def test_masks_are_named_after_their_data_set(tmp_path: Path, path: str, name: str) -> None:
    masks = tmp_path / path
    masks.parent.mkdir(exist_ok=True)
    mask = to_png(np.array([[0, 255]], np.uint8))
    if path.endswith(".zip"):
        with zipfile.ZipFile(masks, "w") as archive:
            archive.writestr("a.png", mask)
    else:
        masks.mkdir()
        (masks / "a.png").write_bytes(mask)
    assert open_masks(masks).name == name


def test_the_papers_numbers_are_given_for_complete_published_sets_only() -> None:
    for name in ("DUTS-TE", "duts-te.zip", "duts:test", "DUTS_TE"):
        resnet, vgg = published_numbers(name, 5019)
        assert (resnet.network, resnet.mae, resnet.weighted_f, resnet.f_adaptive) == ("ResNet-50", 0.039, 0.817, 0.829)
        assert (vgg.network, vgg.mae) == ("VGG-16", 0.043)
    assert published_numbers("DUTS-TE", 300) == ()
    for name in ("DUTS", "DUTS-TR", "DUTS-TE-300", "DUTS-TE-300.zip", "duts:train", "tests"):
        assert known_test_set(name) is None, name
        assert published_numbers(name, 5019) == ()
    for name, images in (("dut_omron:test", 5168), ("pascal-s", 850), ("HKU-IS", 4447), ("xpie", 10000)):
        assert len(published_numbers(name, images)) == 2
    assert published_numbers("SOD", 300) == ()
    assert known_test_set("SOD") is not None
    assert len(PUBLISHED) == 6
    assert is_same_set("duts:test", "DUTS-TE")
    assert is_same_set("My set", "my_set")
    assert not is_same_set("ECSSD", "DUTS-TE")
    assert not is_same_set("甲", "乙")


def test_worker_processes_and_maps_from_files_need_no_jax() -> None:
    program = """
import sys
import purinet_jax.evaluation.evaluate, purinet_jax.evaluation.tables
print([name for name in ("jax", "scipy", "skimage", "matplotlib", "grain", "optax") if name in sys.modules])"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


def children(parent: int) -> list[int]:
    """A process's worker processes, as Linux lists them."""
    found = []
    for task in Path("/proc").glob("[0-9]*"):
        try:
            fields = (task / "stat").read_text().rsplit(")", 1)[1].split()
            command = (task / "cmdline").read_text()
        except OSError:
            continue
        if "multiprocessing.spawn" in command and fields[0] != "Z" and int(fields[1]) == parent:
            found.append(int(task.name))
    return found


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.slow
def test_workers_end_with_a_program_that_is_stopped_or_killed(tmp_path: Path, how: signal.Signals) -> None:
    if not Path("/proc/self/stat").exists():
        pytest.skip("needs /proc")
    image = to_png(np.random.default_rng(0).integers(0, 256, (500, 600), np.uint8))
    for index in range(300):
        for folder in ("maps", "masks"):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / f"{index}.png").write_bytes(image)
    command = [*INTERRUPTIBLE, "evaluate", "--workers", "2"]
    command += ["--maps", str(tmp_path / "maps"), "--masks", str(tmp_path / "masks")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True) as process:
        deadline = time.monotonic() + 60
        while len(workers := children(process.pid)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert process.stderr is not None
        process.stderr.read(1)  # progress: measuring has begun
        # A terminal sends Ctrl-C to all processes of the group.
        os.killpg(process.pid, how) if how == signal.SIGINT else process.kill()
        said = process.stderr.read().decode()
        process.wait(30)
        assert len(workers) == 2
        while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert said.endswith("purinet: interrupted\n")
        assert "Traceback" not in said


def test_maps_that_predict_wrote_next_to_images_are_those_of_the_images(root: Path) -> None:
    expected = quietly([open_maps(root / "red")], [open_data(root / "set")])[0]
    for file in (root / "red").iterdir():
        shutil.copy(file, root / "set" / "images" / f"{file.stem}_map.png")
        shutil.copy(root / "set" / "images" / file.name, root / "set" / "images" / f"{file.stem}_overlay.png")
    found = quietly([open_maps(root / "set" / "images")], [open_data(root / "set")])[0]
    assert numbers(found) == numbers(expected)


@pytest.mark.parametrize("coding", ["labels", "colour", "alpha", "named labels"])
def test_codings_of_masks_do_not_change_the_numbers(tmp_path: Path, coding: str) -> None:
    objects = np.zeros((20, 30), bool)
    objects[5:14, 8:20] = True
    coded = {
        "labels": objects * np.uint8(2),
        "colour": np.dstack([objects * np.uint8(255), np.zeros((20, 30, 2), np.uint8)]),
        "alpha": np.dstack([np.full((20, 30, 3), 255, np.uint8), objects * np.uint8(255)]),
        "named labels": np.where(objects, 15, 7).astype(np.uint8),
    }[coding]
    for folder, array in (("grey", objects * np.uint8(255)), ("coded", coded), ("maps", objects * np.uint8(200))):
        (tmp_path / folder).mkdir()
        Image.fromarray(array).save(tmp_path / folder / "a.png")
    labels = [15] if coding == "named labels" else []
    truths = [open_masks(tmp_path / "grey"), open_masks(tmp_path / "coded", object_labels=labels)]
    grey, other = quietly([open_maps(tmp_path / "maps")], truths)
    assert numbers(grey) == numbers(other)
    assert numbers(grey)["purnet"]["mae"] == 0
