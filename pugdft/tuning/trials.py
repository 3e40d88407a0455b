"""Trials of a search: choices of options, each run with every seed and scored on held-out images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pugdft.bench.executors.local import INTERRUPTED, USER_MISTAKE, Options, Watcher, cell_record
from pugdft.bench.grid import Cell, passes_per_update
from pugdft.config.schema import Recipe
from pugdft.errors import counted
from pugdft.paths import claimed
from pugdft.records import RunRecord
from pugdft.training.run import read_recipe, run_id

Runner = Callable[[Sequence[Cell], Watcher, Options], int]

"""``bench.local.run_cells``, or what stands in for it."""

Say = Callable[[str], None]

"""Takes a line for people."""

_SETTLED = ("completed", "diverged", "failed", "oom")


class StoppedError(Exception):
    """A trial's run ended for a mistake of the user or an interruption: nothing more is started.

    Attributes:
        code: the run's exit code.
    """

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True)
class Trial:
    """A choice of options.

    Attributes:
        label: of the optimizer that runs: a method, or its base alone.
        options: those that are searched, with their values.
        cells: a run for each seed.
    """

    label: str
    options: Mapping[str, Any]
    spec: Mapping[str, Any]
    cells: tuple[Cell, ...]

    @property
    def text(self) -> str:
        """In one line."""
        return f"{self.label}: {options_text(self.options)}"

    @property
    def runs(self) -> tuple[str, ...]:
        """The ids of its runs: trials of the same runs are the same trial."""
        return tuple(cell.folder.name for cell in self.cells)


@dataclass(frozen=True)
class Outcome:
    """What a trial came to, over its seeds.

    Attributes:
        status: ``completed`` if every run is; else of the first that is not.
        top1: mean on the held-out images; None unless every run completed: then there is no score.
        loss: likewise.
        gradient_passes: of all runs together.
    """

    status: str
    top1: float | None
    loss: float | None
    gradient_passes: float

    @property
    def text(self) -> str:
        """In a few words."""
        if self.top1 is None:
            return f"{self.status}, no score"
        return f"validation top-1 {self.top1:.2%}, loss {self.loss:.4f}"

    @property
    def rank(self) -> tuple[float, float]:
        """The lower the better: by top-1, then by loss."""
        assert self.top1 is not None and self.loss is not None  # noqa: PT018
        return -self.top1, self.loss if math.isfinite(self.loss) else math.inf


class Trials:
    """Makes trials, runs them, and knows what they came to.

    Args:
        template: the recipe of every trial but for optimizer and seed.
        seeds: a trial is run with each.
        folder: of the runs' folders; it exists.
        run: runs cells.
        options: how.
        say: hears of each trial that ends.
    """

    def __init__(
        self,
        template: Recipe,
        seeds: Sequence[int],
        folder: Path,
        run: Runner,
        options: Options,
        say: Say,
    ) -> None:
        self.seeds, self.say = tuple(seeds), say
        self._template, self._folder, self._options = template, folder, options
        self._run_cells = run
        self._records: dict[Path, RunRecord] = {}
        # Runs that ended here without a record, as one that the kernel killed: not tried twice in a command.
        self._unrecorded: set[Path] = set()

    def make(self, label: str, options: Mapping[str, Any], spec: Mapping[str, Any]) -> Trial:
        """The trial of an optimizer.

        Raises:
            UserError: the options do not go together.
        """
        return Trial(label, dict(options), spec, tuple(self._cell(label, spec, seed) for seed in self.seeds))

    def run(self, trials: Sequence[Trial], prefix: str = "") -> None:
        """Run what has not been run; what another command has under way is waited for at the end.

        Raises:
            StoppedError: after a mistake of the user or an interruption.
        """
        pending = [trial for trial in trials if not self.is_settled(trial)]
        elsewhere: list[Cell] = []
        for trial in pending:
            for cell in trial.cells:
                if self._is_settled(cell):
                    continue
                with claimed(cell.folder) as descriptor:
                    is_free = descriptor is not None
                if is_free:
                    self._run(cell)
                else:
                    elsewhere.append(cell)
            if self.is_settled(trial):
                self.say(f"{prefix}{trial.text}: {self.outcome(trial).text}")
        if not elsewhere:
            return
        self.say(f"{prefix}waiting for {counted(len(elsewhere), 'run')} of another command")
        awaited = [trial for trial in pending if not self.is_settled(trial)]
        for cell in elsewhere:
            if not self._is_settled(cell):
                self._run(cell)
        for trial in awaited:
            self.say(f"{prefix}{trial.text}: {self.outcome(trial).text}")

    def is_settled(self, trial: Trial) -> bool:
        """Whether every run of it has ended, so that this command will not run it."""
        return all(self._is_settled(cell) for cell in trial.cells)

    def is_lost(self, trial: Trial) -> bool:
        """Whether a run of it ended here without a record: the next command tries it again."""
        return any(cell.folder in self._unrecorded for cell in trial.cells)

    def outcome(self, trial: Trial) -> Outcome:
        """What a settled trial came to."""
        records = [self._record(cell) for cell in trial.cells]
        passes = sum(record.cost.gradient_passes for record in records if record)
        status = next((_status(record) for record in records if _status(record) != "completed"), "completed")
        metrics = [record.metrics.validation for record in records if record and record.metrics]
        scores = [each for each in metrics if each is not None]
        if status != "completed" or len(scores) < len(records):
            return Outcome("failed" if status == "completed" else status, None, None, passes)
        top1 = math.fsum(each.top1 for each in scores) / len(scores)
        return Outcome(status, top1, math.fsum(each.loss for each in scores) / len(scores), passes)

    def best(self, trials: Sequence[Trial]) -> Trial | None:
        """The trial of the best score, the earlier of equals; None if none has one."""
        scored = [trial for trial in trials if self.outcome(trial).top1 is not None]
        return min(scored, key=lambda trial: self.outcome(trial).rank, default=None)

    def _cell(self, label: str, spec: Mapping[str, Any], seed: int) -> Cell:
        data = self._template.as_dict()
        data["optimizer"] = dict(spec)
        data["train"]["seed"] = seed
        recipe = read_recipe(data)
        return Cell(
            label, seed, recipe, self._folder / run_id(recipe), passes_per_update(recipe.optimizer), label
        )

    def _run(self, cell: Cell) -> None:
        watcher = _Lines()
        code = self._run_cells([cell], watcher, self._options)
        if code in INTERRUPTED:
            raise StoppedError(code)
        if self._record(cell) is None:
            self._unrecorded.add(cell.folder)
        if code == USER_MISTAKE or _status(self._record(cell)) != "completed":
            for line in watcher.lines:
                self.say(f"  {line}")
        if code == USER_MISTAKE:
            raise StoppedError(code)

    def _is_settled(self, cell: Cell) -> bool:
        return cell.folder in self._unrecorded or self._record(cell) is not None

    def _record(self, cell: Cell) -> RunRecord | None:
        """The record of a run that has ended."""
        if cell.folder not in self._records:
            record = cell_record(cell)
            if record is None or record.status not in _SETTLED:
                return None
            self._records[cell.folder] = record
        return self._records[cell.folder]


class _Lines(Watcher):
    """Keeps what a run says, of which only a run that goes wrong has something to tell."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def on_line(self, cell: Cell, line: str) -> None:
        self.lines = [*self.lines[-19:], line]


