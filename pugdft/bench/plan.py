"""The plan of a comparison as a file, from which any process becomes a worker or tells how things stand.

Every command with a matrix of its own writes ``RUNS/.plan/DIGEST.json``; equal matrices are one file. Workers
read all of them and plan nothing. No module here imports torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, Field, PositiveInt, ValidationError

from pugdft.bench.cell import BenchCell
from pugdft.bench.queue import FolderLedger
from pugdft.config.schema import Recipe
from pugdft.errors import UserError, reason, refuse
from pugdft.paths import write_atomically

_Schema = Literal["pugdft.plan/1"]
_FOLDER = ".plan"
_PACKAGES = ("pugdft", "torch", "timm", "accelerate")


# A folder beside the plan: whoever can write the plan must not lead a worker to any other place.
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.][A-Za-z0-9_.-]{0,240}-s[0-9]+-[0-9a-f]{8}$")]


class _Template(BaseModel):
    """What the cells of one recipe and optimizer have in common."""

    source: str
    optimizer: str
    passes_per_update: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    processes: PositiveInt
    recipe: dict[str, Any]


class PlanFile(BaseModel):
    """The content of a plan's file."""

    form: _Schema = Field(alias="schema")
    versions: dict[str, str]
    templates: list[_Template]
    cells: list[tuple[_Name, Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0, lt=2**31)]]]


@dataclass(frozen=True)
class PlannedCell:
    """A cell as its plan has it."""

    name: str  # of its folder
    source: str
    optimizer: str
    seed: int


def write_plan(runs: Path, cells: Sequence[BenchCell]) -> None:
    """Write the plan of ``cells``, all of which lie in the folder ``runs``.

    Raises:
        UserError: a part of them was run with other versions.
    """
    templates: dict[int, int] = {}  # a template's id to its place
    shown: list[dict[str, Any]] = []
    rows: list[list[Any]] = []
    for cell in cells:
        if id(cell.template) not in templates:
            templates[id(cell.template)] = len(shown)
            facts = {"passes_per_update": cell.passes_per_update, "processes": cell.processes}
            recipe = cell.template.as_dict()
            shown.append({"source": cell.source, "optimizer": cell.optimizer, **facts, "recipe": recipe})
        rows.append([cell.folder.name, templates[id(cell.template)], cell.seed])
    content = {"templates": shown, "cells": rows}
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:8]
    content |= {"schema": get_args(_Schema)[0], "versions": own_versions()}
    path = runs / _FOLDER / f"{digest}.json"
    if path.exists():
        found = _read(path)
        if found.versions == content["versions"]:
            return
        settled = FolderLedger(runs).settled()
        num_done = sum(settled.get(cell.folder.name) == "completed" for cell in cells)
        if num_done == len(cells):
            return
        if num_done:
            raise UserError(f"{_versions_differ(runs, found)}, or remove {path} to go on with those of here")
    write_atomically(path, json.dumps(content, separators=(",", ":")).encode())


def own_versions() -> dict[str, str]:
    """The versions that decide what a run computes."""
    return {package: version(package) for package in _PACKAGES}


def _versions_differ(runs: Path, plan: PlanFile) -> str:
    """What to say of a plan with other versions; empty if they are equal."""
    theirs, ours = plan.versions, own_versions()
    shown = [
        f"{each} {theirs.get(each)} there, {ours[each]} here"
        for each in ours
        if theirs.get(each) != ours[each]
    ]
    if not shown:
        return ""
    return (
        f"{runs}: was planned with other versions ({', '.join(shown)}); runs of both would not be "
        "comparable. Install those versions here, or use another folder"
    )


class Plans:
    """The plans of a folder of runs, read as they come."""

    def __init__(self, runs: Path) -> None:
        self._runs, self._read = runs, set[Path]()

    def news(self) -> Iterator[PlanFile]:
        """The plans that were not there before.

        Raises:
            UserError: one cannot be read, or is of another version of pugdft.
        """
        for path in sorted((self._runs / _FOLDER).glob("*.json")):
            if path not in self._read:
                self._read.add(path)
                yield _read(path)

    def require(self) -> None:
        """Refuse a folder without a plan."""
        if not any((self._runs / _FOLDER).glob("*.json")):
            raise UserError(
                f"{self._runs}: has no plan of a bench. `pugdft bench RECIPE --optimizers … --output "
                f"{self._runs}` makes one; with --executor 'local[workers=0]' --detach it starts nothing"
            )

    def new_cells(self, settled: Container[str]) -> tuple[dict[str, BenchCell], list[str]]:
        """The cells of the plans that were not there before, and what to say of plans of other versions.

        A plan of other versions is passed over if all of its cells are ``settled``.
        """
        cells: dict[str, BenchCell] = {}
        refused: list[str] = []
        for plan in self.news():
            if problem := _versions_differ(self._runs, plan):
                refused += [problem] * any(name not in settled for name, *_ in plan.cells)
            else:
                cells |= {cell.folder.name: cell for cell in self._cells(plan)}
        return cells, refused

    def _cells(self, plan: PlanFile) -> Iterator[BenchCell]:
        where = f"{self._runs}: a recipe of its plan"
        with refuse(ValidationError, lambda error: f"{where}: {_first_fault(error)}"):
            templates = [(each, Recipe.model_validate(each.recipe)) for each in plan.templates]
        seeds: dict[str, dict[str, set[int]]] = {}  # of each recipe and optimizer
        for cell in planned_cells(plan):
            seeds.setdefault(cell.source, {}).setdefault(cell.optimizer, set()).add(cell.seed)
        planned = []
        for each in plan.templates:
            beside = seeds.get(each.source, {})
            shown = {"seeds": sorted(beside.get(each.optimizer, ())), "optimizers": len(beside)}
            planned.append(json.dumps(shown))
        for name, place, seed in plan.cells:
            facts, recipe = templates[place]
            more = facts.passes_per_update, facts.source, facts.processes, planned[place]
            yield BenchCell(facts.optimizer, seed, recipe, self._runs / name, *more)


def _read(path: Path) -> PlanFile:
    remedy = "remove it when no command runs here; the same bench command writes it anew"

    def say(error: Exception) -> str:
        if isinstance(error, OSError):
            return f"{path}: cannot be read: {reason(error)}"
        fault = _first_fault(error) if isinstance(error, ValidationError) else reason(error)
        if fault.startswith("schema: "):
            return f"{path}: is a plan of another version of pugdft; use that version here"
        return f"{path}: is no plan of a bench: {fault}; {remedy}"

    with refuse((OSError, ValueError, RecursionError), say):
        plan = PlanFile.model_validate(json.loads(path.read_bytes()))
    if any(place >= len(plan.templates) for _, place, _ in plan.cells):
        raise UserError(f"{path}: is no plan of a bench: a cell's recipe is not there; {remedy}")
    return plan


def _first_fault(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    return ": ".join(filter(None, [".".join(map(str, first["loc"])), reason(ValueError(first["msg"]))]))


def planned_cells(plan: PlanFile) -> list[PlannedCell]:
    """The cells of a plan, without their recipes."""
    templates = plan.templates
    return [
        PlannedCell(name, templates[place].source, templates[place].optimizer, seed)
        for name, place, seed in plan.cells
    ]
