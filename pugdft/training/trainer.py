"""The training loop: one epoch of updates, one evaluation. It never asks which optimizer it has.

``train_epoch`` hands the optimizer a closure that runs forward and backward over one global batch; the
optimizer calls it as often as its method needs. Loss and accuracy are those of the first, clean call and
stay on the device: reading them waits for it, so an observer does that when it has something to show.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional

from pugdft.data.loader import Batch, EvaluationBatches, TrainingBatches, onto
from pugdft.data.rng import torch_seed
from pugdft.optim import PerturbedOptimizer
from pugdft.predictions import Predictions
from pugdft.training.profiler import Profile


@dataclass
class Totals:
    """This process's sums over the clean passes of an epoch, on the device until somebody reads them.

    Attributes:
        sums: loss times images, correct images, images; of passes whose loss is finite. And how many passes'
            was not, since the run began.
    """

    sums: Tensor

    def add(self, loss: Tensor, correct: Tensor, images: int) -> None:
        """A clean pass: the sum of its losses, and how many of its images were right."""
        finite = torch.isfinite(loss)
        values = torch.stack([loss, correct, torch.full_like(loss, images)]).to(self.sums.dtype)
        self.sums[:3] += torch.where(finite, values, 0)
        self.sums[3] += ~finite

    def reset(self) -> None:
        """Begin another epoch."""
        self.sums[:3] = 0

    def means(self) -> tuple[float, float]:
        """Mean loss and top-1 so far; waits for the device."""
        loss, correct, images, _ = self.sums.tolist()
        return loss / max(1.0, images), correct / max(1.0, images)


@dataclass
class Position:
    """Where a run stands: everything that must survive a restart beside weights and optimizer."""

    epoch: int = 0
    step_in_epoch: int = 0
    steps: int = 0
    gradient_passes: float = 0
    train_seconds: float = 0.0
    eval_seconds: float = 0.0


@dataclass(frozen=True)
class AscentBatch:
    """The part of each batch that ascent gradients are taken from.

    Attributes:
        num_calls: ascents of an update; its last pass takes the whole batch.
        images: of the global batch.
        own_images: of this process's share.
    """

    num_calls: int
    images: int
    own_images: int

    def of(self, micro_batches: list[Batch]) -> list[Batch]:
        """The first images of this process's share."""
        parts, left = [], self.own_images
        for inputs, targets in micro_batches:
            if left > 0:
                parts.append((inputs[:left], targets.first(left)))
            left -= len(targets)
        return parts


@dataclass(frozen=True)
class Trainer:
    """What stays the same through all epochs of a run.

    Attributes:
        total: length of the run, in updates or in gradient passes.
        counts_passes: which of the two.
        lr_factor: of the base learning rate, from how much of the total is spent.
        set_training_mode: puts the model into training mode.
        after_step: called after each update with the totals so far; returning True stops the epoch.
        profile: is told what the time goes to.
        ascent: None takes every gradient from the whole batch.
    """

    model: nn.Module
    optimizer: PerturbedOptimizer
    batches: TrainingBatches
    accelerator: Accelerator
    total: int
    counts_passes: bool
    label_smoothing: float
    lr_factor: Callable[[float], float]
    set_training_mode: Callable[[], None]
    after_step: Callable[[Position, Totals], bool]
    profile: Profile = Profile()  # noqa: RUF009 - it has no state
    ascent: AscentBatch | None = None
    base_lrs: list[float] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "base_lrs", [group["lr"] for group in self.optimizer.param_groups])

    def spent(self, position: Position) -> float:
        """How much of the total is spent."""
        return position.gradient_passes if self.counts_passes else position.steps


def new_totals(device: torch.device, sums: Sequence[float] = (0.0, 0.0, 0.0, 0.0)) -> Totals:
    """Sums on a device, from the start or from a checkpoint. fp64, so that a restart rounds nothing away."""
    dtype = torch.float32 if device.type == "mps" else torch.float64
    return Totals(torch.tensor(sums, dtype=dtype, device=device))


