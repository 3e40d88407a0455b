"""Random draws for augmentation, made for the global batch, so that the number of processes has no effect."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pugdft.config.schema import ColorJitterSection, RandomErasingSection
from pugdft.data.erasing_and_jitter import Erased, Jitter, draw_erased, draw_jitter
from pugdft.data.rng import Draw, generator
from pugdft.data.transforms import draw_boxes, draw_crops


@dataclass(frozen=True)
class ResizedCrop:
    """A random box of an image: its share of the area, and its width over its height."""

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (0.75, 1.3333)


@dataclass(frozen=True)
class Drawn:
    """The random draws for one batch; one row for each image."""

    offsets: np.ndarray  # of the padded crop, (images, 2), row then column
    flips: np.ndarray  # bool, (images,)
    boxes: np.ndarray | None = None  # of the random resized crop: top, left, height, width, (images, 4)
    holes: np.ndarray | None = None  # centres of cutout's squares, in pixels at stored size, (images, 2)
    mix: Mix | None = None  # of the whole batch
    erased: Erased | None = None
    jitter: Jitter | None = None

    def content(self) -> Iterator[bytes]:
        """Yield all draws as bytes, for a digest."""
        for rows in (self.offsets, self.flips, self.boxes, self.holes):
            if rows is not None:
                yield rows.tobytes()
        if self.mix is not None:
            yield repr(self.mix).encode()
        for part in (self.erased, self.jitter):
            if part is not None:
                yield from (each.tobytes() for each in part.arrays())


@dataclass(frozen=True)
class Augmentation:
    """The augmentation options of the recipe's ``data`` section; turning one on changes no other's draws."""

    crop_padding: int = 0
    padding: str = "black"  # or reflect
    flip: bool = False
    resized_crop: ResizedCrop | None = None
    cutout: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0
    auto_augment: str | None = None
    random_erasing: RandomErasingSection | None = None
    color_jitter: ColorJitterSection | None = None

    def draw(self, seed: int, epoch: int, step: int, size: int, stored_size: int, image_size: int) -> Drawn:
        def stream(draw: Draw) -> np.random.Generator:
            return generator(seed, draw, epoch, step)

        offsets, flips = draw_crops(stream(Draw.AUGMENT), size, self.crop_padding, self.flip)
        boxes = holes = None
        if self.resized_crop is not None:
            scale, ratio = self.resized_crop.scale, self.resized_crop.ratio
            boxes = draw_boxes(stream(Draw.BOX), size, stored_size, scale, ratio)
        if self.cutout:
            holes = stream(Draw.CUTOUT).integers(0, stored_size, (size, 2))
        mix = draw_mix(stream(Draw.MIX), image_size, self.mixup, self.cutmix)
        erased = jitter = None
        if self.random_erasing is not None:
            erased = draw_erased(stream(Draw.ERASE), size, image_size, self.random_erasing)
        if self.color_jitter is not None:
            jitter = draw_jitter(stream(Draw.JITTER), size, self.color_jitter)
        return Drawn(offsets, flips, boxes, holes, mix, erased, jitter)


@dataclass(frozen=True)
class Mix:
    """One draw of mixup or CutMix for a batch."""

    weight: float  # of each image's own label in 0..1; the partner's has the rest
    # Top, bottom, left, right of what the partner gives, in pixels of the input; None for mixup.
    box: tuple[int, int, int, int] | None = None

    def mixed(self, inputs: Tensor, partners: Tensor) -> Tensor:
        """Mix inputs, (batch, 3, side, side), with their partners; CutMix writes into ``inputs``."""
        if self.box is None:
            return torch.lerp(partners, inputs, self.weight)
        top, bottom, left, right = self.box
        inputs[:, :, top:bottom, left:right] = partners[:, :, top:bottom, left:right]
        return inputs


def draw_mix(random: np.random.Generator, side: int, mixup: float, cutmix: float) -> Mix | None:
    """Draw mixup or CutMix for a batch as timm does; if both are on, each with probability one half.

    Mixup (arXiv 1710.09412): the weight is λ ~ Beta(α, α). CutMix (arXiv 1905.04899): a box of area 1 − λ
    with its centre anywhere, clipped at the edge; the weight is the share of the image outside.
    """
    if not mixup and not cutmix:
        return None
    is_cutmix = bool(random.random() < 0.5) if mixup and cutmix else bool(cutmix)
    alpha = cutmix if is_cutmix else mixup
    weight = float(random.beta(alpha, alpha))
    if not is_cutmix:
        return Mix(weight)
    length = int(side * math.sqrt(1 - weight))
    edges = []
    for center in random.integers(0, side, 2):
        start = int(center) - length // 2
        edges += [max(0, start), min(side, start + length)]
    top, bottom, left, right = edges
    return Mix(1 - (bottom - top) * (right - left) / side**2, (top, bottom, left, right))


@dataclass(frozen=True)
class Targets:
    """The labels of a batch, with those of the mixup partners."""

    labels: Tensor  # int64, (images,)
    partners: Tensor | None = None  # labels of the images that they are mixed with, if they are
    weight: float = 1.0  # of ``labels``

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, number: int) -> Targets:
        partners = None if self.partners is None else self.partners[:number]
        return Targets(self.labels[:number], partners, self.weight)

    def loss(self, logits: Tensor, label_smoothing: float, class_weights: Tensor | None = None) -> Tensor:
        """Sum the cross-entropy over the images; a mixed target weighs two cross-entropies."""

        def cross_entropy(labels: Tensor) -> Tensor:
            return functional.cross_entropy(
                logits, labels, class_weights, reduction="sum", label_smoothing=label_smoothing
            )

        loss = cross_entropy(self.labels)
        if self.partners is None:
            return loss
        return self.weight * loss + (1 - self.weight) * cross_entropy(self.partners)

    def correct(self, logits: Tensor) -> Tensor:
        """Count the images whose prediction is the label of larger weight."""
        labels = self.labels if self.partners is None or self.weight >= 0.5 else self.partners
        return (logits.argmax(1) == labels).sum()
