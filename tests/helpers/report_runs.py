"""Made-up runs with predictions of any number of classes, and records that are changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from run_records import SGD, record

from pugdft.paths import file_sha256
from pugdft.predictions import Predictions
from pugdft.records import RunRecord, read_record, write_record


def made_run(
    folder: Path,
    num_classes: int,
    *,
    optimizer: dict[str, Any] = SGD,
    names: Sequence[str] = (),
    labels: np.ndarray | None = None,
    taken: np.ndarray | None = None,
    **changes: Any,
) -> Path:
    """Write a run with 20 test images a class, most of them right; returns its folder."""
    random = np.random.default_rng(num_classes)
    labels = np.repeat(np.arange(num_classes), 20) if labels is None else labels
    if taken is None:
        right = random.random(len(labels)) < random.uniform(0.4, 1, num_classes)[labels]
        taken = np.where(right, labels, random.integers(0, num_classes, len(labels)))
    confidence = random.uniform(0.1, 1, len(labels)).astype(np.float32)
    made = Predictions(labels, taken, labels == taken, confidence, 1 - confidence)
    folder.mkdir(parents=True, exist_ok=True)
    made.write(folder / "predictions.npz")
    epochs = range(1, 9)
    fields: dict[str, Any] = {
        "metrics": {"test": made.metrics().model_dump()},
        "data": {
            "name": "made",
            "classes": num_classes,
            "sizes": {"train": 100 * num_classes, "test": len(labels)},
            "sha256": "cd" * 32,
            "class_names": list(names) or [f"kind {number}" for number in range(num_classes)],
        },
        "history": [
            {"epoch": each, "lr": 0.1 / each, "train_loss": 3 / each, "train_top1": 1 - 0.9 / each}
            | {"test_loss": 4 / each, "test_top1": 0.8 - 0.7 / each}
            for each in epochs
        ],
        "artifacts": {
            "predictions": {"path": "predictions.npz", "sha256": file_sha256(folder / "predictions.npz")}
        },
        "data__name": "no_such_data",
        **changes,
    }
    write_record(record(optimizer, num_images=len(labels), **fields), folder)
    return folder


def with_record(folder: Path, change: Callable[[RunRecord], object]) -> None:
    """Change a run's record in place."""
    found = read_record(folder / "record.yaml")
    change(found)
    write_record(found, folder)
