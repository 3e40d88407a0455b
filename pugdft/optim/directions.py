"""Slot 1: compute the perturbation e = ρ · A⊙s / (‖B⊙s‖ + 1e-12).

A direction writes w + e into the parameters. It is given a bitwise copy of the weights and may use the
parameters themselves as scratch, so that a perturbation costs no memory beyond that copy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from pugdft.optim import foreach
from pugdft.optim.context import ANY, Draws, MethodRule, ParameterInfo, RuleState, at_least
from pugdft.optim.foreach import Tensors
from pugdft.optim.options import Registry


@dataclass(frozen=True)
class Ascent:
    """What a direction works with; lists of tensors of the same shapes.

    ``parameters`` hold w at the first ascent, the last ascent's result at a later one; the result goes there.
    """

    parameters: Tensors
    weights: Tensors  # w; not to be changed
    gradients: Tensors  # at the present point; not to be changed
    rho: float | Tensor
    info: ParameterInfo
    state: RuleState
    base_state: Mapping[Tensor, Mapping[str, Any]]
    draws: Draws = field(default=Draws(0, 0))
    number: int = 0  # of the ascents of this step, from 0


class Direction(MethodRule, ABC):
    """Write w + e into the parameters; by default all of them are perturbed, by one ascent."""

    num_ascents = 1  # passes that it takes to find e
    requires_momentum = False  # e follows the base's momentum
    requires_norm_layers = False  # only the parameters of normalisation layers are perturbed
    averages_gradients = False  # it keeps a running mean of clean gradients
    follows_gradient = True  # e depends on the gradient
    sums_gradients = False  # the gradients at all its points make the update, not the last one alone

    def chosen(self, parameters: list[Tensor], info: ParameterInfo) -> list[Tensor]:
        """Select those of ``parameters`` that are perturbed."""
        return parameters

    @abstractmethod
    def perturb_(self, at: Ascent) -> None:
        """``at.parameters ← at.weights + e`` with e of radius ``at.rho``."""


@dataclass(frozen=True)
class Gradient(Direction):
    """Along the gradient: A = B = 1 (SAM, arXiv 2010.01412, eq. 2 with p = 2)."""

    def perturb_(self, at: Ascent) -> None:
        factor = foreach.ratio(at.rho, foreach.global_norm(at.gradients))
        foreach.move_(at.parameters, at.weights, at.gradients, factor)


@dataclass(frozen=True)
class WeightedGradient(Direction):
    """Along |w|⊙g in a plain L2 ball: A = B = |w| (PUGD, arXiv 2110.00199, eq. 12), so ‖e‖ = ρ.

    Not ASAM's rule, which measures e in the metric of the weights. A weight that is exactly 0 stays.
    """

    def perturb_(self, at: Ascent) -> None:
        norm = foreach.set_weighted_(at.parameters, at.weights, at.gradients)
        foreach.set_sum_(at.parameters, at.weights, at.parameters, foreach.ratio(at.rho, norm))


@dataclass(frozen=True)
class AdaptiveGradient(Direction):
    """Along T²⊙g, measured as ‖T⊙g‖: A = T², B = T (ASAM, arXiv 2102.11600, eq. 8).

    T = |w| + eta for tensors whose name contains ``weight`` and 1 for the others; without names, tensors of
    two or more dimensions count as weights. ``bias_rule='all'`` is the common port: T = |w| everywhere.
    ``norm_layers_only`` restricts the perturbation to normalisation layers (SAM-ON, arXiv 2306.04226).
    """

    eta: float = 0.01
    bias_rule: Literal["paper", "all"] = "paper"
    norm_layers_only: bool = False
    bounds: ClassVar = {"eta": at_least(0)}

    @property
    def requires_norm_layers(self) -> bool:  # type: ignore[override]
        return self.norm_layers_only

    def chosen(self, parameters: list[Tensor], info: ParameterInfo) -> list[Tensor]:
        if not self.norm_layers_only:
            return parameters
        assert info.norm_parameters is not None
        return [parameter for parameter in parameters if parameter in info.norm_parameters]

    def perturb_(self, at: Ascent) -> None:
        norm = self._set(at, 2)
        foreach.set_sum_(at.parameters, at.weights, at.parameters, foreach.ratio(at.rho, norm))

    def scales(self, weights: Mapping[str, Tensor]) -> list[Tensor]:
        """T of each named tensor: a perturbation of this direction has ‖e / T‖ = ρ."""
        starts = [weight.detach() for weight in weights.values()]
        tensors, ones = list(map(torch.empty_like, starts)), list(map(torch.ones_like, starts))
        info = ParameterInfo(dict(zip(tensors, weights, strict=True)))
        self._set(Ascent(tensors, starts, ones, 1.0, info, RuleState(), {}), 1)
        return tensors

    def _set(self, at: Ascent, power: int) -> Tensor:
        """``at.parameters ← T^power ⊙ at.gradients``; gives ‖T ⊙ at.gradients‖."""
        every = list(zip(at.parameters, at.weights, at.gradients, strict=True))
        adaptive, others = list(every), []
        if self.bias_rule == "paper":
            names = {p: at.info.names.get(p, "weight" if p.dim() >= 2 else "") for p in at.parameters}
            adaptive = [row for row in every if "weight" in names[row[0]]]
            others = [row for row in every if "weight" not in names[row[0]]]
        norms = list[Tensor]()
        if adaptive:
            targets, starts, slopes = ([row[column] for row in adaptive] for column in range(3))
            norms.append(self._set_adaptive(targets, starts, slopes, power))
        if others:
            foreach.copy_([row[0] for row in others], [row[2] for row in others])
            norms.append(foreach.global_norm([row[2] for row in others]))
        return torch.hypot(norms[0], norms[1].to(norms[0])) if len(norms) == 2 else norms[0]

    def _set_adaptive(self, targets: Tensors, weights: Tensors, gradients: Tensors, power: int) -> Tensor:
        """``targets ← T^power ⊙ gradients`` where T is not 1; gives ‖T ⊙ gradients‖."""
        eta = self.eta if self.bias_rule == "paper" else 0.0
        return foreach.set_weighted_(targets, weights, gradients, eta, power)


@dataclass(frozen=True)
class LayerwiseGradient(AdaptiveGradient):
    """As :class:`AdaptiveGradient` with one T for each tensor, its length ‖w‖ (arXiv 2306.04226, Table 10).

    ``eta`` has no part in it.
    """

    def _set_adaptive(self, targets: Tensors, weights: Tensors, gradients: Tensors, power: int) -> Tensor:
        for target, gradient, norm in zip(targets, gradients, foreach.tensor_norms(weights), strict=True):
            torch.mul(gradient, norm**power, out=target)
        return foreach.dot(targets, gradients).sqrt() if power == 2 else foreach.global_norm(targets)


@dataclass(frozen=True)
class FriendlyGradient(Direction):
    """Along s = g − sigma·m with m = EMA(g) of rate ``decay`` (F-SAM, arXiv 2403.12350, eq. 7 and 8).

    m is the value before this step's update, which uses the raw g; the first step is plain SAM with m = g.
    """

    sigma: float = 1.0
    decay: float = 0.9
    bounds: ClassVar = {"sigma": ANY, "decay": (0, 1)}
    averages_gradients = True

    def perturb_(self, at: Ascent) -> None:
        averages = at.state.tensors.setdefault("average", {})
        rows = list(zip(at.parameters, at.gradients, strict=True))
        known = [row for row in rows if row[0] in averages]
        parameters, gradients = [row[0] for row in known], [row[1] for row in known]
        foreach.set_sum_(parameters, gradients, [averages[p] for p in parameters], -self.sigma)
        new = [row for row in rows if row[0] not in averages]
        foreach.copy_([row[0] for row in new], [row[1] for row in new])
        norm = _rescale_(at)
        # Averages are finite, so the norm of g − sigma·m is finite exactly if g is.
        _update_averages(averages, at, self.decay, torch.isfinite(norm))


@dataclass(frozen=True)
class AveragedGradient(Direction):
    """Along d = (1 − theta)·d + theta·g, g included; d starts as g (VaSSO, arXiv 2309.15639, eq. 5)."""

    theta: float = 0.4
    bounds: ClassVar = {"theta": (0, 1)}
    averages_gradients = True

    def perturb_(self, at: Ascent) -> None:
        averages = at.state.tensors.setdefault("average", {})
        _update_averages(averages, at, 1 - self.theta, torch.isfinite(foreach.global_norm(at.gradients)))
        # Before any finite gradient there is no average; the step is going to be skipped.
        direction = [averages.get(p, g) for p, g in zip(at.parameters, at.gradients, strict=True)]
        factor = foreach.ratio(at.rho, foreach.global_norm(direction))
        foreach.move_(at.parameters, at.weights, direction, factor)


@dataclass(frozen=True)
class ClippedAscent(Direction):
    """N steps e ← clip(e + inner_lr·g) to a ball of radius ρ (AMP, arXiv 2010.04925, Algorithm 1).

    The paper's ball is global; its code clips each tensor by itself (``scope='tensor'``).
    """

    inner_lr: float = 1.0
    num_ascents: int = 1
    scope: Literal["global", "tensor"] = "global"
    bounds: ClassVar = {"inner_lr": at_least(0), "num_ascents": at_least(1)}

    def perturb_(self, at: Ascent) -> None:
        # e is what the last ascent left: the difference to w, exact enough for a step of a search.
        foreach.add_scaled_(at.parameters, at.weights, -1.0)
        foreach.add_scaled_(at.parameters, at.gradients, self.inner_lr)
        if self.scope == "global":
            foreach.clip_norm_(at.parameters, at.rho, foreach.global_norm(at.parameters))
        else:
            for parameter, norm in zip(at.parameters, foreach.tensor_norms(at.parameters), strict=True):
                foreach.clip_norm_([parameter], at.rho, norm)
        foreach.set_sum_(at.parameters, at.weights, at.parameters, 1.0)


@dataclass(frozen=True)
class MultiStep(Direction):
    """k ascents, each along its own gradient: e ← e + (ρ/k)·g(w + e)/‖g(w + e)‖ (arXiv 2307.16704).

    So ‖e‖ ≤ ρ for every k, and k = 1 is ``gradient``.
    """

    num_ascents: int = 2
    bounds: ClassVar = {"num_ascents": at_least(1)}

    def perturb_(self, at: Ascent) -> None:
        factor = foreach.ratio(at.rho / self.num_ascents, foreach.global_norm(at.gradients))
        foreach.add_scaled_(at.parameters, at.gradients, factor)


@dataclass(frozen=True)
class Lookbehind(MultiStep):
    """k ascents of length ρ each, whose gradients all make the update (arXiv 2307.16704)."""

    sums_gradients = True

    def perturb_(self, at: Ascent) -> None:
        factor = foreach.ratio(at.rho, foreach.global_norm(at.gradients))
        foreach.add_scaled_(at.parameters, at.gradients, factor)


@dataclass(frozen=True)
class AgainstMomentum(Direction):
    """Along −v, the base's momentum (Momentum-SAM, arXiv 2401.12033, eq. 4); e = 0 at first."""

    requires_momentum = True

    def perturb_(self, at: Ascent) -> None:
        states = [at.base_state.get(parameter, {}) for parameter in at.parameters]
        momentum = [state.get("momentum_buffer", state.get("exp_avg")) for state in states]
        moving = [row for row in zip(at.parameters, at.weights, momentum, strict=True) if row[2] is not None]
        if moving:
            parameters, weights, velocity = map(list, zip(*moving, strict=True))
            factor = foreach.ratio(-at.rho, foreach.global_norm(velocity))
            foreach.set_sum_(parameters, weights, velocity, factor)


