"""Trials of a search: choices of options, each run with every seed and scored on held-out images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pugdft.bench.cell import BenchCell, cell_record
from pugdft.bench.grid import make_cell
from pugdft.bench.worker import Options, Watcher, run_cells
from pugdft.config.schema import Recipe
from pugdft.errors import FolderBusy
from pugdft.records import RunRecord

Say = Callable[[str], None]  # takes a line for people

_SETTLED = ("completed", "diverged", "failed", "oom")


class StoppedError(Exception):
    """A run ended with ``code`` for a mistake of the user or an interruption: nothing more is started."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True)
class Trial:
    label: str  # of the optimizer that runs: a method, or its base alone
    options: Mapping[str, Any]  # those that are searched, with their values
    spec: Mapping[str, Any]  # the optimizer with these options
    cells: tuple[BenchCell, ...]  # one for each seed

    @property
    def runs(self) -> tuple[str, ...]:
        """The ids of its runs: trials of the same runs are the same trial."""
        return tuple(cell.folder.name for cell in self.cells)


@dataclass(frozen=True)
class Outcome:
    """What a trial came to over its seeds."""

    status: str  # ``completed`` if every run is; else of the first that is not
    top1: float | None  # mean on the held-out images; None unless every run completed
    loss: float | None  # likewise
    gradient_passes: float  # of all runs together


@dataclass(frozen=True)
class Finished:
    trial: Trial
    outcome: Outcome
    stage: str = ""  # in a greedy search, the option that it was for


@dataclass(frozen=True)
class Tuned:
    label: str  # as it was written
    spec: Mapping[str, Any] | None  # with the options that were found; None if no trial has a score
    options: Mapping[str, Any]  # those that were searched, as they were found
    outcome: Outcome | None  # of the trial that was chosen; None if only the base was searched
    trials: tuple[Finished, ...]  # all that the choice rests on, in their order, each once
    at_edge: Mapping[str, str]  # option to the end, lower or upper, at which its value lies
    remarks: tuple[str, ...] = ()  # what else a reader must know

    @property
    def num_runs(self) -> int:
        """Distinct runs, all seeds counted."""
        return len({run for each in self.trials for run in each.trial.runs})

    @property
    def gradient_passes(self) -> float:
        """Of all these runs."""
        return sum(each.outcome.gradient_passes for each in self.trials)


