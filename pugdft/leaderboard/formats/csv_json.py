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
from pugdft.leaderboard.verdicts import verdict
from pugdft.predictions import METRICS

SCHEMA = "pugdft.leaderboard/1"
# A spreadsheet takes a text that begins so for a formula, and runs it.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
_GROUP_FIELDS = ("dataset", "model", "protocol", "metric", "equal_passes", "equal_seconds")
_DESIGN = ("baseline", "num_pairs", "looks")


def as_json(groups: Sequence[Group]) -> str:
    """Write the groups as one JSON document.

    An entry without a completed run has null ranks; one that lacks the ranking metric has ranks behind the
    others and null means; a reported one has neither ranks nor records. Costs are means over counted seeds.
    """
    names = (*_GROUP_FIELDS[:4], "recipe", *_GROUP_FIELDS[4:], "notes")
    chosen = _columns_with_fields()
    content = [
        {name: getattr(group, name) for name in names}
        | {"verdict": verdict(group), **{name: getattr(group, name) for name in _DESIGN}}
        | {"entries": [dict(_fields(chosen, entry)) for entry in group.entries]}
        for group in groups
    ]
    return json.dumps(plain({"schema": SCHEMA, "groups": content}), indent=2, allow_nan=False) + "\n"


def as_csv(groups: Sequence[Group]) -> str:
    """Write one line for each entry of all groups; columns are named like the fields in JSON.

    Nested fields are joined by underscores (``top1_ci95_low``), records by a space, notes by a semicolon;
    ``spec``, ``failed`` and ``scores`` are JSON. A text that would run as a formula gets an apostrophe.
    """
    text, chosen = io.StringIO(), _columns_with_fields()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_GROUP_FIELDS, *dict(_fields(chosen, None, flat=True))])
    for group in groups:
        for entry in group.entries:
            facts = {name: getattr(group, name) for name in _GROUP_FIELDS}
            if entry.status == "reported":  # it must not seem to have run under the measured ones' protocol
                protocol = entry.source.protocol if entry.source else None
                facts |= {"protocol": protocol, "equal_passes": None, "equal_seconds": None}
            facts |= _fields(chosen, entry, flat=True)
            writer.writerow(map(csv_cell, facts.values()))
    return text.getvalue()


def _columns_with_fields() -> list[Column]:
    # The metrics keep their order, whichever ranks.
    return [column for column in columns(next(iter(METRICS))) if column.field]


def _fields(chosen: Sequence[Column], entry: Entry | None, flat: bool = False) -> Iterator[tuple[str, Any]]:
    """Names and values of columns, for JSON or flat for CSV; without an entry the names alone count."""
    for column in chosen:
        value = column.get(entry) if entry else None
        if column.parts is None or not (flat or column.parts is Summary):
            yield column.field, "; ".join(value) if flat and column.field == "notes" and value else value
            continue
        for part in fields(column.parts):
            name, found = f"{column.field}_{part.name}", getattr(value, part.name, None)
            if flat and part.name == "ci95":
                yield from zip((f"{name}_low", f"{name}_high"), found or (None, None), strict=True)
            else:
                yield name, found


def plain(value: Any) -> Any:
    """Reduce a value to what JSON has: numbers are finite, keys are text, anything foreign is its text."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)


def csv_cell(value: Any) -> str:
    value = plain(value)
    if value is None:
        return ""
    if isinstance(value, bool | dict):
        return json.dumps(value)
    if isinstance(value, list):
        value = " ".join(map(str, value))
    if not isinstance(value, str):
        return repr(value)
    text = printable(value)
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text
