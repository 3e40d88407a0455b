"""A run as it lies in a folder: its record and the files that the record names.

A record may come from anyone: its paths are followed only within its own folder, and what they lead to
is read as tensors and arrays, never unpickled.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from pugdft.errors import UserError, counted
from pugdft.predictions import Predictions, read_predictions
from pugdft.record import RECORD_NAME, RunRecord, file_sha256, read_record

# What predictions take: bytes an image, uncompressed, and for the archive itself; both with room to spare.
_BYTES_PER_IMAGE, _BYTES_OF_ARCHIVE = 64, 2**16

_COLUMNS = {"label": "iu", "prediction": "iu", "in_top5": "b", "confidence": "f", "loss": "f"}


@dataclass(frozen=True)
class StoredRun:
    """A record and the file that it was read from."""

    record: RunRecord
    path: Path

    def artifact(self, name: str) -> Path | None:
        """The file that the record names so; None if it names none or the file is not here.

        Raises:
            UserError: the path leads out of the record's folder.
        """
        entry = self.record.artifacts.get(name)
        if entry is None:
            return None
        folder = self.path.parent.resolve()
        try:
            file = (folder / entry.path).resolve()
            is_inside, is_file = file.is_relative_to(folder), file.is_file()
        except (OSError, ValueError, RuntimeError):  # too long, a null byte, a loop of links
            is_inside = is_file = False
        if not is_inside:
            raise UserError(
                f'{self.path}: artifacts.{name}.path: "{entry.path}" is not in the record\'s folder; '
                "files are read from there only"
            )
        return file if is_file else None

    def has_hash(self, name: str, file: Path) -> bool:
        """Whether a file of :meth:`artifact` is the one that the record speaks of."""
        return file_sha256(file) == self.record.artifacts[name].sha256

    def predictions(self, split: str, num_images: int) -> Predictions | None:
        """The stored predictions of a split of so many images; None if there are none.

        Raises:
            UserError: they lie elsewhere, cannot be read, or are not of so many images.
        """
        file = self.artifact(predictions_name(split))
        return None if file is None else _read_predictions(file, num_images)


def open_run(path: Path) -> StoredRun:
    """A run from its record or its folder.

    Raises:
        UserError: there is no record, it cannot be read, or it names files outside its folder.
    """
    file = path / RECORD_NAME if path.is_dir() else path
    if not file.exists():
        hint = ""
        if path.is_dir() and (inside := sorted(path.glob(f"*/{RECORD_NAME}"))):
            hint = f"; {counted(len(inside), 'record')} below it: {path}/*/{RECORD_NAME}"
        raise UserError(f"{path}: no {RECORD_NAME} here{hint}" if path.is_dir() else f"{path}: no such file")
    try:
        record = read_record(file)
        record.to_yaml()  # a number that has no end when written out is found here
    except UserError:
        raise
    except (ValueError, ArithmeticError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file}: not readable as a record: {error!r}") from None
    run = StoredRun(record, file)
    for name in record.artifacts:
        run.artifact(name)  # none may lead elsewhere, whichever is read later
    return run


def predictions_name(split: str) -> str:
    """How a record's artifacts call the predictions of a split."""
    return "predictions" if split == "test" else f"predictions_{split}"


def read_stored_weights(file: Path) -> dict[str, Tensor]:
    """Tensors of a ``.safetensors`` file.

    Raises:
        UserError: it is not one, or is damaged.
    """
    try:
        return safetensors.torch.load_file(file)
    except Exception as error:  # the reader's own kind, and Python's for odd headers
        raise UserError(f"{file}: not readable as .safetensors: {error}") from None


def _read_predictions(file: Path, num_images: int) -> Predictions:
    try:
        with zipfile.ZipFile(file) as archive:
            if sum(member.file_size for member in archive.infolist()) > (
                _BYTES_PER_IMAGE * num_images + _BYTES_OF_ARCHIVE
            ):
                raise UserError(f"{file}: is too large for the predictions of {num_images:,} images")
        predictions = read_predictions(file)
    except UserError:
        raise
    except Exception as error:  # zipfile's, zlib's and numpy's own kinds
        raise UserError(f"{file}: not readable as predictions: {error}") from None
    for name, kinds in _COLUMNS.items():
        array = getattr(predictions, name)
        if array.shape != (num_images,) or array.dtype.kind not in kinds:
            raise UserError(
                f"{file}: {name}: {array.dtype} of shape {array.shape}, expected one value for each of "
                f"{num_images:,} images"
            )
    return predictions


def with_value(recipe: Mapping[str, Any], section: str, key: str, value: object) -> dict[str, Any]:
    """A copy of a record's recipe with one other value; a section that is no mapping stays as it is."""
    old = recipe.get(section)
    return {**recipe, section: {**old, key: value} if isinstance(old, Mapping) else old}
