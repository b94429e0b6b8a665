"""Cut-outs in Python are those of the command line, for every type of image; a predictor can be sent to processes."""

import io
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms

import purinet_jax
from purinet_jax.commands.main import main
from purinet_jax.data.images import read_srgb
from purinet_jax.data.synthetic import draw_example
from purinet_jax.errors import InputError
from purinet_jax.prediction import predictor as predictor_module
from purinet_jax.prediction.backgrounds import Blur
from purinet_jax.prediction.predictor import Predictor, load
from purinet_jax.prediction.rendering import CutoutOptions, Style


@pytest.fixture(scope="module")
def lite() -> Predictor:
    return load("lite")


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JPEG larger than the network's square, which its EXIF tag turns upright, with a copyright."""
    image, _ = draw_example(np.random.default_rng(3), (320, 360))
    exif = Image.Exif()
    exif[0x0112], exif[0x8298] = 6, "Somebody"
    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    Image.fromarray(image).save(path, exif=exif, quality=95)
    return path


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


OPTIONS: list[tuple[list[str], CutoutOptions]] = [
    ([], {}),
    (
        ["--threshold", "0.3", "--keep", "largest", "--fill-holes"],
        {"threshold": 0.3, "keep_largest": True, "fill_holes": True},
    ),
    (
        ["--min-area", "0.5%", "--no-refine", "--background", "#80ff0080"],
        {"min_area": 0.005, "refine": False, "background": (128, 255, 0, 128)},
    ),
    (["--background", "blur:3%"], {"background": Blur(0.03)}),
    (["--background", "blur"], {"background": "blur"}),
    (["--background", "white", "--matting"], {"background": "white", "matting": True}),
]


@pytest.mark.parametrize(
    ("arguments", "options"), OPTIONS, ids=[" ".join(arguments) or "default" for arguments, _ in OPTIONS]
)
def test_cutouts_are_those_of_the_command(
    arguments: list[str],
    options: CutoutOptions,
    lite: Predictor,
    photo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(predictor_module, "load", lambda *_: lite)
    predictor_module._default.cache_clear()
    output = tmp_path / "cutout.png"
    assert main(["predict", str(photo), "--output-kind", "cutout", "-o", str(output), "--quiet", *arguments]) == 0
    expected = np.asarray(Image.open(output))
    assert purinet_jax.remove_background(photo.read_bytes(), **options) == output.read_bytes()
    pixels, _ = read_srgb(photo)
    for image in (photo, str(photo), Image.fromarray(pixels), pixels):
        found = purinet_jax.remove_background(image, **options)
        assert isinstance(found, np.ndarray if isinstance(image, np.ndarray) else Image.Image)
        np.testing.assert_array_equal(found, expected)
    predictor_module._default.cache_clear()


def test_alpha_multiplies_in_every_type(lite: Predictor, photo: Path) -> None:
    pixels, _ = read_srgb(photo)
    own = np.tile(np.linspace(0, 255, pixels.shape[1]).astype(np.uint8), (len(pixels), 1))
    image = np.dstack([pixels, own])
    found = lite.cutout(image)
    assert (found[..., 3] <= own).all()
    assert found[..., 3].max() > 100
    np.testing.assert_array_equal(lite.cutout(Image.fromarray(image)), found)
    np.testing.assert_array_equal(Image.open(io.BytesIO(lite.cutout(png(image)))), found)
    grey = lite.cutout(pixels[..., 0])
    assert grey.shape == found.shape


def test_pillow_images_are_turned_and_converted_as_their_files_are(lite: Predictor, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes().replace(b"sRGB", b"RGBs")
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, icc_profile=profile)
    with Image.open(tmp_path / "a.jpg") as image:
        found = lite.cutout(image, background=image)
    assert found.size == (30, 40)
    np.testing.assert_array_equal(found, lite.cutout(tmp_path / "a.jpg", background=tmp_path / "a.jpg"))


def test_the_network_is_loaded_once(lite: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(predictor_module, "load", lambda *arguments: calls.append(arguments) or lite)
    predictor_module._default.cache_clear()
    for _ in range(2):
        purinet_jax.remove_background(np.zeros((8, 9, 3), np.uint8))
    assert calls == [()]  # the package's first network
    predictor_module._default.cache_clear()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.0}, "threshold: must be between 0 and 1, not 1.0"),
        ({"min_area": 1.0}, r"min_area: must be at least 0 and below 1 \(100%\), not 1.0"),
        ({"min_area": -0.1}, "min_area: must be at least 0"),
        ({"min_area": float("nan")}, "min_area: must be at least 0"),
        ({"background": (1, 2)}, r"background: a colour is 3 or 4 integers from 0 to 255, not \(1, 2\)"),
        ({"background": (0, 0, 256)}, "background: a colour is 3 or 4 integers"),
        ({"background": np.zeros((2, 2, 3))}, r"background: an array must be uint8 .*, not float64 \[2, 2, 3\]"),
        ({"background": 3}, "background: must be a colour, an image or Blur, not 3"),
        ({"background": "blur:0"}, r"blur: its strength must be between 0 and 1 \(100%\), not 0.0"),
        ({"background": "blur:much"}, "blur: 'much' is neither a percentage nor a number"),
        ({"background": "nothing"}, "background: 'nothing' is neither an image's file nor a colour nor blur"),
        ({"background": b"\0" * 99}, r"background: must be a colour, an image or Blur, not .{,60}$"),
        ({"threshold": "0.5"}, "threshold: must be a number, not '0.5'"),
        ({"min_area": "1%"}, "min_area: must be a number, not '1%'"),
        ({"matting": "false"}, "matting: must be True or False, not 'false'"),
    ],
)
def test_options_out_of_range_are_named(options: Any, message: str, lite: Predictor) -> None:
    with pytest.raises(InputError, match=message):
        lite.cutout(np.zeros((8, 9, 3), np.uint8), **options)


