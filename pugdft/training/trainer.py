"""The training loop: one epoch of updates, one evaluation. It never asks which optimizer it has.

:meth:`Trainer.train_epoch` hands the optimizer a closure that runs forward and backward over one global
batch; the optimizer calls it as often as its method needs. Loss and accuracy are those of the first call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional

from pugdft.data.loader import Batch, EvaluationBatches, onto
from pugdft.data.rng import torch_seed
from pugdft.predictions import Predictions
from pugdft.training.lr_schedule import schedule_of
from pugdft.training.profiler import Profile
from pugdft.training.setup import RunComponents


@dataclass
class Position:
    """Where a run stands: with the weights and the optimizer's state, all that a restart needs."""

    epoch: int = 0
    step_in_epoch: int = 0
    steps: int = 0
    gradient_passes: float = 0
    train_seconds: float = 0.0
    eval_seconds: float = 0.0


@dataclass(frozen=True)
class LastBatch:
    """This process's part of the newest training batch, the seed of its dropout, and the epoch."""

    micro_batches: list[Batch]
    seed: int
    epoch: int


class Totals:
    """This process's sums over the clean passes of an epoch, kept on the device."""

    def __init__(self, device: torch.device, sums: Sequence[float] = (0.0, 0.0, 0.0, 0.0)) -> None:
        # Of the passes whose loss is finite: loss times images, correct images, images. Fourth, the number of
        # passes whose loss was not finite, since the run began. In fp64, so that a restart, which begins with
        # the sums of a checkpoint, rounds nothing.
        self.sums = torch.tensor(sums, dtype=_sum_dtype(device), device=device)

    def add(self, loss: Tensor, correct: Tensor, num_images: int) -> None:
        """Add a clean pass: the sum of its images' losses, and how many of them were classified correctly."""
        finite = torch.isfinite(loss)
        values = torch.stack([loss, correct, torch.full_like(loss, num_images)]).to(self.sums.dtype)
        self.sums[:3] += torch.where(finite, values, 0)
        self.sums[3] += ~finite

    def means(self) -> tuple[float, float]:
        """Return the mean loss and top-1 so far; waits for the device."""
        loss, correct, num_images, _ = self.sums.tolist()
        return loss / max(1.0, num_images), correct / max(1.0, num_images)


def _sum_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # mps has no fp64


class Observer:
    """Callbacks of a run; the command line shows its progress by them. None has to be overridden."""

    def on_message(self, text: str) -> None:
        """Called with a message for people, such as the data being decoded."""

    def on_detail(self, text: str) -> None:
        """Called with a message that few people need, such as the switches for speed."""

    def on_facts(self, event: str, facts: dict[str, Any]) -> None:
        """Called with what is known: first ``device``, precision and folder, then ``data`` and model."""

    def on_start(self, total: int, done: float, images_per_step: int) -> None:
        """Called when training begins after ``done`` of ``total`` updates (or gradient passes)."""

    def on_step(self, position: Position, totals: Totals, done: float) -> None:
        """Called after an update. Reading ``totals`` waits for the device, so do not do it at every step."""

    def on_epoch(self, row: dict[str, Any]) -> None:
        """Called after an epoch; ``row`` is its row of the record's history."""

    def on_end(self) -> None:
        """Called when training has ended, for whatever reason."""


