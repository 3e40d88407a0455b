"""Batches for training and evaluation: gathered, copied to the device, augmented, resized.

Reading back from an accelerator, or copying from pageable memory, waits for all the work before it. Here
everything goes one way, through pinned memory, and the host runs ahead; or images stay on the device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from pugdft.data.augment import Augmentation, Drawn, Targets
from pugdft.data.cache import ImageFiles, Pixels
from pugdft.data.erasing_and_jitter import Erased, Jitter
from pugdft.data.rng import epoch_order
from pugdft.data.transforms import ToInput, crop_and_flip, cut_out_, is_pinned_for, onto
from pugdft.data.workers import ImageRequest, ImageWorkers

Item = TypeVar("Item")

RESIDENT_SHARE = 0.25
"""Of an accelerator's free memory that images may take; the rest is for the model and its activations."""

_CHUNK_BYTES = 64 * 2**20


def gathered(rows: Pixels, chosen: np.ndarray, device: torch.device) -> Tensor:
    """Gather ``rows[chosen]`` into memory from which copies to the device are fastest."""
    out = torch.empty(
        (len(chosen), *rows.shape[1:]),
        dtype=torch.from_numpy(np.empty(0, rows.dtype)).dtype,
        pin_memory=is_pinned_for(device),
    )
    if isinstance(rows, ImageFiles):
        rows.read(chosen, out.numpy())
        return out
    np.take(rows, chosen, axis=0, out=out.numpy(), mode="clip")  # the mode that needs no second buffer
    return out


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Iterate over ``items`` in order; a thread prepares the next one meanwhile."""
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="pugdft-ahead") as pool:
        coming = pool.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, items, end)
            yield item  # type: ignore[misc]


def free_device_bytes(device: torch.device) -> int:
    """Free bytes of an accelerator; 0 on a CPU or where it cannot be measured."""
    if device.type not in ("cuda", "xpu"):
        return 0
    return int(getattr(torch, device.type).mem_get_info(device)[0])


def resident(images: Pixels, device: torch.device, budget: float) -> Tensor | None:
    """Copy all images to the device if they are decoded and fit into ``budget`` bytes; else None."""
    if isinstance(images, ImageFiles) or images.nbytes > budget:
        return None
    whole = torch.empty(images.shape, dtype=torch.uint8, device=device)
    step = max(1, _CHUNK_BYTES * len(images) // max(1, images.nbytes))
    for start in range(0, len(images), step):
        whole[start : start + step] = torch.from_numpy(np.array(images[start : start + step]))
    return whole


def even_parts(num_images: int, most: int) -> list[slice]:
    """Divide images into the fewest parts of ``most`` at most, of as equal sizes as can be."""
    # A remainder of one image would have no variance for BatchNorm.
    parts = np.array_split(np.arange(num_images), -(-num_images // most))
    return [slice(int(part[0]), int(part[-1]) + 1) for part in parts]


Batch = tuple[Tensor, Targets]


@dataclass(frozen=True)
class Share:
    """This process's rank among all training processes."""

    rank: int = 0
    world: int = 1

    def of(self, indices: np.ndarray) -> np.ndarray:
        """Select this process's part of a global batch; each image is in exactly one part."""
        return indices[self.rank :: self.world]


@dataclass(frozen=True)
class Images:
    """Images of a store that belong to one split."""

    pixels: Pixels  # uint8, (stored images, side, side, 3), memory-mapped or decoded from files each time
    labels: np.ndarray  # int64, (stored images,)
    indices: np.ndarray  # which of them are in this split
    resident: Tensor | None = None  # ``pixels`` on the training device, if they fit there

    def __len__(self) -> int:
        return len(self.indices)

    def gather(self, chosen: np.ndarray, device: torch.device) -> Tensor:
        """Stored images: on the device where they are resident, else in memory, ready for a copy."""
        if self.resident is not None:
            return self.resident[onto(chosen, device)]
        return gathered(self.pixels, chosen, device)

    def waits_for_memory(self, device: torch.device) -> bool:
        """Return whether a batch is read and copied while the device could be computing."""
        return device.type != "cpu" and self.resident is None


