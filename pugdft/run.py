"""A run under way: epochs, evaluations, checkpoints, and the record that it comes to."""

from __future__ import annotations

import math
import signal
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pugdft.checkpoint import load_checkpoint, remove_checkpoints, save_checkpoint, save_weights
from pugdft.environment import now
from pugdft.errors import RunFailed
from pugdft.interruption import Interruption
from pugdft.loop import Position, Totals, Trainer, evaluate, new_totals, train_epoch
from pugdft.models import training_mode
from pugdft.observer import Observer
from pugdft.outcome import Ending, Progress, build_record
from pugdft.parts import Parts
from pugdft.predictions import Predictions
from pugdft.recipe import Recipe
from pugdft.record import (
    Artifact,
    BestEpoch,
    RunRecord,
    Status,
    file_sha256,
    write_record,
)
from pugdft.schedule import lr_factor

# How often, in updates, an accelerator is asked whether the loss is finite, and processes whether one of
# them was told to stop: both wait for the device.
_CHECK_EVERY = 50


class Diverged(RunFailed):
    """The training loss is not finite."""


class Run:
    """One run of a recipe in its folder.

    Args:
        recipe: resolved.
        folder: claimed for this recipe.
        identity: the record's id.
        parts: assembled from the recipe.
        observer: hears of the progress.
    """

    def __init__(self, recipe: Recipe, folder: Path, identity: str, parts: Parts, observer: Observer) -> None:
        self.recipe, self.folder, self.identity = recipe, folder, identity
        self.parts, self.observer = parts, observer
        self.progress = Progress()
        self.predictions: dict[str, Predictions] = {}
        self.interruption = Interruption()
        self._totals = new_totals(parts.device)
        self._started = now()
        train, steps = recipe.train, parts.training.steps_per_epoch
        total_steps = min(train.epochs * steps, train.max_steps or train.epochs * steps)
        warmup_steps = round(recipe.schedule.warmup_epochs * steps)
        self._trainer = Trainer(
            model=parts.model,
            optimizer=parts.optimizer,
            batches=parts.training,
            accelerator=parts.accelerator,
            total_steps=total_steps,
            label_smoothing=train.label_smoothing,
            lr_factor=lambda step: lr_factor(recipe.schedule.name, step, total_steps, warmup_steps),
            set_training_mode=lambda: training_mode(
                parts.backbone.model, train.freeze == "backbone", train.batch_norm == "fixed"
            ),
            after_step=self._after_step,
        )

    def train(self) -> tuple[Status, str | None]:
        """Train to the end or to whatever stops it; returns how it ended and why."""
        position, total_steps = self.progress.position, self._trainer.total_steps
        self.observer.on_start(total_steps, self.recipe.train.batch_size, position)
        try:
            with self.interruption:
                while position.steps < total_steps or position.step_in_epoch:
                    if not self._train_epoch():
                        return self._interrupted()
                    self._finish_epoch()
                    if position.steps < total_steps:
                        if self._told_to_stop():
                            return self._interrupted()
                        self._save()
            return "completed", None
        except Diverged as error:
            return "diverged", str(error)
        except torch.OutOfMemoryError as error:
            return "oom", str(error).splitlines()[0]
        except BaseException as error:
            # A bug, a broken machine, a second Ctrl-C: leave the evidence, then let it be seen.
            self.conclude("failed", f"{type(error).__name__}: {error}")
            raise
        finally:
            self.observer.on_end()

    def restore(self) -> None:
        """Go on from the folder's checkpoint if there is a whole one."""
        checkpoint = load_checkpoint(self.folder)
        if checkpoint is None:
            return
        state = checkpoint.state
        self.parts.backbone.model.load_state_dict(checkpoint.weights)
        self.parts.optimizer.load_state_dict(checkpoint.optimizer)
        for name, value in state["position"].items():
            setattr(self.progress.position, name, value)
        self.progress.history = state["history"]
        self.progress.best_test = BestEpoch(**state["best_test"]) if state["best_test"] else None
        self.progress.restarts = [*state["restarts"], {"time": now(), "step": state["position"]["steps"]}]
        if self.parts.accelerator.is_main_process:
            # The sums were reduced over all processes when they were saved: one of them takes them over.
            self._totals = new_totals(self.parts.device, **state["totals"])
        else:
            self._totals = new_totals(self.parts.device, images=state["totals"]["images"])
        self.observer.on_message(f"going on from update {self.progress.position.steps}")

    def conclude(self, status: Status, error: str | None = None) -> RunRecord:
        """The record, written with everything it points at."""
        artifacts = {}
        if self.parts.accelerator.is_main_process:
            for split, predictions in self.predictions.items():
                name = "predictions" if split == "test" else f"predictions_{split}"
                predictions.write(self.folder / f"{name}.npz")
                artifacts[name] = f"{name}.npz"
            if status == "completed":
                save_weights(self.parts.backbone.model, self.folder / "model.safetensors")
                artifacts["model"] = "model.safetensors"
            elif (self.folder / "checkpoint" / "state.json").is_file():
                artifacts["checkpoint"] = "checkpoint/state.json"
        ending = Ending(status, error, self._started)
        record = build_record(self.recipe, self.identity, self.parts, self.progress, self.predictions, ending)
        if self.parts.accelerator.is_main_process:
            record.artifacts = {
                name: Artifact(path=path, sha256=file_sha256(self.folder / path))
                for name, path in artifacts.items()
            }
            write_record(record, self.folder)
            if status == "completed":
                remove_checkpoints(self.folder)
        return record

    def _train_epoch(self) -> bool:
        begin = time.perf_counter()
        before = self.progress.position.train_seconds
        finished = train_epoch(self._trainer, self.progress.position, self._totals)
        self._check_loss()  # also waits for the device, so that the time is the work's
        self.progress.position.train_seconds = before + time.perf_counter() - begin
        return finished

    def _after_step(self, position: Position, totals: Totals) -> bool:
        self.observer.on_step(position, totals)
        due = position.steps % _CHECK_EVERY == 0
        if self.parts.accelerator.num_processes == 1:
            if due or self.parts.device.type == "cpu":
                self._check_loss()
            return bool(self.interruption.received)
        return due and self._told_to_stop()

    def _check_loss(self) -> None:
        totals = self._reduced_totals()
        if not math.isfinite(totals["loss"]):
            raise Diverged(f"the training loss is not finite after update {self.progress.position.steps}")

    def _told_to_stop(self) -> bool:
        """Whether any process was; the same answer on all of them."""
        received = torch.tensor(float(self.interruption.received), device=self.parts.device)
        if float(self.parts.accelerator.reduce(received, "sum")) and not self.interruption.received:
            self.interruption.received = int(signal.SIGTERM)
        return bool(self.interruption.received)

    def _reduced_totals(self) -> dict[str, Any]:
        sums = torch.stack([self._totals.loss, self._totals.correct])
        loss, correct = self.parts.accelerator.reduce(sums, "sum").tolist()
        return {"loss": loss, "correct": correct, "images": self._totals.images}

    def _finish_epoch(self) -> None:
        """Evaluate if it is time, add a line to the history, begin the next epoch."""
        position, train = self.progress.position, self.recipe.train
        totals = self._reduced_totals()
        position.epoch += 1
        position.step_in_epoch = 0
        row: dict[str, Any] = {
            "epoch": position.epoch,
            "steps": position.steps,
            "lr": self.parts.optimizer.param_groups[0]["lr"],
            "train_loss": totals["loss"] / totals["images"],
            "train_top1": totals["correct"] / totals["images"],
            "gradient_passes": position.gradient_passes,
            "train_seconds": round(position.train_seconds, 3),
        }
        if position.epoch % train.eval_every == 0 or position.steps == self._trainer.total_steps:
            begin = time.perf_counter()
            for split, batches in self.parts.evaluations.items():
                self.predictions[split] = evaluate(
                    self.parts.evaluation_model, batches, self.parts.accelerator
                )
                metrics = self.predictions[split].metrics()
                row |= {f"{split}_top1": metrics.top1, f"{split}_loss": metrics.loss}
            position.eval_seconds += time.perf_counter() - begin
            best = self.progress.best_test
            if best is None or row["test_top1"] > best.top1:
                self.progress.best_test = BestEpoch(top1=row["test_top1"], epoch=position.epoch)
        self.progress.history.append(row)
        self._totals.reset()
        self.observer.on_epoch(row)

    def _interrupted(self) -> tuple[Status, str]:
        self._save()
        return "interrupted", f"stopped by signal {self.interruption.received}; the same command goes on"

    def _save(self) -> None:
        totals = self._reduced_totals()
        state = self.parts.optimizer.state_dict()
        if not self.parts.accelerator.is_main_process:
            return
        progress = self.progress
        save_checkpoint(
            self.folder,
            self.parts.backbone.model,
            state,
            {
                "position": asdict(progress.position),
                "totals": totals,
                "history": progress.history,
                "best_test": progress.best_test.model_dump() if progress.best_test else None,
                "restarts": progress.restarts,
            },
        )
