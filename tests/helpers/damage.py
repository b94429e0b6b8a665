"""Image files, and ways to damage them."""

import io
import zlib

import numpy as np
from PIL import Image


def truncate(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: rng.integers(0, len(data))]


def flip_bits(data: bytes, rng: np.random.Generator) -> bytes:
    values = np.frombuffer(data, np.uint8).copy()
    positions = rng.integers(0, len(values), rng.integers(1, 30))
    values[positions] ^= (1 << rng.integers(0, 8, len(positions))).astype(np.uint8)
    return values.tobytes()


def overwrite(data: bytes, rng: np.random.Generator) -> bytes:
    start = int(rng.integers(0, len(data)))
    middle = rng.bytes(int(rng.integers(1, 200)))
    return data[:start] + middle + data[start + len(middle) :]


def lengthen(data: bytes, rng: np.random.Generator) -> bytes:
    return data + rng.bytes(int(rng.integers(1, 500)))


def resize_header(data: bytes, rng: np.random.Generator) -> bytes:
    """Claims another size, up to billions of pixels, in front of the same data."""
    height, width = (int(2 ** rng.uniform(0, 16)) % 65535 + 1 for _ in range(2))
    return claim_size(data, height, width)


def claim_size(data: bytes, height: int, width: int) -> bytes:
    if data.startswith(b"\x89PNG"):
        header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + data[24:29]
        return data[:12] + header + zlib.crc32(header).to_bytes(4, "big") + data[33:]
    position = data.index(b"\xff\xc0") + 5
    return data[:position] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + data[position + 4 :]


def other_size(data: bytes, rng: np.random.Generator) -> bytes:
    image = Image.open(io.BytesIO(data))
    buffer = io.BytesIO()
    image.resize((int(rng.integers(1, 60)), int(rng.integers(1, 60)))).save(buffer, image.format)
    return buffer.getvalue()


MUTATIONS = (truncate, flip_bits, overwrite, lengthen, resize_header, other_size)


def encode(array: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()
