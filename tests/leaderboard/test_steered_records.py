"""Records that would steer a verdict: repeats, copies, other test images, gaps, and what was planned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ranked_records import entry_of, networks, one_group, seeds, stored_seeds
from run_records import PUGD, SAM, SGD, facts, record, stored

from pugdft.leaderboard import build_leaderboard, collect
from pugdft.leaderboard.validate import check_records
from pugdft.records import write_record


def finished(day: int) -> dict[str, Any]:
    return {"finished": f"2025-01-{day:02d}T00:00:00+00:00"}


# --- two runs of one recipe and seed -----------------------------------------------------------------------


def test_two_peoples_runs_of_one_recipe_and_seed_are_read_and_count_once(tmp_path: Path) -> None:
    for person, top1, day in (("ann", 0.9, 2), ("bob", 0.8, 1)):
        made = record(SGD, 0, top1, id="same", environment=finished(day))
        write_record(made, tmp_path / person / "run")
    collected = collect([tmp_path / "ann", tmp_path / "bob"])
    assert len(collected.records) == 2
    assert any('the id "same" stands in 2 records that differ' in note for note in collected.notes)
    (group,) = build_leaderboard(collected.records)
    (entry,) = group.entries
    assert (entry.num_seeds, entry.scores) == (1, {0: 0.8})
    assert entry.notes == ("seed 0 ran 2 times; same, which finished first, counts",)


def test_no_later_and_no_undated_run_replaces_a_result() -> None:
    first = record(SGD, 0, 0.7, environment=finished(1))
    for other in (finished(9), {}, {"finished": "yesterday"}, {"finished": "2025-01-01T00:30:00+02:00"}):
        again = record(SGD, 0, 0.99, environment=other)
        expected = 0.99 if "+02:00" in str(other) else 0.7  # which is earlier indeed
        assert one_group(again, first).entries[0].scores == {0: expected}


# --- one run under several seeds ---------------------------------------------------------------------------


def test_one_run_under_five_seeds_is_one_run(tmp_path: Path) -> None:
    row = networks(1, 1)[0]
    copies = [stored(tmp_path, row, SGD, seed) for seed in range(5)]
    group = one_group(copies, stored_seeds(tmp_path, SAM, networks(2, 5, gain=0.8)))
    sgd = entry_of(group, "sgd")
    assert (sgd.num_seeds, sgd.unfinished) == (1, {"copied": 4})
    assert any("seed 1, 2, 3, 4 left the weights, predictions or history of seed 0" in n for n in sgd.notes)
    assert {(each.rank_low, each.rank_high) for each in group.entries} == {(1, 2)}


@pytest.mark.parametrize("left", ["artifacts", "history"])
def test_equal_weights_or_histories_are_one_run(left: str) -> None:
    row = {"epoch": 1, "train_loss": 0.1234, "test_loss": 0.5678}
    same: dict[str, Any] = {
        "artifacts": {"artifacts": {"model": {"path": "model.safetensors", "sha256": "ab" * 32}}},
        "history": {"history": [row]},
    }[left]
    entry = one_group(record(SGD, 0, 0.9, **same), record(SGD, 1, 0.91, **same), record(SGD, 2, 0.9)).entries[
        0
    ]
    assert (sorted(entry.scores), entry.unfinished) == ([0, 2], {"copied": 1})


def test_check_refuses_one_run_under_two_seeds(tmp_path: Path) -> None:
    history = [{"epoch": 1, "train_loss": 0.1234, "test_loss": 0.5678}]
    for seed in (0, 1):
        write_record(record(SGD, seed, 0.9, history=history), tmp_path / str(seed))
    first, second = check_records([tmp_path], lambda note: None)
    assert not [each for each in first.faults if each.where == "seed"]
    said = [each.message for each in second.faults if each.where == "seed"]
    assert said == [f"1, with the history of {tmp_path / '0' / 'record.yaml'}, which has another seed"]


# --- other test images -------------------------------------------------------------------------------------


def test_fewer_test_images_of_one_data_set_are_another_group() -> None:
    groups = build_leaderboard_of(
        seeds(SGD, 0.90, 0.91, 0.905, data=facts("cifar10", num_images=2000)),
        seeds(SAM, 0.97, 0.975, 0.972, data=facts("cifar10", num_images=1500)),
    )
    assert [[entry.label for entry in group.entries] for group in groups] == [["sam"], ["sgd"]]
    assert groups[0].protocol.endswith(", 1,500 test images")
    assert groups[1].protocol.endswith(", 2,000 test images")
    assert all("data.sizes.test" in " ".join(group.notes) for group in groups)


def build_leaderboard_of(*records: Any) -> list[Any]:
    from run_records import loaded

    return build_leaderboard(loaded(*records))


def test_other_labels_under_one_digest_of_the_data_are_left_out(tmp_path: Path) -> None:
    group = one_group(
        stored_seeds(tmp_path, SGD, networks(1)),
        stored_seeds(tmp_path, PUGD, networks(3)),
        stored_seeds(tmp_path, SAM, networks(2, gain=3.0), labels_seed=10),
    )
    sam = entry_of(group, "sam")
    assert (sam.num_seeds, sam.unfinished, sam.rank_low) == (0, {"contradicted": 3}, None)
    assert any("the labels of its test images are not those of the others" in note for note in sam.notes)


def test_check_refuses_other_numbers_of_test_images_of_one_data_set(tmp_path: Path) -> None:
    for number, size in enumerate((2000, 1500)):
        write_record(record(SGD, number, data=facts("cifar10", num_images=size)), tmp_path / str(number))
    second = check_records([tmp_path], lambda note: None)[1]
    assert any(each.where == "data.sizes.test" and "1,500 images" in each.message for each in second.faults)


# --- one rule for seeds without a result -------------------------------------------------------------------


@pytest.mark.parametrize("status", ["diverged", "failed", "oom"])
def test_seeds_without_a_result_bar_ranks_whatever_happened(status: str) -> None:
    runs = [*seeds(SAM, 0.95, 0.962, 0.953), record(SAM, 3, status=status)]
    group = one_group(runs, seeds(SGD, 0.90, 0.91, 0.905))
    assert [(each.rank_low, each.rank_high) for each in group.entries] == [(1, 2), (1, 2)]
    assert entry_of(group, "sam").notes == (
        f"1 of 4 seeds without a result (1 {status}): not ranked above others",
    )
    stopped = [*seeds(SAM, 0.95, 0.962, 0.953), record(SAM, 3, status="interrupted")]
    group = one_group(stopped, seeds(SGD, 0.90, 0.91, 0.905))
    assert [(each.rank_low, each.rank_high) for each in group.entries] == [(1, 1), (2, 2)]


# --- what was planned --------------------------------------------------------------------------------------


def planned(numbers: list[int], optimizers: int = 2) -> dict[str, Any]:
    return {"environment": {"planned": {"seeds": numbers, "optimizers": optimizers}}}


def test_seeds_planned_in_three_steps_are_three_looks() -> None:
    steps = [planned([0, 1, 2]), planned([0, 1, 2, 3, 4]), planned([0, 1, 2, 3, 4, 5, 6])]
    which = [0, 0, 0, 1, 1, 2, 2]
    sgd = [record(SGD, seed, 0.9 + 0.003 * (seed % 3), **steps[which[seed]]) for seed in range(7)]
    sam = [record(SAM, seed, 0.905 + 0.004 * (seed % 2), **steps[which[seed]]) for seed in range(7)]
    group = one_group(sgd, sam)
    at_once = one_group(
        [record(SGD, seed, 0.9 + 0.003 * (seed % 3), **steps[2]) for seed in range(7)],
        [record(SAM, seed, 0.905 + 0.004 * (seed % 2), **steps[2]) for seed in range(7)],
    )
    assert (group.looks, at_once.looks) == (3, 1)
    one, three = (each.entries[1].versus_best for each in (at_once, group))
    assert one is not None
    assert three is not None
    assert three.p_value == pytest.approx(one.p_value * 2.2674, rel=1e-3)
    assert three.p_alone == one.p_alone
    assert any("planned in 3 steps" in note for note in group.notes)
    assert not any("steps" in note for note in at_once.notes)


def test_planned_seeds_and_optimizers_that_are_not_there_are_named() -> None:
    group = one_group(
        [record(SGD, seed, 0.9, **planned([0, 1, 2, 3, 4], 12)) for seed in (0, 2, 3)],
        [record(SAM, seed, 0.9, **planned([0, 1, 2, 3, 4], 12)) for seed in range(5)],
    )
    notes = " ".join(group.notes)
    assert "not among these records: seed 1, 4 (sgd)" in notes
    assert "12 optimizers were planned, 2 are here" in notes


def test_gaps_between_seeds_are_named_without_a_plan() -> None:
    group = one_group([record(SGD, seed, 0.9) for seed in (0, 3, 5)], seeds(SAM, 0.9, 0.91))
    assert any("no seed 1, 2, 4 between the others (sgd)" in note for note in group.notes)


@pytest.mark.parametrize(
    "plan", [7, {"seeds": "all"}, {"seeds": [0, "1"]}, {"seeds": [0], "optimizers": "x"}]
)
def test_a_plan_may_hold_anything(plan: Any) -> None:
    group = one_group(seeds(SGD, 0.9, 0.91, environment={"planned": plan}))
    assert group.looks == 1


# --- what a reader should know of the options --------------------------------------------------------------


def test_the_noise_of_a_search_is_said() -> None:
    tuned = seeds(SAM, 0.9, 0.92, 0.91, tuning={"trials": 7, "gradient_passes": 70})
    notes = " ".join(one_group(tuned, seeds(SGD, 0.9, 0.91, 0.905)).notes)
    assert "a search chose the options of sam: ranks are of these options" in notes
    assert "two trials of equal options differ by about 1.4 to 1.4 points" in notes


def test_an_entry_that_spreads_much_more_is_named() -> None:
    rng = np.random.default_rng(0)
    groups = [
        seeds(spec, *(0.9 + rng.normal(0, spread, 5)))
        for spec, spread in ((SGD, 0.001), (SAM, 0.001), (PUGD, 0.02))
    ]
    assert any("3 times as much as the others': pugd (" in note for note in one_group(*groups).notes)
