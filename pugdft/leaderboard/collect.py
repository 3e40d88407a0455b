"""Record files to records: what lies below some paths, each run once, and what had to be left out."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pugdft import yaml_text
from pugdft.errors import UserError
from pugdft.leaderboard.printable import printable
from pugdft.record import RECORD_NAME, RunRecord, parse_record

# What PyYAML, or the walk through a very deep value, may let out: one file must not cost the whole table.
_ESCAPING = (ValueError, ArithmeticError, LookupError, TypeError, AttributeError, RecursionError)

# No quantity of a run comes near; a larger whole number is no float, and has no end when written out.
LARGEST = 1e100
_LARGEST = int(LARGEST)
_MOST_LEVELS = 100
_LONG_NUMBER = re.compile(r"[0-9a-fA-F_]{80}")  # in hexadecimal, LARGEST has 84 digits
_DEEP = " " * (_MOST_LEVELS // 2)  # dashes of nested items count for two


@dataclass(frozen=True)
class Loaded:
    """A record and the file that it was read from."""

    record: RunRecord
    path: Path


@dataclass(frozen=True)
class Collected:
    """The records below some paths, in the order of the search; messages are one line, fit for a terminal.

    Attributes:
        left_out: one message for each file that was found and not read: broken, foreign, of a newer schema.
        notes: what else a reader must know, such as a folder that cannot be listed or holds no record.
    """

    records: list[Loaded]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Meanwhile no search for reference cycles, of which records have none.

    The search begins anew whenever the number of objects has grown by a quarter, and goes through all of
    them: for ten thousand records it takes about as long as everything else.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@without_garbage_collection()
def collect(paths: Sequence[Path]) -> Collected:
    """Every run below ``paths`` once, and a message for each thing that was left out.

    Args:
        paths: record files of any name, or folders, searched for ``record.yaml`` through links as well.

    Raises:
        UserError: a path does not exist, or two files give one id different contents.
    """
    left_out: list[str] = []
    notes: list[str] = []
    loaded: dict[str, Loaded] = {}
    for file in record_files(paths, left_out.append, notes.append):
        try:
            record = read_checked(file)
        except UserError as error:
            left_out.append(f"left out: {error}")
            continue
        first = loaded.setdefault(record.id, Loaded(record, file))
        if first.record is record:
            continue
        if first.record == record and not _has_predictions(first) and _has_predictions(Loaded(record, file)):
            loaded[record.id] = Loaded(record, file)  # a copy says the same, and has more to show
        elif first.record.to_yaml() != record.to_yaml():
            raise UserError(
                f'the id "{printable(record.id)}" stands in two records that differ: {printable(first.path)} '
                f"and {printable(file)}. Remove the one that is not the run's own."
            )
    return Collected(list(loaded.values()), tuple(map(printable, left_out)), tuple(map(printable, notes)))


def _has_predictions(run: Loaded) -> bool:
    return (run.path.parent / "predictions.npz").exists()


def read_checked(file: Path) -> RunRecord:
    """A record that can be grouped, with numbers that can be reckoned with.

    Raises:
        UserError: anything else, however the file came to be.
    """
    try:
        text = yaml_text.read_text(file)
        record = parse_record(text, file)
        _check_recipe(file, record)
        # Only where the text leaves room for it: going through every value costs as much as reading them.
        if _LONG_NUMBER.search(text) or _DEEP in text or text.count("[") + text.count("{") > _MOST_LEVELS:
            _check_values(file, record)
    except UserError:
        raise
    except _ESCAPING as error:
        raise UserError(f"{file}: not readable as YAML: {error!r}") from None
    return record


def record_files(
    paths: Sequence[Path], leave_out: Callable[[str], None], note: Callable[[str], None]
) -> Iterator[Path]:
    """The files to read, each once however many paths or links lead to it.

    Raises:
        UserError: a path does not exist.
    """
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
            for file in _records_below(path, is_new, leave_out, note):
                found = True
                yield file
            if not found:
                note(f"{path}: no {RECORD_NAME} below it that was not found already")
        elif is_new(path):
            yield path


def _records_below(
    root: Path,
    is_new: Callable[[Path | str], bool],
    leave_out: Callable[[str], None],
    note: Callable[[str], None],
) -> Iterator[Path]:
    """``record.yaml`` in ``root`` and its subfolders, sorted, through links but never round a loop."""

    def unreadable(error: OSError) -> None:
        note(f"left out: {error.filename}: cannot be listed: {error.strerror}")

    for folder, subfolders, names in os.walk(root, onerror=unreadable, followlinks=True):
        if not is_new(folder):
            subfolders.clear()
            continue
        subfolders.sort()
        if RECORD_NAME in names:
            file = Path(folder, RECORD_NAME)
            try:
                is_wanted = is_new(file)
            except OSError:
                leave_out(f"left out: {file}: a link that leads nowhere")
            else:
                if is_wanted:
                    yield file


def _check_recipe(file: Path, record: RunRecord) -> None:
    """Refuse a record that cannot be grouped.

    Raises:
        UserError: names are missing.
        ValueError: a key of the recipe cannot be written out.
    """
    recipe = record.recipe
    repr(recipe)
    named = {section: recipe.get(section) for section in ("model", "data", "optimizer")}
    optimizer = named["optimizer"]
    if isinstance(optimizer, Mapping) and "base" in optimizer:
        named["optimizer.base"] = optimizer["base"]
    for section, value in named.items():
        if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
            raise UserError(f"{file}: recipe.{section}.name: is required")


def _check_values(file: Path, record: RunRecord) -> None:
    """Refuse a record with values too deep, or with a whole number that no arithmetic has room for.

    Raises:
        UserError: it has.
    """
    if _has_huge([record], _MOST_LEVELS):
        place = next(_huge(record.model_dump()), None)
        raise UserError(f"{file}: {place}: is out of range" if place else f"{file}: is nested too deep")


def _has_huge(values: Iterable[Any], levels: int) -> bool:
    """Whether a whole number is beyond ``LARGEST``, or something lies deeper than ``levels``.

    Every value of every record comes by here: this is quick, and :func:`_huge` finds the place.
    """
    for value in values:
        kind = value.__class__
        if kind is float or kind is str or value is None or kind is bool:
            continue
        if kind is int:
            if not -_LARGEST <= value <= _LARGEST:
                return True
        elif levels == 0:
            return True
        elif kind is dict:
            if _has_huge(value.values(), levels - 1):
                return True
        elif kind is list:
            if _has_huge(value, levels - 1):
                return True
        elif _has_huge(vars(value).values(), levels) or _has_huge((value.model_extra or {}).values(), levels):
            return True  # in a part of the record
    return False


def _huge(value: object, where: str = "") -> Iterator[str]:
    """The dotted places of whole numbers beyond ``LARGEST``."""
    if isinstance(value, int) and abs(value) > _LARGEST:
        yield where
    items: Iterable[tuple[object, object]] = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, item in items:
        yield from _huge(item, f"{where}.{key}" if where else str(key))
