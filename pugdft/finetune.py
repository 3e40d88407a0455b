"""One run, from a recipe to its record. Read :func:`finetune` first, then ``loop.py``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from pugdft.checkpoint import remove_checkpoints
from pugdft.data.auto_augment import data_faults
from pugdft.errors import UserError
from pugdft.models import model_faults
from pugdft.observer import Observer
from pugdft.optim import resolve_spec, spec_faults
from pugdft.output import check, claim, run_id
from pugdft.parts import assemble, load, make_accelerator
from pugdft.performance import rounding_of
from pugdft.profiling import MeasuredProfile, Profile
from pugdft.recipe import Recipe, SectionCheck, load_recipe
from pugdft.record import RECORD_NAME, RunRecord, read_record
from pugdft.run import Run


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
    output: Path | None = None,
    *,
    resume: bool = True,
    observer: Observer | None = None,
    profile: bool = False,
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

    Returns:
        The record and its path; the status is ``completed``, ``interrupted``, ``diverged`` or ``oom``.

    Raises:
        UserError: the recipe, the data, the weights or the folder cannot be used.
    """
    identity = run_id(recipe)
    folder = output or Path("runs") / identity
    watcher = observer or Observer()
    check(folder, recipe)
    if resume and (finished := _finished(folder)):
        watcher.on_message("this run is complete already; --no-resume runs it again")
        return finished, folder / RECORD_NAME
    accelerator = make_accelerator(recipe)
    watcher.on_message(f"preparing {recipe.data.name} and {recipe.model.name}")
    with accelerator.main_process_first():  # one process decodes or fetches, the others find it done
        store, backbone = load(recipe)
    parts = assemble(recipe, accelerator, store, backbone)
    watcher.on_message(f"performance: {parts.switches}")
    is_measured = profile and accelerator.is_main_process
    profiler = MeasuredProfile(folder, parts.device) if is_measured else Profile()
    # Only now the folder is this run's: a mistake found until here leaves nothing behind.
    with (
        claim(folder, recipe) if accelerator.is_main_process else nullcontext(),
        rounding_of(parts.switches, parts.device.type),
    ):
        run = Run(recipe, folder, identity, parts, watcher, profiler)
        if resume:
            run.restore()
        elif accelerator.is_main_process:
            (folder / RECORD_NAME).unlink(missing_ok=True)
            remove_checkpoints(folder)
        record = run.conclude(*run.train())
        if table := profiler.table():
            watcher.on_message(table)
        return record, folder / RECORD_NAME


def _finished(folder: Path) -> RunRecord | None:
    try:
        record = read_record(folder / RECORD_NAME)
    except UserError:
        return None
    return record if record.status == "completed" else None
