"""The ranking: what records, and predictions beside them, become; and what they must not be able to do."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from ranked_records import NAN, compare, entry_of, history, networks, one_group, seeds, stored_seeds
from run_records import PUGD, SAM, SGD, record

from pugdft.leaderboard import Group
from pugdft.leaderboard.power import Plan
from pugdft.records import RunRecord


def test_every_entry_is_held_against_the_best() -> None:
    group = one_group(
        seeds(SGD, 0.90, 0.91, 0.905), seeds(SAM, 0.95, 0.962, 0.953), seeds(PUGD, 0.951, 0.955, 0.955)
    )
    sam, pugd, sgd = group.entries
    assert (sam.label, sam.versus_best) == ("sam", None)
    assert sgd.versus_best is not None
    assert pugd.versus_best is not None
    assert sgd.versus_best.difference == pytest.approx(0.905 - 0.955)
    assert (sgd.versus_best.separated, sgd.versus_best.more_seeds) == (True, None)
    assert sgd.versus_best.p_value is not None
    assert sgd.versus_best.p_value <= 0.05
    assert not pugd.versus_best.separated
    raw = compare(sam.scores, pugd.scores, 1000)
    assert pugd.versus_best.p_value == pytest.approx(raw.p_value)  # the largest of three: times one
    needed = Plan(math.sqrt(raw.seed_variance), num_pairs=3).seeds_needed(raw.difference)
    assert needed is not None
    assert pugd.versus_best.more_seeds == needed - 3


def test_one_seed_gives_no_p_value_and_no_number_of_seeds() -> None:
    group = one_group(seeds(SGD, 0.9), seeds(SAM, 0.95, 0.96), seeds(PUGD, 0.93, 0.9))
    versus = entry_of(group, "sgd").versus_best
    assert versus is not None
    assert (versus.p_value, versus.separated, versus.more_seeds) == (None, False, None)


def test_no_difference_needs_no_seeds() -> None:
    group = one_group(seeds(SGD, 0.9, 0.91, 0.92), seeds(SAM, 0.91, 0.9, 0.92))
    versus = group.entries[1].versus_best
    assert versus is not None
    assert versus.difference == pytest.approx(0, abs=1e-12)
    assert versus.more_seeds is None or versus.more_seeds > 900


def diverged(optimizer: dict[str, Any], *numbers: int) -> list[RunRecord]:
    return [record(optimizer, seed, status="diverged") for seed in numbers]


def ranges(group: Group) -> dict[str, tuple[int | None, int | None]]:
    return {each.label: (each.rank_low, each.rank_high) for each in group.entries}


def test_surviving_seeds_rank_no_optimizer_above_another() -> None:
    sam, sgd = seeds(SAM, 0.95, 0.962, 0.953), seeds(SGD, 0.90, 0.91, 0.905, 0.9, 0.91)
    assert ranges(one_group(sam, sgd)) == {"sam": (1, 1), "sgd": (2, 2)}
    group = one_group(sam, diverged(SAM, 3, 4), sgd)
    assert ranges(group) == {"sam": (1, 2), "sgd": (1, 2)}
    best, second = group.entries
    said = "2 of 5 seeds without a result (2 diverged): not ranked above others"
    assert (best.label, best.notes) == ("sam", (said,))
    assert best.top1 is not None
    assert best.top1.mean == pytest.approx(0.955)
    assert second.versus_best is not None
    assert second.versus_best.difference == pytest.approx(-0.05)
    versus = second.versus_best
    assert (versus.p_value, versus.separated, versus.more_seeds) == (None, False, None)


def test_an_optimizer_with_diverged_seeds_can_rank_below_others() -> None:
    runs = [*seeds(SAM, 0.95, 0.962, 0.953), *diverged(SGD, 3), *seeds(SGD, 0.90, 0.91, 0.905)]
    group = one_group(runs, seeds(PUGD, 0.80, 0.81, 0.805))
    assert ranges(group) == {"sam": (1, 1), "sgd": (2, 3), "pugd": (2, 3)}
    versus = entry_of(group, "sgd").versus_best
    assert versus is not None
    assert versus.separated


def test_a_seed_that_diverged_and_then_completed_or_was_stopped_bars_no_rank() -> None:
    runs = [*seeds(SAM, 0.95, 0.962, 0.953), *diverged(SAM, 1), record(SAM, 7, status="interrupted")]
    group = one_group(runs, seeds(SGD, 0.90, 0.91, 0.905))
    assert ranges(group) == {"sam": (1, 1), "sgd": (2, 2)}
    assert entry_of(group, "sam").unfinished == {"diverged": 1, "interrupted": 1}


def test_too_few_test_images_are_named_as_what_is_missing(tmp_path: Path) -> None:
    images = networks(1, 5, 60)
    other = images.copy()
    other[:, :6] ^= True  # the same few images in every seed: only others could tell
    group = one_group(stored_seeds(tmp_path, SGD, images), stored_seeds(tmp_path, SAM, other))
    second = group.entries[1]
    assert second.versus_best is not None
    assert second.versus_best.more_seeds is None
    assert any("more test images" in note for note in second.notes)


def with_metrics(optimizer: dict[str, Any], *losses: float) -> list[RunRecord]:
    return [
        record(optimizer, seed, metrics={"test": {"top1": 0.9, "top5": 0.99, "loss": loss, "ece": loss / 10}})
        for seed, loss in enumerate(losses)
    ]


@pytest.mark.parametrize("metric", ["loss", "ece"])
def test_the_lowest_loss_and_calibration_error_rank_first(metric: Any) -> None:
    group = one_group(with_metrics(SGD, 0.5, 0.51, 0.49), with_metrics(SAM, 0.2, 0.21, 0.205), metric=metric)
    assert [(each.label, each.rank_low, each.rank_high) for each in group.entries] == [
        ("sam", 1, 1),
        ("sgd", 2, 2),
    ]
    versus = group.entries[1].versus_best
    assert versus is not None
    assert versus.difference > 0
    assert group.entries[0].scores[0] == pytest.approx(0.2 if metric == "loss" else 0.02)


def test_a_run_without_the_metric_ranks_last_by_it_and_by_it_alone() -> None:
    runs = [*with_metrics(SGD, 0.5, 0.51), *with_metrics(SAM, 0.2, -2.0), *with_metrics(PUGD, -1.0, 0.3)]
    by_loss = one_group(runs, metric="loss")
    assert [each.label for each in by_loss.entries] == ["sgd", "pugd", "sam"]
    assert [(each.rank_low, each.rank_high) for each in by_loss.entries] == [(1, 1), (2, 3), (2, 3)]
    assert "no valid loss for seed 1: ranked last" in entry_of(by_loss, "sam").notes
    assert (entry_of(by_loss, "sam").summary("loss"), entry_of(by_loss, "sam").versus_best) == (None, None)
    by_top1 = one_group(runs)
    assert {(each.rank_low, each.rank_high) for each in by_top1.entries} == {(1, 3)}


def test_a_completed_run_without_test_metrics_ranks_last() -> None:
    blind = record(SAM, metrics={"validation": {"top1": 0.9, "top5": 0.99, "loss": 0.3, "ece": 0.02}})
    group = one_group(record(SGD), blind)
    assert [each.label for each in group.entries] == ["sgd", "sam"]
    assert entry_of(group, "sam").notes == ("no valid top-1 for seed 0: ranked last",)


def test_the_best_epochs_are_kept_apart_and_need_every_seed() -> None:
    def picked(best: float | None) -> dict[str, Any]:
        test = {"top1": 0.9, "top5": 0.99, "loss": 0.3, "ece": 0.02}
        return {"test": test} if best is None else {"test": test, "best_test": {"top1": best, "epoch": 3}}

    def best(*values: float | None) -> float | None:
        runs = [record(SGD, seed, metrics=picked(value)) for seed, value in enumerate(values)]
        return one_group(runs).entries[0].best_test_top1

    assert best(0.92, 0.94) == pytest.approx(0.93)
    assert best(0.92, None) is None
    assert best(0.92, NAN) is None


def test_what_was_before_the_first_update_ranks_nothing() -> None:
    """A row of epoch 0, however good, changes neither a curve nor the accuracy at equal cost."""
    before = {"epoch": 0, "steps": 0, "gradient_passes": 0, "train_seconds": 0.0, "test_top1": 1.0}
    groups = []
    for rows in ([], [before]):
        short, long = ([*rows, *history(passes, 0.7, 0.8)] for passes in (10, 200))
        cheap = seeds(SGD, 0.8, 0.81, history=short, cost__gradient_passes=20)
        costly = seeds(SAM, 0.9, 0.91, history=long, cost__gradient_passes=400)
        groups.append(one_group(cheap, costly))
    assert entry_of(groups[1], "sam").top1_at_equal_passes is None, "its first epoch is beyond the budget"
    for one, two in zip(groups[0].entries, groups[1].entries, strict=True):
        assert one.curve == two.curve
        assert one.top1_at_equal_passes == two.top1_at_equal_passes
        assert one.top1_at_equal_seconds == two.top1_at_equal_seconds
