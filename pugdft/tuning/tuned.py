"""What a search comes to for one optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pugdft.tuning.trials import Outcome, Trial


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
