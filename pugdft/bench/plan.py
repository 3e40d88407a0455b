"""From recipes, entries and ``--seeds 0-4`` to the cells of a comparison."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pugdft.bench.entries import GivenEntry, OptimizerEntry
from pugdft.errors import Fault, FaultsError, UserError
from pugdft.finetune import read_recipe
from pugdft.optim.registry import build_method
from pugdft.optim.trigger import Always
from pugdft.output import run_id
from pugdft.recipe import Recipe

_SEED_BOUND = 2**31  # as of a recipe's train.seed
_LONGEST_SHOWN = 80

Entry = OptimizerEntry | GivenEntry


@dataclass(frozen=True)
class Cell:
    """One run of a comparison.

    Attributes:
        optimizer: the entry as it was written.
        passes_per_update: gradient passes of an update, averaged; as if every step perturbed where only
            the run itself can tell.
        source: the recipe's file or name.
    """

    optimizer: str
    seed: int
    recipe: Recipe
    folder: Path
    passes_per_update: float = 1.0
    source: str = ""


def parse_seeds(text: str) -> list[int]:
    """``0-4`` or ``0,2,7`` as numbers.

    Raises:
        UserError: neither.
    """
    seeds: list[int] = []
    shown = text[:_LONGEST_SHOWN]
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,20})\s*(?:-\s*([0-9]{1,20})\s*)?", part)
        if not match:
            raise UserError(f'--seeds: "{shown}": expected numbers and ranges, such as 0-4 or 0,2,7')
        first, last = int(match[1]), int(match[2] or match[1])
        if max(first, last) >= _SEED_BOUND:
            raise UserError(f'--seeds: "{shown}": seeds are whole numbers below {_SEED_BOUND}')
        if last < first:
            raise UserError(f'--seeds: "{part}" runs backwards')
        if last - first >= 10_000:
            raise UserError(f'--seeds: "{part}" are more than 10,000 seeds')
        seeds += range(first, last + 1)
    return sorted(set(seeds))


def plan_cells(
    recipes: Sequence[str],
    overrides: Sequence[str],
    entries: Sequence[Entry],
    seeds: Sequence[int],
    output: Path,
    budget: str | None = None,
) -> list[Cell]:
    """The cells, seed by seed, so that an early end leaves whole comparisons.

    Args:
        recipes: files or bundled names.
        overrides: ``KEY=VALUE`` for all of them.
        entries: the optimizers.
        seeds: the seeds.
        output: folder of the cells' folders.
        budget: ``passes`` gives every optimizer the gradient passes that each recipe's own would spend,
            ``epochs`` the recipe's epochs; None leaves the recipes as they are.

    Raises:
        UserError: a fault of a recipe; the faults of the recipes with each of the optimizers; two
            optimizers that come to the same run.
    """
    templates = [(source, _with_budget(read_recipe(source, overrides), budget)) for source in recipes]
    cells: list[Cell] = []
    for seed in seeds:
        of_seed: dict[Path, Cell] = {}
        faults: list[Fault] = []
        for source, template in templates:
            for entry in entries:
                try:
                    cell = _cell(source, template, entry, seed, output)
                except FaultsError as error:
                    faults += [Fault(f'"{entry.text}"', str(fault)) for fault in error.faults]
                    continue
                same = of_seed.setdefault(cell.folder, cell)
                if same is not cell:
                    faults.append(Fault(f'"{entry.text}"', f'is the same run as "{same.optimizer}"'))
        if faults:
            raise FaultsError("--optimizers", list(dict.fromkeys(faults)))
        cells += of_seed.values()
    return cells


def passes_per_update(spec: dict[str, Any], ascent_batch: float = 1.0) -> float:
    """Gradient passes of an update of a resolved ``optimizer`` mapping, averaged over a run."""
    method = build_method(
        spec["name"], {key: value for key, value in spec.items() if key not in ("name", "base")}
    )
    known = method.expected_passes
    if isinstance(method.trigger, Always):
        return 1 + ascent_batch * method.direction.num_ascents
    return 1.0 + method.direction.num_ascents if known is None else known


def _cell(source: str, template: Recipe, entry: Entry, seed: int, output: Path) -> Cell:
    data = template.as_dict()
    data["train"]["seed"] = seed
    data["optimizer"] = entry.spec(template.optimizer)
    # What was spent on the recipe's own optimizer says nothing of another.
    data["tuning"] = entry.tuning or (
        data.get("tuning") if entry.text == template.optimizer["name"] else None
    )
    resolved = read_recipe(data)
    passes = passes_per_update(resolved.optimizer, resolved.train.ascent_batch)
    return Cell(entry.text, seed, resolved, output / run_id(resolved), passes, source)


def _with_budget(recipe: Recipe, budget: str | None) -> Recipe:
    """The recipe with its length counted in gradient passes, or in updates, at the same cost of its own."""
    if budget is None or budget == recipe.train.budget:
        return recipe
    factor = passes_per_update(recipe.optimizer, recipe.train.ascent_batch)
    if budget == "epochs":
        factor = 1 / factor
    length = {"epochs": max(1, round(recipe.train.epochs * factor)), "budget": budget}
    if recipe.train.max_steps:
        length["max_steps"] = max(1, round(recipe.train.max_steps * factor))
    warmup = {"warmup_epochs": recipe.schedule.warmup_epochs * factor}
    return recipe.model_copy(
        update={
            "train": recipe.train.model_copy(update=length),
            "schedule": recipe.schedule.model_copy(update=warmup),
        }
    )
