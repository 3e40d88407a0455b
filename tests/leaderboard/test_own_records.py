"""The records that come with the project hold, and the documents say what they say."""

from __future__ import annotations

from pathlib import Path

import pytest
from bad_inputs.case import call

from pugdft.leaderboard import Entry, build_leaderboard, collect

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "leaderboard" / "records"


@pytest.fixture(scope="module")
def entries() -> tuple[Entry, ...]:
    (group,) = build_leaderboard(collect([RECORDS]).records)
    return group.entries


def test_the_records_pass_the_check_that_others_must_pass() -> None:
    done = call(("leaderboard", "check", str(RECORDS)))
    assert done.code == 0, done.out
    assert done.out.count(": OK") == 25


def test_the_documented_table_is_that_of_the_records(entries: tuple[Entry, ...]) -> None:
    text = (ROOT / "docs" / "comparisons.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "| 1–" in line
    ]
    assert len(rows) == len(entries) == 5
    for row, entry in zip(rows, entries, strict=True):
        assert entry.top1 is not None
        assert entry.top1.std is not None
        assert entry.top1.ci95 is not None
        low, high = entry.top1.ci95
        assert row[:5] == [
            f"{entry.rank_low}–{entry.rank_high}",
            entry.label,
            str(entry.num_seeds),
            f"{100 * entry.top1.mean:.2f} ± {100 * entry.top1.std:.2f}",
            f"{100 * low:.2f}–{100 * high:.2f}",
        ]


def test_every_seed_had_the_same_split_order_augmentation_and_head() -> None:
    seen: dict[int, set[tuple[str | None, ...]]] = {}
    for loaded in collect([RECORDS]).records:
        data, model = loaded.record.data, loaded.record.model
        assert data is not None
        assert model is not None
        digests = (data.split_sha256, data.order_sha256, data.augmentation_sha256, model.weights_sha256)
        assert None not in digests
        seen.setdefault(loaded.record.seed, set()).add((*digests, model.head_sha256))
    assert {seed: len(each) for seed, each in seen.items()} == dict.fromkeys(range(5), 1)


def test_all_were_made_by_one_clean_commit() -> None:
    commits = {loaded.record.environment["git"] for loaded in collect([RECORDS]).records}
    assert len(commits) == 1
    assert "dirty" not in commits.pop()
