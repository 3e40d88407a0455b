"""Slot 1, where the perturbation points: e = ρ · A⊙s / (‖B⊙s‖ + 1e-12).

A direction writes w + e into the parameters. It gets a bitwise copy of the weights and may use the
parameters themselves as scratch, so that a perturbation costs no memory beyond that copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from pugdft.optim import tensors


class Direction(Protocol):
    """Writes w + e into ``parameters``."""

    def perturb_(
        self, parameters: Sequence[Tensor], weights: Sequence[Tensor], gradients: Sequence[Tensor], rho: float
    ) -> Tensor:
        """``parameters ← weights + e`` with e of radius ``rho``.

        Args:
            parameters: hold any values; every element is overwritten.
            weights: w, of the same shapes; not changed.
            gradients: the clean gradient, of the same shapes; not changed.
            rho: the radius at this step.

        Returns:
            ‖e‖ as a 0-dim tensor on the device.
        """
        ...


@dataclass(frozen=True)
class Gradient:
    """Along the gradient: A = B = 1 (SAM, arXiv 2010.01412, eq. 2 with p = 2)."""

    def perturb_(
        self, parameters: Sequence[Tensor], weights: Sequence[Tensor], gradients: Sequence[Tensor], rho: float
    ) -> Tensor:
        norm = tensors.global_norm(gradients)
        factor = tensors.ratio(rho, norm)
        tensors.set_sum_(parameters, weights, gradients, factor)
        return factor * norm


@dataclass(frozen=True)
class WeightedGradient:
    """Along |w|⊙g in a plain L2 ball: A = B = |w| (PUGD, arXiv 2110.00199, eq. 12), so ‖e‖ = ρ.

    Not ASAM's rule, which measures e in the metric of the weights. A weight that is exactly 0 stays.
    """

    def perturb_(
        self, parameters: Sequence[Tensor], weights: Sequence[Tensor], gradients: Sequence[Tensor], rho: float
    ) -> Tensor:
        tensors.set_weighted_(parameters, weights, gradients)
        norm = tensors.global_norm(parameters)
        factor = tensors.ratio(rho, norm)
        tensors.set_sum_(parameters, weights, parameters, factor)
        return factor * norm
