"""Settings of the memory allocator, made once, before torch allocates anything.

A convolutional network allocates and frees hundreds of megabytes per step. By default glibc returns
each block to the system, which has to clear every page again at the next step. On two CPU cores
that takes more time than the arithmetic (``benchmarks/peak.py --without allocator``).
"""

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h
_KEEP_BELOW = 1 << 30  # bytes


def tune_allocator() -> None:
    """Keep freed blocks, in huge pages, in one arena.

    Settings that the environment already makes are left alone.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch reads it at its first allocation
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return
    if "MALLOC_TRIM_THRESHOLD_" not in os.environ:
        mallopt(_M_TRIM_THRESHOLD, _KEEP_BELOW)
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        mallopt(_M_MMAP_THRESHOLD, _KEEP_BELOW)
    if "MALLOC_ARENA_MAX" not in os.environ:
        mallopt(_M_ARENA_MAX, 1)
