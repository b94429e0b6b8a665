"""Prepared sets hold what their folder or archive holds, for this package and for TFDS alone; a set that cannot be
completed leaves nothing."""

import fcntl
import io
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from helpers.made_sets import noise_image, rectangle_mask, to_jpeg, write_set, zipped
from PIL import ExifTags, Image

from purinet_jax.commands.main import main
from purinet_jax.data import builders, sets
from purinet_jax.data.images import read_grey, read_rgb, to_png
from purinet_jax.data.pairs import Pairs, check_pairs, open_pairs
from purinet_jax.data.pipeline import training_batches
from purinet_jax.data.prepare import default_output, prepare
from purinet_jax.data.sets import COPIES_OF_TEST_IMAGES, SETS, TWINS
from purinet_jax.data.sources import find_splits
from purinet_jax.errors import InputError

NAMES = ("a", "b", "c")


def write_duts(root: Path, *splits: str, names: tuple[str, ...] = NAMES) -> Path:
    for split in splits or ("TR", "TE"):
        folder = root / f"DUTS-{split}"
        write_set(folder / f"DUTS-{split}-Image", folder / f"DUTS-{split}-Mask", *names)
    return root


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_duts(tmp_path / "data")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Both splits of DUTS: what they were made of, and the set."""
    root = tmp_path_factory.mktemp("prepared")
    write_duts(root / "data")
    result = prepare("duts", root / "data", root / "sets", progress=False)
    return root / "data", Path(result["path"])


def everything(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_prepared_set_is_the_data_it_was_made_of(prepared: tuple[Path, Path]) -> None:
    data, path = prepared
    for split, folder in (("train", "DUTS-TR"), ("test", "DUTS-TE")):
        source, found = open_pairs(data / folder), open_pairs(f"{path}:{split}")
        assert found.names == source.names == NAMES
        assert found.fingerprint == source.fingerprint
        assert found.subset([2, 0]).fingerprint == source.subset([2, 0]).fingerprint
        assert check_pairs(found, progress=False) == []
        for again in (found, pickle.loads(pickle.dumps(found))):
            for index in range(3):
                assert set(again[index]) == {"image", "mask", "index"}
                for key, value in source[index].items():
                    np.testing.assert_array_equal(again[index][key], value)  # type: ignore[literal-required]
                grey = [read_grey(pairs.storage.read(pairs.masks[index])) for pairs in (source, again)]
                np.testing.assert_array_equal(*grey)
                assert 90 in grey[0]  # grey values, and not what they are cut to
        assert found.image_path(1) == f"{path}:{split}/image/b"
    assert open_pairs(f"{path / '1.0.0'}:test").names == NAMES
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["duts"]
    assert sorted(entry.name for entry in path.iterdir()) == ["1.0.0"]


def test_batches_of_a_prepared_set_are_those_of_its_data(prepared: tuple[Path, Path]) -> None:
    data, path = prepared
    batches = []
    for pairs, workers in ((open_pairs(data / "DUTS-TR"), 0), (open_pairs(f"{path}:train"), 1)):
        with training_batches(pairs, batch_size=2, size=16, seed=0, workers=workers, prefetch=1) as reader:
            batches.append([next(reader) for _ in range(3)])
    for first, second in zip(*batches, strict=True):
        assert first.keys() == second.keys() == {"image", "mask", "index"}
        for key in first:
            np.testing.assert_array_equal(first[key], second[key])


@pytest.mark.parametrize(
    ("end", "message"),
    [
        ("", "has 2 splits: {path}:test or {path}:train"),
        (":validation", "has no split validation: {path}:test or {path}:train"),
        (":train:test", "no such file or folder"),
        ("x:train", "no such file or folder"),
    ],
)
def test_a_split_must_be_named(prepared: tuple[Path, Path], end: str, message: str) -> None:
    _, path = prepared
    with pytest.raises(InputError, match=f"^{path}{end}: {message.format(path=path)}"):
        open_pairs(f"{path}{end}")


@pytest.mark.parametrize("name", list(SETS))
def test_builders(tmp_path: Path, name: str) -> None:
    known = SETS[name]
    manual, made = tmp_path / "manual", tmp_path / "tfds"
    for split in known.counts:
        folder = manual / f"{known.name}-{split}"
        write_set(folder / "Imgs", folder / "GT", *NAMES)
    builder = tfds.builder(name, data_dir=made)
    assert builder.info.citation == known.citation
    assert builder.info.homepage == known.homepage
    assert known.licence in builder.info.redistribution_info.license
    assert builder.RELEASE_NOTES[str(builder.version)]
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual))

    read = tfds.builder(name, data_dir=made)  # as in another program
    assert list(read.info.splits) == list(known.counts)
    for split in known.counts:
        source = read.as_data_source(split)
        assert len(source) == 3
        pairs = open_pairs(manual / f"{known.name}-{split}")
        for index, example in enumerate(source):
            assert set(example) == {"image", "mask", "name"}
            assert example["name"].decode() == pairs.names[index]
            np.testing.assert_array_equal(example["image"], pairs[index]["image"])
            np.testing.assert_array_equal(example["mask"][..., 0], rectangle_mask(index))
        assert open_pairs(f"{made / name}:{split}").fingerprint == pairs.fingerprint
    assert sorted(entry.name for entry in made.iterdir()) in ([name], ["downloads", name])


def test_names_that_are_no_utf8_are_kept(tmp_path: Path) -> None:
    names = ("a", os.fsdecode(b"b\n\xff"))
    write_duts(tmp_path / "data", "TE", names=names)
    path = Path(prepare("duts", tmp_path / "data", tmp_path / "sets", progress=False)["path"])
    assert open_pairs(path).names == names
    stored = tfds.builder_from_directory(path / sets.VERSION).as_data_source("test")
    assert [example["name"] for example in stored] == [os.fsencode(name) for name in names]


def test_builder_says_what_it_looks_for(tmp_path: Path) -> None:
    builder = tfds.builder("pascal_s", data_dir=tmp_path)
    with pytest.raises(AssertionError, match=r"datasets/imgs/pascal and datasets/masks/pascal"):
        builder.download_and_prepare()


def test_plain_tfds_reads_a_prepared_set(prepared: tuple[Path, Path]) -> None:
    data, path = prepared
    for builder in (
        tfds.builder("duts", data_dir=path.parent),
        tfds.builder_from_directory(path / "1.0.0"),
    ):
        example = builder.as_data_source("train")[1]
        np.testing.assert_array_equal(example["image"], open_pairs(data / "DUTS-TR")[1]["image"])


class BuilderOfRelease02(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Writes a set with the features and metadata of release 0.2, which stored superpixels."""

    name = "duts"
    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, source: Pairs, folder: Path) -> None:
        self.source = source
        super().__init__(data_dir=folder, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        images = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "mask": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
            "superpixels": tfds.features.Image(shape=(None, None, 1), dtype=np.uint16, encoding_format="png"),
        }
        features = tfds.features.FeaturesDict({**images, "name": tfds.features.Text()})
        metadata = tfds.core.MetadataDict()
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True, metadata=metadata)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        split = {
            "names": self.source.names,
            "sizes": self.source.sizes,
            "left_out": [],
            "source": self.source.fingerprint,
        }
        self.info.metadata.update(superpixels="slic", splits={"test": split})
        superpixels = to_png(np.zeros((24, 32), np.uint16))
        records = [builders.record(self.source, index) | {"superpixels": superpixels} for index in range(3)]
        return {"test": enumerate(records)}

    def _generate_examples(self) -> None:
        raise NotImplementedError


