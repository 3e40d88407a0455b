"""Perturb a part of the weights: masks that any direction takes.

A mask chooses whole tensors, filters the gradient that a direction follows, or cuts the e that it has found.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from pugdft.optim import foreach
from pugdft.optim.context import MethodRule, ParameterInfo, at_least
from pugdft.optim.directions import Ascent, Direction
from pugdft.optim.foreach import Tensors
from pugdft.optim.options import Registry


class Mask(MethodRule):
    """Restrict a perturbation; by default not at all."""

    requires_norm_layers = False
    averages_gradients = False  # it keeps squares of clean gradients

    def chosen(self, parameters: list[Tensor], info: ParameterInfo) -> list[Tensor]:
        """Select those of ``parameters`` that are perturbed."""
        return parameters

    def filtered(self, gradients: Tensors) -> Tensors:
        """The gradients that the direction follows."""
        return gradients

    def cut_(self, at: Ascent, is_last: bool) -> None:
        """Change e, where ``at.parameters`` hold w + e; ``is_last`` of the step's ascents."""


@dataclass(frozen=True)
class RandomPart(Mask):
    """e on a random ``share`` β of the weights, drawn anew at each step, and 1/β times as long there.

    The weight part of ESAM (arXiv 2110.03141): the mean of e over the draws is the whole e. Its code
    draws whole tensors, ours single weights, as the paper says. Both passes stay whole: it saves no time
    here. β = 0.6 and 0.5 are of its runs.
    """

    share: float = 0.6
    bounds: ClassVar = {"share": (1e-6, 1)}

    def cut_(self, at: Ascent, is_last: bool) -> None:
        generators = {p.device: at.draws.generator("mask", p.device) for p in at.parameters}
        for parameter, weight in zip(at.parameters, at.weights, strict=True):
            device = parameter.device
            numbers = torch.rand(parameter.shape, generator=generators[device], device=device)
            _cut_(parameter, weight, numbers < self.share, 1 / self.share if is_last else 1.0)


@dataclass(frozen=True)
class LargestFisher(Mask):
    """e on the ``share`` of the weights with the largest Fisher information, of all tensors together.

    Sparse SAM (SSAM-F, arXiv 2210.05177): e = (ρ·g/‖g‖)⊙m, so e is shorter than ρ. Its Fisher
    information is the mean g² of single images, computed apart; ours that of the batches since the last
    mask, which costs no pass, and one more copy of the parameters. Each ``every``-th perturbed step, the
    first one included, makes a new mask. share = 0.5 is of its runs; ``every`` is ours (theirs: once an
    epoch): try 50 to 1000.
    """

    share: float = 0.5
    every: int = 100
    bounds: ClassVar = {"share": (1e-6, 1), "every": at_least(1)}
    averages_gradients = True

    def cut_(self, at: Ascent, is_last: bool) -> None:
        if at.number == 0:
            self._update(at)
        masks = at.state.tensors.get("mask", {})
        for parameter, weight in zip(at.parameters, at.weights, strict=True):
            if parameter in masks:
                _cut_(parameter, weight, masks[parameter], 1.0)

    def _update(self, at: Ascent) -> None:
        """Add g² to the sums, and make a mask of them when it is due; an overflow changes nothing."""
        finite = torch.isfinite(foreach.global_norm(at.gradients))
        sums = at.state.tensors.setdefault("squares", {})
        masks = at.state.tensors.setdefault("mask", {})
        must_ask = finite.device.type == "cpu" or any(p not in sums for p in at.parameters)
        if must_ask and not finite:  # waits for the device, once a parameter
            return
        for parameter, gradient in zip(at.parameters, at.gradients, strict=True):
            old = sums.get(parameter)
            new = gradient * gradient if old is None else torch.addcmul(old, gradient, gradient)
            sums[parameter] = new if old is None else torch.where(finite.to(old.device), new, old)
        number = at.state.values.get("number", 0)  # of perturbed steps before this one
        at.state.values["number"] = number + 1
        if number % self.every:
            return
        scores = [sums[parameter] for parameter in at.parameters]
        threshold = foreach.smallest_of_largest(scores, self.share)
        for parameter, score in zip(at.parameters, scores, strict=True):
            new, old = score >= threshold.to(score.device), masks.get(parameter)
            known = finite.to(score.device)
            masks[parameter] = new if old is None else torch.where(known, new, old)
            sums[parameter] = torch.where(known, torch.zeros_like(score), score)


