"""From entries and ``--seeds 0-4`` to the recipes of a comparison's cells."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pugdft.bench.entries import OptimizerEntry
from pugdft.errors import Fault, FaultsError, UserError
from pugdft.finetune import read_recipe
from pugdft.output import run_id
from pugdft.recipe import Recipe


@dataclass(frozen=True)
class Cell:
    """One run of a comparison."""

    optimizer: str
    seed: int
    recipe: Recipe
    folder: Path


def parse_seeds(text: str) -> list[int]:
    """``0-4`` or ``0,2,7`` as numbers.

    Raises:
        UserError: neither.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if not match:
            raise UserError(f'--seeds: "{text}": expected numbers and ranges, such as 0-4 or 0,2,7')
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise UserError(f'--seeds: "{part}" runs backwards')
        if last - first >= 10_000:
            raise UserError(f'--seeds: "{part}" are more than 10,000 seeds')
        seeds += range(first, last + 1)
    return sorted(set(seeds))


def plan_cells(
    recipe: str,
    overrides: Sequence[str],
    entries: Sequence[OptimizerEntry],
    seeds: Sequence[int],
    output: Path,
) -> list[Cell]:
    """The cells, seed by seed, so that an early end leaves whole comparisons.

    Raises:
        UserError: a fault of the recipe; the faults of the recipe with each of the optimizers; two
            optimizers that come to the same run.
    """
    template = read_recipe(recipe, overrides)
    cells: list[Cell] = []
    for seed in seeds:
        of_seed: dict[Path, Cell] = {}
        faults: list[Fault] = []
        for entry in entries:
            data = template.as_dict()
            data["train"]["seed"] = seed
            try:
                data["optimizer"] = entry.spec(template.optimizer)
                resolved = read_recipe(data)
            except FaultsError as error:
                faults += [Fault(f'"{entry.text}"', str(fault)) for fault in error.faults]
                continue
            cell = Cell(entry.text, seed, resolved, output / run_id(resolved))
            same = of_seed.setdefault(cell.folder, cell)
            if same is not cell:
                faults.append(Fault(f'"{entry.text}"', f'is the same run as "{same.optimizer}"'))
        if faults:
            raise FaultsError("--optimizers", faults)
        cells += of_seed.values()
    return cells
