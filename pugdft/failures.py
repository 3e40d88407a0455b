"""What lies behind an exception that a run dies of: memory, a disk, another process, or a bug."""

from __future__ import annotations

import torch
from accelerate.utils.memory import should_reduce_batch_size

from pugdft.errors import RunFailed, UserError

# What gloo, NCCL and torch's own store say when the other side has gone.
_LOST_PEER = ("gloo", "nccl", "connection closed by peer", "connection reset", "broken pipe", "barrier")


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device or the machine had no memory left for a tensor."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or should_reduce_batch_size(error)


def explained(error: BaseException, num_processes: int) -> str | None:
    """The cause in a sentence; None if it may be a bug of ours, whose traceback somebody needs."""
    first_line = (str(error).splitlines() or [""])[0]
    if isinstance(error, UserError | RunFailed):
        return str(error)
    if isinstance(error, OSError) and error.errno is not None:
        return f"{error.filename or 'a file'}: {error.strerror}"
    if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
        return f"a process that reads images was killed, perhaps for its memory ({first_line[:200]})"
    if isinstance(error, ValueError) and "more than 1 value per channel" in str(error):
        return (
            "BatchNorm has nothing to average over in a pass of one image, whose features are 1 × 1: give "
            "train.batch_size or train.micro_batch_size more images a process, or set train.batch_norm=fixed"
        )
    lost = isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _LOST_PEER)
    )
    if num_processes > 1 and lost:
        return f"another process of this run has ended or cannot be reached ({first_line[:200]})"
    return None
