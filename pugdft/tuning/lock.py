"""The lock under which commands that share a folder write there, one at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pugdft.errors import UserError


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Nobody else's turn until the end of the ``with``; waits for one's own.

    The kernel's own lock (flock) on the file ``path``, which a killed command lets go.

    Raises:
        UserError: the file system has no locks, as some network drives.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            raise UserError(
                f"--output {path.parent}: this file system has no locks ({error.strerror}), without which "
                "commands cannot share a folder; choose a local folder"
            ) from None
        yield
    finally:
        os.close(descriptor)
