"""Checkpoints of a run: written whole or not at all, verified when read, and restored at a restart."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from pugdft.config.schema import TrainSection
from pugdft.errors import UserError, reason
from pugdft.paths import file_sha256, readable_mode, write_atomically
from pugdft.predictions import Predictions, read_predictions
from pugdft.records import BestEpoch
from pugdft.training.attempts import check_mine
from pugdft.training.averaging import Weights
from pugdft.training.distributed import gathered, is_out_of_memory
from pugdft.training.setup import RunComponents
from pugdft.training.trainer import Observer, Position

CHECKPOINT_NAME, PREVIOUS_NAME, RESTART_LOG_NAME = "checkpoint", "checkpoint.previous", "starts.json"
_NEW_NAME, _DAMAGED_NAME = f".{CHECKPOINT_NAME}.new", f"{CHECKPOINT_NAME}.damaged"
_STATE, _WEIGHTS, _OPTIMIZER = "state.json", "weights.safetensors", "optimizer.pt"
_FURTHER, _EMA = "further_", "ema"  # files of other weights; the name of the average
_FORMAT = 1  # one more whenever an older pugdft could not go on from a checkpoint
_CHANGED = "is not what was written"
# What content of another form raises; other damage is found by its digest before it is read.
_UNFIT = (ValueError, KeyError, TypeError, AttributeError, RuntimeError)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass
class RestartLog:
    """The starts of the run in a folder, kept in a file until the run is finished."""

    folder: Path
    # Of each, the time, the update that it went on from, and what was different.
    starts: list[dict[str, Any]] = field(default_factory=list)
    micro_batch_size: int | None = None  # images of a pass and process, if memory did not hold more

    @classmethod
    def read(cls, folder: Path) -> RestartLog:
        """Read a folder's log; empty if it is missing or damaged."""
        log = cls(folder)
        with suppress(OSError, ValueError, KeyError, TypeError):
            content = json.loads((folder / RESTART_LOG_NAME).read_text(encoding="utf-8"))
            log.starts, size = [dict(each) for each in content["starts"]], content["micro_batch_size"]
            log.micro_batch_size = size if type(size) is int and size > 0 else None
        return log

    @property
    def restarts(self) -> list[dict[str, Any]]:
        """All starts that went on from an earlier one, even if the entry of the first one was lost."""
        return [each for number, each in enumerate(self.starts) if number or each.get("step")]

    def write(self) -> None:
        content = {"micro_batch_size": self.micro_batch_size, "starts": self.starts}
        write_atomically(self.folder / RESTART_LOG_NAME, json.dumps(content).encode())


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read from disk; ``state`` is plain data, ``version`` the pugdft that wrote it."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    state: dict[str, Any]
    predictions: dict[str, Predictions]
    version: str
    further: dict[str, Weights] = field(default_factory=dict)  # averaged and kept weights, by name


class OtherVersion(UserError):
    """A checkpoint was written by a version of pugdft that this one cannot go on from."""

    def __init__(self, place: Path, writer: str, why: str) -> None:
        super().__init__(
            f"{place}: was written by another version of pugdft ({writer}; this is {version('pugdft')}) and "
            f"cannot be used here: {why}. Install that version, or begin anew with --no-resume"
        )


def save_weights(weights: nn.Module | Weights, path: Path) -> None:
    """Write tensors as ``.safetensors`` that ``timm.create_model(..., checkpoint_path=…)`` loads."""
    named = weights.state_dict() if isinstance(weights, nn.Module) else weights
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}
    temporary = path.with_name(f".{path.name}.new")
    with ExitStack() as stack:
        stack.callback(temporary.unlink, missing_ok=True)
        with _system_error(path):
            safetensors.torch.save_file(tensors, temporary)
        temporary.chmod(readable_mode())  # safetensors makes private files
        _flush(temporary)
        temporary.replace(path)


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: Any,
    state: dict[str, Any],
    predictions: dict[str, Predictions],
    further: Mapping[str, Weights] | None = None,
) -> None:
    """Write ``folder/checkpoint``; once it is whole, the one before is ``checkpoint.previous``."""
    new, current, previous = (folder / name for name in (_NEW_NAME, CHECKPOINT_NAME, PREVIOUS_NAME))
    shutil.rmtree(new, ignore_errors=True)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, new, ignore_errors=True)
        new.mkdir(parents=True)
        save_weights(model, new / _WEIGHTS)
        for name, weights in (further or {}).items():
            save_weights(weights, new / f"{_FURTHER}{name}.safetensors")
        with _system_error(new / _OPTIMIZER):
            torch.save(optimizer, new / _OPTIMIZER)
        for split, each in predictions.items():
            each.write(new / f"predictions_{split}.npz")
        digests = {path.name: file_sha256(path) for path in sorted(new.iterdir())}
        content = {"format": _FORMAT, "pugdft": version("pugdft"), "sha256": digests, "state": state}
        (new / _STATE).write_text(json.dumps({**content, "own_sha256": _digest(content)}))
        for path in (*new.iterdir(), new):
            _flush(path)
        if current.exists():
            shutil.rmtree(previous, ignore_errors=True)
            current.rename(previous)
        new.rename(current)
        _flush(folder)


