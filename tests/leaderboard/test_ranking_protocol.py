"""Which runs are of one protocol, how they were tuned, and what makes their comparison doubtful."""

from __future__ import annotations

from typing import Any

import pytest
from ranked_records import NAN, entry_of, one_group, seeds
from run_records import PUGD, SAM, SGD, loaded, record

from pugdft.leaderboard import Group, build_leaderboard
from pugdft.leaderboard.entry import TuningBudget
from pugdft.records import RunRecord


def test_how_an_optimizer_was_tuned_is_shown_and_makes_no_entry_of_its_own() -> None:
    tuned = record(SAM, 0, tuning={"trials": 9, "gradient_passes": 1200, "search": "grid"})
    group = one_group(tuned, record(SAM, 1), record(SGD))
    sam = entry_of(group, "sam")
    assert (sam.num_seeds, sam.tuning) == (2, TuningBudget(9, 1200.0))
    assert entry_of(group, "sgd").tuning is None
    assert [note for note in group.notes if "tuning" in note] == [
        "tuning budgets differ: 9 trials of 1,200 gradient passes in all (sam); none on record (sgd)"
    ]


@pytest.mark.parametrize(
    ("trials", "passes", "doubted"),
    [(10, 1000, False), (10, 1090, False), (10, 1200, True), (12, 1000, True)],
)
def test_budgets_that_differ_by_more_than_a_tenth_are_doubted(
    trials: int, passes: float, doubted: bool
) -> None:
    group = one_group(
        record(SGD, tuning={"trials": 10, "gradient_passes": 1000}),
        record(SAM, tuning={"trials": trials, "gradient_passes": passes}),
    )
    assert any("tuning budgets differ" in note for note in group.notes) is doubted


@pytest.mark.parametrize(
    "tuning", [5, {}, {"trials": "x", "gradient_passes": 1}, {"trials": 1, "gradient_passes": NAN}], ids=str
)
def test_a_tuning_that_says_nothing_is_none(tuning: Any) -> None:
    group = one_group(record(SGD, tuning=tuning), record(SAM))
    assert {entry.tuning for entry in group.entries} == {None}
    assert group.notes == ()


def test_runs_of_a_search_stand_in_no_group_and_are_counted_once() -> None:
    trials = [
        record({**SAM, "rho": rho / 10}, train__evaluate="validation", metrics=None) for rho in range(5)
    ]
    other_protocol = record(SGD, train__epochs=99)
    groups = build_leaderboard(loaded(trials, record(SGD), record(SAM), other_protocol))
    assert [[entry.label for entry in group.entries] for group in groups] == [["sam", "sgd"], ["sgd"]]
    notes = [note for group in groups for note in group.notes]
    assert notes == ["5 runs of a search, on held-out images, not shown"]
    assert build_leaderboard(loaded(trials)) == []


def test_what_epochs_count_is_part_of_the_protocol() -> None:
    groups = build_leaderboard(loaded(record(SGD), record(SAM, train__budget="passes")))
    assert [group.protocol for group in groups] == [
        "224 px, 10 epochs' worth of gradient passes, batch 100, fp32, cosine",
        "224 px, 10 epochs, batch 100, fp32, cosine",
    ]


def test_older_records_without_the_newer_keys_stand_with_newer_ones() -> None:
    new = record(SAM, train__budget="epochs", train__evaluate="all")
    assert len(one_group(record(SGD), new).entries) == 2
    old = record(PUGD)
    assert old.recipe.pop("schedule") == {"name": "cosine"}  # the default
    assert len(one_group(old, new).entries) == 2
    old.recipe["schedule"] = {"name": "constant"}
    assert len(build_leaderboard(loaded(old, new))) == 2


def test_what_makes_runs_faster_is_no_part_of_the_protocol() -> None:
    fast = record(SAM, train__performance={"compile": True}, data__workers=8)
    assert len(one_group(record(SGD), fast).entries) == 2


def test_one_seed_under_several_names_counts_once() -> None:
    runs = [record(SGD, seed, 0.9, id=f"run-{seed}", train__seed=0) for seed in range(3)]
    entry = one_group(runs).entries[0]
    assert (entry.num_seeds, list(entry.scores)) == (1, [0])
    assert entry.notes == (
        "2 runs with another seed on record than in the recipe, which counts: run-1, run-2",
        "seed 0 ran 3 times; run-0, which finished first, counts",
    )
    without = [record(SGD, seed, 0.9, train__seed=None) for seed in range(3)]
    assert one_group(without).entries[0].num_seeds == 3


