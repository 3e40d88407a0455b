"""One run, from a recipe to its record. Read :func:`finetune` first, then ``loop.py``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from pugdft.accelerator import make_accelerator, ready_device
from pugdft.checkpoint import remove_checkpoints
from pugdft.data.auto_augment import data_faults
from pugdft.data.store import Store
from pugdft.errors import UserError
from pugdft.models import Backbone, model_faults
from pugdft.observer import Observer
from pugdft.optim import resolve_spec, spec_faults
from pugdft.output import RECIPE_NAME, check, claim, run_id
from pugdft.parts import Parts, assemble, load
from pugdft.performance import rounding_of
from pugdft.processes import Attempt, agree, on_first_process, settle_order_of_sums
from pugdft.profiling import MeasuredProfile, Profile
from pugdft.recipe import Recipe, SectionCheck, load_recipe
from pugdft.record import RECORD_NAME, RunRecord, read_record
from pugdft.run import Run
from pugdft.starts import Starts


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
