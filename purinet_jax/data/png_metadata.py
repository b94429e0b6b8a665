"""Text and colour profiles of PNG files that are larger than Pillow reads, which the pixels do not depend on."""

import struct
import zlib

_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_PILLOW_LIMIT = 1 << 20  # bytes of one chunk, decompressed
_PROFILE_LIMIT = 1 << 24  # bytes; the largest profiles in use have a few megabytes
_MOST_CHUNKS = 64  # of metadata, of which a file may have any number to take time


def without_large_metadata(data: bytes) -> tuple[bytes, bytes | None]:
    """Removes the metadata of a PNG file that Pillow would refuse the file for.

    Returns:
      The file, itself if nothing was removed; and the colour profile, if that was removed and is of sensible size.
    """
    if not data.startswith(b"\x89PNG") or not any(kind in data for kind in (*_TEXTS, b"iCCP")):
        return data, None
    kept, profile = [], None
    start, position, seen = 0, 8, 0
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end <= len(data) and (kind in _TEXTS or kind == b"iCCP"):
            seen += 1
            body = memoryview(data)[position + 8 : end - 4]
            if seen > _MOST_CHUNKS or _is_large(kind, body):
                if kind == b"iCCP" and seen <= _MOST_CHUNKS:
                    profile = _profile(bytes(body))
                kept.append(data[start:position])
                start = end
        position = end
    return (b"".join([*kept, data[start:]]), profile) if kept else (data, None)


def _is_large(kind: bytes, body: memoryview) -> bool:
    """Whether a chunk holds more than Pillow reads, or is damaged."""
    if len(body) > _PILLOW_LIMIT:
        return True
    _, _, rest = bytes(body).partition(b"\0")
    if kind == b"tEXt":
        return False
    if kind == b"iTXt":
        if rest[:1] != b"\1":
            return False
        rest = b"\0" + rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    inflated = _inflated(rest[1:], _PILLOW_LIMIT)
    return inflated is None


def _profile(body: bytes) -> bytes | None:
    return _inflated(body.partition(b"\0")[2][1:], _PROFILE_LIMIT)


def _inflated(data: bytes, limit: int) -> bytes | None:
    """Decompresses at most `limit` bytes; returns None if there are more, or damaged ones."""
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(data, limit)
    except zlib.error:
        return None
    return content if stream.eof or not stream.unconsumed_tail else None
