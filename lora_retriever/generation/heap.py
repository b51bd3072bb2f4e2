"""Freed memory of the host: the process keeps the memory for its next tensors, or gives the memory back at once."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress

KEPT = 2**29
"""Maximum free memory at the end of the heap that the C library keeps, in bytes: half a GiB."""
MAPPED = 2**25
"""Minimum size of a block for which the C library asks the operating system separately, in bytes.

The default of the C library is the size of the largest block that was freed, but at most this number.
"""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # the names of both settings in <malloc.h>


def give_back_freed_memory() -> None:
    """Give unused memory back to the operating system, so that the memory does not count as used.

    Does nothing where the C library is not glibc.
    """
    gc.collect()
    with suppress(AttributeError, OSError, TypeError):  # another C library, or Windows
        ctypes.CDLL(None).malloc_trim(0)


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next tensors of this process. Returns whether this could be set.

    By default glibc gives memory at the end of the heap back to the operating system as soon as about twice its largest
    block is free. Every forward pass frees its tensors, and the next pass asks for the same memory: the system then
    clears every page anew. This setting does not increase the maximum memory of the process. Does nothing where
    the C library is not glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or Windows
        return False
    return bool(mallopt(_MMAP_THRESHOLD, MAPPED)) and bool(mallopt(_TRIM_THRESHOLD, KEPT))
