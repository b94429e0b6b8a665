"""Image files: every kind that a data set may hold is read; what cannot be read is named in one line."""

import io
import logging
import os
import stat
import struct
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from purinet_jax.data import images as images_module
from purinet_jax.data.images import (
    EXTENSIONS,
    PIXEL_LIMIT,
    check_image,
    count_pixels,
    encode,
    is_plain,
    read_mask,
    read_rgb,
    read_srgb,
    to_png,
)
from purinet_jax.errors import InputError
from purinet_jax.files import write_atomically

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def encoded(image: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def png(width: int, height: int, bits: int, colour_type: int, pixels: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""
    return png(width, height, 8, 2, b"")


def test_colours_from_path_and_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(RGB))
    for source in (path, str(path), path.read_bytes()):
        image = read_rgb(source)
        assert image.dtype == np.uint8
        assert image.flags.writeable
        np.testing.assert_array_equal(image, RGB)


def test_grey_is_repeated() -> None:
    np.testing.assert_array_equal(read_rgb(encoded(RGB[..., 0])), np.repeat(RGB[..., :1], 3, axis=2))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_dropped_not_blended(mode: str) -> None:
    channels = {"RGBA": 3, "LA": 1}[mode]
    alpha = np.arange(35, dtype=np.uint8).reshape(5, 7, 1)
    image = Image.fromarray(np.concatenate([RGB[..., :channels], alpha], axis=2), mode=None)
    assert image.mode == mode
    expected = np.broadcast_to(RGB[..., :channels], (5, 7, 3))
    np.testing.assert_array_equal(read_rgb(encoded(image)), expected)


@pytest.mark.parametrize("transparency", [None, 1, bytes([0, 128, 255])])
def test_palette(transparency: int | bytes | None) -> None:
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert("P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    options = {} if transparency is None else {"transparency": transparency}
    image = read_rgb(encoded(palette, **options))
    np.testing.assert_array_equal(image, [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]])


def test_cmyk() -> None:
    image = read_rgb(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"))
    assert image.shape == (16, 16, 3)
    assert np.abs(image.astype(int) - [255, 0, 0]).max() <= 2


def test_sixteen_bit_grey_is_scaled_and_not_clipped() -> None:
    values = np.array([[0, 128, 257, 32896, 65535]], np.uint16)
    np.testing.assert_array_equal(read_rgb(encoded(values))[0, :, 0], [0, 0, 1, 128, 255])


def profile(name: str, swap: bool) -> bytes:
    """An ICC profile like sRGB, of another name, and perhaps with the primaries red and green exchanged."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    assert data.count("sRGB built-in".encode("utf-16-be")) == 1
    data = bytearray(data.replace("sRGB built-in".encode("utf-16-be"), name.ljust(13).encode("utf-16-be")))
    slices = {}
    for tag in range(int.from_bytes(data[128:132], "big")):
        entry = data[132 + 12 * tag : 144 + 12 * tag]
        slices[bytes(entry[:4])] = slice(o := int.from_bytes(entry[4:8], "big"), o + int.from_bytes(entry[8:], "big"))
    if swap:
        red, green = slices[b"rXYZ"], slices[b"gXYZ"]
        data[red], data[green] = data[green], data[red]
    return bytes(data)


def test_images_are_converted_to_srgb() -> None:
    swapped = profile("swapped", swap=True)
    exchanged = RGB[..., [1, 0, 2]].astype(int)
    for kind in ("PNG", "TIFF", "WEBP"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encoded(RGB, kind, icc_profile=swapped, **options)
        colours, alpha = read_srgb(data)
        assert alpha is None
        np.testing.assert_allclose(colours.astype(int), exchanged, atol=2)
        np.testing.assert_array_equal(read_rgb(data), RGB)
    image = Image.fromarray(np.dstack([RGB, RGB[..., :1]]))
    colours, alpha = read_srgb(encoded(image, icc_profile=swapped))
    np.testing.assert_allclose(colours.astype(int), exchanged, atol=2)
    np.testing.assert_array_equal(alpha, RGB[..., 0])


@pytest.mark.parametrize("damage", ["empty", "cut", "noise", "named sRGB", "of other colours"])
def test_unusable_profiles_are_ignored(damage: str) -> None:
    swapped = profile("swapped", swap=True)
    profiles = {
        "empty": b"",
        "cut": swapped[:200],
        "noise": RGB.tobytes() * 9,
        "named sRGB": profile("sRGB IEC", swap=True),
        "of other colours": ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(),
    }
    colours, _ = read_srgb(encoded(RGB, icc_profile=profiles[damage]))
    np.testing.assert_array_equal(colours, RGB)


def test_profiles_of_grey_and_palette_images() -> None:
    swapped = profile("swapped", swap=True)
    grey = Image.fromarray(RGB[..., 0])  # an RGB profile does not fit it
    np.testing.assert_array_equal(read_srgb(encoded(grey, icc_profile=swapped))[0], read_rgb(encoded(grey)))
    palette = Image.fromarray(RGB).quantize(16)
    expected = read_rgb(encoded(palette))[..., [1, 0, 2]].astype(int)
    np.testing.assert_allclose(read_srgb(encoded(palette, icc_profile=swapped))[0].astype(int), expected, atol=2)


def test_alpha_of_images() -> None:
    alpha = RGB[..., 0]
    for image in (Image.fromarray(np.dstack([RGB, alpha])), Image.fromarray(np.dstack([alpha, alpha]))):
        np.testing.assert_array_equal(read_srgb(encoded(image))[1], alpha)
    palette = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    np.testing.assert_array_equal(read_srgb(encoded(palette, transparency=1))[1], [[255, 0]])
    assert read_srgb(encoded(RGB))[1] is None
    assert read_srgb(encoded(np.dstack([RGB, np.full_like(alpha, 255)])))[1] is None


def test_images_are_encoded(tmp_path: Path) -> None:
    with_alpha = np.dstack([RGB, RGB[..., 0]])
    for ending, array, exact in (
        (".png", with_alpha, True),
        (".tiff", with_alpha, True),
        (".tiff", RGB[..., 0], True),
        (".jpg", RGB[..., 0], False),
        (".jpg", RGB, False),
        (".webp", with_alpha, False),
    ):
        with Image.open(io.BytesIO(encode(array, ending, "a"))) as image:
            assert image.format == {".jpg": "JPEG"}.get(ending, ending[1:].upper())
            found = np.asarray(image)
        assert found.shape == array.shape
        assert exact == np.array_equal(found, array)
    with Image.open(io.BytesIO(encode(RGB[..., 0], ".webp", "a"))) as image:
        np.testing.assert_array_equal(np.asarray(image.convert("L")), RGB[..., 0])
    with pytest.raises(InputError, match=r"a\.webp: cannot hold 20000×1 pixels"):
        encode(np.zeros((1, 20000), np.uint8), ".webp", "a.webp")


def test_pixels_are_counted_by_the_header() -> None:
    assert count_pixels(encoded(RGB)) == 35
    assert count_pixels(png_header(3000, 4000)) == 12_000_000
    with pytest.raises(InputError, match=r"a\.png: not an image"):
        count_pixels(b"nothing", "a.png")


def test_one_bit() -> None:
    bits = Image.fromarray(np.array([[0, 255, 255]], np.uint8)).convert("1")
    np.testing.assert_array_equal(read_rgb(encoded(bits))[0, :, 2], [0, 255, 255])
    np.testing.assert_array_equal(read_mask(encoded(bits)), [[0, 1, 1]])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_exif_orientation(orientation: int, kind: str) -> None:
    upright = {
        1: RGB,
        2: RGB[:, ::-1],
        3: RGB[::-1, ::-1],
        4: RGB[::-1],
        5: RGB.transpose(1, 0, 2),
        6: np.rot90(RGB, -1),
        7: RGB[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(RGB),
    }[orientation]
    data = encoded(RGB, kind, exif=turned(orientation))
    np.testing.assert_array_equal(read_rgb(data), upright)
    assert check_image(data) == upright.shape[:2]
    mask = (RGB[..., 0] > 127) * np.uint8(255)
    np.testing.assert_array_equal(read_mask(encoded(mask, kind, exif=turned(orientation))), upright[..., 0] > 127)


def test_jpeg_check_knows_the_full_upright_size() -> None:
    data = encoded(np.zeros((50, 83, 3), np.uint8), "JPEG", exif=turned(6))
    assert check_image(data) == read_rgb(data).shape[:2] == (83, 50)


def test_mask_is_cut_at_half() -> None:
    values = np.array([[0, 1, 127, 128, 255]], np.uint8)
    for file in (values, np.repeat(values[..., None], 3, axis=2)):
        mask = read_mask(encoded(file))
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, [[0, 0, 0, 1, 1]])


def test_mask_of_zeros_and_ones_is_not_all_background() -> None:
    values = np.array([[0, 1, 1]], np.uint8)
    for file in (values, np.repeat(values[..., None], 3, axis=2), values.astype(np.uint16)):
        np.testing.assert_array_equal(read_mask(encoded(file)), values)


def test_black_mask_is_all_background() -> None:
    assert read_mask(encoded(np.zeros((3, 3), np.uint8))).sum() == 0


def test_sixteen_bit_mask() -> None:
    values = np.array([[0, 32767, 32768, 65535]], np.uint16)
    np.testing.assert_array_equal(read_mask(encoded(values)), [[0, 0, 1, 1]])
    eight_in_sixteen = np.array([[0, 127, 128, 255]], np.uint16)
    np.testing.assert_array_equal(read_mask(encoded(eight_in_sixteen)), [[0, 0, 1, 1]])


def test_palette_masks() -> None:
    palette = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    palette.putpalette([0, 0, 0, 255, 255, 255])
    np.testing.assert_array_equal(read_mask(encoded(palette)), [[0, 1]])
    palette.putpalette([0, 0, 0, 128, 0, 0])  # as label maps have it; half of its range would all be background
    with pytest.raises(InputError, match=r"^m\.png: .*palette of colours"):
        read_mask(encoded(palette), "m.png")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"this is text\n", "not an image"),
        (encoded(RGB)[:-30], "damaged"),
        (encoded(np.repeat(RGB, 20, 0), "JPEG")[:-200], "damaged"),
        (png_header(0, 5), "."),
        (png_header(20000, 20000), "pixels"),
        (png_header(10000, 10000), "damaged"),  # Pillow would warn of this size
        (encoded(Image.new("F", (2, 2)), "TIFF"), "floating-point"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image that is read"),
    ],
)
@pytest.mark.parametrize("read", [read_rgb, read_mask])
def test_unusable_files_are_named_in_one_line(read: object, data: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.jpg"
    path.write_bytes(data)
    with pytest.raises(InputError, match=reason) as caught:
        read(path)  # type: ignore[operator]
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert "0x" not in str(caught.value)  # no addresses of objects
    with pytest.raises(InputError):
        check_image(path)


def test_a_jpeg_may_be_followed_by_other_data_but_has_few_scans() -> None:
    photo = encoded(RGB, "JPEG")
    np.testing.assert_array_equal(read_rgb(photo + b"\xff\xda\x00\x02" * 101), read_rgb(photo))
    with pytest.raises(InputError, match="a JPEG of more than 100 scans"):
        read_rgb(photo[:-2] + b"\xff\xda\x00\x02" * 101 + photo[-2:])


def test_a_png_whose_orientation_follows_its_pixels_is_not_plain() -> None:
    png = encoded(RGB, "PNG")
    chunk = b"eXIf" + turned(6).tobytes()[6:]
    late = png[:-12] + (len(chunk) - 4).to_bytes(4) + chunk + zlib.crc32(chunk).to_bytes(4) + png[-12:]
    assert read_rgb(late).shape[:2] == read_rgb(png).shape[1::-1]
    assert is_plain(png, ("PNG", "RGB"))
    assert not is_plain(late, ("PNG", "RGB"))


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read_rgb(path)


def test_pixel_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert PIXEL_LIMIT == 178_956_970
    monkeypatch.setattr("purinet_jax.data.images.PIXEL_LIMIT", 34)
    with pytest.raises(InputError, match="more than 34 pixels: 7×5"):
        read_rgb(encoded(RGB))


@pytest.mark.parametrize("array", [RGB, RGB[..., 0], RGB[:, ::-1, 0], np.array([[0, 256, 65535]], np.uint16)], ids=str)
def test_png_and_back(array: np.ndarray) -> None:
    data = to_png(array)
    assert data == to_png(array.copy())
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(np.asarray(image), array)


def test_png_refuses_other_arrays() -> None:
    for array in (RGB.astype(np.float32), RGB[..., :2], RGB[0, 0]):
        with pytest.raises(ValueError, match="a PNG needs"):
            to_png(array)


def test_atomic_writing(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.bin"]
    plain = tmp_path / "plain"
    plain.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_failed_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"none/a\.bin: cannot be written"):
        write_atomically(tmp_path / "none" / "a.bin", b"x")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match="No space left"):
        write_atomically(tmp_path / "a.bin", b"x")
    assert os.listdir(tmp_path) == []


def with_chunk(data: bytes, kind: bytes, body: bytes, last: bool = False) -> bytes:
    """Adds a chunk to a PNG file, before or after its pixels."""
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    at = len(data) - 12 if last else 33
    return data[:at] + chunk + data[at:]


LARGE = os.urandom(4) * (1 << 19)  # 2 MiB
LARGE_CHUNKS = {
    "text": (b"tEXt", b"Comment\0" + LARGE),
    "compressed text": (b"zTXt", b"Comment\0\0" + zlib.compress(LARGE)),
    "international text": (b"iTXt", b"Comment\0\1\0en\0\0" + zlib.compress(LARGE)),
    "damaged text": (b"zTXt", b"Comment\0\0" + b"damaged"),
}


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("chunk", LARGE_CHUNKS)
def test_pixels_do_not_depend_on_large_texts(chunk: str, last: bool) -> None:
    data = with_chunk(encoded(RGB, exif=turned(6)), *LARGE_CHUNKS[chunk], last)
    np.testing.assert_array_equal(read_rgb(data), np.rot90(RGB, -1))
    assert check_image(data) == (7, 5)


def test_many_texts_are_removed_quickly() -> None:
    bomb = zlib.compress(bytes(1 << 22))
    data = encoded(RGB)
    text = with_chunk(data, b"zTXt", b"Comment\0\0" + bomb)[33 : 33 + 12 + 9 + len(bomb)]
    data = data[:33] + text * 5_000 + data[33:]
    np.testing.assert_array_equal(read_rgb(data), RGB)


def test_a_large_profile_is_applied() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    large = profile + bytes(2 << 20)
    data = with_chunk(encoded(RGB), b"iCCP", b"p\0\0" + zlib.compress(large))
    _, found = images_module.without_large_metadata(data)
    assert found == large
    np.testing.assert_array_equal(read_srgb(data)[0], RGB)  # of another colour space than the pixels
    assert images_module.without_large_metadata(encoded(RGB, icc_profile=profile))[1] is None
    endless = with_chunk(encoded(RGB), b"iCCP", b"p\0\0" + zlib.compress(bytes(1 << 25)))
    assert images_module.without_large_metadata(endless)[1] is None
    np.testing.assert_array_equal(read_srgb(endless)[0], RGB)


def test_small_metadata_stays() -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Comment", "small", zip=True)
    data = encoded(RGB, pnginfo=texts)
    assert images_module.without_large_metadata(data) == (data, None)


@pytest.mark.parametrize("kind", ["AVIF", "GIF", "JPEG2000", "WEBP"])
def test_other_formats(kind: str) -> None:
    colours = np.zeros((16, 24, 3), np.uint8)
    colours[4:12, 6:18] = (250, 40, 20)
    options: dict = {"AVIF": {"quality": 100, "subsampling": "4:4:4"}, "WEBP": {"lossless": True}}.get(kind, {})
    image = read_rgb(encoded(colours, kind, **options))
    assert np.abs(image.astype(int) - colours).max() < 12
    assert check_image(encoded(colours, kind, **options)) == (16, 24)


def test_endings_are_known() -> None:
    for ending in (".avif", ".gif", ".heic", ".jfif", ".jp2", ".jpe"):
        assert f"a{ending.upper()}".lower().endswith(EXTENSIONS)


@pytest.mark.parametrize("kind", ["AVIF", "GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_read(
    kind: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images_module, "_said", set())
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "lime")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    with caplog.at_level(logging.INFO, "purinet_jax"):
        for _ in range(2):
            assert np.abs(read_rgb(data, "a.gif").astype(int) - (255, 0, 0)).max() < 12
    assert caplog.text.count("a.gif: an animation, of which the first frame is read") == 1


def test_heic_needs_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    heic = struct.pack(">I", 24) + b"ftypheic" + bytes(4) + b"mif1heic" + bytes(40)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(InputError, match=r"^a\.heic: HEIC, which needs an extra: pip install 'purinet_jax\[heif\]'"):
        read_rgb(heic, "a.heic")


def test_heic() -> None:
    heif = pytest.importorskip("pillow_heif", reason="the extra heif is not installed")
    colours = np.zeros((40, 60, 3), np.uint8)
    colours[10:30, 10:40] = (250, 40, 20)
    buffer = io.BytesIO()
    heif.from_pillow(Image.fromarray(colours)).save(buffer, quality=90)
    assert np.abs(read_rgb(buffer.getvalue()).astype(int) - colours).max() < 12
    assert check_image(buffer.getvalue()) == (40, 60)


@pytest.mark.parametrize("start", [100, 300])
def test_a_cut_avif_is_called_damaged(start: int) -> None:
    with pytest.raises(InputError, match=r"^a\.avif: .*damaged"):
        read_rgb(encoded(np.repeat(RGB, 9, 0), "AVIF")[:start], "a.avif")


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "PostScript"),
        (b"8BPS\0\1", "Photoshop"),
        (b"  <svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0", "video"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0", "video"),
        (b"\x1a\x45\xdf\xa3\1\0\0\0", "Matroska"),
        (b"RIFF\0\0\0\0AVI LIST", "AVI"),
        (b"%PDF-1.7", "PDF"),
    ],
)
def test_other_formats_are_not_called_damaged(data: bytes, kind: str) -> None:
    with pytest.raises(
        InputError, match=f"a.bin: not an image that is read, but of another format: .*{kind}"
    ) as caught:
        read_rgb(data, "a.bin")
    assert "damaged" not in str(caught.value)


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_unused_bits_are_stretched(
    bits: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images_module, "_said", set())
    top = (1 << bits) - 1
    values = np.array([[0, top // 3, top]], np.uint16)
    with caplog.at_level(logging.INFO, "purinet_jax"):
        for _ in range(2):
            np.testing.assert_array_equal(read_rgb(encoded(values), "a.png")[0, :, 1], [0, 85, 255])
    assert caplog.text.count(f"a.png: 16-bit values of which {bits} bits are used") == 1
    np.testing.assert_array_equal(read_rgb(encoded(values << (16 - bits)))[0, ::2, 1], [0, 255])


def sixteen_bit_png(values: np.ndarray) -> bytes:
    """A PNG of uint16 [height, width, channels], which Pillow cannot write."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(width, height, 16, {2: 4, 3: 2, 4: 6}[channels], zlib.compress(rows))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_unused_bits_of_colours_are_stretched(bits: int, kind: str) -> None:
    top = (1 << bits) - 1
    colours = np.array([[[top, top // 3, 0], [0, top, 0]], [[top // 3, 0, top], [top // 3] * 3]], np.uint16)
    expected = np.array([[[255, 85, 0], [0, 255, 0]], [[85, 0, 255], [85] * 3]])
    if kind == "TIFF":
        data = cv2.imencode(".tiff", colours[..., ::-1])[1].tobytes()
        np.testing.assert_array_equal(read_rgb(data), expected)
        return
    np.testing.assert_array_equal(read_rgb(sixteen_bit_png(colours)), expected)
    # Alpha may use all bits where colours do not.
    for opaque in {top, 65535}:
        values = np.dstack([colours, np.full((2, 2), opaque, np.uint16)])
        values[0, 0, 3] = 0
        pixels, alpha = read_srgb(sixteen_bit_png(values))
        np.testing.assert_array_equal(pixels, expected)
        np.testing.assert_array_equal(alpha, [[0, 255], [255, 255]])
        pixels, alpha = read_srgb(sixteen_bit_png(values[..., [0, 3]]))
        np.testing.assert_array_equal(pixels[..., 1], expected[..., 0])
        np.testing.assert_array_equal(alpha, [[0, 255], [255, 255]])


def test_unused_bits_of_rotated_colours_are_stretched() -> None:
    values = np.zeros((2, 3, 3), np.uint16)
    values[0, 0] = 4095
    data = with_chunk(sixteen_bit_png(values), b"eXIf", turned(6).tobytes().removeprefix(b"Exif\0\0"))
    upright = read_rgb(data)
    assert upright.shape == (3, 2, 3)
    np.testing.assert_array_equal(upright[0, 1], [255] * 3)
    assert upright.sum() == 3 * 255
