"""Find record files below some paths, read each run once, and read its predictions for each image."""

from __future__ import annotations

import gc
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pugdft.config.yaml import Reader
from pugdft.errors import UserError, printable
from pugdft.paths import file_inside
from pugdft.predictions import METRICS, artifact_name, disagreements, labels_sha256, read_predictions
from pugdft.records import RECORD_NAME, RunRecord, StoredRun, is_number, read_record, record_reader

Loaded = StoredRun


@dataclass(frozen=True)
class Collected:
    """The records below some paths, in the order of the search; messages are one line, fit for a terminal."""

    records: list[Loaded]
    left_out: tuple[str, ...]  # for each file that was found and not read: broken, foreign, of a newer schema
    notes: tuple[str, ...]  # what else a reader must know: a folder cannot be listed, or holds no record


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Disable the garbage collector: of ten thousand records it takes half of the time, and finds nothing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@without_garbage_collection()
def collect(paths: Sequence[Path]) -> Collected:
    """Read every run below ``paths`` once: record files of any name, or folders, searched through links."""
    left_out: list[str] = []
    notes: list[str] = []
    found: list[Loaded] = []
    places: dict[str, list[int]] = {}  # of each id
    reader = record_reader()
    for file in record_files(paths, notes.append):
        try:
            record = read_checked(file, reader)
        except UserError as error:
            left_out.append(f"left out: {error}")
            continue
        run, known = Loaded(record, file), places.setdefault(record.id, [])
        same = (
            (place for place in known if found[place].record.to_yaml() == record.to_yaml()) if known else ()
        )
        place = next(iter(same), None)
        if place is None:
            known.append(len(found))
            found.append(run)
        elif not found[place].path.with_name("predictions.npz").exists():
            found[place] = run  # a copy says the same, and may have more to show
    for name, known in places.items():
        if len(known) > 1:
            where = ", ".join(str(found[place].path) for place in known)
            notes.append(f'the id "{name}" stands in {len(known)} records that differ; all are read: {where}')
    return Collected(found, tuple(map(printable, left_out)), tuple(map(printable, notes)))


def fingerprints(record: RunRecord) -> set[str]:
    """What no two runs of different seeds have in common: digests of what they left, and their losses."""
    names = ("model", artifact_name("test"))
    found = {f"{name} {record.artifacts[name].sha256}" for name in names if name in record.artifacts}
    losses = [(row.get("train_loss"), row.get("test_loss")) for row in record.history]
    if any(is_number(each) and each % 1 for pair in losses for each in pair if all(map(is_number, pair))):
        found.add(f"history {losses}")
    return found


def read_checked(file: Path, reader: Reader) -> RunRecord:
    """Read a record that can be grouped, or refuse it, see :func:`checked_names`."""
    if not os.path.exists(file):
        raise UserError(f"{file}: a link that leads nowhere")
    return checked_names(read_record(file, reader), file)


def checked_names(record: RunRecord, file: Path) -> RunRecord:
    """Return the record, or refuse it: its recipe names model, data, optimizer and base."""
    named = {section: record.recipe.get(section) for section in ("model", "data", "optimizer")}
    if isinstance(optimizer := named["optimizer"], Mapping) and "base" in optimizer:
        named["optimizer.base"] = optimizer["base"]
    for section, value in named.items():
        if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
            raise UserError(f"{file}: recipe.{section}.name: is required")
    return record


def record_files(paths: Sequence[Path], note: Callable[[str], None]) -> Iterator[Path]:
    """Yield the files to read, each once however many ways lead to it; links that lead nowhere too."""
    for path in paths:
        if not os.path.exists(path):  # unlike Path.exists, false for a name that is too long
            raise UserError(f"{printable(path)}: no such file or folder")
    seen: set[tuple[int, int]] = set()

    def unreadable(error: OSError) -> None:
        note(f"left out: {error.filename}: cannot be listed: {error.strerror}")

    def is_new(path: Path | str) -> bool:
        status = os.stat(path)
        identity = (status.st_dev, status.st_ino)
        if identity in seen:
            return False
        seen.add(identity)
        return True

    for path in paths:
        if not path.is_dir():
            if is_new(path):
                yield path
            continue
        found = False
        for folder, subfolders, names in os.walk(path, onerror=unreadable, followlinks=True):
            if not is_new(folder):  # a link back, which would be a loop
                subfolders.clear()
                continue
            subfolders.sort()
            file = Path(folder, RECORD_NAME)
            if RECORD_NAME in names and (not os.path.exists(file) or is_new(file)):
                found = True
                yield file
        if not found:
            note(f"{path}: no {RECORD_NAME} below it that was not found already")


@dataclass(frozen=True)
class PerImage:
    scores: Mapping[str, np.ndarray]  # of each metric that is a mean over images, and a number
    split: str  # equal for runs whose test images stand in the same order, as far as their labels tell
    labels: str  # equal for runs whose test images have the same labels, in whatever order
    digest: str  # of all that was predicted
    contradictions: tuple[str, ...] = ()  # metrics that the record has and these predictions do not give


def read_per_image(run: Loaded) -> PerImage | None:
    """Read the per-image scores of a completed run; None if it stored no predictions."""
    # To compare the file's sha256 too would double a table's cost.
    record = run.record
    artifact = record.artifacts.get(artifact_name("test"))
    metrics = record.metrics.test if record.metrics else None
    if artifact is None or record.data is None or metrics is None:
        return None
    file = file_inside(run.path.parent, artifact.path)
    if file is None:
        raise UserError("no such file")
    num_images = record.data.sizes.get("test", 0)
    predictions = read_predictions(file, num_images)
    arrays = vars(predictions)
    scores = {key: row.per_image(arrays) for key, row in METRICS.items() if row.per_image}
    contradictions = [
        f"{metric} {recorded:.6g} on record, {ours:.6g} by them"
        for metric, ours, recorded in disagreements(predictions, metrics)
    ]
    digest = hashlib.sha256(predictions.prediction.tobytes() + predictions.loss.tobytes()).hexdigest()
    labels = predictions.label
    return PerImage(
        scores, labels_sha256(labels), labels_sha256(np.sort(labels)), digest, tuple(contradictions)
    )
