"""The query parameters of a request for an image: their description and how they are parsed."""

from collections.abc import Mapping, Sequence
from typing import Any

from purinet_jax.prediction.rendering import Kind, Style, read_colour
from purinet_jax.serve.refusals import Refusal

FORMATS = {"png": "image/png", "webp": "image/webp"}
"""Format of a response → its media type; the first is the default."""

PARAMETERS: dict[str, tuple[str, dict[str, Any]]] = {
    "threshold": (
        "Threshold of masks and of the edges of cut-outs.",
        {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1, "default": Style.threshold},
    ),
    "format": ("Format of the response. WebP loses a little of colours.", {"enum": [*FORMATS], "default": "png"}),
    "background": (
        "Colour behind a cut-out, as CSS writes it: white, #80ff00, or with alpha, #80ff0080.",
        {"type": "string"},
    ),
}
"""Parameter → description and JSON schema. `background` is for cut-outs only."""


def parse_style(name: str, kinds: Sequence[Kind], query: Mapping[str, str]) -> Style:
    """Returns the style of a kind's name and parameters. Raises Refusal if one of them is unknown or wrong."""
    kind = next((kind for kind in kinds if kind == name), None)
    if kind is None:
        raise Refusal("unknown_kind", f"no such kind; there are {', '.join(kinds)}")
    if not set(query) <= set(PARAMETERS):
        raise Refusal("parameter", f"unknown parameter; there are {', '.join(PARAMETERS)}")
    try:
        threshold = float(query.get("threshold", Style.threshold))
    except ValueError:
        threshold = 0.0
    if not 0 < threshold < 1:
        raise Refusal("parameter", "threshold: must be a number between 0 and 1")
    background = None
    if "background" in query:
        if kind != "cutout":
            raise Refusal("parameter", f"background: is for cutout, not {kind}")
        background = read_colour(query["background"])  # never `read_background`, which opens files
        if background is None:
            raise Refusal("parameter", "background: must be a colour as CSS writes it, such as white or #80ff00")
    extension = query.get("format", "png")
    if extension not in FORMATS:
        raise Refusal("parameter", f"format: must be {' or '.join(FORMATS)}")
    return Style(kind, threshold, background, ending=f".{extension}")
