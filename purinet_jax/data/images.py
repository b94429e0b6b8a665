"""Decode and encode image files: the one place where bytes become arrays.

It reads every kind of file a data set has been seen to hold (grey, palette, CMYK, 16-bit, turned by an EXIF tag, masks
stored as 0/1) and refuses what cannot be read with one line that names the file.
"""

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from purinet_jax.errors import InputError
from purinet_jax.files import read_bytes

EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Endings, in lower case, by which an image file is recognised in a folder or zip."""

PIXEL_LIMIT = 178_956_970
"""The most pixels an image may have; a small file can claim billions of them (a decompression bomb)."""

# A progressive JPEG of a few megabytes can ask for its pixels to be refined a hundred thousand times. Usual are ten
# scans; libtiff allows as many as this for JPEG within TIFF.
_SCAN_LIMIT = 100

# Named, because Pillow would otherwise also try formats that run other programs (EPS starts Ghostscript).
_FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

# zlib's strategy Z_RLE, which looks at the byte before alone. Files of maps and masks, smooth or constant as they are,
# become 5 and 16 % smaller, in half the time or less.
_RUN_LENGTHS = 3

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# What Pillow finds the orientation of a JPEG or PNG file in.
_WITH_ORIENTATION = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif", "Raw profile type APP1"}

_warnings_lock = threading.Lock()


class TooManyPixels(InputError):
    """An image that is larger than `PIXEL_LIMIT`, or than its format can hold."""


def read_rgb(source: str | Path | bytes, name: str | None = None) -> np.ndarray:
    """Reads an image file as colours.

    Grey is repeated three times, alpha is dropped, 16-bit values are scaled to 8 bits, and the image stands
    upright as its EXIF orientation says.

    Args:
      source: the file's path, or its bytes.
      name: what an error calls the file; the path itself if not given.

    Returns:
      uint8 [height, width, 3], red green blue, 0 to 255.

    Raises:
      InputError: the file is missing, empty, damaged, or not an image.
      TooManyPixels: it is larger than `PIXEL_LIMIT`.
    """
    return to_rgb(*_decode(source, name))


def read_srgb(source: str | Path | bytes, name: str | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads an image file for people: `read_rgb`, but in sRGB and with its alpha channel.

    Colours of an embedded profile other than sRGB are converted by it; a damaged profile is ignored. (`read_rgb`
    leaves colours as they are stored, as the field's programs do.)

    Args:
      source: the file's path, or its bytes.
      name: what an error calls the file; the path itself if not given.

    Returns:
      uint8 [height, width, 3], and alpha uint8 [height, width], None where all is opaque.

    Raises:
      InputError: as `read_rgb`.
    """
    image, name = _decode(source, name)
    try:
        alpha = None
        if image.has_transparency_data and not image.mode.startswith("I"):
            alpha = np.asarray(image.convert("RGBA").getchannel("A"))
            alpha = None if alpha.min() == 255 else alpha
    except Exception as error:
        raise _unusable(name, str(error)) from error
    return to_rgb(_in_srgb(image), name), alpha


