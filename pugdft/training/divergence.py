"""A model's running statistics, kept from passes that are not finite."""

from __future__ import annotations

import math

import torch
from torch import nn

from pugdft.config.schema import Recipe
from pugdft.errors import RunFailed
from pugdft.optim import PerturbedOptimizer


class SoundBuffers:
    """Puts a model's buffers back to what they were if a pass has left anything in them that is not finite.

    An update whose loss is not finite is left out, but its forward pass has been through BatchNorm: one NaN
    in a running mean would stay there, and make every later evaluation worthless.

    Args:
        model: whose floating-point buffers are watched, those that are finite now.
        watches: False does nothing.
    """

    def __init__(self, model: nn.Module, watches: bool) -> None:
        buffers = model.buffers() if watches else ()
        self._buffers = [b for b in buffers if b.is_floating_point() and bool(torch.isfinite(b).all())]
        self._sound = [each.clone() for each in self._buffers]

    @torch.no_grad()
    def mend(self) -> None:
        """After an update: keep all buffers, or put all of them back. Nothing waits for the device."""
        if not self._buffers:
            return
        is_sound = torch.stack([torch.isfinite(each).all() for each in self._buffers]).all()
        for buffer, sound in zip(self._buffers, self._sound, strict=True):
            torch.where(is_sound, buffer, sound, out=sound)
            buffer.copy_(sound)


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
