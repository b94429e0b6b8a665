"""The interfaces of rembg and remove.bg, with requests as the clients of these send them."""

import base64
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
from helpers.networks import Brightness
from helpers.served import Response, Served, serving
from PIL import Image

from purinet_jax.serve import Limits

# An object, red: rows 10 to 49 and columns 20 to 59 of an image of 60×80 pixels.
PIXELS = np.full((60, 80, 3), (0, 90, 160), np.uint8)
PIXELS[10:50, 20:60] = (255, 90, 20)


def encoded(image: np.ndarray = PIXELS, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format)
    return buffer.getvalue()


def form(fields: Mapping[str, str | bytes], *, node: bool = False) -> tuple[bytes, dict[str, str]]:
    """A form's body and headers, as curl and Python's requests write them, or Node's form-data."""
    boundary = (
        "--------------------------735323031399963166993862" if node else "------------------------d74496d66958873e"
    )
    parts = []
    for name, value in fields.items():
        is_file = isinstance(value, bytes)
        head = f'Content-Disposition: form-data; name="{name}"' + '; filename="photo.png"' * is_file
        head += "\r\nContent-Type: image/png" * (is_file and node)
        parts.append(f"--{boundary}\r\n{head}\r\n\r\n".encode() + (value if is_file else value.encode()) + b"\r\n")
    return b"".join(parts) + f"--{boundary}--\r\n".encode(), {
        "Content-Type": f"multipart/form-data; boundary={boundary}"
    }


def pixels_of(response: Response) -> np.ndarray:
    assert response.status == 200, response.body
    with Image.open(io.BytesIO(response.body)) as image:
        return np.asarray(image)


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with serving(Brightness(), Limits(bytes=100_000, images=4, seconds=20), pixels=2_000_000) as served:
        yield served


def remove(server: Served, query: str = "", **fields: str | bytes) -> Response:
    return server.request("POST", f"/api/remove{query}", *form({"file": encoded(), **fields}))


def removebg(server: Served, fields: Mapping[str, str | bytes] | None = None, **headers: str) -> Response:
    body, form_headers = form({"image_file": encoded(), "size": "auto", **(fields or {})})
    return server.request("POST", "/v1.0/removebg", body, {"X-Api-Key": "any", **form_headers, **headers})


def test_rembg_clients_get_the_cutout(server: Served) -> None:
    expected = server.post("/v1/cutout", encoded()).body
    assert remove(server).body == expected
    # What a web-UI, an editor's plug-in and a bot send: all fields, with the defaults of version 2.0.
    defaults = {"model": "isnet-general-use", "a": "false", "af": "240", "ab": "10", "ae": "10"}
    response = remove(server, **defaults, om="false", ppm="false", dc="true", vm="False", bgc="", extras="{}")
    assert (response.body, response.headers["content-type"]) == (expected, "image/png")
    body, headers = form({"model": "u2net", "file": encoded()}, node=True)
    chunks = iter([body[:100], body[100:]])
    streamed = server.request("POST", "/api/remove", chunks, {**headers, "Transfer-Encoding": "chunked"})
    assert streamed.body == expected


def test_rembg_fields_change_the_image(server: Served) -> None:
    cutout = pixels_of(remove(server))
    np.testing.assert_array_equal(pixels_of(remove(server, om="true")), cutout[..., 3])
    for response in (remove(server, bgc="0,255,0,255"), remove(server, "?bgc=0,255,0,255")):
        assert pixels_of(response)[0, 0].tolist() == [0, 255, 0]
    assert pixels_of(remove(server, bgc="0,255,0,128"))[0, 0].tolist() == [0, 255, 0, 128]
    assert remove(server, a="true", af="200").body == server.post("/v1/cutout?matting=true", encoded()).body
    assert remove(server, ppm="1").body == server.post("/v1/cutout?min_area=0.001", encoded()).body


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"model": "sam"}, "model: sam"),
        ({"af": "256"}, "af: must be an integer from 0 to 255"),
        ({"ae": "-1"}, "ae:"),
        ({"om": "perhaps"}, "om: must be true or false"),
        ({"vm": "true"}, "vm: there is no ViTMatte"),
        ({"bgc": "white"}, "bgc: must be red,green,blue,alpha"),
        ({"bgc": "1,2,3,256"}, "bgc: its values"),
        ({"extras": '{"model_path": "/etc/passwd"}'}, "extras: model_path"),
        ({"extras": "["}, "extras: must be a JSON object"),
        ({"sharpness": "3"}, "sharpness: unknown; there are file, model"),
    ],
)
def test_what_is_not_supported_of_rembg_is_refused(server: Served, fields: dict[str, str], reason: str) -> None:
    response = remove(server, **fields)
    assert response.error == "400 parameter"
    assert response.json["reason"].startswith(reason)