def test_a_set_that_release_0_2_prepared_is_still_read(data: Path, tmp_path: Path) -> None:
    source = open_pairs(data / "DUTS-TE")
    BuilderOfRelease02(source, tmp_path / "sets").download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
    path = tmp_path / "sets" / "duts"
    found = open_pairs(path)
    assert found.fingerprint == source.fingerprint
    assert found.superpixels is None
    assert set(found[2]) == {"image", "mask", "index"}
    for key, value in source[2].items():
        np.testing.assert_array_equal(found[2][key], value)  # type: ignore[literal-required]
    assert set(tfds.builder("duts", data_dir=path.parent).as_data_source("test")[0]) >= {"image", "superpixels"}
    assert not prepare("duts", data / "DUTS-TE", path.parent, progress=False)["built"]


def test_one_split_needs_no_name(tmp_path: Path) -> None:
    write_set(tmp_path / "ECSSD" / "images", tmp_path / "ECSSD" / "ground_truth_mask", *NAMES)
    archive = zipped(tmp_path / "ECSSD", tmp_path / "ECSSD.zip")
    result = prepare("ecssd", archive, tmp_path, progress=False)
    found = open_pairs(result["path"])
    assert found.fingerprint == open_pairs(archive).fingerprint
    assert found.image_path(0) == f"{result['path']}/image/a"
    assert open_pairs(Path(result["path"]) / "1.0.0").names == NAMES


