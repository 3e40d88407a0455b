"""The records that come with the project hold, and the documents say what they say."""

from __future__ import annotations

from pathlib import Path

from bad_inputs.case import call

from pugdft.leaderboard import collect

RECORDS = Path(__file__).parents[2] / "leaderboard" / "records"
BUNDLED = RECORDS / "bundled_64px"


def test_the_records_pass_the_check_that_others_must_pass() -> None:
    done = call(("leaderboard", "check", str(RECORDS)))
    assert done.code == 0, done.out
    assert done.out.count(": OK") == len(list(RECORDS.rglob("record.yaml"))) >= 25


def test_every_comparison_says_what_it_is() -> None:
    folders = {
        path.parent.parent for path in RECORDS.rglob("record.yaml") if path.parent.parent.name != "trials"
    }
    assert folders
    assert all((folder / "README.md").read_text(encoding="utf-8").startswith("## ") for folder in folders)


def test_every_seed_had_the_same_split_order_augmentation_and_head() -> None:
    seen: dict[int, set[tuple[str | None, ...]]] = {}
    for loaded in collect([BUNDLED]).records:
        data, model = loaded.record.data, loaded.record.model
        assert data is not None
        assert model is not None
        digests = (data.split_sha256, data.order_sha256, data.augmentation_sha256, model.weights_sha256)
        assert None not in digests
        seen.setdefault(loaded.record.seed, set()).add((*digests, model.head_sha256))
    assert {seed: len(each) for seed, each in seen.items()} == dict.fromkeys(range(5), 1)


def test_all_were_made_by_one_clean_commit() -> None:
    commits = {loaded.record.environment["git"] for loaded in collect([BUNDLED]).records}
    assert len(commits) == 1
    assert "dirty" not in commits.pop()