def options_text(options: Mapping[str, Any]) -> str:
    """``base.lr=0.01 rho=0.1``."""
    return " ".join(f"{key}={_value_text(value)}" for key, value in options.items())


def _value_text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_value_text(each)}" for key, each in value.items()) + "}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _status(record: RunRecord | None) -> str:
    return record.status if record else "failed"


@dataclass(frozen=True)
class Finished:
    """A trial with its outcome.

    Attributes:
        stage: the option that it was for, in a search of one option after another.
    """

    trial: Trial
    outcome: Outcome
    stage: str = ""


@dataclass(frozen=True)
class Tuned:
    """An optimizer after the search.

    Attributes:
        label: as it was written.
        spec: with the options that were found; None if no trial has a score.
        options: those that were searched, as they were found.
        outcome: of the trial that was chosen; None if only the base was searched.
        trials: all that the choice rests on, in their order, each once.
        at_edge: option to ``lower`` or ``upper``: the end of what was searched at which its value lies.
        remarks: what else a reader must know.
    """

    label: str
    spec: Mapping[str, Any] | None
    options: Mapping[str, Any]
    outcome: Outcome | None
    trials: tuple[Finished, ...]
    at_edge: Mapping[str, str]
    remarks: tuple[str, ...] = ()

    @property
    def num_runs(self) -> int:
        """Distinct runs, all seeds counted."""
        return len({run for each in self.trials for run in each.trial.runs})

    @property
    def gradient_passes(self) -> float:
        """Of all these runs."""
        return sum(each.outcome.gradient_passes for each in self.trials)
