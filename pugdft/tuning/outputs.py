"""What a search leaves: ``tuning.yaml``, the evidence, and ``bench.yaml`` with its ``recipe.yaml``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pugdft import yaml_text
from pugdft.errors import UserError
from pugdft.output import differences_between
from pugdft.recipe import Recipe, read_text
from pugdft.record import write_atomically
from pugdft.tuning.search import Search
from pugdft.tuning.tuned import Finished, Tuned

SCHEMA = "pugdft.tuning/1"
TUNING_NAME, BENCH_NAME, RECIPE_NAME = "tuning.yaml", "bench.yaml", "recipe.yaml"

_FINAL_SEEDS = "0-4"
_BENCH_HEADER = """\
# The final comparison of tuned optimizers, under the recipe beside this file: give `pugdft bench` its path.
#
# No trial looked at the test split, so these seeds may be those of the trials.
"""


@dataclass(frozen=True)
class Question:
    """What is searched, and on which images it is judged: a folder answers one question.

    Attributes:
        recipe: of the final comparison.
        validation: fraction of the train split that the trials hold out.
    """

    recipe: Recipe
    search: Search
    seeds: tuple[int, ...]
    validation: float

    def as_dict(self) -> dict[str, Any]:
        """As in ``tuning.yaml``."""
        return {
            "schema": SCHEMA,
            "recipe": self.recipe.as_dict(),
            "search": self.search.as_dict(),
            "seeds": list(self.seeds),
            "validation": self.validation,
        }


def check_folder(folder: Path, question: Question) -> None:
    """See that ``folder`` is free for this question, or already this question's; changes nothing.

    The optimizers and the number of trials may change: a longer search goes on from a shorter one.

    Raises:
        UserError: it holds another search, or files of somebody's where a search writes its own.
    """
    path = folder / TUNING_NAME
    if not path.is_file():
        for name in (BENCH_NAME, RECIPE_NAME):
            if (folder / name).exists():
                raise UserError(f"{folder / name}: is there, and of no search; choose another --output")
        return
    given = yaml_text.parse(read_text(path), str(path))
    if not isinstance(given, Mapping) or given.get("schema") != SCHEMA:
        raise UserError(f"{path}: is not of a search (no `schema: {SCHEMA}`); choose another --output")
    theirs = {key: given.get(key) for key in question.as_dict()}
    with suppress(ValidationError):  # of an older version: the defaults of newer keys are what it ran with
        theirs["recipe"] = Recipe.model_validate(theirs["recipe"]).as_dict()
    if differences := differences_between(_without_trials(theirs), _without_trials(question.as_dict())):
        shown = "\n".join(f"  {line}" for line in differences)
        raise UserError(
            f"{folder}: holds another search:\n{shown}\nChoose another --output, or move that one away."
        )


def claim_folder(folder: Path, question: Question) -> None:
    """Write down the question, unless it stands there."""
    path = folder / TUNING_NAME
    if not path.is_file():
        write_atomically(path, yaml_text.dump({**question.as_dict(), "optimizers": []}).encode())


def write_outputs(folder: Path, question: Question, tuned: Sequence[Tuned]) -> Path | None:
    """Write what was found; returns the bench file's path, None if an optimizer has no trial with a score."""
    evidence = {**question.as_dict(), "optimizers": [_evidence(each, question) for each in tuned]}
    write_atomically(folder / TUNING_NAME, yaml_text.dump(evidence).encode())
    if any(each.spec is None for each in tuned):
        return None
    write_atomically(folder / RECIPE_NAME, yaml_text.dump(question.recipe.as_dict()).encode())
    path = folder / BENCH_NAME
    # Two spellings of one optimizer come to one entry.
    entries: list[dict[str, Any]] = []
    for each in tuned:
        entry = {**(each.spec or {}), "tuning": _budget(each, question)}
        if each.spec not in [{key: given[key] for key in given if key != "tuning"} for given in entries]:
            entries.append(entry)
    bench = {"recipes": [RECIPE_NAME], "optimizers": entries, "seeds": _FINAL_SEEDS}
    write_atomically(path, (_BENCH_HEADER + yaml_text.dump(bench)).encode())
    return path


def _budget(tuned: Tuned, question: Question) -> dict[str, Any]:
    return {
        "trials": tuned.num_runs,
        "gradient_passes": float(tuned.gradient_passes),
        "search": question.search.title,
    }


def _evidence(tuned: Tuned, question: Question) -> dict[str, Any]:
    numbers = {each.trial.runs: number for number, each in enumerate(tuned.trials, 1)}
    choice: dict[str, Any] | None = None
    if tuned.spec is not None:
        choice = {
            "optimizer": dict(tuned.spec),
            "options": dict(tuned.options),
            "validation_top1": tuned.outcome.top1 if tuned.outcome else None,
            "validation_loss": tuned.outcome.loss if tuned.outcome else None,
        }
    return {
        "label": tuned.label,
        "trials": [_trial(numbers[each.trial.runs], each, question) for each in tuned.trials],
        "choice": choice,
        "at_edge": dict(tuned.at_edge),
        "remarks": list(tuned.remarks),
        "tuning": _budget(tuned, question),
    }


def _trial(number: int, finished: Finished, question: Question) -> dict[str, Any]:
    trial, outcome = finished.trial, finished.outcome
    return {
        "number": number,
        **({"stage": finished.stage} if finished.stage else {}),
        "optimizer": trial.label,
        "options": dict(trial.options),
        "seeds": list(question.seeds),
        "validation_top1": outcome.top1,
        "validation_loss": outcome.loss,
        "status": outcome.status,
        "runs": list(trial.runs),
        "gradient_passes": float(outcome.gradient_passes),
    }


def _without_trials(question: Mapping[str, Any]) -> dict[str, Any]:
    search = question["search"]
    kept = search
    if isinstance(search, Mapping):
        kept = {key: value for key, value in search.items() if key != "trials"}
    return {**question, "search": kept}
