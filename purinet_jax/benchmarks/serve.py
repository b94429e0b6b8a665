"""`purinet serve` under load, on the loopback: many clients at once, some of them hostile. Every answer is compared
with the file that `purinet predict` writes, and every request must have one.
"""

import http.client
import io
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from purinet_jax.benchmarks.machine import describe_machine, in_process
from purinet_jax.data.synthetic import draw_example
from purinet_jax.prediction.rendering import Kind

_KINDS: tuple[Kind, ...] = ("map", "mask", "cutout")
_COMMAND = (sys.executable, "-m", "purinet_jax.commands.main")
# Grey levels by which answers of a batch may differ, since its numbers are rounded otherwise.
_ROUNDING = 2
# How long a client waits for an answer before it counts as lost, seconds.
_PATIENCE = 120


@dataclass(frozen=True)
class _Hostile:
    """A request that must be refused: what is sent, and the statuses of which one must come; 0 is a connection cut."""

    body: bytes
    statuses: tuple[int, ...]
    headers: dict[str, str] = field(default_factory=dict)
    sent: int | None = None  # bytes after which the client hangs up


@dataclass(frozen=True)
class _Outcome:
    """What came of a request, and after how long."""

    sort: str  # "picture", or the kind of hostility
    verdict: str  # "right", "rounded", "wrong" or "lost"
    seconds: float
    busy: int  # answers 429 and 503, after which it asked again


def benchmark_serve(
    *, size: int = 288, requests: int = 2000, clients: int = 32, hostile: float = 0.05
) -> dict[str, Any]:
    """Asks a fresh server for pictures of generated photographs, the weights being those of the package.

    Args:
      size: side of the square that images are squashed to, pixels.
      requests: how many in all.
      clients: how many at once; each asks again as soon as it has its answer.
      hostile: the share of requests that are bombs, truncated, of a wrong type, too long, or hang up.

    Returns:
      JSON values: `outcomes` (of pictures and of each hostility: how many right, the same but for rounding, wrong,
      lost), `busy` (answers that asked to come again), milliseconds for pictures and for refusals (median, 99th
      percentile, largest), pictures per second, the server's processor time for a request, its memory (after a tenth of
      the requests, at the end and at its peak), whether it still works in the end, and its exit code after SIGTERM.
    """
    with tempfile.TemporaryDirectory() as scratch:
        photographs = _write_photographs(Path(scratch) / "photographs")
        print("predicting what is right …", file=sys.stderr, flush=True)
        right = in_process(_predict, Path(scratch), size)
        print("starting the server …", file=sys.stderr, flush=True)
        server, port = _start(Path(scratch) / "log", size)
        try:
            print(f"{requests:,} requests by {clients} clients …", file=sys.stderr, flush=True)
            result = _load(port, photographs, right, requests, clients, hostile)
        finally:
            server.send_signal(signal.SIGTERM)
            _, status, usage = os.wait4(server.pid, 0)
            server.returncode = os.waitstatus_to_exitcode(status)
    result["server"]["peak_memory_mib"] = usage.ru_maxrss // (1024 if sys.platform == "linux" else 1024**2)
    result["server"]["exit_code"] = server.returncode
    return {
        "machine": describe_machine(),
        "date": time.strftime("%Y-%m-%d"),
        "settings": {"size": size, "requests": requests, "clients": clients, "hostile": hostile},
        **result,
    }


