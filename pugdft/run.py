"""A run under way: epochs, evaluations, checkpoints, and the record that it comes to."""

from __future__ import annotations

import math
import signal
import time
from pathlib import Path
from typing import Any

import torch

from pugdft.checkpoint import Checkpoint, load_checkpoint, remove_checkpoints, save_checkpoint, save_weights
from pugdft.errors import RunFailed, UserError
from pugdft.interruption import Interruption
from pugdft.loop import Position, Totals, Trainer, evaluate, new_totals, train_epoch
from pugdft.models import training_mode
from pugdft.observer import Observer
from pugdft.outcome import Ending, Progress, build_record
from pugdft.parts import Parts
from pugdft.profiling import Profile
from pugdft.recipe import Recipe
from pugdft.record import Artifact, BestEpoch, RunRecord, Status, file_sha256, write_record
from pugdft.schedule import lr_factor

# Asking an accelerator whether the loss is finite, and other processes whether they were told to stop,
# waits for the device: not more often than this, in seconds and in updates.
_CONSULT_SECONDS = 2.0
_CONSULT_STEPS = 50


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
        profile: is told what the time goes to.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        identity: str,
        parts: Parts,
        observer: Observer,
        profile: Profile | None = None,
    ) -> None:
        self.recipe, self.folder, self.identity = recipe, folder, identity
        self.parts, self.observer, self.profile = parts, observer, profile or Profile()
        self.progress = Progress()
        self.interruption = Interruption()
        self._totals = new_totals(parts.device)
        self._next_consultation, self._last_consultation = 1, (0, time.perf_counter())
        train, steps = recipe.train, parts.training.steps_per_epoch
        total_steps = min(train.epochs * steps, train.max_steps or train.epochs * steps)
        warmup_steps = round(recipe.schedule.warmup_epochs * steps)
        self._trainer = Trainer(
            model=parts.model,
            optimizer=parts.optimizer,
            batches=parts.training,
            accelerator=parts.accelerator,
            total=total_steps,
            counts_passes=train.budget == "passes",
            label_smoothing=train.label_smoothing,
            lr_factor=lambda step: lr_factor(recipe.schedule.name, step, total_steps, warmup_steps),
            set_training_mode=lambda: training_mode(
                parts.backbone.model, train.freeze == "backbone", train.batch_norm == "fixed"
            ),
            after_step=self._after_step,
            profile=self.profile,
            ascent=parts.ascent,
        )

    def train(self) -> tuple[Status, str | None]:
        """Train to the end or to whatever stops it; returns how it ended and why."""
        position, trainer = self.progress.position, self._trainer
        self._next_consultation, self._last_consultation = (
            position.steps + 1,
            (position.steps, time.perf_counter()),
        )
        self.observer.on_start(trainer.total, trainer.spent(position), self.recipe.train.batch_size)
        try:
            with self.interruption, self.profile.running():
                while trainer.spent(position) < trainer.total or position.step_in_epoch:
                    if not self._train_epoch():
                        return self._interrupted()
                    self._finish_epoch()
                    if trainer.spent(position) < trainer.total:
                        if self._consult():
                            return self._interrupted()
                        with self.profile.span("checkpoint"):
                            self._save()
            return self._verdict()
        except Diverged as error:
            return "diverged", str(error)
        except torch.OutOfMemoryError as error:
            return "oom", str(error).splitlines()[0]
        except KeyboardInterrupt:
            return (
                "interrupted",
                "stopped by a second Ctrl-C; the same command goes on from the last checkpoint",
            )
        except BaseException as error:
            # A bug or a broken machine: leave the evidence if that still works, then let it be seen.
            try:
                self.conclude("failed", f"{type(error).__name__}: {error}", alone=True)
            except Exception as another:
                error.add_note(f"and no record could be written: {another}")
            raise
        finally:
            self.parts.training.close()
            self.observer.on_end()

    def restore(self) -> None:
        """Go on from the folder's checkpoint if there is a whole one.

        Raises:
            UserError: it was made with other images or other initial weights.
        """
        checkpoint = load_checkpoint(self.folder)
        if checkpoint is None:
            return
        self._check_sources(checkpoint)
        self.parts.backbone.model.load_state_dict(checkpoint.weights)
        self.parts.optimizer.load_state_dict(checkpoint.optimizer)
        self.progress = Progress.from_state(checkpoint.state, checkpoint.predictions)
        totals = checkpoint.state["totals"]
        if self.parts.accelerator.is_main_process:
            # The sums were reduced over all processes when they were saved: one of them takes them over.
            self._totals = new_totals(self.parts.device, **totals)
        self.observer.on_message(f"going on from update {self.progress.position.steps}")

    def conclude(self, status: Status, error: str | None = None, alone: bool = False) -> RunRecord:
        """The record, written with everything it points at.

        Args:
            status: how the run ended.
            error: why, in words, if not as hoped.
            alone: the other processes may be gone: do not wait for them.
        """
        parts, predictions = self.parts, self.progress.predictions
        record = build_record(self.recipe, self.identity, parts, self.progress, Ending(status, error))
        if self.profile.is_on:
            record.environment["profiled"] = True
        if parts.accelerator.is_main_process:
            paths = {}
            for split, each in predictions.items():
                name = "predictions" if split == "test" else f"predictions_{split}"
                each.write(self.folder / f"{name}.npz")
                paths[name] = f"{name}.npz"
            # Of a search nobody wants the weights, and there are many.
            if status == "completed" and self.recipe.train.evaluate == "all":
                save_weights(parts.backbone.model, self.folder / "model.safetensors")
                paths["model"] = "model.safetensors"
            elif status != "completed" and (self.folder / "checkpoint" / "state.json").is_file():
                paths["checkpoint"] = "checkpoint/state.json"
            record.artifacts = {
                name: Artifact(path=path, sha256=file_sha256(self.folder / path))
                for name, path in paths.items()
            }
            write_record(record, self.folder)
            if status == "completed":
                remove_checkpoints(self.folder)
        if not alone:
            # A process that ends with an error first takes the others down, this record with them.
            parts.accelerator.wait_for_everyone()
        return record

    def _verdict(self) -> tuple[Status, str | None]:
        """Completed, unless the method never did what makes it that method."""
        optimizer = self.parts.optimizer
        if optimizer.method.perturbs and not optimizer.num_two_pass_steps:
            return "failed", f"{self.recipe.optimizer['name']} never perturbed: its trigger did not fire"
        return "completed", None

    def _check_sources(self, checkpoint: Checkpoint) -> None:
        sources = self._sources()
        for what, digest in checkpoint.state["sources"].items():
            if sources[what] != digest:
                raise UserError(
                    f"{self.folder}: the {what} have changed since this run began ({digest[:12]}… then, "
                    f"{sources[what][:12]}… now); --no-resume starts anew"
                )

    def _sources(self) -> dict[str, str]:
        return {"images": self.parts.store.sha256, "weights": self.parts.backbone.weights_sha256}

    def _train_epoch(self) -> bool:
        begin = time.perf_counter()
        before = self.progress.position.train_seconds
        try:
            finished = train_epoch(self._trainer, self.progress.position, self._totals)
            self._check_loss()  # also waits for the device, so that the time is the work's
        finally:
            self.progress.position.train_seconds = before + time.perf_counter() - begin
        return finished

    def _after_step(self, position: Position, totals: Totals) -> bool:
        self.profile.after_step()
        self.observer.on_step(position, totals, self._trainer.spent(position))
        if self.parts.device.type == "cpu" and self.parts.accelerator.num_processes == 1:
            self._check_loss()  # nothing to wait for
            return bool(self.interruption.received)
        return position.steps >= self._next_consultation and self._consult()

    def _consult(self) -> bool:
        """Whether any process was told to stop; the same answer, and the same next time, on all of them."""
        steps, moment = self.progress.position.steps, time.perf_counter()
        last_steps, last_time = self._last_consultation
        pace = (moment - last_time) / max(1, steps - last_steps)
        facts = torch.tensor([float(self.interruption.received > 0), pace], device=self.parts.device)
        told, pace_sum = self.parts.accelerator.reduce(facts, "sum").tolist()
        pace = pace_sum / self.parts.accelerator.num_processes
        self._last_consultation = (steps, moment)
        steps_away = int(_CONSULT_SECONDS / max(pace, 1e-9))
        self._next_consultation = steps + min(_CONSULT_STEPS, max(1, steps_away))
        self._check_loss()
        if told and not self.interruption.received:
            self.interruption.received = int(signal.SIGTERM)
        return bool(told)

    def _check_loss(self) -> None:
        if self._totals.images and not math.isfinite(self._reduced_totals()["loss"]):
            raise Diverged(f"the training loss is not finite after update {self.progress.position.steps}")

    def _reduced_totals(self) -> dict[str, Any]:
        totals = self._totals
        sums = torch.stack([totals.loss, totals.correct, torch.full_like(totals.loss, totals.images)])
        loss, correct, images = self.parts.accelerator.reduce(sums, "sum").tolist()
        return {"loss": loss, "correct": correct, "images": int(images)}

    def _finish_epoch(self) -> None:
        """Evaluate if it is time, add a line to the history, begin the next epoch."""
        position, train, optimizer = self.progress.position, self.recipe.train, self.parts.optimizer
        totals = self._reduced_totals()
        position.epoch += 1
        position.step_in_epoch = 0
        row: dict[str, Any] = {
            "epoch": position.epoch,
            "steps": position.steps,
            "lr": optimizer.param_groups[0]["lr"],
            "train_loss": totals["loss"] / totals["images"],
            "train_top1": totals["correct"] / totals["images"],
            "gradient_passes": position.gradient_passes,
            "train_seconds": round(position.train_seconds, 3),
        }
        is_last = self._trainer.spent(position) >= self._trainer.total
        is_due = position.epoch % train.eval_every == 0 or is_last
        needs_validation = optimizer.method.trigger.needs_validation
        splits = [
            split
            for split in self.parts.evaluations
            if is_due or (needs_validation and split == "validation")
        ]
        with self.profile.span("evaluation"):
            row |= self._evaluate(splits)
        if needs_validation:
            optimizer.observe_epoch(row["train_loss"], row["validation_loss"], train.epochs)
        best = self.progress.best_test
        if "test_top1" in row and (best is None or row["test_top1"] > best.top1):
            self.progress.best_test = BestEpoch(top1=row["test_top1"], epoch=position.epoch)
        self.progress.history.append(row)
        self._totals.reset()
        self.observer.on_epoch(row)

    def _evaluate(self, splits: list[str]) -> dict[str, float]:
        begin = time.perf_counter()
        row: dict[str, float] = {}
        for split in splits:
            predictions = evaluate(
                self.parts.evaluation_model, self.parts.evaluations[split], self.parts.accelerator
            )
            metrics = predictions.metrics()
            self.progress.predictions[split] = predictions
            row |= {f"{split}_top1": metrics.top1, f"{split}_loss": metrics.loss}
        self.progress.position.eval_seconds += time.perf_counter() - begin
        return row

    def _interrupted(self) -> tuple[Status, str]:
        self._save()
        return "interrupted", f"stopped by signal {self.interruption.received}; the same command goes on"

    def _save(self) -> None:
        totals = self._reduced_totals()
        optimizer = self.parts.optimizer.state_dict()
        if self.parts.accelerator.is_main_process:
            state = {**self.progress.to_state(), "totals": totals, "sources": self._sources()}
            save_checkpoint(
                self.folder, self.parts.backbone.model, optimizer, state, self.progress.predictions
            )
        self.parts.accelerator.wait_for_everyone()
