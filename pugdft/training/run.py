"""Fine-tuning as a recipe says: :func:`finetune` goes from the recipe to the run's record.

A run's folder belongs to one recipe. The same call goes on from the folder's checkpoint, or returns the
record of a finished run.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from filelock import FileLock, Timeout
from pydantic import ValidationError

from pugdft.config import yaml
from pugdft.config.load import SectionCheck, load_recipe
from pugdft.config.schema import Recipe
from pugdft.data.auto_augment import data_faults
from pugdft.data.cache import Store
from pugdft.errors import RunFailed, UserError
from pugdft.models import Backbone, model_faults
from pugdft.optim import resolve_spec, spec_faults
from pugdft.optim.build import respec
from pugdft.paths import write_atomically
from pugdft.records import RECORD_NAME, BestEpoch, RunRecord, SplitMetrics, Status, read_record
from pugdft.training.callbacks import Observer
from pugdft.training.checkpoint import CheckpointManager, RestartLog, RunState, remove_checkpoints
from pugdft.training.distributed import (
    RankSync,
    StopSignal,
    explain_failure,
    is_out_of_memory,
    on_first_process,
    raise_together,
)
from pugdft.training.divergence import BufferGuard, Diverged, DivergenceMonitor
from pugdft.training.performance import rounding_of
from pugdft.training.profiler import MeasuredProfile, Profile
from pugdft.training.record_writer import build_record, write_outcome
from pugdft.training.setup import RunComponents, assemble, load, make_accelerator, prepare_device
from pugdft.training.trainer import Position, Totals, Trainer, evaluate, new_totals

RECIPE_NAME = "recipe.yaml"
_LONGEST_NAME = 64  # characters of a data set's name in a run's; the digest tells runs apart


def read_recipe(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, check it against torch's and timm's names too, and write every optimizer option out.

    Args:
        source: path, bundled name, or mapping.
        overrides: ``KEY=VALUE`` texts.

    Raises:
        UserError: with every fault of the file and the overrides.
    """
    checks: dict[str, SectionCheck] = {"optimizer": spec_faults, "model": model_faults, "data": data_faults}
    recipe = load_recipe(source, overrides, checks, respec)
    return recipe.model_copy(update={"optimizer": resolve_spec(recipe.optimizer)})


def run_id(recipe: Recipe) -> str:
    """Name a run, such as ``resnet18-cifar10-pugd-s0-1a2b3c4d``: unique by the recipe's digest."""
    data = Path(recipe.data.name).name[:_LONGEST_NAME]
    method, seed = str(recipe.optimizer["name"]), f"s{recipe.train.seed}"
    parts = (recipe.model.name, data, method, seed, recipe.digest()[:8])
    return "-".join(re.sub(r"[^A-Za-z0-9_.]+", "_", part) for part in parts)


