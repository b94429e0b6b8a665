"""Decodes image files into arrays and encodes arrays as image files.

Every kind of file that data sets have been seen to hold is read: grey, palette, CMYK, 16-bit, rotated by an EXIF tag,
masks of zeros and ones. A file that cannot be read raises an `InputError` that names it.
"""

import io
import logging
import re
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from purinet_jax.data.png_metadata import without_large_metadata
from purinet_jax.errors import InputError
from purinet_jax.files import read_bytes, reason

logger = logging.getLogger(__name__)

EXTENSIONS = (
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".png", ".ppm"),
    *(".tif", ".tiff", ".webp"),
)
"""File name extensions, in lower case, by which an image file is recognised in a folder or archive."""

PIXEL_LIMIT = 178_956_970
"""The most pixels an image may have; a small file can claim billions of them (a decompression bomb)."""

# A progressive JPEG of a few megabytes can refine its pixels a hundred thousand times. Ten scans are usual; libtiff
# applies the same limit to JPEG within TIFF.
_SCAN_LIMIT = 100
# Restarts and stuffed bytes are parts of a scan, and no markers here.
_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")

# Named, because Pillow would otherwise also try formats that run other programs (EPS starts Ghostscript).
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_FLOATING = "its pixels are floating-point numbers of unknown range"
_ANIMATED = ("AVIF", "GIF", "PNG", "WEBP")

# By their first bytes, files that are intact and not read; "?" stands for any byte.
_UNSUPPORTED = {
    b"%!PS": "PostScript",
    b"%PDF": "PDF",
    b"8BPS": "Photoshop",
    b"<svg": "SVG",
    b"<?xml": "SVG or other XML",
    b"gimp xcf": "GIMP",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\0\0\1\0": "icon",
    b"v/1\1": "OpenEXR",
    b"#?RADIANCE": "Radiance",
    b"qoif": "QOI",
    b"SIMPLE  =": "FITS",
    b"PK\3\4": "zip",
    b"\x1a\x45\xdf\xa3": "video (Matroska or WebM)",
    b"RIFF????AVI ": "video (AVI)",
    b"????ftyp": "video (MP4 or QuickTime)",
}
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")

# zlib's strategy Z_RLE: files of maps and masks are 5 and 16 % smaller and take half the time or less.
_RUN_LENGTHS = 3

# By EXIF orientation; 1 is upright.
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# The keys of `Image.info` in which Pillow finds the orientation of a JPEG or PNG file.
_WITH_ORIENTATION = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif", "Raw profile type APP1"}

_warnings_lock = threading.Lock()

# What has been said of images of a kind, which is said once.
_said: set[str] = set()


class TooManyPixels(InputError):
    """An image that is larger than `PIXEL_LIMIT`, or than its format can hold."""


def read_rgb(source: str | Path | bytes, name: str | None = None) -> np.ndarray:
    """Reads an image file as RGB.

    Grey is repeated three times, alpha is dropped, 16-bit values are scaled to 8 bits, by their significant bits where
    not all are used. Of an animation the first frame is read.

    Args:
      source: the file's path, or its bytes.
      name: how errors name the file; the path itself if not given.

    Returns:
      uint8 [height, width, 3], upright as the EXIF orientation says.

    Raises:
      InputError: the file is missing, empty, damaged, or not an image of a supported format.
      TooManyPixels: it is larger than `PIXEL_LIMIT`.
    """
    return to_rgb(*decode(source, name))


