"""What makes a whole comparison doubtful, in plain sentences: what the runs should have shared."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pugdft.errors import printable
from pugdft.leaderboard.costs import number_in
from pugdft.leaderboard.entry import TuningBudget
from pugdft.leaderboard.grouping import RunEntry, shown
from pugdft.records import RunRecord

# Of record.environment, with what a difference may change.
_ENVIRONMENT = {
    "pugdft": "the version of pugdft",
    "torch": "the version of torch",
    "timm": "the version of timm",
    "precision": "the precision",
    "processes": "the number of processes",
    "device_name": "the device, so that times say nothing",
}
# What equal seeds share, which makes pairing right: section and field of the record, and its name for people.
_SHARED_BY_SEED = {
    ("data", "split_sha256"): "training images",
    ("data", "order_sha256"): "order of the images",
    ("data", "augmentation_sha256"): "augmentation",
    ("model", "head_sha256"): "initial head",
}

_EQUAL_BUDGETS = 1.1

_MOST_NAMED = 6

_MOST_SHOWN = 60


def group_doubts(entries: Sequence[RunEntry]) -> tuple[str, ...]:
    """Unequal tuning, software, hardware or weights; only what completed counts."""
    started = [entry for entry in entries if entry.completed]
    return (*_weights(started), *_tuning(started), *_environment(started), *_modified(started))


def tuning_budget(entry: RunEntry) -> tuple[TuningBudget | None, str | None]:
    """What an entry's runs say was spent on its options, the most if they differ, and a note if they do."""
    budgets = {budget for run in entry.completed if (budget := _budget(run.record))}
    if not budgets:
        return None, None
    most = max(budgets, key=lambda budget: (budget.gradient_passes, budget.trials))
    return most, None if len(budgets) == 1 else "its runs name different tuning budgets; the largest is shown"


def unpaired(entries: Sequence[RunEntry]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Pairs of entries whose common seeds are not the same draws, as a square matrix, and why in words.

    What a record does not say is taken to agree; None where nothing disagrees.
    """
    matrix: np.ndarray | None = None
    notes = []
    for (section, field), name in _SHARED_BY_SEED.items():
        differing = []
        for seed, holders in _digests(entries, section, field).items():
            if len(holders) < 2:
                continue
            differing.append(seed)
            if matrix is None:
                matrix = np.zeros((len(entries), len(entries)), dtype=bool)
            everyone = [position for positions in holders.values() for position in positions]
            for positions in holders.values():
                others = sorted(set(everyone) - set(positions))
                matrix[np.ix_(positions, others)] = True
        if differing:
            seeds = listed([str(seed) for seed in sorted(differing)])
            notes.append(
                f"the {name} of seed {seeds} differs between entries ({section}.{field}): pairing by seed is "
                "not justified, and those entries are compared as unpaired"
            )
    return matrix, tuple(notes)


def _digests(entries: Sequence[RunEntry], section: str, field: str) -> dict[int, dict[str, list[int]]]:
    """Of each seed, the digests on record with the positions of the entries that have them."""
    by_seed: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for position, entry in enumerate(entries):
        for run in entry.completed:
            digest = getattr(getattr(run.record, section), field, None)
            if isinstance(digest, str):
                by_seed[run.record.seed][digest].append(position)
    return by_seed


def _weights(entries: Sequence[RunEntry]) -> tuple[str, ...]:
    """One name of pretrained weights, several contents."""
    digests = {
        run.record.model.weights_sha256
        for entry in entries
        for run in entry.completed
        if run.record.model and run.record.recipe["model"].get("pretrained") is not False
    }
    if len(digests) <= 1:
        return ()
    return (f"the runs started from {len(digests)} different sets of weights (model.weights_sha256)",)


def _tuning(entries: Sequence[RunEntry]) -> tuple[str, ...]:
    budgets = {entry.label: tuning_budget(entry)[0] for entry in entries}
    known = [budget for budget in budgets.values() if budget]
    if not known:
        return ()
    spent = [(budget.trials, budget.gradient_passes) for budget in known]
    is_equal = all(max(column) <= _EQUAL_BUDGETS * min(column) for column in zip(*spent, strict=True))
    if is_equal and len(known) == len(budgets):
        return ()
    by_budget: dict[str, list[str]] = defaultdict(list)
    for label, budget in budgets.items():
        by_budget[_spelled(budget)].append(label)
    return (f"tuning budgets differ: {_who_has_what(by_budget)}",)


def _spelled(budget: TuningBudget | None) -> str:
    if budget is None:
        return "none on record"
    trials = f"{budget.trials:,} {'trial' if budget.trials == 1 else 'trials'}"
    return f"{trials} of {budget.gradient_passes:,.0f} gradient passes in all"


def _budget(record: RunRecord) -> TuningBudget | None:
    tuning = record.recipe.get("tuning")
    if not isinstance(tuning, Mapping):
        return None
    trials, passes = number_in(tuning, "trials"), number_in(tuning, "gradient_passes")
    if trials is None or passes is None or trials < 0 or passes < 0:
        return None
    return TuningBudget(int(trials), passes)


def _environment(entries: Sequence[RunEntry]) -> list[str]:
    notes = []
    for key, name in _ENVIRONMENT.items():
        holders = _holders(entries, key)
        if len(holders) > 1:
            notes.append(f"the runs differ in {name}: {_who_has_what(holders)}")
    return notes


def _modified(entries: Sequence[RunEntry]) -> list[str]:
    """Code that no revision names cannot be had again."""
    labels = [
        entry.label
        for entry in entries
        if any(str(run.record.environment.get("git")).endswith("-dirty") for run in entry.completed)
    ]
    return [f"run from a modified checkout (environment.git): {listed(labels)}"] if labels else []


def _holders(entries: Sequence[RunEntry], key: str) -> dict[str, list[str]]:
    """Values of ``environment.key`` with the labels of the entries that ran so, where recorded."""
    holders: dict[str, list[str]] = defaultdict(list)
    for entry in entries:
        values: set[Any] = {run.record.environment.get(key) for run in entry.completed if _is_plain(run, key)}
        for value in sorted(map(shown, values)):
            holders[printable(value)[:_MOST_SHOWN]].append(entry.label)
    return holders


def _is_plain(run: Any, key: str) -> bool:
    return isinstance(run.record.environment.get(key), str | int | float)


def _who_has_what(holders: Mapping[str, Iterable[str]]) -> str:
    return "; ".join(f"{value} ({listed(list(labels))})" for value, labels in sorted(holders.items()))


def listed(words: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    named = ", ".join(words[:_MOST_NAMED])
    return named if len(words) <= _MOST_NAMED else f"{named} and {len(words) - _MOST_NAMED} more"
