"""Checkpoints: everything a run needs to go on as if nothing had happened, whole or not at all.

``checkpoint/`` in the output folder holds ``weights.safetensors``, ``optimizer.pt`` (read with
``weights_only``), the newest predictions and ``state.json``. A new one is built beside and renamed; the
old one goes last.
"""

from __future__ import annotations

import json
import os
import shutil
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

_NAME = "checkpoint"
_OLD_NAME = "checkpoint.previous"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read from disk."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    state: dict[str, Any]
    predictions: dict[str, Predictions]


def save_weights(model: nn.Module, path: Path) -> None:
    """The model as ``.safetensors`` that ``timm.create_model(..., checkpoint_path=…)`` loads."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    temporary = path.with_name(f".{path.name}.new")
    safetensors.torch.save_file(tensors, temporary)
    temporary.chmod(readable_mode())  # safetensors makes private files
    _flush(temporary)
    temporary.replace(path)


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: dict[str, Any],
    state: dict[str, Any],
    predictions: Mapping[str, Predictions],
) -> None:
    """Write ``folder/checkpoint``; until it is whole the one before stays."""
    temporary = folder / f".{_NAME}.new"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_weights(model, temporary / "weights.safetensors")
    torch.save(optimizer, temporary / "optimizer.pt")
    _flush(temporary / "optimizer.pt")
    for split, each in predictions.items():
        each.write(temporary / f"predictions_{split}.npz")
    digests = {path.name: file_sha256(path) for path in sorted(temporary.iterdir())}
    (temporary / "state.json").write_text(json.dumps({"sha256": digests, "state": state}))
    _flush(temporary / "state.json")
    current, old = folder / _NAME, folder / _OLD_NAME
    shutil.rmtree(old, ignore_errors=True)
    if current.exists():
        current.rename(old)
    temporary.rename(current)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint of an output folder, or None."""
    for name in (_NAME, _OLD_NAME):
        place = folder / name
        try:
            meta = json.loads((place / "state.json").read_text())
            if any(file_sha256(place / file) != digest for file, digest in meta["sha256"].items()):
                continue
            return Checkpoint(
                safetensors.torch.load_file(place / "weights.safetensors"),
                torch.load(place / "optimizer.pt", weights_only=True, map_location="cpu"),
                meta["state"],
                {
                    path.stem.removeprefix("predictions_"): read_predictions(path)
                    for path in place.glob("predictions_*.npz")
                },
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError):
            continue
    return None


def remove_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of an output folder."""
    for name in (_NAME, _OLD_NAME, f".{_NAME}.new"):
        shutil.rmtree(folder / name, ignore_errors=True)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
