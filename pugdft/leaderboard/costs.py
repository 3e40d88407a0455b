"""Costs of training: learning curves, and accuracy at equal cost.

The rows of a history may hold anything: a missing or invalid number counts as not measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from pugdft.leaderboard.entry import CurvePoint
from pugdft.leaderboard.stats import mean
from pugdft.records import LARGEST

History = Mapping[int, Mapping[str, Any]]
"""A run's rows by epoch."""

Item = TypeVar("Item")

# Costs are sums of floats and are rounded in the history.
_SLACK = 1e-5

# What a curve shows, with the bounds of valid values.
_BOUNDS: Mapping[str, tuple[float, float]] = {
    "gradient_passes": (0.0, LARGEST),
    "train_seconds": (0.0, LARGEST),
    "train_loss": (-LARGEST, LARGEST),
    "test_top1": (0.0, 1.0),
}


def mean_of(items: Sequence[Item], read: Callable[[Item], float | None]) -> float | None:
    """Compute the mean over all items; None unless every one has a value, finite and small enough to add."""
    values = [value for item in items if (value := read(item)) is not None and abs(value) <= LARGEST]
    return mean(values) if values and len(values) == len(items) else None


def by_epoch(history: Sequence[Mapping[str, Any]]) -> History:
    """Index rows by epoch; of several rows of one epoch the last counts."""
    epochs = _numbers([row.get("epoch") for row in history], (1, 1e9)).tolist()
    return {int(epoch): row for epoch, row in zip(epochs, history, strict=True) if epoch % 1 == 0}


def mean_curve(histories: Sequence[History]) -> tuple[CurvePoint, ...]:
    """Compute means over runs at the end of every epoch that all runs reached."""
    epochs = sorted(set.intersection(*map(set, histories))) if histories else []
    if not epochs:
        return ()
    rows = [history[epoch] for history in histories for epoch in epochs]
    columns = []
    for key, bounds in _BOUNDS.items():
        values = _numbers([row.get(key) for row in rows], bounds).reshape(len(histories), len(epochs))
        columns.append([None if each != each else each for each in values.mean(axis=0).tolist()])
    return tuple(CurvePoint(*point) for point in zip(epochs, *columns, strict=True))


def top1_at(
    histories: Sequence[History], totals: Sequence[float | None], cost: str, budget: float | None
) -> float | None:
    """Compute the mean over runs of top-1 at the last evaluated epoch within a budget.

    Runs of one entry cost slightly different times. Each may spend the same share of its own total, such that
    the budget is their average; the entry that the budget was taken from thus spends all of it. Unless all
    totals are known, each run may spend the budget itself. None if a run was not evaluated within its budget.
    """
    if budget is None or not histories:
        return None
    budgets = [budget] * len(histories)
    known = [total for total in totals if total is not None and 0 < total <= LARGEST]
    if len(known) == len(histories):
        share = budget / mean(known)
        budgets = [share * total for total in known]
    values = [_last_top1(history, cost, own) for history, own in zip(histories, budgets, strict=True)]
    return mean_of(values, lambda value: value)


def _last_top1(history: History, cost: str, budget: float) -> float | None:
    for epoch in sorted(history, reverse=True):
        top1, spent = (number_in(history[epoch], key) for key in ("test_top1", cost))
        if top1 is not None and spent is not None and spent <= budget * (1 + _SLACK):
            return top1
    return None


def number_in(values: Mapping[str, Any], key: str) -> float | None:
    """Return a finite number of plausible size and not negative; None for anything else."""
    value: Any = values.get(key)
    low, high = _BOUNDS.get(key, (0.0, LARGEST))
    return float(value) if type(value) in (int, float) and low <= value <= high else None


def _numbers(values: Sequence[Any], bounds: tuple[float, float]) -> np.ndarray:
    """Convert values to floats; NaN for all that are no number within ``bounds``."""
    usable = [
        value if type(value) is float or (type(value) is int and abs(value) <= LARGEST) else np.nan
        for value in values
    ]
    numbers = np.array(usable, dtype=float)
    return np.where((numbers >= bounds[0]) & (numbers <= bounds[1]), numbers, np.nan)