@dataclass(frozen=True)
class LargestZ(Mask):
    """Follow, of each tensor's gradient, only the ``share`` of elements that lie farthest from its mean.

    ZSharp (arXiv 2505.02369): m = 1 where |z| exceeds its quantile 1 − share, with z = (g − mean)/deviation
    over the elements of one tensor; e is along g⊙m and as long as without a mask. A tensor keeps one element
    at least. Costs one more copy of the parameters for a moment. share = 0.05 is the paper's.
    """

    share: float = 0.05
    bounds: ClassVar = {"share": (1e-6, 1)}

    def filtered(self, gradients: Tensors) -> Tensors:
        return [self._filtered(gradient) if gradient.numel() else gradient for gradient in gradients]

    def _filtered(self, gradient: Tensor) -> Tensor:
        # The order of |z| is that of |g − mean|, for a tensor has one deviation.
        distances = (gradient - gradient.mean()).abs()
        size = gradient.numel()
        position = (1 - self.share) * (size - 1)
        kept = size if self.share == 1 else max(1, size - 1 - math.floor(position + 1e-9))
        threshold = foreach.smallest_of_largest([distances], kept / size)
        return gradient * (distances >= threshold)  # a product: NaN stays, and the step is skipped


@dataclass(frozen=True)
class NormLayers(Mask):
    """e on the scales and shifts of normalisation layers alone, found by the layers' type (SAM-ON)."""

    requires_norm_layers = True

    def chosen(self, parameters: list[Tensor], info: ParameterInfo) -> list[Tensor]:
        assert info.norm_parameters is not None
        return [parameter for parameter in parameters if parameter in info.norm_parameters]


MASKS: Registry = {
    "random": RandomPart,
    "largest_fisher": LargestFisher,
    "largest_z": LargestZ,
    "norm_layers": NormLayers,
}
"""Name in a recipe to its mask."""


@dataclass(frozen=True)
class Masked(Direction):
    """A direction on a part of the weights."""

    direction: Direction
    mask: Mask

    @property
    def num_ascents(self) -> int:  # type: ignore[override]
        return self.direction.num_ascents

    @property
    def requires_momentum(self) -> bool:  # type: ignore[override]
        return self.direction.requires_momentum

    @property
    def follows_gradient(self) -> bool:  # type: ignore[override]
        return self.direction.follows_gradient

    @property
    def sums_gradients(self) -> bool:  # type: ignore[override]
        return self.direction.sums_gradients

    @property
    def requires_norm_layers(self) -> bool:  # type: ignore[override]
        return self.direction.requires_norm_layers or self.mask.requires_norm_layers

    @property
    def averages_gradients(self) -> bool:  # type: ignore[override]
        return self.direction.averages_gradients or self.mask.averages_gradients

    def chosen(self, parameters: list[Tensor], info: ParameterInfo) -> list[Tensor]:
        return self.mask.chosen(self.direction.chosen(parameters, info), info)

    def perturb_(self, at: Ascent) -> None:
        self.direction.perturb_(replace(at, gradients=self.mask.filtered(at.gradients)))
        self.mask.cut_(at, at.number == self.num_ascents - 1)


def _cut_(parameter: Tensor, weight: Tensor, mask: Tensor, factor: float) -> None:
    """``parameter ← weight + factor · mask ⊙ (parameter − weight)``; a product, so that NaN stays."""
    parameter.sub_(weight).mul_(mask)
    torch.add(weight, parameter, alpha=factor, out=parameter)
