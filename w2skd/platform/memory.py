"""Settings of the C library's allocator for training on CPUs."""

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""``M_TRIM_THRESHOLD`` and ``M_MMAP_THRESHOLD`` of malloc.h."""

_LARGEST_TRIM_BYTES = 2**31 - 1
_LARGEST_MMAP_BYTES = 2**25
"""The largest values that glibc accepts for the two thresholds."""

_OWN_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")
"""Environment variables by which users configure or replace the allocator."""


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next training step instead of returning it to the system.

    By default, the memory of activations goes back to the system at the end of a step, and the next step faults it in
    again page by page. With these settings the process stays at its peak memory.

    Returns:
        Whether the settings were changed; False with another C library or if the user configures the allocator.
    """
    if any(name in os.environ for name in _OWN_SETTINGS):
        return False
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018  # other C libraries lack it, and mallopt may mean something else
        mallopt = library.mallopt
    except (AttributeError, OSError, TypeError):  # TypeError: Windows has no library of the process itself
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    changed = [mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_BYTES), mallopt(_TRIM_THRESHOLD, _LARGEST_TRIM_BYTES)]
    return all(changed)
