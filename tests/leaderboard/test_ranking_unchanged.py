"""What must not change the ranking, and that it takes seconds."""

from __future__ import annotations

import random
from pathlib import Path

from ranked_records import NAN, entry_of, history, networks, one_group, seeds, stored_seeds
from run_records import PUGD, SAM, SGD, loaded, record

from pugdft.leaderboard import Loaded, as_json, build_leaderboard
from pugdft.records import write_record


def everything(folder: Path) -> list[Loaded]:
    return loaded(
        stored_seeds(folder, SGD, networks(1)),
        stored_seeds(folder, SAM, networks(2, 4, gain=0.4)),
        stored_seeds(folder, PUGD, networks(3, gain=0.1), tuning={"trials": 3, "gradient_passes": 10}),
        seeds({**SGD, "lr": 0.1}, 0.7, 0.71, 0.705, num_images=300, history=history(5, 0.4, 0.5)),
        record({**SGD, "lr": 0.1}, 3, NAN, num_images=300),
        record(SAM, 9, status="diverged"),
        record({**SAM, "rho": 1.0}, train__evaluate="validation"),
        seeds(SGD, 0.9, 0.91, train__epochs=3, environment={"torch": "1"}),
        seeds(SAM, 0.9, 0.92, train__epochs=3, environment={"torch": "2"}),
    )


def test_the_order_of_records_changes_nothing(tmp_path: Path) -> None:
    runs = everything(tmp_path)
    for metric in ("top1", "loss", "ece"):
        expected = as_json(build_leaderboard(runs, metric=metric))  # type: ignore[arg-type]
        for shuffle in range(4):
            shuffled = random.Random(shuffle).sample(runs, len(runs))
            assert as_json(build_leaderboard(shuffled, metric=metric)) == expected  # type: ignore[arg-type]


def test_a_record_changes_only_its_own_group(tmp_path: Path) -> None:
    runs = everything(tmp_path)
    before = build_leaderboard(runs)
    after = build_leaderboard([*runs, *loaded(record(SGD, 5, 0.99, train__epochs=3))])
    assert [group.protocol for group in before] == [group.protocol for group in after]
    assert [one == two for one, two in zip(before, after, strict=True)].count(False) == 1


def test_another_entry_changes_only_ranks_and_comparisons(tmp_path: Path) -> None:
    runs = [*stored_seeds(tmp_path, SGD, networks(1)), *stored_seeds(tmp_path, SAM, networks(2, gain=0.4))]
    before = one_group(runs)
    after = one_group(runs, stored_seeds(tmp_path, PUGD, networks(3, gain=-0.5)))
    for entry in before.entries:
        same = entry_of(after, entry.label)
        assert (same.summaries, same.scores, same.curve, same.notes) == (
            entry.summaries, entry.scores, entry.curve, entry.notes,
        )  # fmt: skip
    assert entry_of(after, "pugd").rank_high == 3


def test_a_failed_run_changes_only_its_count(tmp_path: Path) -> None:
    runs = stored_seeds(tmp_path, SGD, networks(1))
    before = one_group(runs).entries[0]
    after = one_group(runs, record(SGD, 7, status="oom")).entries[0]
    assert after.unfinished == {"oom": 1}
    assert (after.top1, after.records, after.rank_low) == (before.top1, before.records, before.rank_low)


def test_predictions_found_by_collect_are_those_beside_the_record(tmp_path: Path) -> None:
    from pugdft.leaderboard import collect

    made = stored_seeds(tmp_path / "runs", SGD, networks(1))
    assert write_record(made[0].record, made[0].path.parent) == made[0].path
    collected = collect([tmp_path / "runs"])
    assert build_leaderboard(collected.records) == build_leaderboard(made)
