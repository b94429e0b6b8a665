"""The C library's allocator, told what suits a training process on CPUs. The program (`purinet train`) calls it;
nothing that is imported does, since it holds for the whole process.
"""

import ctypes
import sys

# From malloc.h of the GNU C library.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Lets the process keep what it frees for its next allocation instead of giving it back to the system.

    A train step on the CPU allocates gigabytes anew each time; given back in between, every page of it is faulted in
    and zeroed again. Kept, the step of PurNet-Lite took three quarters of the time (docs/training.md); that of
    ResNet-50, as long as before. The process then stays as large as it once was.

    Returns:
      Whether the C library took the settings: the GNU one on Linux does.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    # One arena, since only the main one can grow without bound; its top is never trimmed (-1); nothing is mapped apart.
    settings = ((_ARENA_MAX, 1), (_TRIM_THRESHOLD, -1), (_MMAP_MAX, 0))
    taken = [mallopt(setting, value) == 1 for setting, value in settings]
    return all(taken)
