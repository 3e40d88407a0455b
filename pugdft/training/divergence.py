"""Detection of runs that diverge, and protection of BatchNorm's statistics."""

from __future__ import annotations

import torch
from torch import nn

from pugdft.config.schema import Recipe
from pugdft.errors import RunFailed
from pugdft.optim import PerturbedOptimizer


class BufferGuard:
    """Restore a model's floating-point buffers after a pass that left values in them that are not finite.

    An update without a finite loss is skipped, but its forward pass has updated BatchNorm's statistics: one
    NaN would spoil every later evaluation. Buffers that are not finite at the start are left alone.
    """

    def __init__(self, model: nn.Module, enabled: bool) -> None:
        buffers = model.buffers() if enabled else ()
        self._buffers = [b for b in buffers if b.is_floating_point() and bool(torch.isfinite(b).all())]
        self._saved = [each.clone() for each in self._buffers]

    @torch.no_grad()
    def after_step(self) -> None:
        """Save all buffers, or restore all of them. Does not wait for the device."""
        if not self._buffers:
            return
        is_finite = torch.stack([torch.isfinite(each).all() for each in self._buffers]).all()
        for buffer, saved in zip(self._buffers, self._saved, strict=True):
            torch.where(is_finite, buffer, saved, out=saved)
            buffer.copy_(saved)


_MOST_IN_A_ROW = 100  # fp16's loss scale halves at each overflow: from its start to its floor these are 30


class Diverged(RunFailed):
    """Too many updates had no finite loss or gradient, or an evaluation had no finite loss."""


class DivergenceMonitor:
    """Stop a run that skips more updates than the recipe allows; fp16's loss scale skips some besides."""

    def __init__(self, recipe: Recipe, optimizer: PerturbedOptimizer, steps: int) -> None:
        self._allowed, self._is_fp16 = recipe.train.max_skipped_steps, recipe.train.precision == "fp16"
        self._optimizer, self._skipped = optimizer, optimizer.num_skipped_steps
        self._last_made = self._steps = steps

    def check(self, steps: int, num_lost: float) -> None:
        """Raise Diverged if too many of the updates so far had no finite loss; waits for the device."""
        skipped = self._optimizer.num_skipped_steps
        if steps - self._steps > skipped - self._skipped:
            self._last_made = steps
        self._steps, self._skipped = steps, skipped
        if not self._is_fp16:
            num_lost = max(num_lost, skipped)
        if num_lost > self._allowed:
            raise Diverged(f"the training loss or its gradient is not finite at update {steps}")
        if self._is_fp16 and steps - self._last_made >= _MOST_IN_A_ROW:
            raise Diverged(f"no gradient was finite after update {self._last_made}, whatever the loss scale")

    def check_end(self, steps: int) -> None:
        """Raise Diverged if a finished run skipped all of its updates."""
        if steps and self._optimizer.num_skipped_steps >= steps:
            raise Diverged(f"none of {steps} updates had a finite gradient")
