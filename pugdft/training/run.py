"""Fine-tuning as a recipe says: :func:`finetune` goes from the recipe to the run's record.

A run's folder belongs to one recipe. The same call goes on from the folder's checkpoint, or returns the
record of a finished run.
"""

from __future__ import annotations

import math
import os
import signal
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from pydantic import ValidationError

from pugdft.config import yaml
from pugdft.config.load import SectionCheck, load_recipe
from pugdft.config.schema import Recipe
from pugdft.data.auto_augment import data_faults
from pugdft.data.cache import known_sha256
from pugdft.errors import FolderBusy, RunFailed, UserError, counted, reason, refuse
from pugdft.models import model_faults
from pugdft.optim import resolve_spec, spec_faults
from pugdft.optim.build import respec
from pugdft.paths import nearest_folder, write_atomically
from pugdft.predictions import Predictions
from pugdft.records import RECORD_NAME, BestEpoch, RunRecord, Status, read_record
from pugdft.training import distributed, snapshots
from pugdft.training.attempts import check_mine
from pugdft.training.averaging import copied
from pugdft.training.checkpoint import (
    BestValidation,
    CheckpointManager,
    RestartLog,
    chooses_epochs,
    load_checkpoint,
    remove_checkpoints,
)
from pugdft.training.divergence import BufferGuard, Diverged, DivergenceMonitor, precision_at_fault
from pugdft.training.performance import device_name, precision_note, rounding_of
from pugdft.training.profiler import Profile
from pugdft.training.record_writer import build_record, run_id, stored_weights, write_outcome
from pugdft.training.setup import (
    RunComponents,
    assemble,
    load,
    make_accelerator,
    prepare_device,
    prepare_images,
    source_of,
)
from pugdft.training.tracking import Tracking, check_trackers
from pugdft.training.trainer import Observer, Position, Totals, Trainer, evaluate

RECIPE_NAME = "recipe.yaml"

# What an epoch's row says of the steps that were measured in it; absent where the method has none.
MEASURED = {"gradient": "gradient_norm", "norm": "perturbation_norm", "cosine": "gradient_cosine"}


