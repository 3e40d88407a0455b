"""What a comparison consists of: a ``bench`` file or a command line as recipes × optimizers × seeds."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, ValidationError

from pugdft.bench.optimizer_spec import GivenEntry, OptimizerEntry, parse_optimizers
from pugdft.config import yaml
from pugdft.config.load import find_recipe
from pugdft.config.schema import Recipe
from pugdft.errors import Fault, FaultsError, UserError, close_match
from pugdft.optim.build import build_method
from pugdft.optim.triggers import Always
from pugdft.training.run import read_recipe, run_id

Budget = Literal["epochs", "passes"]


# What may stand under each key, for messages.
_FORMS = {
    "recipes": "a list of files or bundled names",
    "optimizers": "a list of entries such as sam[rho=0.1] or {name: sam, rho: 0.1}, at least one",
    "seeds": "a range such as 0-4, a whole number, or a list of whole numbers",
    "budget": "epochs or passes",
    "overrides": "a list of KEY=VALUE",
}

_LONGEST_SHOWN = 80


class BenchFile(BaseModel):
    """A ``bench`` YAML: the same matrix as on the command line, to keep and to share."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    recipes: Annotated[list[StrictStr], Field(min_length=1)] = Field(
        ["quickstart"], description="files, beside this one or from here, or bundled names"
    )
    optimizers: Annotated[list[StrictStr | dict[str, Any]], Field(min_length=1)] = Field(
        description="entries as in --optimizers, or mappings as a recipe's optimizer, with a tuning of theirs"
    )
    seeds: StrictStr | StrictInt | list[StrictInt] = Field("0-2", description="as in --seeds, or a list")
    budget: Budget | None = Field(None, description="what every optimizer gets the same of")
    overrides: list[StrictStr] = Field(default_factory=list, description="KEY=VALUE, laid over every recipe")


@dataclass(frozen=True)
class Matrix:
    """Recipes × optimizers × seeds.

    Attributes:
        recipes: files or bundled names.
        overrides: ``KEY=VALUE`` texts for all cells.
        budget: None leaves each recipe's own.
    """

    recipes: tuple[str, ...]
    overrides: tuple[str, ...]
    entries: tuple[OptimizerEntry | GivenEntry, ...]
    seeds: tuple[int, ...]
    budget: Budget | None = None


def build_matrix(
    arguments: Sequence[str],
    optimizers: str | None = None,
    seeds: str | None = None,
    budget: Budget | None = None,
) -> Matrix:
    """The matrix of a command: what it gives goes over what a bench file says.

    Args:
        arguments: recipes or one bench file, and ``KEY=VALUE`` overrides, in any order.
        optimizers: the text of ``--optimizers``.
        seeds: the text of ``--seeds``.
        budget: of ``--budget``.

    Raises:
        UserError: nothing to compare, a file that is neither, faults in the entries.
    """
    overrides = [text for text in arguments if "=" in text]
    sources = [text for text in arguments if "=" not in text]
    given = Matrix(("quickstart",), (), (), tuple(parse_seeds("0-2")))
    files = [source for source in sources if _is_bench(source)]
    if files:
        if len(sources) > 1:
            raise UserError(f"{files[0]}: is a bench file, which names its recipes itself: give nothing else")
        given = _read(Path(files[0]))
    elif sources:
        given = replace(given, recipes=tuple(sources))
    if optimizers is not None:
        given = replace(given, entries=tuple(parse_optimizers(optimizers)))
    if not given.entries:
        hint = f"; {sources[0]} is no bench file, which has the key optimizers" if sources else ""
        raise UserError(f"--optimizers: is required, such as --optimizers 'sgd,sam[rho=0.1],pugd'{hint}")
    if seeds is not None:
        given = replace(given, seeds=tuple(parse_seeds(seeds)))
    return replace(given, overrides=(*given.overrides, *overrides), budget=budget or given.budget)


def _is_bench(source: str) -> bool:
    """A recipe has an ``optimizer``, a bench file ``optimizers``."""
    path = Path(source)
    if not os.path.isfile(path):  # pathlib's raises where a name is too long
        return False
    data = yaml.parse(yaml.read_text(path), source)
    return isinstance(data, Mapping) and "optimizers" in data


def _read(path: Path) -> Matrix:
    data = yaml.parse(yaml.read_text(path), str(path))
    try:
        file = BenchFile.model_validate(data)
    except ValidationError as error:
        raise FaultsError(str(path), list(dict.fromkeys(map(_fault, error.errors())))) from None
    entries: list[OptimizerEntry | GivenEntry] = []
    for number, each in enumerate(file.optimizers):
        try:
            entries += parse_optimizers(each) if isinstance(each, str) else [GivenEntry.read(each)]
        except FaultsError as error:
            faults = [Fault(f"optimizers.{number}", str(fault)) for fault in error.faults]
            raise FaultsError(str(path), faults) from None
    try:
        seeds = (
            sorted({seed for each in file.seeds for seed in parse_seeds(str(each))})
            if isinstance(file.seeds, list)
            else parse_seeds(str(file.seeds))
        )
    except UserError as error:
        raise UserError(f"{path}: {str(error).removeprefix('--')}") from None
    recipes = tuple(_beside(path, recipe) for recipe in file.recipes)
    return Matrix(recipes, tuple(file.overrides), tuple(entries), tuple(seeds), file.budget)


def _beside(path: Path, recipe: str) -> str:
    """A recipe's file beside the bench file, or the name as it is, which is found from here or bundled."""
    neighbour = path.parent / recipe
    if os.path.isfile(neighbour):
        return str(neighbour)
    find_recipe(recipe)
    return recipe


def _fault(details: Any) -> Fault:
    """Pydantic's error in our words; the alternatives of a union come to one."""
    known = list(BenchFile.model_fields)
    # What is no key or place in a list is an alternative's name.
    parts = [str(part) for part in details["loc"] if isinstance(part, int) or part in known]
    if details["type"] == "extra_forbidden":
        key = str(details["loc"][0])
        return Fault(key, f"unknown key. Known: {', '.join(known)}.{close_match(key, known)}")
    if details["type"] == "missing":
        return Fault(parts[0], "is required")
    if not parts:
        return Fault(str(details["loc"][0]) if details["loc"] else "", "keys must be words")
    if parts[0] == "seeds":
        return Fault("seeds", f"must be {_FORMS['seeds']}")
    shown = json.dumps(details["input"], default=str)[:_LONGEST_SHOWN]
    subject = "" if len(parts) == 1 else f"{parts[0]} "
    return Fault(".".join(parts), f"{subject}must be {_FORMS[parts[0]]}, not {shown}")


_SEED_BOUND = 2**31  # as of a recipe's train.seed

_LONGEST_SHOWN_PLAN = 80

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
    shown = text[:_LONGEST_SHOWN_PLAN]
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
