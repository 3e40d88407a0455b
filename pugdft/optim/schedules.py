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

from pugdft.optim.context import ANY, MethodRule, StepContext
from pugdft.optim.options import Registry, build, refused, require

Number = float | Mapping[str, Any]
"""What a recipe may say: a number, or a schedule such as ``{schedule: icos, min: 0.5, max: 2}``."""


class Schedule(MethodRule, ABC):
    """A number at a step."""

    @abstractmethod
    def __call__(self, context: StepContext) -> float: ...


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


SCHEDULES: Registry = {
    "constant": Constant,
    "sin": Sin,
    "cos": Cos,
    "isin": InverseSin,
    "icos": InverseCos,
    "linear": Linear,
    "cosine": Cosine,
    "proportional_to_lr": ProportionalToLr,
}
"""Name after ``schedule:`` in a recipe to its rule."""


def as_schedule(value: Number | Schedule, name: str, *, minimum: float = -math.inf) -> Schedule:
    """A number, a mapping such as ``{schedule: icos, min: 0.5, max: 2}``, or a schedule, as a schedule.

    A FaultsError at ``name`` or below it refuses what is none, and numbers below ``minimum``.
    """
    if isinstance(value, Mapping):
        schedule: Schedule = build("schedule", SCHEDULES, value, name, key="schedule")
        for key, number in vars(schedule).items():
            if number is not None:
                require(number, f"{name}.{key}", minimum)
        return schedule
    if isinstance(value, int | float) and not isinstance(value, bool):
        require(value, name, minimum)
        return Constant(float(value))
    if not callable(value):
        raise refused(name, f"must be a number or a schedule, not {value!r}")
    return value


def as_radius(rho: Number) -> Schedule:
    """A radius: :func:`as_schedule` of ``rho``, whose numbers must not be negative."""
    return as_schedule(rho, "rho", minimum=0)