def train_epoch(trainer: Trainer, position: Position, totals: Totals) -> bool:
    """Make the updates of an epoch that are left; False if ``after_step`` stopped it before its end.

    ``position`` and ``totals`` are brought forward in place, update by update.
    """
    optimizer, batches = trainer.optimizer, trainer.batches
    trainer.set_training_mode()
    epoch = batches.epoch(position.epoch, position.step_in_epoch)
    for micro_batches in trainer.profile.each("input", epoch):
        spent = trainer.spent(position)
        if spent >= trainer.total:
            break
        for group, lr in zip(optimizer.param_groups, trainer.base_lrs, strict=True):
            group["lr"] = lr * trainer.lr_factor(spent)
        optimizer.progress = spent / trainer.total
        # Dropout and drop-path, like everything random, depend on the moment only.
        torch.manual_seed(
            torch_seed(batches.seed, position.epoch, position.step_in_epoch, batches.share.rank)
        )
        optimizer.zero_grad()
        position.gradient_passes += _update(trainer, micro_batches, totals)
        position.steps += 1
        position.step_in_epoch += 1
        if trainer.after_step(position, totals):
            return False
    return True


def _update(trainer: Trainer, micro_batches: list[Batch], totals: Totals) -> float:
    """One update; returns how often the method went through the batch, parts of it as such."""
    model, world, ascent = trainer.model, trainer.batches.share.world, trainer.ascent
    num_calls, num_images = 0, 0

    def closure() -> Tensor:
        nonlocal num_calls, num_images
        num_calls += 1
        parts, size = micro_batches, trainer.batches.batch_size
        if ascent is not None and num_calls <= ascent.num_calls:
            parts, size = ascent.of(micro_batches), ascent.images
        num_images += size
        batch_loss = torch.zeros((), device=trainer.batches.device)
        correct = torch.zeros_like(batch_loss)
        for number, (inputs, targets) in enumerate(parts, start=1):
            is_last = number == len(parts)
            # One reduction a pass: earlier micro-batches accumulate locally.
            with nullcontext() if is_last else trainer.accelerator.no_sync(model):
                logits = model(inputs)
                loss = targets.loss(logits, trainer.label_smoothing)
                # Processes' gradients are averaged; the sum over all of them is to be the global mean's.
                trainer.optimizer.backward(loss * (world / size))
            batch_loss += loss.detach()
            if num_calls == 1:
                correct += targets.correct(logits.detach())
        if num_calls == 1:
            totals.add(batch_loss, correct, sum(len(targets) for _, targets in parts))
        return batch_loss / size

    with trainer.profile.span("optimizer"):
        trainer.optimizer.step(trainer.profile.timed("passes", closure))
    return num_calls if ascent is None else num_images / trainer.batches.batch_size


def _share_buffers(model: nn.Module) -> None:
    """Give every process the first one's BatchNorm statistics: those are the ones that get saved."""
    if torch.distributed.is_initialized():
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, 0)


@torch.inference_mode()
def evaluate(model: nn.Module, batches: EvaluationBatches, accelerator: Accelerator) -> Predictions:
    """Predictions for every image of a split exactly once, the same on every process."""
    model.eval()
    _share_buffers(model)
    size, device = len(batches.images), batches.device
    # Each process fills in its own images and leaves zeros elsewhere; the sum over processes is the whole.
    whole = torch.zeros(
        (4, size), dtype=torch.float64 if device.type != "mps" else torch.float32, device=device
    )
    for positions, inputs, labels in batches:
        logits = model(inputs).float()
        confidence, prediction = logits.softmax(1).max(1)
        best = logits.topk(min(5, logits.shape[1]), 1).indices
        in_top5 = (best == labels[:, None]).any(1)
        loss = functional.cross_entropy(logits, labels, reduction="none")
        where = onto(positions, device)
        whole[:, where] = torch.stack([prediction, in_top5, confidence, loss]).to(whole.dtype)
    prediction, in_top5, confidence, loss = accelerator.reduce(whole, "sum").cpu().numpy()
    images = batches.images
    return Predictions(
        label=np.asarray(images.labels[images.indices]),
        prediction=prediction.astype(np.int64),
        in_top5=in_top5 > 0.5,
        confidence=confidence.astype(np.float32),
        loss=loss.astype(np.float32),
    )
