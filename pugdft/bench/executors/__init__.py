"""Engines that start workers, here or on a cluster. They know nothing of cells: the folder is the queue.

``--executor 'slurm[workers=64,partition=gpu,time=240]'`` has the grammar of an entry of ``--optimizers``.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from pugdft.errors import ConfigIssue, FaultsError, close_match, unknown

ENGINES = ("local", "slurm", "ray")

_FORM = "expected ENGINE[key=value,…], such as local[workers=2] or slurm[workers=8,partition=gpu]"


class EngineOption(NamedTuple):
    """An option of an engine; the table ``OPTIONS`` of each engine's module has its own ones."""

    meaning: str
    allowed: str  # completes "must be …"
    holds: Callable[[Any], bool]


def whole(least: int, most: int) -> Callable[[Any], bool]:
    """Whether a value is a whole number from ``least`` to ``most``."""
    return lambda value: type(value) is int and least <= value <= most


def number(least: float, most: float) -> Callable[[Any], bool]:
    """Whether a value is a number from ``least`` to ``most``."""
    return lambda value: type(value) in (int, float) and least <= value <= most


_COMMON = {
    "workers": EngineOption(
        "workers to start; auto: one for each visible GPU, else one",
        "a whole number up to 100000 or auto",
        lambda value: value == "auto" or whole(0, 100_000)(value),
    ),
    "cells": EngineOption(
        "cells side by side on a worker's device", "a whole number from 1 to 64", whole(1, 64)
    ),
    "warm": EngineOption(
        "fork cells from a process that has imported all they need",
        "true or false",
        lambda value: type(value) is bool,
    ),
    "lease": EngineOption(
        "seconds after which a silent worker's cell is free; leases are used wherever the folder lies",
        "a number of seconds from 3 to 3600",
        number(3, 3600),
    ),
}


class Executor(Protocol):
    """What an engine does."""

    goes_on: bool  # whether its workers go on when the command that watches them is interrupted

    def check(self) -> None:
        """Look whether the engine can do what is wanted.

        Raises:
            UserError: it cannot, such as without its extra.
            RunFailed: its cluster cannot be reached.
        """

    def start(self, count: int, command: Sequence[str], logs: Path) -> None:
        """Start ``count`` processes of ``command``, which end by themselves."""

    def alive(self) -> int | None:
        """How many of them run or wait to run; None if the engine cannot tell now."""

    def stop(self) -> None:
        """End them; a worker that is told to end saves its cell first."""


@dataclass(frozen=True)
class Wanted:
    """``--executor`` as it was read."""

    engine: str
    workers: int | None  # None: auto
    cells: int
    warm: bool
    lease: float | None
    options: Mapping[str, Any]  # of the engine
    detach: bool = False  # workers go on without the command

    @property
    def is_this_process(self) -> bool:
        """Whether this command itself may be the only worker."""
        return self.engine == "local" and self.workers is None and self.cells == 1 and not self.detach

    def command(self, runs: Path, retry: bool) -> list[str]:
        """The command of a worker."""
        options = [] if self.warm else ["--cold"]
        options += ["--retry"] if retry else []
        options += ["--cells", str(self.cells)] if self.cells > 1 else []
        return [sys.executable, "-m", "pugdft", "bench", "--join", str(runs.resolve()), *options]


def parse_executor(text: str, detach: bool = False) -> Wanted:
    """Read ``ENGINE[key=value,…]``.

    Raises:
        FaultsError: all that is wrong, with what is allowed.
    """
    from pugdft.bench.optimizer_spec import parse_part  # imports torch, which an engine's job does not need

    faults: list[ConfigIssue] = []
    name, options = parse_part(text, faults, _FORM)
    if name and name not in ENGINES:
        faults.append(ConfigIssue("", unknown("engine", name, ENGINES)))
    if faults:
        raise FaultsError("--executor", faults)
    known = _COMMON | importlib.import_module(f"pugdft.bench.executors.{name}").OPTIONS
    for key, value in options.items():
        if key not in known:
            shown = "; ".join(f"{each}: {option.meaning}" for each, option in known.items())
            problem = f"unknown option. Known: {shown}.{close_match(key, known)}"
            faults.append(ConfigIssue(f'"{key}"', problem))
        elif not known[key].holds(value):
            faults.append(ConfigIssue(key, f"must be {known[key].allowed}, not {value!r}"))
    workers = options.pop("workers", "auto")
    if workers == "auto" and name != "local":
        faults.append(ConfigIssue("workers", "is required: how many workers to start"))
    if faults:
        raise FaultsError("--executor", faults)
    common = options.pop("cells", 1), options.pop("warm", True), options.pop("lease", None)
    return Wanted(name, None if workers == "auto" else workers, *common, options, detach)


def make_executor(wanted: Wanted, runs: Path) -> Executor:
    """The engine that was asked for."""
    made: Executor = importlib.import_module(f"pugdft.bench.executors.{wanted.engine}").make(wanted, runs)
    return made
