"""Engines that start workers, here or on a cluster. They know nothing of cells: the folder is the queue.

``--executor 'slurm[workers=64,partition=gpu,time=240]'`` has the grammar of an entry of ``--optimizers``.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pugdft.bench.optimizer_spec import parse_part
from pugdft.errors import ConfigIssue, FaultsError, close_match, unknown

ENGINES = ("local", "slurm", "ray")

_FORM = "expected ENGINE[key=value,…], such as local[workers=2] or slurm[workers=8,partition=gpu]"
# What every engine takes, with what it means; an engine's module has its own in OPTIONS.
_COMMON = {
    "workers": "workers to start; auto: one for each visible GPU, else one",
    "cells": "cells side by side on a worker's device",
    "warm": "fork cells from a process that has imported all they need",
    "lease": "seconds after which a silent worker's cell is free; leases are used wherever the folder lies",
}


class Executor(Protocol):
    """What an engine does."""

    def check(self) -> None:
        """Raise a UserError if the engine cannot do what is wanted: a missing extra, an unknown partition."""

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

    @property
    def is_this_process(self) -> bool:
        """Whether this command itself may be the only worker."""
        return self.engine == "local" and self.workers is None and self.cells == 1

    def command(self, runs: Path) -> list[str]:
        """The command of a worker."""
        options = [] if self.warm else ["--cold"]
        options += ["--cells", str(self.cells)] if self.cells > 1 else []
        return [sys.executable, "-m", "pugdft", "bench", "--join", str(runs.resolve()), *options]


def parse_executor(text: str) -> Wanted:
    """Read ``ENGINE[key=value,…]``.

    Raises:
        FaultsError: all that is wrong, with what is allowed.
    """
    faults: list[ConfigIssue] = []
    name, options = parse_part(text, faults, _FORM)
    if name and name not in ENGINES:
        faults.append(ConfigIssue("", unknown("engine", name, ENGINES)))
    if faults:
        raise FaultsError("--executor", faults)
    module = importlib.import_module(f"pugdft.bench.executors.{name}")
    known = {**_COMMON, **module.OPTIONS}
    for key in options:
        if key not in known:
            shown = "; ".join(f"{each}: {meaning}" for each, meaning in known.items())
            problem = f"unknown option. Known: {shown}.{close_match(key, known)}"
            faults.append(ConfigIssue(f'"{key}"', problem))
    workers, cells = options.pop("workers", "auto"), options.pop("cells", 1)
    warm, lease = options.pop("warm", True), options.pop("lease", None)
    if workers != "auto" and not (type(workers) is int and 0 <= workers <= 100_000):
        faults.append(ConfigIssue("workers", f"must be a whole number up to 100000 or auto, not {workers!r}"))
    if not (type(cells) is int and 1 <= cells <= 64):
        faults.append(ConfigIssue("cells", f"must be a whole number from 1 to 64, not {cells!r}"))
    if type(warm) is not bool:
        faults.append(ConfigIssue("warm", f"must be true or false, not {warm!r}"))
    if lease is not None and not (type(lease) in (int, float) and 3 <= lease <= 3600):
        faults.append(ConfigIssue("lease", f"must be a number of seconds from 3 to 3600, not {lease!r}"))
    faults += module.option_faults({key: each for key, each in options.items() if key in module.OPTIONS})
    if workers == "auto" and name != "local":
        faults.append(ConfigIssue("workers", "is required: how many workers to start"))
    if faults:
        raise FaultsError("--executor", faults)
    return Wanted(name, None if workers == "auto" else workers, cells, warm, lease, options)


def make_executor(wanted: Wanted, runs: Path) -> Executor:
    """The engine that was asked for."""
    made: Executor = importlib.import_module(f"pugdft.bench.executors.{wanted.engine}").make(wanted, runs)
    return made
