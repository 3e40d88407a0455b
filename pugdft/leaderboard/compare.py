"""Two optimizers against each other: their difference, how sure it is, and what the data cannot say."""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np

from pugdft.errors import UserError, close_match, counted, printable
from pugdft.leaderboard.columns import NOTHING
from pugdft.leaderboard.grouping import (
    RunEntry,
    RunGroup,
    canonical,
    differing,
    entry_labels,
    group_runs,
    shown,
)
from pugdft.leaderboard.load import collect
from pugdft.leaderboard.power import detectable_difference, needs_more_images, seeds_needed
from pugdft.leaderboard.ranking import Measured, chosen_groups, measure, num_test_images, without_lost
from pugdft.leaderboard.stats import LEVEL, Comparison, compare, mean
from pugdft.leaderboard.warnings import group_doubts, listed, unpaired
from pugdft.predictions import METRICS

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


# A run that somebody stopped says nothing of its optimizer.
_LOST = ("diverged", "failed", "oom")


@dataclass(frozen=True)
class SeedRow:
    """One seed's pair of networks.

    Attributes:
        only_first: images that only A's network gets right; None without stored predictions.
        p_value: McNemar's exact test, two-sided.
    """

    seed: int
    first: float
    second: float
    only_first: int | None = None
    only_second: int | None = None
    p_value: float | None = None


@dataclass(frozen=True)
class Gate:
    """Whether A is not worse than B by ``margin`` or more.

    Attributes:
        bound: by which A is better than B at least (one-sided, 95 %); None if that cannot be told.
        reason: why it does not hold.
        seeds_needed: to show it four times in five if both are equal; None if no number is known to.
    """

    margin: float
    bound: float | None
    holds: bool
    reason: str | None
    seeds_needed: int | None = None


@dataclass(frozen=True)
class Report:
    """A minus B, in the metric's own unit.

    Attributes:
        comparison: of the means over seeds.
        rows: the common seeds, where equal seeds are pairs.
        with_images: whether the interval counts the test images as drawn.
        more_seeds: about how many more each would tell if the difference is real; None if it is told, or if
            no number would.
        detectable: the true difference that as many seeds find four times in five; None for one.
        notes: what the data cannot say, and doubts.
    """

    labels: tuple[str, str]
    sides: tuple[Side, Side]
    metric: str
    means: tuple[float, float]
    comparison: Comparison
    rows: tuple[SeedRow, ...]
    with_images: bool
    num_images: int | None
    more_seeds: int | None
    detectable: float | None
    gate: Gate | None
    notes: tuple[str, ...]


