"""Slot 4, how the clean gradient g and the perturbed gradient g* make one: a·g + b·g*.

The two coefficients are all that the algorithm needs to know in advance: with a = 0 the clean gradient
is dropped before the second pass, and otherwise the second pass can add to it where it lies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pugdft.optim.context import StepContext, require


class Combine(Protocol):
    """Coefficients (a, b) of g and g* at a two-pass step."""

    def coefficients(self, context: StepContext) -> tuple[float, float]: ...


@dataclass(frozen=True)
class Linear:
    """Fixed coefficients; b must not be 0, for then the second pass would be thrown away.

    Raises:
        ValueError: a coefficient is not finite, or b is 0.
    """

    clean: float
    perturbed: float

    def __post_init__(self) -> None:
        require(self.clean, "the clean gradient's coefficient")
        require(self.perturbed, "the perturbed gradient's coefficient")
        if self.perturbed == 0:
            raise ValueError("the perturbed gradient's coefficient is 0: the second pass would be useless")

    def coefficients(self, context: StepContext) -> tuple[float, float]:
        return self.clean, self.perturbed
