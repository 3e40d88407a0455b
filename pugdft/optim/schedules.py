"""Slot 2: compute radii and scales as functions of the progress of the training.

With x = p·π/2 for the progress p, the Radius-Timing-Scale schedules run between bounds on β: ``sin`` rises
from min to max, ``cos`` falls from max to min, ``isin`` and ``icos`` are the reciprocals 1/β of these.
Source: When and How Much to Perturb? (RTS, 2025), section on schedules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pugdft.optim.context import StepContext, require
from pugdft.optim.options import build

Number = float | Mapping[str, Any]
"""What a recipe may say: a number, or a schedule such as ``{schedule: icos, min: 0.5, max: 2}``."""


class Schedule(Protocol):
    """A number at a step."""

    def __call__(self, context: StepContext) -> float: ...


@dataclass(frozen=True)
class Constant:
    """The same number at every step."""

    value: float

    def __post_init__(self) -> None:
        require(self.value, "value")

    def __call__(self, context: StepContext) -> float:
        return self.value


@dataclass(frozen=True, kw_only=True)
class _Bounded:
    min: float
    max: float
    inverse = False

    def __post_init__(self) -> None:
        require(self.min, "min")
        require(self.max, "max")
        if self.inverse and self.min <= 0:
            problem = f"not {self.min:g}: 1/β would be infinite"
            raise ValueError(f"min must be greater than 0 with an inverse schedule, {problem}")
        if self.min > self.max:
            raise ValueError(f"min ({self.min:g}) must not be above max ({self.max:g})")


@dataclass(frozen=True, kw_only=True)
class Sin(_Bounded):
    """β = min + (max − min)·sin x: rises from min to max."""

    def __call__(self, context: StepContext) -> float:
        return self.min + (self.max - self.min) * math.sin(context.progress * math.pi / 2)


@dataclass(frozen=True, kw_only=True)
class Cos(_Bounded):
    """β = min + (max − min)·cos x: falls from max to min."""

    def __call__(self, context: StepContext) -> float:
        return self.min + (self.max - self.min) * math.cos(context.progress * math.pi / 2)


@dataclass(frozen=True, kw_only=True)
class InverseSin(Sin):
    """1/β of ``sin``: falls from 1/min to 1/max; min must be above 0."""

    inverse = True

    def __call__(self, context: StepContext) -> float:
        return 1 / super().__call__(context)


@dataclass(frozen=True, kw_only=True)
class InverseCos(Cos):
    """1/β of ``cos``: rises from 1/max to 1/min; min must be above 0."""

    inverse = True

    def __call__(self, context: StepContext) -> float:
        return 1 / super().__call__(context)


@dataclass(frozen=True, kw_only=True)
class Linear:
    """From start to end in proportion to the progress."""

    start: float
    end: float

    def __post_init__(self) -> None:
        require(self.start, "start")
        require(self.end, "end")

    def __call__(self, context: StepContext) -> float:
        return self.start + (self.end - self.start) * context.progress


@dataclass(frozen=True, kw_only=True)
class Cosine(_Bounded):
    """From max to min by half a cosine: min + ½(max − min)(1 + cos πp) (SGDR, arXiv 1608.03983, eq. 5)."""

    def __call__(self, context: StepContext) -> float:
        return self.min + 0.5 * (self.max - self.min) * (1 + math.cos(math.pi * context.progress))


@dataclass(frozen=True, kw_only=True)
class ProportionalToLr(_Bounded):
    """From max at the schedule's peak learning rate to min at 0, never below 0 (GSAM's ρ)."""

    def __call__(self, context: StepContext) -> float:
        share = context.lr / context.base_lr if context.base_lr else 0.0
        return max(0.0, self.min + (self.max - self.min) * share)


SCHEDULES: Mapping[str, Callable[..., Schedule]] = {
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


def as_schedule(
    value: float | Mapping[str, Any] | Schedule, name: str, *, minimum: float = -math.inf
) -> Schedule:
    """A number, a mapping such as ``{schedule: icos, min: 0.5, max: 2}``, or a schedule, as a schedule.

    Args:
        value: what the recipe says.
        name: the option's name, for messages.
        minimum: the least that the numbers may be.

    Raises:
        ValueError: unknown name, missing or strange keys, a bound that is impossible.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        require(value, name, minimum=minimum)
        return Constant(float(value))
    if not isinstance(value, Mapping):
        if isinstance(value, bool) or not callable(value):
            raise ValueError(f"{name} must be a number or a schedule, not {value!r}")
        return value
    schedule: Schedule = build("schedule", SCHEDULES, value, where=name, key="schedule")
    for key, number in vars(schedule).items():
        require(number, f"{name}.{key}", minimum=minimum)
    return schedule


def as_radius(rho: Number) -> Schedule:
    """A radius: :func:`as_schedule` of ``rho``, whose numbers must not be negative."""
    return as_schedule(rho, "rho", minimum=0)
