"""A comparison of two optimizers for people, and as JSON for programs."""

from __future__ import annotations

import json
from textwrap import wrap
from typing import Any

from pugdft.leaderboard.columns import METRICS, NOTHING
from pugdft.leaderboard.compare import Gate, Report, SeedRow
from pugdft.leaderboard.entry import HIGHER_IS_BETTER

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
        lines.append(f"{letter}  {label}: {METRICS[report.metric][0]} {_value(value, report)}, seeds {seeds}")
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
        lines += _wrapped(_gate(report.gate, report))
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


def _value(value: float, report: Report) -> str:
    _, unit, factor, digits = METRICS[report.metric]
    return f"{factor * value:.{digits}f}{' ' + unit if unit else ''}"


def _size(value: float, report: Report) -> str:
    _, unit, factor, digits = METRICS[report.metric]
    return f"{factor * value:.{digits}f}{' points' if unit else ''}"


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


def _gate(gate: Gate, report: Report) -> str:
    margin = _size(gate.margin, report)
    claim = f"A is worse than B by less than {margin}, if at all"
    if gate.bound is None:
        return f"not shown that {claim}: {gate.reason}"
    bound = f"A − B is at least {_difference(gate.bound, report)}"
    if not HIGHER_IS_BETTER[report.metric]:
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
        _value(row.first, report),
        _value(row.second, report),
        _difference(row.first - row.second, report),
        *counts,
        NOTHING if row.p_value is None else f"{row.p_value:.2g}",
    )
