"""What a search leaves: ``tuning.yaml``, the evidence, and ``bench.yaml`` with its ``recipe.yaml``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pugdft.config import yaml
from pugdft.config.schema import Recipe
from pugdft.errors import UserError
from pugdft.paths import locked, write_atomically
from pugdft.training.run import differences_between
from pugdft.tuning.space import Search
from pugdft.tuning.trials import Finished, Say, Tuned

SCHEMA = "pugdft.tuning/1"
TUNING_NAME, BENCH_NAME, RECIPE_NAME = "tuning.yaml", "bench.yaml", "recipe.yaml"

_FINAL_SEEDS = "0-4"
_LOCK = ".lock"
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
    _kept(folder, question)


def _kept(folder: Path, question: Question) -> list[dict[str, Any]]:
    """What earlier commands of this question have found, as in ``tuning.yaml``; checks as above."""
    path = folder / TUNING_NAME
    if not path.is_file():
        for name in (BENCH_NAME, RECIPE_NAME):
            if (folder / name).exists():
                raise UserError(f"{folder / name}: is there, and of no search; choose another --output")
        return []
    given = yaml.parse(yaml.read_text(path), str(path))
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
    found = given.get("optimizers")
    if not isinstance(found, list) or not all(map(_is_evidence, found)):
        raise UserError(f"{path}: optimizers: are not as a search writes them; choose another --output")
    return found


def claim_folder(folder: Path, question: Question) -> None:
    """Write down the question, unless it stands there.

    Raises:
        UserError: as in :func:`check_folder`, if another command was quicker; the file system has no locks.
    """
    path = folder / TUNING_NAME
    with locked(folder / _LOCK):
        check_folder(folder, question)
        if not path.is_file():
            write_atomically(path, yaml.dump({**question.as_dict(), "optimizers": []}).encode())


def write_outputs(folder: Path, question: Question, tuned: Sequence[Tuned], say: Say) -> Path | None:
    """Write what was found; what other commands found for further optimizers stays.

    Args:
        folder: of the search.
        question: what was searched.
        tuned: the optimizers that this command was asked for.
        say: hears of what a reader of the bench file must know.

    Returns:
        The bench file's path; None, and no bench file, if one of ``tuned`` has no trial with a score.
    """
    path = folder / BENCH_NAME
    with locked(folder / _LOCK):
        found = {each["label"]: each for each in _kept(folder, question)}
        found |= {each.label: _evidence(each, question) for each in tuned}
        is_whole = all(each.spec is not None for each in tuned)
        if not is_whole and path.exists():
            path.unlink()
            say(f"{path}: removed, it was of what was found before")
        evidence = {**question.as_dict(), "optimizers": list(found.values())}
        write_atomically(folder / TUNING_NAME, yaml.dump(evidence).encode())
        if not is_whole:
            return None
        write_atomically(folder / RECIPE_NAME, yaml.dump(question.recipe.as_dict()).encode())
        bench = {"recipes": [RECIPE_NAME], "optimizers": _entries(found, say), "seeds": _FINAL_SEEDS}
        write_atomically(path, (_BENCH_HEADER + yaml.dump(bench)).encode())
    return path


def _entries(found: Mapping[str, Mapping[str, Any]], say: Say) -> list[dict[str, Any]]:
    """The optimizers of the bench file."""
    chosen = {label: each for label, each in found.items() if each["choice"] is not None}
    if unscored := [label for label in found if label not in chosen]:
        say(f"not in {BENCH_NAME}, since no trial of an earlier command has a score: {', '.join(unscored)}")
    runs = {label: each["tuning"]["trials"] for label, each in chosen.items()}
    if len(set(runs.values())) > 1:
        counts = ", ".join(f"{label} {number}" for label, number in runs.items())
        say(f"{BENCH_NAME}: runs of each optimizer's search, which differ: {counts}")
    entries: list[dict[str, Any]] = []
    specs: list[Mapping[str, Any]] = []  # two spellings of one optimizer come to one entry
    for each in chosen.values():
        spec = each["choice"]["optimizer"]
        if spec not in specs:
            specs.append(spec)
            entries.append({**spec, "tuning": each["tuning"]})
    return entries


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


def _is_evidence(given: Any) -> bool:
    """Whether it has what another command needs of :func:`_evidence`."""
    if not isinstance(given, Mapping) or not isinstance(given.get("label"), str) or "choice" not in given:
        return False
    choice, budget = given["choice"], given.get("tuning")
    is_choice = choice is None or (
        isinstance(choice, Mapping) and isinstance(choice.get("optimizer"), Mapping)
    )
    return is_choice and isinstance(budget, Mapping) and isinstance(budget.get("trials"), int)


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
