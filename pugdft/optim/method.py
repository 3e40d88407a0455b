"""A method of the family: five rules, one a slot."""

from __future__ import annotations

from dataclasses import dataclass

from pugdft.optim.combine import Linear, Merge
from pugdft.optim.direction import Direction
from pugdft.optim.normalize import Normalize
from pugdft.optim.schedules import Schedule
from pugdft.optim.trigger import Never, Trigger


@dataclass(frozen=True)
class Method:
    """The five slots of one step; ``repr`` is the whole method."""

    direction: Direction
    radius: Schedule
    trigger: Trigger
    combine: Linear | Merge
    normalize: Normalize

    @property
    def perturbs(self) -> bool:
        """Whether some step takes a second pass."""
        return not isinstance(self.trigger, Never)

    @property
    def expected_passes(self) -> float | None:
        """Gradient passes a step, averaged over a run; None if only the run itself can tell."""
        fraction = self.trigger.expected_fraction
        return None if fraction is None else 1 + fraction * self.direction.num_ascents
