"""What the two words of ``pugdft compare`` mean: record files, folders of runs, or an optimizer's label."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from pugdft.errors import UserError, close_match
from pugdft.leaderboard.collect import collect
from pugdft.leaderboard.grouping import RunEntry, RunGroup, group_runs
from pugdft.leaderboard.labels import canonical, differing, shown
from pugdft.leaderboard.printable import printable
from pugdft.leaderboard.ranking import chosen_groups

_MOST_NAMED = 20


@dataclass(frozen=True)
class Side:
    """One optimizer's runs and the group that they stand in."""

    runs: RunEntry
    group: RunGroup


def find_sides(
    first: str,
    second: str,
    records: Sequence[Path],
    dataset: str | None,
    model: str | None,
    report: Callable[[str], None],
) -> tuple[Side, Side]:
    """The two sides, of one group.

    Args:
        first: path of a record or of a folder with the runs of one optimizer; else a label.
        second: likewise.
        records: where labels are looked up.
        dataset: the one that is meant where a label stands in several groups.
        model: likewise.
        report: told what was left out when records were read.

    Raises:
        UserError: a name that is unknown or means several things; runs of different protocols.
    """
    ranked: list[RunGroup] | None = None
    candidates = []
    for text in (first, second):
        if os.path.exists(text):
            candidates.append([_in_path(text, _groups([Path(text)], dataset, model, report))])
            continue
        if ranked is None:
            _check_lookup(text, records)
            ranked = _groups(records, dataset, model, report)
        candidates.append(_labelled(text, ranked, records))
    comparable = [pair for pair in product(*candidates) if not _differences(*pair)]
    if len(comparable) == 1:
        one, two = comparable[0]
        return one, two
    if comparable:
        groups = "; ".join(_title(one.group) for one, _ in comparable[:_MOST_NAMED])
        raise UserError(
            f"both are in several groups: {groups}. Choose one with --dataset and --model, or give folders."
        )
    differences = "; ".join(_differences(candidates[0][0], candidates[1][0]))
    raise UserError(
        f"A ({printable(first)}) and B ({printable(second)}) did not run under one protocol, so nothing can "
        f"be said of the optimizers: {differences}"
    )


def _groups(
    paths: Sequence[Path], dataset: str | None, model: str | None, report: Callable[[str], None]
) -> list[RunGroup]:
    collected = collect(paths)
    for message in (*collected.left_out, *collected.notes):
        report(message)
    return chosen_groups(group_runs(collected.records), dataset, model)


def _in_path(text: str, groups: Sequence[RunGroup]) -> Side:
    sides = [Side(entry, group) for group in groups for entry in group.entries]
    if len(sides) == 1:
        return sides[0]
    if not sides:
        raise UserError(f"{printable(text)}: no run on a test split")
    found = "; ".join(f"{side.runs.label} on {_title(side.group)}" for side in sides[:_MOST_NAMED])
    raise UserError(
        f"{printable(text)}: holds runs of several optimizers or protocols: {found}. Give a folder with one "
        "of them, or its label with --records."
    )


def _check_lookup(text: str, records: Sequence[Path]) -> None:
    missing = [str(path) for path in records if not os.path.exists(path)]
    if missing:
        raise UserError(
            f'"{printable(text)}": no such file or folder; nor can it be looked up as an optimizer: '
            f"{printable(missing[0])} does not exist (--records)"
        )


def _labelled(text: str, groups: Sequence[RunGroup], records: Sequence[Path]) -> list[Side]:
    sides = [Side(entry, group) for group in groups for entry in group.entries if entry.label == text]
    if sides:
        return sides
    known = sorted({entry.label for group in groups for entry in group.entries})
    places = ", ".join(map(str, records))
    exists = f"Known: {', '.join(known[:_MOST_NAMED])}" if known else "There are none"
    raise UserError(
        f'"{printable(text)}": no such file or folder, and no optimizer of that label in '
        f"{printable(places)}. {exists}.{close_match(text, known)}"
    )


def _differences(one: Side, two: Side) -> list[str]:
    """Where the protocols are not one, in words."""
    facts = []
    for side in (one, two):
        group = side.group
        known = {"data.name": group.dataset, "model.name": group.model, **group.recipe}
        facts.append(known if group.data_sha256 is None else {**known, "data.sha256": group.data_sha256})
    if not all("data.sha256" in each for each in facts):
        facts = [{key: value for key, value in each.items() if key != "data.sha256"} for each in facts]
    if canonical(facts[0]) == canonical(facts[1]):
        return []
    left, right = differing(facts)
    return [
        printable(f"{key} is {_value(left, key)} for A and {_value(right, key)} for B")
        for key in dict.fromkeys([*left, *right])
    ]


def _value(facts: dict[str, object], key: str) -> str:
    return shown(facts[key])[:80] if key in facts else "absent"


def _title(group: RunGroup) -> str:
    return f"{group.dataset} × {group.model} ({group.protocol})"
