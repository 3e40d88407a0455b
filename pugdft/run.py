"""A run under way: epochs, evaluations, checkpoints, and the record that it comes to."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from pugdft.checkpoint import remove_checkpoints
from pugdft.consultation import Consultation
from pugdft.errors import RunFailed
from pugdft.failures import explained, is_out_of_memory
from pugdft.freezing import averages_over_batch, training_mode
from pugdft.interruption import Interruption
from pugdft.keeper import Keeper
from pugdft.loop import Position, Totals, Trainer, evaluate, new_totals, train_epoch
from pugdft.observer import Observer
from pugdft.outcome import Ending, Progress, build_record, write_outcome
from pugdft.parts import Parts
from pugdft.profiling import Profile
from pugdft.recipe import Recipe
from pugdft.record import BestEpoch, RunRecord, Status
from pugdft.schedule import lr_factor
from pugdft.sound_buffers import SoundBuffers
from pugdft.soundness import Diverged, Soundness
from pugdft.starts import Starts


class Run:
    """One run of a recipe in its folder.

    Args:
        recipe: resolved.
        folder: claimed for this recipe.
        identity: the record's id.
        parts: assembled from the recipe.
        starts: of this run so far.
        observer: hears of the progress.
        profile: is told what the time goes to.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        identity: str,
        parts: Parts,
        starts: Starts,
        observer: Observer,
        profile: Profile | None = None,
    ) -> None:
        self.recipe, self.folder, self.identity = recipe, folder, identity
        self.parts, self.starts = parts, starts
        self.observer, self.profile = observer, profile or Profile()
        self.progress = Progress()
        self.interruption = Interruption()
        self._totals = new_totals(parts.device)
        self._keeper = Keeper(folder, parts, starts, self.observer)
        self._soundness = Soundness(recipe, parts.optimizer)
        self._since = time.perf_counter()
        minutes = recipe.train.checkpoint_minutes
        self._consultation = Consultation(parts.accelerator, self.interruption, 60 * minutes)
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
        """Train to the end or to whatever stops it; returns how it ended and why.

        Raises:
            RunFailed: something outside this process failed; the same command goes on.
        """
        position, trainer = self.progress.position, self._trainer
        self._consultation.start(position.steps)
        self._soundness.start(position.steps)
        self._buffers = SoundBuffers(self.parts.backbone.model, self.recipe.train.max_skipped_steps > 0)
        self.observer.on_start(trainer.total, trainer.spent(position), self.recipe.train.batch_size)
        try:
            with self.interruption, self.profile.running():
                while trainer.spent(position) < trainer.total or position.step_in_epoch:
                    if not self._train_epoch():
                        return self._interrupted()
                    self._finish_epoch()
                    if trainer.spent(position) < trainer.total:
                        if self._consultation.ask(position.steps).stop:
                            return self._interrupted()
                        self._save()
            return self._verdict()
        except Diverged as error:
            return "diverged", f"{error}{self._keeper.in_words(', the last good checkpoint is of update {}')}"
        except KeyboardInterrupt:
            return "interrupted", "stopped by a second Ctrl-C; the same command goes on from the checkpoint"
        except BaseException as error:
            if isinstance(error, Exception) and is_out_of_memory(error):
                return self._out_of_memory(error)
            self._leave_evidence(error)
            raise
        finally:
            self.parts.training.close()
            self.observer.on_end()

    def begin(self) -> None:
        """Go on from the folder's newest whole checkpoint, if there is one, and note the start.

        Raises:
            UserError: it was made with other images or other initial weights, or is damaged beyond use.
        """
        found = self._keeper.begin()
        if found is not None:
            self.progress, sums = found
            if self.parts.accelerator.is_main_process:
                # They were reduced over all processes when they were saved: one of them takes them over.
                self._totals = new_totals(self.parts.device, sums)

    def finish(self, status: Status, error: str | None) -> RunRecord:
        """:meth:`conclude` at the end of the training.

        Raises:
            RunFailed: it cannot be written; what was written before stays.
        """
        try:
            return self.conclude(status, error)
        except OSError as fault:
            goes_on = self._keeper.in_words("; with that mended, the same command goes on from update {}")
            raise RunFailed(f"{explained(fault, 1)}{goes_on}") from fault

    def conclude(self, status: Status, error: str | None = None, alone: bool = False) -> RunRecord:
        """The record, written with everything it points at.

        Args:
            status: how the run ended.
            error: why, in words, if not as hoped.
            alone: the other processes may be gone: do not wait for them.
        """
        parts, ending = self.parts, Ending(status, error)
        record = build_record(self.recipe, self.identity, parts, self.progress, self.starts, ending)
        if self.profile.is_on:
            record.environment["profiled"] = True
        if parts.accelerator.is_main_process:
            write_outcome(record, parts, self.progress, self.folder)
            if status == "completed":
                remove_checkpoints(self.folder)
                self.starts.remove()
        if not alone:
            # A process that ends with an error first takes the others down, this record with them.
            parts.accelerator.wait_for_everyone()
        return record

    def _verdict(self) -> tuple[Status, str | None]:
        """Completed, unless nothing was learned or the method never did what makes it that method."""
        optimizer = self.parts.optimizer
        self._soundness.check_end(self.progress.position.steps)
        if optimizer.method.perturbs and not optimizer.num_two_pass_steps:
            return "failed", f"{self.recipe.optimizer['name']} never perturbed: its trigger did not fire"
        return "completed", None

    def smaller_micro_batch(self) -> int | None:
        """Half the images of a pass; None if half of it is not to be had."""
        size = self.parts.training.micro_batch_size
        # One image alone has no variance for BatchNorm.
        smallest = 2 if averages_over_batch(self.parts.backbone.model) else 1
        return -(-size // 2) if -(-size // 2) >= smallest and size > 1 else None

    def _train_epoch(self) -> bool:
        self._since = time.perf_counter()
        try:
            finished = train_epoch(self._trainer, self.progress.position, self._totals)
            self._check_finite()  # also waits for the device, so that the time is the work's
        finally:
            self._take_time()
        return finished

    def _take_time(self) -> None:
        """Count the time until now as training."""
        now = time.perf_counter()
        self.progress.position.train_seconds += now - self._since
        self._since = now

    def _after_step(self, position: Position, totals: Totals) -> bool:
        self._buffers.mend()
        self.profile.after_step()
        self.observer.on_step(position, totals, self._trainer.spent(position))
        decision = self._consultation.after_step(position.steps)
        if decision.looked:
            self._check_finite()
        if decision.save and not decision.stop:
            self._take_time()
            self._save()
            self._since = time.perf_counter()
        return decision.stop

    def _check_finite(self) -> None:
        num_lost = self._reduced_totals()[3] / self.parts.accelerator.num_processes
        self._soundness.check(self.progress.position.steps, num_lost)

    def _reduced_totals(self) -> list[float]:
        """The sums of :class:`Totals` over all processes; waits for the device."""
        sums: list[float] = self.parts.accelerator.reduce(self._totals.sums, "sum").tolist()
        return sums

    def _finish_epoch(self) -> None:
        """Evaluate if it is time, add a line to the history, begin the next epoch."""
        position, train, optimizer = self.progress.position, self.recipe.train, self.parts.optimizer
        loss, correct, images, _ = self._reduced_totals()
        position.epoch += 1
        position.step_in_epoch = 0
        row: dict[str, Any] = {
            "epoch": position.epoch,
            "steps": position.steps,
            "lr": optimizer.param_groups[0]["lr"],
            "train_loss": loss / images if images else None,
            "train_top1": correct / images if images else None,
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
        if needs_validation and images:
            optimizer.observe_epoch(row["train_loss"], row["validation_loss"], train.epochs)
        best = self.progress.best_test
        if "test_top1" in row and (best is None or row["test_top1"] > best.top1):
            self.progress.best_test = BestEpoch(top1=row["test_top1"], epoch=position.epoch)
        self.progress.history.append(row)
        self._totals.reset()
        self.observer.on_epoch(row)
        self._soundness.check_evaluation(position.steps, {split: row[f"{split}_loss"] for split in splits})

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
        with self.profile.span("checkpoint"):
            self._keeper.save(self.progress, self._reduced_totals())
        self._consultation.saved()

    def _out_of_memory(self, error: Exception) -> tuple[Status, str]:
        """What is left to do depends on whether others are in the middle of this update too."""
        size, smaller = self.parts.training.micro_batch_size, self.smaller_micro_batch()
        words = f"out of memory with {size} images a pass ({(str(error).splitlines() or [''])[0][:200]})"
        if self.parts.accelerator.num_processes > 1:
            if smaller is not None:
                self.starts.micro_batch_size = smaller
                self.starts.write()
                words += f"; the same command goes on with {smaller}"
            raise RunFailed(words) from None
        return "oom", words

    def _leave_evidence(self, error: BaseException) -> None:
        """Leave a record if that still works; what is no bug of ours becomes a message."""
        reason = explained(error, self.parts.accelerator.num_processes)
        goes_on = self._keeper.in_words("; the same command goes on from update {}")
        try:
            self.conclude("failed", reason or f"{type(error).__name__}: {error}", alone=True)
        except Exception as another:
            error.add_note(f"and no record could be written: {another}")
        if reason is not None:
            raise RunFailed(f"{reason}{goes_on}") from error
