"""Plan a comparison: a ``bench`` file or a command line as recipes × optimizers × seeds."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainValidator, ValidationError

from pugdft.bench.optimizer_spec import GivenEntry, OptimizerEntry, parse_optimizers
from pugdft.config import yaml
from pugdft.config.load import find_recipe, schema_faults
from pugdft.config.schema import Recipe, Section
from pugdft.errors import ConfigIssue, FaultsError, UserError
from pugdft.optim.build import build_method
from pugdft.optim.triggers import Always
from pugdft.training.run import read_recipe, run_id

Budget = Literal["epochs", "passes"]

Entry = OptimizerEntry | GivenEntry

_SEED_BOUND = 2**31  # as of a recipe's train.seed
_LONGEST_SHOWN = 80


def parse_seeds(text: str) -> list[int]:
    """Read ``0-4`` or ``0,2,7`` as numbers.

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


def _read_seeds(given: Any) -> list[int]:
    """A bench file's seeds: as in ``--seeds``, or a list of whole numbers."""
    numbers = given if isinstance(given, list) else [given]
    if not (isinstance(given, str) or all(type(number) is int for number in numbers)):
        raise UserError("must be a range such as 0-4, a whole number, or a list of whole numbers")
    try:
        return parse_seeds(",".join(map(str, numbers)))
    except UserError as error:
        raise UserError(str(error).removeprefix("--seeds: ")) from None


def _read_entries(given: Any) -> Sequence[Entry]:
    """A bench file's optimizer: a text as in ``--optimizers``, or a mapping as in a recipe."""
    if isinstance(given, str):
        return parse_optimizers(given)
    if isinstance(given, Mapping):
        return [GivenEntry.read(given)]
    shown = json.dumps(given, default=str)[:_LONGEST_SHOWN]
    raise UserError(f"must be an entry such as sam[rho=0.1] or {{name: sam, rho: 0.1}}, not {shown}")


class BenchFile(Section):
    """A ``bench`` YAML: the same matrix as on the command line, to keep and to share."""

    recipes: Annotated[list[str], Field(min_length=1)] = Field(
        ["quickstart"], description="files, beside this one or from here, or bundled names"
    )
    optimizers: Annotated[list[Annotated[Any, PlainValidator(_read_entries)]], Field(min_length=1)] = Field(
        description="entries as in --optimizers, or mappings as a recipe's optimizer, with a tuning of theirs"
    )
    seeds: Annotated[list[int], BeforeValidator(_read_seeds)] = Field(
        [0, 1, 2], description="as in --seeds, or a list"
    )
    budget: Budget | None = Field(None, description="what every optimizer gets the same of")
    overrides: list[str] = Field(default_factory=list, description="KEY=VALUE, laid over every recipe")


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
    entries: tuple[Entry, ...]
    seeds: tuple[int, ...]
    budget: Budget | None = None


def build_matrix(
    arguments: Sequence[str],
    optimizers: str | None = None,
    seeds: str | None = None,
    budget: Budget | None = None,
) -> Matrix:
    """Build the matrix of a command; its options replace those of a bench file.

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
    given = Matrix(tuple(sources) or ("quickstart",), (), (), tuple(parse_seeds("0-2")))
    for source in sources:
        if (data := _bench_data(source)) is None:
            continue
        if len(sources) > 1:
            raise UserError(f"{source}: is a bench file, which names its recipes itself: give nothing else")
        given = _read(Path(source), data)
    if optimizers is not None:
        given = replace(given, entries=tuple(parse_optimizers(optimizers)))
    if not given.entries:
        hint = f"; {sources[0]} is no bench file, which has the key optimizers" if sources else ""
        raise UserError(f"--optimizers: is required, such as --optimizers 'sgd,sam[rho=0.1],pugd'{hint}")
    if seeds is not None:
        given = replace(given, seeds=tuple(parse_seeds(seeds)))
    return replace(given, overrides=(*given.overrides, *overrides), budget=budget or given.budget)


def _bench_data(source: str) -> Mapping[str, Any] | None:
    """The content of a bench file: it has the key ``optimizers``, while a recipe has ``optimizer``."""
    if not os.path.isfile(source):  # pathlib's raises where a name is too long
        return None
    data = yaml.parse(yaml.read_text(Path(source)), source)
    return data if isinstance(data, Mapping) and "optimizers" in data else None


def _read(path: Path, data: Any) -> Matrix:
    try:
        file = BenchFile.model_validate(data)
    except ValidationError as error:
        raise FaultsError(str(path), schema_faults(error, BenchFile)) from None
    recipes = tuple(_beside(path, recipe) for recipe in file.recipes)
    entries = tuple(entry for each in file.optimizers for entry in each)
    return Matrix(recipes, tuple(file.overrides), entries, tuple(file.seeds), file.budget)


def _beside(path: Path, recipe: str) -> str:
    """A recipe's file beside the bench file, or the name as it is, which is found from here or bundled."""
    neighbour = path.parent / recipe
    if os.path.isfile(neighbour):
        return str(neighbour)
    find_recipe(recipe)
    return recipe


@dataclass(frozen=True)
class BenchCell:
    """One run of a comparison.

    Attributes:
        optimizer: the entry as it was written.
        passes_per_update: gradient passes of an update, averaged; as if every step perturbed, if only the
            run itself can tell.
        source: the recipe's file or name.
    """

    optimizer: str
    seed: int
    recipe: Recipe
    folder: Path
    passes_per_update: float = 1.0
    source: str = ""


def plan_cells(
    recipes: Sequence[str],
    overrides: Sequence[str],
    entries: Sequence[Entry],
    seeds: Sequence[int],
    output: Path,
    budget: str | None = None,
) -> list[BenchCell]:
    """Plan the cells, seed by seed, so that an early end leaves whole comparisons.

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
    cells: list[BenchCell] = []
    for seed in seeds:
        of_seed: dict[Path, BenchCell] = {}
        faults: list[ConfigIssue] = []
        for source, template in templates:
            for entry in entries:
                try:
                    cell = _cell(source, template, entry, seed, output)
                except FaultsError as error:
                    faults += [ConfigIssue(f'"{entry.text}"', str(fault)) for fault in error.faults]
                    continue
                same = of_seed.setdefault(cell.folder, cell)
                if same is not cell:
                    faults.append(ConfigIssue(f'"{entry.text}"', f'is the same run as "{same.optimizer}"'))
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


def _cell(source: str, template: Recipe, entry: Entry, seed: int, output: Path) -> BenchCell:
    data = template.as_dict()
    data["train"]["seed"] = seed
    data["optimizer"] = entry.spec(template.optimizer)
    # The cost of tuning the recipe's own optimizer does not count for another.
    data["tuning"] = entry.tuning or (
        data.get("tuning") if entry.text == template.optimizer["name"] else None
    )
    resolved = read_recipe(data)
    passes = passes_per_update(resolved.optimizer, resolved.train.ascent_batch)
    return BenchCell(entry.text, seed, resolved, output / run_id(resolved), passes, source)


def _with_budget(recipe: Recipe, budget: str | None) -> Recipe:
    """The recipe with its length in gradient passes, or in epochs, at the cost of its own optimizer."""
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