@dataclass(frozen=True)
class _Rows:
    """Images on the device with the augmentations that remain to be applied."""

    pixels: Tensor
    flips: Tensor
    boxes: Tensor | None
    holes: Tensor | None
    erased: Erased | None
    jitter: Jitter | None

    def __len__(self) -> int:
        return len(self.pixels)

    @classmethod
    def drawn(cls, pixels: Tensor, request: ImageRequest, augmentation: Augmentation) -> _Rows:
        """Select the draws of a request's rows; apply a padded crop at once."""
        drawn, rows, device = request.drawn, request.rows, pixels.device
        boxes = None if drawn.boxes is None else onto(drawn.boxes[rows], device)
        holes = None if drawn.holes is None else onto(drawn.holes[rows], device)
        flips, padding = onto(drawn.flips[rows], device), augmentation.crop_padding
        if boxes is None and (padding or augmentation.flip):
            offsets, mirrored = onto(drawn.offsets[rows], device), augmentation.padding == "reflect"
            pixels = crop_and_flip(pixels, offsets, flips, padding, mirrored)
        erased, jitter = drawn.erased and drawn.erased.of(rows), drawn.jitter and drawn.jitter.of(rows)
        return cls(pixels, flips, boxes, holes, erased, jitter)


@dataclass(frozen=True)
class TrainingBatches:
    """The training batches of each epoch; an incomplete last batch is dropped."""

    images: Images
    to_input: ToInput
    device: torch.device
    share: Share
    batch_size: int
    micro_batch_size: int
    augmentation: Augmentation
    seed: int
    workers: ImageWorkers | None = None  # if the images are in files, or single ones are to be augmented

    @property
    def steps_per_epoch(self) -> int:
        return len(self.images) // self.batch_size

    def digests(self) -> dict[str, str]:
        """Digest what depends on the seed alone: split, order and crops of the first epoch."""
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
        fetched: Iterator[tuple[ImageRequest, Tensor]]
        if self.workers is not None:
            fetched = self.workers.fetch(requests)
        else:
            fetched = ((each, self.images.gather(each.chosen, self.device)) for each in requests)
            fetched = ahead(fetched) if self.images.waits_for_memory(self.device) else fetched
        for request, pixels in fetched:
            yield self._batch(request, pixels.to(self.device, non_blocking=True))

    def close(self) -> None:
        if self.workers is not None:
            self.workers.close()

    def _draw(self, epoch: int, step: int) -> Drawn:
        # For the global batch, to be shared out, so that the number of processes changes nothing.
        sizes = self.batch_size, self.to_input.stored_size, self.to_input.image_size
        return self.augmentation.draw(self.seed, epoch, step, *sizes)

    def _request(self, positions: np.ndarray, epoch: int, step: int) -> ImageRequest:
        drawn = self._draw(epoch, step)
        rows = own = self.share.of(np.arange(len(positions)))
        if drawn.mix is not None and self.share.world > 1:
            # A batch is mixed with its own reverse; other processes have a part of it.
            rows = np.concatenate([own, len(positions) - 1 - own])
        return ImageRequest(epoch, step, drawn, rows, self.images.indices[positions[rows]], len(own))

    def _batch(self, request: ImageRequest, pixels: Tensor) -> list[Batch]:
        drawn, num_own = request.drawn, request.num_own
        rows = _Rows.drawn(pixels, request, self.augmentation)
        labels = onto(self.images.labels[request.chosen], self.device)
        parts, micro_batches = even_parts(num_own, self.micro_batch_size), []
        for part in parts:
            inputs, targets = self._inputs(rows, part), Targets(labels[part])
            if drawn.mix is not None:
                if len(rows) > num_own:
                    others = slice(num_own + part.start, num_own + part.stop)
                    partners, partner_labels = self._inputs(rows, others), labels[others]
                else:
                    others = slice(num_own - part.stop, num_own - part.start)
                    partners = inputs if len(parts) == 1 else self._inputs(rows, others)
                    partners, partner_labels = partners.flip(0), labels[others].flip(0)
                inputs = drawn.mix.mixed(inputs, partners)
                targets = Targets(labels[part], partner_labels, drawn.mix.weight)
            micro_batches.append((inputs, targets))
        return micro_batches

    def _inputs(self, rows: _Rows, part: slice) -> Tensor:
        boxes = None if rows.boxes is None else rows.boxes[part]
        pixels = rows.pixels[part]
        if rows.jitter is not None:
            pixels = rows.jitter.applied(pixels, part.start)
        inputs = self.to_input(pixels, boxes, rows.flips[part])
        if rows.holes is not None:
            cut_out_(inputs, rows.holes[part], self.augmentation.cutout, self.to_input.stored_size)
        if rows.erased is not None:
            rows.erased.apply_(inputs, part.start)
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
