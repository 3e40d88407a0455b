"""Records with made-up histories to draw: of one pass or two, to the end or diverged."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from run_records import facts, record

from pugdft.records import RunRecord, write_record

STEPS = 50  # an epoch


def drawn(
    optimizer: dict[str, Any],
    seed: int = 0,
    *,
    epochs: int = 10,
    passes: float = 1,
    evaluated: bool = True,
    diverges_at: int | None = None,
    speed: float = 0.5,
    **changes: Any,
) -> RunRecord:
    """A run whose test loss falls to about 0.3; ``passes`` are those of an update."""
    noise = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for epoch in range(0 if evaluated else 1, epochs + 1):
        is_lost = diverges_at is not None and epoch > diverges_at
        if is_lost and epoch > diverges_at + 2:  # type: ignore[operator]
            break
        test = 0.3 + 2.0 * math.exp(-speed * epoch) + 0.02 * noise.normal()
        row: dict[str, Any] = {
            "epoch": epoch, "steps": STEPS * epoch, "gradient_passes": STEPS * passes * epoch,
            "train_seconds": 9.0 * passes * epoch, "test_loss": math.nan if is_lost else test,
            "test_top1": 0.9 - 0.3 * math.exp(-epoch) + 0.01 * noise.random(),
        }  # fmt: skip
        if epoch:
            row |= {"train_loss": 2.4 * math.exp(-speed * epoch) + 0.1, "train_top1": 0.5, "lr": 0.1 / epoch}
            row |= {"gradient_norm": 3.0 / (1 + epoch) + 0.1 * noise.random()}
            row |= {"perturbation_norm": 0.05, "gradient_cosine": 0.8} if passes > 1 else {}
        if evaluated:
            row |= {"train_eval_loss": 2.2 * math.exp(-speed * epoch) + 0.02, "train_eval_top1": 0.6}
        rows.append(row)
    status = "completed" if diverges_at is None else "diverged"
    changes = {"train__epochs": epochs, "data": facts("cifar10"), **changes}
    return record(optimizer, seed, status=status, history=rows, **changes)


def write(folder: Path, *records: RunRecord) -> Path:
    """Each in a folder of its own below ``folder``."""
    for each in records:
        write_record(each, folder / each.id)
    return folder
