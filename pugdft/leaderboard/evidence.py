"""The files beside a record, and whether they say what the record says.

They may come from anybody: a path must stay inside the record's folder, an archive must be as large as
the split it is about and no larger, and nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from pugdft.errors import Fault
from pugdft.record import Artifact, RunRecord, file_sha256

if TYPE_CHECKING:
    from pugdft.predictions import Predictions

# Which split an artifact is about, by its name.
_SPLITS = {"predictions": "test", "predictions_validation": "validation"}

# Kinds of numbers that the arrays of predictions may hold, and the bytes that one entry may take.
_KINDS = {"label": "iu", "prediction": "iu", "in_top5": "b", "confidence": "f", "loss": "f"}
_MOST_BYTES_AN_ENTRY = 8
_MOST_IMAGES = 10_000_000
_LONGEST_HEADER = 1_000

# The record's figures are float64 of the same arrays.
_TOLERANCE = 1e-6
# Confidence and loss are two roundings of one softmax to float32.
_LOSS_TOLERANCE = 1e-3


@dataclass
class Evidence:
    """What the files say.

    Attributes:
        labels_sha256: of the test split's labels in their order; None if they cannot be had.
    """

    faults: list[Fault] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    labels_sha256: str | None = None


def examine(record: RunRecord, folder: Path) -> Evidence:
    """Hashes of the artifacts that are there, and the metrics that follow from the predictions."""
    found = Evidence()
    for name, artifact in record.artifacts.items():
        where = f"artifacts.{name}"
        problem = _path_problem(folder, artifact.path)
        if problem:
            found.faults.append(Fault(where, problem))
            continue
        file = folder / artifact.path
        if not file.is_file():
            if name in _SPLITS:
                found.faults.append(Fault(where, f"{artifact.path} is not there"))
            elif name == "model":
                found.remarks.append("weights not stored here: `pugdft verify` cannot re-evaluate")
            continue
        found.faults += _hash_faults(where, file, artifact)
        if name in _SPLITS:
            found.faults += _compare(record, _SPLITS[name], file, where, found)
    return found


def _path_problem(folder: Path, text: str) -> str | None:
    path = PurePath(text)
    if not text or not text.isprintable() or "\\" in text:
        return "its path is no file's name"
    try:
        inside = (folder / path).resolve().is_relative_to(folder.resolve())
        (folder / path).is_file()
    except (OSError, ValueError, RuntimeError):
        return "its path is no file's name"
    if path.is_absolute() or ".." in path.parts or not inside:
        return f"{text} leads out of the record's folder"
    return None


def _hash_faults(where: str, file: Path, artifact: Artifact) -> Iterator[Fault]:
    try:
        if file_sha256(file) != artifact.sha256:
            yield Fault(f"{where}.sha256", f"is not that of {artifact.path}")
    except OSError as error:
        yield Fault(where, f"{artifact.path} cannot be read: {error.strerror}")


def _compare(record: RunRecord, split: str, file: Path, where: str, found: Evidence) -> Iterator[Fault]:
    """The record's metrics of a split against those of its predictions."""
    size = record.data.sizes.get(split) if record.data else None
    stated = getattr(record.metrics, split) if record.metrics else None
    if record.data is None or size is None or stated is None:
        yield Fault(where, f"is there, but the record lacks data.sizes.{split} or metrics.{split}")
        return
    try:
        predictions = _read(file, size)
    except _Refused as error:
        yield Fault(where, f"{file.name}: {error}")
        return
    contents = list(_content_faults(predictions, record.data.classes))
    yield from (Fault(where, f"{file.name}: {fault}") for fault in contents)
    if split == "test":
        found.labels_sha256 = hashlib.sha256(predictions.label.astype("<i8").tobytes()).hexdigest()
    if contents:
        return
    computed = predictions.metrics()
    for name in ("top1", "top5", "loss", "ece"):
        ours, theirs = getattr(computed, name), getattr(stated, name)
        if not abs(ours - theirs) <= _TOLERANCE:
            yield Fault(f"metrics.{split}.{name}", f"{theirs}, but {file.name} gives {ours:.8g}")


class _Refused(Exception):
    """Why an archive is not read."""


def _read(file: Path, size: int) -> Predictions:
    """The predictions of ``size`` images, read only once the headers are known to be harmless.

    Raises:
        _Refused: not such an archive.
    """
    from pugdft.predictions import read_predictions

    if not 1 <= size <= _MOST_IMAGES:
        raise _Refused(f"{size} images are not read")
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if sorted(each.filename for each in members) != sorted(f"{name}.npy" for name in _KINDS):
                raise _Refused(f"must hold the arrays {', '.join(_KINDS)}, each once, and nothing else")
            for member in members:
                _check_member(archive, member, size)
        return read_predictions(file)
    except _Refused:
        raise
    except Exception as error:  # zipfile, zlib and numpy's parser of headers let out nearly anything
        raise _Refused(f"is not readable: {type(error).__name__}: {error}") from None


def _check_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, size: int) -> None:
    import numpy as np

    name = member.filename.removesuffix(".npy")
    if member.file_size > size * _MOST_BYTES_AN_ENTRY + _LONGEST_HEADER:
        raise _Refused(f"{name} would unpack to {member.file_size:,} bytes, too many for {size:,} images")
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise _Refused(f"{name} is of an unknown format, {version}")
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream, max_header_size=_LONGEST_HEADER)
    if dtype.hasobject:
        raise _Refused(f"{name} holds pickled objects, which are never read")
    if dtype.kind not in _KINDS[name]:
        raise _Refused(f"{name} is of the type {dtype}")
    if shape != (size,):
        raise _Refused(f"{name} has the shape {shape}, where the split has {size:,} images")


def _content_faults(predictions: Predictions, classes: int) -> Iterator[str]:
    """Values that no evaluation gives."""
    import numpy as np

    for name in ("label", "prediction"):
        values = getattr(predictions, name)
        if values.min() < 0 or values.max() >= classes:
            yield f"{name} must lie in 0 to {classes - 1}"
    confidence = predictions.confidence.astype(np.float64)
    loss = predictions.loss.astype(np.float64)
    if not ((confidence > 0) & (confidence <= 1 + 1e-5)).all():
        yield "confidence must be above 0 and at most 1"
        return
    if not (np.isfinite(loss) & (loss >= -1e-6)).all():
        yield "loss must be finite and not negative"
        return
    is_right = predictions.label == predictions.prediction
    if (is_right & ~predictions.in_top5).any():
        yield "in_top5 is false for images that are predicted right"
    # The loss is -log p of the true class: the confidence itself where it is predicted, else no more of it.
    surprise = -np.log(confidence)
    at_odds = np.where(is_right, np.abs(loss - surprise), surprise - loss) > _LOSS_TOLERANCE * (1 + surprise)
    if at_odds.any():
        yield f"loss and confidence of {int(at_odds.sum()):,} images do not go together"