def finetune(
    recipe: Recipe,
    output: str | Path | None = None,
    *,
    resume: bool = True,
    observer: Observer | None = None,
    profile: bool = False,
    micro_batch_size: int | None = None,
) -> tuple[RunRecord, Path]:
    """Fine-tune as the recipe says and write a record.

    A finished run of the same recipe in the same folder is returned as it is; an unfinished one goes on
    from its checkpoint. Once training has begun, a record is written whatever happens.

    Args:
        recipe: from :func:`read_recipe`.
        output: the run's folder; by default ``runs/ID``.
        resume: False begins anew.
        observer: is told of the progress.
        profile: measure where the time goes, and write a trace into the folder.
        micro_batch_size: images of a pass to begin with, if more are known not to fit into memory.

    Returns:
        The record and its path; the status is ``completed``, ``interrupted``, ``diverged`` or ``oom``.

    Raises:
        UserError: the recipe, the data, the weights or the folder cannot be used.
    """
    observer = observer or Observer()
    folder = Path(output) if output else Path("runs") / run_id(recipe)
    finished = _finished_record(folder, recipe)
    if resume and finished is not None:
        remove_checkpoints(folder)  # it may have been killed before it did that itself
        RestartLog(folder).remove()
        observer.on_message("this run is complete already; --no-resume runs it again")
        return finished, folder / RECORD_NAME
    prepare_device(recipe)
    observer.on_message(f"preparing {recipe.data.name} and {recipe.model.name}")
    restart_log = RestartLog.read(folder) if resume else RestartLog(folder)
    restart_log.micro_batch_size = restart_log.micro_batch_size or micro_batch_size
    accelerator, store, backbone = _load_and_connect(recipe, observer)
    components = assemble(recipe, accelerator, store, backbone, restart_log.micro_batch_size)
    del store, backbone
    observer.on_message(f"performance: {components.switches}")
    is_measured = profile and accelerator.is_main_process
    profiler = MeasuredProfile(folder, components.device) if is_measured else Profile()
    # The folder is claimed only now: an error found until here leaves nothing behind.
    lock = on_first_process(accelerator, lambda: claim(folder, recipe, resume))
    with lock or nullcontext(), rounding_of(components.switches, components.device.type):
        while True:
            run = Run(folder, components, restart_log, observer, profiler)
            run.resume()
            status, error = run.train()
            smaller = components.smaller_micro_batch() if status == "oom" else None
            if smaller is None:
                break
            observer.on_message(f"{error}; trying again with {smaller}")
            restart_log.micro_batch_size = smaller
            # Free the model and all that refers to it before another is made.
            del run, components
            accelerator.free_memory()
            components = assemble(recipe, accelerator, *load(recipe), smaller)
        record = run.finish(status, error)
        if table := profiler.table():
            observer.on_message(table)
        return record, folder / RECORD_NAME


def _load_and_connect(recipe: Recipe, observer: Observer) -> tuple[Accelerator, Store, Backbone]:
    """Load images and model, then connect the processes of the run."""
    # In this order: while one process decodes or downloads, the others wait for its file lock, which has no
    # time limit; a process group has one.
    loaded: tuple[Store, Backbone] | None = None
    error: Exception | None = None
    try:
        loaded = load(recipe, observer.on_message)
    except Exception as problem:  # raised below, on all processes
        error = problem
    accelerator = make_accelerator(recipe)
    raise_together(accelerator, error)
    assert loaded is not None
    return accelerator, *loaded


