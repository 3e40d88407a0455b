"""Compute a verdict over several tasks from records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from statistics import fmean
from typing import Literal

import numpy as np

from pugdft.errors import UserError, counted
from pugdft.leaderboard import stats, warnings
from pugdft.leaderboard.across import pooling
from pugdft.leaderboard.across.board import AcrossStanding, AcrossVerdict, PairVerdict, TaskResult
from pugdft.leaderboard.across.tasks import Contender, check_tasks, contenders, data_sets, task_name
from pugdft.leaderboard.entry import Summary
from pugdft.leaderboard.grouping import RunGroup, group_runs
from pugdft.leaderboard.load import Loaded, without_garbage_collection
from pugdft.leaderboard.power import Plan
from pugdft.leaderboard.ranking import CONTRADICTED, LOST, Measured, measure, num_test_images
from pugdft.leaderboard.warnings import listed
from pugdft.predictions import METRICS

# How near to a task's best an entry has to be for the table's share of tasks, by the metric's unit.
_NEAR = {"%": 0.01, "": 0.05}
_NUM_DISTANCES = 101  # of a profile
_COSTS = {"gradient_passes": "gradient passes", "train_seconds": "seconds of training"}
_FEW_TASKS = 5  # up to so many get a word of caution


@dataclass(frozen=True)
class _Task:
    """A task and the entries with a result there, by their positions among all."""

    group: RunGroup
    metric: str
    measured: dict[int, Measured]
    left_out: tuple[str, ...]  # labels of entries whose metric is missing in a completed run

    def compare(self) -> tuple[np.ndarray, stats.MeanDifference]:
        """Compare all pairs of its entries as the task's own table does."""
        entries = list(self.measured.values())
        num_images = num_test_images(entries) if METRICS[self.metric].is_share_of_images else None
        samples = [stats.EntryScores(each.scores(self.metric), each.images) for each in entries]
        unpaired, _ = warnings.unpaired([each.runs for each in entries])
        return np.array(list(self.measured), dtype=int), stats.compare_all(samples, num_images, unpaired)

    def scores(self, entry: int) -> np.ndarray:
        """Return an entry's scores in the order of its seeds."""
        return np.array([value for _, value in sorted(self.measured[entry].scores(self.metric).items())])

    def has_lost(self, entry: int) -> bool:
        """Tell whether seeds of an entry have no result: its other seeds say nothing of those."""
        return entry in self.measured and not self.measured[entry].runs.lost_seeds().keys().isdisjoint(LOST)


@without_garbage_collection()
def build_across(
    records: Sequence[Loaded], dataset: str | None = None, model: str | None = None, metric: str = "top1"
) -> AcrossVerdict:
    """Compare the entries of several tasks over all of them by ``metric``.

    ``dataset`` and ``model`` narrow the tasks as in :func:`pugdft.leaderboard.build_leaderboard`.

    Raises:
        UserError: there are fewer than two tasks, several protocols of one, or no two entries that share two.
    """
    groups = check_tasks(group_runs(records, dataset, model))
    entries = contenders(groups)
    tasks = [_read(group, position, entries, metric) for position, group in enumerate(groups)]
    order, margins = _best_first(tasks, len(entries), metric)
    place = {old: new for new, old in enumerate(order)}
    tasks = [
        replace(task, measured={place[old]: task.measured[old] for old in order if old in task.measured})
        for task in tasks
    ]
    dropped = [each.label for number, each in enumerate(entries) if number not in place]
    return _Comparison([entries[number] for number in order], margins, tasks, metric, dropped).verdict()


def _read(group: RunGroup, position: int, entries: Sequence[Contender], metric: str) -> _Task:
    present = [number for number, each in enumerate(entries) if position in each.runs]
    read = measure([entries[number].runs[position] for number in present], metric)
    found, left_out = {}, []
    for number, each in zip(present, read, strict=True):
        if each.without(metric):
            left_out.append(entries[number].label)
        elif each.runs.completed:
            found[number] = each
    return _Task(group, metric, found, tuple(left_out))