def _write_photographs(folder: Path) -> dict[str, bytes]:
    """Photographs of several sizes and formats, by name."""
    folder.mkdir()
    for index, (height, width) in enumerate([(300, 400)] * 6 + [(400, 300)] * 4 + [(600, 900), (1200, 1600)]):
        drawing = Image.fromarray(draw_example(np.random.default_rng(index), (300, 400))[0])
        drawing.resize((width, height)).save(folder / f"{index:02}.{('jpg', 'png', 'webp')[index % 3]}", quality=90)
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def _predict(scratch: Path, size: int) -> dict[str, dict[str, bytes]]:
    """What `purinet predict` writes for each photograph, by kind and the photograph's name."""
    from purinet_jax.prediction.files import plan, predict_files
    from purinet_jax.prediction.predictor import load
    from purinet_jax.prediction.rendering import Style

    predictor = load(size=size)
    written: dict[str, dict[str, bytes]] = {}
    for kind in _KINDS:
        jobs = plan([scratch / "photographs"], scratch / kind, kind=kind)
        results = list(predict_files(predictor, jobs, Style(kind)))
        written[kind] = {result.job.source.name: result.job.output.read_bytes() for result in results}
    return written


def _start(log: Path, size: int) -> tuple[subprocess.Popen[bytes], int]:
    """A server on any free port of the loopback, ready for requests, and the port."""
    command = [*_COMMAND, "serve", "--port", "0", "--size", str(size)]
    with log.open("wb") as file:
        server = subprocess.Popen(command, stderr=file)
    while server.poll() is None:
        if found := re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text()):
            return server, int(found[1])
        time.sleep(0.05)
    raise subprocess.CalledProcessError(server.returncode, command, stderr=log.read_text())


