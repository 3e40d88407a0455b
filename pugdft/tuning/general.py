"""The general search: all options together, chosen by Optuna, as many trials for every optimizer."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pugdft.errors import UserError
from pugdft.tuning.search import GeneralSearch
from pugdft.tuning.space import Axis, Untuned, axes_of, with_option
from pugdft.tuning.trials import Trial, Trials
from pugdft.tuning.tuned import Finished, Tuned

if TYPE_CHECKING:
    from pugdft.tuning.study import Point, Study

_LOOK_AGAIN_SECONDS = 1.0


def require_optuna() -> None:
    """See that Optuna is there, before anything has cost time.

    Raises:
        UserError: it is not.
    """
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise UserError(
            f'a general search needs Optuna, which cannot be imported ({error}): pip install "pugdft[tune]". '
            "The greedy search, --search greedy, needs nothing further."
        ) from None


def search_generally(
    search: GeneralSearch, optimizers: Sequence[Untuned], trials: Trials, folder: Path
) -> list[Tuned]:
    """Search every optimizer, trial by trial in turn, so that an early end leaves equal budgets.

    Args:
        search: with the number of trials.
        optimizers: each has at least one of the options.
        trials: runs them.
        folder: of the journal; it exists.

    Raises:
        StoppedError: a run ended for a mistake of the user or an interruption.
    """
    pursuits = [_Pursuit(search, each, trials, folder) for each in optimizers]
    told_of_waiting = False
    while open_pursuits := [each for each in pursuits if not each.is_done()]:
        if any(each.go_on() for each in open_pursuits):
            continue
        if any(each.begin() for each in sorted(open_pursuits, key=_Pursuit.num_begun)):
            continue
        if not told_of_waiting:
            trials.say("waiting for the trials of another command")
            told_of_waiting = True
        time.sleep(_LOOK_AGAIN_SECONDS)
    return [each.tuned() for each in pursuits]


class _Pursuit:
    """One optimizer's search."""

    def __init__(self, search: GeneralSearch, optimizer: Untuned, trials: Trials, folder: Path) -> None:
        from pugdft.tuning.study import Study

        self._optimizer, self._trials, self._total = optimizer, trials, search.trials
        self._axes: list[Axis] = axes_of(search.space, optimizer.spec)
        digest = hashlib.sha256(json.dumps(optimizer.spec, sort_keys=True).encode()).hexdigest()
        self._study: Study = Study(folder, f"{optimizer.spec['name']}-{digest[:8]}", self._axes, search)
        self._made: dict[int, Trial] = {}

    def num_begun(self) -> int:
        """Trials that this or another command has begun."""
        return len(self._points())

    def is_done(self) -> bool:
        """Whether every trial has been run."""
        points = self._points()
        return len(points) == self._total and all(self._is_settled(point) for point in points)

    def go_on(self) -> bool:
        """Run a trial that was left under way; False if there is none, or others have them."""
        for number, point in enumerate(self._points()):
            if self._is_settled(point):
                continue
            with self._study.claim(point.number) as is_ours:
                if is_ours:
                    self._run(number, point)
                    return True
        return False

    def begin(self) -> bool:
        """Run a new trial; False if all are begun."""
        with self._study.begin(self._total) as begun:
            if begun is not None:
                number = [point.number for point in self._points()].index(begun.number)
                self._run(number, begun)
            return begun is not None

    def tuned(self) -> Tuned:
        """What it came to."""
        chosen = [self._trial(point) for point in self._points()]
        best = self._trials.best(chosen)
        distinct = {trial.runs: trial for trial in chosen}
        finished = tuple(Finished(trial, self._trials.outcome(trial)) for trial in distinct.values())
        if best is None:
            return Tuned(self._optimizer.label, None, {}, None, finished, {})
        edges = {axis.option: axis.edge(best.options[axis.option]) for axis in self._axes}
        return Tuned(
            self._optimizer.label,
            best.spec,
            best.options,
            self._trials.outcome(best),
            finished,
            {option: edge for option, edge in edges.items() if edge},
        )

    def _run(self, number: int, point: Point) -> None:
        trial = self._trial(point)
        self._trials.run([trial], f"trial {number + 1} of {self._total}: ")
        outcome = self._trials.outcome(trial)
        if not point.is_told and not self._trials.is_lost(trial):
            self._study.tell(point.number, outcome.top1, outcome.status == "diverged")

    def _is_settled(self, point: Point) -> bool:
        trial = self._trial(point)
        return self._trials.is_settled(trial) and (point.is_told or self._trials.is_lost(trial))

    def _points(self) -> list[Point]:
        # A search that was once longer: the choice is among as many as were asked for.
        return self._study.points()[: self._total]

    def _trial(self, point: Point) -> Trial:
        if point.number not in self._made:
            spec = _with_options(self._optimizer.spec, point.options)
            self._made[point.number] = self._trials.make(self._optimizer.label, point.options, spec)
        return self._made[point.number]


def _with_options(spec: Mapping[str, Any], options: Mapping[str, Any]) -> Mapping[str, Any]:
    for option, value in options.items():
        spec = with_option(spec, option, value)
    return spec
