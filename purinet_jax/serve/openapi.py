"""The OpenAPI description of the HTTP interface, with the limits that are set."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from purinet_jax.data.images import EXTENSIONS
from purinet_jax.prediction.rendering import Kind
from purinet_jax.serve import rembg, removebg
from purinet_jax.serve.parameters import CUTOUT_ONLY, FORMATS, MEDIA_TYPES, NOT_FOR_ATTENTION, PARAMETERS
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
    """Returns the description, OpenAPI 3.1, as JSON values; arguments as the limits and the token of `make_app`."""
    secured: dict[str, Any] = {"security": [{"token": []}]} if token else {}
    schemes = {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}} if token else {}
    file = {"type": "string", "format": "binary"}
    upload = {**file, "maxLength": limits.bytes}
    form = {"type": "object", "required": ["image"], "properties": {"image": upload}}
    body = {
        "required": True,
        "description": f"An image ({', '.join(EXTENSIONS)}) of at most {limits.bytes:,} bytes and {pixels:,} pixels: "
        "the body itself, or the field image of a form.",
        "content": _content(upload, "image/*", "application/octet-stream") | _content(form, "multipart/form-data"),
    }
    error = {
        "error": {"enum": [word for words in ERRORS.values() for word in words], "description": "A word for programs."},
        "reason": {"type": "string", "description": "A line for people."},
    }
    schemas = {"Error": {"type": "object", "required": [*error], "properties": error}}
    known = {status: words for status, words in ERRORS.items() if token or status != 401}
    errors = _errors(known, {"$ref": "#/components/schemas/Error"})
    theirs: dict[int, tuple[str, ...]] = {}
    for status, words in known.items():
        theirs[removebg.status(status)] = (*theirs.get(removebg.status(status), ()), *words)
    title = {"type": "object", "properties": {"title": error["reason"], "code": error["error"]}}
    their_errors = _errors(theirs, {"type": "object", "properties": {"errors": {"type": "array", "items": title}}})

    def get(summary: str, media_type: str) -> dict[str, Any]:
        return {"summary": summary, "responses": {"200": {"description": summary, "content": {media_type: {}}}}}

    def post(kind: Kind) -> dict[str, Any]:
        success = {
            "description": _KINDS[kind],
            "content": _content(file, *(MEDIA_TYPES[f".{name}"] for name in FORMATS)),
        }
        left_out = () if kind == "cutout" else CUTOUT_ONLY if kind != "attention" else CUTOUT_ONLY + NOT_FOR_ATTENTION
        parameters = [
            {"name": name, "in": "query", "description": description, "schema": schema}
            for name, (description, schema) in PARAMETERS.items()
            if name not in left_out
        ]
        operation = {"summary": _KINDS[kind], "operationId": kind, "parameters": parameters, "requestBody": body}
        return {**operation, "responses": {"200": success, **errors}, **secured}

    def form_post(
        summary: str, fields: dict[str, str], required: list[str], refusals: dict[str, Any], *media_types: str
    ) -> dict[str, Any]:
        properties = {
            name: {**(upload if name == "file" or name.endswith("_file") else {"type": "string"}), "description": text}
            for name, text in fields.items()
        }
        form = {"type": "object", "properties": properties, "required": required}
        success = {"description": "The cut-out.", "content": _content(file, *MEDIA_TYPES.values())}
        request = {"required": True, "content": _content(form, *media_types)}
        return {"summary": summary, "requestBody": request, "responses": {"200": success, **refusals}, **secured}

    multipart = "multipart/form-data"
    others = (multipart, "application/x-www-form-urlencoded", "application/json")
    description = "Takes an image and returns its map, mask or cut-out, of its size and in sRGB. Nothing is stored."
    return {
        "openapi": "3.1.0",
        "info": {"title": "PurNet: salient object detection", "version": __version__, "description": description},
        "paths": {
            **{f"/v1/{kind}": {"post": post(kind)} for kind in kinds},
            "/api/remove": {
                "post": form_post("rembg's interface.", rembg.FIELDS, ["file"], errors, multipart),
                "get": {"summary": "Refused: nothing is fetched.", "responses": {"400": errors["400"]}},
            },
            "/v1.0/removebg": {"post": form_post("remove.bg's interface.", removebg.FIELDS, [], their_errors, *others)},
            "/v1.0/account": {
                "get": get("remove.bg's account, always with the same credits.", "application/json") | secured
            },
            "/v1": {"get": get("The kinds, formats and limits.", "application/json")},
            "/health": {"get": get("Whether the server works (otherwise 503).", "application/json")},
            "/metrics": {"get": get("Metrics for Prometheus.", "text/plain") | secured},
        },
        "components": {"schemas": schemas, **schemes},
    }


def _errors(errors: Mapping[int, Sequence[str]], schema: dict[str, Any]) -> dict[str, Any]:
    """The responses of errors, by status: the words for programs, and a schema."""
    return {
        str(status): {
            "description": f"{HTTPStatus(status).phrase}: {' or '.join(words)}",
            "content": _content(schema, "application/json"),
        }
        for status, words in errors.items()
    }


def _content(schema: dict[str, Any], *media_types: str) -> dict[str, Any]:
    return {media_type: {"schema": schema} for media_type in media_types}
