"""Images in their own files, decoded each time they are wanted; to whoever reads them, an array."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from pugdft.data.contents import Sample
from pugdft.data.decoding import decode
from pugdft.errors import RunFailed, UserError
from pugdft.machine import usable_cores

_REMEDY = (
    "Images that are not kept decoded (data.storage) must stay as they are while a run reads them: "
    "put the file back, and the same command goes on"
)


def cores() -> int:
    """Of this machine, for each process that trains on it."""
    return max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


class ImageFiles:
    """The images of a split, as an array of which no pixel is kept.

    An index gives one image, (side, side, 3); an array of indices or a slice gives theirs, (images, side,
    side, 3), decoded by a thread for each core. In a process that it was sent to there is one thread:
    workers are as many as cores.

    Args:
        files: paths, which must stay as they are for as long as the images are read.
        side: of the decoded images.
        resize_to: as ``decode`` takes it.

    Raises:
        OSError: a file is not there.
        RunFailed: on reading: a file is gone, does not decode, or is another than it was.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, files: Sequence[Path], side: int, resize_to: int | None) -> None:
        self.shape = (len(files), side, side, 3)
        self._resize_to, self._num_threads = resize_to, cores()
        self._files = [str(file) for file in files]  # smaller than paths, and quick to send
        self._stamps = np.array([_stamp(file) for file in self._files], np.int64).reshape(-1, 2)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_num_threads": 1}

    def __len__(self) -> int:
        return len(self._files)

    @property
    def nbytes(self) -> int:
        """What all images would take."""
        return int(np.prod(self.shape, dtype=np.int64))

    def __getitem__(self, key: int | np.integer | slice | np.ndarray) -> np.ndarray:
        if isinstance(key, int | np.integer):
            return self._decoded(int(key))
        chosen = np.arange(len(self))[key]
        out = np.empty((len(chosen), *self.shape[1:]), self.dtype)
        self.read(chosen, out)
        return out

    def read(self, chosen: np.ndarray, out: np.ndarray) -> None:
        """Decode images into the rows of ``out``, uint8, (images, side, side, 3)."""

        def fill(row: int) -> None:
            out[row] = self._decoded(int(chosen[row]))

        if self._num_threads == 1 or len(chosen) == 1:
            for row in range(len(chosen)):
                fill(row)
            return
        with ThreadPoolExecutor(self._num_threads) as pool:  # decoding releases the interpreter lock
            for _ in pool.map(fill, range(len(chosen))):
                pass

    def _decoded(self, index: int) -> np.ndarray:
        file = self._files[index]
        try:
            pixels = decode(Sample(Path(file), 0, file), self._resize_to)
            is_same = _stamp(file) == tuple(self._stamps[index]) and pixels.shape == self.shape[1:]
        except (UserError, OSError) as error:
            reason = f"{file}: {error.strerror}" if isinstance(error, OSError) else str(error)
            raise RunFailed(f"{reason}. {_REMEDY}") from None
        if not is_same:
            # The run's record names the digest of other pixels.
            raise RunFailed(f"{file}: this image has changed since it was first read. {_REMEDY}")
        return pixels


Pixels = np.ndarray | ImageFiles
"""uint8, (images, side, side, 3)."""


def _stamp(file: str) -> tuple[int, int]:
    stat = os.stat(file)
    return stat.st_size, stat.st_mtime_ns
