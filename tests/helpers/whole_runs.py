"""Whole small runs, and what two of them differ in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from pugdft.records import RunRecord
from pugdft.training.run import finetune, read_recipe
from pugdft.training.setup import RunComponents, assemble, load, make_accelerator

Weights = dict[str, torch.Tensor]


def run(recipe: dict[str, Any], output: Path, *overrides: str, **options: Any) -> tuple[RunRecord, Weights]:
    """Run a recipe; return the record and the weights, empty without weights."""
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
