"""Batches of a run: which images, cropped how, for which process, as functions of (seed, epoch, step)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pugdft.data.seeding import Draw, epoch_order, generator
from pugdft.data.transforms import ToInput, crop_and_flip, draw_crops

Batch = tuple[Tensor, Tensor]


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
        pixels: uint8, (stored images, side, side, 3), memory-mapped.
        labels: int64, (stored images,).
        indices: which of them are in this split.
    """

    pixels: np.ndarray
    labels: np.ndarray
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, positions: np.ndarray, device: torch.device) -> Batch:
        """uint8 pixels and labels at positions of this split, on the device."""
        chosen = self.indices[positions]
        pixels = torch.from_numpy(self.pixels[chosen])
        labels = torch.from_numpy(self.labels[chosen])
        return pixels.to(device, non_blocking=True), labels.to(device, non_blocking=True)


@dataclass(frozen=True)
class TrainingBatches:
    """The training batches of every epoch; images left over at an epoch's end wait for another order."""

    images: Images
    to_input: ToInput
    device: torch.device
    share: Share
    batch_size: int
    micro_batch_size: int
    crop_padding: int
    flip: bool
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch."""
        return len(self.images) // self.batch_size

    def digests(self) -> dict[str, str]:
        """sha256 (hex) of what the seed decides, the optimizer does not: split, first order, first crops."""
        order = epoch_order(self.seed, 0, len(self.images))
        augmentation = hashlib.sha256()
        for step in range(self.steps_per_epoch):
            for drawn in self._draw(0, step, self.batch_size):
                augmentation.update(drawn.tobytes())
        return {
            "split_sha256": hashlib.sha256(self.images.indices.tobytes()).hexdigest(),
            "order_sha256": hashlib.sha256(self.images.indices[order].tobytes()).hexdigest(),
            "augmentation_sha256": augmentation.hexdigest(),
        }

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[list[Batch]]:
        """This process's micro-batches of each step of an epoch, from ``first_step`` on."""
        order = epoch_order(self.seed, epoch, len(self.images))
        for step in range(first_step, self.steps_per_epoch):
            yield self._step(order[step * self.batch_size :][: self.batch_size], epoch, step)

    def _step(self, positions: np.ndarray, epoch: int, step: int) -> list[Batch]:
        # Drawn for the global batch and then shared out, so that the number of processes changes nothing.
        offsets, flips = self._draw(epoch, step, len(positions))
        mine = self.share.of(np.arange(len(positions)))
        pixels, labels = self.images.take(positions[mine], self.device)
        if self.crop_padding or self.flip:
            where = torch.from_numpy(offsets[mine]).to(self.device)
            mirrored = torch.from_numpy(flips[mine]).to(self.device)
            pixels = crop_and_flip(pixels, where, mirrored, self.crop_padding)
        # As even as can be: a remainder of one image would have no variance for BatchNorm.
        count = -(-len(mine) // self.micro_batch_size)
        parts = zip(pixels.tensor_split(count), labels.tensor_split(count), strict=True)
        return [(self.to_input(part), part_labels) for part, part_labels in parts]

    def _draw(self, epoch: int, step: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        random = generator(self.seed, Draw.AUGMENT, epoch, step)
        return draw_crops(random, size, self.crop_padding, self.flip)


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
        for start in range(0, len(mine), self.batch_size):
            positions = mine[start : start + self.batch_size]
            pixels, labels = self.images.take(positions, self.device)
            yield positions, self.to_input(pixels), labels
