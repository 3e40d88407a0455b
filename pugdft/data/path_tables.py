"""Read tables of image paths and labels: CSV, TSV, JSON lines, parquet, Tiny ImageNet's annotations."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pugdft.data.source import class_name, visible
from pugdft.errors import UserError, reason, refuse, shortened

if TYPE_CHECKING:
    import pyarrow.parquet as pq

_PATH_COLUMNS = ("file_name", "path", "file", "filename", "filepath", "file_path", "image_path", "image")
_LABEL_COLUMNS = ("label", "class", "class_name", "category", "target", "labels")
_SPLIT_COLUMNS = ("split", "set", "subset")
_METADATA = ("metadata.csv", "metadata.tsv", "metadata.jsonl", "metadata.parquet")
SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")

Labelled = list[tuple[Path, str]]
Row = tuple[str, Mapping[str, Any]]  # where it stands, and its cells


@dataclass(frozen=True)
class PathColumns:
    """The names of a table's columns; None for one that it has not."""

    path: str | None
    label: str | None
    split: str | None

    @property
    def are_enough(self) -> bool:
        """Whether images and labels can be read."""
        return self.path is not None and self.label is not None


def metadata_of(folder: Path) -> Path | None:
    """The table of a folder's images, as ``datasets`` names it (``metadata.csv``); None if it has none.

    Raises:
        UserError: it has several.
    """
    found = [folder / name for name in _METADATA if (folder / name).is_file()]
    if len(found) > 1:
        names = " and ".join(each.name for each in found)
        raise UserError(f"{folder}: holds {names}; keep the one that counts")
    return found[0] if found else None


def path_columns(table: Path) -> PathColumns:
    """Find a table's columns of paths, labels and splits by their names."""
    names = {each.strip().lower(): each for each in reversed(_header(table))}
    kinds = (_PATH_COLUMNS, _LABEL_COLUMNS, _SPLIT_COLUMNS)
    return PathColumns(*(next((names[each] for each in kind if each in names), None) for kind in kinds))


def table_rows(table: Path) -> dict[str, Labelled]:
    """The images of a table with their labels, by split; all under one name if it has no such column.

    Raises:
        UserError: a column is missing, or a row names no file or has no label.
    """
    columns = path_columns(table)
    if columns.path is None or columns.label is None:
        raise UserError(
            f"{table}: needs a column of paths ({', '.join(_PATH_COLUMNS)}) and one of labels "
            f"({', '.join(_LABEL_COLUMNS)}); it has {shortened(', '.join(_header(table)), 200)}"
        )
    labelled: dict[str, Labelled] = {}
    labels: dict[Path, str] = {}
    for where, row in _rows(table):
        text = _word(row.get(columns.path), where, columns.path)
        file = _image_of(table, text.strip())
        if file is None:
            raise UserError(f'{where}: "{visible(text)}" is no file')
        name = class_name(_word(row.get(columns.label), where, columns.label))
        if not name:
            raise UserError(f"{where}: has no label")
        if labels.setdefault(file, name) != name:
            both = f"{visible(labels[file])} and {visible(name)}"
            raise UserError(f'{where}: "{visible(text)}" has two labels, {both}; an image has one')
        part = _word(row.get(columns.split), where, columns.split).strip() if columns.split else "all"
        labelled.setdefault(part, []).append((file, name))
    if not labelled:
        raise UserError(f"{table}: has no rows")
    return labelled


def _image_of(table: Path, text: str) -> Path | None:
    """The file of a table's row: relative to the table or, of ``train.csv``, to ``train``."""
    places = [table.parent / each / text for each in ("", table.stem)]
    # A table may come from Windows.
    places += [Path(str(place).replace("\\", "/")) for place in places if "\\" in text]
    return next((Path(os.path.normpath(place)) for place in places if os.path.isfile(place)), None)


def annotated(annotations: Path) -> Labelled:
    """The images and classes that Tiny ImageNet's annotations name."""
    labelled: Labelled = []
    for number, line in enumerate(_utf8_text(annotations).splitlines(), start=1):
        fields = line.split("\t")
        file = annotations.parent / "images" / Path(fields[0]).name
        if len(fields) < 2 or not os.path.isfile(file):  # pathlib's raises where a name is too long
            raise UserError(f"{annotations} line {number}: names no image of {annotations.parent / 'images'}")
        labelled.append((file, class_name(fields[1])))
    return labelled


@contextmanager
def opened_parquet(file: Path) -> Iterator[pq.ParquetFile]:
    """A parquet file to read from; damage that shows only later, inside the ``with``, is explained too."""
    import pyarrow as pa  # a tenth of a second that folders of images need not wait for
    import pyarrow.parquet as pq

    kinds = (OSError, pa.ArrowException, UnicodeDecodeError)
    with (
        refuse(kinds, lambda error: f"{file}: not readable as parquet: {reason(error)}"),
        file.open("rb") as opened,  # by Python: pyarrow takes no path that is not UTF-8
    ):
        yield pq.ParquetFile(opened)


def _word(cell: Any, where: str, column: str) -> str:
    """A cell as text; JSON and parquet hold other things than text too."""
    if cell is None or cell != cell:
        return ""
    if not isinstance(cell, str | int | float):
        raise UserError(f'{where}: "{column}" holds {shortened(cell)}; expected a word or a number')
    return str(cell)


def _header(table: Path) -> list[str]:
    """The names of a table's columns; none if its first line has no such thing."""
    if table.suffix.lower() == ".parquet":
        with opened_parquet(table) as opened:
            return list(opened.schema_arrow.names)
    with table.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        line = file.readline(100_000)
    if table.suffix.lower() == ".jsonl":
        first = _json(line)
        return list(first) if isinstance(first, dict) else []
    return next(csv.reader([line.rstrip("\r\n")], delimiter=_divider(line)), [])


def _divider(line: str) -> str:
    return max(",;\t", key=line.count)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _rows(table: Path) -> Iterator[Row]:
    if table.suffix.lower() == ".parquet":
        with opened_parquet(table) as opened:
            cells = (row for batch in opened.iter_batches(1000) for row in batch.to_pylist())
            yield from ((f"{table} row {number}", row) for number, row in enumerate(cells))
        return
    text = _utf8_text(table).removeprefix("\ufeff")
    if table.suffix.lower() == ".jsonl":
        # Only line feeds end a line here: JSON's strings may hold the other characters that do elsewhere.
        for number, line in enumerate(text.split("\n"), start=1):
            where = f"{table} line {number}"
            row = _json(line) if line.strip() else {}
            if not isinstance(row, dict):
                raise UserError(f'{where}: is no JSON object, such as {{"file_name": …, "label": …}}')
            if row:
                yield where, row
        return
    reader = csv.DictReader(StringIO(text, newline=""), delimiter=_divider(text.partition("\n")[0]))
    with refuse(csv.Error, lambda error: f"{table} line {reader.line_num}: {error}"):
        for row in reader:
            yield f"{table} line {reader.line_num}", row


def _utf8_text(file: Path) -> str:
    def not_utf8(error: UnicodeDecodeError) -> str:
        number = error.object[: error.start].count(b"\n") + 1
        return f"{file} line {number}: is not UTF-8 text; save the file as UTF-8"

    with refuse(UnicodeDecodeError, not_utf8):
        return file.read_text(encoding="utf-8")