def test_files_that_are_no_images_are_named(lite: Predictor, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="image: not an image, or a damaged one"):
        lite.cutout(b"nothing of the kind")
    with pytest.raises(InputError, match=r"missing\.jpg: cannot be read: No such file"):
        lite.cutout(tmp_path / "missing.jpg")
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        lite.cutout(np.zeros((8, 9, 3), np.uint8), colour="red")  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="unexpected keyword argument 'smooth'; there are threshold, "):
        lite.cutout(np.zeros((8, 9, 3), np.uint8), smooth=True)  # type: ignore[call-overload]
    with pytest.raises(InputError, match=r"https://example\.org/a\.jpg: is an address, and nothing is fetched"):
        lite.cutout("https://example.org/a.jpg")


def test_backgrounds_may_be_paths_and_pillow_images(lite: Predictor, tmp_path: Path) -> None:
    image = np.zeros((8, 9, 3), np.uint8)
    behind = np.random.default_rng(0).integers(0, 256, (8, 9, 4), np.uint8)
    Image.fromarray(behind).save(tmp_path / "behind.png")
    expected = lite.cutout(image, background=behind)
    for background in (tmp_path / "behind.png", Image.fromarray(behind)):
        np.testing.assert_array_equal(lite.cutout(image, background=background), expected)


def test_options_are_the_styles() -> None:
    assert set(CutoutOptions.__annotations__) == set(Style.__dataclass_fields__) - {"kind", "ending", "smooth"}


def test_a_predictor_works_in_another_process(lite: Predictor, photo: Path) -> None:
    expected = lite.predict(photo)  # so that it has compiled its program
    copy = pickle.loads(pickle.dumps(lite))
    assert set(vars(copy)) < set(vars(lite))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        (found,) = pool.map(copy.predict, [photo.read_bytes()])
    np.testing.assert_array_equal(found, expected)
