"""A run that evaluated to a loss that is no number has lost its network, whatever its status says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from run_records import PUGD, SAM, SGD, loaded, record, stored

from pugdft.errors import UserError
from pugdft.leaderboard import Entry, Group, build_leaderboard
from pugdft.leaderboard.compare import Selection, compare_selections
from pugdft.leaderboard.grouping import group_runs
from pugdft.leaderboard.validate import check_records
from pugdft.leaderboard.verdicts import remarks
from pugdft.records import RunRecord, write_record


def lost(optimizer: dict[str, Any], seed: int, top1: float = 0.99, loss: float = math.nan) -> RunRecord:
    """Completed, by its own words."""
    test = {"top1": top1, "top5": 1.0, "loss": loss, "ece": 0.0}
    return record(optimizer, seed, metrics={"test": test})


def only_group(*records: RunRecord) -> Group:
    (group,) = build_leaderboard(loaded(records))
    return group


def entry_of(group: Group, name: str) -> Entry:
    return next(entry for entry in group.entries if entry.label == name)


def test_a_loss_that_is_no_number_does_not_rank() -> None:
    good = [record(SGD, seed, 0.9 + seed / 100) for seed in (0, 1)]
    group = only_group(lost(SAM, 0), lost(SAM, 1), *good)
    assert [entry.label for entry in group.entries] == ["sgd", "sam"]
    assert [(entry.rank_low, entry.rank_high) for entry in group.entries] == [(1, 1), (None, None)]
    sam = entry_of(group, "sam")
    assert (sam.num_seeds, sam.unfinished, sam.top1) == (0, {"diverged": 2}, None)
    assert sam.notes == ("the loss of seed 0, 1 is not a number up to 1e+100: counted as diverged",)
    assert "sam: the loss of seed 0, 1 is not a number up to 1e+100: counted as diverged." in remarks(group)
    alone = only_group(lost(SAM, 0)).entries[0]
    assert (alone.rank_low, alone.rank_high) == (None, None)


def test_beside_good_seeds_it_is_a_seed_that_diverged() -> None:
    sam = [lost(SAM, 0), *(record(SAM, seed, 0.95 + seed / 1000) for seed in (1, 2, 3))]
    sgd = [record(SGD, seed, 0.5 + seed / 1000) for seed in range(4)]
    group = only_group(*sam, *sgd, *(record(PUGD, seed, 0.2 + seed / 1000) for seed in range(4)))
    entry = entry_of(group, "sam")
    assert entry.top1 is not None
    assert entry.top1.mean == pytest.approx(0.952)
    assert "1 of 4 seeds without a result (1 diverged): not ranked above others" in entry.notes
    assert (entry.rank_low, entry.rank_high) == (1, 3)
    assert "sam: 1 diverged; not in its mean." in remarks(group)


def test_by_the_loss_itself_it_is_a_seed_that_diverged_too() -> None:
    (group,) = build_leaderboard(loaded([lost(SAM, 0), record(SAM, 1), record(SGD, 0)]), metric="loss")
    sam = entry_of(group, "sam")
    assert (sam.num_seeds, sam.unfinished) == (1, {"diverged": 1})


def test_a_seed_that_ran_again_and_went_well_counts() -> None:
    entry = only_group(lost(SAM, 0), record(SAM, 0, 0.9), record(SGD, 0, 0.8)).entries[0]
    assert (entry.label, entry.num_seeds, entry.rank_low) == ("sam", 1, 1)
    assert not any("not ranked above" in note for note in entry.notes)


def test_a_loss_without_end_counts_as_diverged_too(tmp_path: Path) -> None:
    runs = stored(tmp_path, [True] * 9 + [False], SGD)
    assert runs.record.metrics is not None
    assert runs.record.metrics.test is not None
    runs.record.metrics.test.loss = math.inf
    (group,) = build_leaderboard([runs])
    assert (group.entries[0].num_seeds, group.entries[0].rank_low) == (0, None)


def test_it_is_no_side_of_a_comparison_and_no_gate_holds_beside_it() -> None:
    def side(*records: RunRecord) -> Selection:
        (group,) = group_runs(loaded(records))
        return Selection(group.entries[0], group)

    sgd = side(*(record(SGD, seed, 0.5 + seed / 1000) for seed in range(3)))
    with pytest.raises(UserError, match=r"A \(sam\) has no completed run"):
        compare_selections(side(lost(SAM, 0)), sgd)
    report = compare_selections(
        side(lost(SAM, 0), *(record(SAM, seed, 0.9 + seed / 1000) for seed in (1, 2))), sgd, margin=0.1
    )
    assert report.gate is not None
    assert not report.gate.holds
    assert "A: not in its mean: 1 diverged (seed 0)" in report.notes


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_check_refuses_a_completed_run_with_such_a_loss(loss: float, tmp_path: Path) -> None:
    path = write_record(lost(SAM, 0, loss=loss), tmp_path / "runs")
    (checked,) = check_records([path], print)
    assert "metrics.test.loss: must be a number, at least 0" in "\n".join(checked.lines())
