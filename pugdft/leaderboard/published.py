"""Read figures that papers printed, and list them below what was measured here, never ranked.

They come from ``leaderboard/reported/*.yaml``: ``sources`` (key to title, arXiv number, year) and ``rows``.
A row needs source, table, data set, model, optimizer and top-1; what else it says becomes its protocol.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictStr, ValidationError

from pugdft.config import yaml
from pugdft.errors import ConfigIssue, FaultsError, printable, unknown
from pugdft.leaderboard.entry import Entry, Group, PublishedSource, Summary
from pugdft.leaderboard.grouping import chosen, shown

NOTHING_MEASURED = "reported by others; nothing measured here"

_BEST_EPOCH = "best test epoch"

Fraction = Annotated[float, Field(ge=0, le=1)]


class _Publication(BaseModel):
    model_config = ConfigDict(extra="forbid")

    title: StrictStr
    arxiv: StrictStr | None = None
    year: int | None = None


class ReportedRow(BaseModel):
    """One printed figure. Keys that are not named here are conditions, and go into the protocol."""

    model_config = ConfigDict(extra="allow")

    source: StrictStr
    table: StrictStr
    dataset: StrictStr
    model: StrictStr
    optimizer: StrictStr
    top1: Fraction
    std: Fraction | None = None
    num_seeds: Annotated[int, Field(ge=1)] | None = None
    caveat: StrictStr | None = None
    selection: StrictStr | None = None
    final_top1: Fraction | None = None

    def conditions(self) -> dict[str, Any]:
        """What the protocol is made of."""
        named = {"selection": self.selection, "final_top1": self.final_top1}
        return (self.model_extra or {}) | {key: value for key, value in named.items() if value is not None}


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    sources: dict[str, _Publication]
    rows: list[ReportedRow]


def reported_folder() -> Path:
    """Where the files are: inside an installed package, or at the top of a checkout."""
    package = Path(__file__).parent.parent
    installed = package / "bundled_reported"
    return installed if installed.is_dir() else package.parent / "leaderboard" / "reported"


def read_reported(path: Path) -> list[tuple[ReportedRow, Entry]]:
    """The rows of one file, each with the entry it becomes.

    Raises:
        UserError: not readable, or not of the schema; every fault is named.
    """
    try:
        file = _File.model_validate(yaml.parse(yaml.read_text(path), str(path)))
    except ValidationError as error:
        faults = [ConfigIssue(".".join(map(str, each["loc"])), each["msg"]) for each in error.errors()]
        raise FaultsError(str(path), faults) from None
    faults = []
    for number, row in enumerate(file.rows):
        if row.source not in file.sources:
            faults.append(ConfigIssue(f"rows.{number}.source", unknown("source", row.source, file.sources)))
        faults += [
            ConfigIssue(f"rows.{number}.{key}", "must be a word, a number, true or false")
            for key, value in (row.model_extra or {}).items()
            if not isinstance(value, str | int | float | bool)
        ]
    if faults:
        raise FaultsError(str(path), faults)
    return [(row, _entry(row, file.sources[row.source])) for row in file.rows]


@lru_cache
def reported_rows(folder: Path) -> tuple[tuple[ReportedRow, Entry], ...]:
    """The rows of all files in a folder."""
    return tuple(pair for path in sorted(folder.glob("*.yaml")) for pair in read_reported(path))


def select_rows(
    rows: Iterable[tuple[ReportedRow, Entry]], groups: Sequence[Group], dataset: str | None, model: str | None
) -> list[tuple[ReportedRow, Entry]]:
    """The rows under the filters: of the measured groups' names, or of their own where nothing was measured.

    Raises:
        UserError: nothing was measured, and a filter fits none of the rows, or several names.
    """
    kept = list(rows)
    measured = {
        ("data set", "dataset", dataset): {group.dataset for group in groups},
        ("model", "model", model): {architecture(group.model) for group in groups},
    }
    for (kind, key, wanted), names in measured.items():
        if wanted is not None:
            of_rows = (getattr(row, key) for row, _ in kept)
            fitting = names or {chosen(kind, wanted, of_rows, "reported row")}
            kept = [pair for pair in kept if getattr(pair[0], key) in fitting]
    return kept


def with_reported(groups: Iterable[Group], rows: Iterable[tuple[ReportedRow, Entry]]) -> list[Group]:
    """The groups with the reported rows of their data set and architecture below the measured entries.

    Where several groups fit, a row stands once, in the one whose protocol is nearest; where none does,
    rows of one data set and model make a group of their own, behind the measured ones.
    """
    measured = list(groups)
    added: dict[int, list[tuple[ReportedRow, Entry]]] = defaultdict(list)
    alone: dict[tuple[str, str], list[tuple[ReportedRow, Entry]]] = defaultdict(list)
    for row, entry in rows:
        fitting = [
            number
            for number, group in enumerate(measured)
            if (group.dataset, architecture(group.model)) == (row.dataset, row.model)
        ]
        if fitting:
            nearest = max(fitting, key=lambda number: (_agreement(row, measured[number].recipe), -number))
            added[nearest].append((row, entry))
        else:
            alone[row.dataset, row.model].append((row, entry))
    joined = [
        replace(group, entries=(*group.entries, *_ordered(added[number])))
        for number, group in enumerate(measured)
    ]
    return joined + [
        Group(printable(dataset), printable(model), NOTHING_MEASURED, {}, _ordered(pairs))
        for (dataset, model), pairs in sorted(alone.items())
    ]


def architecture(model: str) -> str:
    """timm's name without the tag of its weights."""
    return model.partition(".")[0]


