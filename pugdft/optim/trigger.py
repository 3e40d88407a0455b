"""Slot 3, when a step takes two passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pugdft.optim.context import StepContext


class Trigger(Protocol):
    """Whether this step perturbs; asked after the clean pass."""

    def fires(self, context: StepContext) -> bool: ...


@dataclass(frozen=True)
class Always:
    """Two passes at every step."""

    def fires(self, context: StepContext) -> bool:
        return True


@dataclass(frozen=True)
class Never:
    """One pass at every step."""

    def fires(self, context: StepContext) -> bool:
        return False
