"""A cell belongs to one process at a time, whichever of several commands on one folder started it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pugdft.errors import UserError

_FOLDER = ".claims"


@contextmanager
def claimed(folder: Path) -> Iterator[int | None]:
    """The descriptor of the lock on a cell's folder, or None if somebody else has it.

    The kernel's own lock (flock) and not a file that says "locked": it ends with its last holder, however
    that ended, so a killed command leaves nothing stale. A child that inherits the descriptor goes on
    holding it after its parent was killed, so a cell still at work is never started a second time.
    """
    locks = folder.parent / _FOLDER
    locks.mkdir(exist_ok=True)
    descriptor = os.open(locks / folder.name, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        except OSError as error:
            raise UserError(
                f"--output {folder.parent}: this file system has no locks ({error.strerror}), by which "
                "several commands share a folder; choose a folder on another one"
            ) from None
        else:
            yield descriptor
    finally:
        os.close(descriptor)