class Trainer:
    """Make a run's updates; after each, ``after_step`` gets the totals so far, and true stops the epoch."""

    def __init__(
        self,
        components: RunComponents,
        after_step: Callable[[Position, Totals], bool],
        profile: Profile | None = None,
        total: int | None = None,
    ) -> None:
        self.components, self.after_step = components, after_step
        self.profile = profile or Profile()
        train, steps = components.recipe.train, components.training.steps_per_epoch
        # The length of the run in updates or gradient passes.
        self.total = total or min(train.epochs * steps, train.max_steps or train.epochs * steps)
        self.last_batch: LastBatch | None = None  # of the newest update
        self.is_in_optimizer = False  # within an update, but in no pass; stays so after an error
        self._lr_factor = schedule_of(components.recipe, steps, self.total)
        self._base_lrs = [group["lr"] for group in components.optimizer.param_groups]

    def spent(self, position: Position) -> float:
        counts_passes = self.components.recipe.train.budget == "passes"
        return position.gradient_passes if counts_passes else position.steps

    def train_epoch(self, position: Position, totals: Totals) -> bool:
        """Make the rest of an epoch's updates; return False if ``after_step`` stopped it."""
        components = self.components
        optimizer, batches = components.optimizer, components.training
        components.begin_epoch(position.epoch)
        epoch = batches.epoch(position.epoch, position.step_in_epoch)
        for micro_batches in self.profile.each("input", epoch):
            spent = self.spent(position)
            if spent >= self.total:
                break
            factor = self._lr_factor(spent)
            for group, base_lr in zip(optimizer.param_groups, self._base_lrs, strict=True):
                group["lr"] = base_lr * factor
            optimizer.progress = spent / self.total
            # Dropout and drop-path, like everything random, depend only on seed, epoch and step.
            seed = torch_seed(batches.seed, position.epoch, position.step_in_epoch, batches.share.rank)
            torch.manual_seed(seed)
            self.last_batch = LastBatch(micro_batches, seed, position.epoch)
            optimizer.zero_grad()
            position.gradient_passes += self._update(micro_batches, totals)
            position.steps += 1
            position.step_in_epoch += 1
            if self.after_step(position, totals):
                return False
        return True

    def _update(self, micro_batches: list[Batch], totals: Totals) -> float:
        """Make one update; return its gradient passes (one over a part of the batch is a fraction)."""
        components = self.components
        model, optimizer, batches = components.model, components.optimizer, components.training
        ascent, label_smoothing = components.ascent, components.recipe.train.label_smoothing
        class_weights = components.class_weights
        num_calls, num_images = 0, 0

        def closure() -> Tensor:
            nonlocal num_calls, num_images
            self.is_in_optimizer = False
            num_calls += 1
            parts, size = micro_batches, batches.batch_size
            if ascent is not None and num_calls <= ascent.num_calls:
                parts, size = ascent.of(micro_batches), ascent.images
            num_images += size
            with self.profile.span("passes"):
                batch_loss = torch.zeros((), device=batches.device)
                correct = torch.zeros_like(batch_loss)
                for number, (inputs, targets) in enumerate(parts, start=1):
                    # One reduction a pass: earlier micro-batches accumulate locally.
                    is_last = number == len(parts)
                    with nullcontext() if is_last else components.accelerator.no_sync(model):
                        logits = model(inputs)
                        loss = targets.loss(logits, label_smoothing, class_weights)
                        # Processes' gradients are averaged; their sum has to be the global mean's gradient.
                        optimizer.backward(loss * (batches.share.world / size))
                    batch_loss += loss.detach()
                    if num_calls == 1:
                        correct += targets.correct(logits.detach())
                if num_calls == 1:
                    totals.add(batch_loss, correct, sum(len(targets) for _, targets in parts))
                self.is_in_optimizer = True
                return batch_loss / size

        with self.profile.span("optimizer"):
            self.is_in_optimizer = True
            optimizer.step(closure)
            self.is_in_optimizer = False
        return num_calls if ascent is None else num_images / batches.batch_size


@torch.inference_mode()
def evaluate(model: nn.Module, batches: EvaluationBatches, accelerator: Accelerator) -> Predictions:
    """Predict the class of each image of a split exactly once; all processes get all predictions."""
    model.eval()
    if torch.distributed.is_initialized():
        # The first process's BatchNorm statistics are those that get saved.
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, 0)
    images, device = batches.images, batches.device
    # Each process fills in its own images and leaves zeros elsewhere; the sum over processes is the whole.
    whole = torch.zeros((4, len(images)), dtype=_sum_dtype(device), device=device)
    for positions, inputs, labels in batches:
        logits = model(inputs).float()
        confidence, prediction = logits.softmax(1).max(1)
        best = logits.topk(min(5, logits.shape[1]), 1).indices
        in_top5 = (best == labels[:, None]).any(1)
        loss = functional.cross_entropy(logits, labels, reduction="none")
        where = onto(positions, device)
        whole[:, where] = torch.stack([prediction, in_top5, confidence, loss]).to(whole.dtype)
    prediction, in_top5, confidence, loss = accelerator.reduce(whole, "sum").cpu().numpy()
    return Predictions(
        label=np.asarray(images.labels[images.indices]),
        prediction=prediction.astype(np.int64),
        in_top5=in_top5 > 0.5,
        confidence=confidence.astype(np.float32),
        loss=loss.astype(np.float32),
    )