def _load(
    port: int,
    photographs: dict[str, bytes],
    right: dict[str, dict[str, bytes]],
    requests: int,
    clients: int,
    hostile: float,
) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    hostilities = _hostilities(next(iter(photographs.values())))
    names, sorts = list(photographs), list(hostilities)
    jobs: list[Callable[[], _Outcome]] = []
    for index in range(requests):
        if rng.random() < hostile:
            sort = sorts[index % len(sorts)]
            jobs.append(lambda sort=sort: _attack(port, sort, hostilities[sort]))  # type: ignore[misc]
        else:
            kind, name = _KINDS[rng.integers(len(_KINDS))], names[rng.integers(len(names))]
            jobs.append(
                lambda kind=kind, name=name: _ask(port, kind, photographs[name], right[kind][name])  # type: ignore[misc]
            )
    outcomes: list[_Outcome] = []
    memory: list[int] = []
    processor = _measure(port, "process_cpu_seconds_total")
    begin = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        for outcome in pool.map(lambda job: job(), jobs):
            outcomes.append(outcome)
            if len(outcomes) in (requests // 10, requests):
                memory.append(round(_measure(port, "process_resident_memory_bytes") / 1024**2))
    seconds = time.perf_counter() - begin
    processor = _measure(port, "process_cpu_seconds_total") - processor
    pictures = [outcome for outcome in outcomes if outcome.sort == "picture"]
    counts = {sort: Counter(o.verdict for o in outcomes if o.sort == sort) for sort in ("picture", *sorts)}
    return {
        "outcomes": {sort: dict(count) for sort, count in counts.items() if count},
        "answered": len(outcomes) - sum(count["lost"] for count in counts.values()),
        "busy": sum(outcome.busy for outcome in outcomes),
        "picture_ms": _summary([outcome.seconds for outcome in pictures]),
        "refusal_ms": _summary([outcome.seconds for outcome in outcomes if outcome.sort != "picture"]),
        "pictures_per_second": round(len(pictures) / seconds, 1),
        "server": {
            "processor_ms_a_request": round(1000 * processor / requests, 1),
            "memory_after_a_tenth_mib": memory[0],
            "memory_at_the_end_mib": memory[-1],
            "healthy": _get(port, "/health")[0] == 200,
        },
    }


def _summary(seconds: Sequence[float]) -> dict[str, float] | None:
    if not seconds:
        return None
    values = np.array(seconds) * 1000
    return {
        "median": round(statistics.median(values), 1),
        "p99": round(float(np.percentile(values, 99)), 1),
        "largest": round(float(values.max()), 1),
    }


def _hostilities(photograph: bytes) -> dict[str, _Hostile]:
    """Requests that no server should suffer from, by what they are."""

    def png(height: int, width: int, pixels: bytes) -> bytes:
        def chunk(kind: bytes, data: bytes) -> bytes:
            return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

        header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x00\x00\x00\x00"
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")

    blank = zlib.compress(b"\0" * (12_000 * 12_001), 9)  # 144 megapixels in 140 kB
    return {
        "bomb": _Hostile(png(12_000, 12_000, blank), (413,)),
        "bomb of billions": _Hostile(png(60_000, 60_000, blank), (413,)),
        "bomb within limits": _Hostile(png(6000, 6000, zlib.compress(b"\0" * 100)), (415,)),
        "truncated": _Hostile(photograph[: len(photograph) // 2], (415,)),
        "text": _Hostile(b"no image " * 1000, (415,), {"Content-Type": "image/png"}),
        "zip": _Hostile(b"PK\x03\x04" + b"\0" * 10_000, (415,)),
        "PostScript": _Hostile(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n", (415,)),
        "broken form": _Hostile(b"--x\r\n\r\n", (400,), {"Content-Type": "multipart/form-data; boundary=x"}),
        "huge header": _Hostile(photograph, (400, 431, 0), {"Cookie": "x" * (1 << 20)}),
        "large header": _Hostile(photograph, (400, 431), {"Cookie": "x" * (1 << 15)}),
        "too many bytes": _Hostile(b"\xff" * (33 << 20), (413,)),
        "hangs up": _Hostile(photograph, (0,), sent=len(photograph) // 2),
    }


def _attack(port: int, sort: str, hostile: _Hostile) -> _Outcome:
    begin = time.perf_counter()
    status = busy = 0
    if hostile.sent is not None:
        with socket.create_connection(("127.0.0.1", port), _PATIENCE) as client:
            head = f"POST /v1/map HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(hostile.body)}\r\n\r\n"
            client.sendall(head.encode() + hostile.body[: hostile.sent])
    else:
        try:
            status, busy, _ = _post_until_served(port, "/v1/map", hostile.body, hostile.headers)
        except TimeoutError:
            return _Outcome(sort, "lost", time.perf_counter() - begin, 0)
        except (OSError, http.client.HTTPException):
            pass
    verdict = "right" if status in hostile.statuses else "wrong" if status else "lost"
    return _Outcome(sort, verdict, time.perf_counter() - begin, busy)


def _ask(port: int, kind: str, photograph: bytes, right: bytes) -> _Outcome:
    begin = time.perf_counter()
    try:
        status, busy, body = _post_until_served(port, f"/v1/{kind}", photograph, {})
    except (OSError, http.client.HTTPException):
        return _Outcome("picture", "lost", time.perf_counter() - begin, 0)
    seconds = time.perf_counter() - begin
    return _Outcome("picture", _compare(body, right) if status == 200 else "wrong", seconds, busy)


def _compare(body: bytes, right: bytes) -> str:
    if body == right:
        return "right"
    with Image.open(io.BytesIO(body)) as found, Image.open(io.BytesIO(right)) as expected:
        if (found.mode, found.size) != (expected.mode, expected.size):
            return "wrong"
        differences = np.abs(np.asarray(found, np.int16) - np.asarray(expected, np.int16))
    return "rounded" if differences.max() <= _ROUNDING else "wrong"


def _post_until_served(port: int, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, int, bytes]:
    """The last answer's status, how many before it asked to come again, and its body."""
    busy = 0
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE)
        try:
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            answer = response.read()
        finally:
            connection.close()
        if response.status not in (429, 503):
            return response.status, busy, answer
        busy += 1
        time.sleep(float(response.headers.get("Retry-After", 1)))


def _get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def _measure(port: int, name: str) -> float:
    """What the server tells Prometheus; 0 where the system does not say."""
    found = re.search(rf"^{name} (\S+)$", _get(port, "/metrics")[1].decode(), re.M)
    return float(found[1]) if found else 0.0