def test_nothing_is_fetched(server: Served) -> None:
    response = server.get("/api/remove?url=http%3A%2F%2F127.0.0.1%2Fa.png")
    assert response.error == "400 url"
    assert "nothing is fetched" in response.json["reason"]
    assert server.request("POST", "/api/remove", *form({"model": "u2net"})).error == "400 form"
    assert server.post("/api/remove", encoded()).error == "400 form"


def test_removebg_clients_get_the_cutout(server: Served) -> None:
    expected = server.post("/v1/cutout", encoded()).body
    text = base64.b64encode(encoded()).decode()
    key = {"X-Api-Key": "any"}
    # curl and Python's requests; Node's axios, whose default Accept is no wish for JSON; fetch.
    curled = removebg(server)
    assert (curled.body, curled.headers["content-type"]) == (expected, "image/png")
    assert (curled.headers["x-width"], curled.headers["x-height"]) == ("80", "60")
    body, headers = form({"size": "auto", "image_file": encoded()}, node=True)
    accept = {"Accept": "application/json, text/plain, */*"}
    assert server.request("POST", "/v1.0/removebg", body, {**headers, **key, **accept}).body == expected
    for value in (text, f"data:image/png;base64,{text}"):
        body = json.dumps(
            {"image_file_b64": value, "size": "full", "type": "auto", "crop": False, "roi": None}
        ).encode()
        assert server.post("/v1.0/removebg", body, **{"Content-Type": "application/json"}, **key).body == expected
    urlencoded = urlencode({"image_file_b64": text, "size": "auto"})
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    assert server.request("POST", "/v1.0/removebg", urlencoded, headers).body == expected
    assert removebg(server, {"image_file": encoded()}, Accept="application/json").json == {
        "data": {"result_b64": base64.b64encode(expected).decode()}
    }