def read_recipe(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and ``KEY=VALUE`` overrides, check torch's and timm's names too, write options out."""
    checks: dict[str, SectionCheck] = {"optimizer": spec_faults, "model": model_faults, "data": data_faults}
    recipe = load_recipe(source, overrides, checks, respec)
    return recipe.model_copy(update={"optimizer": resolve_spec(recipe.optimizer)})


def finetune(
    recipe: Recipe,
    output: str | Path | None = None,
    *,
    resume: bool = True,
    observer: Observer | None = None,
    profile: bool = False,
    micro_batch_size: int | None = None,
    track: Sequence[str] = (),
) -> tuple[RunRecord, Path]:
    """Fine-tune as the recipe, from :func:`read_recipe`, says and write a record.

    A finished run of the same recipe in the same folder is returned as it is; an unfinished one goes on
    from its checkpoint. Once training has begun, a record is written whatever happens.

    Args:
        output: the run's folder; by default ``runs/ID``, or where the same run went on before its data moved.
        resume: False begins anew.
        profile: measure where the time goes, and write a trace into the folder.
        micro_batch_size: images of a pass to begin with, if more are known not to fit into memory.
        track: names of Accelerate's trackers, such as tensorboard, that get the run's numbers.

    Returns:
        The record and its path; the status is ``completed``, ``interrupted``, ``diverged`` or ``oom``.

    Raises:
        UserError: the recipe, the data, the weights or the folder cannot be used.
    """
    check_trackers(track)
    observer = observer or Observer()
    folder = Path(output) if output else _default_folder(recipe, resume, observer.on_message)
    finished = _finished_record(folder, recipe)
    if resume and finished is not None:
        if finished.recipe.get("data", {}).get("name") != recipe.data.name:
            check(folder, recipe, prepare_images(recipe, observer.on_message).sha256)
        remove_checkpoints(folder)  # it may have been killed before it did that itself
        observer.on_message("this run is complete already; --no-resume runs it again")
        return finished, folder / RECORD_NAME
    with _usable(folder), tempfile.TemporaryFile(dir=nearest_folder(folder)):
        pass  # images are not decoded for a folder that cannot be written
    kind, precision = prepare_device(recipe), recipe.train.precision
    facts = {"device": kind, "device_name": device_name(kind), "threads": torch.get_num_threads()}
    facts |= {"processes": int(os.environ.get("WORLD_SIZE", "1")), "precision": precision}
    observer.on_facts("device", {**facts, "folder": str(folder)})
    if note := precision_note(precision, kind):
        observer.on_message(note)
    restart_log = RestartLog.read(folder) if resume else RestartLog(folder)
    restart_log.micro_batch_size = restart_log.micro_batch_size or micro_batch_size
    # In this order: while one process decodes or downloads, the others wait for its file lock, which has no
    # time limit; a process group has one.
    loaded, error = distributed.attempt(partial(load, recipe, observer.on_message, folder))
    accelerator = make_accelerator(recipe)
    distributed.raise_together(accelerator, error)
    if track and accelerator.is_main_process:
        observer = Tracking(observer, track, recipe, folder)
    assert loaded is not None
    components = assemble(recipe, accelerator, *loaded, restart_log.micro_batch_size)
    sizes = {"training": len(components.training.images)}
    sizes |= {split: len(batches.images) for split, batches in components.evaluations.items()}
    counts = {"classes": len(components.store.classes), "parameters": components.backbone.num_parameters}
    observer.on_facts("data", {"images": sizes, **counts})
    observer.on_detail(f"performance: {components.switches}")
    versions = ", ".join(f"{each} {version(each)}" for each in ("pugdft", "torch", "timm", "accelerate"))
    observer.on_detail(f"versions: {versions}")
    if recipe.train.takes_snapshots:
        steps, model = components.training.steps_per_epoch, components.backbone.model
        size = snapshots.num_bytes(model.state_dict())
        snapshots.check_room(recipe, steps, size, folder)
        observer.on_message(f"train.snapshots: {snapshots.described(recipe, steps, size)}")
    profiler = Profile(folder if profile and accelerator.is_main_process else None, components.device)
    # The folder is claimed only now: an error found until here leaves nothing behind.
    lock, error = None, None
    if accelerator.is_main_process:
        lock, error = distributed.attempt(lambda: claim(folder, recipe, resume, components.store.sha256))
    distributed.raise_together(accelerator, error)
    with lock or nullcontext(), rounding_of(components.switches, components.device.type):
        while True:
            del loaded  # so that a model that does not fit into memory can go
            run = Run(folder, components, restart_log, observer, profiler)
            status, why = run.train()
            smaller = run.smaller_micro_batch() if status == "oom" else None
            if smaller is None:
                break
            observer.on_message(f"{why}; trying again with {smaller}")
            restart_log.micro_batch_size = smaller
            # Free the model and all that refers to it before another is made.
            del run, components
            accelerator.free_memory()
            loaded = load(recipe)
            components = assemble(recipe, accelerator, *loaded, smaller)
        record = run.finish(status, why)
    if profiler.is_on:
        observer.on_message(profiler.table())
    return record, folder / RECORD_NAME


@dataclass
class Run:
    """One run of a recipe in its folder, from the newest whole checkpoint on, to the record."""

    folder: Path
    components: RunComponents
    restart_log: RestartLog
    observer: Observer
    profile: Profile

    def __post_init__(self) -> None:
        components, self.recipe = self.components, self.components.recipe
        accelerator, train = components.accelerator, self.recipe.train
        self.trainer = Trainer(components, self._after_step, self.profile)
        self.checkpoints = CheckpointManager(self.folder, components, self.restart_log, self.observer)
        self.state = self.checkpoints.resume()
        is_main, say = accelerator.is_main_process, self.observer.on_message
        self.snapshots = snapshots.Snapshots(self.folder, train, self.state.snapshots, is_main, say)
        # The saved sums are those of all processes: one of them takes them over.
        sums = self.state.totals if accelerator.is_main_process else [0.0] * 4
        self.totals = Totals(components.device, sums)
        steps = self.state.position.steps
        self.divergence = DivergenceMonitor(self.recipe, components.optimizer, steps)
        self.buffer_guard = BufferGuard(components.backbone.model, enabled=train.max_skipped_steps > 0)
        self.stopped_early = False  # for the recipe's ``patience``
        self.stop_signal = distributed.StopSignal()
        minutes = train.checkpoint_minutes
        self.rank_sync = distributed.RankSync(accelerator, self.stop_signal, minutes, steps)

    def train(self) -> tuple[Status, str | None]:
        """Train to the end, or until something stops it; return how it ended and why."""
        trainer, position = self.trainer, self.state.position
        self.observer.on_start(trainer.total, trainer.spent(position), self.recipe.train.batch_size)
        try:
            with self.stop_signal, self.profile.running():
                self._begin()
                if not self._train_epochs():
                    unit = "gradient pass" if self.recipe.train.budget == "passes" else "update"
                    place = f"{unit} {round(trainer.spent(position)):,} of {trainer.total:,}"
                    is_term = self.stop_signal.received == signal.SIGTERM
                    told = " (signal 15)" if is_term else ""
                    return "interrupted", f"stopped after {place}; the same command goes on{told}"
            self.divergence.check_end(position.steps)
            self._take_snapshot()
            optimizer = self.components.optimizer
            if optimizer.method.perturbs and not optimizer.num_two_pass_steps:
                return "failed", f"{self.recipe.optimizer['name']} never perturbed: its trigger did not fire"
            return "completed", None
        except Diverged as error:
            if why := precision_at_fault(self.components, trainer.last_batch, error.split):
                return "failed", f"{error}: {why}"
            last_good = self.checkpoints.with_saved_step(", the last good checkpoint is of update {}")
            return "diverged", f"{error}{last_good}"
        except KeyboardInterrupt:
            goes_on = self.checkpoints.with_saved_step("; the same command goes on from update {}")
            return "interrupted", f"stopped by a second Ctrl-C{goes_on}"
        except FolderBusy:  # it is another worker's now: not even a record is written
            raise
        except BaseException as error:
            if distributed.is_out_of_memory(error):
                return self._out_of_memory(error)
            self._record_failure(error)
            raise
        finally:
            self.components.training.close()
            self.observer.on_end()

    def finish(self, status: Status, error: str | None) -> RunRecord:
        """Write the record at the end of the training; if it cannot be written, what was before stays."""
        try:
            record = self._write_record(status, error)
        except OSError as fault:
            words = "; with that mended, the same command goes on from update {}"
            goes_on = self.checkpoints.with_saved_step(words)
            raise RunFailed(f"{distributed.explain_failure(fault, 1)}{goes_on}") from fault
        # A process that ends with an error first takes the others down, this record with them.
        self.components.accelerator.wait_for_everyone()
        return record

    def _begin(self) -> None:
        """Before the first update, evaluate and store the weights if the recipe asks for it."""
        position, history = self.state.position, self.state.history
        if position.steps:
            return
        self._take_snapshot()
        if self.recipe.train.evaluates_start and not history:
            row: dict[str, Any] = {"epoch": 0, "steps": 0, "gradient_passes": 0, "train_seconds": 0.0}
            self._evaluate(row, needs_validation=False)
            history.append(row)
            self.observer.on_epoch(row)

    def _take_snapshot(self) -> None:
        check_mine(self.folder)
        self.snapshots.take(self.state.position.steps, self.components.backbone.model.state_dict)

    def _train_epochs(self) -> bool:
        """Train, evaluate and save, epoch after epoch; return False if a signal stopped the run."""
        trainer, position = self.trainer, self.state.position
        while trainer.spent(position) < trainer.total or position.step_in_epoch:
            self._since = time.perf_counter()
            is_stopped = not trainer.train_epoch(position, self.totals)
            self._check_finite()  # also waits for the device, so that its work is timed
            self._take_time()
            if not is_stopped:
                self._finish_epoch()
                if trainer.spent(position) >= trainer.total:
                    break
                if self._is_out_of_patience():
                    self.stopped_early = True
                    why = f"no better validation for {counted(self.recipe.train.patience or 0, 'epoch')}"
                    self.observer.on_message(f"stopped after epoch {position.epoch}: {why}")
                    break
                is_stopped = self.rank_sync.poll_now(position.steps).stop
            self._save()
            if is_stopped:
                return False
        return True

    def _after_step(self, position: Position, totals: Totals) -> bool:
        self.buffer_guard.after_step()
        if self.components.average is not None:
            self.components.average.update(position.steps)
        self.profile.after_step()
        self.observer.on_step(position, totals, self.trainer.spent(position))
        self._take_time()
        if self.snapshots.is_due_after_step(position.steps):
            self._take_snapshot()
            self._since = time.perf_counter()  # a snapshot is no training
        decision = self.rank_sync.poll(position.steps)
        if decision.polled:
            self._check_finite()
        if decision.save and not decision.stop:
            self._take_time()  # before the save, which is no training
            self._save()
            self._since = time.perf_counter()
        return decision.stop

    def _take_time(self) -> None:
        """Count the time since the last call as training."""
        now = time.perf_counter()
        self.state.position.train_seconds += now - self._since
        self._since = now

    def _check_finite(self) -> None:
        num_lost = self._reduced_totals()[3] / self.components.accelerator.num_processes
        self.divergence.check(self.state.position.steps, num_lost)

    def _reduced_totals(self) -> list[float]:
        """Sum the totals over all processes; waits for the device."""
        return list(self.components.accelerator.reduce(self.totals.sums, "sum").tolist())

    def _finish_epoch(self) -> None:
        """Evaluate if it is time, add a row to the history, begin the next epoch."""
        state, position, optimizer = self.state, self.state.position, self.components.optimizer
        loss, correct, images, _ = self._reduced_totals()
        position.epoch, position.step_in_epoch = position.epoch + 1, 0
        row: dict[str, Any] = {
            "epoch": position.epoch,
            "steps": position.steps,
            "lr": optimizer.param_groups[0]["lr"],
            "train_loss": loss / images if images else None,
            "train_top1": correct / images if images else None,
            "gradient_passes": position.gradient_passes,
            "train_seconds": round(position.train_seconds, 3),
        }
        row |= {MEASURED[what]: mean for what, mean in optimizer.diagnostics.end_epoch().items()}
        needs_validation = optimizer.method.trigger.needs_validation
        found = self._evaluate(row, needs_validation)
        if needs_validation and images:
            # Of the weights that are trained, also where their average ranks.
            loss_now = row.get("plain_validation_loss", row["validation_loss"])
            optimizer.observe_epoch(row["train_loss"], loss_now, self.recipe.train.epochs)
        if self._is_best_epoch(row) or self.recipe.train.keep == "last":
            state.predictions |= found
        if "test_top1" in row and (state.best_test is None or row["test_top1"] > state.best_test.top1):
            state.best_test = BestEpoch(top1=row["test_top1"], epoch=position.epoch)
        state.history.append(row)
        self.totals.sums[:3] = 0
        if self.snapshots.is_due_after_epoch(position.epoch):
            self._take_snapshot()
        self.observer.on_epoch(row)
        if lost := [split for split in found if not math.isfinite(row[f"{split}_loss"])]:
            message = f"the {lost[0].replace('_', ' ')} loss is not finite after update {position.steps}"
            # The cause is looked for in the weights that are trained, not in their average.
            of_trained = [split for split in lost if f"plain_{split}" not in found]
            raise Diverged(message, of_trained[0].removeprefix("plain_") if of_trained else None)

    def _is_due(self) -> bool:
        """Whether all splits are evaluated after this epoch."""
        position = self.state.position
        is_end = self.trainer.spent(position) >= self.trainer.total
        return is_end or position.epoch % self.recipe.train.eval_every == 0

    def _is_best_epoch(self, row: dict[str, Any]) -> bool:
        """Whether the epoch is the best so far on held-out images; then its weights are copied to be kept."""
        state, components, best = self.state, self.components, self.state.best_validation
        if not chooses_epochs(self.recipe.train) or not self._is_due():
            return False
        this = BestValidation(row["epoch"], row["validation_top1"], row["validation_loss"])
        if best is not None and not best.is_beaten_by(this):
            return False
        state.best_validation = this
        is_stored = "test" in components.evaluations and components.accelerator.is_main_process
        if self.recipe.train.keep == "best" and is_stored:
            state.kept = {name: copied(weights) for name, weights in stored_weights(components).items()}
        return True

    def _is_out_of_patience(self) -> bool:
        patience, best = self.recipe.train.patience, self.state.best_validation
        if patience is None or best is None or not self._is_due():
            return False
        return self.state.position.epoch - best.epoch >= patience

    def _evaluate(self, row: dict[str, Any], needs_validation: bool) -> dict[str, Predictions]:
        """Evaluate the splits whose turn it is, add their metrics to ``row``, return their predictions.

        Where the average of the weights ranks, the weights themselves are evaluated as ``plain_test`` and so
        on.
        """
        run, average, is_due = self.components, self.components.average, self._is_due()
        found: dict[str, Predictions] = {}
        of_train: dict[str, Predictions] = {}  # for the history alone
        begin = time.perf_counter()
        with self.profile.span("evaluation"):
            for prefix in ("", "plain_") if average else ("",):
                with average.in_model() if average and not prefix else nullcontext():
                    for split, batches in run.evaluations.items():
                        if is_due or (needs_validation and split == "validation"):
                            key = f"{prefix}{split}"
                            found[key] = evaluate(run.evaluation_model, batches, run.accelerator)
                    if is_due and run.train_sample is not None:
                        seen = evaluate(run.evaluation_model, run.train_sample, run.accelerator)
                        of_train[f"{prefix}train_eval"] = seen
        for split, predictions in (of_train | found).items():
            metrics = predictions.metrics()
            row |= {f"{split}_top1": metrics.top1, f"{split}_loss": metrics.loss}
        self.state.position.eval_seconds += time.perf_counter() - begin
        return found

    def _save(self) -> None:
        with self.profile.span("checkpoint"):
            self.state.totals = self._reduced_totals()
            self.checkpoints.save(self.state)
        self.rank_sync.note_saved()

    def smaller_micro_batch(self) -> int | None:
        """Return half the images of a pass; None if no pass can be smaller or lacked the memory."""
        return None if self.trainer.is_in_optimizer else self.components.smaller_micro_batch()

    def _out_of_memory(self, error: BaseException) -> tuple[Status, str]:
        """Return how the run ended; with other processes in the same update, end it now instead."""
        size, smaller = self.components.training.micro_batch_size, self.smaller_micro_batch()
        first_line = (str(error).splitlines() or [""])[0][:200]
        if self.trainer.is_in_optimizer:
            words = (
                f"out of memory in the optimizer's own work, between the passes ({first_line}): smaller "
                "passes would not help. Its state is too large: choose another optimizer, or options that "
                "keep less"
            )
            if self.components.accelerator.num_processes > 1:
                raise RunFailed(words) from None
            return "oom", words
        words = f"out of memory with {size} images a pass ({first_line})"
        if self.components.accelerator.num_processes > 1:
            if smaller is not None:
                self.restart_log.micro_batch_size = smaller
                self.restart_log.write()
                words += f"; the same command goes on with {smaller}"
            raise RunFailed(words) from None
        return "oom", words

    def _record_failure(self, error: BaseException) -> None:
        """Write a record if that still works; raise a message if the error is no bug of pugdft."""
        why = distributed.explain_failure(error, self.components.accelerator.num_processes)
        text = why or f"{type(error).__name__}: {error}"
        # The other processes may be gone: do not wait for them.
        _, another = distributed.attempt(lambda: self._write_record("failed", text))
        if another is not None:
            error.add_note(f"and no record could be written: {another}")
        if why is not None:
            goes_on = self.checkpoints.with_saved_step("; the same command goes on from update {}")
            raise RunFailed(f"{why}{goes_on}") from error

    def _write_record(self, status: Status, error: str | None) -> RunRecord:
        components, state = self.components, self.state
        record = build_record(components, state, self.restart_log, status, error)
        if record.metrics and record.metrics.kept:
            record.metrics.kept.stopped_early = self.stopped_early
        if self.profile.is_on:
            record.environment["profiled"] = True
        if components.accelerator.is_main_process:
            check_mine(self.folder)
            write_outcome(record, components, state, self.folder)
            if status == "completed":
                remove_checkpoints(self.folder)
        return record


def check(folder: Path, recipe: Recipe, images_sha256: str | None = None) -> bool:
    """Refuse a folder that holds another recipe's run, or a folder where a run's file goes.

    Another name of the data is none of another recipe if the images are the same: their digest decides, as
    soon as it is known. Returns whether the name is another.
    """
    for name in (RECORD_NAME, "predictions.npz", "model.safetensors", RECIPE_NAME):
        where = folder / name
        if where.is_dir():
            raise UserError(f"{where}: is a folder, where a run writes a file; choose another --output")
    path = folder / RECIPE_NAME
    if not path.is_file():
        return False
    unreadable = f"{path}: is not a recipe; choose another --output, or move it away"
    with refuse((OSError, UnicodeDecodeError, ValidationError), lambda error: unreadable):
        # A recipe of an older version lacks newer keys: their defaults are what it ran with.
        other = Recipe.model_validate(yaml.parse(path.read_text(encoding="utf-8"), str(path)))
    differences = differences_between(other.as_dict(), recipe.as_dict())
    if differences and all(line.startswith("data.name: ") for line in differences):
        known = _images_of_run(folder)
        if known is not None and images_sha256 in (None, known):
            return True
    if differences:
        shown = "\n".join(f"  {line}" for line in differences)
        remedy = "Choose another --output, or move that run away."
        raise UserError(f"{folder}: holds the run of another recipe:\n{shown}\n{remedy}")
    return False


def _default_folder(recipe: Recipe, resume: bool, say: Callable[[str], None]) -> Path:
    """``runs/ID``, or the folder in ``runs`` of the same recipe on the same images at another path."""
    folder, images = Path("runs") / run_id(recipe), ""
    for path in sorted(Path("runs").glob(f"*/{RECIPE_NAME}")) if resume and not folder.exists() else ():
        with suppress(OSError, ValueError):  # no recipe, or data that is refused later
            other = Recipe.model_validate(yaml.parse(path.read_text(encoding="utf-8"), str(path)))
            found = differences_between(other.as_dict(), recipe.as_dict())
            if not all(each.startswith("data.name: ") for each in found):
                continue
            images = images or known_sha256(source_of(recipe), recipe.data.image_size) or "none"
            if _images_of_run(path.parent) == images:
                say(f"{path.parent}: is this run" + (f", on images at {other.data.name}" if found else ""))
                return path.parent
    return folder


def _images_of_run(folder: Path) -> str | None:
    """The digest of the images that a folder's run was trained on; None if it made no checkpoint yet."""
    with suppress(UserError):
        record = read_record(folder / RECORD_NAME)
        if record.data is not None:
            return record.data.sha256
    checkpoint, _ = load_checkpoint(folder)
    return checkpoint.state.get("sources", {}).get("images") if checkpoint else None


def claim(
    folder: Path, recipe: Recipe, resume: bool = True, images_sha256: str | None = None
) -> AbstractContextManager[Any]:
    """Make ``folder`` this recipe's, locked until the end of a ``with`` over the returned lock."""
    taken = f"{folder}: another process is running here; wait for it, or choose another --output"
    check_mine(folder)
    with _usable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(folder / ".lock", timeout=0).acquire()
        except Timeout:
            raise FolderBusy(taken) from None
        # Again: until now another process may have run another recipe here.
        has_moved = check(folder, recipe, images_sha256)
        if has_moved or not (folder / RECIPE_NAME).is_file():
            write_atomically(folder / RECIPE_NAME, yaml.dump(recipe.as_dict()).encode())
    if not resume:  # nothing of the earlier run may be taken for this one's
        (folder / RECORD_NAME).unlink(missing_ok=True)
        remove_checkpoints(folder)
    return lock


def _usable(folder: Path) -> AbstractContextManager[None]:
    """Around the use of an output folder: turn the system's errors into a message."""
    return refuse(OSError, lambda error: f"{folder}: cannot be used as the output folder: {reason(error)}")


def differences_between(theirs: Any, ours: Any, where: str = "") -> list[str]:
    """List the differences of two nested values, one line each with its dotted name."""
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        pairs = {key: (theirs.get(key), ours.get(key)) for key in (*ours, *theirs)}
    elif isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours):
        pairs = dict(enumerate(zip(theirs, ours, strict=True)))
    else:
        return [] if theirs == ours else [f"{where}: {theirs!r} there, {ours!r} here"]
    places = {key: f"{where}.{key}" if where else str(key) for key in pairs}
    return [line for key, pair in pairs.items() for line in differences_between(*pair, places[key])]


def _finished_record(folder: Path, recipe: Recipe) -> RunRecord | None:
    """Read the record of this run, if it is complete; refuse a folder that is another run's."""
    path = folder / RECORD_NAME
    with _usable(folder):  # a name may be too long
        check(folder, recipe)
    record = None
    with suppress(UserError):  # none, or none that can be read: the run writes another
        record = read_record(path)
    # A run writes its recipe first: a record alone was put there by somebody.
    if record is not None and record.id != run_id(recipe) and not (folder / RECIPE_NAME).is_file():
        raise UserError(f"{path}: is of another run ({record.id}); choose another --output, or move it away")
    return record if record is not None and record.status == "completed" else None