class Trials:
    """Make trials of ``template``, a recipe but for optimizer and seed; run them and read their results."""

    def __init__(
        self, template: Recipe, seeds: Sequence[int], folder: Path, num_processes: int, say: Say
    ) -> None:
        self.say, self._num_processes = say, num_processes
        self._template, self._seeds, self._folder = template, seeds, folder
        # None: the run ended without a record, such as a killed one. This command does not run it again.
        self.ended: dict[Path, RunRecord | None] = {}

    def make(self, label: str, options: Mapping[str, Any], spec: Mapping[str, Any]) -> Trial:
        """Make the trial of an optimizer; refuse options that do not go together."""
        cells = tuple(
            replace(make_cell(label, self._template, spec, seed, self._folder), processes=self._num_processes)
            for seed in self._seeds
        )
        return Trial(label, dict(options), spec, cells)

    def run(self, trials: Sequence[Trial], prefix: str = "", wait: bool = True) -> bool:
        """Run cells without a result, or ``wait`` for those of other commands; returns whether it ran any."""
        cells = [cell for trial in trials for cell in trial.cells if not self._is_settled(cell)]
        watcher = _TrialWatcher(self, trials, prefix, wait)
        if code := run_cells(cells, watcher, Options(wait=wait, warm=True)):
            raise StoppedError(code)
        busy = [cell.folder for cell in cells if not self._is_settled(cell)] if wait else []
        if busy:  # without its score nothing can be chosen
            self.say(f"{busy[0]}: another process is running here; after its end, the same command goes on")
            raise StoppedError(FolderBusy.exit_code)
        return watcher.has_run

    def is_settled(self, trial: Trial) -> bool:
        """Whether every run of it has ended, so that this command will not run it."""
        return all(map(self._is_settled, trial.cells))

    def outcome(self, trial: Trial) -> Outcome:
        records = [record for cell in trial.cells if (record := self._record(cell))]
        passes = sum(record.cost.gradient_passes for record in records)
        scores = [each.metrics.validation for each in records if each.metrics and each.metrics.validation]
        bad = next((each.status for each in records if each.status != "completed"), "")
        if bad or len(scores) < len(trial.cells):
            return Outcome(bad or "failed", None, None, passes)
        top1, loss = (math.fsum(getattr(each, name) for each in scores) for name in ("top1", "loss"))
        return Outcome("completed", top1 / len(scores), loss / len(scores), passes)

    def best(self, trials: Iterable[Trial]) -> Trial | None:
        """The trial of the best top-1, then the lowest loss, then the earliest; None if none has a score."""

        def rank(trial: Trial) -> tuple[float, float]:
            outcome = self.outcome(trial)
            top1, loss = outcome.top1 or 0.0, outcome.loss
            return -top1, loss if loss is not None and math.isfinite(loss) else math.inf

        scored = [trial for trial in trials if self.outcome(trial).top1 is not None]
        return min(scored, key=rank, default=None)

    def finished(self, tried: Iterable[tuple[Trial, str]]) -> tuple[Finished, ...]:
        """Each trial once with its outcome; ``tried`` are trials with their stage, in their order."""
        distinct: dict[tuple[str, ...], Finished] = {}
        for trial, stage in tried:
            distinct.setdefault(trial.runs, Finished(trial, self.outcome(trial), stage))
        return tuple(distinct.values())

    def _is_settled(self, cell: BenchCell) -> bool:
        return self._record(cell) is not None or cell.folder in self.ended

    def _record(self, cell: BenchCell) -> RunRecord | None:
        """The record of a run that has ended."""
        record = self.ended.get(cell.folder) or cell_record(cell)
        if record is None or record.status not in _SETTLED:
            return None
        self.ended[cell.folder] = record
        return record


class _TrialWatcher(Watcher):
    """Say a trial's outcome when its last run has ended, and the last lines of a run that went wrong."""

    def __init__(self, trials: Trials, watched: Sequence[Trial], prefix: str, wait: bool) -> None:
        self._trials, self._prefix, self._wait = trials, prefix, wait
        self._trial_of = {cell.folder: trial for trial in watched for cell in trial.cells}
        self._lines: list[str] = []
        self._is_running = self.has_run = False

    def on_line(self, cell: BenchCell, line: str) -> None:
        self._lines = [*self._lines[-19:], line]

    def on_state(self, cell: BenchCell, state: str) -> None:
        trial, say = self._trial_of[cell.folder], self._trials.say
        text = f"{self._prefix}{trial.label}: {options_text(trial.options)}"
        if state == "running":
            self._lines, self._is_running = [], True
            return
        if state == "elsewhere":
            # A run that was begun and found its folder in use: by no command that is to be waited for.
            if self._wait and not self._is_running:
                say(f"{text}: waiting for another command that runs it")
            self._is_running = False
            return
        self.has_run, self._is_running = self.has_run or self._is_running, False
        if state == "missing":
            self._trials.ended[cell.folder] = None
        if state not in ("completed", "interrupted"):
            for line in self._lines:
                say(f"  {line}")
        if self._trials.is_settled(trial):
            outcome = self._trials.outcome(trial)
            score = f"{outcome.status}, no score"
            if outcome.top1 is not None:
                score = f"validation top-1 {outcome.top1:.2%}, loss {outcome.loss:.4f}"
            say(f"{text}: {score}")


def options_text(options: Mapping[str, Any]) -> str:
    """``base.lr=0.01 rho=0.1``."""

    def value_text(value: Any) -> str:
        if isinstance(value, Mapping):
            return "{" + ", ".join(f"{key}: {value_text(each)}" for key, each in value.items()) + "}"
        return f"{value:g}" if isinstance(value, float) else str(value)

    return " ".join(f"{key}={value_text(value)}" for key, value in options.items())
