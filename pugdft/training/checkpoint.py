"""Every start of a run, kept in its folder until the run is finished: what its record lists as restarts."""

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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from pugdft.errors import UserError
from pugdft.paths import file_sha256, readable_mode, write_atomically
from pugdft.predictions import Predictions, read_predictions
from pugdft.records import (
    BestEpoch,
)
from pugdft.training.callbacks import Observer
from pugdft.training.distributed import require_same
from pugdft.training.environment import now
from pugdft.training.setup import Parts
from pugdft.training.trainer import Position

STARTS_NAME = "starts.json"


@dataclass
class Starts:
    """The starts of the run in a folder.

    Attributes:
        entries: of each, the time, the update that it went on from, and what was different.
        micro_batch_size: images a forward pass and process, if memory did not hold more.
    """

    folder: Path
    entries: list[dict[str, Any]] = field(default_factory=list)
    micro_batch_size: int | None = None

    @classmethod
    def of(cls, folder: Path) -> Starts:
        """What the folder says; nothing if it says nothing that can be read."""
        try:
            known = json.loads((folder / STARTS_NAME).read_text(encoding="utf-8"))
            entries = [dict(each) for each in known["starts"]]
            size = known["micro_batch_size"]
        except (OSError, ValueError, KeyError, TypeError):
            return cls(folder)
        return cls(folder, entries, size if type(size) is int and size > 0 else None)

    @property
    def began(self) -> str:
        """When the run was first started, in UTC."""
        return str(self.entries[0].get("time", "")) if self.entries else now()

    @property
    def restarts(self) -> list[dict[str, Any]]:
        """The starts that went on from an earlier one: all but the first, even if that one's was lost."""
        is_whole = not self.entries or not self.entries[0].get("step")
        return self.entries[1:] if is_whole else self.entries

    def add(self, step: int, **facts: Any) -> None:
        """The run starts now, after ``step`` updates that were made before."""
        if self.micro_batch_size is not None:
            facts["micro_batch_size"] = self.micro_batch_size
        self.entries.append({"time": now(), "step": step, **facts})

    def write(self) -> None:
        """Keep them in the folder."""
        content = {"micro_batch_size": self.micro_batch_size, "starts": self.entries}
        write_atomically(self.folder / STARTS_NAME, json.dumps(content).encode())

    def remove(self) -> None:
        """Forget them: the record has them, or the run begins anew."""
        (self.folder / STARTS_NAME).unlink(missing_ok=True)
        self.entries, self.micro_batch_size = [], None


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


@dataclass
class Progress:
    """What a run has come to: the part of a checkpoint that is neither weights nor optimizer state.

    Attributes:
        predictions: of the newest evaluation, by split.
    """

    position: Position = field(default_factory=Position)
    history: list[dict[str, Any]] = field(default_factory=list)
    best_test: BestEpoch | None = None
    predictions: dict[str, Predictions] = field(default_factory=dict)

    def to_state(self) -> dict[str, Any]:
        """Plain data for a checkpoint, but for the predictions."""
        return {
            "position": asdict(self.position),
            "history": self.history,
            "best_test": self.best_test.model_dump() if self.best_test else None,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], predictions: dict[str, Predictions]) -> Progress:
        """Go on from a checkpoint."""
        return cls(
            position=Position(**state["position"]),
            history=state["history"],
            best_test=BestEpoch(**state["best_test"]) if state["best_test"] else None,
            predictions=predictions,
        )


class Keeper:
    """The checkpoints of one run in its folder.

    Args:
        folder: the run's.
        parts: whose state is kept; changed in place when the run goes back to a checkpoint.
        starts: of the run so far; one more is noted.
        observer: hears of what is found or fails.
    """

    def __init__(self, folder: Path, parts: Parts, starts: Starts, observer: Observer) -> None:
        self._folder, self._parts, self._starts, self._observer = folder, parts, starts, observer
        self._saved_at: int | None = None

    def begin(self) -> tuple[Progress, list[float]] | None:
        """Go back to the newest whole checkpoint and note the start.

        Returns:
            What the run had come to and the sums of its epoch; None without a checkpoint.

        Raises:
            UserError: it was made with other images or other initial weights, or not all processes find it.
        """
        checkpoint, damage = load_checkpoint(self._folder)
        for fault in damage:
            self._observer.on_message(f"a checkpoint is damaged and is left out: {fault}")
        accelerator, facts, found = self._parts.accelerator, dict[str, Any](), None
        require_same(
            accelerator,
            -1 if checkpoint is None else checkpoint.state["position"]["steps"],
            f"{self._folder}: the processes of this run find different checkpoints here; --output has to be "
            "on a disk that all of them share",
        )
        if damage and accelerator.is_main_process:
            put_damaged_aside(self._folder)
        if checkpoint is not None:
            found = self._restored(checkpoint), checkpoint.state["totals"]
            self._saved_at = found[0].position.steps
            self._observer.on_message(f"going on from update {self._saved_at}")
            if checkpoint.state["processes"] != accelerator.num_processes:
                facts = {"processes": accelerator.num_processes}
                self._observer.on_message(
                    f"it began with {checkpoint.state['processes']} processes and goes on with "
                    f"{accelerator.num_processes}: the result is not what it would have been, for BatchNorm "
                    "averages over each process's images and sums are taken in another order"
                )
        self._starts.add(self._saved_at or 0, **facts)
        if accelerator.is_main_process:
            self._starts.write()
        return found

    def save(self, progress: Progress, totals: list[float]) -> None:
        """Make a checkpoint, all processes together; a disk that does not take it is only told of.

        Args:
            progress: of the run.
            totals: the epoch's sums over all processes.
        """
        parts, accelerator = self._parts, self._parts.accelerator
        optimizer = parts.optimizer.state_dict()
        if accelerator.is_main_process:
            state = {
                **progress.to_state(),
                "totals": totals,
                "sources": self._sources(),
                "processes": accelerator.num_processes,
            }
            try:
                save_checkpoint(self._folder, parts.backbone.model, optimizer, state, progress.predictions)
                self._saved_at = progress.position.steps
            except OSError as error:
                where = f"{error.filename or self._folder}: {error.strerror or error}"
                stays = self.in_words("; that of update {} stays")
                self._observer.on_message(f"no checkpoint could be made: {where}{stays}")
        accelerator.wait_for_everyone()

    def in_words(self, words: str) -> str:
        """``words`` with the update that the newest checkpoint is of; nothing if there is none."""
        return "" if self._saved_at is None else words.format(self._saved_at)

    def _restored(self, checkpoint: Checkpoint) -> Progress:
        now = self._sources()
        for what, digest in checkpoint.state["sources"].items():
            if now[what] != digest:
                raise UserError(
                    f"{self._folder}: the {what} have changed since this run began ({digest[:12]}… then, "
                    f"{now[what][:12]}… now); --no-resume starts anew"
                )
        self._parts.backbone.model.load_state_dict(checkpoint.weights)
        self._parts.optimizer.load_state_dict(checkpoint.optimizer)
        return Progress.from_state(checkpoint.state, checkpoint.predictions)

    def _sources(self) -> dict[str, str]:
        return {"images": self._parts.store.sha256, "weights": self._parts.backbone.weights_sha256}
