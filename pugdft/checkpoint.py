"""Checkpoints: everything a run needs to go on as if nothing had happened, whole or not at all.

``checkpoint/`` in the output folder holds ``weights.safetensors``, ``optimizer.pt`` (read with
``weights_only``), the newest predictions and ``state.json`` with the digests of all of them.
``checkpoint.previous/`` is the one before. A new one is built beside, flushed to the disk and renamed, so
that at any instant one of the two is whole.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import shutil
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from pugdft.predictions import Predictions, read_predictions
from pugdft.record import file_sha256, readable_mode

CHECKPOINT_NAME = "checkpoint"
PREVIOUS_NAME = "checkpoint.previous"
_NEW_NAME, _DAMAGED_NAME = f".{CHECKPOINT_NAME}.new", f"{CHECKPOINT_NAME}.damaged"
_STATE, _WEIGHTS, _OPTIMIZER = "state.json", "weights.safetensors", "optimizer.pt"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read from disk; ``state`` is plain data."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    state: dict[str, Any]
    predictions: dict[str, Predictions]


class _Damaged(Exception):
    """A checkpoint is there and is not what was written; says what is wrong with it."""


def save_weights(model: nn.Module, path: Path) -> None:
    """The model as ``.safetensors`` that ``timm.create_model(..., checkpoint_path=…)`` loads.

    Raises:
        OSError: it cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    temporary = path.with_name(f".{path.name}.new")
    try:
        safetensors.torch.save_file(tensors, temporary)
        temporary.chmod(readable_mode())  # safetensors makes private files
        _flush(temporary)
        temporary.replace(path)
    except (SafetensorError, OSError) as error:
        temporary.unlink(missing_ok=True)
        raise error if isinstance(error, OSError) else _writing_failed(path, error) from None


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: dict[str, Any],
    state: dict[str, Any],
    predictions: Mapping[str, Predictions],
) -> None:
    """Write ``folder/checkpoint``; until it is whole the one before stays, and then as the previous one.

    Raises:
        OSError: it cannot be written; what was there is still there.
    """
    new = folder / _NEW_NAME
    shutil.rmtree(new, ignore_errors=True)
    try:
        new.mkdir(parents=True)
        save_weights(model, new / _WEIGHTS)
        try:
            torch.save(optimizer, new / _OPTIMIZER)
        except RuntimeError as error:  # how torch says that a file cannot be written
            raise _writing_failed(new / _OPTIMIZER, error) from None
        for split, each in predictions.items():
            each.write(new / f"predictions_{split}.npz")
        digests = {path.name: file_sha256(path) for path in sorted(new.iterdir())}
        content = {"sha256": digests, "state": state}
        (new / _STATE).write_text(json.dumps({**content, "own_sha256": _digest(content)}))
        for path in (*new.iterdir(), new):
            _flush(path)
        current, previous = folder / CHECKPOINT_NAME, folder / PREVIOUS_NAME
        if current.exists():
            shutil.rmtree(previous, ignore_errors=True)
            current.rename(previous)
        new.rename(current)
        _flush(folder)
    except OSError:
        shutil.rmtree(new, ignore_errors=True)
        raise


def load_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint of an output folder, or None.

    Returns:
        It, and what is wrong with newer ones, in words.
    """
    faults = []
    for name in (CHECKPOINT_NAME, PREVIOUS_NAME):
        try:
            found = _read(folder / name)
        except _Damaged as error:
            faults.append(f"{folder / name}: {error}")
            continue
        if found is not None:
            return found, faults
    return None, faults


def put_damaged_aside(folder: Path) -> None:
    """Move the newest checkpoint, found damaged, away: saving would put it in the place of the one before."""
    current, aside = folder / CHECKPOINT_NAME, folder / _DAMAGED_NAME
    try:
        _read(current)
    except _Damaged:
        shutil.rmtree(aside, ignore_errors=True)
        current.rename(aside)


def remove_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of an output folder, once what was written in their place is on the disk."""
    if folder.is_dir():
        _flush(folder)
    for name in (_NEW_NAME, _DAMAGED_NAME, PREVIOUS_NAME, CHECKPOINT_NAME):
        shutil.rmtree(folder / name, ignore_errors=True)


def _read(place: Path) -> Checkpoint | None:
    """A checkpoint's contents; None if there is nothing.

    Raises:
        _Damaged: a file is missing, has other bytes than were written, or cannot be read.
    """
    if not place.is_dir():
        return None
    try:
        content = json.loads((place / _STATE).read_text(encoding="utf-8"))
        if _digest({key: content[key] for key in ("sha256", "state")}) != content["own_sha256"]:
            raise _Damaged(f"{_STATE} is not what was written")
        for file, digest in content["sha256"].items():
            if Path(file).name != file or file_sha256(place / file) != digest:
                raise _Damaged(f"{file} is not what was written")
        splits = [
            file.removeprefix("predictions_").removesuffix(".npz")
            for file in content["sha256"]
            if file.startswith("predictions_")
        ]
        return Checkpoint(
            safetensors.torch.load_file(place / _WEIGHTS),
            torch.load(place / _OPTIMIZER, weights_only=True, map_location="cpu"),
            content["state"],
            {split: read_predictions(place / f"predictions_{split}.npz") for split in splits},
        )
    except OSError as error:
        raise _Damaged(f"{Path(error.filename or place).name}: {error.strerror or error}") from None
    except (
        ValueError, KeyError, TypeError, AttributeError, RuntimeError, EOFError,
        SafetensorError, pickle.UnpicklingError, zipfile.BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        raise _Damaged(f"cannot be read ({type(error).__name__})") from None


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _writing_failed(path: Path, error: Exception) -> OSError:
    """The system's error behind a library's: these carry it in words only, if at all."""
    words = str(error)
    known = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)
    number = next((each for each in known if os.strerror(each).lower() in words.lower()), 0)
    if not number and shutil.disk_usage(path.parent).free < 1 << 20:
        number = errno.ENOSPC
    first_line = (words.splitlines() or [type(error).__name__])[0]
    return OSError(number or errno.EIO, os.strerror(number) if number else first_line, str(path))


def _flush(path: Path) -> None:
    """See a file, or the names in a folder, onto the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network and user-space file systems cannot flush a folder by itself, which is no fault.
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise
    finally:
        os.close(handle)
