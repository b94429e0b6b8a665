"""The OpenAPI text of the HTTP interface: what programs may ask, with the limits that hold."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from purinet_jax.version import __version__

if TYPE_CHECKING:
    from purinet_jax.serve.app import Limits

_KINDS = {
    "map": "The saliency map: grey, white where the image's objects are.",
    "mask": "Black and white: white where the map reaches the threshold.",
    "cutout": "The object alone, transparent around it, or on a background.",
    "overlay": "The image with its object tinted.",
    "attention": "Panels that show why: image, map, promotion, rectification and error, side by side.",
}

_ERRORS = {
    "400": "A parameter or the form cannot be understood.",
    "401": "The token is missing or wrong.",
    "403": "A browser asks for another site's page.",
    "404": "There is no such kind.",
    "408": "The upload took too long.",
    "413": "The upload has too many bytes, or the image too many pixels.",
    "415": "The upload is no image that can be read, or a damaged one.",
    "421": "The server does not answer to the name in the Host header.",
    "429": "Too many pictures are being made; Retry-After says when to ask again, in seconds.",
    "431": "The request's head is too long.",
    "503": "The picture was not done in time, or memory was short.",
}


def describe(kinds: Sequence[str], limits: "Limits", pixels: int, token: bool) -> dict[str, Any]:
    """The description, OpenAPI 3.1, as JSON values.

    Args:
      kinds: what can be asked for.
      limits: what is refused.
      pixels: the most that an image may have.
      token: whether requests must bear one.
    """
    image = {"type": "string", "format": "binary", "maxLength": limits.bytes}
    secured: dict[str, Any] = {"security": [{"token": []}]} if token else {}
    errors = {
        status: {
            "description": reason,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
        }
        for status, reason in _ERRORS.items()
        if token or status != "401"
    }

    def picture(kind: str) -> dict[str, Any]:
        parameters = [
            {
                "name": "threshold",
                "in": "query",
                "description": "Of masks, and of cut-outs' edges.",
                "schema": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1, "default": 0.5},
            },
            {
                "name": "format",
                "in": "query",
                "description": "Of the answer. Colours in WebP lose a little.",
                "schema": {"enum": ["png", "webp"], "default": "png"},
            },
        ]
        if kind == "cutout":
            parameters.append(
                {
                    "name": "background",
                    "in": "query",
                    "description": "A colour to put the object on, as CSS writes it: white, #80ff00.",
                    "schema": {"type": "string"},
                }
            )
        return {
            "summary": _KINDS[kind],
            "operationId": kind,
            "parameters": parameters,
            "requestBody": {
                "required": True,
                "description": f"An image (JPEG, PNG, WebP, TIFF, BMP, PPM) of at most {limits.bytes:,} bytes and "
                f"{pixels:,} pixels: the body itself, or the field image of a form.",
                "content": {
                    "image/*": {"schema": image},
                    "application/octet-stream": {"schema": image},
                    "multipart/form-data": {
                        "schema": {"type": "object", "required": ["image"], "properties": {"image": image}}
                    },
                },
            },
            "responses": {
                "200": {
                    "description": _KINDS[kind],
                    "content": {media: {"schema": image} for media in ("image/png", "image/webp")},
                },
                **errors,
            },
            **secured,
        }

    def said(summary: str, media: str) -> dict[str, Any]:
        return {"summary": summary, "responses": {"200": {"description": summary, "content": {media: {}}}}}

    schemas = {
        "Error": {
            "type": "object",
            "required": ["error", "reason"],
            "properties": {
                "error": {"type": "string", "description": "A word for programs, such as too_many_pixels."},
                "reason": {"type": "string", "description": "A line for people."},
            },
        }
    }
    schemes = {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}} if token else {}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "PurNet: find the object",
            "version": __version__,
            "description": "Salient object detection: an image in, its map, mask or cut-out out. Pictures have the "
            "image's size; images are turned upright and converted to sRGB. Nothing is stored.",
        },
        "paths": {
            **{f"/v1/{kind}": {"post": picture(kind)} for kind in kinds},
            "/v1": {"get": said("The kinds, formats and limits there are.", "application/json")},
            "/health": {"get": said("Whether the server works (otherwise 503).", "application/json")},
            "/metrics": {"get": said("Measures for Prometheus.", "text/plain") | secured},
        },
        "components": {"schemas": schemas, **schemes},
    }
