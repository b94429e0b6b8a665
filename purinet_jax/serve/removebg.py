"""remove.bg's HTTP interface (version 1.0): fields of a request for `/v1.0/removebg` as a task, and its responses."""

import base64
import binascii
import io
import re
from collections.abc import Mapping
from functools import partial
from typing import Literal

import numpy as np
from PIL import Image
from starlette.responses import JSONResponse, Response

from purinet_jax.data.images import PIXEL_LIMIT
from purinet_jax.prediction.backgrounds import read_colour
from purinet_jax.prediction.cutouts import composite
from purinet_jax.prediction.rendering import Style
from purinet_jax.serve.parameters import read_flag, read_texts
from purinet_jax.serve.refusals import Refusal
from purinet_jax.serve.worker import Task

FIELDS = {
    "image_file": "The image.",
    "image_file_b64": "The image, in base64.",
    "image_url": "Refused: nothing is fetched.",
    "size": "preview (0.25 megapixels, the default), medium (1.5), hd (4), or full or auto: the image's own.",
    "type": "Accepted without effect: auto, person, product, car, animal, graphic, transportation.",
    "type_level": "Accepted without effect: none, 1, 2, latest.",
    "format": "auto (PNG, or JPEG on an opaque colour; the default), png, jpg (on white without bg_color) or webp.",
    "channels": "rgba (the default), or alpha: the mask alone, grey.",
    "bg_color": "Background colour: 81d4fa, 81d4fa80 with alpha, or a name.",
    "crop": "Crops to the object: true or false.",
    "crop_margin": "Added to the cropped object: 30px or 10%; one for all sides, two (vertical, horizontal) or four.",
    "semitransparency": "Accepted without effect: true or false.",
    "scale": "Refused unless it is original.",
    "position": "Refused unless it is original.",
    "roi": "Refused unless it is all of the image: 0% 0% 100% 100%.",
    "add_shadow": "Refused unless it is false.",
    "shadow_type": "Refused unless it is none.",
    "shadow_opacity": "Accepted without effect, as there is no shadow.",
    "bg_image_url": "Refused: nothing is fetched.",
    "bg_image_file": "Refused: a background is a colour.",
}
"""Field of a form or of a JSON object → its description."""

_CREDITS = 1_000_000
ACCOUNT = {
    "data": {
        "attributes": {
            "credits": {"total": _CREDITS, "subscription": 0, "payg": _CREDITS, "enterprise": 0},
            "api": {"free_calls": _CREDITS, "sizes": "all"},
        }
    }
}
"""The response of `/v1.0/account`: always the same credits, because clients stop when they have none."""

_PIXELS = {
    **dict.fromkeys(("preview", "small", "regular"), 250_000),
    "medium": 1_500_000,
    "hd": 4_000_000,
    **dict.fromkeys(("full", "auto", "4k", "50MP"), None),
}
_CHOICES = {
    "size": (*_PIXELS,),
    "type": ("auto", "person", "product", "car", "animal", "graphic", "transportation"),
    "type_level": ("none", "1", "2", "latest"),
    "format": ("auto", "png", "jpg", "webp"),
    "channels": ("rgba", "alpha"),
}
_REFUSED = {
    "image_url": ((), "nothing is fetched; send the file itself as image_file"),
    "bg_image_url": ((), "nothing is fetched, and a background is a colour, bg_color"),
    "bg_image_file": ((), "a background is a colour, bg_color"),
    "scale": (("original", "100%"), "only original is known here"),
    "position": (("original",), "only original is known here"),
    "roi": (("0% 0% 100% 100%",), "only all of the image is known here"),
    "add_shadow": (("false",), "there are no shadows"),
    "shadow_type": (("none",), "there are no shadows"),
}
"""Field → the values that are accepted, and why others are refused."""

# The least alpha that counts when a cut-out is cropped, so that faint specks do not.
_VISIBLE = 13
_MARGIN = re.compile(r"(\d{1,4}(?:\.\d{1,4})?)(px|%)?", re.ASCII)
_MOST_MARGIN = {"px": 500, "%": 50}
# What margins may add to a small image, pixels.
_MARGIN_PIXELS = 1 << 22
_WHITE = (255, 255, 255)

_Margin = tuple[float, Literal["px", "%"]]


def parse_removebg(fields: Mapping[str, str | bytes]) -> Task:
    """Returns the task of a request's fields. Raises Refusal if one is missing, unknown, wrong or not supported."""
    for name, (accepted, reason) in _REFUSED.items():
        if name in fields and fields[name] not in accepted:
            raise Refusal("url" if name.endswith("url") else "parameter", f"{name}: {reason}")
    texts = read_texts(fields, FIELDS, "image_file")
    for name, choices in _CHOICES.items():
        if texts.get(name, choices[0]) not in choices:
            raise Refusal("parameter", f"{name}: must be one of {', '.join(choices)}")
    crop = read_flag("crop", texts.get("crop", "false"))
    read_flag("semitransparency", texts.get("semitransparency", "true"))
    background = _read_colour(texts["bg_color"]) if "bg_color" in texts else None
    alpha = texts.get("channels") == "alpha"
    ending = texts.get("format", "auto")
    if ending == "auto":
        ending = "jpg" if background is not None and len(background) == 3 and not alpha else "png"
    finish = partial(
        _finish,
        margins=_read_margins(texts.get("crop_margin", "0")) if crop else None,
        pixels=_PIXELS[texts.get("size", "preview")],
        background=None if alpha else background,
        alpha=alpha,
        opaque=ending == "jpg",
    )
    return Task(
        _image(fields.get("image_file"), texts.get("image_file_b64")), Style("cutout", ending=f".{ending}"), finish
    )


