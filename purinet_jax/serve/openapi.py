"""The OpenAPI description of the HTTP interface, with the limits that are set."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from purinet_jax.data.images import EXTENSIONS
from purinet_jax.prediction.rendering import Kind
from purinet_jax.serve.parameters import FORMATS, PARAMETERS
from purinet_jax.serve.refusals import ERRORS, Limits
from purinet_jax.version import __version__

_KINDS: dict[Kind, str] = {
    "map": "The saliency map: grey, white where the image's objects are.",
    "mask": "Black and white: white where the map reaches the threshold.",
    "cutout": "The object alone, transparent around it or on a background colour.",
    "overlay": "The image with its object tinted.",
    "attention": "Panels that explain the map: image, map, promotion, rectification and error, next to each other.",
}


def describe(kinds: Sequence[Kind], limits: Limits, pixels: int, token: bool) -> dict[str, Any]:
    """Returns the description, OpenAPI 3.1, as JSON values.

    Args:
      kinds: what can be requested.
      limits: limits of the requests.
      pixels: limit of an image's pixels.
      token: whether requests need a token.
    """
    secured: dict[str, Any] = {"security": [{"token": []}]} if token else {}
    schemes = {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}} if token else {}
    descriptions = defaultdict(list)
    for status, description in ERRORS.values():
        if token or status != 401:
            descriptions[str(status)].append(description)
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    errors = {status: {"description": " ".join(texts), "content": error} for status, texts in descriptions.items()}
    image = {"type": "string", "format": "binary", "maxLength": limits.bytes}
    form = {"type": "object", "required": ["image"], "properties": {"image": image}}
    body = {
        "required": True,
        "description": f"An image ({', '.join(EXTENSIONS)}) of at most {limits.bytes:,} bytes and {pixels:,} pixels: "
        "the body itself, or the field image of a form.",
        "content": {
            "image/*": {"schema": image},
            "application/octet-stream": {"schema": image},
            "multipart/form-data": {"schema": form},
        },
    }

    def get(summary: str, media_type: str) -> dict[str, Any]:
        return {"summary": summary, "responses": {"200": {"description": summary, "content": {media_type: {}}}}}

    def post(kind: Kind) -> dict[str, Any]:
        content = {media_type: {"schema": {"type": "string", "format": "binary"}} for media_type in FORMATS.values()}
        return {
            "summary": _KINDS[kind],
            "operationId": kind,
            "parameters": [
                {"name": name, "in": "query", "description": description, "schema": schema}
                for name, (description, schema) in PARAMETERS.items()
                if name != "background" or kind == "cutout"
            ],
            "requestBody": body,
            "responses": {"200": {"description": _KINDS[kind], "content": content}, **errors},
            **secured,
        }

    properties = {
        "error": {"enum": [*ERRORS], "description": "A word for programs."},
        "reason": {"type": "string", "description": "A line for people."},
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "PurNet: find the object",
            "version": __version__,
            "description": "Salient object detection: takes an image, returns its map, mask or cut-out, of the image's "
            "size, upright and in sRGB. Nothing is stored.",
        },
        "paths": {
            **{f"/v1/{kind}": {"post": post(kind)} for kind in kinds},
            "/v1": {"get": get("The kinds, formats and limits.", "application/json")},
            "/health": {"get": get("Whether the server works (otherwise 503).", "application/json")},
            "/metrics": {"get": get("Metrics for Prometheus.", "text/plain") | secured},
        },
        "components": {
            "schemas": {"Error": {"type": "object", "required": [*properties], "properties": properties}},
            **schemes,
        },
    }
