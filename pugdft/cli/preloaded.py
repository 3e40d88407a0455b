"""What a warm start has imported: all modules of a run, without a tensor, a device or a thread of torch."""

import os
import signal
from types import FrameType

from pugdft.machine import share_cores

share_cores()  # read by torch's threads when it is imported

import pugdft.cli.finetune  # noqa: E402
import pugdft.cli.main  # noqa: E402
import pugdft.training.run  # noqa: E402
import pugdft.training.tracking  # noqa: E402, F401

_SERVER = os.getpid()


def _on_terminated(number: int, frame: FrameType | None) -> None:
    """Go on for the cells, which save: schedulers signal all processes, and this one ends with its worker."""
    if os.getpid() != _SERVER:  # a cell that has just been forked
        os._exit(128 + number)


signal.signal(signal.SIGTERM, _on_terminated)
