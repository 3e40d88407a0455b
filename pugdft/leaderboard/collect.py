"""Record files to records: what lies below some paths, each run once, and what had to be left out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pugdft.errors import UserError
from pugdft.leaderboard.labels import canonical
from pugdft.leaderboard.printable import printable
from pugdft.record import RECORD_NAME, RunRecord, read_record

# What PyYAML, or the walk through a very deep value, may let out: one file must not cost the whole table.
_ESCAPING = (ValueError, ArithmeticError, LookupError, TypeError, AttributeError, RecursionError)

# No quantity of a run comes near; a larger whole number is no float, and has no end when written out.
LARGEST = 1e100


@dataclass(frozen=True)
class Loaded:
    """A record and the file that it was read from."""

    record: RunRecord
    path: Path


def collect(paths: Sequence[Path]) -> tuple[list[Loaded], list[str]]:
    """Every run below ``paths`` once, and a message for each thing that was left out.

    Args:
        paths: record files of any name, or folders, searched for ``record.yaml`` through links as well.

    Returns:
        The records in the order of the search, and messages fit for a terminal: a file that is broken,
        foreign or of a newer schema, a folder that cannot be listed or holds no record.

    Raises:
        UserError: a path does not exist, or two files give one id different contents.
    """
    messages: list[str] = []
    loaded: dict[str, Loaded] = {}
    for file in _files(paths, lambda text: messages.append(printable(text))):
        try:
            record = read_record(file)
            _check_numbers(file, record.model_dump())
            _check_recipe(file, record.recipe)
        except UserError as error:
            messages.append(printable(f"left out: {error}"))
            continue
        except _ESCAPING as error:
            messages.append(printable(f"left out: {file}: not readable as YAML: {error!r}"))
            continue
        first = loaded.setdefault(record.id, Loaded(record, file))
        if first.record is not record and first.record.to_yaml() != record.to_yaml():
            raise UserError(
                f'the id "{printable(record.id)}" stands in two records that differ: {printable(first.path)} '
                f"and {printable(file)}. Remove the one that is not the run's own."
            )
    return list(loaded.values()), messages


def _files(paths: Sequence[Path], report: Callable[[str], None]) -> Iterator[Path]:
    """The files to read, each once however many paths or links lead to it."""
    for path in paths:
        if not os.path.exists(path):  # unlike Path.exists, false for a name that is too long
            raise UserError(f"{printable(path)}: no such file or folder")
    seen: set[tuple[int, int]] = set()

    def is_new(path: Path | str) -> bool:
        status = os.stat(path)
        identity = (status.st_dev, status.st_ino)
        if identity in seen:
            return False
        seen.add(identity)
        return True

    for path in paths:
        if path.is_dir():
            found = False
            for file in _records_below(path, is_new, report):
                found = True
                yield file
            if not found:
                report(f"{path}: no {RECORD_NAME} below it that was not found already")
        elif is_new(path):
            yield path


def _records_below(
    root: Path, is_new: Callable[[Path | str], bool], report: Callable[[str], None]
) -> Iterator[Path]:
    """``record.yaml`` in ``root`` and its subfolders, sorted, through links but never round a loop."""

    def unreadable(error: OSError) -> None:
        report(f"left out: {error.filename}: cannot be listed: {error.strerror}")

    for folder, subfolders, names in os.walk(root, onerror=unreadable, followlinks=True):
        if not is_new(folder):
            subfolders.clear()
            continue
        subfolders.sort()
        if RECORD_NAME in names:
            file = Path(folder, RECORD_NAME)
            if not file.exists():
                report(f"left out: {file}: a link that leads nowhere")
            elif is_new(file):
                yield file


def _check_numbers(file: Path, value: object, where: str = "") -> None:
    """Refuse a record with a whole number that no arithmetic or text has room for."""
    if isinstance(value, int) and abs(value) > LARGEST:
        raise UserError(f"{file}: {where}: is out of range")
    items: Iterable[tuple[object, object]] = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, item in items:
        _check_numbers(file, item, f"{where}.{key}" if where else str(key))


def _check_recipe(file: Path, recipe: Mapping[str, object]) -> None:
    """Refuse a record that cannot be grouped: without the names, or with a recipe that has no end."""
    canonical(recipe)
    named = {section: recipe.get(section) for section in ("model", "data", "optimizer")}
    optimizer = named["optimizer"]
    if isinstance(optimizer, Mapping) and "base" in optimizer:
        named["optimizer.base"] = optimizer["base"]
    for section, value in named.items():
        if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
            raise UserError(f"{file}: recipe.{section}.name: is required")