class Run:
    """One run of a recipe in its folder: trains, evaluates, saves, and writes the record."""

    def __init__(
        self,
        folder: Path,
        components: RunComponents,
        restart_log: RestartLog,
        observer: Observer,
        profile: Profile,
    ) -> None:
        self.folder, self.components, self.recipe = folder, components, components.recipe
        self.restart_log, self.observer, self.profile = restart_log, observer, profile
        self.state = RunState()
        self.totals = new_totals(components.device)
        self.trainer = Trainer(components, self._after_step, profile)
        self.checkpoints = CheckpointManager(folder, components, restart_log, observer)
        self.divergence = DivergenceMonitor(self.recipe, components.optimizer)
        self.stop_signal = StopSignal()
        seconds = 60 * self.recipe.train.checkpoint_minutes
        self.rank_sync = RankSync(components.accelerator, self.stop_signal, seconds)

    def resume(self) -> None:
        """Go on from the folder's newest whole checkpoint, if there is one, and log the start."""
        self.state = self.checkpoints.resume()
        if self.components.accelerator.is_main_process:
            # The saved sums are those of all processes: one of them takes them over.
            self.totals = new_totals(self.components.device, self.state.totals)

    def train(self) -> tuple[Status, str | None]:
        """Train to the end, or until something stops it; return how it ended and why.

        Raises:
            RunFailed: something outside this process failed; the same command goes on.
        """
        position, trainer = self.state.position, self.trainer
        self.rank_sync.start(position.steps)
        self.divergence.start(position.steps)
        may_skip = self.recipe.train.max_skipped_steps > 0
        self.buffer_guard = BufferGuard(self.components.backbone.model, may_skip)
        self.observer.on_start(trainer.total, trainer.spent(position), self.recipe.train.batch_size)
        try:
            with self.stop_signal, self.profile.running():
                while trainer.spent(position) < trainer.total or position.step_in_epoch:
                    is_stopped = not self._train_epoch()
                    if not is_stopped:
                        self._finish_epoch()
                        if trainer.spent(position) >= trainer.total:
                            break
                        is_stopped = self.rank_sync.poll_now(position.steps).stop
                    self._save()
                    if is_stopped:
                        number = self.stop_signal.received
                        return "interrupted", f"stopped by signal {number}; the same command goes on"
            self.divergence.check_end(position.steps)
            optimizer = self.components.optimizer
            if optimizer.method.perturbs and not optimizer.num_two_pass_steps:
                return "failed", f"{self.recipe.optimizer['name']} never perturbed: its trigger did not fire"
            return "completed", None
        except Diverged as error:
            last_good = self.checkpoints.with_saved_step(", the last good checkpoint is of update {}")
            return "diverged", f"{error}{last_good}"
        except KeyboardInterrupt:
            return "interrupted", "stopped by a second Ctrl-C; the same command goes on from the checkpoint"
        except BaseException as error:
            if is_out_of_memory(error):
                return self._out_of_memory(error)
            self._record_failure(error)
            raise
        finally:
            self.components.training.close()
            self.observer.on_end()

    def finish(self, status: Status, error: str | None) -> RunRecord:
        """Write the record at the end of the training.

        Raises:
            RunFailed: it cannot be written; what was written before stays.
        """
        try:
            return self._write_record(status, error)
        except OSError as fault:
            words = "; with that mended, the same command goes on from update {}"
            reason = f"{explain_failure(fault, 1)}{self.checkpoints.with_saved_step(words)}"
            raise RunFailed(reason) from fault

    def _train_epoch(self) -> bool:
        self._since = time.perf_counter()
        finished = self.trainer.train_epoch(self.state.position, self.totals)
        self._check_finite()  # also waits for the device, so that its work is timed
        self._take_time()
        return finished

    def _after_step(self, position: Position, totals: Totals) -> bool:
        self.buffer_guard.after_step()
        self.profile.after_step()
        self.observer.on_step(position, totals, self.trainer.spent(position))
        self._take_time()
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
        state, train, optimizer = self.state, self.recipe.train, self.components.optimizer
        position = state.position
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
        is_due = position.epoch % train.eval_every == 0 or self.trainer.spent(position) >= self.trainer.total
        needs_validation = optimizer.method.trigger.needs_validation
        losses: dict[str, float] = {}
        begin = time.perf_counter()
        with self.profile.span("evaluation"):
            for split in self.components.evaluations:
                if is_due or (needs_validation and split == "validation"):
                    metrics = self._evaluate(split)
                    losses[split] = metrics.loss
                    row |= {f"{split}_top1": metrics.top1, f"{split}_loss": metrics.loss}
        position.eval_seconds += time.perf_counter() - begin
        if needs_validation and images:
            optimizer.observe_epoch(row["train_loss"], row["validation_loss"], train.epochs)
        if "test_top1" in row and (state.best_test is None or row["test_top1"] > state.best_test.top1):
            state.best_test = BestEpoch(top1=row["test_top1"], epoch=position.epoch)
        state.history.append(row)
        self.totals.reset()
        self.observer.on_epoch(row)
        self.divergence.check_evaluation(position.steps, losses)

    def _evaluate(self, split: str) -> SplitMetrics:
        run = self.components
        predictions = evaluate(run.evaluation_model, run.evaluations[split], run.accelerator)
        self.state.predictions[split] = predictions
        return predictions.metrics()

    def _save(self) -> None:
        with self.profile.span("checkpoint"):
            self.state.totals = self._reduced_totals()
            self.checkpoints.save(self.state)
        self.rank_sync.note_saved()

    def _out_of_memory(self, error: BaseException) -> tuple[Status, str]:
        """Return how the run ended; with other processes in the same update, end it now instead."""
        size, smaller = self.components.training.micro_batch_size, self.components.smaller_micro_batch()
        words = f"out of memory with {size} images a pass ({(str(error).splitlines() or [''])[0][:200]})"
        if self.components.accelerator.num_processes > 1:
            if smaller is not None:
                self.restart_log.micro_batch_size = smaller
                self.restart_log.write()
                words += f"; the same command goes on with {smaller}"
            raise RunFailed(words) from None
        return "oom", words

    def _record_failure(self, error: BaseException) -> None:
        """Write a record if that still works; raise a message if the error is no bug of pugdft."""
        reason = explain_failure(error, self.components.accelerator.num_processes)
        try:
            # The other processes may be gone: do not wait for them.
            self._write_record("failed", reason or f"{type(error).__name__}: {error}", wait=False)
        except Exception as another:
            error.add_note(f"and no record could be written: {another}")
        if reason is not None:
            goes_on = self.checkpoints.with_saved_step("; the same command goes on from update {}")
            raise RunFailed(f"{reason}{goes_on}") from error

    def _write_record(self, status: Status, error: str | None, wait: bool = True) -> RunRecord:
        components, state = self.components, self.state
        record = build_record(run_id(self.recipe), components, state, self.restart_log, status, error)
        if self.profile.is_on:
            record.environment["profiled"] = True
        if components.accelerator.is_main_process:
            write_outcome(record, components, state, self.folder)
            if status == "completed":
                remove_checkpoints(self.folder)
                self.restart_log.remove()
        if wait:
            # A process that ends with an error first takes the others down, this record with them.
            components.accelerator.wait_for_everyone()
        return record


