"""What training cost and what came of it on the way: curves, and accuracy at equal cost.

A history's rows may come from anyone: what is missing or no number counts as not measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pugdft.leaderboard.entry import CurvePoint
from pugdft.leaderboard.stats import mean
from pugdft.records import LARGEST, RunRecord

History = Mapping[int, Mapping[str, Any]]
"""A run's rows by epoch."""

# Costs are sums of floats and are rounded in the history.
_SLACK = 1e-5

# What a curve shows, and what can be right.
_BOUNDS: Mapping[str, tuple[float, float]] = {
    "gradient_passes": (0.0, LARGEST),
    "train_seconds": (0.0, LARGEST),
    "train_loss": (-LARGEST, LARGEST),
    "test_top1": (0.0, 1.0),
}


def mean_of(runs: Sequence[RunRecord], read: Callable[[RunRecord], float | None]) -> float | None:
    """The mean over all runs; None unless every one of them has a value, finite and small enough to add."""
    values = [value for run in runs if (value := read(run)) is not None and abs(value) <= LARGEST]
    return mean(values) if values and len(values) == len(runs) else None


def by_epoch(history: Sequence[Mapping[str, Any]]) -> History:
    """Rows by epoch; the last of those that claim the same one."""
    if not history:
        return {}
    epochs = _numbers([row.get("epoch") for row in history], (1, 1e9)).tolist()
    return {int(epoch): row for epoch, row in zip(epochs, history, strict=True) if epoch % 1 == 0}


def mean_curve(histories: Sequence[History]) -> tuple[CurvePoint, ...]:
    """Means over runs at the end of every epoch that all of them reached."""
    epochs = sorted(set.intersection(*map(set, histories))) if histories else []
    if not epochs:
        return ()
    rows = [history[epoch] for history in histories for epoch in epochs]
    columns = []
    for key, bounds in _BOUNDS.items():
        values = _numbers([row.get(key) for row in rows], bounds).reshape(len(histories), len(epochs))
        columns.append([None if each != each else each for each in values.mean(axis=0).tolist()])
    return tuple(CurvePoint(*point) for point in zip(epochs, *columns, strict=True))


def smallest(values: Iterable[float | None]) -> float | None:
    """Of those that were measured."""
    return min((value for value in values if value is not None), default=None)


def top1_at(
    histories: Sequence[History], totals: Sequence[float | None], cost: str, budget: float | None
) -> float | None:
    """Mean over runs of top-1 at the last evaluated epoch within the budget, each run's own.

    Runs of one entry do not cost the same to the second. Each may spend the same share of its own total,
    so that the budget is what they spend on average, and is all of it for the entry that it was taken from.

    Args:
        histories: of the entry's runs.
        totals: what each run spent; unless all are known, each is held to the budget itself.
        cost: ``gradient_passes`` or ``train_seconds``.
        budget: None if unknown.

    Returns:
        None as well if a run was not evaluated within it.
    """
    if budget is None or not histories:
        return None
    known = [total for total in totals if total is not None and 0 < total <= LARGEST]
    share = budget / mean(known) if len(known) == len(histories) else None
    budgets = [budget] * len(histories) if share is None else [share * total for total in known]
    values = [_last_top1(history, cost, own) for history, own in zip(histories, budgets, strict=True)]
    reached = [value for value in values if value is not None]
    return mean(reached) if len(reached) == len(histories) else None


def _last_top1(history: History, cost: str, budget: float) -> float | None:
    for epoch in sorted(history, reverse=True):
        top1, spent = (_within_bounds(history[epoch], key) for key in ("test_top1", cost))
        if top1 is not None and spent is not None and spent <= budget * (1 + _SLACK):
            return top1
    return None


def _within_bounds(row: Mapping[str, Any], key: str) -> float | None:
    value, (low, high) = row.get(key), _BOUNDS[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if low <= value <= high else None


def number_in(values: Mapping[str, Any], key: str) -> float | None:
    """A finite number of sensible size, or None whatever else stands there."""
    number = float(_numbers([values.get(key)], (-LARGEST, LARGEST))[0])
    return None if number != number else number


def _numbers(values: Sequence[Any], bounds: tuple[float, float]) -> np.ndarray:
    """As floats, NaN for whatever is no number within ``bounds``."""
    if not set(map(type, values)) <= {int, float}:
        values = [value if type(value) in (int, float) else np.nan for value in values]
    try:
        numbers = np.array(values, dtype=float)
    except OverflowError:
        numbers = np.array([value if abs(value) <= LARGEST else np.nan for value in values], dtype=float)
    return np.where((numbers >= bounds[0]) & (numbers <= bounds[1]), numbers, np.nan)
