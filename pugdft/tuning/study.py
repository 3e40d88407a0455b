"""One optimizer's trials as Optuna sees them, in a journal that several commands share.

The journal says which options every trial has, and tells the sampler how good they were; what a trial came to
is read from its runs' records. So a trial that a killed command had under way is simply run on: its options
stand in the journal, its runs resume in their folders. Whoever runs a trial holds the kernel's lock on it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from pugdft.paths import claimed, locked
from pugdft.tuning.space import Axis, GeneralSearch, Range

_JOURNAL = "journal"
_LOCK = "lock"


@dataclass(frozen=True)
class Point:
    """The options of a trial.

    Attributes:
        number: the trial's in the journal.
        is_told: whether the sampler knows how good it was.
    """

    number: int
    options: Mapping[str, Any]
    is_told: bool


class Study:
    """The trials of one optimizer.

    Args:
        folder: of the journal and the locks, the same for all optimizers of a search; it exists.
        name: tells the optimizers of the folder apart.
        axes: what is searched.
        search: the sampler and its seed.
    """

    def __init__(self, folder: Path, name: str, axes: Sequence[Axis], search: GeneralSearch) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._folder, self._name = folder.absolute(), name
        self._axes = {axis.option: axis for axis in axes}
        self._search = search
        with self._locked():
            _mend(self._folder / _JOURNAL)
            backend = JournalFileBackend(str(self._folder / _JOURNAL), lock_obj=_HeldByUs())
            storage = JournalStorage(backend)
            # Loading it by create_study would write a line each time.
            if name in optuna.get_all_study_names(storage):
                self._study = optuna.load_study(study_name=name, storage=storage)
            else:
                self._study = optuna.create_study(study_name=name, storage=storage, direction="maximize")

    def points(self) -> list[Point]:
        """All trials that were ever begun, in their order."""
        with self._locked():
            return [self._point(trial) for trial in self._begun()]

    @contextmanager
    def claim(self, number: int) -> Iterator[bool]:
        """Whether the trial is this command's until the end of the ``with``."""
        with claimed(self._folder / f"{self._name}-{number}") as descriptor:
            yield descriptor is not None

    @contextmanager
    def begin(self, total: int) -> Iterator[Point | None]:
        """A new trial, this command's until the end of the ``with``; None if ``total`` are begun already."""
        with ExitStack() as stack:
            with self._locked():
                point = None
                if len(self._begun()) < total:
                    point = self._ask()
                    stack.enter_context(self.claim(point.number))
            yield point

    def tell(self, number: int, top1: float | None, diverged: bool) -> None:
        """Let the sampler know what a trial came to; a second time changes nothing."""
        with self._locked():
            if top1 is None and not diverged:
                self._study.tell(number, state=TrialState.FAIL, skip_if_finished=True)
            else:
                # The sampler ignores failed trials; that these options diverge is worth its knowing.
                self._study.tell(number, 0.0 if top1 is None else top1, skip_if_finished=True)

    def _ask(self) -> Point:
        """A new trial, its options settled.

        The sampler is seeded by the trial's number, so the choice depends on the trials before and on
        nothing else: not on how often the search was interrupted.
        """
        known = self._study.get_trials(deepcopy=False)
        for trial in known:
            # Of a command that was killed while it asked: the options were never settled, nothing ran.
            if trial.state == TrialState.RUNNING and not self._is_whole(trial):
                self._study.tell(trial.number, state=TrialState.FAIL)
        untuned = {option: _untuned(axis) for option, axis in self._axes.items()}
        is_enqueued = any(trial.state == TrialState.WAITING for trial in known)
        if None not in untuned.values() and not self._begun() and not is_enqueued:
            self._study.enqueue_trial(untuned)
        seed = int(np.random.SeedSequence((self._search.seed, len(known))).generate_state(1)[0])
        self._study.sampler = _sampler(self._search.sampler, seed)
        asked = self._study.ask({option: _distribution(axis) for option, axis in self._axes.items()})
        return Point(asked.number, self._options(asked.params), is_told=False)

    def _point(self, trial: FrozenTrial) -> Point:
        return Point(trial.number, self._options(trial.params), trial.state != TrialState.RUNNING)

    def _begun(self) -> list[FrozenTrial]:
        return [trial for trial in self._study.get_trials(deepcopy=False) if self._is_whole(trial)]

    def _is_whole(self, trial: FrozenTrial) -> bool:
        return set(self._axes) <= set(trial.params)

    def _options(self, params: Mapping[str, Any]) -> dict[str, Any]:
        options = {}
        for option, axis in self._axes.items():
            point = params[option] if isinstance(axis.where, Range) else axis.where[params[option]]
            options[option] = axis.value(point)
        return options

    def _locked(self) -> AbstractContextManager[None]:
        return locked(self._folder / _LOCK)


class _HeldByUs(JournalFileOpenLock):
    """No lock of the journal's own: :class:`Study` writes under its lock, which a killed command lets go."""

    def __init__(self) -> None:
        pass

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def _mend(journal: Path) -> None:
    """Cut off the line that a crash of the machine left half written, which Optuna could not read."""
    if journal.is_file() and (content := journal.read_bytes()) and not content.endswith(b"\n"):
        os.truncate(journal, content.rfind(b"\n") + 1)


def _sampler(name: str, seed: int) -> BaseSampler:
    return TPESampler(seed=seed) if name == "tpe" else RandomSampler(seed=seed)


def _distribution(axis: Axis) -> BaseDistribution:
    if isinstance(axis.where, Range):
        return FloatDistribution(axis.where.low, axis.where.high, log=axis.where.log)
    return CategoricalDistribution(range(len(axis.where)))  # a choice of Optuna's cannot be a mapping


def _untuned(axis: Axis) -> float | int | None:
    """The point of the untuned value, if it is one that is searched."""
    if not isinstance(axis.where, Range):
        return axis.values.index(axis.start) if axis.start in axis.values else None
    point: Any = 1.0 if axis.times else axis.start
    is_inside = isinstance(point, int | float) and axis.where.low <= point <= axis.where.high
    return float(point) if is_inside else None