def _best_first(tasks: Sequence[_Task], size: int, metric: str) -> tuple[list[int], list[float]]:
    """Order the entries that share two tasks with another by the mean of their differences to the others."""
    means = np.full((len(tasks), size), np.nan)
    for position, task in enumerate(tasks):
        for number in task.measured:
            means[position, number] = task.scores(number).mean()
    differences = means[:, :, None] - means[:, None, :]
    common = (~np.isnan(differences)).sum(axis=0)
    np.fill_diagonal(common, 0)
    usable = common > 1  # with one task in common nothing can be tested
    kept = np.flatnonzero(usable.any(axis=1))
    if len(kept) < 2:
        raise UserError(
            f"--across: no two optimizers have a valid {METRICS[metric].name} in the same two tasks"
        )
    sign = 1 if METRICS[metric].higher_is_better else -1
    pooled = np.where(usable, sign * np.nansum(differences, axis=0) / np.maximum(common, 1), 0.0)
    margins = pooled.sum(axis=1) / np.maximum(usable.sum(axis=1), 1)
    order = kept[np.argsort(-margins[kept], kind="stable")]
    return order.tolist(), margins[order].tolist()


@dataclass(frozen=True)
class _Comparison:
    entries: Sequence[Contender]  # from best to worst, as positions in ``tasks`` are
    margins: Sequence[float]
    tasks: Sequence[_Task]
    metric: str
    dropped: Sequence[str]  # labels of entries that share too few tasks

    def verdict(self) -> AcrossVerdict:
        pairs, wins, ranges = self._pairs()
        shared = [task for task in self.tasks if len(task.measured) == len(self.entries)]
        standings = [self._standing(number, wins, ranges[number]) for number in range(len(self.entries))]
        verdict = AcrossVerdict(
            metric=self.metric,
            standings=tuple(standings),
            pairs=tuple(pairs),
            tasks=tuple(map(self._result, self.tasks)),
            shared_tasks=tuple(task_name(task.group) for task in shared),
            critical_difference=None,
            near=_NEAR[METRICS[self.metric].unit],
            distances=(),
            cost=None,
            notes=tuple(self._notes(shared)),
        )
        return self._described(verdict, shared) if len(shared) > 1 else verdict

    @cached_property
    def _data_sets(self) -> list[int]:
        return data_sets([task.group for task in self.tasks])

    @property
    def _higher_is_better(self) -> bool:
        return METRICS[self.metric].higher_is_better

    def _pairs(self) -> tuple[list[PairVerdict], np.ndarray, list[tuple[int, int]]]:
        """Test all pairs; also count, in a matrix, the tasks that each entry wins against each other one."""
        size, sign = len(self.entries), 1.0 if self._higher_is_better else -1.0
        differences = pooling.TaskDifferences.of([task.compare() for task in self.tasks], size)
        pooled = differences.pooled(self._data_sets)
        lacking = np.array([[task.has_lost(number) for number in range(size)] for task in self.tasks])
        p_alone, testable = np.asarray(pooled.p_value), np.asarray(pooled.testable)
        adjusted = pooling.shaffer_adjusted(p_alone, size)
        better, worse = stats.better_and_worse(pooled.difference, size, self._higher_is_better)
        is_safe = ~np.asarray(lacking.any(axis=0))[better]
        separated = testable & (adjusted <= stats.LEVEL) & is_safe
        half_widths, true_std = pooled.spread.half_width(), differences.true_deviation(pooled)
        wins, chances = self._wins(differences, lacking), self._improvements()
        pairs = []
        for number, (first, second) in enumerate(combinations(range(size), 2)):
            difference, half = sign * float(pooled.difference[number]), float(half_widths[number])
            is_testable, p_value = bool(testable[number]), float(adjusted[number])
            num_tasks, won, lost = (
                int(pooled.num_seeds[number]),
                int(wins[first, second]),
                int(wins[second, first]),
            )
            chance = float(chances[first, second])
            low, high = pooling.share_interval(chance, num_tasks)
            is_open = first == 0 and is_testable and not separated[number]
            pairs.append(
                PairVerdict(
                    first=self.entries[first].label,
                    second=self.entries[second].label,
                    num_tasks=num_tasks,
                    difference=difference,
                    ci95=(difference - half, difference + half) if is_testable else None,
                    p_value=p_value if is_testable else None,
                    p_alone=float(p_alone[number]) if is_testable else None,
                    separated=bool(separated[number]),
                    true_std=float(true_std[number]) if is_testable else None,
                    wins=won,
                    ties=num_tasks - won - lost,
                    losses=lost,
                    improvement=Summary(chance, None, (float(low), float(high))),
                    more_tasks=_more_tasks(pooled[number], len(adjusted)) if is_open else None,
                )
            )
        return pairs, wins, stats.rank_ranges(better[separated], worse[separated], size)

    def _wins(self, differences: pooling.TaskDifferences, lacking: np.ndarray) -> np.ndarray:
        """Count the tasks that separate two entries, with one correction over all pairs of all tasks."""
        size = len(self.entries)
        wins, present = np.zeros((size, size), dtype=int), ~np.isnan(differences.difference)
        adjusted = np.ones(present.shape)
        adjusted[present] = stats.holm_adjusted(differences.p_values[present])
        for task in range(len(self.tasks)):
            better, worse = stats.better_and_worse(differences.difference[task], size, self._higher_is_better)
            found = differences.testable[task] & (adjusted[task] <= stats.LEVEL) & ~lacking[task][better]
            wins[better[found], worse[found]] += 1
        return wins

    def _improvements(self) -> np.ndarray:
        """Compute the probability that a run of one entry beats one of another: means over their tasks."""
        size = len(self.entries)
        total, count = np.zeros((2, size, size))
        for task in self.tasks:
            present = np.array(list(task.measured), dtype=int)
            table = pooling.padded_table([task.scores(number) for number in present])
            at = np.ix_(present, present)
            total[at] += pooling.improvements(table if self._higher_is_better else -table)
            count[at] += 1
        return total / np.maximum(count, 1)

    def _standing(self, number: int, wins: np.ndarray, ranks: tuple[int, int]) -> AcrossStanding:
        entry = self.entries[number]
        own = [task for task in self.tasks if number in task.measured]
        lacking = [task for task in self.tasks if number not in task.measured]
        met = sum(len(task.measured) - 1 for task in own)
        won, lost = int(wins[number].sum()), int(wins[:, number].sum())
        notes = list(entry.notes)
        if lacking:
            notes.append(f"it lacks {listed(task_name(task.group) for task in lacking)}")
        if without := [task_name(task.group) for task in own if task.has_lost(number)]:
            notes.append(f"seeds without a result in {listed(without)}: not ranked above others")
        return AcrossStanding(
            label=entry.label,
            rank_low=ranks[0],
            rank_high=ranks[1],
            num_tasks=len(own),
            num_runs=sum(len(task.measured[number].records) for task in own),
            lacks=tuple(task_name(task.group) for task in lacking),
            margin=self.margins[number],
            wins=won,
            ties=met - won - lost,
            losses=lost,
            notes=tuple(notes),
        )

    def _result(self, task: _Task) -> TaskResult:
        found = [(self.entries[number].label, each) for number, each in task.measured.items()]
        bounds = METRICS[self.metric].bounds
        return TaskResult(
            task_name(task.group),
            task.group.dataset,
            task.group.model,
            task.group.protocol,
            scores={
                label: stats.summarize(
                    each.scores(self.metric).values(), each.spreads.get(self.metric), bounds
                )
                for label, each in found
            },
            specs={label: each.runs.spec for label, each in found},
            records={label: tuple(run.id for run in each.records) for label, each in found},
        )

    def _described(self, verdict: AcrossVerdict, shared: Sequence[_Task]) -> AcrossVerdict:
        """Add what describes the entries over the tasks that all of them have."""
        size, num_tasks = len(self.entries), len(shared)
        scores = [[task.scores(number) for number in range(size)] for task in shared]
        block = pooling.Block.of(scores, 1.0 if self._higher_is_better else -1.0)
        drawn, behind, slack = block.resampled(), block.behind(), 1e-9
        ranks, rank_half = block.ranks().mean(axis=0), drawn.half_width(drawn.ranks)
        middle, middle_half = block.interquartile_means(), drawn.half_width(drawn.interquartile)
        near = (behind <= verdict.near + slack).mean(axis=0)
        distances = np.linspace(0.0, float(behind.max()), _NUM_DISTANCES)
        profiles = (behind[None] <= distances[:, None, None] + slack).mean(axis=1)
        standings = []
        for number, standing in enumerate(verdict.standings):
            low, high = pooling.share_interval(near[number], num_tasks)
            rank, half = float(ranks[number]), float(rank_half[number])
            standings.append(
                replace(
                    standing,
                    average_rank=Summary(rank, None, (max(1.0, rank - half), min(float(size), rank + half))),
                    interquartile_mean=_around(middle[number], middle_half[number]),
                    near_best=Summary(float(near[number]), None, (float(low), float(high))),
                    profile=tuple(profiles[:, number].tolist()),
                )
            )
        name, costs = self._costs(shared)
        if costs is not None:
            standings = _with_costs(standings, costs, drawn, verdict)
        return replace(
            verdict,
            standings=tuple(standings),
            critical_difference=pooling.critical_difference(size, num_tasks),
            distances=tuple(distances.tolist()),
            cost=name,
        )

    def _costs(self, shared: Sequence[_Task]) -> tuple[str | None, np.ndarray | None]:
        """Return the first cost that all runs of the shared tasks have, as an array of (tasks, entries)."""
        for field, name in _COSTS.items():
            found = [
                [task.measured[number].costs(field) for number in range(len(self.entries))] for task in shared
            ]
            if all(
                value is not None and 0 < value < np.inf for row in found for each in row for value in each
            ):
                return name, np.array([[fmean(filter(None, each)) for each in row] for row in found])
        return None, None

    def _notes(self, shared: Sequence[_Task]) -> Iterator[str]:
        """Say what limits the verdict, the gravest first."""
        num_tasks = len(self.tasks)
        if self.dropped:
            yield f"left out, for they share fewer than two tasks with any other: {listed(self.dropped)}"
        for task in self.tasks:
            if task.left_out:
                labels = listed(task.left_out)
                yield f"{task_name(task.group)}: no valid {METRICS[self.metric].name} of a run of {labels}"
        if len(shared) < num_tasks:
            what = "average ranks, interquartile means, profiles and cost"
            if len(shared) > 1:
                yield f"{what} are over the {len(shared)} of {num_tasks} tasks that all entries have"
            else:
                have = "one task" if shared else "no task"
                yield f"no {what.replace(' and ', ' or ')}: all entries have {have} in common"
        if num_tasks <= _FEW_TASKS:
            yield (
                f"{num_tasks} tasks are few: t with {counted(num_tasks - 1, 'degree')} of freedom finds only "
                "differences that are large and alike in all of them"
            )
        if (num_sets := len(set(self._data_sets))) < num_tasks:
            yield (
                f"the {num_tasks} tasks have {counted(num_sets, 'data set')}: those of one data set "
                "resemble each other, so the verdict reaches less far than as many data sets would carry it"
            )
        single = sum(all(len(each.records) == 1 for each in task.measured.values()) for task in self.tasks)
        if single:
            yield f"{counted(single, 'task')} with one seed each: nobody wins there alone"
        noted = []
        for task in self.tasks:
            runs = [each.runs for each in task.measured.values()]
            own = [*warnings.condition_warnings(runs), *warnings.unpaired(runs)[1], *task.group.notes]
            lost = any(each.status == CONTRADICTED for run in runs for each in run.unfinished)
            if own or lost or any(run.notes for run in runs):
                noted.append(task_name(task.group))
        if noted:
            yield f"warnings about {listed(noted)}: `pugdft leaderboard` without --across shows them"