@pytest.mark.parametrize(
    ("key", "values", "said"),
    [
        ("torch", ("2.9.0", "2.10.0"), "the version of torch: 2.10.0 (sam); 2.9.0 (sgd)"),
        ("timm", ("1.0.20", "1.0.22"), "the version of timm"),
        ("pugdft", ("0.1.0", "0.2.0"), "the version of pugdft"),
        ("processes", (1, 4), "the number of processes: 1 (sgd); 4 (sam)"),
        ("precision", ("fp32", "bf16"), "the precision"),
        ("device_name", ("A100", "H200"), "times say nothing: A100 (sgd); H200 (sam)"),
    ],
)
def test_runs_in_different_surroundings_are_doubted(key: str, values: tuple[Any, Any], said: str) -> None:
    first, second = values
    runs = [record(SGD, environment={key: first}), record(SAM, environment={key: second})]
    notes = one_group(runs).notes
    assert len(notes) == 1
    assert said in notes[0]
    same = [record(SGD, environment={key: first}), record(SAM, environment={key: first})]
    assert one_group(same, record(PUGD, environment={})).notes == ()


def test_a_modified_checkout_is_named() -> None:
    runs = [record(SGD, environment={"git": "abc-dirty"}), record(SAM, environment={"git": "abc"})]
    assert one_group(runs).notes == ("run from a modified checkout (environment.git): sgd",)


def test_an_environment_may_hold_anything() -> None:
    strange = {"torch": ["2"], "git": 5, "timm": "\x1b[31m" + "x" * 500, "processes": NAN}
    group = one_group(record(SGD, environment=strange), record(SAM, environment={"timm": "1"}))
    assert all(note.isprintable() and len(note) < 300 for note in group.notes)


def test_other_images_of_the_same_name_are_pointed_at() -> None:
    other = {"name": "cifar10", "classes": 10, "sizes": {"test": 1000}, "sha256": "cd" * 32}
    for epochs in (10, 3):  # of one protocol, and of two
        groups = build_leaderboard(loaded(record(SGD), record(SAM, data=other, train__epochs=epochs)))
        assert len(groups) == 2
        assert all("had other images (data.sha256, data.sizes.test)" in group.notes[0] for group in groups)
    assert all(
        not group.notes for group in build_leaderboard(loaded(record(SGD), record(SAM, train__epochs=3)))
    )


@pytest.mark.parametrize(
    "fact", ["data__order_sha256", "data__split_sha256", "data__augmentation_sha256", "model__head_sha256"]
)
def test_equal_seeds_that_were_not_the_same_draws_are_compared_as_unpaired(fact: str) -> None:
    model = {"name": "resnet18", "weights_sha256": "ab", "parameters": 5}

    def group_of(digest: str | None) -> Group:
        said = {} if digest is None else {fact: digest}
        facts: dict[str, Any] = {"model": model}
        return one_group(
            [facted(SGD, seed, top1, facts, {fact: "aa"}) for seed, top1 in enumerate((0.90, 0.95, 0.92))],
            [facted(SAM, seed, top1, facts, said) for seed, top1 in enumerate((0.905, 0.955, 0.925))],
        )

    def facted(
        optimizer: dict[str, Any], seed: int, top1: float, facts: dict[str, Any], said: dict[str, str]
    ) -> RunRecord:
        made = record(optimizer, seed, top1)
        content = made.model_dump(by_alias=True) | facts
        for key, digest in said.items():
            section, _, name = key.partition("__")
            content[section] = {**content[section], name: digest}
        return RunRecord.model_validate(content)

    agreeing, silent, differing = group_of("aa"), group_of(None), group_of("bb")
    assert [(each.rank_low, each.rank_high) for each in agreeing.entries] == [(1, 1), (2, 2)]
    assert silent.entries[0].rank_high == 1
    assert not any("pairing" in note for note in agreeing.notes + silent.notes)
    assert [(each.rank_low, each.rank_high) for each in differing.entries] == [(1, 2), (1, 2)]
    assert any(
        "seed 0, 1, 2" in note and "pairing by seed is not justified" in note for note in differing.notes
    )


def test_entries_with_different_seeds_say_how_they_are_compared() -> None:
    group = one_group(seeds(SGD, 0.9, 0.91, 0.92), seeds(SAM, 0.9, 0.93))
    assert any(note.startswith("entries ran different seeds") for note in group.notes)
    assert not any("different seeds" in note for note in one_group(seeds(SGD, 0.9, 0.91)).notes)


def test_arguments_of_a_network_stand_in_its_name_and_keep_its_runs_apart() -> None:
    narrow, wide = ({"width": width, "init": "he"} for width in (8, 16))
    runs = [
        *(record(SGD, model__args=narrow), record(SAM, model__args=dict(reversed(narrow.items())))),
        *(record(SGD, model__args=wide), record(SGD), record(SAM, model__args={})),
    ]
    name = runs[0].recipe["model"]["name"]
    groups = build_leaderboard(loaded(*runs))
    assert [(group.model, len(group.entries)) for group in groups] == [
        (name, 2), (f"{name}[init=he,width=16]", 1), (f"{name}[init=he,width=8]", 2),
    ]  # fmt: skip
    assert len({group.protocol for group in groups}) == 1  # what differs stands in the name
    dropped = build_leaderboard(loaded(record(SGD), record(SGD, model__args={"attn_drop_rate": 0.1})))
    assert [group.model for group in dropped] == [name, name]  # another protocol of the same network
    assert len({group.protocol for group in dropped}) == 2
    assert [group.model for group in build_leaderboard(loaded(*runs), model="width=8")] == [groups[2].model]
