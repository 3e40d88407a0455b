"""Slot 2, how far the perturbation goes: a number per step, from the progress and the learning rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pugdft.optim.context import StepContext, require


class Radius(Protocol):
    """ρ at a step."""

    def __call__(self, context: StepContext) -> float: ...


@dataclass(frozen=True)
class Constant:
    """The same ρ at every step.

    Raises:
        ValueError: ρ is negative or not finite.
    """

    value: float

    def __post_init__(self) -> None:
        require(self.value, "rho", minimum=0)

    def __call__(self, context: StepContext) -> float:
        return self.value
