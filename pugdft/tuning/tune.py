"""A search from its arguments to the comparison that it ends in. Read :func:`tune` first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pugdft.bench.entries import parse_optimizers
from pugdft.bench.local import Options, prepare_output, run_cells
from pugdft.bench.plan import parse_seeds, plan_cells
from pugdft.errors import FaultsError, UserError
from pugdft.finetune import read_recipe
from pugdft.recipe import Recipe
from pugdft.tuning.general import require_optuna, search_generally
from pugdft.tuning.greedy import plan_greedy, search_greedily
from pugdft.tuning.outputs import Question, check_folder, claim_folder, write_outputs
from pugdft.tuning.search import GeneralSearch, Search
from pugdft.tuning.search_file import read_search
from pugdft.tuning.space import Untuned, space_faults
from pugdft.tuning.trials import Runner, Say, Trials
from pugdft.tuning.tuned import Tuned

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
