"""Mixup and CutMix: a batch mixed with its own reverse, and the targets that follow from it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Mix:
    """How a batch is mixed with its partners.

    Attributes:
        weight: of each image's own label in 0..1; the partner's has the rest.
        box: top, bottom, left, right of what comes from the partner, in pixels of the input; None: all of
            both images, in these proportions.
    """

    weight: float
    box: tuple[int, int, int, int] | None = None

    def mixed(self, inputs: Tensor, partners: Tensor) -> Tensor:
        """Inputs, (batch, 3, side, side), mixed with as many partners; CutMix writes into ``inputs``."""
        if self.box is None:
            return torch.lerp(partners, inputs, self.weight)
        top, bottom, left, right = self.box
        inputs[:, :, top:bottom, left:right] = partners[:, :, top:bottom, left:right]
        return inputs


def draw_mix(random: np.random.Generator, side: int, mixup: float, cutmix: float) -> Mix | None:
    """One draw for a batch, as timm's; with both alphas above 0, either by a fair coin.

    Mixup (arXiv 1710.09412): λ ~ Beta(α, α) is the weight.
    CutMix (arXiv 1905.04899): a box of area 1 − λ, its centre anywhere, clipped at the edge; the weight is
    the share of the image outside of what is left of it.
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
    """What a batch should be taken for.

    Attributes:
        labels: int64, (images,).
        partners: labels of the images that they are mixed with, if they are.
        weight: of ``labels``.
    """

    labels: Tensor
    partners: Tensor | None = None
    weight: float = 1.0

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, number: int) -> Targets:
        """Those of the first images."""
        partners = None if self.partners is None else self.partners[:number]
        return Targets(self.labels[:number], partners, self.weight)

    def loss(self, logits: Tensor, label_smoothing: float) -> Tensor:
        """Cross-entropy, summed over the images; that of a mixed target is the mixture of two."""
        loss = self._cross_entropy(logits, self.labels, label_smoothing)
        if self.partners is None:
            return loss
        other = self._cross_entropy(logits, self.partners, label_smoothing)
        return self.weight * loss + (1 - self.weight) * other

    def correct(self, logits: Tensor) -> Tensor:
        """How many images are taken for the label of larger weight."""
        labels = self.labels if self.partners is None or self.weight >= 0.5 else self.partners
        return (logits.argmax(1) == labels).sum()

    @staticmethod
    def _cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
        return functional.cross_entropy(logits, labels, reduction="sum", label_smoothing=label_smoothing)