def test_no_tensorflow(data: Path, tmp_path: Path) -> None:
    program = """
import sys
import tensorflow_datasets as tfds
from purinet_jax.data.pairs import open_pairs
from purinet_jax.data.prepare import prepare
if __name__ == "__main__":
    result = prepare("duts", sys.argv[1], sys.argv[2]  , progress=False)
    open_pairs(result["path"] + ":train")[0]
    tfds.builder("duts", data_dir=sys.argv[2]).as_data_source("test")[0]
    assert "tensorflow" not in sys.modules
    assert "jax" not in sys.modules
    print(len(open_pairs(result["path"] + ":test")))
"""
    script = tmp_path / "program.py"
    script.write_text(program)
    command = [sys.executable, "-W", "error", str(script), str(data), str(tmp_path / "sets")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr


def turned() -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    buffer = io.BytesIO()
    Image.fromarray(noise_image(0)).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def saved(array: np.ndarray, mode: str, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def sixteen_bits(colours: bool) -> bytes:
    """A 16-bit PNG of `noise_image` or `rectangle_mask`, its low bytes other than its high ones."""
    import cv2

    array = noise_image(0)[..., ::-1] if colours else rectangle_mask(0)
    return cv2.imencode(".png", array.astype(np.uint16) * 256 + 17)[1].tobytes()


IMAGES: dict[str, tuple[Callable[[], bytes], str, bool]] = {
    "jpeg": (lambda: to_jpeg(noise_image(0)), ".jpg", True),
    "grey jpeg": (lambda: saved(noise_image(0), "L", "JPEG"), ".jpg", True),
    "png": (lambda: to_png(noise_image(0)), ".png", True),
    "grey png": (lambda: to_png(noise_image(0)[..., 0]), ".png", True),
    "turned jpeg": (turned, ".jpg", False),
    "cmyk jpeg": (lambda: saved(noise_image(0), "CMYK", "JPEG"), ".jpg", False),
    "palette png": (lambda: saved(noise_image(0), "P", "PNG"), ".png", False),
    "png with alpha": (lambda: saved(noise_image(0), "RGBA", "PNG"), ".png", False),
    "transparent png": (lambda: saved(noise_image(0), "RGB", "PNG", transparency=(1, 2, 3)), ".png", False),
    "16-bit png": (lambda: sixteen_bits(True), ".png", False),
    "bmp": (lambda: saved(noise_image(0), "RGB", "BMP"), ".bmp", False),
}
MASKS: dict[str, tuple[Callable[[], bytes], str, bool]] = {
    "png": (lambda: to_png(rectangle_mask(0)), ".png", True),
    "zeros and ones": (lambda: to_png(rectangle_mask(0) // 255), ".png", False),
    "rgb png": (lambda: saved(rectangle_mask(0), "RGB", "PNG"), ".png", False),
    "one bit": (lambda: saved(rectangle_mask(0), "1", "PNG"), ".png", False),
    "jpeg": (lambda: to_jpeg(rectangle_mask(0)), ".jpg", False),
    "16-bit png": (lambda: sixteen_bits(False), ".png", False),
    "with alpha": (lambda: saved(rectangle_mask(0), "LA", "PNG"), ".png", False),
}


@pytest.mark.parametrize("image", IMAGES)
def test_every_reader_sees_the_same_image(tmp_path: Path, image: str) -> None:
    make, ending, kept = IMAGES[image]
    height, width = read_rgb(make()).shape[:2]
    mask = np.zeros((height, width), np.uint8)
    mask[0] = 255
    assert_stored(tmp_path, make(), ending, to_png(mask), ".png", "image", kept)


@pytest.mark.parametrize("mask", MASKS)
def test_every_reader_sees_the_same_mask(tmp_path: Path, mask: str) -> None:
    make, ending, kept = MASKS[mask]
    assert_stored(tmp_path, to_jpeg(noise_image(0)), ".jpg", make(), ending, "mask", kept)


def assert_stored(
    root: Path, image: bytes, image_end: str, mask: bytes, mask_end: str, feature: str, kept: bool
) -> None:
    (root / "images").mkdir()
    (root / "masks").mkdir()
    (root / "images" / f"a{image_end}").write_bytes(image)
    (root / "masks" / f"a{mask_end}").write_bytes(mask)
    example = builders.record(open_pairs(root), 0)
    stored = example[feature]
    assert isinstance(stored, bytes)
    assert (stored == {"image": image, "mask": mask}[feature]) == kept
    expected, read = (read_rgb(image), read_rgb) if feature == "image" else (read_grey(mask), read_grey)
    np.testing.assert_array_equal(read(stored), expected)
    channels = 3 if feature == "image" else 1
    decoded = tfds.features.Image(shape=(None, None, channels)).decode_example_np(stored)
    np.testing.assert_array_equal(decoded, expected.reshape(*expected.shape[:2], channels))


def test_labels_are_stored_as_black_and_white(tmp_path: Path) -> None:
    mask = rectangle_mask(0) // 17  # 0, 5 and 15
    for folder, data in (("images", to_jpeg(noise_image(0))), ("masks", to_png(mask))):
        (tmp_path / "ECSSD" / folder).mkdir(parents=True)
        (tmp_path / "ECSSD" / folder / f"a{'.jpg' if folder == 'images' else '.png'}").write_bytes(data)
    for labels, expected in (((), mask > 0), ((15,), mask == 15)):
        pairs = find_splits(SETS["ecssd"], tmp_path, labels)["test"]
        stored = builders.record(pairs, 0)["mask"]
        np.testing.assert_array_equal(read_grey(stored), expected * np.uint8(255))  # type: ignore[arg-type]


class Stop(BaseException):
    """Stops the building, as Ctrl-C does."""


def test_a_stop_leaves_nothing(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets, temporary = tmp_path / "sets", tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    # A kill leaves what TFDS had begun to write.
    unfinished = sets / "duts.part" / "duts" / "incomplete.1_1.0.0"
    unfinished.mkdir(parents=True)
    (unfinished / "duts-train.array_record").write_bytes(b"half")

    def stop(pairs: Pairs, index: int) -> dict[str, bytes | str]:
        if index == 2:
            raise Stop
        return original(pairs, index)

    original = builders.record
    monkeypatch.setattr(builders, "record", stop)
    with pytest.raises(Stop):
        prepare("duts", data, sets, progress=False)
    assert list(sets.iterdir()) == []
    monkeypatch.setattr(builders, "record", original)
    assert prepare("duts", data, sets, progress=False)["built"]
    assert [entry.name for entry in sets.iterdir()] == ["duts"]
    assert list(temporary.iterdir()) == []


def test_second_run_does_nothing(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = tmp_path / "sets"
    first = prepare("duts", data, sets, progress=False)
    before = everything(sets)
    (sets / "duts.part").mkdir()  # as a kill between the last two acts leaves it
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", None)
    second = prepare("duts", data, sets, progress=False)
    assert (first.pop("built"), second.pop("built")) == (True, False)
    assert first == second
    assert everything(sets) == before
    assert [entry.name for entry in sets.iterdir()] == ["duts"]
    # The same data in other packing is the same.
    assert not prepare("duts", zipped(data, tmp_path / "all.zip"), sets, progress=False)["built"]


def test_another_set_at_the_same_path(data: Path, tmp_path: Path) -> None:
    sets = tmp_path / "sets"
    prepare("duts", data, sets, progress=False)
    before = everything(sets)
    with pytest.raises(
        InputError, match=r"1\.0\.0: holds a set already, with the splits train and test instead of test"
    ):
        prepare("duts", data / "DUTS-TE", sets, progress=False)
    write_duts(data, "TE", names=("a", "b", "c", "d"))
    with pytest.raises(InputError, match=r"with test of other data"):
        prepare("duts", data, sets, progress=False)
    (sets / "duts" / "1.0.0" / "metadata.json").write_text("{}")
    with pytest.raises(InputError, match="not a data set that `purinet prepare` wrote, or a damaged one"):
        prepare("duts", data, sets, progress=False)
    (sets / "duts" / "1.0.0" / "metadata.json").write_bytes(before["duts/1.0.0/metadata.json"])
    assert everything(sets) == before


def test_shortfalls_are_named(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prepare("duts", data / "DUTS-TE", tmp_path / "sets", progress=False)
    assert caplog.messages == ["DUTS train: absent (10,553 pairs)", "DUTS test: 3 of 5,019 pairs"]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_bad_files(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (data / "DUTS-TR" / "DUTS-TR-Image" / "b.jpg").write_bytes(b"damaged")
    (data / "DUTS-TR" / "DUTS-TR-Mask" / "c.png").write_bytes(to_png(np.zeros((3, 3), np.uint8)))
    (data / "DUTS-TE" / "DUTS-TE-Mask" / "a.png").write_bytes(b"")
    sets = tmp_path / "sets"
    with pytest.raises(InputError, match="3 of 6 pairs cannot be used"):
        prepare("duts", data, sets, progress=False)
    named = [message for message in caplog.messages if str(data) in message]
    assert [len([message for message in named if part in message]) for part in ("b.jpg", "c.png", "a.png")] == [1, 1, 1]
    assert not sets.exists()
    result = prepare("duts", data, sets, skip_bad=True, progress=False)
    assert result["splits"] == {
        "train": {"pairs": 1, "expected": 10_553, "left_out": ["b", "c"]},
        "test": {"pairs": 2, "expected": 5_019, "left_out": ["a"]},
    }
    test = open_pairs(f"{result['path']}:test")
    assert test.names == ("b", "c")
    assert test.fingerprint == open_pairs(data / "DUTS-TE").subset([1, 2]).fingerprint
    assert check_pairs(test, progress=False) == []
    assert not prepare("duts", data, sets, skip_bad=True, progress=False)["built"]
    (data / "DUTS-TE" / "DUTS-TE-Mask" / "b.png").write_bytes(b"")
    (data / "DUTS-TE" / "DUTS-TE-Mask" / "c.png").write_bytes(b"")
    with pytest.raises(InputError, match="none of 3 pairs can be used"):
        prepare("duts", data, tmp_path / "other", skip_bad=True, progress=False)


def test_too_little_space(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = sum(file.stat().st_size for file in data.rglob("*.*"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=size - 1))
    with pytest.raises(InputError, match="MB are needed, but 0 MB are free"):
        prepare("duts", data, tmp_path / "sets", progress=False)
    assert not (tmp_path / "sets").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=size))
    prepare("duts", data, tmp_path / "sets", progress=False)


def test_outputs_that_cannot_be_used(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: cannot be written to: Not a directory"):
        prepare("duts", data, tmp_path / "file", progress=False)
    work = tmp_path / "sets" / "duts.part"
    work.mkdir(parents=True)
    with (work / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process is preparing this data set"):
            prepare("duts", data, tmp_path / "sets", progress=False)
    with pytest.raises(InputError, match="imagenet: no such data set; known are duts, ecssd, dut_omron"):
        prepare("imagenet", data, tmp_path)


def test_default_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/somewhere")
    assert default_output() == Path("/somewhere/purinet_jax")
    monkeypatch.setenv("XDG_DATA_HOME", "")
    monkeypatch.setenv("HOME", "/home/she")
    assert default_output() == Path("/home/she/.local/share/purinet_jax")


def test_damaged_sets(prepared: tuple[Path, Path], tmp_path: Path) -> None:
    path = shutil.copytree(prepared[1], tmp_path / "duts")
    (records,) = (path / "1.0.0").glob("duts-train*")
    contents = records.read_bytes()
    records.write_bytes(contents[: len(contents) // 2])
    pairs = open_pairs(f"{path}:train")
    bad = check_pairs(pairs, progress=False)
    assert bad
    assert all(reason.startswith(f"{path}:train/image/{pairs.names[index]}: damaged: ") for index, reason in bad)
    position = len(contents) // 2
    records.write_bytes(contents[:position] + bytes([contents[position] ^ 255]) + contents[position + 1 :])
    assert check_pairs(open_pairs(f"{path}:train"), progress=False)
    os.truncate(path / "1.0.0" / "dataset_info.json", 10)
    with pytest.raises(InputError, match="duts:test: damaged"):
        open_pairs(f"{path}:test")[0]
    (path / "1.0.0" / "metadata.json").unlink()
    with pytest.raises(InputError, match="not a data set that `purinet prepare` wrote"):
        open_pairs(f"{path}:test")


def test_training_without_leaks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (copy,), (second, first) = COPIES_OF_TEST_IMAGES, next(iter(TWINS.items()))
    write_duts(tmp_path / "data", "TR", names=tuple(sorted([copy, first, second, "other"])))
    for image in (tmp_path / "data" / "DUTS-TR" / "DUTS-TR-Image").iterdir():
        image.write_bytes(b"damaged")  # so that training ends where it has looked at the data
    config = str(Path(__file__).parent.parent / "configs" / "tiny.py")
    command = ["train", "--config", config, "--data", str(tmp_path / "data"), "-o", str(tmp_path / "run"), "--quiet"]
    for option, left in (([], 4), (["--without-leaks"], 2)):
        caplog.clear()
        assert main([*command, *option]) == 2
        left_out = [message for message in caplog.messages if message.startswith("left out 2 of 4 pairs")]
        assert len(left_out) == len(option)
        assert sum("damaged" in message for message in caplog.messages) == left


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["prepare", "--help"])
    text = capsys.readouterr().out
    assert "purinet prepare duts --data" in text.split("examples:")[1]
    assert all(key in text for key in SETS)


def test_command(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    sets = tmp_path / "sets"
    command = ["prepare", "duts", "--data", str(data), "--output", str(sets), "--quiet"]
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["built"]
    assert result["path"] == str(sets / "duts")
    assert result["bytes"] == sum(map(len, everything(sets).values()))
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "train 3 of 10,553 pairs, test 3 of 5,019 pairs, " in text
    assert "exists already, nothing to do" in text
    for line in text.splitlines():
        if "--data" in line:
            assert len(open_pairs(line.split("--data ")[1].removesuffix(" …"))) == 3
    (data / "DUTS-TR" / "DUTS-TR-Image" / "b.jpg").write_bytes(b"damaged")
    assert main([*command[:5], str(tmp_path / "other"), "--quiet"]) == 2
    assert "b.jpg" in caplog.messages[-1]
    assert (
        capsys.readouterr().err.strip()
        == "purinet: 1 of 6 pairs cannot be used (named above); --skip-bad leaves them out"
    )
    assert not (tmp_path / "other").exists()
