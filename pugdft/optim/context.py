"""What a rule may know about the step it is asked about."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class StepContext:
    """The moment of one update, before it is made.

    Attributes:
        step: updates made so far.
        progress: fraction of the training done, in 0..1.
        lr: learning rate of the first parameter group.
    """

    step: int
    progress: float
    lr: float


def require(value: float, name: str, *, minimum: float = -math.inf) -> None:
    """Raise ``ValueError`` unless ``value`` is finite and at least ``minimum``."""
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, not {value}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum:g}, not {value:g}")
