"""Load test of `purinet serve` on the loopback; prints JSON.

    python benchmarks/serve.py --size 288 > serve.json

Many clients at once ask for cut-outs, maps and masks of generated photos; one request in twenty is hostile. Every
response is compared with the file that `purinet predict` writes, and every request must have one.
"""

import argparse
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from purinet_jax.benchmarks.machine import heading, in_process, peak_mib, say
from purinet_jax.data.synthetic import draw_example

KINDS: Any = ("map", "mask", "cutout")
# Images of a batch may differ by so many grey levels, because batches of different sizes are rounded differently.
ROUNDING = 2
# Seconds after which a response counts as lost.
PATIENCE = 120


@dataclass(frozen=True)
class Hostile:
    """A request that must be refused with one of the statuses; 0 is a connection that the server cuts."""

    body: bytes
    statuses: tuple[int, ...]
    headers: dict[str, str] = field(default_factory=dict)
    sent: int | None = None  # bytes after which the client hangs up


@dataclass(frozen=True)
class Outcome:
    """What became of a request, and after how long."""

    sort: str  # "image", or the kind of hostility
    verdict: str  # "right", "rounded", "wrong" or "lost"
    seconds: float
    busy: int = 0  # responses 429 and 503, after which the client asked again


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=288, help="side that images are resized to (default 288)")
    parser.add_argument("--requests", type=int, default=2000, help="requests in all (default 2000)")
    parser.add_argument("--clients", type=int, default=32, help="clients at once (default 32)")
    parser.add_argument("--hostile", type=float, default=0.05, help="share of hostile requests (default 0.05)")
    arguments = parser.parse_args()
    result = heading(vars(arguments))
    with tempfile.TemporaryDirectory() as scratch:
        photos = write_photos(Path(scratch) / "photos")
        say("predicting what is right")
        right = in_process(predict, Path(scratch), arguments.size)
        say("starting the server")
        server, port = start(Path(scratch) / "log", arguments.size)
        try:
            say(f"{arguments.requests:,} requests by {arguments.clients} clients")
            result |= load(port, photos, right, arguments.requests, arguments.clients, arguments.hostile)
        finally:
            server.send_signal(signal.SIGTERM)
            _, status, usage = os.wait4(server.pid, 0)
            server.returncode = os.waitstatus_to_exitcode(status)
    result["server"] |= {"peak_memory_mib": peak_mib(usage), "exit_code": server.returncode}
    print(json.dumps(result, indent=2))


def write_photos(folder: Path) -> dict[str, bytes]:
    """Photos of several sizes and formats, by name."""
    folder.mkdir()
    for index, (height, width) in enumerate([(300, 400)] * 6 + [(400, 300)] * 4 + [(600, 900), (1200, 1600)]):
        drawing = Image.fromarray(draw_example(np.random.default_rng(index), (300, 400))[0])
        drawing.resize((width, height)).save(folder / f"{index:02}.{('jpg', 'png', 'webp')[index % 3]}", quality=90)
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def predict(scratch: Path, size: int) -> dict[str, dict[str, bytes]]:
    """What `purinet predict` writes, by kind and the photo's name."""
    from purinet_jax.prediction.files import plan, predict_files
    from purinet_jax.prediction.predictor import load
    from purinet_jax.prediction.rendering import Style

    predictor = load(size=size)
    written: dict[str, dict[str, bytes]] = {}
    for kind in KINDS:
        jobs = plan([scratch / "photos"], scratch / kind, kind=kind)
        results = list(predict_files(predictor, jobs, Style(kind)))
        written[kind] = {result.job.source.name: result.job.output.read_bytes() for result in results}
    return written


def start(log: Path, size: int) -> tuple[subprocess.Popen[bytes], int]:
    """A server that is ready for requests, and its port, any free one of the loopback."""
    command = [sys.executable, "-m", "purinet_jax.commands.main", "serve", "--port", "0", "--size", str(size)]
    with log.open("wb") as file:
        server = subprocess.Popen(command, stderr=file)
    while server.poll() is None:
        if found := re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text()):
            return server, int(found[1])
        time.sleep(0.05)
    raise subprocess.CalledProcessError(server.returncode, command, stderr=log.read_text())


