"""From ``--optimizers sgd,sam[rho=0.1],sam+adamw --seeds 0-4`` to the recipes of a comparison's cells."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pugdft import yaml_text
from pugdft.errors import Fault, FaultsError, UserError, unknown
from pugdft.finetune import read_recipe
from pugdft.optim.registry import BASES, METHODS, optimizer_names
from pugdft.output import run_id
from pugdft.recipe import Recipe

_ENTRY = re.compile(r"(?P<name>[^\[\]+]+)(\[(?P<options>[^\[\]]*)\])?(\+(?P<base>[^\[\]+]+))?")


@dataclass(frozen=True)
class OptimizerEntry:
    """One entry of ``--optimizers``: ``name[options]+base``."""

    text: str
    name: str
    options: dict[str, Any]
    base: str | None

    def spec(self, recipe_spec: dict[str, Any]) -> dict[str, Any]:
        """This entry's ``optimizer`` mapping, given the recipe's.

        A method keeps the recipe's base. The recipe's method options go only to the same method; others
        start from their preset's defaults, so that one method's radius never reaches another. A base
        takes the recipe's base options if it is that base, else its defaults with the recipe's lr.
        """
        recipe_base = recipe_spec.get("base", recipe_spec)
        wanted_base = self.name if self.name in BASES else self.base
        base = dict(recipe_base)
        if wanted_base is not None and wanted_base != recipe_base["name"]:
            base = {"name": wanted_base, "lr": recipe_base["lr"]}
        if self.name in BASES:
            return {**base, **self.options}
        method = {}
        if self.name == recipe_spec["name"]:
            method = {key: value for key, value in recipe_spec.items() if key not in ("name", "base")}
        return {"name": self.name, **method, **self.options, "base": base}


@dataclass(frozen=True)
class Cell:
    """One run of a comparison."""

    optimizer: str
    seed: int
    recipe: Recipe
    folder: Path


def parse_optimizers(text: str) -> list[OptimizerEntry]:
    """``sgd,sam[rho=0.1],sam+adamw`` as entries, in this order.

    Raises:
        FaultsError: an entry that cannot be read, an unknown name, or the same entry twice.
    """
    entries, faults = [], []
    # A comma inside brackets separates options, outside of them entries.
    parts = [part.strip() for part in re.split(r",(?![^\[]*\])", text)]
    for part in parts:
        match = _ENTRY.fullmatch(part)
        if not match:
            faults.append(Fault(f'"{part}"', "expected NAME, NAME[key=value,…] or NAME+BASE"))
            continue
        name, base = match["name"].strip(), match["base"]
        if name not in optimizer_names():
            faults.append(Fault(f'"{part}"', unknown("optimizer", name, optimizer_names())))
        elif base is not None and (base not in BASES or name not in METHODS):
            faults.append(Fault(f'"{part}"', unknown("base optimizer", base, BASES)))
        options, option_faults = _parse_options(part, match["options"] or "")
        faults += option_faults
        entries.append(OptimizerEntry(part, name, options, base))
    faults += [Fault(f'"{part}"', "stands twice") for part in sorted(set(parts)) if parts.count(part) > 1]
    if faults:
        raise FaultsError("--optimizers", faults)
    return entries


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
        UserError: a fault of the recipe, or of the recipe with one of the optimizers.
    """
    template = read_recipe(recipe, overrides)
    cells = []
    for seed in seeds:
        for entry in entries:
            data = template.as_dict()
            data["optimizer"] = entry.spec(template.optimizer)
            data["train"]["seed"] = seed
            try:
                resolved = read_recipe(data)
            except FaultsError as error:
                raise FaultsError(f'--optimizers "{entry.text}"', error.faults) from None
            cells.append(Cell(entry.text, seed, resolved, output / run_id(resolved)))
    return cells


def _parse_options(part: str, text: str) -> tuple[dict[str, Any], list[Fault]]:
    options: dict[str, Any] = {}
    faults = []
    for option in filter(None, (each.strip() for each in text.split(","))):
        key, equals, value = option.partition("=")
        if not equals or key in options:
            faults.append(Fault(f'"{part}"', f'"{option}": expected key=value, each key once'))
        else:
            options[key.strip()] = yaml_text.parse(value, f'"{part}"')
    return options, faults
