"""The server: its images are those of `purinet predict`, its limits hold, and it shuts down cleanly."""

import importlib.util
import io
import itertools
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.commands import assert_refused
from helpers.damage import claim_size
from helpers.networks import Brightness
from helpers.pages import commands_in, parses
from helpers.served import Served, serving
from helpers.tiny import tiny_model
from PIL import Image

from purinet_jax.commands.main import main
from purinet_jax.data.augment import resize_image
from purinet_jax.data.images import TooManyPixels
from purinet_jax.data.synthetic import draw_example
from purinet_jax.errors import InputError
from purinet_jax.prediction.files import plan, predict_files
from purinet_jax.prediction.predictor import Predictor
from purinet_jax.prediction.rendering import KINDS, Style, render
from purinet_jax.serve import Limits, Worker
from purinet_jax.serve.worker import Task, _Budget

DOCS = Path(__file__).parents[1] / "docs"
PIXELS = 10_000
IMAGE = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)


def encoded(format: str = "PNG", image: np.ndarray = IMAGE, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format, **options)
    return buffer.getvalue()


def form(data: bytes, field: str = "image", name: str = "a.png") -> tuple[bytes, dict[str, str]]:
    head = f'--=b\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'
    return head.encode() + data + b"\r\n--=b--\r\n", {"Content-Type": 'multipart/form-data; boundary="=b"'}


