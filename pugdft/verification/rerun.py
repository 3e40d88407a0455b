"""A record against its own recipe: the same run again, in another folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pugdft.errors import FaultsError, UserError
from pugdft.finetune import finetune, read_recipe
from pugdft.observer import Observer
from pugdft.recipe import Recipe
from pugdft.verification.course import shrunk_size
from pugdft.verification.stored import StoredRun, with_value

_LONGEST_NAME = 150


def rerun_recipe(run: StoredRun, data: str | None = None) -> Recipe:
    """A record's recipe, checked as any other; keys that an older version did not have get their defaults.

    Args:
        run: the record.
        data: where its data lies here, if not where the recipe says.

    Raises:
        UserError: it cannot run here, or the run was interrupted, so that there is nothing to compare with.
    """
    if run.record.status == "interrupted":
        raise UserError(f"{run.path}: the run was interrupted: there is nothing to compare with")
    mapping: Mapping[str, Any] = run.record.recipe
    if data is not None:
        mapping = with_value(mapping, "data", "name", data)
    try:
        return read_recipe(mapping)
    except FaultsError as error:
        raise FaultsError(f"{run.path}: recipe", error.faults) from None


def rerun_folder(run: StoredRun, output: Path | None = None) -> Path:
    """Where the new run goes: ``output``, or ``reruns/ID`` with nothing of the id that leads elsewhere.

    Raises:
        UserError: it is the record's own folder.
    """
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", run.record.id)[:_LONGEST_NAME].lstrip(".-")
    folder = output or Path("reruns") / (name or "record")
    if folder.resolve() == run.path.parent.resolve():
        raise UserError(f"--output {folder}: holds the record itself; choose another folder")
    return folder


def rerun(
    run: StoredRun,
    folder: Path,
    data: str | None = None,
    *,
    resume: bool = True,
    observer: Observer | None = None,
) -> StoredRun:
    """Run a record's recipe again in another folder; an interrupted rerun goes on.

    Where the run's memory did not hold a whole pass, this one begins with passes as small.

    Raises:
        UserError: the recipe, the data, the weights or the folder cannot be used.
    """
    recipe = rerun_recipe(run, data)
    size = shrunk_size(run.record, recipe)
    record, path = finetune(recipe, folder, resume=resume, observer=observer, micro_batch_size=size)
    return StoredRun(record, path)
