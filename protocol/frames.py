"""Memory for large frames, which come and go with every picture."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
KEPT_BYTES = 256 * 1024 * 1024  # of freed memory at the heap's end
MAPPED_BYTES = 32 * 1024 * 1024  # blocks from this size on are the system's own, as large as glibc allows


def keep_memory() -> None:
    """Have the allocator keep what large frames free, for the next ones: given back to the system and taken again, each
    page of a 1 MiB frame is cleared anew, which costs more than sending it. For a process's start; glibc only."""
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)
    mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
