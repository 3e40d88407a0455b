"""On a CPU, what becomes of the memory that one step frees: kept for the next one, or given back at once."""

from __future__ import annotations

import ctypes
import os
import sys

# glibc's mallopt parameters (malloc.h).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
# Never give memory back, never map a block of its own for a large tensor, grow by 256 MiB at a time.
_KEEP = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 256 * 2**20))
# Tensors from 4 MiB on have blocks of their own, however many were freed before (glibc raises the limit by
# itself, and then small long-lived blocks settle between large ones); the rest as glibc does by default.
_GIVE_BACK = (
    (_MMAP_MAX, 65536),
    (_MMAP_THRESHOLD, 4 * 2**20),
    (_TRIM_THRESHOLD, 128 * 2**10),
    (_TOP_PAD, 128 * 2**10),
)


def retain_freed_memory(retain: bool) -> bool:
    """Ask glibc to reuse freed memory, or to return it to the system; False where that is not glibc.

    By default every tensor above 128 KiB is mapped afresh and its pages are cleared by the kernel at first
    touch, again at every step: a third of the time of a small model's training step on two cores. Kept
    memory falls into pieces, which is what it costs.

    What is given back is asked for in huge pages the next time, which the kernel clears about eight times
    faster. torch looks at that variable once, at a process's first tensor on the CPU.
    """
    if not sys.platform.startswith("linux"):
        return False
    if not retain:
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return all(mallopt(parameter, value) == 1 for parameter, value in (_KEEP if retain else _GIVE_BACK))
