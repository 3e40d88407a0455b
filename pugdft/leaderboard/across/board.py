"""A verdict over several tasks as plain data, which every format reads.

Fractions stay fractions. A difference is positive where the first is better, whatever the metric's direction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from pugdft.leaderboard.entry import Summary


@dataclass(frozen=True)
class TaskResult:
    """One task: what it is, and what each entry came to there, by label."""

    name: str
    dataset: str
    model: str
    protocol: str
    scores: Mapping[str, Summary]  # of the metric, over seeds
    specs: Mapping[str, Any]
    records: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class PairVerdict:
    """What the tasks that two entries share say of their difference, the first minus the second."""

    first: str
    second: str
    num_tasks: int
    difference: float  # mean over tasks
    ci95: tuple[float, float] | None  # of this pair alone; None if untestable, as what follows
    p_value: float | None  # corrected over all pairs, by Shaffer's procedure
    p_alone: float | None  # of this pair alone
    separated: bool
    true_std: float | None  # of the true difference over tasks
    wins: int  # tasks that separate the first as better, corrected over all pairs of all tasks
    ties: int
    losses: int
    improvement: Summary  # probability that a run of the first beats one of the second, mean over tasks
    more_tasks: int | None = None  # about how many would show that the difference to the best is real

    def turned(self) -> PairVerdict:
        """Return the same with first and second exchanged."""
        chance = self.improvement
        ends = None if chance.ci95 is None else (1 - chance.ci95[1], 1 - chance.ci95[0])
        return replace(
            self, first=self.second, second=self.first, difference=-self.difference,
            ci95=None if self.ci95 is None else (-self.ci95[1], -self.ci95[0]),
            wins=self.losses, losses=self.wins, improvement=Summary(1 - chance.mean, None, ends),
        )  # fmt: skip


@dataclass(frozen=True)
class AcrossStanding:
    """One entry over all tasks; from ``average_rank`` on over those that all have, if two or more."""

    label: str
    rank_low: int  # best rank that the tasks allow
    rank_high: int
    num_tasks: int
    num_runs: int
    lacks: tuple[str, ...]  # tasks without a result of it
    margin: float  # mean of its differences to the other entries
    wins: int  # sums over the other entries
    ties: int
    losses: int
    notes: tuple[str, ...] = ()
    average_rank: Summary | None = None
    interquartile_mean: Summary | None = None  # of its runs, relative to their task's mean over entries
    near_best: Summary | None = None  # share of tasks in which it is at most ``near`` behind the best
    profile: tuple[float, ...] = ()  # share of tasks in which it is at most each of ``distances`` behind
    cost: Summary | None = None  # as a multiple of the cheapest entry's
    front: Literal["on", "behind", "open"] | None = None  # whether anything that costs no more is better
    front_share: float | None = None  # of resampled tasks and seeds in which it is on the front


@dataclass(frozen=True)
class AcrossVerdict:
    """Entries from best to worst, all pairs in that order, the tasks, and what readers must know."""

    metric: str
    standings: tuple[AcrossStanding, ...]
    pairs: tuple[PairVerdict, ...]
    tasks: tuple[TaskResult, ...]
    shared_tasks: tuple[str, ...]  # those that all entries have
    critical_difference: float | None  # of average ranks, by Nemenyi; it decides nothing
    near: float  # what counts as near the best
    distances: tuple[float, ...]  # from the best, of the profiles
    cost: str | None  # what the cost counts
    notes: tuple[str, ...]

    @property
    def best(self) -> tuple[AcrossStanding, ...]:
        """The entries that the tasks cannot rule out as the best."""
        return tuple(each for each in self.standings if each.rank_low == 1)

    def pair(self, first: int, second: int) -> PairVerdict:
        """Return the verdict on the entries at two places of ``standings``, from the first one's side."""
        low, high = min(first, second), max(first, second)
        size = len(self.standings)
        found = self.pairs[low * (2 * size - low - 1) // 2 + high - low - 1]
        return found if first < second else found.turned()
