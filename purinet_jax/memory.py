"""The C library's allocator, told what suits a training process on CPUs. The program (`purinet train`) calls
`keep_freed_memory`; nothing that is imported does, since it holds for the whole process. The training loop then keeps
what the process holds within bounds (`GrowthBound`).
"""

import ctypes
import os
import sys
from pathlib import Path

# From malloc.h of the GNU C library, and from Linux' mman.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_MADV_HUGEPAGE = 14


def keep_freed_memory() -> bool:
    """Lets the process keep what it frees for its next allocation instead of giving it back to the system.

    A train step on the CPU allocates gigabytes anew each time; given back in between, every page of it is faulted in
    and zeroed again. Kept, the step of PurNet-Lite took three quarters of the time (docs/training.md); that of
    ResNet-50, as long as before. The process then stays as large as it once was. Predicting is no faster by it, and its
    first picture slower: its allocations are small, and threads wait for each other where all take from one arena.

    The memory that is kept lies in pages of 2 MiB where the system gives such to who asks (Linux' usual setting): with
    pages of 4 KiB the processor spends a tenth to a fifth of a step on looking them up.

    Returns:
      Whether the C library took the settings: the GNU one on Linux does.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        library = ctypes.CDLL(None)
        mallopt = library.mallopt
    except (OSError, AttributeError):  # another C library
        return False
    # One arena, since only the main one can grow without bound; its top is never trimmed (-1); nothing is mapped apart.
    settings = ((_ARENA_MAX, 1), (_TRIM_THRESHOLD, -1), (_MMAP_MAX, 0))
    taken = [mallopt(setting, value) == 1 for setting, value in settings]
    if all(taken):
        _ask_for_huge_pages(library)
    return all(taken)


def _ask_for_huge_pages(library: ctypes.CDLL) -> None:
    """Lets the heap reach over half as much as the machine has memory, of which nothing is used before it is written
    to, and asks for huge pages in all of it: a heap that grows in small steps could only be asked step by step."""
    library.malloc.argtypes, library.malloc.restype = (ctypes.c_size_t,), ctypes.c_void_p
    library.free.argtypes = (ctypes.c_void_p,)
    library.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    library.free(library.malloc(_half_of_memory()))
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith("[heap]"):
            start, end = (int(address, 16) for address in line.split()[0].split("-"))
            library.madvise(start, end - start, _MADV_HUGEPAGE)  # if it is refused, pages are small as before


def _half_of_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


class GrowthBound:
    """Bounds what a process that keeps its freed memory holds, without which a training's size may double.

    Something small that outlives a step may lie where the step before had its gigabytes; they no longer fit there, and
    the heap grows by as many. What lies idle in it is given back once the process has grown by a quarter.
    """

    def __init__(self) -> None:
        self._first: int | None = None

    def check(self) -> bool:
        """Compares with the first check, and gives back where it must; to be called now and then, between steps.

        Returns:
          Whether there was memory to give back.
        """
        size = _resident_bytes()
        if self._first is None or size is None:
            self._first = size
            return False
        if size <= 1.25 * self._first:
            return False
        try:
            trim = ctypes.CDLL(None).malloc_trim
        except (OSError, AttributeError):  # another C library, which was not told to keep anything
            return False
        trim.argtypes = (ctypes.c_size_t,)
        # The end of the heap, with its huge pages, stays as `keep_freed_memory` made it.
        return bool(trim(_half_of_memory()))


def _resident_bytes() -> int | None:
    """What the process holds of the machine's memory; None where no file tells."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None
