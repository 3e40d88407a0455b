"""Whole small runs, and what two of them differ in."""

from __future__ import annotations

import copy
import os
import signal
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from pugdft.records import RunRecord
from pugdft.training.callbacks import Observer
from pugdft.training.run import finetune, read_recipe
from pugdft.training.setup import RunComponents, assemble, load, make_accelerator
from pugdft.training.trainer import Position, Totals

Weights = dict[str, torch.Tensor]


def run(recipe: dict[str, Any], output: Path, *overrides: str, **options: Any) -> tuple[RunRecord, Weights]:
    record, path = finetune(read_recipe(recipe, overrides), output, **options)
    assert path == output / "record.yaml"
    model = output / "model.safetensors"
    return record, safetensors.torch.load_file(model) if model.exists() else {}


def parts_of(recipe: dict[str, Any], *overrides: str) -> RunComponents:
    resolved = read_recipe(recipe, overrides)
    accelerator = make_accelerator(resolved)
    return assemble(resolved, accelerator, *load(resolved))


def largest_difference(first: Weights, second: Weights) -> float:
    assert first.keys() == second.keys()
    return max(float((first[k].double() - second[k].double()).abs().max()) for k in first)


class StopAt(Observer):
    """Sends this process a signal after an update, as a person or a scheduler would."""

    def __init__(self, step: int, number: int = signal.SIGTERM) -> None:
        self.step, self.number = step, number

    def on_step(self, position: Position, totals: Totals, done: float) -> None:
        if position.steps == self.step:
            os.kill(os.getpid(), self.number)


def without_times(record: RunRecord) -> dict[str, Any]:
    data = copy.deepcopy(record.model_dump())
    for row in data["history"]:
        row.pop("train_seconds")
    for key in ("environment", "restarts"):
        data.pop(key)
    for key in ("train_seconds", "eval_seconds", "images_per_second", "peak_memory_bytes"):
        data["cost"].pop(key)
    return data
