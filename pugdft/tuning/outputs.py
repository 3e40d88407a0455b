"""Write the files of a search: ``tuning.yaml``, the evidence, and ``bench.yaml`` with its ``recipe.yaml``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pugdft.config import yaml
from pugdft.config.schema import Recipe
from pugdft.errors import UserError, refuse
from pugdft.paths import locked, write_atomically
from pugdft.training.run import differences_between
from pugdft.tuning.space import Search
from pugdft.tuning.trials import Outcome, Say, Tuned

SCHEMA = "pugdft.tuning/1"
TUNING_NAME, BENCH_NAME, RECIPE_NAME = "tuning.yaml", "bench.yaml", "recipe.yaml"

_FINAL_SEEDS = "0-4"
_LOCK = ".lock"
_BENCH_HEADER = """\
# The final comparison of tuned optimizers, under the recipe beside this file: give `pugdft bench` its path.
#
# No trial evaluated the test split, so the comparison may use the seeds of the trials.
"""


@dataclass(frozen=True)
class Question:
    """What is searched, and on which images: a folder answers one question."""

    recipe: Recipe  # of the final comparison
    search: Search
    seeds: Sequence[int]
    validation: float  # fraction of the train split that the trials hold out

    def as_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "recipe": self.recipe.as_dict(),
            "search": self.search.as_dict(),
            "seeds": list(self.seeds),
            "validation": self.validation,
        }


def check_folder(folder: Path, question: Question) -> list[dict[str, Any]]:
    """Return what earlier commands have found, as in ``tuning.yaml``; refuse a folder of another search."""
    path = folder / TUNING_NAME
    if not path.is_file():
        for foreign in (folder / BENCH_NAME, folder / RECIPE_NAME):
            if foreign.exists():
                raise UserError(f"{foreign}: exists and is not of a search; choose another --output")
        return []
    given = yaml.parse(yaml.read_text(path), str(path))
    if not isinstance(given, Mapping) or given.get("schema") != SCHEMA:
        raise UserError(f"{path}: is not of a search (no `schema: {SCHEMA}`); choose another --output")
    ours = question.as_dict()
    theirs = {key: given.get(key) for key in ours}
    with suppress(ValidationError):  # of an older version: the defaults of newer keys are what it ran with
        theirs["recipe"] = Recipe.model_validate(theirs["recipe"]).as_dict()
    for each in (ours, theirs):  # a longer search continues a shorter one
        if isinstance(each["search"], Mapping):
            each["search"] = {**each["search"], "trials": None}
    if differences := differences_between(theirs, ours):
        shown = "".join(f"\n  {line}" for line in differences)
        advice = "Choose another --output, or move that one away."
        raise UserError(f"{folder}: holds another search:{shown}\n{advice}")
    message = f"{path}: optimizers: are not as a search writes them; choose another --output"
    with refuse((TypeError, LookupError, ValueError), lambda error: message):
        found: list[dict[str, Any]] = list(given["optimizers"])
        _bench_entries(found)
        _scored(found)
    return found


def claim_folder(folder: Path, question: Question) -> None:
    """Write the question to a free folder; refuse one that another search has claimed meanwhile."""
    path = folder / TUNING_NAME
    with locked(folder / _LOCK):
        check_folder(folder, question)
        if not path.is_file():
            write_atomically(path, yaml.dump({**question.as_dict(), "optimizers": []}).encode())


def write_outputs(folder: Path, question: Question, tuned: Sequence[Tuned], say: Say) -> Path | None:
    """Write what was found beside what other commands found; return the bench file if all have a score."""
    path = folder / BENCH_NAME
    with locked(folder / _LOCK):
        found = {each["label"]: each for each in check_folder(folder, question)}
        found |= {each.label: _evidence(each, question) for each in tuned}
        evidence = {**question.as_dict(), "optimizers": list(found.values())}
        is_whole = all(each.spec is not None for each in tuned)
        if not is_whole and path.exists():
            path.unlink()
            say(f"{path}: removed, it was of what was found before")
        write_atomically(folder / TUNING_NAME, yaml.dump(evidence).encode())
        if not is_whole:
            return None
        write_atomically(folder / RECIPE_NAME, yaml.dump(question.recipe.as_dict()).encode())
        entries = _bench_entries(found.values())
        bench = {"recipes": [RECIPE_NAME], "optimizers": entries, "seeds": _FINAL_SEEDS}
        write_atomically(path, (_BENCH_HEADER + yaml.dump(bench)).encode())
    scored = _scored(found.values())
    if unscored := [label for label in found if label not in scored]:
        say(f"not in {BENCH_NAME}, since no trial of an earlier command has a score: {', '.join(unscored)}")
    if len(set(scored.values())) > 1:
        counts = ", ".join(f"{label} {number}" for label, number in scored.items())
        say(f"{BENCH_NAME}: runs of each optimizer's search, which differ: {counts}")
    return path


def _bench_entries(found: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The optimizers of the bench file; two spellings of one optimizer come to one entry."""
    entries: list[dict[str, Any]] = []
    specs: list[Mapping[str, Any]] = []
    for each in found:
        if each["choice"] is not None and (spec := each["choice"]["optimizer"]) not in specs:
            specs.append(spec)
            entries.append({**spec, "tuning": each["tuning"]})
    return entries


def _scored(found: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Label to number of trials, of the optimizers with a score."""
    return {str(each["label"]): int(each["tuning"]["trials"]) for each in found if each["choice"] is not None}


def _evidence(tuned: Tuned, question: Question) -> dict[str, Any]:
    choice = {"optimizer": tuned.spec, "options": dict(tuned.options), **_scores(tuned.outcome)}
    trials = [
        {
            "number": number,
            **({"stage": each.stage} if each.stage else {}),
            "optimizer": each.trial.label,
            "options": dict(each.trial.options),
            "seeds": list(question.seeds),
            **_scores(each.outcome),
            "status": each.outcome.status,
            "runs": list(each.trial.runs),
            "gradient_passes": float(each.outcome.gradient_passes),
        }
        for number, each in enumerate(tuned.trials, 1)
    ]
    passes = float(tuned.gradient_passes)
    return {
        "label": tuned.label,
        "trials": trials,
        "choice": choice if tuned.spec is not None else None,
        "at_edge": dict(tuned.at_edge),
        "remarks": list(tuned.remarks),
        "tuning": {"trials": tuned.num_runs, "gradient_passes": passes, "search": question.search.title},
    }


def _scores(outcome: Outcome | None) -> dict[str, float | None]:
    top1, loss = (outcome.top1, outcome.loss) if outcome else (None, None)
    return {"validation_top1": top1, "validation_loss": loss}
