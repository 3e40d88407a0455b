"""What entries came to at equal cost, and their curves."""

from __future__ import annotations

import math
from typing import Any

import pytest
from ranked_records import NAN, entry_of, history, one_group
from run_records import PUGD, SAM, SGD, record

from pugdft.leaderboard.entry import CurvePoint
from pugdft.records import RunRecord


def test_at_equal_cost_the_dear_one_is_taken_where_it_stood() -> None:
    cheap = [
        record(SGD, seed, 0.8, history=history(100, 0.5, 0.6, 0.7, 0.8), cost={"gradient_passes": 400})
        for seed in (0, 1)
    ]
    dear = [
        record(SAM, seed, 0.9, history=history(200, 0.3, top1, 0.85, 0.9), cost={"gradient_passes": 800})
        for seed, top1 in enumerate((0.64, 0.66))
    ]
    group = one_group(cheap, dear)
    assert group.equal_passes == 400
    assert entry_of(group, "sgd").top1_at_equal_passes == pytest.approx(0.8)
    assert entry_of(group, "sam").top1_at_equal_passes == pytest.approx(0.65)
    assert (group.equal_seconds, entry_of(group, "sam").top1_at_equal_seconds) == (None, None)


def test_an_epoch_without_evaluation_is_passed_over() -> None:
    runs = [
        record(SGD, history=history(100, 0.5), cost={"gradient_passes": 350}),
        record(SAM, history=history(100, 0.4, None, None, 0.9), cost={"gradient_passes": 400}),
    ]
    assert entry_of(one_group(runs), "sam").top1_at_equal_passes == 0.4


def test_the_cheapest_keeps_its_last_epoch_although_its_seeds_took_different_times() -> None:
    def run(optimizer: dict[str, Any], seed: int, seconds: float) -> RunRecord:
        rows = history(1, 0.5, 0.7, seconds=seconds)
        return record(optimizer, seed, history=rows, cost={"train_seconds": 2 * seconds})

    runs = [run(SGD, 0, 9), run(SGD, 1, 11), run(SAM, 0, 19), run(SAM, 1, 21)]
    group = one_group(runs)
    assert group.equal_seconds == pytest.approx(20)
    assert entry_of(group, "sgd").top1_at_equal_seconds == pytest.approx(0.7)
    assert entry_of(group, "sam").top1_at_equal_seconds == pytest.approx(0.5)


def test_runs_with_different_numbers_of_epochs_count_where_each_of_them_stood() -> None:
    """As under a pass budget, where a method draws by chance which updates take two."""

    def run(seed: int, num_epochs: int) -> RunRecord:
        top1s = [0.6 + 0.3 * epoch / num_epochs for epoch in range(1, num_epochs + 1)]
        return record(
            SAM, seed, 0.9, history=history(1000 / num_epochs, *top1s), cost={"gradient_passes": 1000}
        )

    sam = [run(0, 10), run(1, 14)]
    group = one_group(sam, record(SGD, history=history(100, *[0.8] * 10), cost={"gradient_passes": 1000}))
    assert entry_of(group, "sam").top1_at_equal_passes == pytest.approx(0.9)
    assert len(entry_of(group, "sam").curve) == 10
    half = one_group(sam, record(SGD, history=history(100, *[0.8] * 5), cost={"gradient_passes": 500}))
    assert entry_of(half, "sam").top1_at_equal_passes == pytest.approx(0.75)


def test_a_run_that_was_not_evaluated_within_the_budget_leaves_no_figure() -> None:
    sam = [
        record(SAM, 0, history=history(200, 0.5, 0.6), cost={"gradient_passes": 400}),
        record(SAM, 1, history=history(200, None, 0.6), cost={"gradient_passes": 400}),
    ]
    group = one_group(sam, record(SGD, history=history(200, 0.5), cost={"gradient_passes": 200}))
    assert entry_of(group, "sam").top1_at_equal_passes is None


def test_the_budget_is_of_entries_that_are_ranked_by_the_metric() -> None:
    free = record(PUGD, 0, NAN, cost={"gradient_passes": 1})
    group = one_group(record(SGD), free)
    assert group.equal_passes == 1000


def test_curves_are_means_over_the_epochs_that_all_seeds_reached() -> None:
    runs = [
        record(SGD, 0, history=history(100, 0.5, 0.6, 0.7)),
        record(SGD, 1, history=history(100, 0.7, None)),
    ]
    assert one_group(runs).entries[0].curve == (
        CurvePoint(1, 100, 10, 1.0, pytest.approx(0.6)),
        CurvePoint(2, 200, 20, 0.5, None),
    )


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"epoch": None},
        {"epoch": "1"},
        {"epoch": True, "test_top1": True},
        {"epoch": 1, "gradient_passes": 10**400, "test_top1": NAN, "train_seconds": math.inf},
        {"epoch": 10**400},
        {"epoch": -1, "test_top1": 0.5},
        {"epoch": 1.5, "test_top1": 0.5},
        {"epoch": 1, "test_top1": [0.5], "gradient_passes": {"a": 1}},
        {"epoch": 1, "test_top1": 17.0, "gradient_passes": -5},
        {1: 2, None: 3},
    ],
    ids=str,
)
def test_a_history_may_hold_anything(row: dict[Any, Any]) -> None:
    bad = record(SGD, 1)
    bad.history.append(row)
    entry = one_group(record(SGD, 0, history=history(10, 0.5)), bad).entries[0]
    assert entry.num_seeds == 2
    assert entry.top1_at_equal_passes is None
    assert all(point.test_top1 is None for point in entry.curve)