def _in_srgb(image: Image.Image) -> Image.Image:
    """The colours that an embedded profile gives the image, alpha dropped; the image itself where there is none."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode.startswith(("I", "F", "LAB")):
        return image
    # Here, because most images have no profile.
    from PIL import ImageCms

    try:
        described = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        # "sRGB IEC61966-2.1" and the like; what is named sRGB-linear or so is another one.
        if f"{described.profile.profile_description} ".startswith("sRGB "):
            return image
        # Little CMS takes grey, RGB and CMYK; what is more than that is alpha or a palette.
        mode = {"GRAY": "L", "CMYK": "CMYK"}.get(described.profile.xcolor_space.strip(), "RGB")
        colours = image if image.mode == mode else image.convert("RGBA").convert(mode)
        converted = ImageCms.profileToProfile(colours, described, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except MemoryError:
        raise
    except Exception:  # a damaged profile, or one of other colours than the pixels
        return image
    return image if converted is None else converted


def to_rgb(image: Image.Image, name: str) -> np.ndarray:
    """Turns a Pillow image into colours, as `read_rgb` does, but leaves it as it stands.

    Args:
      image: of any mode.
      name: what an error calls it.

    Returns:
      uint8 [height, width, 3].

    Raises:
      InputError: its pixels cannot be decoded, or are numbers of unknown range.
    """
    try:
        if image.mode.startswith("I"):
            grey = (_sixteen_bit(image, name).astype(np.uint32) + 128) // 257
            return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)
        if image.mode == "F":
            raise _unusable(name, "its pixels are floating-point numbers of unknown range")
        if "transparency" in image.info or image.mode == "PA":
            image = image.convert("RGBA")  # straight to RGB, Pillow warns and paints transparency in
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except InputError:
        raise
    except Exception as error:
        raise _unusable(name, str(error)) from error


def read_mask(source: str | Path | bytes, name: str | None = None) -> np.ndarray:
    """Reads a mask file as 0 (ground) and 1 (object): `read_grey`, cut at half of its range, 128.

    Args:
      source: the file's path, or its bytes.
      name: what an error calls the file; the path itself if not given.

    Returns:
      uint8 [height, width], 0 or 1, upright as the file's own EXIF orientation says.

    Raises:
      InputError: as `read_grey`.
    """
    return (read_grey(source, name) >= 128).view(np.uint8)


def read_grey(source: str | Path | bytes, name: str | None = None) -> np.ndarray:
    """Reads a mask file as grey values.

    16-bit values are scaled to 8 bits. A file whose brightest value is 1 holds zeros and ones, which become 0
    and 255, and a 16-bit file with nothing above 255 holds 8-bit values.

    Args:
      source: the file's path, or its bytes.
      name: what an error calls the file; the path itself if not given.

    Returns:
      uint8 [height, width], 0 to 255, upright as the file's own EXIF orientation says.

    Raises:
      InputError: as `read_rgb`, or the file is a palette of colours, in which brightness has no meaning.
    """
    image, name = _decode(source, name)
    values = _grey_values(image, name)
    if values.dtype == np.float64:
        raise _unusable(name, "its pixels are floating-point numbers of unknown range")
    if values.dtype != np.uint8 and values.max() > 255:
        values = (values.astype(np.uint32) + 128) // 257
    return values.astype(np.uint8) * np.uint8(255 if values.max() <= 1 else 1)


def read_map(source: str | Path | bytes, name: str | None = None) -> np.ndarray:
    """Reads a saliency map's file, whoever wrote it, without rounding.

    Unlike a mask's, its values are taken as they are: what measures maps stretches them, so that a map of zeros and
    ones is as good as one of 0 and 255. Only of a map that is constant does the scale matter: there 8 bits are parts
    of 255 and 16 bits parts of 65535.

    Args:
      source: the file's path, or its bytes.
      name: what an error calls the file; the path itself if not given.

    Returns:
      [height, width], upright as the file's own EXIF orientation says: uint8 for up to 8 bits, where the ones of a
      1-bit file are 255; float64 in [0, 1] for 16 bits; float64 as they stand for floating-point numbers (TIFF).

    Raises:
      InputError: as `read_rgb`, or the file is a palette of colours, in which brightness has no meaning.
    """
    image, name = _decode(source, name)
    values = _grey_values(image, name)
    if values.dtype in (np.uint8, np.float64):
        return values * np.uint8(255) if image.mode == "1" else values
    return values / 65535


def _grey_values(image: Image.Image, name: str) -> np.ndarray:
    """A file's grey values, [height, width]: uint8 (0 and 1 of a 1-bit file), whole numbers of 16 bits, or float64."""
    try:
        if image.mode.startswith("I"):
            return _sixteen_bit(image, name)
        if image.mode == "F":
            return np.asarray(image, np.float64)
        if image.mode in ("P", "PA"):
            colours = np.asarray(image.convert("RGBA"))
            if (colours[..., :1] != colours[..., 1:3]).any():
                raise _unusable(name, "grey values are needed, but this is a palette of colours")
            return colours[..., 0]
        return np.asarray(image if image.mode == "1" else image.convert("L"), np.uint8)
    except InputError:
        raise
    except Exception as error:
        raise _unusable(name, str(error)) from error


