"""The general search: all options of an optimizer together, by Optuna, in a journal that commands share.

Optuna's journal holds the options of every trial, and the results that the sampler learns from. What tables
show is read from the runs' records. So a killed command loses nothing: the next one finds the trial's options
in the journal, and its runs go on in their folders.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import TrialState

from pugdft.paths import locked
from pugdft.tuning import space
from pugdft.tuning.space import GeneralSearch, NumberRange, SearchAxis, Untuned
from pugdft.tuning.trials import Trial, Trials, Tuned


def search_generally(
    search: GeneralSearch, optimizers: Sequence[Untuned], trials: Trials, folder: Path
) -> list[Tuned]:
    """Search every optimizer, trial by trial in turn, so that an early end leaves equal budgets."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    trials.say(f"{search.title}: {search.trials} trials of each optimizer")
    folder.mkdir(exist_ok=True)
    lock, journal = folder / "lock", str(folder / "journal")
    with locked(lock):
        storage = JournalStorage(JournalFileBackend(journal, JournalFileOpenLock(journal)))
        # A crash of the machine may leave half a line, to which Optuna would append the next one.
        os.truncate(journal, Path(journal).read_bytes().rfind(b"\n") + 1)
        studies = [_Study(search, each, trials, storage, lock) for each in optimizers]
    while True:
        if any(each.run_open(wait=False) for each in studies):
            continue
        fewest = min(studies, key=lambda study: len(study.chosen()))
        if not fewest.choose() and not any(each.run_open(wait=True) for each in studies):
            return [each.tuned() for each in studies]


class _Study:
    """One optimizer's trials. Commands write to the journal one after another, under ``lock``."""

    def __init__(
        self, search: GeneralSearch, optimizer: Untuned, trials: Trials, storage: JournalStorage, lock: Path
    ) -> None:
        self._search, self._optimizer, self._trials, self._lock = search, optimizer, trials, lock
        self._axes = {axis.option: axis for axis in space.axes_of(search.dimensions, optimizer)}
        self._made: dict[int, Trial] = {}  # by Optuna's number
        digest = hashlib.sha256(json.dumps(optimizer.spec, sort_keys=True).encode()).hexdigest()
        name = f"{optimizer.spec['name']}-{digest[:8]}"
        self._study = optuna.create_study(
            storage=storage, study_name=name, direction="maximize", load_if_exists=True
        )

    def chosen(self) -> list[Trial]:
        """Trials whose options are chosen; of a search that was once longer, as many as asked for now."""
        for asked in self._study.get_trials(deepcopy=False):
            if asked.number not in self._made and self._axes.keys() <= asked.params.keys():
                self._made[asked.number] = self._trial(asked.params)
        return list(self._made.values())[: self._search.trials]

    def run_open(self, wait: bool) -> bool:
        """Run trials without a result, or ``wait`` for those of other commands; returns whether it did."""
        has_run = False
        for number, trial in enumerate(self.chosen(), 1):
            if not self._trials.is_settled(trial):
                prefix = f"trial {number} of {self._search.trials}: "
                has_run |= self._trials.run([trial], prefix, wait) or wait
        self._tell_results()
        return has_run

    def _tell_results(self) -> None:
        with locked(self._lock):
            self.chosen()
            for asked in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                trial = self._made.get(asked.number)
                if trial is None:  # its command was killed while it chose the options
                    self._study.tell(asked.number, state=TrialState.FAIL)
                elif all(self._trials.ended.get(cell.folder) for cell in trial.cells):
                    outcome = self._trials.outcome(trial)
                    # The sampler ignores failed trials, but should learn that these options diverge.
                    value = 0.0 if outcome.status == "diverged" else outcome.top1
                    state = TrialState.FAIL if value is None else TrialState.COMPLETE
                    self._study.tell(asked.number, value, state)

    def choose(self) -> bool:
        """Choose the options of a further trial, first the untuned ones if searched; False after the last."""
        with locked(self._lock):
            chosen = self.chosen()
            if len(chosen) == self._search.trials:
                return False
            known = self._study.get_trials(deepcopy=False)
            untuned = {option: _untuned(axis) for option, axis in self._axes.items()}
            is_enqueued = any(each.state == TrialState.WAITING for each in known)
            if not chosen and not is_enqueued and None not in untuned.values():
                self._study.enqueue_trial(untuned)
            # The choice must not depend on how often the search was interrupted.
            seed = int(np.random.SeedSequence((self._search.seed, len(known))).generate_state(1)[0])
            self._study.sampler = (TPESampler if self._search.sampler == "tpe" else RandomSampler)(seed=seed)
            self._study.ask({option: _distribution(axis) for option, axis in self._axes.items()})
            return True

    def tuned(self) -> Tuned:
        tried = self._trials.finished((trial, "") for trial in self.chosen())
        best = self._trials.best(each.trial for each in tried)
        if best is None:
            return Tuned(self._optimizer.label, None, {}, None, tried, {})
        edges = space.edges_of(self._axes.values(), best.options)
        outcome = self._trials.outcome(best)
        return Tuned(self._optimizer.label, best.spec, best.options, outcome, tried, edges)

    def _trial(self, points: Mapping[str, Any]) -> Trial:
        options, spec = {}, self._optimizer.spec
        for option, axis in self._axes.items():
            point = points[option]
            options[option] = axis.value(point if isinstance(axis.where, NumberRange) else axis.where[point])
            spec = space.with_option(spec, option, options[option])
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
