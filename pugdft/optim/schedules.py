"""Slot 2: compute radii and scales as functions of the progress of the training.

``sin``, ``cos`` and their reciprocals ``isin``, ``icos`` are those of When and How Much to Perturb?
Radius-Timing-Scale, 2025, with x = p·π/2 for the progress p of the training.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from pugdft.optim import foreach
from pugdft.optim.context import ANY, MethodRule, StepContext, at_least
from pugdft.optim.foreach import Tensors
from pugdft.optim.options import Registry, build, refused, require

Number = float | Mapping[str, Any]
"""What a recipe may say: a number, or a schedule such as ``{schedule: icos, min: 0.5, max: 2}``."""


class Schedule(MethodRule, ABC):
    """A number at a step."""

    sees_gradient = False  # the number depends on the clean gradient: a radius only

    @abstractmethod
    def __call__(self, context: StepContext) -> float: ...

    def radius(self, context: StepContext, gradients: Tensors) -> float | Tensor:
        """Radius at a step with these clean gradients; a 0-dim tensor where they decide."""
        return self(context)


@dataclass(frozen=True)
class Constant(Schedule):
    """The same number at every step."""

    value: float
    bounds: ClassVar = {"value": ANY}

    def __call__(self, context: StepContext) -> float:
        return self.value


@dataclass(frozen=True, kw_only=True)
class Linear(Schedule):
    """From start to end in proportion to the progress."""

    start: float
    end: float
    bounds: ClassVar = {"start": ANY, "end": ANY}

    def __call__(self, context: StepContext) -> float:
        return self.start + (self.end - self.start) * context.progress


@dataclass(frozen=True, kw_only=True)
class BoundedSchedule(Schedule):
    """β = min + (max − min)·share; with ``inverse`` the schedule is 1/β."""

    min: float
    max: float
    bounds: ClassVar = {"min": ANY, "max": ANY}
    inverse = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inverse and self.min <= 0:
            message = "min must be greater than 0 with an inverse schedule, not {:g}: 1/β would be infinite"
            raise ValueError(message.format(self.min))
        if self.min > self.max:
            raise ValueError(f"min ({self.min:g}) must not be above max ({self.max:g})")

    @abstractmethod
    def share(self, context: StepContext) -> float:
        """How far β is from min to max, in 0..1."""

    def __call__(self, context: StepContext) -> float:
        beta = self.min + (self.max - self.min) * self.share(context)
        return 1 / beta if self.inverse else beta


class Sin(BoundedSchedule):
    """β = min + (max − min)·sin x: rises from min to max."""

    def share(self, context: StepContext) -> float:
        return math.sin(context.progress * math.pi / 2)


class Cos(BoundedSchedule):
    """β = min + (max − min)·cos x: falls from max to min."""

    def share(self, context: StepContext) -> float:
        return math.cos(context.progress * math.pi / 2)


class InverseSin(Sin):
    """1/β of ``sin``: falls from 1/min to 1/max; min must be above 0."""

    inverse = True


class InverseCos(Cos):
    """1/β of ``cos``: rises from 1/max to 1/min; min must be above 0."""

    inverse = True


class Cosine(BoundedSchedule):
    """From max to min by half a cosine: min + ½(max − min)(1 + cos πp) (SGDR, arXiv 1608.03983, eq. 5)."""

    def share(self, context: StepContext) -> float:
        return 0.5 * (1 + math.cos(math.pi * context.progress))


@dataclass(frozen=True, kw_only=True)
class ProportionalToLr(BoundedSchedule):
    """min + (max − min)·(lr − lr_min)/(lr_max − lr_min), never below 0 (GSAM, arXiv 2203.08065, eq. 6).

    Without ``lr_min`` and ``lr_max``: the group's ``min_lr`` and ``max_lr``, which OneCycleLR writes there;
    else 0 and the largest rate so far. A schedule with another floor, or that rises, needs them given.
    """

    lr_min: float | None = None
    lr_max: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.lr_min or 0.0, "lr_min", 0)
        if self.lr_max is not None and not self.lr_max > (self.lr_min or 0.0):
            raise refused("lr_max", f"must be above lr_min, not {self.lr_max:g}")

    def share(self, context: StepContext) -> float:
        low = context.min_lr if self.lr_min is None else self.lr_min
        high = context.base_lr if self.lr_max is None else self.lr_max
        return (context.lr - low) / (high - low) if high > low else float(context.lr > 0)

    def __call__(self, context: StepContext) -> float:
        return max(0.0, super().__call__(context))


@dataclass(frozen=True, kw_only=True)
class LossBudget(Schedule):
    """min(σ/‖g‖, ``rho_max``): the loss rises by σ, to first order (LE-SAM, arXiv 2605.10183).

    σ is ``sigma`` until the progress ``anneal_from``, then falls to 0 by half a cosine. The paper lets it
    fall at the end of the training; where is ours: over all of it. Neither ``sigma`` nor ``rho_max`` has a
    default: start with 0.02 to 0.2 and ten times SAM's radius.
    """

    sigma: float
    rho_max: float
    anneal_from: float = 0.0
    bounds: ClassVar = {"sigma": at_least(0), "rho_max": at_least(0), "anneal_from": (0, 1)}
    sees_gradient = True

    def __call__(self, context: StepContext) -> float:
        done = context.progress - self.anneal_from
        share = done / (1 - self.anneal_from) if done > 0 and self.anneal_from < 1 else 0.0
        return self.sigma * 0.5 * (1 + math.cos(math.pi * share))

    def radius(self, context: StepContext, gradients: Tensors) -> float | Tensor:
        return foreach.ratio(self(context), foreach.global_norm(gradients)).clamp(max=self.rho_max)


@dataclass(frozen=True, kw_only=True)
class ProportionalToGradient(Schedule):
    """``factor``·‖g‖, so that SAM's e is factor·g, not normalised (USAM, arXiv 2206.06232)."""

    factor: float
    bounds: ClassVar = {"factor": at_least(0)}
    sees_gradient = True

    def __call__(self, context: StepContext) -> float:
        return self.factor

    def radius(self, context: StepContext, gradients: Tensors) -> float | Tensor:
        return self.factor * foreach.global_norm(gradients)


