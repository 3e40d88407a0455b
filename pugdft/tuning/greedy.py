"""The greedy search: one option after another over a grid, each with what was found before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pugdft.tuning.search import GreedySearch
from pugdft.tuning.space import Axis, Untuned, axes_of, with_option
from pugdft.tuning.trials import Trial, Trials
from pugdft.tuning.tuned import Finished, Tuned


@dataclass(frozen=True)
class Plan:
    """One optimizer's grids, in their order."""

    optimizer: Untuned
    grids: tuple[Axis, ...]

    @property
    def num_trials(self) -> int:
        """Trials of different options; a grid around the untuned value finds one of them run already."""
        number = 0
        have_run: set[bool] = set()  # the base alone, the optimizer itself: neither's trials are the other's
        for grid in self.grids:
            values = grid.values
            number += len(values) - (grid.alone in have_run and grid.start in values)
            have_run.add(grid.alone)
        return number


def plan_greedy(search: GreedySearch, optimizers: Sequence[Untuned]) -> list[Plan]:
    """The grids of every optimizer, made of the same number of trials where the search says so.

    The last list of numbers that runs the method itself gets the further points, since a base's grid is
    shared with other methods.
    """
    plans = [Plan(each, tuple(axes_of(search.stages, each.spec))) for each in optimizers]
    if not search.equalize:
        return plans
    most = max(plan.num_trials for plan in plans)
    return [_refined(plan, most) for plan in plans]


def search_greedily(plans: Sequence[Plan], trials: Trials) -> list[Tuned]:
    """Search every optimizer; their stages go side by side, so that several commands share the work.

    Raises:
        StoppedError: a run ended for a mistake of the user or an interruption.
    """
    courses = [_Course(plan, trials) for plan in plans]
    for number in range(max(len(plan.grids) for plan in plans)):
        stages = [course.stage(number) for course in courses]
        distinct = {trial.runs: trial for stage in stages for trial in stage}
        settled = sum(map(trials.is_settled, distinct.values()))
        trials.say(f"stage {number + 1}: {len(distinct)} trials, {settled} finished before")
        trials.run(list(distinct.values()), f"stage {number + 1}: ")
        for course, stage in zip(courses, stages, strict=True):
            course.settle(number, stage)
    return [course.tuned() for course in courses]


class _Course:
    """One optimizer's way through its grids."""

    def __init__(self, plan: Plan, trials: Trials) -> None:
        self._plan, self._trials = plan, trials
        self._spec = dict(plan.optimizer.spec)
        self._found: dict[str, Any] = {}
        self._at_edge: dict[str, str] = {}
        self._remarks: list[str] = []
        self._best: Trial | None = None  # of the optimizer itself
        self._history: dict[tuple[str, ...], tuple[Trial, str]] = {}

    def stage(self, number: int) -> list[Trial]:
        """The trials of the next grid; none if there is none."""
        if number >= len(self._plan.grids):
            return []
        grid = self._plan.grids[number]
        label, spec, found = self._plan.optimizer.label, self._spec, self._found
        if grid.alone:
            spec = spec["base"]
            label = spec["name"]
            found = {option: value for option, value in found.items() if option.startswith("base.")}
        stage = [
            self._trials.make(label, {**found, grid.option: value}, with_option(spec, grid.option, value))
            for value in grid.values
        ]
        for trial in stage:
            self._history.setdefault(trial.runs, (trial, grid.option))
        return stage

    def settle(self, number: int, stage: Sequence[Trial]) -> None:
        """Take over what the grid has found; what was found before stays if it was no worse."""
        if not stage:
            return
        grid = self._plan.grids[number]
        # A base's score says nothing of the method's, so the two are never held against each other.
        before = [self._best] if self._best and not grid.alone else []
        best = self._trials.best([*before, *stage])
        if best is None:
            self._remarks.append(f"no trial of {grid.option} has a score: it stays at {grid.start!r}")
            return
        if not grid.alone:
            self._best = best
        value = best.options.get(grid.option, grid.start)
        self._spec = with_option(self._spec, grid.option, value)
        self._found[grid.option] = value
        if edge := grid.edge(value):
            self._at_edge[grid.option] = edge

    def tuned(self) -> Tuned:
        """What it came to."""
        finished = tuple(
            Finished(trial, self._trials.outcome(trial), option) for trial, option in self._history.values()
        )
        is_own = any(not grid.alone for grid in self._plan.grids)
        is_found = self._best is not None if is_own else bool(self._found)
        return Tuned(
            self._plan.optimizer.label,
            self._spec if is_found else None,
            self._found,
            self._trials.outcome(self._best) if self._best else None,
            finished,
            self._at_edge,
            tuple(self._remarks),
        )


def _refined(plan: Plan, num_trials: int) -> Plan:
    candidates = [number for number, grid in enumerate(plan.grids) if grid.can_refine]
    if not candidates:
        return plan
    chosen = max(candidates, key=lambda number: (not plan.grids[number].alone, number))
    # One by one: a middle that is the untuned value is no trial more.
    while plan.num_trials < num_trials:
        grids = list(plan.grids)
        grids[chosen] = grids[chosen].refined(1)
        plan = replace(plan, grids=tuple(grids))
    return plan