def load(
    port: int,
    photos: dict[str, bytes],
    right: dict[str, dict[str, bytes]],
    requests: int,
    clients: int,
    hostile: float,
) -> dict[str, Any]:
    """Sends the requests. Returns how many of each sort were right, rounded, wrong or lost, milliseconds, and the
    server's processor time, memory (after a tenth of the requests and at the end) and health."""
    rng = np.random.default_rng(0)
    attacks = hostilities(next(iter(photos.values())))
    names, sorts = list(photos), list(attacks)
    jobs: list[partial[Outcome]] = []
    for index in range(requests):
        if rng.random() < hostile:
            sort = sorts[index % len(sorts)]
            jobs.append(partial(attack, port, sort, attacks[sort]))
        else:
            kind, name = KINDS[rng.integers(len(KINDS))], names[rng.integers(len(names))]
            jobs.append(partial(ask, port, kind, photos[name], right[kind][name]))
    outcomes: list[Outcome] = []
    memory: list[int] = []
    processor = server_metric(port, "process_cpu_seconds_total")
    begin = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        for outcome in pool.map(lambda job: job(), jobs):
            outcomes.append(outcome)
            if len(outcomes) in (requests // 10, requests):
                memory.append(round(server_metric(port, "process_resident_memory_bytes") / 2**20))
    seconds = time.perf_counter() - begin
    processor = server_metric(port, "process_cpu_seconds_total") - processor
    images = [outcome.seconds for outcome in outcomes if outcome.sort == "image"]
    refusals = [outcome.seconds for outcome in outcomes if outcome.sort != "image"]
    counts = {sort: Counter(o.verdict for o in outcomes if o.sort == sort) for sort in ("image", *sorts)}
    return {
        "outcomes": {sort: dict(count) for sort, count in counts.items() if count},
        "answered": len(outcomes) - sum(count["lost"] for count in counts.values()),
        "busy": sum(outcome.busy for outcome in outcomes),
        "image_ms": summary(images),
        "refusal_ms": summary(refusals),
        "images_per_second": round(len(images) / seconds, 1),
        "server": {
            "processor_ms_a_request": round(1000 * processor / requests, 1),
            "memory_after_a_tenth_mib": memory[0],
            "memory_at_the_end_mib": memory[-1],
            "healthy": request(port, "GET", "/health")[0] == 200,
        },
    }


def summary(seconds: Sequence[float]) -> dict[str, float] | None:
    if not seconds:
        return None
    median, p99, largest = np.percentile(np.array(seconds) * 1000, (50, 99, 100)).round(1).tolist()
    return {"median": median, "p99": p99, "largest": largest}


def hostilities(photo: bytes) -> dict[str, Hostile]:
    """Requests that must not harm a server, by name."""

    def png(height: int, width: int, pixels: bytes) -> bytes:
        def chunk(kind: bytes, data: bytes) -> bytes:
            return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

        header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x00\x00\x00\x00"
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")

    blank = zlib.compress(b"\0" * (12_000 * 12_001), 9)  # 144 megapixels in 140 kB
    return {
        "bomb": Hostile(png(12_000, 12_000, blank), (413,)),
        "bomb of billions": Hostile(png(60_000, 60_000, blank), (413,)),
        "bomb within limits": Hostile(png(6000, 6000, zlib.compress(b"\0" * 100)), (415,)),
        "truncated": Hostile(photo[: len(photo) // 2], (415,)),
        "text": Hostile(b"no image " * 1000, (415,), {"Content-Type": "image/png"}),
        "zip": Hostile(b"PK\x03\x04" + b"\0" * 10_000, (415,)),
        "PostScript": Hostile(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n", (415,)),
        "broken form": Hostile(b"--x\r\n\r\n", (400,), {"Content-Type": "multipart/form-data; boundary=x"}),
        "huge header": Hostile(photo, (400, 431, 0), {"Cookie": "x" * (1 << 20)}),
        "large header": Hostile(photo, (400, 431), {"Cookie": "x" * (1 << 15)}),
        "too many bytes": Hostile(b"\xff" * (33 << 20), (413,)),
        "hangs up": Hostile(photo, (0,), sent=len(photo) // 2),
    }


def attack(port: int, sort: str, hostile: Hostile) -> Outcome:
    begin = time.perf_counter()
    status = busy = 0
    if hostile.sent is not None:
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
            head = f"POST /v1/map HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(hostile.body)}\r\n\r\n"
            client.sendall(head.encode() + hostile.body[: hostile.sent])
    else:
        try:
            status, busy, _ = post_until_served(port, "/v1/map", hostile.body, hostile.headers)
        except TimeoutError:
            return Outcome(sort, "lost", time.perf_counter() - begin)
        except (OSError, http.client.HTTPException):
            pass
    verdict = "right" if status in hostile.statuses else "wrong" if status else "lost"
    return Outcome(sort, verdict, time.perf_counter() - begin, busy)


def ask(port: int, kind: str, photo: bytes, right: bytes) -> Outcome:
    begin = time.perf_counter()
    try:
        status, busy, body = post_until_served(port, f"/v1/{kind}", photo, {})
    except (OSError, http.client.HTTPException):
        return Outcome("image", "lost", time.perf_counter() - begin)
    seconds = time.perf_counter() - begin
    return Outcome("image", compare(body, right) if status == 200 else "wrong", seconds, busy)


def compare(body: bytes, right: bytes) -> str:
    if body == right:
        return "right"
    with Image.open(io.BytesIO(body)) as found, Image.open(io.BytesIO(right)) as expected:
        if (found.mode, found.size) != (expected.mode, expected.size):
            return "wrong"
        differences = np.abs(np.asarray(found, np.int16) - np.asarray(expected, np.int16))
    return "rounded" if differences.max() <= ROUNDING else "wrong"


def post_until_served(port: int, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, int, bytes]:
    """The last response's status, how many before it asked to come again, and its body."""
    busy = 0
    while True:
        status, wait, response = request(port, "POST", path, body, headers)
        if status not in (429, 503):
            return status, busy, response
        busy += 1
        time.sleep(wait)


def request(
    port: int, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, float, bytes]:
    """A response's status, the seconds after which it asks to come again, and its body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, float(response.headers.get("Retry-After", 1)), response.read()
    finally:
        connection.close()


def server_metric(port: int, name: str) -> float:
    """One of the server's Prometheus metrics; 0 where the system does not provide it."""
    found = re.search(rf"^{name} (\S+)$", request(port, "GET", "/metrics")[2].decode(), re.M)
    return float(found[1]) if found else 0.0


if __name__ == "__main__":
    main()