def read_srgb(source: str | Path | bytes, name: str | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads an image file as sRGB and alpha; arguments and errors as of `read_rgb`.

    An embedded profile other than sRGB is applied, and ignored if damaged. (`read_rgb` leaves colours as they are
    stored, as the field's programs do.)

    Returns:
      uint8 [height, width, 3], and alpha uint8 [height, width], or None if the image is opaque.
    """
    return _to_srgb_and_alpha(*decode(source, name))


def to_srgb(image: Image.Image, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Converts a Pillow image to what `read_srgb` returns for its file: upright, and by its profile; errors as
    `to_rgb`."""
    with _errors_named(name):
        image.load()
        image = _upright(image)
    return _to_srgb_and_alpha(image, name)


def _to_srgb_and_alpha(image: Image.Image, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    alpha = to_alpha(image, name)
    return to_rgb(_to_srgb(image), name), alpha


def to_alpha(image: Image.Image, name: str) -> np.ndarray | None:
    """Returns the alpha of a Pillow image, uint8 [height, width], or None if it is opaque; errors as `to_rgb`."""
    with _errors_named(name):
        if not image.has_transparency_data or image.mode.startswith("I"):
            return None
        alpha = np.asarray(image.convert("RGBA").getchannel("A"))
        return None if alpha.min() == 255 else alpha


def _to_srgb(image: Image.Image) -> Image.Image:
    """Applies the embedded profile, dropping alpha; returns the image itself if there is no usable profile."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode.startswith(("I", "F", "LAB")):
        return image
    from PIL import ImageCms  # here, because most images have no profile

    try:
        parsed = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        # "sRGB IEC61966-2.1" and the like; but sRGB-linear is another space.
        if f"{parsed.profile.profile_description} ".startswith("sRGB "):
            return image
        # Little CMS takes grey, RGB and CMYK; anything more is alpha or a palette.
        mode = {"GRAY": "L", "CMYK": "CMYK"}.get(parsed.profile.xcolor_space.strip(), "RGB")
        colours = image if image.mode == mode else image.convert("RGBA").convert(mode)
        converted = ImageCms.profileToProfile(colours, parsed, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except MemoryError:
        raise
    except Exception:  # a damaged profile, or one of another colour space than the pixels
        return image
    return image if converted is None else converted


def to_rgb(image: Image.Image, name: str) -> np.ndarray:
    """Converts a Pillow image of any mode to uint8 [height, width, 3] as `read_rgb` does, without rotating it.

    Raises:
      InputError: its pixels cannot be decoded, or are floating-point numbers; the message begins with `name`.
    """
    if image.mode == "F":
        raise InputError(f"{name}: {_FLOATING}")
    with _errors_named(name):
        if image.mode.startswith("I"):
            return np.repeat(_eight_bits(_sixteen_bits(image, name), name)[:, :, None], 3, axis=2)
        if "transparency" in image.info or image.mode == "PA":
            image = image.convert("RGBA")  # converting straight to RGB, Pillow warns and paints transparency in
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def read_mask(source: str | Path | bytes, name: str | None = None) -> np.ndarray:
    """Reads a mask file as uint8 [height, width], 0 (background) and 1 (object): `read_grey`, thresholded at 128."""
    return (read_grey(source, name) >= 128).view(np.uint8)


def read_grey(source: str | Path | bytes, name: str | None = None) -> np.ndarray:
    """Reads a mask file as grey values; arguments as of `read_rgb`.

    16-bit values are scaled to 8 bits, by their significant bits. A file whose brightest value is 1 holds zeros and
    ones, which become 0 and 255. What other codings mean, only a set of masks shows: `purinet_jax.data.masks`.

    Returns:
      uint8 [height, width], 0 to 255, upright as the file's own EXIF orientation says.

    Raises:
      InputError: as `read_rgb`, or the file holds colours, in which brightness has no meaning.
    """
    return to_grey(*decode(source, name))


def to_grey(image: Image.Image, name: str) -> np.ndarray:
    """Converts a Pillow image to grey values as `read_grey` does."""
    values = stored_grey(image, name)
    return values * np.uint8(255) if values.max() <= 1 else values


def stored_grey(image: Image.Image, name: str) -> np.ndarray:
    """Converts a Pillow image to grey values as `read_grey` does, but zeros and ones stay so."""
    if image.mode in ("RGB", "RGBA") and has_colours(image):
        raise InputError(f"{name}: grey values are needed, but this holds colours")
    values = _grey_values(image, name)
    if values.dtype == np.float64:
        raise InputError(f"{name}: {_FLOATING}")
    if values.dtype != np.uint8:
        values = _eight_bits(values, name)
    return values


def read_map(source: str | Path | bytes, name: str | None = None) -> np.ndarray:
    """Reads a saliency map file without rounding; arguments and errors as of `read_grey`.

    Values are not rescaled as a mask's are, because the metrics stretch each map to [0, 1]. The scale matters only
    for a constant map: 8 bits are divided by 255 and 16 bits by 65535.

    Returns:
      [height, width], upright as the file's own EXIF orientation says: uint8 for up to 8 bits, where the ones of a
      1-bit file are 255; float64 in [0, 1] for 16 bits; float64 as stored for floating-point numbers (TIFF).
    """
    image, name = decode(source, name)
    values = _grey_values(image, name)
    if values.dtype in (np.uint8, np.float64):
        return values * np.uint8(255) if image.mode == "1" else values
    return values / 65535


def _grey_values(image: Image.Image, name: str) -> np.ndarray:
    """Returns grey values [height, width]: uint8 (0 and 1 for a 1-bit file), integers of 16 bits, or float64."""
    with _errors_named(name):
        if image.mode.startswith("I"):
            return _sixteen_bits(image, name)
        if image.mode == "F":
            return np.asarray(image, np.float64)
        if image.mode in ("P", "PA"):
            colours = np.asarray(image.convert("RGBA"))
            if (colours[..., :1] != colours[..., 1:3]).any():
                raise InputError(f"{name}: grey values are needed, but this is a palette of colours")
            return colours[..., 0]
        return np.asarray(image if image.mode == "1" else image.convert("L"), np.uint8)


def has_colours(image: Image.Image) -> bool:
    """Whether any pixel of an RGB, RGBA or palette image is not grey; lossy formats are allowed slight differences."""
    pixels = np.asarray(image if image.mode in ("RGB", "RGBA") else image.convert("RGBA"))
    slight = slight_differences(image)
    if slight == 0:
        return bool((pixels[..., 0] != pixels[..., 1]).any() or (pixels[..., 1] != pixels[..., 2]).any())
    return bool((pixels[..., :3].max(-1) - pixels[..., :3].min(-1)).max() > slight)


def slight_differences(image: Image.Image) -> int:
    """Returns how much channels may differ in a file's grey, and how bright its black may be, of 255."""
    return 32 if image.format in ("AVIF", "JPEG", "JPEG2000", "MPO", "WEBP") else 0


def count_pixels(source: str | Path | bytes, name: str | None = None) -> int:
    """Returns how many pixels an image file's header states; arguments and errors as of `read_rgb`."""
    image, _ = _open(source, name)
    return image.width * image.height


def check_image(source: str | Path | bytes, name: str | None = None) -> tuple[int, int]:
    """Parses an entire image file faster than `read_rgb` does: a JPEG is decoded at an eighth of its size.

    Returns:
      Height and width in pixels, upright as the EXIF orientation says. Arguments and errors as of `read_rgb`.
    """
    image, name = _open(source, name)
    if image.mode == "F":
        raise InputError(f"{name}: {_FLOATING}")
    size = image.size
    jpeg = image.format in ("JPEG", "MPO")
    if jpeg:
        image.draft(None, (max(1, size[0] // 8), max(1, size[1] // 8)))
    with _errors_named(f"{name}: damaged"):
        image.load()
    width, height = size if jpeg else image.size  # loading rotates a TIFF
    return (width, height) if _orientation(image) >= 5 else (height, width)


def is_plain(data: bytes, *kinds: tuple[str, str]) -> bool:
    """Whether every reader decodes a file to the same pixels: upright, 8 bits, no transparency, and of one of `kinds`.

    Kinds are formats and modes in Pillow's terms, such as ("JPEG", "RGB"). Raises InputError as `read_rgb`.
    """
    image, name = _open(data, None)
    if image.format == "PNG":  # whose metadata may follow the pixels
        with _errors_named(f"{name}: damaged"):
            image.load()
    # Pillow calls 16-bit colours RGB too; a PNG's bit depth is its 25th byte.
    eight_bits = image.format != "PNG" or data[24] == 8
    plain = (image.format, image.mode) in kinds and eight_bits and "transparency" not in image.info
    return plain and _orientation(image) == 1


def to_png(array: np.ndarray, *, flat: bool = False, metadata: Mapping[str, Any] | None = None) -> bytes:
    """Encodes an array as the bytes of a PNG file.

    Args:
      array: uint8 [height, width], [height, width, 3] or [height, width, 4] (RGBA), or uint16 [height, width].
      flat: whether most neighbours have the same value or the same difference, which a faster strategy suits.
      metadata: as of `encode`.

    Raises:
      ValueError: another dtype or shape.
    """
    grey = array.ndim == 2 and array.dtype in (np.uint8, np.uint16)
    if not grey and not (array.ndim == 3 and array.shape[2] in (3, 4) and array.dtype == np.uint8):
        raise ValueError(f"a PNG needs uint8 or uint16 grey or uint8 RGB or RGBA, not {array.dtype} {array.shape}")
    buffer = io.BytesIO()
    strategy = {"compress_type": _RUN_LENGTHS} if flat else {}
    Image.fromarray(np.ascontiguousarray(array)).save(buffer, "PNG", **strategy, **(metadata or {}))
    return buffer.getvalue()


def read_metadata(source: str | Path | bytes, name: str | None = None) -> dict[str, Any]:
    """Returns what a cut-out keeps of its image file's metadata, for `encode`; arguments and errors as of `read_rgb`.

    That is the resolution, the artist, the copyright and the date. The location, camera, comments and thumbnail (which
    shows the background) are not kept, and the orientation and the profile are applied to the pixels.
    """
    image, _ = _open(source, name)
    kept: dict[str, Any] = {}
    with suppress(Exception), _warnings_ignored():  # damaged metadata of intact pixels
        # Without EXIF, Pillow would decode a PNG in search of it.
        tags = image.getexif() if image.format not in ("JPEG", "PNG") or "exif" in image.info else {}
        exif = Image.Exif()
        for tag in (ExifTags.Base.Artist, ExifTags.Base.Copyright, ExifTags.Base.DateTime):
            if isinstance(value := tags.get(tag), str) and value:
                exif[tag] = value
        if exif:
            kept["exif"] = exif
    with suppress(Exception):
        resolution = tuple(float(value) for value in image.info.get("dpi", ()))
        if len(resolution) == 2 and min(resolution) >= 1 and max(resolution) < 1e5:
            kept["dpi"] = resolution
    return kept


def encode(array: np.ndarray, ending: str, name: str, metadata: Mapping[str, Any] | None = None) -> bytes:
    """Encodes an image as the bytes of a file. JPEG and colours in WebP are lossy; PNG, TIFF and grey in WebP are not.

    Args:
      array: uint8 [height, width], [height, width, 3], or [height, width, 4] (RGBA; not for JPEG).
      ending: ".png", ".jpg", ".webp" or ".tiff".
      name: how errors name the file.
      metadata: of `read_metadata`, to be stored with the pixels.

    Raises:
      TooManyPixels: the format cannot hold them.
    """
    options = dict(metadata or {})
    if ending == ".png":
        return to_png(array, flat=array.ndim == 2, metadata=options)
    image, buffer = Image.fromarray(np.ascontiguousarray(array)), io.BytesIO()
    try:
        if ending == ".jpg":
            image.save(buffer, "JPEG", quality=95, **options)
        elif ending == ".webp":
            image.save(buffer, "WEBP", quality=90, lossless=array.ndim == 2, **_resolution_in_exif(options))
        else:
            image.save(buffer, "TIFF", compression="tiff_adobe_deflate", **options)
    except (OSError, ValueError) as error:  # JPEG ends at 65,500 pixels a side, WebP at 16,383
        size = f"{array.shape[1]}×{array.shape[0]}"
        raise TooManyPixels(f"{name}: cannot hold {size} pixels: {reason(error)}") from error
    return buffer.getvalue()


def _resolution_in_exif(metadata: dict[str, Any]) -> dict[str, Any]:
    """Moves the resolution to EXIF, where WebP has it."""
    if "dpi" not in metadata:
        return metadata
    exif = Image.Exif()
    for tag, value in metadata.get("exif", {}).items():
        exif[tag] = value
    exif[ExifTags.Base.XResolution], exif[ExifTags.Base.YResolution] = metadata["dpi"]
    exif[ExifTags.Base.ResolutionUnit] = 2  # inch
    return {"exif": exif}


@contextmanager
def _errors_named(name: str) -> Iterator[None]:
    """Turns the errors of decoders, of nearly every type there is, into an `InputError` that begins with `name`."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        raise InputError(f"{name}: {reason(error)}") from error


@contextmanager
def _warnings_ignored() -> Iterator[None]:
    """Silences Pillow's warnings about headers (size, unusual metadata), since what matters raises an error.

    Warning filters belong to the process, so threads take turns, and only headers are parsed inside.
    """
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _open(source: str | Path | bytes, name: str | None) -> tuple[Image.Image, str]:
    """Parses the header. Returns the image, not decoded yet, and the name for errors."""
    data = source if isinstance(source, bytes) else read_bytes(source, name)
    name = str(name or ("image" if isinstance(source, bytes) else source))
    if not data:
        raise InputError(f"{name}: the file is empty")
    data, profile = without_large_metadata(data)
    try:
        formats = (*_FORMATS, *_heif_format(data, name))
        with _warnings_ignored():
            image = Image.open(io.BytesIO(data), formats=formats)
    except InputError:
        raise
    except Image.UnidentifiedImageError as error:
        if kind := _unsupported(data):
            raise InputError(f"{name}: not an image that is read, but of another format: {kind}") from error
        raise InputError(f"{name}: not an image, or a damaged one") from error
    except Image.DecompressionBombError as error:
        raise TooManyPixels(f"{name}: has more than {PIXEL_LIMIT:,} pixels") from error
    except Exception as error:  # nearly every type there is
        raise InputError(f"{name}: damaged: {reason(error)}") from error
    width, height = image.size
    if width < 1 or height < 1:
        raise InputError(f"{name}: has no pixels: {width}×{height}")
    if width * height > PIXEL_LIMIT:
        raise TooManyPixels(f"{name}: has more than {PIXEL_LIMIT:,} pixels: {width}×{height}")
    # Counting is fast, but counts in what follows the image, too.
    many = image.format in ("JPEG", "MPO") and data.count(b"\xff\xda") > _SCAN_LIMIT
    if many and _scans(data) > _SCAN_LIMIT:
        raise InputError(f"{name}: a JPEG of more than {_SCAN_LIMIT} scans")
    if profile is not None:
        image.info["icc_profile"] = profile
    if image.format in _ANIMATED:
        with suppress(Exception):  # of frames after the first, which are not read
            if getattr(image, "is_animated", False):
                _say_once("animation", f"{name}: an animation, of which the first frame is read")
    return image, name


def _scans(data: bytes) -> int:
    """Returns how many scans a JPEG has before its end, which other data may follow, as in motion photos."""
    scans, position = 0, 2
    while (marker := _JPEG_MARKER.search(data, position)) and marker[1] != b"\xd9":
        scans += marker[1] == b"\xda"
        position = marker.end() + max(2, int.from_bytes(data[marker.end() : marker.end() + 2]))
    return scans


def _unsupported(data: bytes) -> str | None:
    """Returns the format of a file that is not read, by its first bytes, if it is known."""
    if data[4:8] == b"ftyp" and data[8:12] in (*_HEIF_BRANDS, b"avif", b"avis"):
        return None  # damaged
    start = data[:16].lstrip() if data[:16].lstrip().startswith(b"<") else data[:16]
    for signature, kind in _UNSUPPORTED.items():
        if len(start) >= len(signature) and all(
            s in (byte, ord("?")) for s, byte in zip(signature, start, strict=False)
        ):
            return kind
    return None


def _heif_format(data: bytes, name: str) -> tuple[str, ...]:
    """Returns Pillow's name of HEIF if a file is one, having made Pillow read it; AVIF is another format."""
    if data[4:8] != b"ftyp" or data[8:12] not in _HEIF_BRANDS or b"avif" in data[12:64]:
        return ()
    try:
        import pillow_heif
    except ImportError as error:
        raise InputError(f"{name}: HEIC, which needs an extra: pip install 'purinet_jax[heif]'") from error
    pillow_heif.register_heif_opener()
    return ("HEIF",)


def decode(source: str | Path | bytes, name: str | None) -> tuple[Image.Image, str]:
    """Returns the image, decoded and upright, and the name for errors."""
    image, name = _open(source, name)
    stream = getattr(image, "fp", None)
    with _errors_named(f"{name}: damaged"):
        image.load()
    if image.mode in ("RGB", "RGBA", "LA") and image.format in ("PNG", "TIFF") and isinstance(stream, io.BytesIO):
        image = _without_unused_bits(image, stream.getvalue(), name)
    return _upright(image), name


def _upright(image: Image.Image) -> Image.Image:
    transposition = _TRANSPOSITIONS.get(_orientation(image))
    if transposition is None:
        return image
    upright = image.transpose(transposition)
    upright.format = image.format
    return upright


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; to be read after loading, which rotates a TIFF already."""
    if image.format in ("JPEG", "PNG") and not _WITH_ORIENTATION & image.info.keys():
        return 1  # most files, without waiting for the lock on warnings
    try:
        with _warnings_ignored():
            value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged metadata of intact pixels
        return 1
    return value if value in _TRANSPOSITIONS else 1


def _sixteen_bits(image: Image.Image, name: str) -> np.ndarray:
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise InputError(f"{name}: its pixels run from {values.min()} to {values.max()}, more than 16 bits hold")
    return values


def _without_unused_bits(image: Image.Image, data: bytes, name: str) -> Image.Image:
    """Stretches 16-bit colours of which fewer bits are used; Pillow reads only the upper eight."""
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    bits = data[24] if image.format == "PNG" else max(tags.get(ExifTags.Base.BitsPerSample, (8,)))
    if bits != 16:
        return image
    upper = np.asarray(image)
    colours = 1 if image.mode == "LA" else 3
    if upper[..., :colours].max() >= 1 << 6:
        return image
    import cv2  # here, because such files are rare

    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if decoded is None or decoded.dtype != np.uint16 or decoded.ndim != 3:
        return image
    values: np.ndarray = decoded[..., [0, 3] if image.mode == "LA" else [2, 1, 0, 3][: decoded.shape[2]]]
    # OpenCV must have read the same pixels, as it may not where a file is rotated or has several images.
    if values.shape != upper.shape or not np.array_equal(values >> 8, upper):
        return image
    parts = [_eight_bits(part, name) for part in (values[..., :colours], values[..., colours:]) if part.size]
    stretched = Image.fromarray(np.concatenate(parts, axis=2))
    stretched.format, stretched.info = image.format, image.info
    return stretched


def _eight_bits(values: np.ndarray, name: str) -> np.ndarray:
    """Scales 16-bit values to uint8. Of files that hold fewer bits, as of scanners, the significant ones are scaled."""
    highest = int(values.max())
    bits = next(bits for bits in (8, 10, 12, 14, 16) if highest < 1 << bits)
    if bits == 8:
        return values.astype(np.uint8)
    if bits < 16:
        _say_once(f"{bits} bits", f"{name}: 16-bit values of which {bits} bits are used, which are stretched")
    top = np.uint32((1 << bits) - 1)
    return ((values.astype(np.uint32) * 255 + top // 2) // top).astype(np.uint8)


def _say_once(key: str, line: str) -> None:
    if key not in _said:
        _said.add(key)
        logger.info("%s (said once)", line)
