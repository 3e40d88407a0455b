"""Groups for programs: JSON by the contract ``pugdft.leaderboard/1``, and the same fields as flat CSV.

Fractions stay fractions and nothing is rounded. What is not defined is null or an empty cell, never NaN.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from typing import Any

from pugdft.errors import printable
from pugdft.leaderboard.columns import Column, columns
from pugdft.leaderboard.entry import Entry, Group, Summary
from pugdft.predictions import METRICS

SCHEMA = "pugdft.leaderboard/1"

# A spreadsheet takes a text that begins so for a formula, and runs it.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")

# The metrics keep their order, whichever ranks.
_GROUP_FIELDS = ("dataset", "model", "protocol", "metric", "equal_passes", "equal_seconds")


def _columns_with_fields() -> list[Column]:
    """The columns that programs read; their order does not depend on the metric that ranks."""
    return [column for column in columns(next(iter(METRICS))) if column.field]


def as_json(groups: Sequence[Group]) -> str:
    """Write the groups as one JSON document.

    An entry without a completed run has null ranks; one with a completed run that lacks the ranking metric
    has ranks behind the others and null means; a reported one has neither ranks nor records. Costs are
    means over the counted seeds.
    """
    content = {"schema": SCHEMA, "groups": [_group(group) for group in groups]}
    return json.dumps(_plain(content), indent=2, allow_nan=False) + "\n"


def as_csv(groups: Sequence[Group]) -> str:
    """Write one line for each entry of all groups; columns are named like the fields in JSON.

    Nested fields are joined by underscores (``top1_ci95_low``, ``source_arxiv``), several records or notes
    by a space or a semicolon; ``spec``, ``failed`` and ``scores`` are JSON. A text that a spreadsheet would
    run as a formula begins with an apostrophe.
    """
    text, with_fields = io.StringIO(), _columns_with_fields()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [*_GROUP_FIELDS, *(name for column in with_fields for name, _ in _fields(column, None, flat=True))]
    )
    for group in groups:
        for entry in group.entries:
            values = [value for column in with_fields for _, value in _fields(column, entry, flat=True)]
            writer.writerow(map(_csv_cell, (*_csv_group(group, entry), *values)))
    return text.getvalue()


def _group(group: Group) -> dict[str, Any]:
    names = ("dataset", "model", "protocol", "metric", "recipe", "equal_passes", "equal_seconds", "notes")
    with_fields = _columns_with_fields()
    entries = [
        dict(field for column in with_fields for field in _fields(column, entry)) for entry in group.entries
    ]
    return {**{name: getattr(group, name) for name in names}, "entries": entries}


def _fields(column: Column, entry: Entry | None, *, flat: bool = False) -> Iterator[tuple[str, Any]]:
    """Names and values of a column, for JSON or flat for CSV; without an entry the names alone count."""
    value = column.get(entry) if entry else None
    if flat and column.field == "notes" and value:
        value = "; ".join(value)
    if column.parts is None or not (flat or column.parts is Summary):
        yield column.field, value
        return
    for part in fields(column.parts):
        name, found = f"{column.field}_{part.name}", getattr(value, part.name, None)
        if flat and part.name == "ci95":
            yield from zip((f"{name}_low", f"{name}_high"), found or (None, None), strict=True)
        else:
            yield name, found


def _csv_group(group: Group, entry: Entry) -> list[Any]:
    """A group's fields; a reported row must not seem to have run under the measured ones' protocol."""
    own = {"protocol": entry.source and entry.source.protocol, "equal_passes": None, "equal_seconds": None}
    return [
        own[name] if entry.status == "reported" and name in own else getattr(group, name)
        for name in _GROUP_FIELDS
    ]


def _plain(value: Any) -> Any:
    """Reduce a value to what JSON has: numbers are finite, keys are text, anything foreign is its text."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)


def _csv_cell(value: Any) -> str:
    value = _plain(value)
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return json.dumps(value)
    if isinstance(value, list):
        value = " ".join(map(str, value))
    if not isinstance(value, str):
        return repr(value)
    text = printable(value)
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text