@dataclass(frozen=True)
class FilterNoise(Direction):
    """Along Gaussian noise: e ~ N(0, ρ²·‖w_row‖²/n) for each row of n weights (Flat-LoRA, arXiv 2409.14396).

    A row is a filter, or what feeds one unit; a vector is one row. So ‖e‖ is about ρ·‖w‖ in each row, and a
    row of zeros stays.
    """

    follows_gradient = False

    def perturb_(self, at: Ascent) -> None:
        generators = {p.device: at.draws.generator("noise", p.device) for p in at.parameters}
        foreach.set_noise_(at.parameters, at.weights, generators)
        foreach.set_sum_(at.parameters, at.weights, at.parameters, at.rho)


DIRECTIONS: Registry = {
    "gradient": Gradient,
    "weighted_gradient": WeightedGradient,
    "adaptive_gradient": AdaptiveGradient,
    "layerwise_gradient": LayerwiseGradient,
    "friendly_gradient": FriendlyGradient,
    "averaged_gradient": AveragedGradient,
    "clipped_ascent": ClippedAscent,
    "multi_step": MultiStep,
    "filter_noise": FilterNoise,
}


def _rescale_(at: Ascent) -> Tensor:
    """Make the direction that the parameters hold one of length ρ, and add the weights; gives its norm."""
    norm = foreach.global_norm(at.parameters)
    foreach.set_sum_(at.parameters, at.weights, at.parameters, foreach.ratio(at.rho, norm))
    return norm


def _update_averages(averages: dict[Tensor, Tensor], at: Ascent, decay: float, finite: Tensor) -> None:
    """average ← decay·average + (1 − decay)·g; a parameter's first average is its g.

    A gradient that is not ``finite`` changes nothing, for an average would carry it into every later step.
    """
    on_cpu = finite.device.type == "cpu"
    if on_cpu and not finite:
        return
    for parameter, gradient in zip(at.parameters, at.gradients, strict=True):
        if parameter not in averages and bool(finite):  # waits for the device, once a parameter
            averages[parameter] = gradient.clone()
    known = [row for row in zip(at.parameters, at.gradients, strict=True) if row[0] in averages]
    means, gradients = [averages[parameter] for parameter, _ in known], [gradient for _, gradient in known]
    if on_cpu:
        foreach.average_(means, gradients, 1 - decay)
    else:  # chosen on the device, so that nothing waits for it
        for parameter, gradient in known:
            new = torch.lerp(averages[parameter], gradient, 1 - decay)
            averages[parameter] = torch.where(finite, new, averages[parameter])
