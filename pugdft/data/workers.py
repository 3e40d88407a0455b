"""Decode image files and augment single images in worker processes.

The result depends on (seed, epoch, step, place in the batch), never on the process. Workers are forked from
a fork server, which has neither threads nor a device, and live through all epochs.
"""

from __future__ import annotations

import atexit
import mmap
import multiprocessing
import os
import random
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pugdft.data.augment import Drawn
from pugdft.data.auto_augment import Transform
from pugdft.data.cache import Pixels
from pugdft.data.rng import global_generators_kept, image_seeds
from pugdft.errors import RunFailed


@dataclass(frozen=True)
class ImageRequest:
    """The images that this process needs for one step: its own, then their mixup partners."""

    epoch: int
    step: int
    drawn: Drawn  # for the global batch
    rows: np.ndarray  # of the global batch
    chosen: np.ndarray  # where these images are stored
    num_own: int  # how many are its own


class _Augmented(Dataset[Tensor | RunFailed]):
    """uint8 images, indexed by requests, augmented one by one."""

    def __init__(self, pixels: Pixels, seed: int, make: Callable[[], Transform] | None) -> None:
        self.pixels, self.seed, self._make = pixels, seed, make
        self._transform: Transform | None = None

    def __getstate__(self) -> dict[str, Any]:
        pixels = self.pixels
        if isinstance(pixels, np.memmap) and isinstance(pixels.base, mmap.mmap):
            # A process maps the file anew: pickled, this would be all images.
            where = (pixels.filename, pixels.dtype, "r", pixels.offset, pixels.shape)
            return {**vars(self), "pixels": None, "where": where, "_transform": None}
        return {**vars(self), "_transform": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        where = state.pop("where", None)
        vars(self).update(state)
        if where is not None:
            self.pixels = np.memmap(*where)

    def __getitem__(self, request: tuple[int, int, np.ndarray, np.ndarray]) -> Tensor | RunFailed:
        epoch, step, rows, chosen = request
        try:
            out = self.pixels[chosen]
        except RunFailed as error:
            return error  # raised, it would come out of its process as a traceback
        if self._make is not None:
            self._transform = self._transform or self._make()
            with global_generators_kept():
                for place, row in enumerate(rows):
                    first, second = image_seeds(self.seed, epoch, step, int(row))
                    random.seed(first)
                    np.random.seed(second)
                    out[place] = self._transform(Image.fromarray(out[place]))
        return torch.from_numpy(out)


class _Requests:
    """A sampler over the requests of the current epoch."""

    coming: Iterable[Any] = ()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.coming)


class ImageWorkers:
    """Read and augment the images of each request, some requests ahead."""

    def __init__(
        self,
        pixels: Pixels,  # uint8, (stored images, side, side, 3); memory-mapped, in files, or small
        seed: int,
        make: Callable[[], Transform] | None,  # gives the augmentation; picklable
        num_workers: int,  # processes; 0 does the work here
        pin_memory: bool = False,  # whether images go to a device that copies from pinned memory
    ) -> None:
        self._requests = _Requests()
        self._options: dict[str, Any] = {"num_workers": num_workers, "pin_memory": pin_memory}
        self._dataset = _Augmented(pixels, seed, make)
        self._loader: DataLoader[Tensor | RunFailed] | None = None

    def fetch(self, requests: Iterator[ImageRequest]) -> Iterator[tuple[ImageRequest, Tensor]]:
        """Yield each request with its images, uint8, (rows, side, side, 3); RunFailed if one is lost."""
        under_way: deque[ImageRequest] = deque()

        def tasks() -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
            for request in requests:
                under_way.append(request)
                yield request.epoch, request.step, request.rows, request.chosen

        self._requests.coming = tasks()
        if self._loader is None:
            self._loader = self._started()
        for pixels in self._loader:
            if isinstance(pixels, RunFailed):
                raise pixels
            yield under_way.popleft(), pixels

    def close(self) -> None:
        """End the processes; another ``fetch`` would start new ones."""
        loader, self._loader = self._loader, None
        atexit.unregister(self.close)
        iterator: Any = None if loader is None else loader._iterator
        if iterator is not None:
            iterator._shutdown_workers()

    def _started(self) -> DataLoader[Tensor | RunFailed]:
        options = self._options
        if options["num_workers"]:
            methods = multiprocessing.get_all_start_methods()
            context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
            if "forkserver" in methods:
                context.set_forkserver_preload([__name__, "timm.data.auto_augment"])
                _start_fork_server()
            options = options | {
                "multiprocessing_context": context,
                "persistent_workers": True,
                "worker_init_fn": _live_as_long_as_the_run,
            }
        atexit.register(self.close)
        return DataLoader(
            self._dataset,
            batch_size=None,
            sampler=self._requests,
            generator=torch.Generator(),  # torch's own is not touched
            **options,
        )


def _start_fork_server() -> None:
    """Start the fork server with SIGTERM blocked: a scheduler may signal the whole process group."""
    resource_tracker.ensure_running()  # it unblocks the signal, so it has its turn before
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    with ExitStack() as stack:
        stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, before)
        forkserver.ensure_running()


def _live_as_long_as_the_run(worker: int) -> None:
    """Ignore signals in a worker; end it when the run's process is gone: torch watches the fork server."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    run = multiprocessing.parent_process()
    assert run is not None

    def end_with_the_run() -> None:
        run.join()
        os._exit(1)

    threading.Thread(target=end_with_the_run, daemon=True).start()
