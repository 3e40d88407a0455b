"""Groups for programs: JSON by the contract ``pugdft.leaderboard/1``, and the same fields as flat CSV.

Fractions stay fractions and nothing is rounded. What is not defined is null or an empty cell, never NaN.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pugdft.errors import printable
from pugdft.leaderboard.entry import HIGHER_IS_BETTER, Entry, Group

SCHEMA = "pugdft.leaderboard/1"

# A spreadsheet takes a text that begins so for a formula, and runs it.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def as_json(groups: Sequence[Group]) -> str:
    """The groups as one JSON document.

    An entry without a completed run has null ranks; one with a completed run that lacks the ranking metric
    has ranks behind the others and null means; a reported one has neither ranks nor records. Costs are
    means over the counted seeds.
    """
    content = {"schema": SCHEMA, "groups": [_group_fields(group) for group in groups]}
    return json.dumps(_plain(content), indent=2, allow_nan=False) + "\n"


def as_csv(groups: Sequence[Group]) -> str:
    """One line an entry, of all groups; a column is called like the field in JSON that it comes from.

    Nested fields are joined by underscores (``top1_ci95_low``, ``source_arxiv``), several records or notes
    by a space or a semicolon; ``spec``, ``failed`` and ``scores`` are JSON. A text that a spreadsheet would
    run as a formula begins with an apostrophe.
    """
    rows = [row for group in groups for row in _csv_rows(group)]
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([_csv_cell(row.get(name)) for name in names] for row in rows)
    return text.getvalue()


def _group_fields(group: Group) -> dict[str, Any]:
    return {
        "dataset": group.dataset,
        "model": group.model,
        "protocol": group.protocol,
        "metric": group.metric,
        "recipe": group.recipe,
        "equal_passes": group.equal_passes,
        "equal_seconds": group.equal_seconds,
        "notes": group.notes,
        "entries": [_entry_fields(entry) for entry in group.entries],
    }


def _entry_fields(entry: Entry) -> dict[str, Any]:
    tuning, versus, source = entry.tuning, entry.versus_best, entry.source
    return {
        "optimizer": entry.label,
        "status": entry.status,
        "rank_low": entry.rank_low,
        "rank_high": entry.rank_high,
        # A paper may not say how many; a measured entry always knows.
        "num_seeds": entry.num_seeds if entry.num_seeds or entry.status == "measured" else None,
        **_summaries(entry),
        "best_test_top1_picked_on_test": entry.best_test_top1,
        "scores": {str(seed): score for seed, score in entry.scores.items()},
        "gradient_passes": entry.gradient_passes,
        "train_seconds": entry.train_seconds,
        "images_per_second": entry.images_per_second,
        "peak_memory_bytes": entry.peak_memory_bytes,
        "top1_at_equal_passes": entry.top1_at_equal_passes,
        "top1_at_equal_seconds": entry.top1_at_equal_seconds,
        "tuning": tuning and {"trials": tuning.trials, "gradient_passes": tuning.gradient_passes},
        "mean_perturbation_norm": entry.mean_perturbation_norm,
        "mean_gradient_cosine": entry.mean_gradient_cosine,
        "versus_best": versus
        and {
            "difference": versus.difference,
            "p_value": versus.p_value,
            "separated": versus.separated,
            "more_seeds": versus.more_seeds,
        },
        "num_failed": entry.num_failed,
        "failed": entry.unfinished,
        "records": entry.records,
        "failed_records": entry.unfinished_records,
        "spec": entry.spec,
        "source": source
        and {
            "title": source.title,
            "arxiv": source.arxiv,
            "year": source.year,
            "table": source.table,
            "protocol": source.protocol,
            "caveat": source.caveat,
        },
        "notes": entry.notes,
    }


def _summaries(entry: Entry) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for metric in HIGHER_IS_BETTER:
        figures = getattr(entry, metric)
        for part in ("mean", "std", "ci95"):
            fields[f"{metric}_{part}"] = getattr(figures, part) if figures else None
    return fields


def _plain(value: Any) -> Any:
    """Only what JSON has: numbers are finite, keys are text, anything foreign is its text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)


def _csv_rows(group: Group) -> Iterator[dict[str, Any]]:
    fields = _plain(_group_fields(group))
    shared = ("dataset", "model", "protocol", "metric", "equal_passes", "equal_seconds")
    for entry in fields["entries"]:
        row = {key: fields[key] for key in shared}
        if entry["status"] == "reported":
            # A row of its own must not seem to have run under the measured ones' protocol.
            row |= {
                "protocol": (entry["source"] or {}).get("protocol"),
                "equal_passes": None,
                "equal_seconds": None,
            }
        for name, value in entry.items():
            if name.endswith("_ci95"):
                low, high = value or (None, None)
                row |= {f"{name}_low": low, f"{name}_high": high}
            elif name in _NESTED:
                row |= {f"{name}_{key}": (value or {}).get(key) for key in _NESTED[name]}
            elif isinstance(value, dict):
                row[name] = json.dumps(value)
            elif isinstance(value, list):
                row[name] = ("; " if name == "notes" else " ").join(map(str, value))
            else:
                row[name] = value
        yield row


_NESTED = {
    "tuning": ("trials", "gradient_passes"),
    "versus_best": ("difference", "p_value", "separated", "more_seeds"),
    "source": ("title", "arxiv", "year", "table", "protocol", "caveat"),
}


def _csv_cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        return repr(value)
    text = printable(value)
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text
