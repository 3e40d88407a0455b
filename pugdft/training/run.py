"""The output folder: one run, recognised by its recipe, never mixed with another's."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import ValidationError

from pugdft.config import yaml
from pugdft.config.load import SectionCheck, load_recipe
from pugdft.config.schema import Recipe
from pugdft.data.auto_augment import data_faults
from pugdft.data.cache import Store
from pugdft.errors import RunFailed, UserError
from pugdft.models import Backbone, averages_over_batch, model_faults, training_mode
from pugdft.optim import resolve_spec, spec_faults
from pugdft.paths import file_sha256, write_atomically
from pugdft.records import (
    RECORD_NAME,
    Artifact,
    BestEpoch,
    Cost,
    DataFacts,
    MethodFacts,
    Metrics,
    ModelFacts,
    RunRecord,
    Status,
    read_record,
    write_record,
)
from pugdft.training.callbacks import Observer
from pugdft.training.checkpoint import (
    CHECKPOINT_NAME,
    Keeper,
    Progress,
    Starts,
    remove_checkpoints,
    save_weights,
)
from pugdft.training.distributed import (
    Attempt,
    Consultation,
    Interruption,
    agree,
    explained,
    is_out_of_memory,
    on_first_process,
    settle_order_of_sums,
)
from pugdft.training.divergence import Diverged, SoundBuffers, Soundness
from pugdft.training.environment import environment_facts, now, peak_memory_bytes
from pugdft.training.lr_schedule import lr_factor
from pugdft.training.performance import rounding_of
from pugdft.training.profiler import MeasuredProfile, Profile
from pugdft.training.setup import Parts, assemble, load, make_accelerator, ready_device
from pugdft.training.trainer import Position, Totals, Trainer, evaluate, new_totals, train_epoch

RECIPE_NAME = "recipe.yaml"

_LOCK_NAME = ".lock"

_LONGEST_NAME = 64  # characters of a data set's name in a run's; the digest tells runs apart


def run_id(recipe: Recipe) -> str:
    """``resnet18-cifar10-pugd-s0-1a2b3c4d``: readable, and unique by the recipe's digest."""
    data = Path(recipe.data.name).name[:_LONGEST_NAME]
    parts = (
        recipe.model.name,
        data,
        str(recipe.optimizer["name"]),
        f"s{recipe.train.seed}",
        recipe.digest()[:8],
    )
    return "-".join(re.sub(r"[^A-Za-z0-9_.]+", "_", part) for part in parts)


def check(folder: Path, recipe: Recipe) -> None:
    """See that ``folder`` is free for this recipe, or already this recipe's; changes nothing.

    Raises:
        UserError: it holds the run of another recipe, or something where a run's files go.
    """
    for name in (RECORD_NAME, "predictions.npz", "model.safetensors", RECIPE_NAME):
        if (folder / name).is_dir():
            raise UserError(
                f"{folder / name}: is a folder, where a run writes a file; choose another --output"
            )
    path = folder / RECIPE_NAME
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else None
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{path}: is not a recipe; choose another --output, or move it away") from None
    if text is None:
        return
    other = yaml.parse(text, str(path))
    try:
        # A recipe of an older version lacks newer keys: their defaults are what it ran with.
        other = Recipe.model_validate(other).as_dict()
    except ValidationError:
        raise UserError(f"{path}: is not a recipe; choose another --output, or move it away") from None
    if differences := differences_between(other, recipe.as_dict()):
        shown = "\n".join(f"  {line}" for line in differences)
        raise UserError(
            f"{folder}: holds the run of another recipe:\n{shown}\n"
            "Choose another --output, or move that run away."
        )