def _image(image: str | bytes | None, text: str | None) -> bytes:
    """Returns the image's file, which is given as it is or in base64."""
    if (image is None) == (text is None):
        raise Refusal("form", "needs the image as image_file or, in base64, as image_file_b64, and once only")
    if isinstance(image, bytes):
        return image
    assert text is not None
    text = text.partition("base64,")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise Refusal("parameter", "image_file_b64: is not base64") from None


def _read_colour(text: str) -> tuple[int, ...]:
    colour = read_colour(f"#{text}" if re.fullmatch(r"[0-9a-fA-F]{3,8}", text) else text)
    if colour is None:
        raise Refusal("parameter", "bg_color: must be a colour, such as 81d4fa, 81d4fa80 or green")
    return colour


def _read_margins(text: str) -> tuple[_Margin, ...]:
    """Returns the margins of the top, right, bottom and left."""
    parts = [_MARGIN.fullmatch(part) for part in text.split()]
    margins: list[_Margin] = []
    for part in parts:
        value, unit = (float(part[1]), part[2] or "px") if part else (0.0, "")
        if unit not in _MOST_MARGIN or value > _MOST_MARGIN[unit]:
            raise Refusal("parameter", "crop_margin: must be at most 500px or 50%, such as 30px or '10% 20px'")
        margins.append((value, unit))  # type: ignore[arg-type]
    if len(margins) not in (1, 2, 4):
        raise Refusal("parameter", "crop_margin: must be one, two or four lengths")
    return tuple((margins * 4)[:4])


def _finish(
    rgba: np.ndarray,
    margins: tuple[_Margin, ...] | None,
    pixels: int | None,
    background: tuple[int, ...] | None,
    alpha: bool,
    opaque: bool,
) -> np.ndarray:
    """Crops a cut-out uint8 [height, width, 4] unless `margins` is None, reduces it to at most `pixels`, and puts it on
    a background, or returns its alpha alone. Raises Refusal if there is no object."""
    if not (rgba[..., 3] >= _VISIBLE).any():
        raise Refusal("no_object", "no object was found in the image")
    if margins is not None:
        rgba = _cropped(rgba, margins)
    height, width = rgba.shape[:2]
    if pixels is not None and height * width > pixels:
        scale = (pixels / (height * width)) ** 0.5
        size = (max(1, int(width * scale)), max(1, int(height * scale)))
        rgba = np.asarray(Image.fromarray(rgba).resize(size, Image.Resampling.BICUBIC, reducing_gap=3))
    if alpha:
        return np.ascontiguousarray(rgba[..., 3])
    image = rgba if background is None else composite(rgba, background)
    return composite(image, _WHITE) if opaque and image.shape[2] == 4 else image


def _cropped(rgba: np.ndarray, margins: tuple[_Margin, ...]) -> np.ndarray:
    shown = rgba[..., 3] >= _VISIBLE
    rows, columns = (np.flatnonzero(shown.any(axis)) for axis in (1, 0))
    part = rgba[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = part.shape[:2]
    lengths = (height, width, height, width)
    top, right, bottom, left = (
        round(value * length / 100) if unit == "%" else round(value)
        for (value, unit), length in zip(margins, lengths, strict=True)
    )
    most = min(PIXEL_LIMIT, 4 * shown.size + _MARGIN_PIXELS)  # memory is limited by the image's pixels
    if (top + height + bottom) * (left + width + right) > most:
        raise Refusal("parameter", f"crop_margin: with it the crop has more than {most:,} pixels")
    return np.pad(part, ((top, bottom), (left, right), (0, 0)))


def success(image: bytes, media_type: str, accept: str) -> Response:
    """Returns a response: the image, or JSON that holds it in base64 if the client accepts nothing else."""
    with Image.open(io.BytesIO(image)) as header:
        width, height = header.size
    headers = {"X-Width": str(width), "X-Height": str(height), "X-Credits-Charged": "0"}
    if accept.partition(";")[0].strip().lower() == "application/json":
        return JSONResponse({"data": {"result_b64": base64.b64encode(image).decode()}}, headers=headers)
    return Response(image, headers=headers, media_type=media_type)


def failure(refusal: Refusal) -> JSONResponse:
    """Returns a refusal as remove.bg writes errors, with its statuses: 403 for a wrong key, 400 for what is wrong with
    the image."""
    title = {"title": refusal.detail, "code": refusal.error}
    return JSONResponse({"errors": [title]}, status(refusal.status_code), refusal.headers)


def status(code: int) -> int:
    """Returns remove.bg's status for one of `ERRORS`."""
    return {401: 403, 413: 400, 415: 400}.get(code, code)
