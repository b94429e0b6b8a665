"""Files: which images inputs name, where outputs go, bad input; 500 odd and damaged files."""

import errno
import io
import json
import os
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from helpers.damage import MUTATIONS, encode
from helpers.networks import SIZE, Brightness
from PIL import ExifTags, Image, ImageCms

from purinet_jax.commands.main import main
from purinet_jax.data.images import read_srgb
from purinet_jax.data.results import RESULT_KINDS
from purinet_jax.data.synthetic import draw_example
from purinet_jax.errors import InputError
from purinet_jax.prediction import rendering
from purinet_jax.prediction.backgrounds import Blur, read_background
from purinet_jax.prediction.cutouts import binary_mask, cutout, multiply, overlay, visible
from purinet_jax.prediction.files import STANDARD, Existing, Job, plan, predict_files
from purinet_jax.prediction.refine import refine_map
from purinet_jax.prediction.rendering import KINDS, Kind, Style

RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def write(path: Path, image: np.ndarray = RGB, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **options)
    return path


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def run(jobs: Sequence[Job], style: Style = Style(), **options: Any) -> list[str | None]:  # noqa: B008
    network: Any = Brightness()
    return [result.error for result in predict_files(network, jobs, style, **options)]


def outputs(jobs: Sequence[Job], root: Path) -> dict[str, str]:
    def below(path: Path) -> str:
        return path.relative_to(root).as_posix()

    return {below(job.source): below(job.output) for job in jobs}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("photos/b.JPG", "photos/a.png", "photos/in/c.webp", "photos/.hidden.png", "photos/.in/d.png"):
        write(tmp_path / name)
    (tmp_path / "photos/notes.txt").write_text("no image")
    return tmp_path / "photos"


def test_outputs_go_next_to_their_images(tmp_path: Path, photos: Path) -> None:
    single = photos.rename(tmp_path / "others") / "a.png"
    assert outputs(plan([single]), tmp_path) == {"others/a.png": "others/a_map.png"}
    assert outputs(plan([single.parent, single], kind="cutout", ending=".webp"), tmp_path) == {
        "others/a.png": "others/a_cutout.webp",
        "others/b.JPG": "others/b_cutout.webp",
        "others/in/c.webp": "others/in/c_cutout.webp",
    }


def test_folders_keep_their_structure_in_the_output(tmp_path: Path, photos: Path) -> None:
    other = write(tmp_path / "elsewhere" / "e.tif")
    assert outputs(plan([photos, other], tmp_path / "out"), tmp_path) == {
        "photos/a.png": "out/a.png",
        "photos/b.JPG": "out/b.png",
        "photos/in/c.webp": "out/in/c.png",
        "elsewhere/e.tif": "out/e.png",
    }
    assert not (tmp_path / "out").exists()


