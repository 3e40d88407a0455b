"""Batches of a run: which images, cropped how, for which process, as functions of (seed, epoch, step)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pugdft.data.augment import Augmentation, Drawn
from pugdft.data.image_files import Pixels
from pugdft.data.mixing import Targets
from pugdft.data.seeding import epoch_order
from pugdft.data.transfer import ahead, gathered, onto
from pugdft.data.transforms import ToInput, crop_and_flip, cut_out_
from pugdft.data.workers import ImageWorkers

Batch = tuple[Tensor, Targets]


@dataclass(frozen=True)
class Share:
    """This process among all that train together."""

    rank: int = 0
    world: int = 1

    def of(self, indices: np.ndarray) -> np.ndarray:
        """This process's part of a global batch: every image is in exactly one part."""
        return indices[self.rank :: self.world]


@dataclass(frozen=True)
class Images:
    """Images of a store that belong to one split.

    Attributes:
        pixels: uint8, (stored images, side, side, 3), memory-mapped or decoded from files each time.
        labels: int64, (stored images,).
        indices: which of them are in this split.
        resident: ``pixels`` on the training device, if they fit there.
    """

    pixels: Pixels
    labels: np.ndarray
    indices: np.ndarray
    resident: Tensor | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def gather(self, chosen: np.ndarray, device: torch.device) -> Tensor:
        """Stored images: on the device where they are resident, else in memory, ready for a copy."""
        if self.resident is not None:
            return self.resident[onto(chosen, device)]
        return gathered(self.pixels, chosen, device)

    def waits_for_memory(self, device: torch.device) -> bool:
        """Whether a batch has to be read and copied while the device could be computing."""
        return device.type != "cpu" and self.resident is None


@dataclass(frozen=True)
class _Request:
    """What this process needs of one step: its own images first, then those that they are mixed with.

    Attributes:
        drawn: for the global batch.
        rows: of the global batch.
        chosen: where these images are stored.
        num_own: how many are its own.
    """

    epoch: int
    step: int
    drawn: Drawn
    rows: np.ndarray
    chosen: np.ndarray
    num_own: int


@dataclass(frozen=True)
class _Rows:
    """Images on the device as far as they are done, with what is still to be done to them."""

    pixels: Tensor
    flips: Tensor
    boxes: Tensor | None
    holes: Tensor | None

    def __len__(self) -> int:
        return len(self.pixels)

    @classmethod
    def drawn(cls, pixels: Tensor, drawn: Drawn, rows: np.ndarray, augmentation: Augmentation) -> _Rows:
        """What was drawn for these rows of the batch; a padded crop is done at once."""

        def mine(draws: np.ndarray | None) -> Tensor | None:
            return None if draws is None else onto(draws[rows], pixels.device)

        flips, boxes = onto(drawn.flips[rows], pixels.device), mine(drawn.boxes)
        padding = augmentation.crop_padding
        if boxes is None and (padding or augmentation.flip):
            offsets = onto(drawn.offsets[rows], pixels.device)
            pixels = crop_and_flip(pixels, offsets, flips, padding)
        return cls(pixels, flips, boxes, mine(drawn.holes))


