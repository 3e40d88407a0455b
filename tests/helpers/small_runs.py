"""Runs of a few updates, what they come to, and in which bits two of them differ: for tests of resumption."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from pugdft.records import RunRecord, read_record
from pugdft.training.run import finetune, read_recipe
from pugdft.training.setup import RunComponents, assemble, load, make_accelerator
from pugdft.training.trainer import Observer, Position, Totals

SGD: dict[str, Any] = {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}
ADAMW: dict[str, Any] = {"name": "adamw", "lr": 1e-3}
Weights = dict[str, torch.Tensor]
# 24 images a training split, three updates an epoch.
IMAGES = {"train": 8, "test": 3}
BATCH = 8


def tiny_recipe(images: Path, optimizer: dict[str, Any] | None = None, **train: Any) -> dict[str, Any]:
    """Two epochs of three updates of a small ResNet (with BatchNorm) on 16-pixel images."""
    return {
        "model": {"name": "test_resnet", "pretrained": False},
        "data": {"name": str(images), "image_size": 16, "crop_padding": 2},
        "optimizer": optimizer or {"name": "sam", "base": SGD},
        "train": {"epochs": 2, "batch_size": BATCH, **train},
    }


@dataclass
class Outcome:
    """What a finished run has left."""

    record: RunRecord
    weights: dict[str, torch.Tensor]
    predictions: dict[str, dict[str, np.ndarray]]


def outcome_of(folder: Path) -> Outcome:
    """Read from the run's folder."""
    weights = folder / "model.safetensors"
    predictions = {}
    for path in folder.glob("predictions*.npz"):
        with np.load(path) as arrays:
            predictions[path.name] = dict(arrays)
    return Outcome(
        read_record(folder / "record.yaml"),
        safetensors.torch.load_file(weights) if weights.exists() else {},
        predictions,
    )


def differences(first: Outcome, second: Outcome) -> list[str]:
    """Names of everything that is not the same to the last bit; times and places aside."""
    found = []
    for name in first.weights.keys() | second.weights.keys():
        pair = first.weights.get(name), second.weights.get(name)
        if pair[0] is None or pair[1] is None or pair[0].numpy().tobytes() != pair[1].numpy().tobytes():
            found.append(f"weight {name}")
    for file in first.predictions.keys() | second.predictions.keys():
        theirs, ours = first.predictions.get(file, {}), second.predictions.get(file, {})
        for name in theirs.keys() | ours.keys():
            if theirs.get(name, np.zeros(0)).tobytes() != ours.get(name, np.ones(0)).tobytes():
                found.append(f"{file} {name}")
    one, other = without_times(first.record), without_times(second.record)
    for key in one.keys() | other.keys():
        if repr(one.get(key)) != repr(other.get(key)):  # of NaN too
            found.append(f"record {key}")
    return sorted(found)


def without_times(record: RunRecord) -> dict[str, Any]:
    """A record without what two equal runs may differ in."""
    data = copy.deepcopy(record.model_dump())
    for row in data["history"]:
        row.pop("train_seconds")
    for key in ("environment", "restarts", "artifacts"):  # artifacts are compared by their content
        data.pop(key)
    for key in ("train_seconds", "eval_seconds", "images_per_second", "peak_memory_bytes"):
        data["cost"].pop(key)
    return data


class StopAt(Observer):
    """Sends this process SIGTERM after an update, as a scheduler would."""

    def __init__(self, step: int, sends: bool = True) -> None:
        self.step, self.sends = step, sends

    def on_step(self, position: Position, totals: Totals, done: float) -> None:
        if position.steps == self.step and self.sends:
            os.kill(os.getpid(), signal.SIGTERM)


class Messages(Observer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def on_message(self, text: str) -> None:
        self.texts.append(text)

    def among(self, words: str) -> bool:
        """Whether one of them has these words."""
        return any(words in text for text in self.texts)


def whole_run(recipe: dict[str, Any], folder: Path, *overrides: str) -> Outcome:
    """Unbroken."""
    record, _ = finetune(read_recipe(recipe, overrides), folder)
    assert record.status == "completed", record.error
    return outcome_of(folder)


def cut_run(
    recipe: dict[str, Any], folder: Path, stops: Sequence[int], *overrides: str, sends: bool = True
) -> Outcome:
    """Stopped after each of these updates, and resumed each time by reading everything anew."""
    for step in stops:
        record, _ = finetune(read_recipe(recipe, overrides), folder, observer=StopAt(step, sends))
        assert (record.status, record.cost.steps) == ("interrupted", step), record.error
    record, _ = finetune(read_recipe(recipe, overrides), folder)
    assert record.status == "completed", record.error
    assert len(record.restarts) == len(stops)
    return outcome_of(folder)


def run(recipe: dict[str, Any], output: Path, *overrides: str, **options: Any) -> tuple[RunRecord, Weights]:
    """Run a recipe; return the record and the weights, empty without weights."""
    record, path = finetune(read_recipe(recipe, overrides), output, **options)
    assert path == output / "record.yaml"
    model = output / "model.safetensors"
    return record, safetensors.torch.load_file(model) if model.exists() else {}


def parts_of(recipe: dict[str, Any], *overrides: str) -> RunComponents:
    """Build the components of a run without running it."""
    resolved = read_recipe(recipe, overrides)
    accelerator = make_accelerator(resolved)
    return assemble(resolved, accelerator, *load(resolved))


def largest_difference(first: Weights, second: Weights) -> float:
    """Return the largest difference of two weights of the same name and place."""
    assert first.keys() == second.keys()
    return max(float((first[k].double() - second[k].double()).abs().max()) for k in first)