def claim(folder: Path, recipe: Recipe) -> AbstractContextManager[Any]:
    """Make ``folder`` this recipe's, locked from now until the end of a ``with`` over what is returned.

    Raises:
        UserError: it cannot be written, holds another recipe's run, or another process is at work in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / _LOCK_NAME, timeout=0).acquire()
        check(folder, recipe)  # again: until now somebody else may have run another recipe here
        if not (folder / RECIPE_NAME).is_file():
            write_atomically(folder / RECIPE_NAME, yaml.dump(recipe.as_dict()).encode())
    except Timeout:
        raise UserError(
            f"{folder}: another process is running here; wait for it, or choose another --output"
        ) from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be used as the output folder: {error.strerror}") from None
    return lock


def differences_between(theirs: Any, ours: Any, where: str = "") -> list[str]:
    """What differs in two nested values, a line for each place, by its dotted name."""
    pairs: list[tuple[object, Any, Any]] | None = None
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        keys = [*ours, *(key for key in theirs if key not in ours)]
        pairs = [(key, theirs.get(key), ours.get(key)) for key in keys]
    elif isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours):
        pairs = [(number, *both) for number, both in enumerate(zip(theirs, ours, strict=True))]
    if pairs is None:
        return [] if theirs == ours else [f"{where}: {theirs!r} there, {ours!r} here"]
    return [
        line
        for key, their, our in pairs
        for line in differences_between(their, our, f"{where}.{key}" if where else str(key))
    ]


@dataclass(frozen=True)
class Ending:
    """How a run ended, and in words why if not as hoped."""

    status: Status
    error: str | None


def build_record(
    recipe: Recipe,
    identity: str,
    parts: Parts,
    progress: Progress,
    starts: Starts,
    ending: Ending,
) -> RunRecord:
    """The record of a run as it stands; its artifacts are the caller's to add.

    Args:
        identity: the record's id.
        ending: how the run came to an end.
    """
    position, optimizer = progress.position, parts.optimizer
    store, backbone, accelerator = parts.store, parts.backbone, parts.accelerator
    evaluated = {split: each.metrics() for split, each in progress.predictions.items()}
    images = position.steps * recipe.train.batch_size
    metrics = None
    if evaluated:
        metrics = Metrics(
            test=evaluated.get("test"),
            validation=evaluated.get("validation"),
            best_test=progress.best_test,
        )
    sizes = {"train": len(parts.training.images)}
    sizes |= {split: len(batches.images) for split, batches in parts.evaluations.items()}
    return RunRecord(
        id=identity,
        status=ending.status,
        error=ending.error,
        recipe=recipe.as_dict(),
        seed=recipe.train.seed,
        data=DataFacts(
            name=store.name,
            classes=len(store.classes),
            sizes=sizes,
            sha256=store.sha256,
            **parts.training.digests(),
        ),
        model=ModelFacts(
            name=recipe.model.name,
            pretrained_tag=backbone.tag,
            weights_sha256=backbone.weights_sha256,
            head_sha256=backbone.head_sha256,
            parameters=backbone.num_parameters,
        ),
        metrics=metrics,
        history=progress.history,
        cost=Cost(
            epochs=position.steps // max(1, parts.training.steps_per_epoch),
            steps=position.steps,
            gradient_passes=position.gradient_passes,
            train_seconds=round(position.train_seconds, 3),
            eval_seconds=round(position.eval_seconds, 3),
            images_per_second=round(images / position.train_seconds, 2) if position.train_seconds else 0.0,
            peak_memory_bytes=peak_memory_bytes(parts.device),
        ),
        method=MethodFacts(
            two_pass_fraction=optimizer.num_two_pass_steps / max(1, optimizer.num_steps),
            mean_perturbation_norm=optimizer.diagnostics.mean_perturbation_norm(),
            mean_gradient_cosine=optimizer.diagnostics.mean_gradient_cosine(),
            skipped_steps=optimizer.num_skipped_steps,
        ),
        environment={
            **environment_facts(
                parts.device, accelerator.num_processes, recipe.train.precision, parts.switches.as_dict()
            ),
            "micro_batch_size": parts.training.micro_batch_size,
            "started": starts.began,
            "finished": now(),
        },
        restarts=starts.restarts,
    )


def write_outcome(record: RunRecord, parts: Parts, progress: Progress, folder: Path) -> None:
    """Write a record into its folder, after everything that it points at.

    Raises:
        OSError: something cannot be written.
    """
    paths = {}
    for split, each in progress.predictions.items():
        name = "predictions" if split == "test" else f"predictions_{split}"
        each.write(folder / f"{name}.npz")
        paths[name] = f"{name}.npz"
    # Of a search nobody wants the weights, and there are many.
    if record.status == "completed" and "test" in parts.evaluations:
        save_weights(parts.backbone.model, folder / "model.safetensors")
        paths["model"] = "model.safetensors"
    elif record.status != "completed" and (folder / CHECKPOINT_NAME / "state.json").is_file():
        paths["checkpoint"] = f"{CHECKPOINT_NAME}/state.json"
    record.artifacts = {
        name: Artifact(path=path, sha256=file_sha256(folder / path)) for name, path in paths.items()
    }
    write_record(record, folder)


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


def read_recipe(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """A recipe, checked against torch's and timm's names too, with every optimizer option written out.

    Args:
        source: path, bundled name, or mapping.
        overrides: ``KEY=VALUE`` texts.

    Raises:
        UserError: with every fault of the file and the overrides.
    """
    checks: dict[str, SectionCheck] = {"optimizer": spec_faults, "model": model_faults, "data": data_faults}
    recipe = load_recipe(source, overrides, checks)
    return recipe.model_copy(update={"optimizer": resolve_spec(recipe.optimizer)})


def finetune(
    recipe: Recipe,
    output: str | Path | None = None,
    *,
    resume: bool = True,
    observer: Observer | None = None,
    profile: bool = False,
    micro_batch_size: int | None = None,
) -> tuple[RunRecord, Path]:
    """Fine-tune as the recipe says and leave a record.

    A finished run of the same recipe in the same folder is returned as it is; an unfinished one goes on
    from its checkpoint. Once training has begun, a record is left whatever happens.

    Args:
        recipe: from :func:`read_recipe`.
        output: the run's folder; by default ``runs/ID``.
        resume: False starts anew.
        observer: hears of the progress.
        profile: measure what the time goes to, and leave a trace in the folder.
        micro_batch_size: images a pass to begin with, where more are known to be too many for memory.

    Returns:
        The record and its path; the status is ``completed``, ``interrupted``, ``diverged`` or ``oom``.

    Raises:
        UserError: the recipe, the data, the weights or the folder cannot be used.
    """
    identity = run_id(recipe)
    folder = Path(output) if output else Path("runs") / identity
    watcher = observer or Observer()
    finished = _finished(folder, recipe, identity)
    if resume and finished is not None:
        remove_checkpoints(folder)  # it may have been killed before it did that itself
        Starts(folder).remove()
        watcher.on_message("this run is complete already; --no-resume runs it again")
        return finished, folder / RECORD_NAME
    ready_device(recipe)
    watcher.on_message(f"preparing {recipe.data.name} and {recipe.model.name}")
    starts = Starts.of(folder) if resume else Starts(folder)
    starts.micro_batch_size = starts.micro_batch_size or micro_batch_size
    # Before the processes meet: one decodes or fetches, the others wait for its lock, which unlike a
    # process group has no time limit.
    loaded = Attempt(lambda: load(recipe, watcher.on_message))
    accelerator = make_accelerator(recipe)
    agree(accelerator, loaded.problem)

    def made(store: Store, backbone: Backbone) -> Parts:
        parts = assemble(recipe, accelerator, store, backbone, starts.micro_batch_size)
        settle_order_of_sums(parts.model, recipe.data.image_size, parts.device)
        return parts

    parts = made(*loaded.result())
    watcher.on_message(f"performance: {parts.switches}")
    is_measured = profile and accelerator.is_main_process
    profiler = MeasuredProfile(folder, parts.device) if is_measured else Profile()
    # Only now the folder is this run's: a mistake found until here leaves nothing behind.
    lock = on_first_process(accelerator, lambda: _claimed(folder, recipe, starts, resume))
    with lock or nullcontext(), rounding_of(parts.switches, parts.device.type):
        while True:
            run = Run(recipe, folder, identity, parts, starts, watcher, profiler)
            run.begin()
            status, error = run.train()
            smaller = run.smaller_micro_batch() if status == "oom" else None
            if smaller is None:
                break
            watcher.on_message(f"{error}; trying again with {smaller}")
            starts.micro_batch_size = smaller
            # The model and all that holds on to it goes before another is made.
            del run, parts
            accelerator.free_memory()
            parts = made(*load(recipe))
        record = run.finish(status, error)
        if table := profiler.table():
            watcher.on_message(table)
        return record, folder / RECORD_NAME


def _claimed(folder: Path, recipe: Recipe, starts: Starts, resume: bool) -> AbstractContextManager[Any]:
    """The folder's lock; what an earlier run left there is gone, unless this one resumes it.

    Raises:
        UserError: the folder cannot be used, or another process is at work in it.
    """
    lock = claim(folder, recipe)
    if not resume:
        (folder / RECORD_NAME).unlink(missing_ok=True)
        remove_checkpoints(folder)
        starts.remove()
    return lock


def _finished(folder: Path, recipe: Recipe, identity: str) -> RunRecord | None:
    """The record of this run, if it is complete.

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
    if record.id != identity and not (folder / RECIPE_NAME).is_file():
        raise UserError(f"{path}: is of another run ({record.id}); choose another --output, or move it away")
    return record if record.status == "completed" else None