@dataclass(frozen=True)
class TrainingBatches:
    """The training batches of every epoch; images left over at an epoch's end wait for another order.

    Attributes:
        workers: read the images, if these are in files, or single ones are to be augmented.
    """

    images: Images
    to_input: ToInput
    device: torch.device
    share: Share
    batch_size: int
    micro_batch_size: int
    augmentation: Augmentation
    seed: int
    workers: ImageWorkers | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch."""
        return len(self.images) // self.batch_size

    def digests(self) -> dict[str, str]:
        """sha256 (hex) of what the seed decides, the optimizer does not: split, first order, first crops."""
        order = epoch_order(self.seed, 0, len(self.images))
        augmentation = hashlib.sha256((self.augmentation.auto_augment or "").encode())
        for step in range(self.steps_per_epoch):
            for content in self._draw(0, step).content():
                augmentation.update(content)
        return {
            "split_sha256": hashlib.sha256(self.images.indices.tobytes()).hexdigest(),
            "order_sha256": hashlib.sha256(self.images.indices[order].tobytes()).hexdigest(),
            "augmentation_sha256": augmentation.hexdigest(),
        }

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[list[Batch]]:
        """This process's micro-batches of each step of an epoch, from ``first_step`` on."""
        order = epoch_order(self.seed, epoch, len(self.images))
        requests = (
            self._request(order[step * self.batch_size :][: self.batch_size], epoch, step)
            for step in range(first_step, self.steps_per_epoch)
        )
        for request, pixels in self._fetch(requests):
            yield self._batch(request, pixels.to(self.device, non_blocking=True))

    def close(self) -> None:
        """End the workers, if there are any."""
        if self.workers is not None:
            self.workers.close()

    def _draw(self, epoch: int, step: int) -> Drawn:
        # For the global batch, to be shared out, so that the number of processes changes nothing.
        sizes = self.batch_size, self.to_input.stored_size, self.to_input.image_size
        return self.augmentation.draw(self.seed, epoch, step, *sizes)

    def _request(self, positions: np.ndarray, epoch: int, step: int) -> _Request:
        drawn = self._draw(epoch, step)
        rows = own = self.share.of(np.arange(len(positions)))
        if drawn.mix is not None and self.share.world > 1:
            # A batch is mixed with its own reverse, of which other processes have a part.
            rows = np.concatenate([own, len(positions) - 1 - own])
        return _Request(epoch, step, drawn, rows, self.images.indices[positions[rows]], len(own))

    def _fetch(self, requests: Iterator[_Request]) -> Iterator[tuple[_Request, Tensor]]:
        if self.workers is not None:
            return self.workers.fetch(requests)
        fetched = ((each, self.images.gather(each.chosen, self.device)) for each in requests)
        return ahead(fetched) if self.images.waits_for_memory(self.device) else fetched

    def _batch(self, request: _Request, pixels: Tensor) -> list[Batch]:
        drawn, num_own = request.drawn, request.num_own
        rows = _Rows.drawn(pixels, drawn, request.rows, self.augmentation)
        labels = onto(self.images.labels[request.chosen], self.device)
        # As even as can be: a remainder of one image would have no variance for BatchNorm.
        count = -(-num_own // self.micro_batch_size)
        micro_batches = []
        for numbers in np.array_split(np.arange(num_own), count):
            part = slice(numbers[0], numbers[-1] + 1)
            inputs, targets = self._inputs(rows, part), Targets(labels[part])
            if drawn.mix is not None:
                if len(rows) > num_own:
                    others = slice(num_own + part.start, num_own + part.stop)
                    partners, partner_labels = self._inputs(rows, others), labels[others]
                else:
                    others = slice(num_own - part.stop, num_own - part.start)
                    partners = inputs if count == 1 else self._inputs(rows, others)
                    partners, partner_labels = partners.flip(0), labels[others].flip(0)
                inputs = drawn.mix.mixed(inputs, partners)
                targets = Targets(labels[part], partner_labels, drawn.mix.weight)
            micro_batches.append((inputs, targets))
        return micro_batches

    def _inputs(self, rows: _Rows, part: slice) -> Tensor:
        if rows.boxes is None:
            inputs = self.to_input(rows.pixels[part])
        else:
            inputs = self.to_input(rows.pixels[part], rows.boxes[part], rows.flips[part])
        if rows.holes is not None:
            cut_out_(inputs, rows.holes[part], self.augmentation.cutout, self.to_input.stored_size)
        return inputs


@dataclass(frozen=True)
class EvaluationBatches:
    """Every image of a split once, over all processes, unaugmented."""

    images: Images
    to_input: ToInput
    device: torch.device
    share: Share
    batch_size: int

    def __iter__(self) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
        """Positions in the split, inputs and labels of this process's batches."""
        mine = self.share.of(np.arange(len(self.images)))
        parts = (mine[start : start + self.batch_size] for start in range(0, len(mine), self.batch_size))
        fetched = ((part, self.images.gather(self.images.indices[part], self.device)) for part in parts)
        for part, pixels in ahead(fetched) if self.images.waits_for_memory(self.device) else fetched:
            labels = onto(self.images.labels[self.images.indices[part]], self.device)
            yield part, self.to_input(pixels.to(self.device, non_blocking=True)), labels