def compare_sides(first: Side, second: Side, metric: str = "top1", margin: float | None = None) -> Report:
    """Everything that can be said of the difference between two optimizers.

    Args:
        first: A.
        second: B.
        metric: of the last epoch on the test split.
        margin: what A may be worse at most, in the metric's unit; for the gate.

    Raises:
        UserError: a side has no completed run, or one without a valid metric; the margin is no size.
    """
    if margin is not None and not 0 <= margin < math.inf:
        raise UserError(f"--margin {margin}: must be a number of at least 0, such as 0.002")
    if {run.record.id for run in first.runs.completed} & {run.record.id for run in second.runs.completed}:
        raise UserError("A and B share runs: two different optimizers are to be compared")
    first, second = (replace(side, runs=without_lost(side.runs, metric)) for side in (first, second))
    sides = (first, second)
    measured = measure([side.runs for side in sides], metric)
    for name, each in zip("AB", measured, strict=True):
        if not each.runs.completed:
            raise UserError(f"{name} ({each.runs.label}) has no completed run")
        if without := each.without(metric):
            seeds = ", ".join(map(str, without))
            raise UserError(
                f"{name} ({each.runs.label}) has no valid {METRICS[metric].name} for seed {seeds}"
            )
    runs = [replace(side.runs, label=name) for side, name in zip(sides, "AB", strict=True)]
    conflicts, doubts = unpaired(runs)
    one, two = (each.sample(metric) for each in measured)
    size = num_test_images(measured) if METRICS[metric].is_share_of_images else None
    comparison = compare(one, two, size, unpaired=conflicts is not None)
    with_images = one.images is not None and two.images is not None
    more_seeds, detectable = _planning(comparison)
    return Report(
        labels=_labels(first, second),
        sides=sides,
        metric=metric,
        means=(mean(one.scores.values()), mean(two.scores.values())),
        comparison=comparison,
        rows=_rows(measured, metric) if comparison.paired else (),
        with_images=with_images,
        num_images=num_test_images(measured),
        more_seeds=more_seeds,
        detectable=detectable,
        gate=None if margin is None else _gate(comparison, metric, margin, first.runs),
        notes=(
            *_limits(comparison, measured, metric, with_images),
            *doubts,
            *group_doubts(runs),
            *(
                f"{name}: {note}"
                for name, each in zip("AB", measured, strict=True)
                for note in (*_unfinished(each.runs), *each.runs.notes, *each.notes)
            ),
        ),
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value: under equal accuracy each image of either kind falls on either side evenly."""
    from scipy.special import bdtr

    total = only_first + only_second
    return min(1.0, 2 * float(bdtr(min(only_first, only_second), total, 0.5))) if total else 1.0


def _labels(first: Side, second: Side) -> tuple[str, str]:
    """Told apart as in a table of both; two sets of runs of one optimizer have one label."""
    if first.runs.spec == second.runs.spec:
        return first.runs.label, second.runs.label
    one, two = entry_labels([first.runs.spec, second.runs.spec])
    return one, two


def _rows(measured: list[Measured], metric: str) -> tuple[SeedRow, ...]:
    one, two = (each.scores(metric) for each in measured)
    rows = []
    for seed in sorted(one.keys() & two.keys()):
        row = SeedRow(seed, one[seed], two[seed])
        images: list[Mapping[int, np.ndarray]] = [each.images for each in measured if each.images]
        if len(images) == 2 and images[0][seed].dtype == bool:
            left, right = (each[seed] for each in images)
            only_first, only_second = int((left & ~right).sum()), int((right & ~left).sum())
            row = replace(
                row,
                only_first=only_first,
                only_second=only_second,
                p_value=mcnemar(only_first, only_second),
            )
        rows.append(row)
    return tuple(rows)


def _planning(comparison: Comparison) -> tuple[int | None, float | None]:
    if not comparison.testable:
        return None, None
    # However alike a few seeds came out, finite images make them spread.
    least = float(comparison.spread.residual) * comparison.num_seeds
    spread, images = math.sqrt(max(comparison.seed_variance, least)), float(comparison.spread.images)
    detectable = detectable_difference(comparison.num_seeds, spread, image_variance=images)
    if comparison.p_value <= LEVEL:
        return None, detectable
    needed = seeds_needed(comparison.difference, spread, image_variance=images)
    return None if needed is None else max(1, needed - comparison.num_seeds), detectable


def _gate(comparison: Comparison, metric: str, margin: float, first: RunEntry) -> Gate:
    """Non-inferiority: the one-sided 95 % bound, which is the end of a two-sided 90 % interval.

    Where seeds of A came to nothing the bound would speak of those that went well.
    """
    lost = {status: seeds for status, seeds in first.lost_seeds().items() if status in _LOST}
    if lost:
        return Gate(margin, None, False, f"A has seeds without a completed run: {_by_status(lost)}")
    interval = comparison.interval(2 * LEVEL)
    if interval is None:
        return Gate(margin, None, False, _untestable(comparison))
    bound = interval[0] if METRICS[metric].higher_is_better else -interval[1]
    if bound > -margin:
        return Gate(margin, bound, True, None)
    needed = seeds_needed(
        margin,
        math.sqrt(comparison.seed_variance),
        image_variance=float(comparison.spread.images),
        level=2 * LEVEL,
    )
    return Gate(margin, bound, False, "A may be worse than B by the margin or more", needed)


def _unfinished(runs: RunEntry) -> list[str]:
    """Every run that did not complete, those of seeds that ran again included."""
    by_status: dict[str, list[int]] = defaultdict(list)
    for record in runs.unfinished:
        by_status[record.status].append(record.seed)
    return [f"not in its mean: {_by_status(by_status)}"] if by_status else []


def _by_status(seeds: Mapping[str, list[int]]) -> str:
    """``2 diverged (seed 3, 4), 1 oom (seed 0)``."""
    return ", ".join(
        f"{len(each)} {status} (seed {listed([str(seed) for seed in sorted(each)])})"
        for status, each in sorted(seeds.items())
    )


def _untestable(comparison: Comparison) -> str:
    if comparison.num_seeds < 2:
        kind = "common seed" if comparison.paired else "seed on one side"
        return f"there is one {kind}, and nothing tells how much another would differ"
    return "nothing spreads, so there is nothing to hold the difference against"


def _limits(comparison: Comparison, measured: list[Measured], metric: str, with_images: bool) -> list[str]:
    """What the data cannot say."""
    limits = []
    if not comparison.testable:
        limits.append(f"no claim about the optimizers: {_untestable(comparison)}")
    if not comparison.paired:
        limits.append("no seed is a pair, so the runs are compared as unpaired, which takes more seeds")
    elif any(len(each.runs.completed) > comparison.num_seeds for each in measured):
        common = counted(comparison.num_seeds, "common seed")
        limits.append(f"the difference is over {common}, the means are over all")
    if METRICS[metric].per_image is None:
        limits.append(f"{METRICS[metric].name} is no mean over images: this speaks of these test images only")
    elif not with_images:
        limits.append("without stored predictions on both sides, this speaks of these test images only")
    images = float(comparison.spread.images)
    if (
        comparison.testable
        and comparison.difference
        and comparison.p_value > LEVEL
        and needs_more_images(comparison.difference, image_variance=images)
    ):
        limits.append("so small a difference would need more test images, whatever the number of seeds")
    return limits


SCHEMA = "pugdft.compare/1"

_MCNEMAR = (
    "McNemar's test speaks of the two trained networks of a seed, and not of the optimizers: another seed "
    "may turn it round."
)

_WIDTH = 110


def as_text(report: Report) -> str:
    """Plain text: what is said of the optimizers, the seeds one by one, what the data cannot say."""
    group, comparison = report.sides[0].group, report.comparison
    lines = [f"{group.dataset} × {group.model}", group.protocol]
    for letter, label, value, side in zip("AB", report.labels, report.means, report.sides, strict=True):
        seeds = ", ".join(str(run.record.seed) for run in side.runs.completed)
        lines.append(
            f"{letter}  {label}: {METRICS[report.metric].name} {_in_units(value, report)}, seeds {seeds}"
        )
    lines += ["", f"A − B  {_difference(comparison.difference, report)}{_certainty(report)}"]
    if report.more_seeds is not None:
        seeds = "seed" if report.more_seeds == 1 else "seeds"
        lines.append(
            f"undecided: about {report.more_seeds:,} more {seeds} each would tell if the difference is real"
        )
    if report.detectable is not None:
        lines.append(
            f"{comparison.num_seeds} seeds find a true difference of {_size(report.detectable, report)} "
            "four times in five"
        )
    if report.gate:
        lines += _wrapped(_gate_line(report.gate, report))
    if report.rows:
        lines += ["", *_table(report)]
    if any(row.p_value is not None for row in report.rows):
        lines += _wrapped(_MCNEMAR)
    if report.notes:
        lines += ["", *(line for note in report.notes for line in _wrapped(f"{note}."))]
    # Labels and notes were made printable where they were made; this is the last door.
    return "\n".join("".join(each for each in line if each.isprintable()) for line in lines)


def as_json(report: Report) -> str:
    """The same as one JSON document; fractions stay fractions."""
    comparison, gate = report.comparison, report.gate
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "dataset": report.sides[0].group.dataset,
        "model": report.sides[0].group.model,
        "protocol": report.sides[0].group.protocol,
        "metric": report.metric,
        **{
            letter: {
                "optimizer": label,
                "mean": value,
                "records": [run.record.id for run in side.runs.completed],
            }
            for letter, label, value, side in zip(
                "ab", report.labels, report.means, report.sides, strict=True
            )
        },
        "difference": comparison.difference,
        "ci95": comparison.interval(),
        "p_value": comparison.p_value if comparison.testable else None,
        "num_seeds": comparison.num_seeds,
        "is_paired": comparison.paired,
        "num_images": report.num_images if report.with_images else None,
        "more_seeds": report.more_seeds,
        "detectable_difference": report.detectable,
        "seeds": [vars(row) for row in report.rows],
        "gate": vars(gate) if gate else None,
        "notes": report.notes,
    }
    return json.dumps(content, indent=2, allow_nan=False)


def _wrapped(text: str) -> list[str]:
    return wrap(text, _WIDTH, break_on_hyphens=False, break_long_words=False)


def _in_units(value: float, report: Report) -> str:
    metric = METRICS[report.metric]
    return f"{metric.scale * value:.{metric.digits}f} {metric.unit}".rstrip()


def _size(value: float, report: Report) -> str:
    metric = METRICS[report.metric]
    return f"{metric.scale * value:.{metric.digits}f}{' points' if metric.unit else ''}"


def _difference(value: float, report: Report) -> str:
    return ("+" if value >= 0 else "−") + _size(abs(value), report)


def _certainty(report: Report) -> str:
    comparison = report.comparison
    interval = comparison.interval()
    if interval is None:
        return ""
    low, high = (_difference(bound, report).removesuffix(" points") for bound in interval)
    seeds = (
        f"{comparison.num_seeds} {'common seeds' if comparison.paired else 'seeds each or more, unpaired'}"
    )
    images = f" and {report.num_images:,} test images" if report.with_images and report.num_images else ""
    return f", 95 % interval {low} to {high}, p = {comparison.p_value:.2g} ({seeds}{images})"


def _gate_line(gate: Gate, report: Report) -> str:
    margin = _size(gate.margin, report)
    claim = f"A is worse than B by less than {margin}, if at all"
    if gate.bound is None:
        return f"not shown that {claim}: {gate.reason}"
    bound = f"A − B is at least {_difference(gate.bound, report)}"
    if not METRICS[report.metric].higher_is_better:
        bound = f"A − B is at most {_difference(-gate.bound, report)}"
    if gate.holds:
        return f"holds: {claim} ({bound}, one-sided 95 %)"
    needed = (
        f"; of two equal ones about {gate.seeds_needed:,} seeds would show it" if gate.seeds_needed else ""
    )
    return f"not shown that {claim} ({bound}, one-sided 95 %){needed}"


def _table(report: Report) -> list[str]:
    """A row for each seed, columns to the right."""
    headings = ("seed", "A", "B", "A − B", "only A right", "only B right", "McNemar's p")
    rows = [headings, *(_cells(row, report) for row in report.rows)]
    if all(row.p_value is None for row in report.rows):
        rows = [row[:4] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def _cells(row: SeedRow, report: Report) -> tuple[str, ...]:
    counts = (NOTHING if count is None else f"{count:,}" for count in (row.only_first, row.only_second))
    return (
        str(row.seed),
        _in_units(row.first, report),
        _in_units(row.second, report),
        _difference(row.first - row.second, report),
        *counts,
        NOTHING if row.p_value is None else f"{row.p_value:.2g}",
    )