def pixels_of(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def until(true: Callable[[], bool]) -> None:
    """Waits until other threads have made a condition true."""
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


class Gated(Brightness):
    """Predicts only when its gate is opened, except while the worker compiles."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Semaphore(0)
        self.reached = threading.Semaphore(0)

    def square_maps(self, images: Sequence[np.ndarray], batch_size: int) -> np.ndarray:
        if threading.current_thread().name == "network":
            self.reached.release()
            assert self.gate.acquire(timeout=20)
        return super().square_maps(images, batch_size)


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    limits = Limits(bytes=100_000, images=4, seconds=20)
    with serving(Brightness(), limits, allowed_hosts=["photos.example.org:8443"], pixels=PIXELS) as served:
        yield served


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_made_from_bodies_and_forms(server: Served, kind: str) -> None:
    square = resize_image(IMAGE, 8, 8)
    network = Brightness()
    predict = network.square_finest_maps if kind == "attention" else network.square_maps
    expected = render(Style(kind), predict([square], 1)[0], square, IMAGE.shape, IMAGE)  # type: ignore[arg-type]
    body, headers = form(encoded())
    raw = server.post(f"/v1/{kind}", encoded())
    assert (raw.status, raw.headers["content-type"]) == (200, "image/png")
    assert server.request("POST", f"/v1/{kind}", body, headers).body == raw.body
    curled = server.post(f"/v1/{kind}", encoded(), **{"Content-Type": "application/x-www-form-urlencoded"})
    assert curled.body == raw.body
    chunked = server.request(
        "POST", f"/v1/{kind}", iter([encoded()[:50], encoded()[50:]]), {"Transfer-Encoding": "chunked"}
    )
    assert chunked.body == raw.body
    np.testing.assert_array_equal(pixels_of(raw.body), expected)


def test_parameters_change_the_image(server: Served) -> None:
    masks = [pixels_of(server.post(f"/v1/mask?threshold={share}", encoded()).body) for share in (0.2, 0.5, 0.9)]
    saliency = pixels_of(server.post("/v1/map", encoded()).body)
    for share, mask in zip((0.2, 0.5, 0.9), masks, strict=True):
        np.testing.assert_array_equal(mask, np.where(saliency >= share * 255, 255, 0))
    response = server.post("/v1/cutout?background=%23ff0000&format=webp", encoded())
    assert response.headers["content-type"] == "image/webp"
    with Image.open(io.BytesIO(response.body)) as image:
        assert (image.format, image.mode, image.size) == ("WEBP", "RGB", (80, 60))
    assert pixels_of(server.post("/v1/cutout?background=%23ff000080", encoded()).body).shape == (60, 80, 4)
    assert pixels_of(server.post("/v1/cutout?background=blur:3%25", encoded()).body).shape == (60, 80, 3)
    assert pixels_of(server.post("/v1/cutout?matting=true", encoded()).body).shape == (60, 80, 4)
    red = np.zeros((60, 80, 3), np.uint8)
    red[:, :30, 0] = red[:, 60:, 0] = 255
    whole, cleaned = (
        pixels_of(server.post(f"/v1/mask{query}", encoded(image=red)).body)
        for query in ("", "?keep_largest=true&min_area=1%25&fill_holes=true")
    )
    assert whole[30, 75] == 255
    assert cleaned[30, 75] == 0 < cleaned[30, 5]


def test_images_are_the_same_bytes_as_those_of_purinet_predict(tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(encoded("JPEG", draw_example(np.random.default_rng(1), (90, 130))[0]))
    model = tiny_model()
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.uniform(0.1, 0.3, x.shape).astype(np.float32), dict(shapes))
    predictor = Predictor(model, variables, 32)
    transparent = tmp_path / "transparent.png"
    transparent.write_bytes(encoded("PNG", rng.integers(0, 256, (50, 70, 4), dtype=np.uint8)))
    with serving(predictor) as served:
        for image, kind in itertools.product((photo, transparent), KINDS):
            (result,) = predict_files(predictor, plan([image], kind=kind), Style(kind))
            assert result.error is None
            assert served.post(f"/v1/{kind}", image.read_bytes()).body == result.job.output.read_bytes()


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/v1/video", b"", "404 unknown_kind"),
        ("/v1/../etc/passwd", b"", "404 not_found"),
        ("/v1/map?size=3", b"", "400 parameter"),
        ("/v1/map?threshold=1", b"", "400 parameter"),
        ("/v1/map?threshold=nan", b"", "400 parameter"),
        ("/v1/map?threshold=x", b"", "400 parameter"),
        ("/v1/map?background=white", b"", "400 parameter"),
        ("/v1/cutout?background=/etc/hostname", b"", "400 parameter"),
        ("/v1/cutout?background=rgb(999,0,0)", b"", "400 parameter"),
        ("/v1/map?format=gif", b"", "400 parameter"),
        ("/v1/cutout?background=blur:0", b"", "400 parameter"),
        ("/v1/map?matting=true", b"", "400 parameter"),
        ("/v1/cutout?matting=maybe", b"", "400 parameter"),
        ("/v1/map?min_area=x%0A%25", b"", "400 parameter"),
        ("/v1/attention?fill_holes=1", b"", "400 parameter"),
        ("/v1/map", b"", "415 not_an_image"),
        ("/v1/map", b"only text", "415 not_an_image"),
        ("/v1/map", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "415 not_an_image"),
        ("/v1/map", encoded()[:-40], "415 not_an_image"),
        ("/v1/map", encoded("JPEG")[:-40], "415 not_an_image"),
        ("/v1/map", claim_size(encoded(), 101, 100), "413 too_many_pixels"),
        ("/v1/map", claim_size(encoded(), 60_000, 60_000), "413 too_many_pixels"),
        ("/v1/map", b"\xff" * 100_001, "413 too_many_bytes"),
        ("/v1/map", encoded("JPEG")[:-2] + b"\xff\xda\x00\x02" * 101 + b"\xff\xd9", "415 not_an_image"),
    ],
)
def test_bad_requests_are_refused_with_a_reason(server: Served, path: str, body: bytes, expected: str) -> None:
    response = server.post(path, body)
    assert response.error == expected
    assert "\n" not in response.json["reason"]
    assert response.headers["content-type"] == "application/json"


def test_forms_without_one_image_are_refused(server: Served) -> None:
    (body, headers), end = form(encoded()), len(b"--=b--\r\n")
    for form_body, form_headers, expected in (
        (*form(encoded(), field="photo"), "400 form"),
        (body.replace(b'; filename="a.png"', b""), headers, "400 form"),
        (body[: -end - 1], headers, "400 form"),
        (b"text", {"Content-Type": "multipart/form-data"}, "400 form"),
        (b"text", {"Content-Type": f"multipart/form-data; boundary={'b' * 300}"}, "400 form"),
        (body[:-end] + body, headers, "400 form"),
        (*form(b"\0" * 100_001), "413 too_many_bytes"),
        (*form(b"\0" * 200_000), "413 too_many_bytes"),
        (*form(b"text"), "415 not_an_image"),
    ):
        response = server.request("POST", "/v1/map", form_body, form_headers)
        assert response.error == expected
        assert "\n" not in response.json["reason"]


def test_a_form_may_have_other_fields_and_name_a_charset(server: Served) -> None:
    body, headers = form(encoded())
    other = b'--=b\r\nContent-Disposition: form-data; name="title"\r\n\r\n\xff\r\n'
    headers["Content-Type"] += "; charset=undefined"  # a codec that raises
    assert server.request("POST", "/v1/map", other + body, headers).status == 200


def test_a_chunked_upload_is_counted(server: Served) -> None:
    parts = iter([b"\0" * 50_000] * 3)
    response = server.request("POST", "/v1/map", parts, {"Transfer-Encoding": "chunked"})
    assert response.error == "413 too_many_bytes"


def test_other_methods_and_paths_are_refused_with_json(server: Served) -> None:
    assert server.get("/v1/map").error == "405 method_not_allowed"
    assert server.post("/", b"").error == "405 method_not_allowed"
    assert server.get("/page/../app.py").error == "404 not_found"
    assert server.get("/index.html").error == "404 not_found"


def test_every_response_has_the_security_headers(server: Served) -> None:
    for response in (server.get("/"), server.get("/health"), server.get("/nothing"), server.post("/v1/map", encoded())):
        assert response.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert "server" not in response.headers
    assert response.headers["cache-control"] == "no-store"


def test_pages_of_other_sites_are_refused(server: Served) -> None:
    # A name whose owner has it resolve to the loopback, and a form that another site's page sends.
    for host in ("evil.example", f"evil.example:{server.port}", "", "127.0.0.1.evil.example"):
        assert server.get("/", Host=host).error == "421 wrong_host"
    for host in ("localhost", f"[::1]:{server.port}", "LOCALHOST:1", "photos.example.org", "Photos.Example.org:443"):
        assert server.get("/health", Host=host).status == 200
    headers = {"Sec-Fetch-Site": "cross-site"}
    assert server.post("/v1/map", encoded(), **headers).error == "403 cross_site"
    assert server.get("/", **headers).status == 200  # a link
    # Over plain HTTP to another machine, browsers send no more than the origin.
    own = f"127.0.0.1:{server.port}"
    for origin in ("http://evil.example", "null", "", f"http://{own}.evil.example", "http://127.0.0.1:1"):
        response = server.post("/v1/map", encoded(), Origin=origin)
        assert response.error == "403 cross_site"
        assert "access-control-allow-origin" not in response.headers
    other_port = {"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:1"}
    assert server.post("/v1/map", encoded(), **other_port).error == "403 cross_site"
    for headers in (
        {"Origin": f"http://{own}"},
        {"Origin": "http://LOCALHOST", "Host": "localhost:80"},
        {"Origin": "https://photos.example.org:8443"},  # named by --allowed-hosts
        {"Origin": "https://site.example", "X-Forwarded-Host": "site.example:443, inner"},
        {"Origin": "https://site.example", "Sec-Fetch-Site": "same-origin"},  # a proxy changed Host
    ):
        assert server.post("/v1/map", encoded(), **headers).status == 200


def test_a_long_head_is_refused(server: Served) -> None:
    assert server.get("/health", Cookie="x" * 17_000).error == "431 head"
    assert server.get(f"/health?{'x' * 17_000}").error == "431 head"
    with suppress(ConnectionError):  # closed while the client still sends
        assert server.get("/health", Cookie="x" * 1_000_000).status == 400
    assert server.get("/health").json == {"status": "ok"}


def test_page_and_descriptions(server: Served) -> None:
    page = server.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    about = server.get("/v1").json
    assert about["kinds"] == list(KINDS)
    assert {".jpg", ".png", ".gif", ".webp"} <= set(about["inputs"])
    assert (".heic" in about["inputs"]) == (importlib.util.find_spec("pillow_heif") is not None)
    assert about["limits"] == {"bytes": 100_000, "pixels": PIXELS, "images": 4, "seconds": 20}
    text = server.get("/openapi.json").json
    assert text["openapi"] == "3.1.0"
    assert set(text["paths"]) == {
        *(f"/v1/{kind}" for kind in KINDS),
        *("/api/remove", "/v1.0/removebg", "/v1.0/account", "/v1", "/health", "/metrics"),
    }
    for path, operations in text["paths"].items():
        assert [server.get(path).status != 405] == ["get" in operations]
    names = {p["name"] for p in text["paths"]["/v1/cutout"]["post"]["parameters"]}
    assert names == {"threshold", "format", "background", "matting", "min_area", "keep_largest", "fill_holes"}
    assert "401" not in text["paths"]["/v1/map"]["post"]["responses"]
    assert "413" in text["paths"]["/v1/map"]["post"]["responses"]
    theirs = text["paths"]["/v1.0/removebg"]["post"]["responses"]
    assert "413" not in theirs
    assert "not_an_image" in theirs["400"]["description"]
    assert theirs["400"]["content"]["application/json"]["schema"]["properties"].keys() == {"errors"}


def test_metrics_count_requests(server: Served) -> None:
    def made() -> float:
        return server.metric('purinet_requests_total{kind="map",status="200"}')

    server.post("/v1/map", encoded())
    before = made()
    server.post("/v1/map", encoded())
    assert made() == before + 1
    server.post("/v1/never-seen", encoded())
    assert server.metric('purinet_requests_total{kind="other",status="404"}') >= 1
    assert b"never-seen" not in server.get("/metrics").body
    assert server.metric("purinet_images_in_progress") == server.metric("purinet_upload_bytes") == 0
    assert server.metric("purinet_batch_images_count") > 0


def test_nothing_is_written_opened_or_connected_to() -> None:
    seen: list[tuple[str, Any]] = []
    watching = True
    events = ("open", "os.mkdir", "socket.connect", "socket.getaddrinfo", "subprocess.Popen")

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        ours = threading.current_thread().name.startswith(("server", "image", "network", "asyncio"))
        if watching and ours and event in events:
            seen.append((event, arguments))

    sys.addaudithook(watch)
    with serving(Brightness()) as server:
        body, headers = form(encoded())
        for kind in KINDS:  # imports what is imported on first use
            server.request("POST", f"/v1/{kind}", body, headers)
        seen.clear()
        for name in ("../../evil.png", "/tmp/evil.png", "http://127.0.0.1:1/evil.png"):
            body, headers = form(encoded() + b"\0" * 3_000_000, name=name)
            assert server.request("POST", "/v1/cutout", body, headers).status == 200
        for path in (
            "/v1/cutout?background=/etc/hostname",
            "/v1/%2e%2e%2fserver.py",
            "//etc/hostname",
            "/v1/http://a/",
        ):
            assert server.post(path, encoded()).status in (400, 404)
        found = list(seen)
        watching = False
    assert found == []


def test_images_and_metrics_need_the_token() -> None:
    with serving(Brightness(), token="s3cret") as served:
        for headers in (
            {},
            {"Authorization": "Bearer s3cre"},
            {"Authorization": "Basic s3cret"},
            {"Authorization": "é"},
        ):
            response = served.request("POST", "/v1/map", encoded(), headers)
            assert response.error == "401 token"
            assert response.headers["www-authenticate"] == "Bearer"
            assert served.get("/metrics", **headers).status == 401
        right = {"Authorization": "Bearer s3cret"}
        assert served.post("/v1/map", encoded(), **right).status == 200
        assert served.post("/v1/map", encoded(), **right, Origin="null").status == 200  # an editor's plug-in
        assert served.get("/metrics", **right).status == 200
        assert [served.get(path).status for path in ("/", "/health", "/v1")] == [200] * 3
        assert served.get("/v1").json["token"] is True
        text = served.get("/openapi.json").json
        assert "401" in text["paths"]["/v1/map"]["post"]["responses"]


def test_a_network_without_attention_has_no_such_kind() -> None:
    with serving(Brightness(attention=False)) as served:
        assert "attention" not in served.get("/v1").json["kinds"]
        assert "/v1/attention" not in served.get("/openapi.json").json["paths"]
        assert served.post("/v1/attention", encoded()).error == "404 unknown_kind"


def test_requests_that_arrive_while_a_batch_runs_join_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("purinet_jax.serve.worker.usable_cores", lambda: 2)  # threads for all six images
    network = Gated()
    images = [encoded(image=np.full((9, 9, 3), shade, np.uint8)) for shade in range(10, 16)]
    with serving(network, batch_size=4) as served, ThreadPoolExecutor(6) as pool:
        assert network.batches == [(1, 1), (2, 2), (4, 4)]  # compiled
        responses = [pool.submit(served.post, "/v1/map", images[0])]
        assert network.reached.acquire(timeout=20)
        responses += [pool.submit(served.post, "/v1/map", image) for image in images[1:]]
        until(lambda: served.worker._queue.qsize() == 5)
        network.gate.release(3)
        shades = [int(pixels_of(response.result().body)[0, 0]) for response in responses]
        assert network.batches[3:] == [(1, 1), (4, 4), (1, 1)]
        assert shades == list(range(10, 16))
        assert served.metric("purinet_batch_images_sum") == 6


def test_a_full_queue_a_slow_network_and_a_slow_client() -> None:
    network = Gated()
    with serving(network, Limits(images=2, seconds=0.4)) as served, ThreadPoolExecutor(2) as pool:
        slow = [pool.submit(served.post, "/v1/map", encoded()) for _ in range(2)]
        until(lambda: served.metric("purinet_images_in_progress") == 2)
        busy = served.post("/v1/map", encoded())
        assert (busy.error, busy.headers["retry-after"]) == ("429 busy", "1")
        late = [response.result() for response in slow]
        assert [(response.error, response.headers["retry-after"]) for response in late] == [("503 timeout", "10")] * 2
        # Their threads still run, and count.
        assert served.post("/v1/map", encoded()).status == 429
        network.gate.release(2)
        until(lambda: served.metric("purinet_images_in_progress") == 0)
        network.gate.release()
        assert served.post("/v1/map", encoded()).status == 200

        with socket.create_connection(("127.0.0.1", served.port)) as client:
            client.sendall(b"POST /v1/map HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n")
            response = client.recv(1000)  # the rest never comes
            assert response.startswith(b"HTTP/1.1 408 ")
        assert served.metric("purinet_images_in_progress") == 0


def test_connections_without_the_head_of_a_request_are_closed(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("purinet_jax.serve.server._HEAD_SECONDS", 0.2)
    with socket.create_connection(("127.0.0.1", server.port), timeout=3) as client:
        client.sendall(b"GET /health HTTP/1.1\r\n")
        assert client.recv(1000) == b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=3) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
        client.sendall(b"GET /health")
        while client.recv(1000):
            pass


def test_requests_whose_client_hangs_up_are_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("purinet_jax.serve.worker.usable_cores", lambda: 0)  # one thread
    network = Gated()
    with serving(network) as served, ThreadPoolExecutor(1) as pool:
        first = pool.submit(served.post, "/v1/map", encoded())
        assert network.reached.acquire(timeout=20)
        with socket.create_connection(("127.0.0.1", served.port)) as client:
            head = f"POST /v1/map HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(encoded())}\r\n\r\n"
            client.sendall(head.encode() + encoded())
            until(lambda: served.metric("purinet_images_in_progress") == 2)
        until(lambda: served.metric("purinet_images_in_progress") == 1)
        network.gate.release()
        assert first.result().status == 200
        assert served.metric('purinet_requests_total{kind="map",status="499"}') == 1
        assert served.metric("purinet_batch_images_sum") == 1


def test_the_total_size_of_uploads_is_limited() -> None:
    limits = Limits(bytes=50_000, images=64, seconds=20)
    head = b"POST /v1/map HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50000\r\n\r\n"
    with serving(Brightness(), limits) as served:
        clients = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(8)]
        for client in clients:
            client.sendall(head + b"\0" * 49_999)
        until(lambda: served.metric("purinet_upload_bytes") == 8 * 49_999)
        assert served.post("/v1/map", b"\0" * 1000).error == "429 busy"
        for client in clients:
            client.close()
        until(lambda: served.metric("purinet_upload_bytes") == 0)
        assert served.post("/v1/map", encoded()).status == 200


def test_an_error_of_the_network_fails_its_batch_only(caplog: pytest.LogCaptureFixture) -> None:
    network = Brightness()
    with serving(network) as served:
        fail = MemoryError("device")

        def broken(images: Sequence[np.ndarray], batch_size: int) -> np.ndarray:
            raise fail

        network.square_maps = broken  # type: ignore[method-assign]
        response = served.post("/v1/map", encoded())
        assert (response.error, response.headers["retry-after"]) == ("503 memory", "10")
        fail = ValueError("a secret path")  # type: ignore[assignment]
        response = served.post("/v1/map", encoded())
        assert response.error == "500 internal"
        assert b"secret" not in response.body
        until(lambda: "a secret path" in caplog.text)
        del network.square_maps
        assert served.post("/v1/map", encoded()).status == 200


def test_the_worker_without_a_server() -> None:
    worker = Worker(Brightness(), pixels=5000)  # type: ignore[arg-type]
    try:
        made = pixels_of(worker.submit(Task(encoded(), Style("overlay"))).result())
        assert made.shape == IMAGE.shape
        with pytest.raises(TooManyPixels, match="has 5,184 pixels, more than 5,000"):
            worker.submit(Task(encoded(image=np.zeros((72, 72, 3), np.uint8)), Style())).result()
    finally:
        worker.close()
    with pytest.raises(InputError, match="batch_size"):
        Worker(Brightness(), batch_size=0)  # type: ignore[arg-type]


def test_a_budget_is_never_exceeded_and_keeps_its_order() -> None:
    budget, taken, order = _Budget(10), 0, []
    lock, most = threading.Lock(), 0

    def take(index: int, amount: int) -> None:
        nonlocal taken, most
        with budget.take(amount):
            with lock:
                taken += amount
                most = max(most, taken)
                order.append(index)
            time.sleep(0.002)
            with lock:
                taken -= amount

    with ThreadPoolExecutor(8) as pool:
        rng = np.random.default_rng(0)
        list(pool.map(take, range(60), rng.integers(1, 11, 60).tolist()))
    assert most <= 10
    assert sorted(order) == list(range(60))
    assert budget._left == 10


def test_batches_are_compiled_for_batch_sizes() -> None:
    for most, expected in ((1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (8, [1, 2, 4, 8])):
        network = Brightness()
        Worker(network, batch_size=most).close()  # type: ignore[arg-type]
        assert network.batches == [(size, size) for size in expected]


def test_sigterm_lets_requests_in_progress_finish() -> None:
    program = """
import time
from unittest.mock import Mock
import jax
import jax.numpy as jnp
import numpy as np
from purinet_jax.serve import Limits, Worker, listen, make_server, serve

class Slow:
    size, model = 8, Mock(attention=False)
    def square_maps(self, images, batch_size):
        time.sleep(0.5)
        return np.zeros((len(images), 8, 8), np.float32)

listening = listen("127.0.0.1", 0)
port = listening.getsockname()[1]
server = make_server(Worker(Slow()), "127.0.0.1", Limits())
print(port, flush=True)
serve(server, listening)
print("ended well", flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        served = Served(int(process.stdout.readline()), None)  # type: ignore[arg-type]
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(served.post, "/v1/map", encoded())
            until(lambda: served.metric("purinet_images_in_progress") == 1)
            process.send_signal(signal.SIGTERM)
            response = waiting.result()
        assert (response.status, pixels_of(response.body).shape) == (200, (60, 80))
        output, errors = process.communicate(timeout=20)
        assert (process.returncode, output, errors) == (0, "ended well\n", "")
    with pytest.raises(OSError, match="refused"):
        served.get("/health")


def test_the_command_refuses_bad_arguments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "two").write_text("one\ntwo\n")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for name in ("empty", "two", "bytes"):
        assert_refused(capsys, ["serve", "--token-file", str(tmp_path / name)], f"{name}: holds no token")
    assert_refused(capsys, ["serve", "--token-file", str(tmp_path / "none")], "none: cannot be read")
    with monkeypatch.context() as patch:
        patch.setenv("PURINET_TOKEN", "")
        assert_refused(capsys, ["serve"], "PURINET_TOKEN: holds no token")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert_refused(capsys, ["serve", "--port", port], f"127.0.0.1:{port}: cannot listen there")
    assert_refused(capsys, ["serve", "--host", "no.such.host.invalid"], "no.such.host.invalid:8000: cannot listen")
    assert_refused(capsys, ["serve", "--host", "127.0.0..1"], "127.0.0..1:8000: cannot listen there")
    missing = str(tmp_path / "none.pth")
    assert_refused(capsys, ["serve", "--port", "0", "--checkpoint", missing, "--quiet"], "none.pth")
    for wrong in (["--port", "70000"], ["--port", "x"], ["--queue", "0"], ["--max-megapixels", "0"]):
        with pytest.raises(SystemExit) as exit_:
            main(["serve", *wrong])
        assert exit_.value.code == 2
    assert "argument --port: x is not an integer" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        for name in [name for name in sys.modules if name.startswith("purinet_jax.serve.")]:
            patch.delitem(sys.modules, name)
        patch.setitem(sys.modules, "uvicorn", None)
        assert_refused(capsys, ["serve"], "serve: needs uvicorn: pip install 'purinet_jax[serve]'")


def test_the_token_is_from_the_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from purinet_jax.serve.server import read_token

    monkeypatch.delenv("PURINET_TOKEN", raising=False)
    assert read_token(None) is None
    monkeypatch.setenv("PURINET_TOKEN", "of-the-environment")
    assert read_token(None) == "of-the-environment"
    (tmp_path / "token").write_text("of-the-file\n")
    assert read_token(tmp_path / "token") == "of-the-file"
    (tmp_path / "token").write_bytes(b"\xef\xbb\xbfof-windows\r\n")
    assert read_token(tmp_path / "token") == "of-windows"


def test_commands_in_the_documentation_work(server: Served, tmp_path: Path) -> None:
    text = (DOCS / "serve.md").read_text()
    for command in commands_in(text):
        parses(command)
    assert {name for name in re.findall(r"\]\((\w[^):#]*)[^):]*\)", text) if not (DOCS / name).is_file()} == set()
    (tmp_path / "photo.jpg").write_bytes(encoded("JPEG"))
    ours = [line for line in text.splitlines() if line.startswith("curl ") and "127.0.0.1:8000" in line]
    assert len(ours) == 9
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    for line in ours:
        command = line.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")
        result = subprocess.run(command, shell=True, cwd=tmp_path, check=True, stdout=subprocess.PIPE)
        assert result.stdout == b"" or result.stdout.startswith(b"{")
    for name in ("cutout.png", "mask.png", "product.webp", "rembg.png", "alpha.png", "no-bg.png", "product.jpg"):
        with Image.open(tmp_path / name) as image:
            assert image.format == name.rpartition(".")[2].upper().replace("JPG", "JPEG")
            assert image.size == (80, 60) or name == "product.jpg"