SCHEDULES: Registry = {
    "constant": Constant,
    "sin": Sin,
    "cos": Cos,
    "isin": InverseSin,
    "icos": InverseCos,
    "linear": Linear,
    "cosine": Cosine,
    "proportional_to_lr": ProportionalToLr,
    "loss_budget": LossBudget,
    "proportional_to_gradient": ProportionalToGradient,
}
"""Name after ``schedule:`` in a recipe to its rule."""


def as_schedule(
    value: Number | Schedule, name: str, *, minimum: float = -math.inf, may_see_gradient: bool = False
) -> Schedule:
    """A number, a mapping such as ``{schedule: icos, min: 0.5, max: 2}``, or a schedule, as a schedule.

    A FaultsError at ``name`` or below it refuses what is none, numbers below ``minimum``, and, unless it
    ``may_see_gradient``, a schedule that depends on the gradient.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        require(value, name, minimum)
        return Constant(float(value))
    schedule: Any = value
    if isinstance(value, Mapping):
        schedule = build("schedule", SCHEDULES, value, name, key="schedule")
        for key, number in vars(schedule).items():
            if number is not None:
                require(number, f"{name}.{key}", minimum)
    if not isinstance(schedule, Schedule):
        raise refused(name, f"must be a number or a schedule, not {value!r}")
    if schedule.sees_gradient and not may_see_gradient:
        known = ", ".join(key for key in SCHEDULES if not getattr(SCHEDULES[key], "sees_gradient", False))
        message = "needs the gradient at w, which this option has not. Schedules without it: "
        raise refused(f"{name}.schedule", message + known)
    return schedule


def as_radius(rho: Number, name: str = "rho") -> Schedule:
    """A radius: :func:`as_schedule` of numbers that are not negative; it may depend on the gradient."""
    return as_schedule(rho, name, minimum=0, may_see_gradient=True)
