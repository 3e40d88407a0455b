"""Notice a run that no longer computes with numbers, and tell whether the precision is the cause."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pugdft.config.schema import Recipe
from pugdft.errors import RunFailed
from pugdft.optim import PerturbedOptimizer
from pugdft.training.distributed import attempt
from pugdft.training.setup import RunComponents
from pugdft.training.trainer import LastBatch, evaluate


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
    """Too many updates had no finite loss or gradient, or the evaluation of ``split`` had no finite loss."""

    def __init__(self, message: str, split: str | None = None) -> None:
        super().__init__(message)
        self.split = split


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


_MOST_GUESSES = 10  # a loss of more times that of guessing is that of weights that an optimizer has ruined


def precision_at_fault(components: RunComponents, last: LastBatch | None, split: str | None) -> str | None:
    """Say that bf16 or fp16, not the optimizer, made a run diverge, if fp32 shows it; all processes together.

    The weights are finite, and on the same images (the last training batch, with the same dropout, or the
    split) fp32 gives a finite loss of a usual size, and a finite gradient, where the precision does not.
    """
    precision, model = components.recipe.train.precision, components.backbone.model
    if precision == "fp32" or not _are_finite(model.parameters()):
        return None
    if split is not None:
        given, what = math.nan, "loss"
        with _in_fp32(model):
            exact = evaluate(model, components.evaluations[split], components.accelerator).metrics().loss
    elif last is not None:
        given, is_finite = _loss_and_gradient(components, last)
        with _in_fp32(model):
            exact, is_exact_finite = _loss_and_gradient(components, last)
        what = "gradient" if math.isfinite(given) else "loss"
        if is_finite or not is_exact_finite:
            return None
    else:
        return None
    if not exact <= _MOST_GUESSES * math.log(max(2, len(components.store.classes))):
        return None
    images = f"images of {split}" if split else "batch"
    shown = (
        f"a {what} that is not finite where fp32 gives {exact:.2f}"
        if what == "loss"
        else (f"a gradient that is not finite where fp32's is, at a loss of {exact:.2f}")
    )
    return f"for the same weights and {images}, {precision} gives {shown}: set train.precision=fp32"


def _loss_and_gradient(components: RunComponents, last: LastBatch) -> tuple[float, bool]:
    """The mean loss of a batch over all processes, and whether it and its gradient are finite."""
    model, train = components.backbone.model, components.recipe.train
    weights = [each for each in model.parameters() if each.requires_grad]
    before = [each.clone() for each in model.buffers()]
    components.freezing.begin(last.epoch)

    def compute() -> tuple[float, bool]:
        torch.manual_seed(last.seed)
        total, is_finite = 0.0, True
        for inputs, targets in last.micro_batches:
            # A copy, for which a frozen backbone keeps no features of another precision.
            loss = targets.loss(model(inputs.clone()), train.label_smoothing, components.class_weights)
            gradients = torch.autograd.grad(loss, weights, allow_unused=True)
            is_finite &= _are_finite([loss, *(each for each in gradients if each is not None)])
            total += float(loss.detach())
        return total, is_finite

    # Without memory for it, the answer is that nothing is known: no exact loss, so the run has diverged.
    found, _ = attempt(compute)
    with torch.no_grad():
        for buffer, saved in zip(model.buffers(), before, strict=True):
            buffer.copy_(saved)
    images = sum(len(targets) for _, targets in last.micro_batches)
    loss, is_finite = found or (math.nan, False)
    own = torch.tensor([loss, images, not is_finite], dtype=torch.float32, device=components.device)
    total, num_images, num_lost = components.accelerator.reduce(own, "sum").tolist()
    return total / num_images, num_lost == 0


def _are_finite(tensors: Iterable[Tensor]) -> bool:
    return all(bool(torch.isfinite(each).all()) for each in tensors)


@contextmanager
def _in_fp32(model: nn.Module) -> Iterator[None]:
    """Within the context, the model computes as it would without Accelerate's mixed precision."""
    mixed = model.forward
    model.forward = getattr(model, "_original_forward", mixed)
    try:
        yield
    finally:
        model.forward = mixed
