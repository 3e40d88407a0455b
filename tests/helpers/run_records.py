"""Run records, alone or with predictions beside them, and the groups that a leaderboard makes of them."""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from pugdft.leaderboard import Group, Loaded, build_leaderboard, print_table
from pugdft.paths import file_sha256
from pugdft.predictions import Predictions
from pugdft.records import RunRecord, write_record

SGD = {"name": "sgd", "lr": 0.01, "momentum": 0.9}
ADAMW = {"name": "adamw", "lr": 0.001}
SAM = {"name": "sam", "rho": 0.05, "base": SGD}
PUGD = {"name": "pugd", "rho": 1.0, "base": SGD}

_numbers = itertools.count()


def record(
    optimizer: dict[str, Any] = SGD,
    seed: int = 0,
    top1: float | None = 0.9,
    num_images: int = 1000,
    status: str = "completed",
    **changes: Any,
) -> RunRecord:
    """``changes`` are ``section__key=value`` of the recipe or of a section of the record, or its fields."""
    recipe: dict[str, Any] = {
        "model": {"name": "resnet18", "pretrained": True},
        "data": {"name": "cifar10", "image_size": 224},
        "optimizer": optimizer,
        "schedule": {"name": "cosine"},
        "train": {"epochs": 10, "batch_size": 100, "precision": "fp32", "seed": seed},
    }
    fields: dict[str, Any] = {
        "schema": "pugdft.run/1",
        "id": f"run-{next(_numbers):06d}",
        "status": status,
        "seed": seed,
        "recipe": recipe,
        "environment": {"torch": "2.9.0", "device_name": "cpu"},
    }
    if status == "completed" and top1 is not None:
        fields["metrics"] = {"test": {"top1": top1, "top5": 0.99, "loss": 0.3, "ece": 0.02}}
        fields["data"] = facts(changes.get("data__name", "cifar10"), num_images=num_images)
        fields["cost"] = {"gradient_passes": 1000, "train_seconds": 60.0}
    for key, value in changes.items():
        section, separator, option = key.partition("__")
        if separator and section in recipe:
            recipe[section][option] = value
        elif separator:
            fields.setdefault(section, {})[option] = value
        elif key == "tuning":
            recipe[key] = value
        else:
            fields[key] = value
    return RunRecord.model_validate(fields)


def facts(name: str, sha256: str | None = None, num_images: int = 10_000) -> dict[str, Any]:
    """A record's ``data``; by default data sets of different names hold different images."""
    sha256 = sha256 or ("ab" * 32 if name == "cifar10" else hashlib.sha256(name.encode()).hexdigest())
    return {"name": name, "classes": 10, "sizes": {"train": 50_000, "test": num_images}, "sha256": sha256}


def board(*records: RunRecord, **filters: Any) -> list[Group]:
    return build_leaderboard(loaded(*records), **filters)


def labels(group: Group) -> list[str]:
    return [entry.label for entry in group.entries]


def ranks(group: Group) -> list[tuple[int | None, int | None]]:
    return [(entry.rank_low, entry.rank_high) for entry in group.entries]


def table(groups: list[Group], width: int = 100, full: bool = True, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=width, **options)
    print_table(groups, console, full)
    return console.file.getvalue()  # type: ignore[attr-defined]


def predictions(correct: np.ndarray, labels_seed: int = 0) -> Predictions:
    """Of a network that gets these images right; ``labels_seed``: a multiple of ten has labels of its own.

    One to nine are the labels of zero in other orders.
    """
    labels = np.random.default_rng(labels_seed // 10).integers(0, 10, len(correct))
    if order := labels_seed % 10:
        labels = np.random.default_rng(order).permutation(labels)
    random = np.random.default_rng(1)
    return Predictions(
        label=labels,
        prediction=np.where(correct, labels, (labels + 1) % 10),
        in_top5=correct | (random.random(len(correct)) < 0.5),
        confidence=np.full(len(correct), 0.8, np.float32),
        loss=np.where(correct, 0.1, 2.0).astype(np.float32),
    )


def stored(
    folder: Path, correct: np.ndarray, optimizer: dict[str, Any] = SGD, seed: int = 0, **changes: Any
) -> Loaded:
    """A run that got these images right, in a folder of its own with its predictions."""
    made = predictions(np.asarray(correct, dtype=bool), changes.pop("labels_seed", 0))
    own = folder / f"{optimizer['name']}-{seed}"
    own.mkdir(parents=True, exist_ok=True)
    made.write(own / "predictions.npz")
    changes.setdefault("metrics", {"test": made.metrics().model_dump()})
    digest = file_sha256(own / "predictions.npz")
    changes.setdefault("artifacts", {"predictions": {"path": "predictions.npz", "sha256": digest}})
    run = record(optimizer, seed, num_images=len(correct), **changes)
    return Loaded(run, write_record(run, own))


def loaded(*records: RunRecord | Loaded | Sequence[RunRecord | Loaded]) -> list[Loaded]:
    """As they come from ``collect``; records alone have no file."""
    flat: list[Loaded] = []
    for each in records:
        if isinstance(each, Loaded):
            flat.append(each)
        elif isinstance(each, RunRecord):
            flat.append(Loaded(each, Path("nowhere", each.id, "record.yaml")))
        else:
            flat += loaded(*each)
    return flat
