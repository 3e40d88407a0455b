"""Slots 4 and 5: combine the clean gradient g with the perturbed gradient g*, and normalise the result.

With a linear rule a·g + b·g* the second pass can add to the clean gradient in place, or with a = 0 drop it
before. A merging rule needs both gradients, at the price of one more copy of the parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from pugdft.optim import foreach
from pugdft.optim.context import ANY, MethodRule, RuleState, StepContext, at_least
from pugdft.optim.foreach import Tensors
from pugdft.optim.options import Registry, refused
from pugdft.optim.schedules import Number, Schedule, as_schedule


class Normalize:
    """Change the combined gradient in place; by default leave it as it is."""

    def normalize_(self, gradients: Tensors) -> Tensor:
        """Normalise in place; returns ‖h‖ before, a 0-dim tensor that is finite exactly if h is."""
        return foreach.global_norm(gradients)


@dataclass(frozen=True)
class Identity(Normalize):
    """The gradient as it is."""


@dataclass(frozen=True)
class Unit(Normalize):
    """One global unit vector: h / (‖h‖ + 1e-12), over all parameter groups.

    The base optimizer adds a coupled weight decay after this, and its momentum sees the unit gradient.
    """

    def normalize_(self, gradients: Tensors) -> Tensor:
        norm = foreach.global_norm(gradients)
        foreach.scale_(gradients, foreach.ratio(1.0, norm))
        return norm


@dataclass(frozen=True)
class UnitEach(Normalize):
    """Each tensor a unit vector (``scope='tensor'``), or each element its sign (``scope='element'``)."""

    scope: Literal["tensor", "element"] = "tensor"

    def normalize_(self, gradients: Tensors) -> Tensor:
        norms = foreach.tensor_norms(gradients)
        for gradient, norm in zip(gradients, norms, strict=True):
            if self.scope == "element":
                gradient.sign_()
            else:
                gradient.mul_(foreach.ratio(1.0, norm))
        return torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))


@dataclass(frozen=True)
class Correction:
    """What is subtracted from the weights after the base's step: lr · factor · directions."""

    parameters: Tensors
    directions: Tensors
    factor: float


class Combination(MethodRule):
    """Make one gradient h of g and g*. By default h = a·g + b·g*."""

    needs_both_gradients = False  # h is made by merge_, at the price of one more copy of the parameters
    drops_clean = False  # g has no part in h

    def coefficients(self, context: StepContext) -> tuple[float, float]:
        """(a, b) at a two-pass step, with b ≠ 0."""
        return 1.0, 1.0

    def release(self, state: RuleState) -> None:
        """Free, before a second pass, the tensors that this pass is going to replace."""

    def merge_(self, g: Tensors, g_star: Tensors, parameters: Tensors, state: RuleState) -> Correction | None:
        """``g_star ← h``; ``g`` may be overwritten or kept. Gives a correction for after the base's step."""
        raise NotImplementedError

    def reuse_(self, gradients: Tensors, parameters: Tensors, state: RuleState) -> None:
        """Change the gradient of a step of one pass in place."""


@dataclass(frozen=True)
class Weighted(Combination):
    """clean·g + perturbed·g* with fixed coefficients."""

    clean: float
    perturbed: float
    bounds: ClassVar = {"clean": ANY, "perturbed": ANY}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.perturbed == 0:
            raise refused("perturbed", "must not be 0: the second pass would be useless")

    @property
    def drops_clean(self) -> bool:  # type: ignore[override]
        return self.clean == 0

    def coefficients(self, context: StepContext) -> tuple[float, float]:
        return self.clean, self.perturbed


@dataclass(frozen=True)
class Scaled(Combination):
    """scale(t)·g + g*: the scale of Radius-Timing-Scale multiplies the clean gradient only."""

    scale: Schedule

    def coefficients(self, context: StepContext) -> tuple[float, float]:
        return self.scale(context), 1.0


@dataclass(frozen=True)
class RemoveParallel(Combination):
    """h = g* − alpha·(g − ⟨g, g*⟩ g* / ‖g*‖²) (GSAM, arXiv 2203.08065, Algorithm 1; global products)."""

    alpha: float
    bounds: ClassVar = {"alpha": ANY}
    needs_both_gradients = True

    def merge_(self, g: Tensors, g_star: Tensors, parameters: Tensors, state: RuleState) -> Correction | None:
        share = foreach.square_ratio(foreach.dot(g, g_star), foreach.global_norm(g_star))
        foreach.scale_(g_star, 1 + self.alpha * share)
        foreach.add_scaled_(g_star, g, -self.alpha)
        return None


@dataclass(frozen=True)
class ReuseAscent(Combination):
    """Between two-pass steps, g + alpha·(‖g‖/‖v‖)·v with v = g* − proj_g(g*) of the last one.

    Source: LookSAM, arXiv 2203.02714, Algorithm 1; global norms and products.
    """

    alpha: float
    bounds: ClassVar = {"alpha": ANY}
    needs_both_gradients = True

    def release(self, state: RuleState) -> None:
        state.tensors.pop("across", None)

    def merge_(self, g: Tensors, g_star: Tensors, parameters: Tensors, state: RuleState) -> Correction | None:
        share = foreach.square_ratio(foreach.dot(g, g_star), foreach.global_norm(g))
        # The held clean gradient becomes v, so that remembering v costs no copy.
        foreach.set_sum_(g, g_star, g, -share)
        for tensor in g:  # after an overflow, nothing is remembered instead of NaN
            tensor.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        state.tensors["across"] = dict(zip(parameters, g, strict=True))
        return None

    def reuse_(self, gradients: Tensors, parameters: Tensors, state: RuleState) -> None:
        across = state.tensors.get("across", {})
        known = [row for row in zip(gradients, parameters, strict=True) if row[1] in across]
        if known:
            remembered = [across[parameter] for _, parameter in known]
            norm = foreach.global_norm(gradients)
            factor = foreach.ratio(self.alpha * norm, foreach.global_norm(remembered))
            foreach.add_scaled_([gradient for gradient, _ in known], remembered, factor)


@dataclass(frozen=True)
class DecoupledSharpness(Combination):
    """BASE(g), then w ← w − lr·κ·(g* − g), κ = gamma/(1 − gamma) (WSAM, arXiv 2305.15817, Algorithm 1)."""

    gamma: float
    bounds: ClassVar = {"gamma": at_least(0)}
    needs_both_gradients = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gamma >= 1:
            raise refused("gamma", f"must be less than 1, not {self.gamma:g}")

    def merge_(self, g: Tensors, g_star: Tensors, parameters: Tensors, state: RuleState) -> Correction | None:
        foreach.add_scaled_(g_star, g, -1.0)
        for parameter, gradient in zip(parameters, g, strict=True):
            parameter.grad = gradient
        return Correction(parameters, g_star, self.gamma / (1 - self.gamma))


def _scaled(*, scale: Number = 1.0) -> Scaled:
    return Scaled(as_schedule(scale, "scale"))


COMBINATIONS: Registry = {
    "weighted": Weighted,
    "scaled": _scaled,
    "remove_parallel": RemoveParallel,
    "reuse_ascent": ReuseAscent,
    "decoupled_sharpness": DecoupledSharpness,
}

NORMALIZATIONS: Registry = {"identity": Identity, "unit": Unit, "unit_each": UnitEach}
