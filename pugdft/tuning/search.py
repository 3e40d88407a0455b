"""The greedy search: one option after another over a grid, each with what was found before."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pugdft.bench.executors.local import Options, prepare_output, run_cells
from pugdft.bench.grid import parse_seeds, plan_cells
from pugdft.bench.optimizer_spec import parse_optimizers
from pugdft.config.schema import Recipe
from pugdft.errors import FaultsError, UserError
from pugdft.training.run import read_recipe
from pugdft.tuning.outputs import Question, check_folder, claim_folder, write_outputs
from pugdft.tuning.space import (
    Axis,
    GeneralSearch,
    GreedySearch,
    Search,
    Untuned,
    axes_of,
    read_search,
    space_faults,
    with_option,
)
from pugdft.tuning.trials import Finished, Runner, Say, Trial, Trials, Tuned

if TYPE_CHECKING:
    from pugdft.tuning.study import Point, Study


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


TRIALS_FOLDER, STUDY_FOLDER = "trials", "study"

_HELD_OUT = 0.1


@dataclass(frozen=True)
class Request:
    """The arguments of ``pugdft tune``."""

    recipe: str
    overrides: Sequence[str]
    optimizers: str
    search: str = "greedy"
    trials: int | None = None
    seeds: str = "0"
    output: Path = Path("tuned")
    num_processes: int = 1


def tune(request: Request, say: Say, run: Runner = run_cells) -> tuple[list[Tuned], Path | None]:
    """Choose the options of every optimizer on held-out images, and write the comparison that follows.

    The same request goes on with an interrupted search, joins one that another command has under way, and
    finds a finished one as it is.

    Args:
        request: what to search.
        say: hears of the progress.
        run: runs cells.

    Returns:
        What was found for each optimizer, and the bench file; None if one has no trial with a score.

    Raises:
        UserError: a mistake in the arguments or files.
        StoppedError: a run ended for a mistake of the user or an interruption.
    """
    search = _search(request)
    seeds = tuple(parse_seeds(request.seeds))
    recipe, template = _recipes(request, say)
    optimizers = _untuned(request)
    if faults := space_faults(search.dimensions, optimizers):
        raise FaultsError(f"--search {request.search}", faults)
    folder = request.output / TRIALS_FOLDER
    question = Question(recipe, search, seeds, template.data.validation)
    check_folder(request.output, question)
    prepare_output(folder)
    claim_folder(request.output, question)
    trials = Trials(template, seeds, folder, run, Options(num_processes=request.num_processes), say)
    if isinstance(search, GeneralSearch):
        say(f"{search.title}: {search.trials} trials of each optimizer")
        study_folder = request.output / STUDY_FOLDER
        study_folder.mkdir(exist_ok=True)
        tuned = search_generally(search, optimizers, trials, study_folder)
    else:
        plans = plan_greedy(search, optimizers)
        counts = ", ".join(f"{plan.optimizer.label} {plan.num_trials}" for plan in plans)
        unequal = len({plan.num_trials for plan in plans}) > 1
        say(f"{search.title}: trials of each optimizer{', which differ' if unequal else ''}: {counts}")
        tuned = search_greedily(plans, trials)
    return tuned, write_outputs(request.output, question, tuned, say)


def _search(request: Request) -> Search:
    search = read_search(request.search)
    if isinstance(search, GeneralSearch):
        require_optuna()
        return search if request.trials is None else replace(search, trials=request.trials)
    if request.trials is not None:
        raise UserError(
            f"--trials: {search.title} is a greedy search, whose grids say how many trials it takes; "
            "--search general takes a number"
        )
    return search


def _recipes(request: Request, say: Say) -> tuple[Recipe, Recipe]:
    """The final comparison's recipe, and the trials'."""
    recipe = read_recipe(request.recipe, request.overrides).model_copy(update={"tuning": None})
    if recipe.train.evaluate != "all":
        say("train.evaluate: validation is for the trials; the final comparison is judged on the test split")
        train = recipe.train.model_copy(update={"evaluate": "all"})
        recipe = recipe.model_copy(update={"train": train})
    data = recipe.as_dict()
    data["train"]["evaluate"] = "validation"
    if not recipe.data.validation:
        data["data"]["validation"] = _HELD_OUT
        say(
            f"the recipe holds no images out: the trials hold out {_HELD_OUT:.0%} of the train split and are "
            "judged on them; the final comparison trains on all of it"
        )
    return recipe, read_recipe(data)


def _untuned(request: Request) -> list[Untuned]:
    entries = parse_optimizers(request.optimizers)
    cells = plan_cells([request.recipe], request.overrides, entries, [0], Path())
    return [Untuned(cell.optimizer, cell.recipe.optimizer) for cell in cells]