def read_values(source: str | Path | bytes, name: str | None = None) -> tuple[np.ndarray, dict[str, str]]:
    """Reads a one-channel file's numbers as they stand, and its PNG text entries.

    Args:
      source: the file's path, or its bytes.
      name: what an error calls the file; the path itself if not given.

    Returns:
      int32 [height, width], and the texts by keyword.

    Raises:
      InputError: as `read_rgb`, or the file has more than one channel.
    """
    image, name = _decode(source, name)
    if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
        raise _unusable(name, f"needs one channel of whole numbers, but its mode is {image.mode}")
    texts = {key: text for key, text in image.info.items() if isinstance(key, str) and isinstance(text, str)}
    return np.asarray(image).astype(np.int32), texts


def count_pixels(source: str | Path | bytes, name: str | None = None) -> int:
    """How many pixels an image file claims to have; only its header is parsed. Arguments and errors as `read_rgb`."""
    image, _ = _open(source, name)
    return image.width * image.height


def check_image(source: str | Path | bytes, name: str | None = None) -> tuple[int, int]:
    """Parses a whole image file as cheaply as that can be done: a JPEG is decoded at an eighth of its size.

    Args:
      source: the file's path, or its bytes.
      name: what an error calls the file; the path itself if not given.

    Returns:
      Height and width in pixels, upright as the EXIF orientation says.

    Raises:
      InputError: as `read_rgb`.
    """
    image, name = _open(source, name)
    size = image.size
    if image.format in ("JPEG", "MPO"):
        image.draft(None, (max(1, size[0] // 8), max(1, size[1] // 8)))
        _load(image, name)
    else:
        _load(image, name)
        size = image.size
    width, height = size[::-1] if _orientation(image) >= 5 else size
    return height, width


def is_plain(data: bytes, *kinds: tuple[str, str]) -> bool:
    """Whether every reader understands a file alike: upright, of 8 bits, without transparency, and of one of `kinds`.

    Args:
      data: the file's bytes.
      kinds: formats and modes as Pillow calls them, ("JPEG", "RGB").

    Raises:
      InputError: as `read_rgb`.
    """
    image, _ = _open(data, None)
    # Pillow calls 16-bit colours RGB too; a PNG's bit depth is its 25th byte.
    eight_bits = image.format != "PNG" or data[24] == 8
    plain = (image.format, image.mode) in kinds and eight_bits and "transparency" not in image.info
    return plain and _orientation(image) == 1


def to_png(array: np.ndarray, texts: dict[str, str] | None = None, *, flat: bool = False) -> bytes:
    """Encodes an array as a PNG file.

    Args:
      array: uint8 [height, width], [height, width, 3] or [height, width, 4] (RGBA), or uint16 [height, width].
      texts: text entries to store in the file, by keyword.
      flat: whether neighbours mostly have the same value, or the same difference; that is encoded faster.

    Returns:
      The file's bytes, the same for the same array.

    Raises:
      ValueError: another dtype or shape.
    """
    grey = array.ndim == 2 and array.dtype in (np.uint8, np.uint16)
    if not grey and not (array.ndim == 3 and array.shape[2] in (3, 4) and array.dtype == np.uint8):
        raise ValueError(f"a PNG needs uint8 or uint16 grey or uint8 RGB or RGBA, not {array.dtype} {array.shape}")
    entries = PngInfo()
    for key, text in (texts or {}).items():
        entries.add_text(key, text)
    buffer = io.BytesIO()
    strategy = {"compress_type": _RUN_LENGTHS} if flat else {}
    Image.fromarray(np.ascontiguousarray(array)).save(buffer, "PNG", pnginfo=entries, **strategy)
    return buffer.getvalue()


def encode(array: np.ndarray, ending: str, name: str) -> bytes:
    """Encodes a picture for people as the file that an ending promises.

    Args:
      array: uint8 [height, width], [height, width, 3], or [height, width, 4] (RGBA; not for JPEG).
      ending: ".png", ".jpg", ".webp" or ".tiff".
      name: what an error calls the file.

    Returns:
      The file's bytes. JPEG and colours in WebP lose a little; PNG, TIFF and grey in WebP lose nothing.

    Raises:
      TooManyPixels: the format cannot hold them.
    """
    if ending == ".png":
        return to_png(array, flat=array.ndim == 2)
    image, buffer = Image.fromarray(np.ascontiguousarray(array)), io.BytesIO()
    try:
        if ending == ".jpg":
            image.save(buffer, "JPEG", quality=95)
        elif ending == ".webp":
            image.save(buffer, "WEBP", quality=90, lossless=array.ndim == 2)
        else:
            image.save(buffer, "TIFF", compression="tiff_adobe_deflate")
    except (OSError, ValueError) as error:  # JPEG ends at 65,500 pixels a side, WebP at 16,383
        raise TooManyPixels(f"{name}: cannot hold {array.shape[1]}×{array.shape[0]} pixels: {error}") from error
    return buffer.getvalue()


def _unusable(name: str, reason: str) -> InputError:
    return InputError(" ".join(f"{name}: {reason}".split("\n")))


@contextmanager
def _quietly() -> Iterator[None]:
    """Keeps Pillow's remarks on headers (size, odd metadata) from the user: what matters is raised as an error.

    Warning filters belong to the whole process, so threads take turns; only headers are parsed inside.
    """
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _open(source: str | Path | bytes, name: str | None) -> tuple[Image.Image, str]:
    """Reads the header. Returns the image, not decoded yet, and the name for errors."""
    if isinstance(source, bytes):
        data, name = source, name or "image"
    else:
        data, name = read_bytes(source, name), name or str(source)
    if not data:
        raise _unusable(name, "the file is empty")
    try:
        with _quietly():
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.UnidentifiedImageError as error:
        raise _unusable(name, "not an image, or a damaged one") from error
    except Image.DecompressionBombError as error:
        raise TooManyPixels(f"{name}: has more than {PIXEL_LIMIT:,} pixels") from error
    except Exception as error:  # decoders raise nearly every type there is on damaged files
        raise _unusable(name, f"damaged: {error}") from error
    width, height = image.size
    if width < 1 or height < 1:
        raise _unusable(name, f"has no pixels: {width}×{height}")
    if width * height > PIXEL_LIMIT:
        raise TooManyPixels(f"{name}: has more than {PIXEL_LIMIT:,} pixels: {width}×{height}")
    if image.format in ("JPEG", "MPO") and data.count(b"\xff\xda") > _SCAN_LIMIT:
        raise _unusable(name, f"a JPEG of more than {_SCAN_LIMIT} scans")
    return image, name


def _load(image: Image.Image, name: str) -> None:
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # as above
        raise _unusable(name, f"damaged: {error}") from error


def _decode(source: str | Path | bytes, name: str | None) -> tuple[Image.Image, str]:
    image, name = _open(source, name)
    _load(image, name)
    turn = _TURNS.get(_orientation(image))
    return (image if turn is None else image.transpose(turn)), name


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8. Asked for after loading, because loading a TIFF turns it already."""
    if image.format in ("JPEG", "PNG") and not _WITH_ORIENTATION & image.info.keys():
        return 1  # most files, without waiting for the lock on warnings
    try:
        with _quietly():
            value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged metadata beside intact pixels
        return 1
    return value if value in _TURNS else 1


def _sixteen_bit(image: Image.Image, name: str) -> np.ndarray:
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise _unusable(name, f"its pixels run from {values.min()} to {values.max()}, more than 16 bits hold")
    return values
