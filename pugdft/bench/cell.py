"""A cell of a comparison: one run, as a recipe and a folder."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pugdft.config.schema import Recipe
from pugdft.errors import UserError
from pugdft.records import RECORD_NAME, RunRecord, read_record


@dataclass(frozen=True, slots=True)
class BenchCell:
    """One run of a comparison."""

    optimizer: str  # the entry as it was written
    seed: int
    template: Recipe  # but for its seed
    folder: Path
    passes_per_update: float = 1.0  # averaged; an upper bound if only the run itself can tell
    source: str = ""  # the recipe's file or name
    processes: int = 1
    planned: str = ""  # what `pugdft.training.launchers.PLANNED` tells the run

    @property
    def recipe(self) -> Recipe:
        return with_seed(self.template, self.seed)


def with_seed(recipe: Recipe, seed: int) -> Recipe:
    """A recipe with another seed, which is not checked."""
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"seed": seed})})


def cell_record(cell: BenchCell) -> RunRecord | None:
    """A cell's record, whatever its status; None if there is none that can be read."""
    with suppress(UserError):
        return read_record(cell.folder / RECORD_NAME)
    return None


def cell_status(cell: BenchCell) -> str:
    """The status of a cell's record, or ``missing``."""
    record = cell_record(cell)
    return record.status if record else "missing"


def cell_top1(cell: BenchCell) -> float | None:
    """The test top-1 of a completed cell, None for any other."""
    record = cell_record(cell)
    if record and record.status == "completed" and record.metrics and record.metrics.test:
        return record.metrics.test.top1
    return None
