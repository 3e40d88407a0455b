"""Record files to records: what lies below some paths, each run once, and what had to be left out."""

from __future__ import annotations

import gc
import hashlib
import math
import os
import re
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pugdft.config import yaml
from pugdft.errors import UserError, printable
from pugdft.predictions import METRICS
from pugdft.records import RECORD_NAME, RunRecord, SplitMetrics, parse_record

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
        text = yaml.read_text(file)
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


# A compressed file can unfold to any size: more images than any test split has are not read.
_MOST_IMAGES = 10_000_000

_KINDS = {"label": "iu", "prediction": "iu", "in_top5": "b", "loss": "f"}

_LONGEST_HEADER = 1_000

_TOLERANCE = 1e-9


@dataclass(frozen=True)
class PerImage:
    """Of one run.

    Attributes:
        scores: of each metric that is a mean over images, and a number.
        split: equal for runs whose test images stand in the same order, as far as their labels tell.
    """

    scores: Mapping[str, np.ndarray]
    split: str


class NotUsable(Exception):
    """Why predictions are not used, in words for a note."""


def read_per_image(run: Loaded) -> PerImage | None:
    """The per-image scores of a completed run; None if it stored no predictions.

    The file's sha256 is not compared, which would double the cost of a table: what is read must have the
    test split's size and give exactly the record's metrics, and that says more.

    Raises:
        NotUsable: the file is missing, damaged, elsewhere, or not this record's.
    """
    record = run.record
    artifact, metrics = record.artifacts.get("predictions"), record.metrics.test if record.metrics else None
    if artifact is None or record.data is None or metrics is None:
        return None
    num_images = record.data.sizes.get("test", 0)
    if not 0 < num_images <= _MOST_IMAGES:
        raise NotUsable("the record does not say the test split's size")
    try:
        arrays = _arrays(_inside(run.path.parent, artifact.path), num_images)
    except NotUsable:
        raise
    except FileNotFoundError:
        raise NotUsable("no such file") from None
    except Exception as error:  # zipfile, zlib and numpy's parser of headers let out nearly anything
        raise NotUsable("not readable") from error
    scores = _checked(
        {key: metric.per_image(arrays) for key, metric in METRICS.items() if metric.per_image},
        metrics,
    )
    return PerImage(scores, hashlib.sha256(arrays["label"].astype(np.int64).tobytes()).hexdigest())


def _inside(folder: Path, name: str) -> Path:
    """The regular file that an artifact names; a record must not make us open anything else."""
    if os.path.basename(name) == name and stat.S_ISREG(os.lstat(folder / name).st_mode):
        return folder / name  # and no look at every folder above it, for every record
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise NotUsable("the path leads out of the record's folder")
    if path.exists() and not path.is_file():
        raise NotUsable("not a file")
    return path


def _arrays(path: Path, num_images: int) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        return {name: _array(archive, name, num_images) for name in _KINDS}


def _array(archive: zipfile.ZipFile, name: str, num_images: int) -> np.ndarray:
    """One array, of which no byte is read before its header promises what we expect."""
    layout = np.lib.format
    with archive.open(f"{name}.npy") as member:
        # Of the other versions a header alone may unfold to gigabytes.
        if layout.read_magic(member) != (1, 0):
            raise NotUsable(f"{name} is of another format than pugdft writes")
        shape, _, kind = layout.read_array_header_1_0(member, max_header_size=_LONGEST_HEADER)
        if kind.kind not in _KINDS[name] or kind.itemsize > 8:
            raise NotUsable(f"{name} is of type {kind}")
        if shape != (num_images,):
            raise NotUsable(f"not for the {num_images:,} images of the record's test split")
        return np.frombuffer(member.read(num_images * kind.itemsize), kind, num_images)


def _checked(scores: Mapping[str, np.ndarray], metrics: SplitMetrics) -> dict[str, np.ndarray]:
    """Those of which the record has the mean; of a loss that is infinite there is nothing to compare."""
    kept: dict[str, np.ndarray] = {}
    for metric, values in scores.items():
        expected = getattr(metrics, metric)
        if not math.isfinite(expected):
            continue
        found = float(values.mean(dtype=float))
        if not math.isclose(found, expected, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE):
            raise NotUsable(f"they do not give the record's {metric}")
        kept[metric] = values
    return kept