def load_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Read a folder's newest whole checkpoint, if any; describe each newer one that is damaged."""
    faults: list[str] = []
    for place in (folder / CHECKPOINT_NAME, folder / PREVIOUS_NAME):
        if not place.is_dir():
            continue
        try:
            return _read(place), faults
        except OtherVersion:
            raise
        except OSError as error:
            faults.append(f"{place}: {Path(error.filename or place).name}: {reason(error)}")
        except _UNFIT as error:
            faults.append(f"{place}: cannot be read ({type(error).__name__})")
    return None, faults


def put_damaged_aside(folder: Path) -> None:
    """Rename the newest checkpoint, which is damaged: a save would put it in the place of the one before."""
    shutil.rmtree(folder / _DAMAGED_NAME, ignore_errors=True)
    with suppress(FileNotFoundError):  # it is the one before that is damaged, and no newer one is there
        (folder / CHECKPOINT_NAME).rename(folder / _DAMAGED_NAME)


def remove_checkpoints(folder: Path) -> None:
    """Delete the checkpoints and the restart log of a run, after the files that replace them are on disk."""
    if folder.is_dir():
        _flush(folder)
    for name in (_NEW_NAME, _DAMAGED_NAME, PREVIOUS_NAME, CHECKPOINT_NAME):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / RESTART_LOG_NAME).unlink(missing_ok=True)


def _read(place: Path) -> Checkpoint:
    """Read a checkpoint; raises OtherVersion, OSError or one of ``_UNFIT``."""
    content = json.loads((place / _STATE).read_text(encoding="utf-8"))
    if content.pop("own_sha256") != _digest(content):
        raise OSError(errno.EBADMSG, _CHANGED, _STATE)
    # Checkpoints from before there was a number have format 1, and do not say who wrote them.
    number, writer = content.get("format", 1), str(content.get("pugdft", "an older one"))
    if number != _FORMAT:
        raise OtherVersion(place, writer, f"its format is {number}, not {_FORMAT}")
    for file, digest in content["sha256"].items():
        if Path(file).name != file or file_sha256(place / file) != digest:
            raise OSError(errno.EBADMSG, _CHANGED, file)
    weights = safetensors.torch.load_file(place / _WEIGHTS)
    optimizer = torch.load(place / _OPTIMIZER, weights_only=True, map_location="cpu")
    files = [place / file for file in content["sha256"] if file.startswith("predictions_")]
    predictions = {file.stem.removeprefix("predictions_"): read_predictions(file) for file in files}
    names = [file for file in content["sha256"] if file.startswith(_FURTHER)]
    further = {
        Path(file).stem.removeprefix(_FURTHER): safetensors.torch.load_file(place / file) for file in names
    }
    return Checkpoint(weights, optimizer, content["state"], predictions, writer, further)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@contextmanager