def check(folder: Path, recipe: Recipe) -> None:
    """Check that ``folder`` is free for this recipe, or already this recipe's; changes nothing.

    Raises:
        UserError: it holds the run of another recipe, or a folder where a run's file goes.
    """
    for name in (RECORD_NAME, "predictions.npz", "model.safetensors", RECIPE_NAME):
        if (folder / name).is_dir():
            where = folder / name
            raise UserError(f"{where}: is a folder, where a run writes a file; choose another --output")
    path = folder / RECIPE_NAME
    if not path.is_file():
        return
    try:
        # A recipe of an older version lacks newer keys: their defaults are what it ran with.
        other = Recipe.model_validate(yaml.parse(path.read_text(encoding="utf-8"), str(path)))
    except (OSError, UnicodeDecodeError, ValidationError):
        raise UserError(f"{path}: is not a recipe; choose another --output, or move it away") from None
    if differences := differences_between(other.as_dict(), recipe.as_dict()):
        shown = "\n".join(f"  {line}" for line in differences)
        raise UserError(
            f"{folder}: holds the run of another recipe:\n{shown}\n"
            "Choose another --output, or move that run away."
        )


def claim(folder: Path, recipe: Recipe, resume: bool = True) -> AbstractContextManager[Any]:
    """Make ``folder`` this recipe's, locked until the end of a ``with`` over the returned lock.

    Unless this run resumes it, an earlier run's record and checkpoints are deleted.

    Raises:
        UserError: it cannot be written, holds another recipe's run, or is in use by another process.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=0).acquire()
        check(folder, recipe)  # again: until now another process may have run another recipe here
        if not (folder / RECIPE_NAME).is_file():
            write_atomically(folder / RECIPE_NAME, yaml.dump(recipe.as_dict()).encode())
    except Timeout:
        raise UserError(
            f"{folder}: another process is running here; wait for it, or choose another --output"
        ) from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be used as the output folder: {error.strerror}") from None
    if not resume:
        (folder / RECORD_NAME).unlink(missing_ok=True)
        remove_checkpoints(folder)
        RestartLog(folder).remove()
    return lock


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
    """Read the record of this run, if it is complete.

    Raises:
        UserError: the folder is another run's, or cannot be used.
    """
    try:
        check(folder, recipe)
    except OSError as error:  # a name that is too long
        raise UserError(f"{folder}: cannot be used as the output folder: {error.strerror}") from None
    path = folder / RECORD_NAME
    try:
        record = read_record(path)
    except UserError:
        return None
    # A run writes its recipe first: a record alone was put there by somebody.
    if record.id != run_id(recipe) and not (folder / RECIPE_NAME).is_file():
        raise UserError(f"{path}: is of another run ({record.id}); choose another --output, or move it away")
    return record if record.status == "completed" else None
