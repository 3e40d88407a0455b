"""Plan a comparison: a ``bench`` file or a command line as recipes × optimizers × seeds."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, product
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, ValidationError

from pugdft.bench.cell import BenchCell, with_seed
from pugdft.bench.optimizer_spec import GivenEntry, OptimizerEntry, parse_optimizers
from pugdft.config import yaml
from pugdft.config.load import find_recipe, find_table, schema_faults
from pugdft.config.schema import Recipe, Section
from pugdft.errors import ConfigIssue, FaultsError, UserError, close_match, collect, refuse
from pugdft.optim.build import method_of
from pugdft.optim.triggers import Always
from pugdft.training.run import read_recipe, run_id

Budget = Literal["epochs", "passes"]
Entry = OptimizerEntry | GivenEntry

_SEED_BOUND = 2**31  # as of a recipe's train.seed
_LONGEST_SHOWN = 80
_AnySection = TypeVar("_AnySection", bound=Section)


def parse_seeds(text: str) -> list[int]:
    """Read ``0-4`` or ``0,2,7`` as numbers."""
    with refuse(UserError, lambda error: f"--seeds: {error}"):
        return _read_seeds(text)


def _read_seeds(given: Any) -> list[int]:
    """Read seeds: a text as in ``--seeds``, a whole number, or a list of whole numbers."""
    numbers = given if isinstance(given, list) else [given]
    if not (isinstance(given, str) or all(type(number) is int for number in numbers)):
        raise UserError("must be a range such as 0-4, a whole number, or a list of whole numbers")
    text = ",".join(map(str, numbers))
    shown = text[:_LONGEST_SHOWN]
    seeds: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,20})\s*(?:-\s*([0-9]{1,20})\s*)?", part)
        if not match:
            raise UserError(f'"{shown}": expected numbers and ranges, such as 0-4 or 0,2,7')
        first, last = int(match[1]), int(match[2] or match[1])
        if max(first, last) >= _SEED_BOUND:
            raise UserError(f'"{shown}": seeds are whole numbers below {_SEED_BOUND}')
        if last < first:
            raise UserError(f'"{part}" runs backwards')
        if last - first >= 10_000:
            raise UserError(f'"{part}" are more than 10,000 seeds')
        seeds.update(range(first, last + 1))
    return sorted(seeds)


def _read_entries(given: Any) -> Sequence[Entry]:
    """Read an optimizer of a bench file: a text as in ``--optimizers``, or a mapping as in a recipe."""
    if isinstance(given, str):
        return parse_optimizers(given)
    if isinstance(given, Mapping):
        return [GivenEntry.read(given)]
    shown = json.dumps(given, default=str)[:_LONGEST_SHOWN]
    raise UserError(f"must be an entry such as sam[rho=0.1] or {{name: sam, rho: 0.1}}, not {shown}")


class Matrix(Section):
    """Recipes × optimizers × seeds: a ``bench`` YAML, or the same from the command line."""

    # Files, beside this one or from here, or bundled names.
    recipes: Annotated[list[str], Field(min_length=1)] = Field(["quickstart"])
    # As in --optimizers, or mappings as a recipe's optimizer, each with its tuning.
    entries: Annotated[
        list[Annotated[Any, PlainValidator(_read_entries)]],
        Field(min_length=1, alias="optimizers"),
        AfterValidator(lambda lists: list(chain.from_iterable(lists))),
    ] = Field([])
    seeds: Annotated[list[int], BeforeValidator(_read_seeds)] = Field([0, 1, 2])  # as in --seeds, or a list
    budget: Budget | None = None  # what every optimizer gets the same amount of; else as the recipes say
    overrides: list[str] = Field([])  # KEY=VALUE, laid over every recipe
    executor: str = "local"  # as --executor


def _is_matrix_key(key: Any) -> bool:
    """Whether a key is ``optimizers``, or a misspelling of it, which a recipe's ``optimizer`` is not."""
    return isinstance(key, str) and key.endswith("s") and bool(close_match(key, ["optimizers"]))