def _agreement(row: ReportedRow, recipe: Mapping[str, Any]) -> int:
    """How many of a row's conditions a recipe shares."""
    sections = [section for section in recipe.values() if isinstance(section, Mapping)]
    return sum(
        any(section.get(key) == value for section in sections) for key, value in row.conditions().items()
    )


def _ordered(pairs: Sequence[tuple[ReportedRow, Entry]]) -> tuple[Entry, ...]:
    """Rows of one table and protocol together, the highest figure first; files and tables as they come."""
    tables: dict[tuple[str, ...], list[tuple[ReportedRow, Entry]]] = defaultdict(list)
    for row, entry in pairs:
        tables[row.source, row.table, entry.source.protocol if entry.source else ""].append((row, entry))
    return tuple(
        entry for rows in tables.values() for _, entry in sorted(rows, key=lambda pair: -pair[0].top1)
    )


def _entry(row: ReportedRow, publication: _Publication) -> Entry:
    return Entry(
        label=printable(row.optimizer),
        status="reported",
        spec={"name": row.optimizer},
        num_seeds=row.num_seeds or 0,
        summaries={"top1": Summary(row.top1, row.std)},
        best_test_top1=row.top1 if row.selection == _BEST_EPOCH else None,
        source=PublishedSource(
            title=printable(publication.title),
            arxiv=publication.arxiv,
            year=publication.year,
            table=printable(row.table),
            protocol=_protocol(row),
            caveat=printable(row.caveat) if row.caveat else None,
        ),
    )


def _protocol(row: ReportedRow) -> str:
    """``32 px, 200 epochs, batch 100, lr 0.1, from scratch``; then whatever else the row says."""
    conditions = row.conditions()
    words = []
    for key, form in _FORMS.items():
        if key in conditions:
            value = conditions.pop(key)
            words.append(form(value) if callable(form) else form.format(shown(value)))
    words += [f"{key.replace('_', ' ')} {shown(value)}" for key, value in conditions.items()]
    return printable(", ".join(words))


_FORMS: Mapping[str, Any] = {
    "image_size": "{} px",
    "patch_size": "patches of {} px",
    "epochs": "{} epochs",
    "batch_size": "batch {}",
    "lr": "lr {}",
    "rho": "rho {}",
    "augmentation": "augmentation {}",
    "pretrained": lambda value: {True: "pretrained", False: "from scratch"}.get(value, str(value)),
    "selection": lambda value: _BEST_EPOCH if value == _BEST_EPOCH else f"selection {value}",
    "final_top1": lambda value: f"last epoch {100 * value:.2f} %",
    "quoted_from": "quoted from {}",
}
