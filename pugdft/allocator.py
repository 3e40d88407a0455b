"""On a CPU, keep the memory that one step frees for the next one."""

from __future__ import annotations

import ctypes
import sys

# glibc's mallopt parameters (malloc.h) and the values: never give memory back, never map a block of its
# own for a large tensor, grow by 256 MiB at a time.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Ask glibc to reuse freed memory instead of returning it to the system; False where that is not glibc.

    By default every tensor above 128 KiB is mapped afresh and its pages are cleared by the kernel at first
    touch, again at every step: a third of the time of a small model's training step on two cores.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 256 * 2**20))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)
