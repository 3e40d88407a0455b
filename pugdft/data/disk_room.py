"""Whether the disk has room for decoded images."""

from __future__ import annotations

import shutil
from pathlib import Path

from pugdft.data.contents import Source
from pugdft.errors import UserError

_SHARE = 0.1

LARGER_DISK = "set PUGDFT_CACHE to a folder on a larger disk"
UNPACK = "unpack them into train/CLASS/*.png and test/CLASS/*.png and give that folder as data.name"


class NoRoom(Exception):
    """The disk would be nearly full with these images."""


def check_room(folder: Path, source: Source, num_bytes: int, keeps_reserve: bool) -> None:
    """See that a source's decoded images fit on the disk of ``folder``.

    Args:
        num_bytes: what is still to be written of them.
        keeps_reserve: whether a tenth of the disk is to stay free, unless the images take less than a tenth
            of what is free.

    Raises:
        NoRoom: there would be no such reserve.
        UserError: they do not fit. A memory-mapped file would find out late, and end the process.
    """
    usage = shutil.disk_usage(folder)
    if not usage.total:  # not every file system can tell
        return
    found = f"{source.name} takes {_gib(num_bytes)} decoded, {_gib(usage.free)} are free in {folder}"
    is_small = num_bytes <= _SHARE * usage.free
    if keeps_reserve and not is_small and usage.free - num_bytes < _SHARE * usage.total:
        raise NoRoom(found)
    if num_bytes > usage.free:
        otherwise = "data.storage=files, which decodes images each time" if source.folder else UNPACK
        raise UserError(f"{found}. Either {LARGER_DISK}, or {otherwise}")


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:,.2f} GiB"