def build_matrix(
    arguments: Sequence[str],
    optimizers: str | None = None,
    seeds: str | None = None,
    budget: Budget | None = None,
) -> Matrix:
    """Build a command's matrix from recipes, a bench file or a table; overrides and options come first."""
    sources = [text for text in arguments if "=" not in text]
    files = {}  # with the key optimizers, which a recipe has not
    for source in sources:
        path = find_table(source) or source
        if os.path.isfile(path):  # pathlib's test raises where a name is too long
            data = yaml.parse(yaml.read_text(Path(path)), source)
            if isinstance(data, Mapping) and any(_is_matrix_key(key) for key in data):
                files[source] = data
    if files and len(sources) > 1:
        name = next(iter(files))
        raise UserError(f"{name}: is a bench file and names its own recipes: give no others beside it")
    given = Matrix(recipes=sources) if sources else Matrix()
    options: dict[str, Any] = {}
    for source, data in files.items():
        given = read_section(Matrix, data, source)
        beside = [(recipe, str(Path(source).parent / recipe)) for recipe in given.recipes]
        options["recipes"] = [path if os.path.isfile(path) else recipe for recipe, path in beside]
        for recipe in options["recipes"]:
            find_recipe(recipe)  # refuses what is neither a file nor bundled
    options["overrides"] = [*given.overrides, *(text for text in arguments if "=" in text)]
    if optimizers is not None:
        options["entries"] = parse_optimizers(optimizers)
    elif not given.entries:
        for source in sources:
            find_recipe(source)  # a misspelt table, say
        hint = f"; {sources[0]} is not a bench file (no key optimizers)" if sources else ""
        raise UserError(f"--optimizers: is required, such as --optimizers 'sgd,sam[rho=0.1],pugd'{hint}")
    if seeds is not None:
        options["seeds"] = parse_seeds(seeds)
    if budget is not None:
        options["budget"] = budget
    return given.model_copy(update=options)


def read_section(schema: type[_AnySection], data: Any, source: str) -> _AnySection:
    """Check the content of the file ``source`` against its schema; every fault is reported."""
    with refuse(ValidationError, lambda error: str(FaultsError(source, schema_faults(error, schema)))):
        return schema.model_validate(data)


def plan_cells(matrix: Matrix, output: Path, processes: int = 1) -> list[BenchCell]:
    """Plan the cells, seed by seed, so that an early end leaves whole comparisons; refuse equal runs."""
    recipes = [(source, read_recipe(source, matrix.overrides)) for source in matrix.recipes]
    templates = [(source, _with_budget(recipe, matrix.budget)) for source, recipe in recipes]
    first: dict[Path, BenchCell] = {}  # of the first seed; only its recipes are resolved and checked
    faults: list[ConfigIssue] = []
    for (source, template), entry in product(templates, matrix.entries):
        with collect(faults, f'"{entry.text}"'):
            # The cost of tuning the recipe's own optimizer does not count for another.
            is_own = entry.text == template.optimizer["name"]
            tuning = entry.tuning or (template.as_dict().get("tuning") if is_own else None)
            spec = entry.spec(template.optimizer)
            cell = make_cell(entry.text, template, spec, matrix.seeds[0], output, tuning, source)
            cell = replace(cell, processes=processes)
            same = first.setdefault(cell.folder, cell)
            if same is not cell:
                raise UserError(f'is the same run as "{same.optimizer}"')
    if faults:
        raise FaultsError("--optimizers", list(dict.fromkeys(faults)))
    cells = list(first.values())
    for seed in matrix.seeds[1:]:
        for cell in first.values():
            folder = output / run_id(with_seed(cell.template, seed))
            cells.append(replace(cell, seed=seed, folder=folder))
    return cells


def make_cell(
    label: str,
    template: Recipe,
    spec: Mapping[str, Any],
    seed: int,
    output: Path,
    tuning: Mapping[str, Any] | None = None,
    source: str = "",
) -> BenchCell:
    """Make the cell of an optimizer and a seed under a recipe; refuse an optimizer that does not fit it."""
    data = {**template.as_dict(), "optimizer": dict(spec), "tuning": tuning}
    data["train"]["seed"] = seed
    recipe = read_recipe(data)
    passes = passes_per_update(recipe.optimizer, recipe.train.ascent_batch)
    return BenchCell(label, seed, recipe, output / run_id(recipe), passes, source)


def passes_per_update(spec: Mapping[str, Any], ascent_batch: float = 1.0) -> float:
    """Gradient passes of an update of a resolved ``optimizer`` mapping, averaged over a run."""
    method = method_of(spec)
    if isinstance(method.trigger, Always):
        return 1 + ascent_batch * method.direction.num_ascents
    known = method.expected_passes
    return 1.0 + method.direction.num_ascents if known is None else known


def _with_budget(recipe: Recipe, budget: str | None) -> Recipe:
    """Convert the recipe's length to gradient passes or to epochs, at the cost of its own optimizer."""
    if budget is None or budget == recipe.train.budget:
        return recipe
    factor = passes_per_update(recipe.optimizer, recipe.train.ascent_batch)
    factor = 1 / factor if budget == "epochs" else factor
    length: dict[str, Any] = {"epochs": max(1, round(recipe.train.epochs * factor)), "budget": budget}
    if recipe.train.max_steps:
        length["max_steps"] = max(1, round(recipe.train.max_steps * factor))
    old = recipe.schedule
    schedule: dict[str, Any] = {"warmup_epochs": old.warmup_epochs * factor}
    if old.milestones:
        schedule["milestones"] = [epoch * factor for epoch in old.milestones]
    if old.step_epochs:
        schedule["step_epochs"] = old.step_epochs * factor
    sections = {"train": (recipe.train, length), "schedule": (old, schedule)}
    return recipe.model_copy(update={key: old.model_copy(update=new) for key, (old, new) in sections.items()})
