"""Settings of the C library's allocator for training on CPUs; they hold for the process, so only commands make them."""

import ctypes
import os
import sys
from pathlib import Path

# From malloc.h of the GNU C library, and from Linux' mman.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_MADV_HUGEPAGE = 14


def keep_freed_memory() -> bool:
    """Keeps freed memory for the next allocation instead of returning it to the system, in huge pages where allowed.

    A train step allocates gigabytes; if they are returned after each step, all pages are faulted in and zeroed again
    (docs/training.md has the times). The process stays as large as it once was. Prediction gains nothing: its
    allocations are small, and threads that share one arena wait for each other.

    Returns:
      Whether the C library accepted the settings, as the GNU one on Linux does.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        library = ctypes.CDLL(None)
        mallopt = library.mallopt
    except (OSError, AttributeError):  # another C library
        return False
    # One arena, because only the main one grows without bound; its top is never trimmed (-1); no separate mappings.
    settings = ((_ARENA_MAX, 1), (_TRIM_THRESHOLD, -1), (_MMAP_MAX, 0))
    accepted = sum(mallopt(setting, value) for setting, value in settings) == len(settings)
    if accepted:
        _ask_for_huge_pages(library)
    return accepted


def _ask_for_huge_pages(library: ctypes.CDLL) -> None:
    """Extends the heap by half of the machine's memory, which is not used before it is written to, and asks for huge
    pages in all of it: pages of 4 KiB cost a tenth to a fifth of a step in address lookups."""
    library.malloc.argtypes, library.malloc.restype = (ctypes.c_size_t,), ctypes.c_void_p
    library.free.argtypes = (ctypes.c_void_p,)
    library.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    library.free(library.malloc(_half_of_memory()))
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith("[heap]"):
            start, end = (int(address, 16) for address in line.split()[0].split("-"))
            library.madvise(start, end - start, _MADV_HUGEPAGE)  # pages stay small if this is refused


def _half_of_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


class GrowthBound:
    """Bounds the memory of a process that keeps what it frees, which fragmentation could otherwise double."""

    def __init__(self) -> None:
        self._first: int | None = None

    def check(self) -> bool:
        """Returns idle memory to the system once the process has grown by a quarter since the first check.

        Returns:
          Whether there was such memory.
        """
        size = _resident_bytes()
        if self._first is None or size is None:
            self._first = size
            return False
        if size <= 1.25 * self._first:
            return False
        try:
            trim = ctypes.CDLL(None).malloc_trim
        except (OSError, AttributeError):  # another C library
            return False
        trim.argtypes = (ctypes.c_size_t,)
        return bool(trim(_half_of_memory()))  # the end of the heap stays, with its huge pages


def _resident_bytes() -> int | None:
    """The physical memory of the process; None where /proc does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None