def test_removebg_fields_change_the_image(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    cutout = pixels_of(removebg(server))
    alpha = cutout[..., 3]
    np.testing.assert_array_equal(pixels_of(removebg(server, {"channels": "alpha"})), alpha)
    for colour in ("00ff00", "#0f0", "lime"):
        response = removebg(server, {"bg_color": colour, "format": "png"})
        assert pixels_of(response)[0, 0].tolist() == [0, 255, 0]
    coloured = removebg(server, {"bg_color": "00ff00"})
    assert (coloured.headers["content-type"], pixels_of(coloured).shape) == ("image/jpeg", (60, 80, 3))
    assert pixels_of(removebg(server, {"bg_color": "00ff0080"})).shape == (60, 80, 4)
    assert pixels_of(removebg(server, {"format": "jpg"}))[0, 0].min() > 250
    assert removebg(server, {"format": "webp"}).headers["content-type"] == "image/webp"

    rows, columns = (np.flatnonzero((alpha >= 13).any(axis)) for axis in (1, 0))
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert height < 60
    cropped = pixels_of(removebg(server, {"crop": "true"}))
    np.testing.assert_array_equal(cropped, cutout[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    for margin, shape in (("5px", (10, 10)), ("3 10%", (6, 2 * round(width / 10))), ("1px 2px 3px 4px", (4, 6))):
        grown = pixels_of(removebg(server, {"crop": "true", "crop_margin": margin}))
        assert grown.shape[:2] == (height + shape[0], width + shape[1])
    monkeypatch.setattr("purinet_jax.serve.removebg.PIXEL_LIMIT", 400)
    refused = removebg(server, {"crop": "true", "crop_margin": "10px"})
    assert (refused.status, refused.json["errors"][0]["code"]) == (400, "parameter")


def test_removebg_sizes_limit_the_result(server: Served) -> None:
    image = encoded(np.kron(PIXELS, np.ones((14, 14, 1), np.uint8)))  # 840×1120
    for size, pixels in ((None, 250_000), ("preview", 250_000), ("medium", 940_800), ("full", 940_800)):
        body, headers = form({"image_file": image} | ({} if size is None else {"size": size}))
        height, width = pixels_of(server.request("POST", "/v1.0/removebg", body, headers)).shape[:2]
        assert 0.99 * pixels < height * width <= pixels
        assert abs(width / height - 4 / 3) < 0.01


@pytest.mark.parametrize(
    ("fields", "expected", "title"),
    [
        ({"image_url": "http://127.0.0.1/a.jpg"}, "400 url", "image_url: nothing is fetched"),
        ({"bg_image_url": "http://127.0.0.1/a.jpg"}, "400 url", "bg_image_url: nothing is fetched"),
        ({"image_file_b64": "aaaa"}, "400 form", "needs the image"),
        ({"size": "huge"}, "400 parameter", "size: must be one of preview"),
        ({"format": "zip"}, "400 parameter", "format: must be one of auto"),
        ({"bg_color": "/etc/hostname"}, "400 parameter", "bg_color: must be a colour"),
        ({"scale": "80%"}, "400 parameter", "scale: only original"),
        ({"roi": "0 0 9 9"}, "400 parameter", "roi: only"),
        ({"add_shadow": "true"}, "400 parameter", "add_shadow: there are no shadows"),
        ({"crop": "true", "crop_margin": "60%"}, "400 parameter", "crop_margin: must be at most"),
        ({"crop": "true", "crop_margin": "1 2 3"}, "400 parameter", "crop_margin: must be one, two or four"),
        ({"shadow_remove": "true"}, "400 parameter", "shadow_remove: unknown"),
        ({"size": b"full", "image_file": ""}, "400 form", "size: must be text"),
        ({"image_file": b"text"}, "400 not_an_image", "image: not an image"),
        ({"image_file": b"\0" * 100_001}, "400 too_many_bytes", "the upload has more than"),
        ({"image_file": encoded(np.zeros((60, 80, 3), np.uint8))}, "400 no_object", "no object was found"),
    ],
)
def test_removebg_errors_are_written_as_that_service_does(
    server: Served, fields: dict[str, Any], expected: str, title: str
) -> None:
    response = removebg(server, fields)
    (error,) = response.json["errors"]
    assert f"{response.status} {error['code']}" == expected
    assert error["title"].startswith(title)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b"{"),
        ("application/json", b"[]"),
        ("application/json", b'{"image_file_b64": {"a": 1}}'),
        ("application/json", b'{"image_file_b64": "a"}'),
        ("application/json", b'{"image_file": "aGFsbG8="}'),
        ("application/json", b'{"\\ud800\\n": "a"}'),
        ("application/json", b"[" * 50_000),
        ("application/x-www-form-urlencoded", b"\xff"),
        ("application/x-www-form-urlencoded", b"a=1&" * 200),
        ("text/plain", b"image_file_b64=aaaa"),
    ],
)
def test_removebg_bodies_that_cannot_be_read_are_refused(server: Served, content_type: str, body: bytes) -> None:
    response = server.post("/v1.0/removebg", body, **{"Content-Type": content_type})
    assert response.status == 400
    assert response.json["errors"][0]["code"] in ("form", "parameter")
    assert "\n" not in response.json["errors"][0]["title"]


def test_the_key_is_the_servers_token() -> None:
    with serving(Brightness(), token="s3cret") as served:
        wrong = removebg(served)
        assert (wrong.status, wrong.json["errors"][0]["code"]) == (403, "token")
        assert removebg(served, {}, **{"X-Api-Key": "s3cret"}).status == 200
        assert remove(served).error == "401 token"
        assert served.get("/v1.0/account").status == 403
        account = served.get("/v1.0/account", **{"X-Api-Key": "s3cret"}).json["data"]["attributes"]
        assert account["credits"]["total"] == account["credits"]["payg"] > 0
        assert account["api"]["free_calls"] > 0
        body, headers = form({"file": encoded()})
        for given in ({"X-Api-Key": "s3cret"}, {"Authorization": "Bearer s3cret"}):
            assert served.request("POST", "/api/remove", body, {**headers, **given}).status == 200
        assert served.get("/v1.0/nothing").json["errors"][0]["code"] == "not_found"
