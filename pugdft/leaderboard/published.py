"""Read what papers printed, from ``leaderboard/reported/*.yaml``, and list it below what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, StrictStr, ValidationError

from pugdft.config import yaml
from pugdft.config.load import schema_faults
from pugdft.errors import ConfigIssue, FaultsError, UserError, printable, unknown
from pugdft.leaderboard.entry import Entry, Group, PublishedSource, Summary
from pugdft.leaderboard.grouping import chosen, shown

NOTHING_MEASURED = "reported by others; nothing measured here"
_BEST_EPOCH = "best test epoch"

Fraction = Annotated[float, Field(ge=0, le=1)]


class _Publication(BaseModel, extra="forbid"):
    title: StrictStr
    arxiv: StrictStr | None = None
    year: int | None = None


def _scalar(value: Any) -> Any:
    if not isinstance(value, str | int | float | bool):
        raise UserError("must be a word, a number, true or false")
    return value


class ReportedRow(BaseModel, extra="allow"):
    """One printed figure. Keys that are not named here are conditions, and go into the protocol."""

    __pydantic_extra__: dict[str, Annotated[Any, AfterValidator(_scalar)]]

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
        own = set(type(self).model_fields) - {"selection", "final_top1"}
        return self.model_dump(exclude=own, exclude_none=True)

    def protocol(self) -> str:
        """Write ``32 px, 200 epochs, batch 100, lr 0.1, from scratch``; then whatever else the row says."""
        left, words = self.conditions(), []
        for key, form in _FORMS.items():
            if key in left:
                value = left.pop(key)
                words.append(form(value) if callable(form) else form.format(shown(value)))
        words += [f"{key.replace('_', ' ')} {shown(value)}" for key, value in left.items()]
        return printable(", ".join(words))


class _File(BaseModel, extra="forbid"):
    sources: dict[str, _Publication]
    rows: list[ReportedRow]


ReportedPair = tuple[ReportedRow, Entry]  # a row, and the entry that it becomes


def reported_folder() -> Path:
    """Find the files: inside an installed package, or at the top of a checkout."""
    package = Path(__file__).parent.parent
    installed = package / "bundled_reported"
    return installed if installed.is_dir() else package.parent / "leaderboard" / "reported"


def read_reported(path: Path) -> list[ReportedPair]:
    """Read the rows of one file, or refuse it with every fault named."""
    content = yaml.parse(yaml.read_text(path), str(path))
    try:
        file = _File.model_validate(content)
    except ValidationError as error:
        raise FaultsError(str(path), schema_faults(error, _File)) from None
    faults = [
        ConfigIssue(f"rows.{number}.source", unknown("source", row.source, file.sources))
        for number, row in enumerate(file.rows)
        if row.source not in file.sources
    ]
    if faults:
        raise FaultsError(str(path), faults)
    return [(row, _entry(row, file.sources[row.source])) for row in file.rows]


@lru_cache
def reported_rows(folder: Path) -> tuple[ReportedPair, ...]:
    return tuple(pair for path in sorted(folder.glob("*.yaml")) for pair in read_reported(path))


def select_rows(
    rows: Iterable[ReportedPair], groups: Sequence[Group], dataset: str | None, model: str | None
) -> list[ReportedPair]:
    """Return the rows under the filters: of the measured groups' names, or of their own if there are none."""
    kept = list(rows)
    for number, kind, key, wanted in ((0, "data set", "dataset", dataset), (1, "model", "model", model)):
        if wanted is not None:
            own = [getattr(row, key) for row, _ in kept]
            measured = {_place(group)[number] for group in groups}
            fitting = measured or {chosen(kind, wanted, own, "reported row")}
            kept = [pair for pair in kept if getattr(pair[0], key) in fitting]
    return kept


def _place(group: Group) -> tuple[str, str]:
    """Return data set and architecture: timm's name without the tag of its weights.

    A network with arguments of its own, such as ``cifar_resnet18[width=8]``, is none that a paper has.
    """
    has_arguments = group.model.endswith("]")
    return group.dataset, group.model if has_arguments else group.model.partition(".")[0]


def with_reported(groups: Sequence[Group], rows: Iterable[ReportedPair]) -> list[Group]:
    """Add each reported row once, to the group of its data set and architecture with the nearest protocol.

    Where there is none, rows of one data set and model make a group of their own, behind the measured ones.
    """
    pairs = list(rows)
    places = [_place(group) for group in groups]
    alone = sorted({(row.dataset, row.model) for row, _ in pairs} - {*places})
    empty = [Group(printable(data), printable(model), NOTHING_MEASURED, {}, ()) for data, model in alone]
    joined = [*groups, *empty]
    added: list[list[ReportedPair]] = [[] for _ in joined]
    for row, entry in pairs:
        place = (row.dataset, row.model)
        fitting = [number for number, each in enumerate((*places, *alone)) if each == place]
        nearest = max(fitting, key=lambda number: _agreement(row, joined[number].recipe))
        added[nearest].append((row, entry))
    return [
        replace(group, entries=(*group.entries, *_ordered(below)))
        for group, below in zip(joined, added, strict=True)
    ]


def _agreement(row: ReportedRow, recipe: Mapping[str, Any]) -> int:
    """Count a row's conditions that a recipe shares."""
    sections = [section for section in recipe.values() if isinstance(section, Mapping)]
    wanted = dict(row.conditions())
    shared = 0
    if isinstance(augmentation := wanted.pop("augmentation", None), str):
        has_cutout = any(section.get("cutout") for section in sections)
        shared += has_cutout == ("cutout" in augmentation)
    return shared + sum(any(each.get(key) == value for each in sections) for key, value in wanted.items())


def _ordered(pairs: Sequence[ReportedPair]) -> list[Entry]:
    """Put rows of one table and protocol together, highest figure first; files and tables as they come."""
    tables = [(row.source, row.table, row.protocol()) for row, _ in pairs]
    order = sorted(range(len(pairs)), key=lambda at: (tables.index(tables[at]), -pairs[at][0].top1))
    return [pairs[at][1] for at in order]


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
            protocol=row.protocol(),
            caveat=printable(row.caveat) if row.caveat else None,
        ),
    )


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