def _system_error(path: Path) -> Iterator[None]:
    """Raise the system's error behind a library's, which has it in words only, if at all."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        known = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)
        number = next((each for each in known if os.strerror(each).lower() in str(error).lower()), 0)
        if not number and shutil.disk_usage(path.parent).free < 1 << 20:
            number = errno.ENOSPC
        why = os.strerror(number) if number else reason(error)
        raise OSError(number or errno.EIO, why, str(path)) from None


def _flush(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network and user-space file systems cannot flush a folder by itself, which is no fault.
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise
    finally:
        os.close(handle)


@dataclass(frozen=True)
class BestValidation:
    """The best epoch so far on held-out images: of the highest top-1, then of the lowest loss."""

    epoch: int
    top1: float
    loss: float

    def is_beaten_by(self, other: BestValidation) -> bool:
        return (other.top1, -other.loss) > (self.top1, -self.loss)


def chooses_epochs(train: TrainSection) -> bool:
    """Whether a run remembers its best epoch on held-out images."""
    return train.keep == "best" or train.patience is not None


@dataclass
class RunState:
    """The part of a checkpoint that is neither weights nor optimizer state."""

    position: Position = field(default_factory=Position)
    history: list[dict[str, Any]] = field(default_factory=list)
    best_test: BestEpoch | None = None
    # Of the newest evaluation, or of the epoch that is kept, by split.
    predictions: dict[str, Predictions] = field(default_factory=dict)
    best_validation: BestValidation | None = None  # if the recipe has ``keep: best`` or ``patience``
    kept: dict[str, Weights] = field(default_factory=dict)  # weights of the best epoch, by their files' names
    # The sums of the epoch's Totals over all processes, as of the last save.
    totals: list[float] = field(default_factory=lambda: [0.0] * 4)
    snapshots: dict[str, str] = field(default_factory=dict)  # sha256 of each, by the number of updates


@dataclass
class CheckpointManager:
    """Saves and restores the checkpoints of one run: the state of its components, and a log of its starts."""

    folder: Path
    components: RunComponents
    restart_log: RestartLog
    observer: Observer
    _saved_step: int | None = None

    def resume(self) -> RunState:
        """Restore the newest whole checkpoint, if it is of this run, and log the start."""
        checkpoint, faults = load_checkpoint(self.folder)
        for fault in faults:
            self.observer.on_message(f"a checkpoint is damaged and is left out: {fault}")
        accelerator, facts, state = self.components.accelerator, dict[str, Any](), RunState()
        if len(set(gathered(accelerator, checkpoint.state["position"]["steps"] if checkpoint else -1))) > 1:
            raise UserError(
                f"{self.folder}: the processes of this run find different checkpoints here; --output has to "
                "be on a disk that all of them share"
            )
        if faults and accelerator.is_main_process:
            put_damaged_aside(self.folder)
        if checkpoint is not None:
            state = self._restore(checkpoint)
            self._saved_step = state.position.steps
            self.observer.on_message(f"going on from update {self._saved_step}")
            before, processes = checkpoint.state["processes"], accelerator.num_processes
            if before != processes:
                facts = {"processes": processes}
                self.observer.on_message(
                    f"it began with {before} processes and goes on with {processes}: the result is not what "
                    "it would have been, for BatchNorm averages over each process's images and sums are "
                    "taken in another order"
                )
        log = self.restart_log
        if log.micro_batch_size is not None:
            facts["micro_batch_size"] = log.micro_batch_size
        log.starts.append({"time": now(), "step": self._saved_step or 0, **facts})
        if accelerator.is_main_process:
            log.write()
        return state

    def save(self, state: RunState) -> None:
        """Make a checkpoint, all processes together; only report it if the disk does not take it."""
        components, accelerator = self.components, self.components.accelerator
        model, optimizer = components.backbone.model, components.optimizer.state_dict()
        further = dict(state.kept)
        if components.average is not None:
            further[_EMA] = components.average.tensors
        if accelerator.is_main_process:
            try:
                check_mine(self.folder)
                content = self._content(state)
                save_checkpoint(self.folder, model, optimizer, content, state.predictions, further)
                self._saved_step = state.position.steps
            except OSError as error:
                where = f"{error.filename or self.folder}: {reason(error)}"
                stays = self.with_saved_step("; that of update {} stays")
                self.observer.on_message(f"no checkpoint could be made: {where}{stays}")
        accelerator.wait_for_everyone()

    def _content(self, state: RunState) -> dict[str, Any]:
        """Return what a checkpoint's ``state.json`` says of a run."""
        components, best = self.components, state.best_validation
        chosen = {"best_validation": asdict(best) if best else None}
        return {
            **(chosen if chooses_epochs(components.recipe.train) else {}),
            **({"snapshots": state.snapshots} if components.recipe.train.takes_snapshots else {}),
            "position": asdict(state.position),
            "history": state.history,
            "best_test": state.best_test.model_dump() if state.best_test else None,
            "totals": state.totals,
            "sources": {"images": components.store.sha256, "weights": components.backbone.weights_sha256},
            "processes": components.accelerator.num_processes,
        }

    def with_saved_step(self, words: str) -> str:
        """Format ``words`` with the newest checkpoint's update; empty if there is no checkpoint."""
        return "" if self._saved_step is None else words.format(self._saved_step)

    def _restore(self, checkpoint: Checkpoint) -> RunState:
        """Load a checkpoint into model and optimizer; check that it belongs to this run and version."""
        content, optimizer = checkpoint.state, self.components.optimizer
        try:
            known = self._content(RunState())
            _require_keys(content, known)
            _require_keys(content["position"], known["position"])
            for what, here in known["sources"].items():
                there = content["sources"][what]
                if there != here:
                    raise UserError(
                        f"{self.folder}: the {what} have changed since this run began ({there[:12]}… "
                        f"then, {here[:12]}… now); --no-resume starts anew"
                    )
            own, best = optimizer.state_dict(), content["best_test"]
            _require_keys(checkpoint.optimizer, own)
            _require_keys(checkpoint.optimizer["pugdft"], own["pugdft"])
            self.components.backbone.model.load_state_dict(checkpoint.weights)
            optimizer.load_state_dict(checkpoint.optimizer)
            position, best_test = Position(**content["position"]), BestEpoch(**best) if best else None
            history, totals = content["history"], content["totals"]
            further, validation = dict(checkpoint.further), content.get("best_validation")
            if self.components.average is not None:
                self.components.average.load(further.pop(_EMA))
            best_validation = BestValidation(**validation) if validation else None
            # fmt: off
            return RunState(
                position, history, best_test, checkpoint.predictions, best_validation, further, totals,
                content.get("snapshots", {}),
            )
            # fmt: on
        except _UNFIT as error:
            if isinstance(error, UserError) or is_out_of_memory(error):
                raise
            words = reason(error) if type(error) is ValueError else f"{type(error).__name__}: {reason(error)}"
            raise OtherVersion(self.folder / CHECKPOINT_NAME, checkpoint.version, words) from None


def _require_keys(found: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raise ValueError unless a part of a checkpoint has exactly the keys that this version writes."""
    if different := set(found) ^ set(known):
        raise ValueError(f"missing or unknown {', '.join(sorted(map(repr, different)))}")
