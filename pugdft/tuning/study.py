"""The general search: all options of an optimizer together, by Optuna, in a journal that commands share.

The journal holds the options of every trial, and the results that the sampler learns from; what tables show
is read from the runs' records. So the trial of a killed command is continued: its options are in the journal,
and its runs resume in their folders.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from pugdft.paths import locked
from pugdft.tuning.space import GeneralSearch, NumberRange, SearchAxis, Untuned, axes_of, with_option
from pugdft.tuning.trials import Finished, Trial, Trials, Tuned

_JOURNAL, _LOCK = "journal", "lock"


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
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    studies = [_Study(search, each, trials, folder) for each in optimizers]
    while True:
        if any(each.resume() for each in studies):
            continue
        fewest = min(studies, key=_Study.num_begun)
        if fewest.num_begun() < search.trials:
            fewest.begin()
        elif not any(each.wait() for each in studies):
            return [each.tuned() for each in studies]


class _Study:
    """One optimizer's trials.

    Every access to the journal is under our own lock, which the kernel releases when a command is killed.
    """

    def __init__(self, search: GeneralSearch, optimizer: Untuned, trials: Trials, folder: Path) -> None:
        self._search, self._optimizer, self._trials, self._folder = search, optimizer, trials, folder
        self._axes = {axis.option: axis for axis in axes_of(search.dimensions, optimizer.spec)}
        self._made: dict[int, Trial] = {}
        digest = hashlib.sha256(json.dumps(optimizer.spec, sort_keys=True).encode()).hexdigest()
        name = f"{optimizer.spec['name']}-{digest[:8]}"
        journal = folder / _JOURNAL
        with locked(folder / _LOCK):
            _remove_torn_line(journal)
            storage = JournalStorage(JournalFileBackend(str(journal.absolute()), lock_obj=_NoLock()))
            # Loading it by create_study would write a line each time.
            exists = name in optuna.get_all_study_names(storage)
            get = optuna.load_study if exists else optuna.create_study
            self._study = get(
                study_name=name, storage=storage, **({} if exists else {"direction": "maximize"})
            )

    def num_begun(self) -> int:
        """Trials that this or another command has begun."""
        return len(self._begun())

    def resume(self) -> bool:
        """Run trials without a result that no command is running; return False if there is none."""
        has_run = [self._run(number, wait=False) for number in self._unfinished()]
        return any(has_run)

    def begin(self) -> None:
        """Ask the sampler for a new trial, unless all are begun, and run it."""
        with locked(self._folder / _LOCK):
            begun = self._whole()
            number = self._ask() if len(begun) < self._search.trials else None
        if number is not None:
            self._run(number, wait=False)

    def wait(self) -> bool:
        """Wait for trials of other commands; False if every trial has its result."""
        unfinished = self._unfinished()
        for number in unfinished:
            self._run(number, wait=True)
        return bool(unfinished)

    def tuned(self) -> Tuned:
        """The result of the search."""
        chosen = [self._trial(each) for each in self._begun()]
        best = self._trials.best(chosen)
        distinct = {trial.runs: trial for trial in chosen}
        finished = tuple(Finished(trial, self._trials.outcome(trial)) for trial in distinct.values())
        if best is None:
            return Tuned(self._optimizer.label, None, {}, None, finished, {})
        edges = {option: axis.edge(best.options[option]) for option, axis in self._axes.items()}
        return Tuned(
            self._optimizer.label,
            best.spec,
            best.options,
            self._trials.outcome(best),
            finished,
            {option: edge for option, edge in edges.items() if edge},
        )

    def _begun(self) -> list[FrozenTrial]:
        """Trials in their order; of a search that was once longer, as many as are asked for now."""
        with locked(self._folder / _LOCK):
            return self._whole()[: self._search.trials]

    def _whole(self) -> list[FrozenTrial]:
        """Return all trials whose options are chosen; call it under the lock."""
        return [
            each for each in self._study.get_trials(deepcopy=False) if set(self._axes) <= set(each.params)
        ]

    def _unfinished(self) -> list[int]:
        """Numbers of the trials without a result."""
        return [
            each.number
            for each in self._begun()
            if each.state == TrialState.RUNNING or not self._trials.is_settled(self._trial(each))
            if not self._trials.is_lost(self._trial(each))
        ]

    def _run(self, number: int, wait: bool) -> bool:
        """Run a trial unless others do, and tell the sampler its result; whether this command ran it."""
        begun = self._begun()
        place = [each.number for each in begun].index(number)
        trial = self._trial(begun[place])
        has_run = self._trials.run([trial], f"trial {place + 1} of {self._search.trials}: ", wait)
        if self._trials.is_settled(trial) and not self._trials.is_lost(trial):
            outcome = self._trials.outcome(trial)
            with locked(self._folder / _LOCK):
                if outcome.top1 is None and outcome.status != "diverged":
                    self._study.tell(number, state=TrialState.FAIL, skip_if_finished=True)
                else:
                    # The sampler ignores failed trials, but should learn that these options diverge.
                    self._study.tell(number, outcome.top1 or 0.0, skip_if_finished=True)
        return has_run

    def _ask(self) -> int:
        """Choose the options of a new trial and return its number.

        The sampler is seeded by the trial's number, so the choice depends on the trials before and on
        nothing else: not on how often the search was interrupted.
        """
        known = self._study.get_trials(deepcopy=False)
        for trial in known:
            # A command was killed while it chose the options: nothing ran.
            if trial.state == TrialState.RUNNING and not set(self._axes) <= set(trial.params):
                self._study.tell(trial.number, state=TrialState.FAIL)
        untuned = {option: _untuned(axis) for option, axis in self._axes.items()}
        is_enqueued = any(trial.state == TrialState.WAITING for trial in known)
        if None not in untuned.values() and not self._whole() and not is_enqueued:
            self._study.enqueue_trial(untuned)
        seed = int(np.random.SeedSequence((self._search.seed, len(known))).generate_state(1)[0])
        self._study.sampler = (TPESampler if self._search.sampler == "tpe" else RandomSampler)(seed=seed)
        return self._study.ask({option: _distribution(axis) for option, axis in self._axes.items()}).number

    def _trial(self, asked: FrozenTrial) -> Trial:
        if asked.number not in self._made:
            options, spec = {}, self._optimizer.spec
            for option, axis in self._axes.items():
                point = asked.params[option]
                point = point if isinstance(axis.where, NumberRange) else axis.where[point]
                options[option] = axis.value(point)
                spec = with_option(spec, option, options[option])
            self._made[asked.number] = self._trials.make(self._optimizer.label, options, spec)
        return self._made[asked.number]


class _NoLock(JournalFileOpenLock):
    """No lock of Optuna's, which a killed command would leave behind: :class:`_Study` locks."""

    def __init__(self) -> None:
        pass

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def _remove_torn_line(journal: Path) -> None:
    """Cut off a half-written last line, left by a crash of the machine: Optuna cannot read it."""
    if journal.is_file() and (content := journal.read_bytes()) and not content.endswith(b"\n"):
        os.truncate(journal, content.rfind(b"\n") + 1)


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
