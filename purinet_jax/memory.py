"""The C library's allocator, told what suits a training process on CPUs. The program (`purinet train`) calls it;
nothing that is imported does, since it holds for the whole process.
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
    ResNet-50, as long as before. The process then stays as large as it once was.

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
    library.free(library.malloc(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2))
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith("[heap]"):
            start, end = (int(address, 16) for address in line.split()[0].split("-"))
            library.madvise(start, end - start, _MADV_HUGEPAGE)  # if it is refused, pages are small as before