def _more_tasks(pair: stats.MeanDifference, num_pairs: int) -> int | None:
    """Estimate how many more tasks show that a difference is real; None if no number does."""
    needed = Plan.of(pair, num_pairs).seeds_needed(pair.difference) if pair.difference else None
    return None if needed is None else max(1, needed - pair.num_seeds)


def _around(centre: float, half: float) -> Summary:
    return Summary(float(centre), None, (float(centre - half), float(centre + half)))


def _with_costs(
    standings: Sequence[AcrossStanding], costs: np.ndarray, drawn: pooling.Resampled, verdict: AcrossVerdict
) -> list[AcrossStanding]:
    """Add costs, and whether an entry that costs no more is better.

    An entry is on the front if it is separated as better from all that cost as much or less, and behind it if
    one of those is separated as better; else the data leave it open.
    """
    ratios, lows, highs = pooling.mean_ratios(costs)
    shares = drawn.front_shares(ratios)
    found = []
    for number, standing in enumerate(standings):
        rivals = [
            verdict.pair(number, other)
            for other in range(len(standings))
            if other != number and ratios[other] <= ratios[number] * (1 + pooling.EQUAL_COST)
        ]
        front: Literal["on", "behind", "open"] = "open"
        if any(each.separated and each.difference < 0 for each in rivals):
            front = "behind"
        elif all(each.separated for each in rivals):
            front = "on"
        ends = float(lows[number]), float(highs[number])
        cost = Summary(float(ratios[number]), None, ends)
        found.append(replace(standing, cost=cost, front=front, front_share=float(shares[number])))
    return found
