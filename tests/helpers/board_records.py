"""Records of runs as a leaderboard groups them, and what it makes of them."""

from __future__ import annotations

import io
import itertools
import math
from pathlib import Path
from typing import Any

from rich.console import Console

from pugdft.leaderboard import Group, Loaded, build_leaderboard, print_table
from pugdft.records import RunRecord

NAN = math.nan


SGD = {"name": "sgd", "lr": 0.01, "momentum": 0.9}


ADAMW = {"name": "adamw", "lr": 0.001}


SAM = {"name": "sam", "rho": 0.05, "base": SGD}


PUGD = {"name": "pugd", "rho": 1.0, "base": SGD}


_numbers = itertools.count()


def run(
    optimizer: dict[str, Any] = SGD,
    seed: int = 0,
    top1: float | None = 0.9,
    status: str = "completed",
    **changes: Any,
) -> RunRecord:
    """A record; ``changes`` are ``section__key=value`` of the recipe, or fields of the record."""
    recipe: dict[str, Any] = {
        "model": {"name": "resnet18.tv_in1k", "pretrained": True},
        "data": {"name": "cifar10", "image_size": 224, "validation": 0.0},
        "optimizer": optimizer,
        "schedule": {"name": "cosine", "warmup_epochs": 0.0},
        "train": {"epochs": 100, "max_steps": None, "batch_size": 100, "precision": "fp32", "freeze": "none"},
    }
    recipe["train"]["seed"] = seed
    fields: dict[str, Any] = {"id": f"run-{next(_numbers):04d}", "status": status, "seed": seed}
    for key, value in changes.items():
        section, separator, option = key.partition("__")
        (recipe[section] if separator else fields)[option or section] = value
    if status == "completed" and top1 is not None:
        fields.setdefault("metrics", {"test": {"top1": top1, "top5": 0.99, "loss": 0.3, "ece": 0.02}})
        fields.setdefault("data", facts(recipe["data"]["name"]))
        fields.setdefault(
            "cost", {"gradient_passes": 100_000, "train_seconds": 3720, "images_per_second": 1234}
        )
    return RunRecord.model_validate({"schema": "pugdft.run/1", "recipe": recipe, **fields})


def facts(name: str, sha256: str = "ab" * 32) -> dict[str, Any]:
    return {"name": name, "classes": 10, "sizes": {"train": 50_000, "test": 10_000}, "sha256": sha256}


def seeds(optimizer: dict[str, Any], *top1s: float | None, **changes: Any) -> list[RunRecord]:
    return [run(optimizer, seed, top1, **changes) for seed, top1 in enumerate(top1s)]


def board(*records: RunRecord, **filters: Any) -> list[Group]:
    return build_leaderboard([Loaded(each, Path(each.id)) for each in records], **filters)


def only_group(*records: RunRecord) -> Group:
    groups = board(*records)
    assert len(groups) == 1
    return groups[0]


def labels(group: Group) -> list[str]:
    return [entry.label for entry in group.entries]


def ranks(group: Group) -> list[tuple[int | None, int | None]]:
    return [(entry.rank_low, entry.rank_high) for entry in group.entries]


def table(groups: list[Group], width: int = 100, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=width, **options)
    print_table(groups, console)
    return console.file.getvalue()  # type: ignore[attr-defined]