def test_patterns(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert outputs(plan([f"{photos}/**/*"], tmp_path / "out"), tmp_path) == {
        "photos/a.png": "out/a.png",
        "photos/b.JPG": "out/b.png",
        "photos/in/c.webp": "out/in/c.png",
    }
    monkeypatch.chdir(photos)
    assert plan(["*.png", "i?/*"], "out") == [
        Job(Path("a.png"), Path("out/a.png")),
        Job(Path("in/c.webp"), Path("out/in/c.png")),
    ]
    odd = write(photos / "odd[1].png")
    assert plan([odd])[0].source == odd
    with pytest.raises(InputError, match="matches no images"):
        plan(["*.gif"])


def test_images_of_one_stem_keep_their_endings(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "b.png"):
        write(tmp_path / name)
    assert outputs(plan([tmp_path]), tmp_path) == {
        "a.jpg": "a.jpg_map.png",
        "a.png": "a.png_map.png",
        "b.png": "b_map.png",
    }
    assert outputs(plan([tmp_path], tmp_path / "out"), tmp_path) == {
        "a.jpg": "out/a.jpg.png",
        "a.png": "out/a.png.png",
        "b.png": "out/b.png",
    }


def test_outputs_of_an_earlier_run_are_no_inputs(tmp_path: Path, photos: Path) -> None:
    write(photos / "b.png")
    write(photos / "holiday_map.png")  # named so, but no holiday is next to it
    before = outputs(plan([photos]), photos)
    for kind in KINDS:
        assert run(plan([photos], kind=kind), Style(kind)) == [None] * 5
    for inputs in (photos, f"{photos}/**/*"):
        assert outputs(plan([inputs], existing="overwrite"), photos) == before
    assert run(plan([photos], photos / "maps")) == [None] * 5
    assert outputs(plan([photos], photos / "maps", existing="overwrite"), photos) == {
        source: f"maps/{Path(source).with_suffix('.png') if 'b.' not in source else source + '.png'}"
        for source in before
    }
    with pytest.raises(InputError, match="only what an earlier run wrote"):
        plan([f"{photos}/*_cutout.png"])


def test_files_that_exist_are_refused_replaced_or_kept(tmp_path: Path, photos: Path) -> None:
    out = tmp_path / "out"
    assert run(plan([photos], out)) == [None] * 3
    (out / "a.png").write_bytes(b"precious")
    (out / "b.png").unlink()
    with pytest.raises(InputError, match=f"{re.escape(str(out / 'a.png'))}: exists already, and 1 more; --overwrite"):
        plan([photos], out)
    (job,) = plan([photos], out, existing="skip")
    assert job.output == out / "b.png"
    assert len(plan([photos], out, existing="overwrite")) == 3
    assert run(plan([photos], out, existing="overwrite")) == [None] * 3
    assert read(out / "a.png").shape == (20, 30)


def test_single_files_and_streams(tmp_path: Path, photos: Path) -> None:
    image = photos / "a.png"
    assert plan([image], tmp_path / "x.JPG") == [Job(image, tmp_path / "x.JPG")]
    assert plan([image], "-") == [Job(image, STANDARD)]
    assert plan(["-"]) == [Job(STANDARD, STANDARD)]
    assert plan(["-"], tmp_path / "out") == [Job(STANDARD, tmp_path / "out" / "stdin.png")]
    (tmp_path / "folder.png").mkdir()
    assert plan([image], tmp_path / "folder.png")[0].output == tmp_path / "folder.png" / "a.png"


def test_videos_keep_their_format_and_gifs_in_folders_are_images(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    for name in ("b.mp4", "b.GIF", "c.webm"):
        (tmp_path / name).write_bytes(b"")
    videos = {"b.mp4": "b_map.mp4", "c.webm": "c_map.webm"}
    assert outputs(plan([tmp_path], ending=".jpg"), tmp_path) == {"a.png": "a_map.jpg", "b.GIF": "b_map.jpg"} | videos
    matched = {"a.png": "a_map.jpg", "b.GIF": "b_map.gif"} | videos
    assert outputs(plan([f"{tmp_path}/*"], ending=".jpg"), tmp_path) == matched
    assert [job.source.name for job in plan([tmp_path], kind="attention")] == ["a.png", "b.GIF"]
    (job,) = plan([tmp_path / "b.mp4"], kind="cutout", transparent=True)
    assert job.output.name == "b_cutout.webm"
    (job,) = plan([tmp_path / "b.GIF"], tmp_path / "x.png")
    assert job.output.name == "x.png"


def test_all_kinds_that_are_read_are_found_and_the_others_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = [f"a.{ending}" for ending in ("jfif", "jpe", "avif", "gif", "jp2", "JPG", "png", "ppm", "tif", "webp")]
    videos = [f"b.{ending}" for ending in ("mov", "mkv", "avi", "m4v", "mp4", "webm")]
    for name in (*images, *videos, "notes.txt", "more.txt", "LICENSE", ".hidden.txt", "a_map.png"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "broken.png").symlink_to(tmp_path / "nothing")
    with caplog.at_level("INFO", "purinet_jax"):
        jobs = plan([tmp_path], tmp_path / "out")
    assert [job.source.name for job in jobs] == sorted(images + videos)
    assert caplog.messages == [
        f"{tmp_path}: 5 files passed over: 2 .txt, 1 .png, 1 without an ending, 1 results of earlier runs"
    ]


def test_animations_in_folders_are_read_by_their_first_frame(tmp_path: Path) -> None:
    first = Image.fromarray(RGB).quantize(64)
    first.save(tmp_path / "a.gif", save_all=True, append_images=[first.transpose(Image.Transpose.ROTATE_180)])
    write(tmp_path / "b.jfif", format="JPEG")
    still = first.convert("RGB")
    write(tmp_path / "still.png", np.asarray(still))
    assert run(plan([tmp_path], tmp_path / "out")) == [None] * 3
    np.testing.assert_array_equal(read(tmp_path / "out" / "a.png"), read(tmp_path / "out" / "still.png"))


def test_linked_folders_are_searched_without_circles(tmp_path: Path, photos: Path) -> None:
    elsewhere = write(tmp_path / "elsewhere" / "e.png").parent
    (photos / "linked").symlink_to(elsewhere)
    (photos / "again").symlink_to(photos / "in")
    (photos / "in" / "circle").symlink_to(photos)
    (elsewhere / "back").symlink_to(photos)
    expected = ["a.png", "b.JPG", "in/c.webp", "linked/e.png"]
    assert [str(job.source.relative_to(photos)) for job in plan([photos], tmp_path / "out")] == expected
    found = [str(job.source.relative_to(photos)) for job in plan([f"{photos}/**/*.*"], tmp_path / "out")]
    assert sorted(name.split("/")[-1] for name in found) == ["a.png", "b.JPG", "c.webp", "e.png"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_output_folder_may_be_that_of_the_images(tmp_path: Path, photos: Path, kind: Kind) -> None:
    before = {file: file.read_bytes() for file in photos.rglob("*") if file.is_file()}
    expected = {"a.png": f"a_{kind}.png", "b.JPG": f"b_{kind}.png", "in/c.webp": f"in/c_{kind}.png"}
    for inputs in ([photos], [f"{photos}/**/*"]):
        jobs = plan(inputs, photos, kind=kind, existing="overwrite")
        assert outputs(jobs, photos) == expected
        assert run(jobs, Style(kind)) == [None] * 3
        with pytest.raises(InputError, match="exists already, and 2 more"):
            plan(inputs, photos, kind=kind)
        assert plan(inputs, photos, kind=kind, existing="skip") == []
        (photos / f"b_{kind}.png").unlink()
        assert outputs(plan(inputs, photos, kind=kind, existing="skip"), photos) == {"b.JPG": f"b_{kind}.png"}
    assert (
        outputs(plan([photos / "a.png"], photos, kind=kind, existing="overwrite"), photos)["a.png"] == f"a_{kind}.png"
    )
    assert {file: file.read_bytes() for file in before} == before
    matched = plan([f"{photos}/**/*"], photos / "maps")
    assert run(matched) == [None] * 3
    assert plan([f"{photos}/**/*"], photos / "maps", existing="overwrite") == matched


def test_the_names_of_results_are_those_of_the_rule_on_data_sets() -> None:
    assert RESULT_KINDS == KINDS


def test_an_input_that_is_missing_or_closed_does_not_stop_the_others(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = photos / "closed"
    write(closed / "d.png")
    for name in ("circle.png", "circle"):
        (photos / name).symlink_to(name)
    (tmp_path / "empty").mkdir()
    scandir = os.scandir

    def refuse(path: Any) -> Any:  # root may read everything
        if str(path) == str(closed):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    missing = str(tmp_path / "missing.png")
    inputs = [missing, photos, str(tmp_path / "empty"), f"{tmp_path}/*.nothing", "x" * 300, "https://a.b/c.png"]
    errors: dict[str, str] = {}
    jobs = plan(inputs, tmp_path / "out", errors=errors)
    # A link in a circle is named when it is read.
    assert [job.source.name for job in jobs] == ["a.png", "b.JPG", "circle.png", "c.webp"]
    assert list(errors) == [missing, str(closed), *inputs[2:]]
    assert errors[missing] == f"{missing}: no such file or folder"
    assert errors[str(closed)] == f"{closed}: cannot be read: Permission denied"
    assert errors["x" * 300].endswith("cannot be read: File name too long")
    for path, error in errors.items():
        assert error.startswith(f"{path}: ")
        assert "\n" not in error
    with pytest.raises(InputError, match="one file for 2 images"):
        plan([missing, photos / "a.png"], tmp_path / "x.png", errors={})
    with pytest.raises(InputError, match=re.escape(f"{closed}: cannot be read")):
        plan([photos])


def test_the_command_reports_what_is_missing_and_predicts_the_rest(
    tmp_path: Path,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("purinet_jax.prediction.predictor.load", lambda *_: Brightness())
    missing, out = str(tmp_path / "missing.png"), tmp_path / "out"
    assert main(["predict", missing, str(photos), "-o", str(out), "--json"]) == 2
    captured = capsys.readouterr()
    lines = [json.loads(line) for line in captured.out.splitlines()]
    assert lines[0] == {"input": missing, "error": f"{missing}: no such file or folder"}
    assert [line["output"] for line in lines[1:]] == [str(out / name) for name in ("a.png", "b.png", "in/c.png")]
    assert captured.err.splitlines()[-1] == f"purinet: {missing}: no such file or folder"
    assert f"{photos}: 1 file passed over: 1 .txt" in caplog.messages
    assert main(["predict", missing, "-o", str(tmp_path / "other"), "--quiet"]) == 2
    assert capsys.readouterr().err == f"purinet: {missing}: no such file or folder\n"
    assert not (tmp_path / "other").exists()


def test_patterns_below_folders_with_brackets(tmp_path: Path) -> None:
    for name in ("photos [2020]/a.png", "photos [2020]/in[1]/b.png", "photos 2/c.png"):
        write(tmp_path / name)
    root = str(tmp_path)
    for pattern, expected in (
        (f"{root}/photos [2020]/*.png", {"a.png": "a.png"}),
        (f"{root}/photos [2020]/**/*.png", {"a.png": "a.png", "b.png": "in[1]/b.png"}),
        (f"{root}/photos [2020]/in[1]/*", {"b.png": "b.png"}),
        (f"{root}/*/in[1]/*.png", {"b.png": "photos [2020]/in[1]/b.png"}),
        (f"{root}/photos [0-9]/*", {"c.png": "photos 2/c.png"}),
    ):
        jobs = plan([pattern], tmp_path / "out")
        found = {job.source.name: job.output.relative_to(tmp_path / "out").as_posix() for job in jobs}
        assert found == expected, pattern


@pytest.mark.parametrize("large", [False, True])
def test_pipes_are_read_once(tmp_path: Path, large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if large:
        monkeypatch.setattr(rendering, "_LARGE_PIXELS", 10)
    data = write(tmp_path / "a.png").read_bytes()
    pipes = []
    for name in ("one", "two"):
        os.mkfifo(tmp_path / name)
        pipes.append(threading.Thread(target=(tmp_path / name).write_bytes, args=(data,), daemon=True))
        pipes[-1].start()
    assert plan([tmp_path / "one"]) == [Job(tmp_path / "one", STANDARD)]
    jobs = plan([tmp_path / "one", tmp_path / "two"], tmp_path / "out")
    assert [job.output.name for job in jobs] == ["one.png", "two.png"]
    assert run(jobs, Style("cutout")) == [None] * 2
    assert run(plan([tmp_path / "a.png"], tmp_path / "b.png"), Style("cutout")) == [None]
    for job in jobs:
        np.testing.assert_array_equal(read(job.output), read(tmp_path / "b.png"))
    for pipe in pipes:
        pipe.join(9)
    for name in ("/dev/stdin", "/dev/fd/0"):
        assert plan([name]) == plan(["-"], "/dev/stdout") == [Job(STANDARD, STANDARD)]
    with pytest.raises(InputError, match="/dev/null: is a device"):
        plan(["/dev/null"])


def test_process_substitution(tmp_path: Path) -> None:
    write(tmp_path / "x.png")
    program = (
        "import sys; from purinet_jax.prediction import plan; print(open(plan(sys.argv[1:])[0].source, 'rb').read())"
    )
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(program)} <(cat x.png)"
    done = subprocess.run(["bash", "-c", command], capture_output=True, cwd=tmp_path, check=True)
    assert done.stdout.strip() == repr((tmp_path / "x.png").read_bytes()).encode()


@pytest.mark.parametrize(("existing", "count"), [("skip", 0), ("overwrite", 8_000)])
def test_planning_takes_time_in_proportion_to_the_images(tmp_path: Path, existing: Existing, count: int) -> None:
    image, result = write(tmp_path / "image.png"), write(tmp_path / "result.png")
    for folder, file in (("in", image), ("out", result)):
        (tmp_path / folder).mkdir()
        for index in range(8_000):
            os.symlink(file, tmp_path / folder / f"{index}.png")
    start = time.process_time()
    assert len(plan([tmp_path / "in"], tmp_path / "out", existing=existing)) == count
    assert time.process_time() - start < 2  # a list searched for each image takes 11 seconds


def test_unsuitable_inputs_and_outputs_are_refused_in_one_line(tmp_path: Path, photos: Path) -> None:
    first, second = write(tmp_path / "one" / "a.jpg"), write(tmp_path / "two" / "a.jpg")
    video = tmp_path / "clip.mp4"
    video.write_bytes(b"")
    link = tmp_path / "out" / "a.png"
    link.parent.mkdir()
    link.symlink_to(first)
    (tmp_path / "empty").mkdir()
    (tmp_path / "full" / "a.png").mkdir(parents=True)
    new = tmp_path / "new"
    cases: list[tuple[list[Any], Any, dict[str, Any], str]] = [
        (["https://example.org/a.jpg"], None, {}, "https://example.org/a.jpg: is an address, and nothing is fetched"),
        (["file:///a.jpg"], None, {}, "file:///a.jpg: is an address"),
        ([first, tmp_path / "missing.png"], new, {}, f"{tmp_path / 'missing.png'}: no such file"),
        ([tmp_path / "empty"], new, {}, f"{tmp_path / 'empty'}: holds no images"),
        ([], new, {}, "no images were named"),
        (["-", first], new, {}, "-: the standard input cannot be one of several"),
        ([first, second], new, {}, f"{new / 'a.jpg.png'}: both {first} and {second} would be written"),
        ([first], first, {"existing": "overwrite"}, f"{first}: the output of {first} would replace the image {first}"),
        ([first], link.parent, {"existing": "overwrite"}, f"would replace the image {first}"),
        ([first], tmp_path / "full", {}, f"{tmp_path / 'full' / 'a.png'}: is a folder"),
        ([photos], tmp_path / "a.png", {}, f"{tmp_path / 'a.png'}: one file for 3 images; name a folder"),
        ([photos], "-", {}, "-: one file for 3 images"),
        ([first], tmp_path / "a.bmp", {}, "a.bmp: images are written as png, jpg, webp, tiff"),
        ([first], tmp_path / "a.mp4", {}, "a.mp4: images are written as"),
        ([video], tmp_path / "a.webm", {}, "needs the ending .mp4"),
        ([video], "-", {}, "needs the ending .mp4"),
        ([first], tmp_path / "a.jpg", {"ending": ".png"}, "a.jpg: does not end in .png"),
        (
            [first],
            tmp_path / "a.jpg",
            {"transparent": True},
            "a.jpg: jpg cannot be transparent: give cut-outs a --back",
        ),
        ([first], new, {"ending": ".jpg", "transparent": True}, "jpg cannot be transparent"),
        ([first], "-", {"ending": ".jpg", "transparent": True}, "jpg cannot be transparent"),
    ]
    before = sorted(tmp_path.rglob("*"))
    for inputs, output, options, message in cases:
        with pytest.raises(InputError, match=re.escape(message)) as refusal:
            plan(inputs, output, **options)
        assert "\n" not in str(refusal.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_unreadable_folders_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)  # root may read everything
    with pytest.raises(InputError, match=f"^{tmp_path}: cannot be read: Permission denied"):
        plan([tmp_path])


def test_folders_that_cannot_be_made_are_refused_before_anything(tmp_path: Path) -> None:
    image, file = write(tmp_path / "a.png"), write(tmp_path / "file.dat.png")
    network: Any = Brightness()
    for folder in (file / "below", tmp_path / "a.png" / "deeper" / "still"):
        with pytest.raises(InputError, match="is a file or lies below one"):
            list(predict_files(network, [Job(image, folder / "a.png")], Style()))
    with pytest.raises(InputError, match=r"^/proc/self: outputs cannot be written to it: "):  # not by root either
        list(predict_files(network, [Job(image, Path("/proc/self/a.png"))], Style()))
    assert network.batches == []


def test_maps_are_the_authors_or_refined(tmp_path: Path) -> None:
    image = write(tmp_path / "a.png")
    square = np.asarray(Image.fromarray(RGB).resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    saliency = square[..., 0].astype(np.float32) / 255
    assert run([Job(image, tmp_path / "plain.png")], Style(refine=False)) == [None]
    expected = cv2.resize((saliency * 255).astype(np.uint8), (30, 20))
    np.testing.assert_array_equal(read(tmp_path / "plain.png"), expected)
    assert run([Job(image, tmp_path / "fine.png")]) == [None]
    fine = np.rint(refine_map(saliency, square, RGB) * 255)
    np.testing.assert_array_equal(read(tmp_path / "fine.png"), fine)
    small = write(tmp_path / "small.png", RGB[:6, :7])
    assert run([Job(small, tmp_path / "one.png")]) == run([Job(small, tmp_path / "two.png")], Style(refine=False))
    np.testing.assert_array_equal(read(tmp_path / "one.png"), read(tmp_path / "two.png"))


@pytest.mark.parametrize("large", [False, True])
def test_kinds(tmp_path: Path, large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if large:
        monkeypatch.setattr(rendering, "_LARGE_PIXELS", 10)
    image = write(tmp_path / "a.png", np.dstack([RGB, RGB[..., 2]]))
    found = {}
    styles = {kind: Style(kind, threshold=0.4) for kind in KINDS}
    for kind, style in (styles | {"composite": Style("cutout", threshold=0.4, background=(9, 8, 7))}).items():
        assert run([Job(image, tmp_path / f"{kind}.png")], style) == [None]
        found[kind] = read(tmp_path / f"{kind}.png")
    shown, alpha = visible(RGB, RGB[..., 2]), RGB[..., 2]
    write(tmp_path / "b.png", shown)
    assert run([Job(tmp_path / "b.png", tmp_path / "opaque.png")]) == [None]
    saliency = read(tmp_path / "opaque.png")
    np.testing.assert_array_equal(found["map"], multiply(saliency, alpha))
    np.testing.assert_array_equal(found["mask"], binary_mask(found["map"], 0.4))
    np.testing.assert_array_equal(found["overlay"], overlay(shown, found["map"]))
    colours = np.where(alpha[..., None] > 0, RGB, shown)
    np.testing.assert_array_equal(found["cutout"], cutout(colours, saliency, alpha, 0.4))
    assert found["attention"].shape == (5, 5 * 8, 3)
    share = found["cutout"][..., 3:] / 255
    np.testing.assert_allclose(found["composite"], share * found["cutout"][..., :3] + (1 - share) * (9, 8, 7), atol=0.6)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("refine", [False, True])
def test_colours_under_alpha_0_are_neither_found_nor_shown(
    tmp_path: Path, large: bool, refine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        monkeypatch.setattr(rendering, "_LARGE_PIXELS", 10)
    rows, columns = np.mgrid[:60, :90]
    shown = (rows - 30) ** 2 + (columns - 25) ** 2 < 15**2
    hidden = (rows - 30) ** 2 + (columns - 65) ** 2 < 15**2
    colours = np.zeros((60, 90, 3), np.uint8)
    colours[shown], colours[hidden] = (250, 20, 10), (255, 240, 0)
    opaque = np.where(shown, 255, 0).astype(np.uint8)
    hiding = write(tmp_path / "hiding.png", np.dstack([colours, opaque]))
    colours[hidden] = 0
    clean = write(tmp_path / "clean.png", np.dstack([colours, opaque]))
    for kind in KINDS:
        results = []
        for image in (hiding, clean):
            assert run([Job(image, tmp_path / "out.png")], Style(kind, refine=refine)) == [None]
            results.append(read(tmp_path / "out.png"))
        np.testing.assert_array_equal(*results)
        if kind in ("map", "mask"):
            assert not results[0][~shown].any()
            assert results[0][28:32, 22:28].min() > 230


def test_attention_needs_a_network_with_attention(tmp_path: Path) -> None:
    network: Any = Brightness(attention=False)
    job = Job(write(tmp_path / "a.png"), tmp_path / "new" / "b.png")
    with pytest.raises(InputError, match="attention: this network has none"):
        list(predict_files(network, [job], Style("attention")))
    assert not (tmp_path / "new").exists()


def test_formats(tmp_path: Path) -> None:
    image = write(tmp_path / "a.png")
    for ending, name in ((".JPEG", "JPEG"), (".webp", "WEBP"), (".tif", "TIFF")):
        assert run(plan([image], tmp_path / f"b{ending}")) == [None]
        with Image.open(tmp_path / f"b{ending}") as found:
            assert found.format == name
            assert found.size == (30, 20)


@pytest.mark.parametrize("ending", [".png", ".webp", ".tiff", ".jpg"])
def test_cutouts_keep_harmless_metadata_only(tmp_path: Path, ending: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Copyright], exif[ExifTags.Base.Make] = "Somebody", "Camera"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] = (52.0, 30.0, 0.0)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = write(tmp_path / "a.jpg", exif=exif, dpi=(300, 300), icc_profile=profile)
    assert b"Camera" in image.read_bytes()
    style = Style("cutout", background=(1, 2, 3) if ending == ".jpg" else None)
    assert run(plan([image], tmp_path / f"b{ending}"), style) == [None]
    assert b"Camera" not in (tmp_path / f"b{ending}").read_bytes()
    with Image.open(tmp_path / f"b{ending}") as found:
        kept = found.getexif()
        assert kept[ExifTags.Base.Copyright] == "Somebody"
        assert not kept.get_ifd(ExifTags.IFD.GPSInfo)
        assert kept.get(ExifTags.Base.Orientation, 1) == 1
        assert found.size == (20, 30)  # upright
        assert "icc_profile" not in found.info
        dpi = found.info.get("dpi") or (kept[ExifTags.Base.XResolution], kept[ExifTags.Base.YResolution])
    np.testing.assert_allclose([float(value) for value in dpi], 300, atol=0.1)
    assert run(plan([image], tmp_path / f"c{ending}")) == [None]
    assert b"Somebody" not in (tmp_path / f"c{ending}").read_bytes()


def test_backgrounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = write(tmp_path / "a.png")
    np.testing.assert_array_equal(read_background(str(image)), RGB)
    monkeypatch.chdir(tmp_path)
    Path("white").mkdir()  # a folder is no background
    assert read_background("white") == (255, 255, 255)
    assert read_background("#0180ff") == read_background("#0180ffff") == (1, 128, 255)
    assert read_background("#0180ff80") == (1, 128, 255, 128)
    assert read_background("rgba(1, 128, 255, 0.5)") == read_background("RGBA(1,128,255,50%)") == (1, 128, 255, 128)
    assert read_background("rgba(1, 128, 255, 1)") == (1, 128, 255)
    assert read_background("transparent") == read_background("rgba(0, 0, 0, 0)") == (0, 0, 0, 0)
    for alpha in ("128", "-0.1", "nan", "inf", "x", ""):  # 128 is Pillow's scale
        with pytest.raises(InputError, match="is neither an image's file nor a colour"):
            read_background(f"rgba(255, 0, 0, {alpha})")
    assert read_background("blur") == Blur()
    assert read_background("blur:3%") == read_background("blur:0.03") == Blur(0.03)
    half = write(tmp_path / "half.png", np.dstack([RGB, RGB[..., 0]]))
    np.testing.assert_array_equal(read_background(str(half)), read(half))
    assert Style("cutout").transparent
    assert Style("cutout", background=(1, 2, 3, 0)).transparent
    assert Style("cutout", background=read(half)).transparent
    for style in (
        Style("cutout", background=(1, 2, 3)),
        Style("cutout", background=RGB),
        Style("cutout", background=Blur()),
        Style("map"),
    ):
        assert not style.transparent
    with pytest.raises(InputError, match="background: 'nothing' is neither an image's file nor a colour"):
        read_background("nothing")

    def refuse(path: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr("os.stat", refuse)
    with pytest.raises(InputError, match=r"closed/a\.jpg: cannot be read: Permission denied"):
        read_background("closed/a.jpg")


@pytest.mark.parametrize("kind", ["map", "mask", "cutout", "overlay"])
def test_specks_are_removed_from_every_kind(tmp_path: Path, kind: Kind) -> None:
    image = np.zeros((60, 80, 3), np.uint8)
    image[10:50, 10:40] = 255
    clean = write(tmp_path / "clean.png", image)
    image[2:4, 70:73] = 255
    speckled = write(tmp_path / "speckled.png", image)
    for options in ({"keep_largest": True}, {"min_area": 0.01}):
        style = Style(kind, refine=False, **options)  # type: ignore[arg-type]
        network: Any = Brightness()
        network.size = 80
        for source in (clean, speckled):
            (result,) = predict_files(network, [Job(source, tmp_path / f"out_{source.name}")], style)
            assert result.error is None
        expected, found = read(tmp_path / "out_clean.png"), read(tmp_path / "out_speckled.png")
        if kind in ("map", "mask"):
            np.testing.assert_array_equal(found, expected)
        elif kind == "cutout":
            np.testing.assert_array_equal(found[..., 3], expected[..., 3])
        else:
            assert (found[2:4, 70:73] == found[2, 70, 0]).all()  # not tinted
        for path in tmp_path.glob("out_*"):
            path.unlink()


def test_one_batch_shape_for_all_files(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{index}.png", RGB[: 5 + index]) for index in range(5)]
    network: Any = Brightness()
    list(predict_files(network, plan(paths), Style(), batch_size=2))
    assert network.batches == [(2, 2), (2, 2), (1, 2)]
    list(predict_files(network, plan(paths[:1], tmp_path / "b.png"), Style(), batch_size=8))
    assert network.batches[-1] == (1, 1)
    with pytest.raises(InputError, match="batch_size: must be at least 1, not 0"):
        list(predict_files(network, plan(paths[:1], tmp_path / "c.png"), Style(), batch_size=0))


@pytest.mark.parametrize("batch_size", [1, 2, 9])
def test_bad_images_are_named_and_the_others_predicted(tmp_path: Path, batch_size: int) -> None:
    for index in range(6):
        write(tmp_path / f"{index}.png")
    for index in (0, 3, 4):
        (tmp_path / f"{index}.png").write_bytes(b"no image")
    errors = run(plan([tmp_path], tmp_path / "out"), batch_size=batch_size)
    for index, error in enumerate(errors):
        assert (error is None) == (index not in (0, 3, 4))
        assert error is None or error == f"{tmp_path / str(index)}.png: not an image, or a damaged one"
    assert sorted(file.stem for file in (tmp_path / "out").iterdir()) == ["1", "2", "5"]


def test_folders_made_for_outputs_that_all_fail_are_removed(tmp_path: Path) -> None:
    good, bad = write(tmp_path / "in" / "a.png"), tmp_path / "in" / "below" / "b.png"
    write(bad).write_bytes(b"no image")
    (tmp_path / "mine").mkdir()
    for folder in (tmp_path / "new" / "out", tmp_path / "mine"):
        assert run([Job(bad, folder / "b.png")]) != [None]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "mine"]
    run(plan([good.parent], tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]


def test_outputs_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    long = write(tmp_path / "long.png", np.zeros((1, 17_000, 3), np.uint8))
    short = write(tmp_path / "short.png")
    errors = run(plan([long, short], tmp_path / "out", ending=".webp"))
    assert errors[1] is None
    assert re.search(r"long\.webp: cannot hold 17000×1 pixels", errors[0] or "")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["short.webp"]


# Odd files -------------------------------------------------------------------------------------------------


def odd_images() -> Iterator[tuple[str, bytes]]:
    """Files of every mode, some turned, with alpha, with profiles, tiny or thin; not damaged."""
    rng = np.random.default_rng(1)
    colours = Image.fromarray(rng.integers(0, 256, (9, 13, 4), dtype=np.uint8))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    deep = Image.fromarray(rng.integers(0, 65536, (9, 13), dtype=np.uint16))
    images = {
        mode: colours.convert("RGB").convert(mode) for mode in ("1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB", "F")
    }
    images |= {"RGBA": colours, "LA": colours.convert("LA"), "I;16": deep, "thin": colours.resize((200, 1))}
    images |= {"dot": colours.resize((1, 1)), "tall": colours.resize((1, 200))}
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, image in images.items():
        for kind in ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "PPM"):
            for options in ({}, {"icc_profile": profile[:-7]}, {"exif": exif}):
                buffer = io.BytesIO()
                try:
                    image.save(buffer, kind, **options)
                except (OSError, ValueError, KeyError):  # this format has no such mode
                    continue
                yield f"{name.replace(';', '')}_{'-'.join(options)}_{kind}", buffer.getvalue()


@pytest.mark.slow
def test_500_odd_and_damaged_files_are_predicted_or_named(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    odd = list(odd_images())
    for name, data in odd:
        (folder / f"{name}.png").write_bytes(data)
    for index in range(500 - len(odd)):
        rng = np.random.default_rng(index)
        image, _ = draw_example(rng, (24, 40))
        data = encode(image, ("JPEG", "PNG")[index % 2])
        mutate = MUTATIONS[index // 2 % len(MUTATIONS)]
        (folder / f"mutated{index:03d}.jpg").write_bytes(mutate(data, rng))
    jobs = plan([folder], tmp_path / "out")
    assert len(jobs) == 500
    network: Any = Brightness()
    results = list(predict_files(network, jobs, Style("cutout"), batch_size=4))
    assert [result.job for result in results] == jobs
    failed = 0
    for job, result in zip(jobs, results, strict=True):
        if result.error is None:
            colours, _ = read_srgb(job.source)
            assert read(job.output).shape == (*colours.shape[:2], 4)
        else:
            failed += 1
            assert result.error.startswith(f"{job.source}: ")
            assert "\n" not in result.error
            assert not job.output.exists()
            with pytest.raises(InputError):
                read_srgb(job.source)
    assert len(list((tmp_path / "out").iterdir())) == 500 - failed
    assert 50 < failed < 300


PROGRAM = """
import json, resource, sys
sys.path.insert(0, sys.argv[1])
from helpers.networks import Brightness
from purinet_jax.prediction import Style, plan, predict_files
import purinet_jax.prediction.predictor
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
jobs = plan([sys.argv[2]], sys.argv[3])
errors = [result.error for result in predict_files(Brightness(), jobs, Style("cutout"), batch_size=2)]
print(json.dumps({"errors": errors, "grown": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before}))
"""


@pytest.mark.slow
def test_large_images_are_read_one_at_a_time(tmp_path: Path) -> None:
    for index in range(3):
        write(tmp_path / "in" / f"{index}.jpg", np.full((4100, 4100, 3), 60 * index, np.uint8))
    arguments = [sys.executable, "-c", PROGRAM, str(Path(__file__).parent), str(tmp_path / "in"), str(tmp_path / "out")]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=True)
    result = json.loads(done.stdout)
    assert result["errors"] == [None] * 3
    # One needs 17 million pixels of a few bytes each; three at once would need more than this. In KiB.
    assert result["grown"] < 17e6 * 32 / 1024
