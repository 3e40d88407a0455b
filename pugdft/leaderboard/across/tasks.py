"""What a task is, and which entries of several tasks are the same.

A task is a data set × model under one protocol: a group of the leaderboard. An entry is a method. Its options
may differ from task to task, as after a search in each of them, and so may its base optimizer: SGD for a
ResNet, AdamW for a ViT. Where a task has the method over several bases, each base is an entry of its own.
Where it has several entries of one method and base, these are variants: the fewest options that tell them
apart in every task name them and must be equal in all tasks (``sam[rho=0.1]``); only the others may differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from pugdft.errors import UserError, counted, printable
from pugdft.leaderboard.grouping import RunEntry, RunGroup, by_key, canonical, differing, entry_labels, shown
from pugdft.leaderboard.warnings import listed, tuning_budget

_MOST_OPTIONS = 10  # that are searched for the fewest that name variants; if these do not, all do
_MOST_PROTOCOLS = 3  # in a message

_BASE = "base.name"

_Flat = Mapping[str, Any]  # options under dotted keys


@dataclass(frozen=True)
class Contender:
    """One method over all tasks."""

    label: str
    runs: Mapping[int, RunEntry]  # by the task's position
    notes: tuple[str, ...] = ()


def task_name(group: RunGroup) -> str:
    return f"{group.dataset} × {group.model}"


def data_sets(tasks: Sequence[RunGroup]) -> list[int]:
    """Number the data sets of tasks: equal in name or content is one, however large its images are stored."""
    found: list[int] = []
    for place, task in enumerate(tasks):
        same = (
            number
            for number, other in zip(found, tasks, strict=False)
            if other.dataset == task.dataset or (task.data_sha256 and other.data_sha256 == task.data_sha256)
        )
        found.append(next(same, place))
    return found


def check_tasks(groups: Sequence[RunGroup]) -> list[RunGroup]:
    """Return the groups that have a completed run; refuse them unless they are two tasks or more.

    Raises:
        UserError: one data set × model has several protocols, or there are fewer than two tasks.
    """
    tasks = [group for group in groups if any(entry.completed for entry in group.entries)]
    for name, alike in by_key(tasks, task_name).items():
        if len(alike) > 1:
            protocols = "; ".join(f'"{group.protocol}"' for group in alike[:_MOST_PROTOCOLS])
            more = f" and {len(alike) - _MOST_PROTOCOLS} more" if len(alike) > _MOST_PROTOCOLS else ""
            raise UserError(
                f"--across: the records of {name} have {len(alike)} protocols: {protocols}{more}. A task has "
                "one. Give the paths of one of them, or leave the task out (--dataset, --model)"
            )
    if len(tasks) < 2:
        found = f"the records are of one task, {task_name(tasks[0])}" if tasks else "no run completed"
        raise UserError(
            f"--across: {found}; a verdict over tasks needs two or more (data set × model). Give the paths "
            "of more runs; without --across each task has a table of its own"
        )
    return tasks


def contenders(tasks: Sequence[RunGroup]) -> list[Contender]:
    """Find the entries that are the same over tasks; those without a completed run are left out.

    Raises:
        UserError: no two of them completed runs in the same two tasks.
    """
    completed = [
        (position, entry) for position, task in enumerate(tasks) for entry in task.entries if entry.completed
    ]
    parts: list[tuple[dict[str, Any], dict[int, RunEntry], set[str]]] = []
    for name, base, entries in _methods(completed):
        flats = differing([entry.spec for _, entry in entries])
        own_tasks = [position for position, _ in entries]
        keys = _naming_options(own_tasks, flats)
        places = range(len(entries))
        for alike in by_key(places, lambda place: _values(flats[place], keys)).values():  # noqa: B023
            spec: dict[str, Any] = {"name": name} | ({"base": {"name": base}} if base else {})
            for key in keys:
                if key in flats[alike[0]]:
                    _set(spec, key, flats[alike[0]][key])
            runs = {entries[place][0]: entries[place][1] for place in alike}
            parts.append((spec, runs, set(keys)))
    labels = entry_labels([spec for spec, *_ in parts])
    made = [
        Contender(label, runs, tuple(_option_notes(runs, keys, tasks)))
        for label, (_, runs, keys) in zip(labels, parts, strict=True)
    ]
    if not any(len(first.runs.keys() & second.runs.keys()) > 1 for first, second in combinations(made, 2)):
        where = (f"{each.label} in {listed(task_name(tasks[place]) for place in each.runs)}" for each in made)
        raise UserError(
            f"--across: the {len(tasks)} tasks share no two entries: two optimizers must have completed "
            f"runs in the same two tasks. There are: {'; '.join(list(where)[:6])}"
        )
    return sorted(made, key=lambda each: each.label)


def _methods(runs: Iterable[tuple[int, RunEntry]]) -> Iterable[tuple[str, str, list[tuple[int, RunEntry]]]]:
    """Yield each method, its base ("" if it has none or several), and its entries with their tasks."""
    for name, found in by_key(runs, lambda run: str(run[1].spec["name"])).items():
        bases = by_key(found, lambda run: _base(run[1].spec))
        by_task = by_key(found, lambda run: run[0]).values()
        if any(len({_base(entry.spec) for _, entry in of_one}) > 1 for of_one in by_task):
            yield from ((name, base, entries) for base, entries in bases.items())
        else:
            yield name, "" if len(bases) > 1 else next(iter(bases)), found


def _base(spec: Mapping[str, Any]) -> str:
    base = spec.get("base")
    return str(base["name"]) if isinstance(base, Mapping) else ""


def _values(flat: _Flat, keys: Iterable[str]) -> tuple[str | None, ...]:
    return tuple(canonical(flat[key]) if key in flat else None for key in keys)


def _naming_options(tasks: Sequence[int], flats: Sequence[_Flat]) -> tuple[str, ...]:
    """Choose the fewest options that tell the variants of every task apart; none where a task has one."""
    several = [places for places in by_key(range(len(tasks)), tasks.__getitem__).values() if len(places) > 1]
    if not several:
        return ()
    found_keys = dict.fromkeys(key for flat in flats for key in flat)
    # A part's name says more than one of its options; ``trigger: null`` beside a trigger says nothing.
    keys = [key for key in found_keys if f"{key}.name" not in found_keys]
    keys.sort(key=lambda key: not key.endswith(".name"))
    for size in range(1, len(keys)):
        found = [
            chosen
            for chosen in combinations(keys[:_MOST_OPTIONS], size)
            if all(len({_values(flats[place], chosen) for place in each}) == len(each) for each in several)
        ]
        if found:  # the one with the fewest values: a trigger rather than a radius tuned in each task
            return min(found, key=lambda chosen: len({_values(flat, chosen) for flat in flats}))
    return tuple(keys)


def _set(spec: dict[str, Any], key: str, value: Any) -> None:
    """Set an option under its dotted key."""
    *sections, last = key.split(".")
    for section in sections:
        inner = spec.get(section)
        spec[section] = spec = dict(inner) if isinstance(inner, Mapping) else {}
    spec[last] = value


OPTIONS_DIFFER = "its options differ from task to task"


def _option_notes(runs: Mapping[int, RunEntry], named: set[str], tasks: Sequence[RunGroup]) -> list[str]:
    """Say which options differ from task to task, and whether a search on held-out images chose them."""
    flats = differing([entry.spec for entry in runs.values()])
    keys = [key for key in dict.fromkeys(key for flat in flats for key in flat) if key not in named]
    if _BASE in keys:  # each base has options of its own: its name is enough
        keys = [_BASE, *(key for key in keys if not key.startswith("base."))]
    if not keys:
        return []
    said = []
    for key in keys:
        values = by_key(zip(runs, flats, strict=True), lambda pair: shown(pair[1].get(key, "default")))  # noqa: B023
        where = (
            f"{value} in {listed(task_name(tasks[place]) for place, _ in pairs)}"
            if len(pairs) < len(runs) / 2
            else f"{value} in {counted(len(pairs), 'task')}"
            for value, pairs in values.items()
        )
        said.append(f"{'base' if key == _BASE else key.removeprefix('base.')} is {listed(where)}")
    untuned = sum(tuning_budget(entry)[0] is None for entry in runs.values())
    how = "each chosen by a search on held-out images"
    if untuned:
        how = (
            f"{counted(untuned, 'task')} without a search on record: options that were chosen on test images "
            "flatter it"
        )
    return [printable(f"{OPTIONS_DIFFER} ({how}): {'; '.join(said)}")]
