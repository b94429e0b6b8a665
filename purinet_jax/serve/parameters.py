"""The query parameters of a request for an image: their description and how they are parsed."""

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from PIL import features

from purinet_jax.data.images import EXTENSIONS
from purinet_jax.errors import InputError
from purinet_jax.prediction.backgrounds import read_blur, read_colour, read_share
from purinet_jax.prediction.rendering import Kind, Style
from purinet_jax.serve.refusals import Refusal

FORMATS = ("png", "webp")
"""The formats of responses; the first is the default."""

MEDIA_TYPES = {".jpg": "image/jpeg", ".png": "image/png", ".webp": "image/webp"}
"""Ending of an image file → its media type. JPEG is for remove.bg's interface only."""

PARAMETERS: dict[str, tuple[str, dict[str, Any]]] = {
    "threshold": (
        "Threshold of masks and of the edges of cut-outs.",
        {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1, "default": Style.threshold},
    ),
    "format": ("Format of the response. WebP loses a little of colours.", {"enum": [*FORMATS], "default": "png"}),
    "background": (
        "Behind a cut-out: a colour as CSS writes it (white, #80ff00, or with alpha, #80ff0080), or the image's own "
        "background blurred (blur, or blur:3% of the longer side; default 2%).",
        {"type": "string"},
    ),
    "min_area": ("Specks that cover less of the image are removed: 0.1% or 0.001.", {"type": "string", "default": "0"}),
    "keep_largest": ("Whether only the largest part is kept.", {"type": "boolean", "default": False}),
    "fill_holes": ("Whether holes in the object are filled.", {"type": "boolean", "default": False}),
    "matting": ("Whether cut-outs have hair and fur; takes longer.", {"type": "boolean", "default": False}),
}
"""Parameter → description and JSON schema."""

CUTOUT_ONLY = ("background", "matting")
"""Parameters for cut-outs only."""

NOT_FOR_ATTENTION = ("min_area", "keep_largest", "fill_holes")
"""Parameters for all kinds but attention panels."""

_FLAGS = {
    **dict.fromkeys(("true", "1", "on", "yes", "t", "y"), True),
    **dict.fromkeys(("false", "0", "off", "no", "f", "n"), False),
}


def readable_endings() -> list[str]:
    """Returns the endings of the image files that are read with the libraries that are installed."""
    missing = {".heic", ".heif"} if importlib.util.find_spec("pillow_heif") is None else set()
    for feature, endings in (("avif", (".avif",)), ("jpg_2000", (".j2k", ".jp2"))):
        missing.update(() if features.check(feature) else endings)
    return [ending for ending in EXTENSIONS if ending not in missing]


def read_flag(name: str, text: str) -> bool:
    """Returns whether a parameter is true. Raises Refusal if it is neither true nor false."""
    if (flag := _FLAGS.get(text.lower())) is None:
        raise Refusal("parameter", f"{name}: must be true or false")
    return flag


def shown(text: str) -> str:
    """Returns a client's text for a reason: its start, in one line of ASCII."""
    return ascii(text[:200])[1:-1]


def read_texts(fields: Mapping[str, str | bytes], known: Iterable[str], file: str) -> dict[str, str]:
    """Returns the fields of a form other than `file`. Raises Refusal if one is unknown, or wrongly a file."""
    known = tuple(known)
    for name, value in fields.items():
        if name not in known:
            raise Refusal("parameter", f"{shown(name)}: unknown; there are {', '.join(known)}")
        if isinstance(value, bytes) != (name == file):
            raise Refusal("form", f"{name}: must be {'a file of a form' if name == file else 'text'}")
    return {name: value for name, value in fields.items() if isinstance(value, str)}


def parse_style(name: str, kinds: Sequence[Kind], query: Mapping[str, str]) -> Style:
    """Returns the style of a kind's name and parameters. Raises Refusal if one of them is unknown or wrong."""
    kind = next((kind for kind in kinds if kind == name), None)
    if kind is None:
        raise Refusal("unknown_kind", f"no such kind; there are {', '.join(kinds)}")
    if not set(query) <= set(PARAMETERS):
        raise Refusal("parameter", f"unknown parameter; there are {', '.join(PARAMETERS)}")
    extension = query.get("format", "png")
    if extension not in FORMATS:
        raise Refusal("parameter", f"format: must be {' or '.join(FORMATS)}")
    try:
        threshold = float(query.get("threshold", Style.threshold))
    except ValueError:
        raise Refusal("parameter", "threshold: must be a number between 0 and 1") from None
    flags = {name: read_flag(name, query[name]) for name in ("keep_largest", "fill_holes", "matting") if name in query}
    try:
        background = None
        if "background" in query:  # never by `read_background`, which opens files
            background = read_blur(query["background"]) or read_colour(query["background"])
            if background is None:
                raise InputError("background: must be blur or a colour as CSS writes it, such as white or #80ff00")
        min_area = read_share("min_area", query.get("min_area", "0"))
        return Style(kind, threshold, background, ending=f".{extension}", min_area=min_area, **flags)
    except InputError as error:
        raise Refusal("parameter", shown(str(error))) from None
