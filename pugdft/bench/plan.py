"""The plan of a comparison as a file, from which any process becomes a worker or tells how things stand.

Every command with a matrix of its own writes ``RUNS/.plan/DIGEST.json``; equal matrices are one file. Workers
read all of them and plan nothing. No module here imports torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pugdft.bench.cell import BenchCell
from pugdft.bench.queue import FolderLedger
from pugdft.config.schema import Recipe
from pugdft.errors import UserError, reason, refuse
from pugdft.paths import write_atomically

_SCHEMA = "pugdft.plan/1"
_FOLDER = ".plan"
_PACKAGES = ("pugdft", "torch", "timm", "accelerate")


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
    content |= {"schema": _SCHEMA, "versions": own_versions()}
    path = runs / _FOLDER / f"{digest}.json"
    if path.exists():
        found = _read(path)
        if found["versions"] == content["versions"]:
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


def _versions_differ(runs: Path, content: Mapping[str, Any]) -> str:
    """What to say of a plan with other versions; empty if they are equal."""
    theirs, ours = content["versions"], own_versions()
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

    def news(self) -> Iterator[Mapping[str, Any]]:
        """The content of the plans that were not there before.

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
        for content in self.news():
            if problem := _versions_differ(self._runs, content):
                refused += [problem] * any(name not in settled for name, *_ in content["cells"])
            else:
                cells |= {cell.folder.name: cell for cell in self._cells(content)}
        return cells, refused

    def _cells(self, content: Mapping[str, Any]) -> Iterator[BenchCell]:
        templates = [(each, Recipe.model_validate(each["recipe"])) for each in content["templates"]]
        seeds: dict[str, dict[str, set[int]]] = {}  # of each recipe and optimizer
        for cell in planned_cells(content):
            seeds.setdefault(cell.source, {}).setdefault(cell.optimizer, set()).add(cell.seed)
        planned = [
            json.dumps(
                {
                    "seeds": sorted(seeds[each["source"]][each["optimizer"]]),
                    "optimizers": len(seeds[each["source"]]),
                }
            )
            for each in content["templates"]
        ]
        for name, place, seed in content["cells"]:
            facts, recipe = templates[place]
            more = facts["passes_per_update"], facts["source"], facts["processes"], planned[place]
            yield BenchCell(facts["optimizer"], seed, recipe, self._runs / name, *more)


def _read(path: Path) -> Mapping[str, Any]:
    with refuse((OSError, ValueError), lambda error: f"{path}: is no plan of a bench: {reason(error)}"):
        content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or content.get("schema") != _SCHEMA:
        raise UserError(f"{path}: is a plan of another version of pugdft; use that version here")
    return content


def planned_cells(content: Mapping[str, Any]) -> list[PlannedCell]:
    """The cells of a plan, without their recipes."""
    templates = content["templates"]
    return [
        PlannedCell(name, templates[place]["source"], templates[place]["optimizer"], seed)
        for name, place, seed in content["cells"]
    ]
