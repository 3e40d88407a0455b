"""Slot 5, what is done to the combined gradient before the base optimizer sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from pugdft.optim import tensors


class Normalize(Protocol):
    """Changes the combined gradient in place."""

    def normalize_(self, gradients: Sequence[Tensor]) -> Tensor:
        """Normalise in place; returns ‖h‖ before, a 0-dim tensor that is finite exactly if h is."""
        ...


@dataclass(frozen=True)
class Identity:
    """The gradient as it is."""

    def normalize_(self, gradients: Sequence[Tensor]) -> Tensor:
        return tensors.global_norm(gradients)


@dataclass(frozen=True)
class Unit:
    """One global unit vector: h / (‖h‖ + 1e-12), over all parameter groups.

    The base optimizer adds a coupled weight decay after this, and its momentum sees the unit gradient.
    """

    def normalize_(self, gradients: Sequence[Tensor]) -> Tensor:
        norm = tensors.global_norm(gradients)
        tensors.scale_(gradients, tensors.ratio(1.0, norm))
        return norm


@dataclass(frozen=True)
class UnitEach:
    """Each tensor a unit vector (``scope='tensor'``), or each element its sign (``scope='element'``)."""

    scope: Literal["tensor", "element"] = "tensor"

    def normalize_(self, gradients: Sequence[Tensor]) -> Tensor:
        norms = tensors.tensor_norms(gradients)
        if self.scope == "element":
            for gradient in gradients:
                gradient.sign_()
        else:
            for gradient, norm in zip(gradients, norms, strict=True):
                gradient.mul_(tensors.ratio(1.0, norm))
        return torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))
