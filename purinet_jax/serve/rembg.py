"""rembg's HTTP interface (`rembg s`, version 2.0): the fields of a request for `/api/remove` as a task."""

import json
from collections.abc import Mapping

import numpy as np

from purinet_jax.prediction.rendering import Style
from purinet_jax.serve.parameters import read_flag, read_texts, shown
from purinet_jax.serve.refusals import Refusal
from purinet_jax.serve.worker import Task

FIELDS = {
    "file": "The image.",
    "model": "Accepted without effect: the network that is served is used. Models for other tasks are refused.",
    "a": "Alpha matting: true or false.",
    "af": "Accepted without effect, as ab and ae: matting finds the unknown parts itself.",
    "ab": "As af.",
    "ae": "As af.",
    "om": "Only the mask: the cut-out's alpha, grey.",
    "ppm": "Removes specks below 0.1 % of the image.",
    "dc": "Accepted without effect: the background's colours are always removed from edges.",
    "vm": "Refused: there is no ViTMatte.",
    "bgc": "Background colour: red,green,blue,alpha, each from 0 to 255.",
    "extras": "Refused unless it is an empty JSON object.",
}
"""Field of the form, or parameter of the query → its description."""

_OTHER_TASKS = ("ben_custom", "dis_custom", "sam", "u2net_cloth_seg", "u2net_custom")
_SPECK = 0.001
_LEVELS = {"af": 255, "ab": 255, "ae": 10_000}


def parse_rembg(fields: Mapping[str, str | bytes]) -> Task:
    """Returns the task of a request's fields. Raises Refusal if one is missing, unknown, wrong or not supported."""
    texts = read_texts(fields, FIELDS, "file")
    image = fields.get("file")
    if not isinstance(image, bytes):
        raise Refusal("form", "the form needs a file in its field file")
    if (model := texts.get("model")) in _OTHER_TASKS:
        raise Refusal("parameter", f"model: {model} does what this server's network does not")
    for name, most in _LEVELS.items():
        text = texts.get(name, "0")
        if not (text.isascii() and text.isdecimal() and int(text[:9]) <= most):
            raise Refusal("parameter", f"{name}: must be an integer from 0 to {most:,}")
    flags = {name: read_flag(name, texts.get(name, "false")) for name in ("a", "om", "ppm", "dc", "vm")}
    if flags["vm"]:
        raise Refusal("parameter", "vm: there is no ViTMatte; a=true is alpha matting")
    if "extras" in texts:
        _check_extras(texts["extras"])
    background = _read_colour(texts["bgc"]) if "bgc" in texts and not flags["om"] else None
    style = Style("cutout", background=background, min_area=_SPECK if flags["ppm"] else 0.0, matting=flags["a"])
    return Task(image, style, _alpha if flags["om"] else None)


def _alpha(rgba: np.ndarray) -> np.ndarray:
    return rgba[..., 3]


def _read_colour(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) not in (3, 4) or not all(part.isascii() and part.isdecimal() and len(part) < 4 for part in parts):
        raise Refusal("parameter", "bgc: must be red,green,blue,alpha, such as 255,255,255,255")
    colour = tuple(map(int, parts))
    if max(colour) > 255:
        raise Refusal("parameter", "bgc: its values must be from 0 to 255")
    return colour[:3] if colour[3:] == (255,) else colour


def _check_extras(text: str) -> None:
    try:
        extras = json.loads(text)
    except (ValueError, RecursionError):
        extras = None
    if not isinstance(extras, dict):
        raise Refusal("parameter", "extras: must be a JSON object")
    if extras:
        raise Refusal("parameter", f"extras: {shown(min(extras))} is not known here")
