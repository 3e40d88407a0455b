"""Trials of a search: choices of options, each run with every seed and scored on held-out images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pugdft.bench.executors.local import INTERRUPTED, USER_MISTAKE, Options, Watcher, cell_record, run_cells
from pugdft.bench.grid import BenchCell, passes_per_update
from pugdft.config.schema import Recipe
from pugdft.records import RunRecord
from pugdft.training.run import read_recipe, run_id

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
        spec: the optimizer with these options.
        cells: a run for each seed.
    """

    label: str
    options: Mapping[str, Any]
    spec: Mapping[str, Any]
    cells: tuple[BenchCell, ...]

    @property
    def runs(self) -> tuple[str, ...]:
        """The ids of its runs: trials of the same runs are the same trial."""
        return tuple(cell.folder.name for cell in self.cells)


@dataclass(frozen=True)
class Outcome:
    """The result of a trial over its seeds.

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


@dataclass(frozen=True)
class Finished:
    """A trial with its outcome.

    Attributes:
        stage: the option that it was for, in a greedy search.
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


class Trials:
    """Makes trials, runs them and reads their results.

    Args:
        template: the recipe of every trial but for optimizer and seed.
        seeds: a trial is run with each.
        folder: of the runs' folders; it exists.
        num_processes: of each run.
        say: called when a trial ends.
    """

    def __init__(
        self, template: Recipe, seeds: Sequence[int], folder: Path, num_processes: int, say: Say
    ) -> None:
        self.seeds, self.say = tuple(seeds), say
        self._template, self._folder, self._num_processes = template, folder, num_processes
        self._records: dict[Path, RunRecord] = {}
        # Runs that ended here without a record, such as killed ones: this command does not try them twice.
        self.unrecorded: set[Path] = set()

    def make(self, label: str, options: Mapping[str, Any], spec: Mapping[str, Any]) -> Trial:
        """The trial of an optimizer.

        Raises:
            UserError: the options do not go together.
        """
        cells = []
        for seed in self.seeds:
            data = self._template.as_dict()
            data["optimizer"] = dict(spec)
            data["train"]["seed"] = seed
            recipe = read_recipe(data)
            passes = passes_per_update(recipe.optimizer)
            cells.append(BenchCell(label, seed, recipe, self._folder / run_id(recipe), passes, label))
        return Trial(label, dict(options), spec, tuple(cells))

    def run(self, trials: Sequence[Trial], prefix: str = "", wait: bool = True) -> bool:
        """Run the cells without a result; with ``wait``, also wait for those that other commands run.

        Returns:
            Whether this command ran any of them.

        Raises:
            StoppedError: after a mistake of the user or an interruption.
        """
        cells = [cell for trial in trials for cell in trial.cells if not self._is_settled(cell)]
        watcher = _TrialWatcher(self, trials, prefix, wait)
        code = run_cells(cells, watcher, Options(self._num_processes, wait=wait))
        if code == USER_MISTAKE or code in INTERRUPTED:
            raise StoppedError(code)
        return watcher.has_run

    def is_settled(self, trial: Trial) -> bool:
        """Whether every run of it has ended, so that this command will not run it."""
        return all(map(self._is_settled, trial.cells))

    def is_lost(self, trial: Trial) -> bool:
        """Whether a run of it ended here without a record: the next command tries it again."""
        return any(cell.folder in self.unrecorded for cell in trial.cells)

    def outcome(self, trial: Trial) -> Outcome:
        """Return the result of a finished trial."""
        records = [record for cell in trial.cells if (record := self._record(cell))]
        passes = sum(record.cost.gradient_passes for record in records)
        scores = [each.metrics.validation for each in records if each.metrics and each.metrics.validation]
        bad = next((each.status for each in records if each.status != "completed"), "failed")
        if len(scores) < len(trial.cells) or any(each.status != "completed" for each in records):
            return Outcome(bad, None, None, passes)
        top1 = math.fsum(each.top1 for each in scores) / len(scores)
        return Outcome("completed", top1, math.fsum(each.loss for each in scores) / len(scores), passes)

    def best(self, trials: Sequence[Trial]) -> Trial | None:
        """The trial of the best top-1, then the lowest loss, then the earliest; None if none has a score."""

        def rank(trial: Trial) -> tuple[float, float]:
            outcome = self.outcome(trial)
            top1, loss = outcome.top1 or 0.0, outcome.loss
            return -top1, loss if loss is not None and math.isfinite(loss) else math.inf

        scored = [trial for trial in trials if self.outcome(trial).top1 is not None]
        return min(scored, key=rank, default=None)

    def _is_settled(self, cell: BenchCell) -> bool:
        return cell.folder in self.unrecorded or self._record(cell) is not None

    def _record(self, cell: BenchCell) -> RunRecord | None:
        """The record of a run that has ended."""
        if cell.folder not in self._records:
            record = cell_record(cell)
            if record is None or record.status not in _SETTLED:
                return None
            self._records[cell.folder] = record
        return self._records[cell.folder]


class _TrialWatcher(Watcher):
    """Says each trial's outcome when its last run has ended, and the last lines of a run that went wrong."""

    def __init__(self, trials: Trials, watched: Sequence[Trial], prefix: str, wait: bool) -> None:
        self._trials, self._prefix, self._wait = trials, prefix, wait
        self._trial_of = {cell.folder: trial for trial in watched for cell in trial.cells}
        self._lines: list[str] = []
        self.has_run = False

    def on_line(self, cell: BenchCell, line: str) -> None:
        self._lines = [*self._lines[-19:], line]

    def on_state(self, cell: BenchCell, state: str) -> None:
        trial = self._trial_of[cell.folder]
        text = f"{self._prefix}{trial.label}: {options_text(trial.options)}"
        if state == "running":
            self._lines, self.has_run = [], True
        elif state == "elsewhere":
            if self._wait:
                self._trials.say(f"{text}: waiting for another command that runs it")
        else:
            if state == "missing":
                self._trials.unrecorded.add(cell.folder)
            if state not in ("completed", "interrupted"):
                for line in self._lines:
                    self._trials.say(f"  {line}")
            if self._trials.is_settled(trial):
                self._trials.say(f"{text}: {self._trials.outcome(trial).text}")


def options_text(options: Mapping[str, Any]) -> str:
    """``base.lr=0.01 rho=0.1``."""
    return " ".join(f"{key}={_value_text(value)}" for key, value in options.items())


def _value_text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_value_text(each)}" for key, each in value.items()) + "}"
    return f"{value:g}" if isinstance(value, float) else str(value)
