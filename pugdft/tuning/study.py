"""The general search: all options of an optimizer together, chosen by Optuna.

A file of each optimizer keeps the options that were chosen, trial by trial; results are read from the runs'
records. Commands that share the folder choose one after another, under a lock. So a killed command loses
nothing: the next one finds the trial's options in the file, and its runs go on in their folders.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import TrialState, create_trial

from pugdft.paths import locked, write_atomically
from pugdft.tuning.space import GeneralSearch, NumberRange, SearchAxis, Untuned, axes_of, with_option
from pugdft.tuning.trials import Trial, Trials, Tuned


def search_generally(
    search: GeneralSearch, optimizers: Sequence[Untuned], trials: Trials, folder: Path
) -> list[Tuned]:
    """Search every optimizer, trial by trial in turn, so that an early end leaves equal budgets.

    Args:
        search: with the number of trials.
        optimizers: each has at least one of the options.
        trials: runs them.
        folder: for the files with the chosen options.

    Raises:
        StoppedError: a run ended for a mistake of the user or an interruption.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    trials.say(f"{search.title}: {search.trials} trials of each optimizer")
    folder.mkdir(exist_ok=True)
    studies = [_Study(search, each, trials, folder) for each in optimizers]
    while True:
        if any(each.run_open(wait=False) for each in studies):
            continue
        fewest = min(studies, key=lambda study: len(study.chosen()))
        if not fewest.choose() and not any(each.run_open(wait=True) for each in studies):
            return [each.tuned() for each in studies]


class _Study:
    """One optimizer's trials."""

    def __init__(self, search: GeneralSearch, optimizer: Untuned, trials: Trials, folder: Path) -> None:
        self._search, self._optimizer, self._trials = search, optimizer, trials
        self._axes = {axis.option: axis for axis in axes_of(search.dimensions, optimizer)}
        digest = hashlib.sha256(json.dumps(optimizer.spec, sort_keys=True).encode()).hexdigest()
        self._path = folder / f"{optimizer.spec['name']}-{digest[:8]}.json"
        self._made: list[Trial] = []

    def chosen(self) -> list[Trial]:
        """Trials whose options are chosen; of a search that was once longer, as many as asked for now."""
        self._made += map(self._trial, self._points()[len(self._made) :])
        return self._made[: self._search.trials]

    def run_open(self, wait: bool) -> bool:
        """Run the trials without a result; ``wait`` also for those that other commands are running.

        Returns:
            Whether this command has run or waited for any.
        """
        has_run = False
        for number, trial in enumerate(self.chosen(), 1):
            if not self._trials.is_settled(trial):
                prefix = f"trial {number} of {self._search.trials}: "
                has_run |= self._trials.run([trial], prefix, wait) or wait
        return has_run

    def choose(self) -> bool:
        """Choose the options of a further trial; False if all are chosen."""
        with locked(self._path.with_name("lock")):
            if len(self.chosen()) == self._search.trials:
                return False
            points = self._points()
            write_atomically(self._path, json.dumps([*points, self._next(points)]).encode())
            return True

    def tuned(self) -> Tuned:
        """The result of the search."""
        chosen = self.chosen()
        best = self._trials.best(chosen)
        spec, options = (best.spec, best.options) if best else (None, {})
        tried = [(trial, "") for trial in chosen]
        return self._trials.tuned(self._optimizer.label, self._axes.values(), tried, best, spec, options)

    def _points(self) -> list[dict[str, Any]]:
        """Of each trial: option to its number in a range or its place in a list."""
        points: list[dict[str, Any]] = json.loads(self._path.read_bytes()) if self._path.is_file() else []
        return points

    def _next(self, points: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The first trial is the untuned optimizer, if the search has it; the sampler chooses the others.

        The sampler is seeded by the trial's number. So the choice depends on the trials before alone, and
        not on how often the search was interrupted.
        """
        untuned = {option: _untuned(axis) for option, axis in self._axes.items()}
        if not points and None not in untuned.values():
            return untuned
        seed = int(np.random.SeedSequence((self._search.seed, len(points))).generate_state(1)[0])
        sampler = (TPESampler if self._search.sampler == "tpe" else RandomSampler)(seed=seed)
        study = optuna.create_study(sampler=sampler, direction="maximize")
        space = {option: _distribution(axis) for option, axis in self._axes.items()}
        for each, trial in zip(points, self._made, strict=True):
            outcome = self._trials.outcome(trial)
            # The sampler ignores failed trials, but should learn that these options diverge.
            value = 0.0 if outcome.status == "diverged" else outcome.top1
            state = TrialState.FAIL if value is None else TrialState.COMPLETE
            study.add_trial(create_trial(state=state, value=value, params=each, distributions=space))
        return dict(study.ask(space).params)

    def _trial(self, points: dict[str, Any]) -> Trial:
        options, spec = {}, self._optimizer.spec
        for option, axis in self._axes.items():
            point = points[option]
            options[option] = axis.value(point if isinstance(axis.where, NumberRange) else axis.where[point])
            spec = with_option(spec, option, options[option])
        return self._trials.make(self._optimizer.label, options, spec)


def _distribution(axis: SearchAxis) -> BaseDistribution:
    if isinstance(axis.where, NumberRange):
        return FloatDistribution(axis.where.low, axis.where.high, log=axis.where.log)
    return CategoricalDistribution(range(len(axis.where)))  # a choice of Optuna's cannot be a mapping


def _untuned(axis: SearchAxis) -> float | int | None:
    """The point of the untuned value, if it is one that is searched."""
    if not isinstance(axis.where, NumberRange):
        return axis.values.index(axis.start) if axis.start in axis.values else None
    point: Any = 1.0 if axis.times else axis.start
    is_inside = isinstance(point, int | float) and axis.where.low <= point <= axis.where.high
    return float(point) if is_inside else None
