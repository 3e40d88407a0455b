"""``pugdft tune`` as a function, and the greedy search: one option after another over a grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pugdft.bench.grid import Matrix, parse_seeds, plan_cells
from pugdft.bench.optimizer_spec import parse_optimizers
from pugdft.bench.worker import prepare_output
from pugdft.config.schema import Recipe
from pugdft.errors import FaultsError, UserError, refuse
from pugdft.training.performance import precision_note
from pugdft.training.run import read_recipe
from pugdft.training.setup import device_type
from pugdft.tuning import outputs, space
from pugdft.tuning.space import GreedySearch, SearchAxis, Untuned, with_option
from pugdft.tuning.trials import Say, Trial, Trials, Tuned

_HELD_OUT = 0.1


@dataclass(frozen=True)
class TuneRequest:
    recipe: str
    overrides: Sequence[str]
    optimizers: str
    search: str = "greedy"
    trials: int | None = None
    seeds: str = "0"
    output: Path = Path("tuned")
    num_processes: int = 1


def tune(request: TuneRequest, say: Say) -> tuple[list[Tuned], Path | None]:
    """Choose the options of every optimizer on held-out images; return them and, if whole, the bench file.

    The same request continues an interrupted search, shares the trials of one that another command has
    started, and finds a finished one as it is.
    """
    search = _search(request)
    seeds = parse_seeds(request.seeds)
    recipe, template = _recipes(request, say)
    entries, overrides = parse_optimizers(request.optimizers), list(request.overrides)
    matrix = Matrix.model_construct(recipes=[request.recipe], overrides=overrides, entries=entries, seeds=[0])
    optimizers = [Untuned(cell.optimizer, cell.recipe.optimizer) for cell in plan_cells(matrix, Path())]
    if faults := space.space_faults(search.dimensions, optimizers):
        raise FaultsError(f"--search {request.search}", faults)
    output, question = request.output, outputs.Question(recipe, search, seeds, template.data.validation)
    outputs.check_folder(output, question)
    prepare_output(output / "trials")
    if note := precision_note(template.train.precision, device_type()):
        say(note)
    outputs.claim_folder(output, question)
    trials = Trials(template, seeds, output / "trials", request.num_processes, say)
    if isinstance(search, GreedySearch):
        tuned = search_greedily(search, optimizers, trials)
    else:
        from pugdft.tuning.study import search_generally

        tuned = search_generally(search, optimizers, trials, output / "study")
    return tuned, outputs.write_outputs(output, question, tuned, say)


def _search(request: TuneRequest) -> space.Search:
    search = space.read_search(request.search)
    if isinstance(search, GreedySearch):
        if request.trials is None:
            return search
        kind = f"{search.title} is a greedy search, whose grids say how many trials it takes"
        raise UserError(f"--trials: {kind}; --search general takes a number")
    message = (
        'a general search needs Optuna, which cannot be imported ({}): pip install "pugdft[tune]". '
        "The greedy search, --search greedy, needs nothing further."
    )
    with refuse(ImportError, message.format):
        import optuna  # noqa: F401
    return search if request.trials is None else search.model_copy(update={"trials": request.trials})


def _recipes(request: TuneRequest, say: Say) -> tuple[Recipe, Recipe]:
    data = read_recipe(request.recipe, request.overrides).as_dict() | {"tuning": None}
    if data["train"]["evaluate"] != "all":
        say("train.evaluate: validation is for the trials; the final comparison is judged on the test split")
        data["train"]["evaluate"] = "all"
    recipe = read_recipe(data)
    data["train"]["evaluate"] = "validation"
    if not recipe.data.holds_out:
        data["data"]["validation"] = _HELD_OUT
        share = f"the trials hold out {_HELD_OUT:.0%} of the train split and are judged on them"
        say(f"the recipe holds no images out: {share}; the final comparison trains on all of it")
    return recipe, read_recipe(data)


def search_greedily(search: GreedySearch, optimizers: Sequence[Untuned], trials: Trials) -> list[Tuned]:
    """Search every optimizer, stage by stage, so that several commands share the work."""
    states = [_GreedyState(search, each, trials) for each in optimizers]
    if search.equalize:
        most = max(state.num_trials for state in states)
        for state in states:
            state.refine(most)
    counts = ", ".join(f"{state.label} {state.num_trials}" for state in states)
    unequal = ", which differ" if len({state.num_trials for state in states}) > 1 else ""
    trials.say(f"{search.title}: trials of each optimizer{unequal}: {counts}")
    for number in range(max(len(state.grids) for state in states)):
        stages = [(state, state.stage(number)) for state in states if number < len(state.grids)]
        distinct = {trial.runs: trial for _, stage in stages for trial in stage}
        settled = sum(map(trials.is_settled, distinct.values()))
        trials.say(f"stage {number + 1}: {len(distinct)} trials, {settled} finished before")
        trials.run(list(distinct.values()), f"stage {number + 1}: ")
        for state, stage in stages:
            state.choose(state.grids[number], stage)
    return [state.tuned() for state in states]


class _GreedyState:
    """One optimizer's grids, in their order, and what their stages have found so far."""

    def __init__(self, search: GreedySearch, optimizer: Untuned, trials: Trials) -> None:
        self.label, self.grids = optimizer.label, space.axes_of(search.dimensions, optimizer)
        self._trials, self._spec = trials, dict(optimizer.spec)
        self._found: dict[str, Any] = {}
        self._remarks: list[str] = []
        self._best: Trial | None = None  # of the optimizer itself
        self._tried: list[tuple[Trial, str]] = []

    @property
    def num_trials(self) -> int:
        """Trials of different options; a grid around the untuned value finds one of them run already."""
        number = 0
        have_run: set[bool] = set()  # the base alone, the optimizer itself: neither's trials are the other's
        for grid in self.grids:
            number += len(grid.values) - (grid.alone in have_run and grid.start in grid.values)
            have_run.add(grid.alone)
        return number

    def refine(self, num_trials: int) -> None:
        """Add points until it has so many trials: to the last list that runs the method itself, if any."""
        candidates = [number for number, grid in enumerate(self.grids) if grid.can_refine]
        if candidates:
            # A base's list is shared with other methods.
            chosen = max(candidates, key=lambda number: (not self.grids[number].alone, number))
            # One by one: a middle that is the untuned value is no further trial.
            while self.num_trials < num_trials:
                self.grids[chosen] = self.grids[chosen].refined()

    def stage(self, number: int) -> list[Trial]:
        grid, label, spec, found = self.grids[number], self.label, self._spec, self._found
        if grid.alone:
            spec = spec["base"]
            label = spec["name"]
            found = {option: value for option, value in found.items() if option.startswith("base.")}
        stage = []
        for value in grid.values:
            options = {**found, grid.option: value}
            stage.append(self._trials.make(label, options, with_option(spec, grid.option, value)))
        self._tried += [(trial, grid.option) for trial in stage]
        return stage

    def choose(self, grid: SearchAxis, stage: Sequence[Trial]) -> None:
        """Take the best value of the grid; the value found before stays if it is no worse."""
        # A base's score says nothing of the method's, so the two are never compared.
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

    def tuned(self) -> Tuned:
        only_base = all(grid.alone for grid in self.grids)
        is_found = bool(self._found) if only_base else self._best is not None
        spec = self._spec if is_found else None
        outcome = self._trials.outcome(self._best) if self._best else None
        tried, at_edge = self._trials.finished(self._tried), space.edges_of(self.grids, self._found)
        return Tuned(self.label, spec, self._found, outcome, tried, at_edge, tuple(self._remarks))
