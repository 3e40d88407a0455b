"""Whether what a run computes is still made of numbers, and when it has ended because it is not."""

from __future__ import annotations

import math

from pugdft.errors import RunFailed
from pugdft.optim import PerturbedOptimizer
from pugdft.recipe import Recipe

# fp16's loss scale halves at each overflow: from its start to its floor these are 30.
_MOST_IN_A_ROW = 100


class Diverged(RunFailed):
    """Too many updates had no finite loss or gradient, or the weights give none any more."""


class Soundness:
    """Stops a run that has left out more updates than it may, or whose weights are lost.

    Args:
        recipe: says how many updates may be left out; in fp16 the loss scale leaves out some besides.
        optimizer: knows how many it has left out.
    """

    def __init__(self, recipe: Recipe, optimizer: PerturbedOptimizer) -> None:
        self._allowed, self._is_fp16 = recipe.train.max_skipped_steps, recipe.train.precision == "fp16"
        self._optimizer = optimizer
        self._made = self._steps = self._skipped = 0

    def start(self, steps: int) -> None:
        """Training begins, or goes on, after so many updates."""
        self._made = self._steps = steps
        self._skipped = self._optimizer.num_skipped_steps

    def check(self, steps: int, num_lost: float) -> None:
        """Look at the counts; waits for the device.

        Args:
            steps: updates so far.
            num_lost: of those whose loss was not finite.

        Raises:
            Diverged: too many.
        """
        skipped = self._optimizer.num_skipped_steps
        if steps - self._steps > skipped - self._skipped:
            self._made = steps
        self._steps, self._skipped = steps, skipped
        if not self._is_fp16:
            num_lost = max(num_lost, skipped)
        if num_lost > self._allowed:
            raise Diverged(f"the training loss or its gradient is not finite at update {steps}")
        if self._is_fp16 and steps - self._made >= _MOST_IN_A_ROW:
            raise Diverged(f"no gradient was finite after update {self._made}, whatever the loss scale")

    def check_evaluation(self, steps: int, losses: dict[str, float]) -> None:
        """Look at what the weights came to.

        Raises:
            Diverged: a loss, by split, is not finite.
        """
        for split, loss in losses.items():
            if not math.isfinite(loss):
                raise Diverged(f"the {split} loss is not finite after update {steps}")

    def check_end(self, steps: int) -> None:
        """Look at the whole.

        Raises:
            Diverged: nothing was learned.
        """
        if steps and self._optimizer.num_skipped_steps >= steps:
            raise Diverged(f"none of {steps} updates had a finite gradient")
