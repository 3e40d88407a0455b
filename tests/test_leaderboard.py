"""The leaderboard: what is compared with what, and what the numbers of seeds allow to claim."""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from pugdft.errors import UserError
from pugdft.leaderboard import Group, Loaded, as_json, build_leaderboard, print_table
from pugdft.leaderboard.labels import entry_labels, protocol_line
from pugdft.leaderboard.statistics import compare, holm, rank_ranges, summarize
from pugdft.record import RunRecord, write_record

NAN = math.nan
SGD = {"name": "sgd", "lr": 0.01, "momentum": 0.9}
ADAMW = {"name": "adamw", "lr": 0.001}
SAM = {"name": "sam", "rho": 0.05, "base": SGD}
PUGD = {"name": "pugd", "rho": 1.0, "base": SGD}
ESCAPE = "\x1b]8;;http://evil\x1b\\\x1b[31m\x07\x9b2J\u202e"

_numbers = itertools.count()


def run(
    optimizer: dict[str, Any] = SGD,
    seed: int = 0,
    top1: float | None = 0.9,
    status: str = "completed",
    **changes: Any,
) -> RunRecord:
    """A record; ``changes`` are ``section__key=value`` of the recipe, or fields of the record."""
    recipe: dict[str, Any] = {
        "model": {"name": "resnet18.tv_in1k", "pretrained": True},
        "data": {"name": "cifar10", "image_size": 224, "validation": 0.0},
        "optimizer": optimizer,
        "schedule": {"name": "cosine", "warmup_epochs": 0.0},
        "train": {"epochs": 100, "max_steps": None, "batch_size": 100, "precision": "fp32", "freeze": "none"},
    }
    recipe["train"]["seed"] = seed
    fields: dict[str, Any] = {"id": f"run-{next(_numbers):04d}", "status": status, "seed": seed}
    for key, value in changes.items():
        section, separator, option = key.partition("__")
        (recipe[section] if separator else fields)[option or section] = value
    if status == "completed" and top1 is not None:
        fields.setdefault("metrics", {"test": {"top1": top1, "top5": 0.99, "loss": 0.3, "ece": 0.02}})
        fields.setdefault("data", facts(recipe["data"]["name"]))
        fields.setdefault(
            "cost", {"gradient_passes": 100_000, "train_seconds": 3720, "images_per_second": 1234}
        )
    return RunRecord.model_validate({"schema": "pugdft.run/1", "recipe": recipe, **fields})


def facts(name: str, sha256: str = "ab" * 32) -> dict[str, Any]:
    return {"name": name, "classes": 10, "sizes": {"train": 50_000, "test": 10_000}, "sha256": sha256}


def seeds(optimizer: dict[str, Any], *top1s: float | None, **changes: Any) -> list[RunRecord]:
    return [run(optimizer, seed, top1, **changes) for seed, top1 in enumerate(top1s)]


def board(*records: RunRecord, **filters: Any) -> list[Group]:
    return build_leaderboard([Loaded(each, Path(each.id)) for each in records], **filters)


def only_group(*records: RunRecord) -> Group:
    groups = board(*records)
    assert len(groups) == 1
    return groups[0]


def labels(group: Group) -> list[str]:
    return [entry.label for entry in group.entries]


def ranks(group: Group) -> list[tuple[int | None, int | None]]:
    return [(entry.rank_low, entry.rank_high) for entry in group.entries]


def table(groups: list[Group], width: int = 100, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=width, **options)
    print_table(groups, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


# --- grouping --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"data__image_size": 32},
        {"data__validation": 0.1},
        {"data__flip": False},
        {"train__epochs": 10},
        {"train__max_steps": 500},
        {"train__batch_size": 50},
        {"train__precision": "bf16"},
        {"train__freeze": "backbone"},
        {"train__label_smoothing": 0.1},
        {"train__micro_batch_size": 10},
        {"schedule__name": "constant"},
        {"schedule__warmup_epochs": 5.0},
        {"model__pretrained": False},
        {"model__pretrained": "weights.pth"},
        {"model__name": "vgg16"},
        {"data__name": "cifar100"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_protocol_is_another_group_with_another_title(change: dict[str, Any]) -> None:
    groups = board(run(SGD), run(SAM, **change))
    assert [len(group.entries) for group in groups] == [1, 1]
    assert len({(group.dataset, group.model, group.protocol) for group in groups}) == 2


@pytest.mark.parametrize("change", [{"train__eval_batch_size": 7}, {"train__eval_every": 5}], ids=str)
def test_how_the_test_split_is_evaluated_is_no_part_of_the_protocol(change: dict[str, Any]) -> None:
    group = only_group(run(SGD, train__eval_every=1, train__eval_batch_size=None), run(SAM, **change))
    assert len(group.entries) == 2
    assert not {"eval_every", "eval_batch_size"} & group.recipe["train"].keys()


def test_the_optimizer_and_the_seed_are_no_part_of_the_protocol() -> None:
    group = only_group(*seeds(SGD, 0.9, 0.91), *seeds(SAM, 0.92, 0.93))
    assert [entry.num_seeds for entry in group.entries] == [2, 2]


def test_equal_names_of_different_images_are_not_compared() -> None:
    groups = board(run(SGD, data=facts("mine", "a" * 64)), run(SAM, data=facts("mine", "b" * 64)))
    assert [labels(group) for group in groups] == [["sgd"], ["sam"]]
    assert ["data aaaaaaaa" in group.protocol for group in groups] == [True, False]


def test_the_same_images_under_two_paths_are_compared() -> None:
    here = run(SGD, data__name="/here/mine", data=facts("mine"))
    there = run(SAM, data__name="/there/mine", data=facts("mine"))
    failed = run(SAM, 1, status="failed", data__name="/there/mine/")
    group = only_group(here, there, failed)
    assert {entry.label: entry.num_failed for entry in group.entries} == {"sgd": 0, "sam": 1}


def test_different_pretrained_weights_under_one_name_are_noted() -> None:
    def weights(digest: str) -> dict[str, Any]:
        return {"name": "resnet18", "pretrained_tag": "t", "weights_sha256": digest, "parameters": 1}

    assert "2 different sets of weights" in table(
        [only_group(run(SGD, model=weights("a")), run(SAM, model=weights("b")))]
    )
    scratch = [run(spec, model=weights(str(spec["name"])), model__pretrained=False) for spec in (SGD, SAM)]
    assert only_group(*scratch).notes == ()


def test_protocol_lines_read_as_people_speak() -> None:
    assert only_group(run()).protocol == "224 px, 100 epochs, batch 100, fp32, cosine"
    recipe = run(
        train__epochs=1,
        train__max_steps=500,
        model__pretrained=False,
        train__freeze="backbone",
        data__validation=0.1,
    ).recipe
    assert protocol_line(recipe) == (
        "224 px, 1 epoch, at most 500 steps, batch 100, fp32, cosine, 0.1 held out, from scratch, backbone frozen"  # noqa: E501
    )


@pytest.mark.parametrize(
    ("specs", "expected"),
    [
        ([SGD, SAM, PUGD], ["sgd", "sam", "pugd"]),
        ([SGD, ADAMW, SAM], ["sgd", "adamw", "sam"]),
        ([{**SAM, "base": ADAMW}], ["sam+adamw"]),
        ([SAM, {**PUGD, "base": ADAMW}], ["sam+sgd", "pugd+adamw"]),
        ([SAM, {**SAM, "rho": 0.1}, PUGD], ["sam[rho=0.05]", "sam[rho=0.1]", "pugd"]),
        ([SGD, {**SGD, "lr": 1e-05}], ["sgd[lr=0.01]", "sgd[lr=1e-05]"]),
        (
            [SAM, {**SAM, "rho": 0.1, "base": {**SGD, "lr": 0.1}}],
            ["sam[rho=0.05,lr=0.01]", "sam[rho=0.1,lr=0.1]"],
        ),
        (
            [{"name": "x", "alpha": 1, "base": {"name": "sgd", "alpha": 3}},
             {"name": "x", "alpha": 2, "base": {"name": "sgd", "alpha": 4}}],
            ["x[alpha=1,base.alpha=3]", "x[alpha=2,base.alpha=4]"],
        ),
        (
            [{**SAM, "rho": {"schedule": "icos", "max": 2}}, {**SAM, "rho": {"schedule": "icos", "max": 3}}],
            ["sam[rho.max=2]", "sam[rho.max=3]"],
        ),
        ([SAM, {**SAM, "flag": True}], ["sam", "sam[flag=true]"]),
    ],
)  # fmt: skip
def test_labels_are_as_short_as_the_group_allows(specs: list[dict[str, Any]], expected: list[str]) -> None:
    assert entry_labels(specs) == expected


def test_key_order_and_one_against_one_point_zero_make_no_new_entry() -> None:
    other = {"base": dict(reversed(SGD.items())), "rho": 1, "name": "pugd"}
    assert labels(only_group(run(PUGD, 0), run(other, 1))) == ["pugd"]
    assert len(only_group(run({**SGD, "nesterov": True}), run({**SGD, "nesterov": 1})).entries) == 2


def test_the_order_of_records_changes_nothing() -> None:
    records = [
        *seeds(SGD, 0.9, 0.91, 0.92),
        *seeds(SAM, 0.95, 0.951, 0.952),
        *seeds({"base": SGD, "name": "sam", "rho": 0.1}, 0.9, NAN),
        *[run(PUGD, 0, environment={"finished": "2025-01-01"}) for _ in range(3)],
        run(PUGD, 1, status="diverged"),
        run(SGD, data__image_size=32),
        run(SGD, train__batch_size=64),
    ]
    expected = as_json(board(*records))
    for shuffle in range(10):
        random.Random(shuffle).shuffle(records)
        assert as_json(board(*records)) == expected


def test_a_seed_that_ran_twice_counts_once_by_its_newest_run() -> None:
    old = run(SGD, 0, 0.9, id="z", environment={"finished": "2025-01-01T00:00:00"})
    new = run(SGD, 0, 0.8, id="a", environment={"finished": "2025-02-01T00:00:00"})
    undated = run(SGD, 0, 0.7, id="y")
    entry = only_group(new, old, undated).entries[0]
    assert (entry.num_seeds, entry.records) == (1, ("a",))
    assert entry.top1 is not None
    assert entry.top1.std is None
    assert entry.notes == ("seed 0 ran 3 times; a, the newest, counts",)


def test_unfinished_runs_are_counted_and_shown_but_never_averaged() -> None:
    failed = [run(SAM, 2, status="diverged"), run(SAM, 3, status="oom"), run(SAM, 4, status="diverged")]
    group = only_group(*seeds(SAM, 0.9, 0.92), *failed)
    entry = group.entries[0]
    assert entry.top1 is not None
    assert entry.top1.mean == pytest.approx(0.91)
    assert (entry.num_seeds, entry.num_failed) == (2, 3)
    assert "sam: 2 diverged, 1 oom; not in its mean." in table([group])


def test_an_optimizer_that_never_completed_is_shown_without_a_rank() -> None:
    group = only_group(run(PUGD, status="failed"), *seeds(SGD, 0.5, 0.6))
    assert labels(group) == ["sgd", "pugd"]
    assert ranks(group) == [(1, 1), (None, None)]
    assert "pugd: 1 failed" in table([group])


@pytest.mark.parametrize("bad", [NAN, None, math.inf, 1.5, -0.1])
def test_a_completed_run_without_a_valid_top1_ranks_its_optimizer_last(bad: float | None) -> None:
    group = only_group(*seeds(SAM, 0.99, bad), *seeds(SGD, 0.5, 0.6), *seeds(PUGD, 0.4, 0.6))
    assert labels(group) == ["sgd", "pugd", "sam"]
    assert ranks(group) == [(1, 2), (1, 2), (3, 3)]
    assert "no valid top-1 for seed 1: ranked last" in table([group])
    entry = json.loads(as_json([group]))["groups"][0]["entries"][2]
    assert entry["top1_mean"] is entry["top1_ci95"] is None


def test_costs_too_large_to_add_are_not_measured() -> None:
    costs = {"train_seconds": 1.7e308, "peak_memory_bytes": 10**400}
    entry = only_group(*seeds(SGD, 0.9, 0.8, cost=costs)).entries[0]
    assert (entry.train_seconds, entry.peak_memory_bytes) == (None, None)


# --- filters ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "found"),
    [("cifar10", "cifar10"), ("CIFAR10", "cifar10"), ("Tiny", "tiny_imagenet"), ("100", "cifar100")],
)
def test_a_filter_is_a_name_or_a_part_that_only_one_name_has(wanted: str, found: str) -> None:
    records = [run(data__name=name) for name in ("cifar10", "cifar100", "tiny_imagenet")]
    assert [group.dataset for group in board(*records, dataset=wanted)] == [found]


def test_filters_of_data_set_and_model_join() -> None:
    records = [run(data__name=data, model__name=model) for data in ("a", "b") for model in ("x", "y")]
    assert [(group.dataset, group.model) for group in board(*records, dataset="b", model="x")] == [("b", "x")]


@pytest.mark.parametrize(
    ("wanted", "words"), [("cifar", "part of several"), ("cifr10", "Did you mean"), ("z", "no record")]
)
def test_a_filter_that_picks_no_single_name_lists_what_exists(wanted: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        board(run(data__name="cifar10"), run(data__name="cifar100"), dataset=wanted)
    assert "cifar10, cifar100" in str(caught.value)


def test_no_records_are_no_groups_and_an_error_only_under_a_filter() -> None:
    assert board() == []
    with pytest.raises(UserError, match="There are no records"):
        board(model="x")


# --- statistics ------------------------------------------------------------------------------------------


def scores(*values: float, start: int = 0) -> dict[int, float]:
    return dict(enumerate(values, start))


def test_summaries_are_those_of_scipy() -> None:
    from scipy import stats

    values = [0.91, 0.93, 0.9, 0.925]
    summary = summarize(values)
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert summary.mean == pytest.approx(np.mean(values), rel=1e-12)
    assert summary.std == pytest.approx(np.std(values, ddof=1), rel=1e-9)
    assert summary.ci95 == pytest.approx((low, high), rel=1e-9)


def test_one_seed_has_neither_spread_nor_interval_and_intervals_stay_fractions() -> None:
    assert (summarize([0.9]).std, summarize([0.9]).ci95) == (None, None)
    assert summarize([0.99, 0.9]).ci95[1] == 1.0  # type: ignore[index]
    assert summarize([0.01, 0.1]).ci95[0] == 0.0  # type: ignore[index]


def test_common_seeds_give_scipys_paired_test_over_them_alone() -> None:
    from scipy import stats

    first, second = scores(0.91, 0.93, 0.95, 0.2), scores(0.9, 0.925, 0.93, start=0) | {9: 0.99}
    expected = stats.ttest_rel([0.91, 0.93, 0.95], [0.9, 0.925, 0.93])
    comparison = compare(first, second)
    assert comparison.p_value == pytest.approx(expected.pvalue, rel=1e-6)
    assert comparison.difference > 0
    assert compare(second, first).p_value == pytest.approx(comparison.p_value)


def test_without_common_seeds_the_test_is_scipys_welch() -> None:
    from scipy import stats

    first, second = [0.91, 0.93, 0.95], [0.9, 0.92, 0.91, 0.905]
    expected = stats.ttest_ind(first, second, equal_var=False).pvalue
    assert compare(scores(*first), scores(*second, start=10)).p_value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (scores(0.9), scores(0.1)),
        (scores(0.9), scores(0.1, 0.11, 0.12)),
        (scores(0.9, 0.91, 0.92), scores(0.1, start=9)),
        (scores(0.9, 0.91, 0.92), scores(0.1, 0.11, 0.12, start=2)),
    ],
    ids=["one each", "one against three", "one, not common", "one common of three"],
)
def test_a_single_seed_never_separates(first: dict[int, float], second: dict[int, float]) -> None:
    assert compare(first, second).p_value == 1.0


@pytest.mark.parametrize("start", [0, 10], ids=["paired", "welch"])
def test_zero_spread_is_no_nan(start: int) -> None:
    assert compare(scores(0.9, 0.9, 0.9), scores(0.9, 0.9, 0.9, start=start)).p_value == 1.0
    assert compare(scores(0.9, 0.9), scores(0.8, 0.8, start=start)).p_value == 1.0


@pytest.mark.parametrize("start", [0, 10], ids=["paired", "welch"])
def test_a_spread_of_zero_separates_nothing_unless_the_test_splits_size_is_known(start: int) -> None:
    better, worse = scores(0.9, 0.9, 0.9), scores(0.8, 0.8, 0.8, start=start)
    assert compare(better, worse).p_value == 1.0
    assert 0.0 < compare(better, worse, num_images=100).p_value < 0.01
    assert compare(better, better, num_images=100).p_value == 1.0


@pytest.mark.parametrize(("images", "p_value"), [(1, 0.0513), (2, 0.0136), (10, 0.00056)])
def test_equal_differences_are_tested_against_the_rounding_to_whole_images(
    images: int, p_value: float
) -> None:
    # t = d/N ÷ √(1/(6 N²)/3) = d·√18 with two degrees of freedom, whatever N is.
    for size in (50, 10_000):
        better = {seed: 0.5 + (10 * seed + images) / size for seed in range(3)}
        worse = {seed: 0.5 + 10 * seed / size for seed in range(3)}
        assert compare(better, worse, size).p_value == pytest.approx(p_value, rel=0.01)


def test_a_spread_above_the_rounding_is_used_as_it_is() -> None:
    first, second = scores(0.91, 0.93, 0.95), scores(0.9, 0.925, 0.93)
    assert compare(first, second, 10_000) == compare(first, second)


@pytest.mark.parametrize("start", [0, 100], ids=["paired", "welch"])
@pytest.mark.parametrize("num_seeds", [2, 3])
def test_equal_optimizers_on_few_images_are_separated_in_at_most_one_pair_of_twenty(
    num_seeds: int, start: int
) -> None:
    rng = np.random.default_rng(num_seeds)
    for spread in (0.3, 0.5, 1.0, 2.0):  # in images: scores often agree to the last one
        drawn = np.round(40.25 + rng.normal(0, spread, (1000, 2, num_seeds))) / 50
        pairs = [(scores(*pair[0]), scores(*pair[1], start=start)) for pair in drawn]
        wrong = sum(compare(*pair, num_images=50).p_value <= 0.05 for pair in pairs)
        assert wrong / 1000 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1000)


def test_a_constant_difference_is_seen_through_floating_point() -> None:
    # 0.9 - 0.8, 0.7 - 0.6 and 0.3 - 0.2 are three different floats; t would be about 1e15.
    assert compare(scores(0.9, 0.7), scores(0.8, 0.6)).p_value == 1.0
    assert compare(scores(0.3, 0.1 + 0.2), scores(0.1 + 0.2, 0.3)).p_value == 1.0


def test_holm_steps_down_and_stops_at_the_first_failure() -> None:
    # 0.05/4, /3, /2, /1 = .0125, .0167, .025, .05: Bonferroni would keep only the first.
    assert holm([0.04, 0.015, 0.01, 0.024]) == [True, True, True, True]
    assert holm([0.01, 0.02, 0.02, 0.02]) == [True, False, False, False]
    assert holm([0.013, 0.001, 1.0]) == [True, True, False]
    assert holm([]) == []


def test_rank_ranges_count_who_is_surely_better_and_surely_worse() -> None:
    noise = [0.001, -0.001, 0.0005, 0.0, -0.0005]
    top = scores(*(0.95 + each for each in noise))
    middle_a = scores(*(0.901 + each for each in (0.004, -0.003, 0.001, -0.002, 0.0)))
    middle_b = scores(*(0.9 + each for each in (-0.003, 0.004, -0.002, 0.002, 0.0)))
    bottom = scores(*(0.8 + each for each in reversed(noise)))
    assert rank_ranges([middle_b, top, bottom, middle_a]) == [(2, 3), (1, 1), (4, 4), (2, 3)]
    assert rank_ranges([]) == []
    assert rank_ranges([top]) == [(1, 1)]


def simulated(
    rng: np.random.Generator, num_entries: int, num_seeds: int, common: bool
) -> list[dict[int, float]]:
    """Equal optimizers: a shared effect of the seed and independent noise."""
    shared = rng.normal(0, 0.004, num_seeds) if common else np.zeros(num_seeds)
    starts = [0 if common else 100 * entry for entry in range(num_entries)]
    return [scores(*(0.9 + shared + rng.normal(0, 0.003, num_seeds)), start=start) for start in starts]


@pytest.mark.parametrize("common", [True, False], ids=["paired", "welch"])
@pytest.mark.parametrize("num_seeds", [2, 5])
def test_equal_optimizers_are_separated_in_at_most_one_group_of_twenty(num_seeds: int, common: bool) -> None:
    rng = np.random.default_rng(num_seeds)
    groups = [simulated(rng, 4, num_seeds, common) for _ in range(1500)]
    wrong = sum(any(ranks != (1, 4) for ranks in rank_ranges(group)) for group in groups)
    # Three standard errors over 5 %.
    assert wrong / len(groups) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / len(groups))


def test_two_equal_optimizers_are_separated_in_about_five_percent() -> None:
    """The level is used, not only kept: with one pair Holm has nothing to correct."""
    rng = np.random.default_rng(0)
    wrong = sum(rank_ranges(simulated(rng, 2, 5, True)) != [(1, 2), (1, 2)] for _ in range(4000)) / 4000
    assert 0.04 <= wrong <= 0.06


def test_a_large_difference_is_found_and_pairing_finds_what_the_seeds_spread_hides() -> None:
    rng = np.random.default_rng(1)
    found = 0
    for _ in range(200):
        group = simulated(rng, 4, 5, True)
        group[2] = {seed: top1 + 0.03 for seed, top1 in group[2].items()}
        found += rank_ranges(group)[2] == (1, 1)
    assert found >= 190
    effect = [0.0, 0.1, -0.1, 0.05, -0.05]
    better = scores(
        *(0.801 + each + jitter for each, jitter in zip(effect, [1e-4, 0, -1e-4, 0, 1e-4], strict=True))
    )
    assert rank_ranges([scores(*(0.8 + each for each in effect)), better]) == [(2, 2), (1, 1)]


# --- the ranking -----------------------------------------------------------------------------------------


def test_entries_stand_by_mean_with_their_ranges_and_evidence() -> None:
    group = only_group(
        *seeds(SGD, 0.9, 0.901, 0.899), *seeds(SAM, 0.95, 0.952, 0.949), *seeds(PUGD, 0.951, 0.948, 0.95)
    )
    assert labels(group) == ["sam", "pugd", "sgd"]
    assert ranks(group) == [(1, 2), (1, 2), (3, 3)]
    entry = group.entries[0]
    assert (entry.gradient_passes, entry.train_seconds, entry.peak_memory_bytes) == (100_000, 3720, None)
    assert len(entry.records) == 3


def test_the_size_of_the_test_split_comes_from_the_records() -> None:
    def ranked(num_images: int | None) -> list[tuple[int | None, int | None]]:
        sizes = {"train": 100} if num_images is None else {"train": 100, "test": num_images}
        data = {**facts("cifar10"), "sizes": sizes}
        return ranks(only_group(*seeds(SGD, 0.5, 0.5, 0.5, data=data), *seeds(SAM, 0.6, 0.6, 0.6, data=data)))

    assert ranked(10) == [(1, 2), (1, 2)]
    assert ranked(20) == [(1, 1), (2, 2)]
    assert ranked(None) == [(1, 2), (1, 2)]


def test_the_last_epoch_ranks_not_the_best() -> None:
    def picked(last: float, best: float) -> dict[str, Any]:
        test = {"top1": last, "top5": 0.99, "loss": 0.3, "ece": 0.02}
        return {"test": test, "best_test": {"top1": best, "epoch": 3}}

    group = only_group(run(SGD, metrics=picked(0.8, 0.99)), run(SAM, metrics=picked(0.9, 0.9)))
    assert labels(group) == ["sam", "sgd"]


# --- renderers -------------------------------------------------------------------------------------------


def test_json_has_the_contracts_fields_and_null_for_what_is_undefined() -> None:
    content = json.loads(as_json(board(*seeds(SAM, 0.9, 0.92), run(SGD, 0, 0.8))))
    assert content["schema"] == "pugdft.leaderboard/1"
    group = content["groups"][0]
    assert (group["dataset"], group["model"]) == ("cifar10", "resnet18.tv_in1k")
    sam, sgd = group["entries"]
    assert sam["top1_mean"] == pytest.approx(0.91)
    assert sam["top1_std"] == pytest.approx(0.0141421356)
    assert len(sam["top1_ci95"]) == 2
    assert sgd.items() >= {
        "optimizer": "sgd", "status": "measured", "rank_low": 1, "rank_high": 2, "num_seeds": 1,
        "top1_mean": 0.8, "top1_std": None, "top1_ci95": None,
        "gradient_passes": 100_000, "train_seconds": 3720,
    }.items()  # fmt: skip
    assert len(sgd["records"]) == 1
    assert sgd["spec"] == SGD


def test_json_stays_json_whatever_a_record_holds() -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    strange = {**SGD, "lr": NAN, "x": math.inf, "y": {1: {2, 3}}, "z": b"\xff"}
    text = as_json(
        board(
            run(strange, top1=NAN, cost={"train_seconds": NAN}),
            run(SGD, 1, method={"mean_perturbation_norm": NAN}),
        )
    )
    json.loads(text, parse_constant=refuse)


def test_the_table_shows_percent_ranks_and_intervals_of_records() -> None:
    method = {"mean_perturbation_norm": 0.05, "mean_gradient_cosine": 0.87}
    cost = {
        "gradient_passes": 1e5,
        "train_seconds": 3720,
        "images_per_second": 1234,
        "peak_memory_bytes": 13_207_024_435,
    }
    groups = board(
        *seeds(SGD, 0.9, 0.901, 0.899, cost=cost),
        *seeds({**SAM, "base": ADAMW}, 0.95, 0.952, 0.949, cost=cost, method=method),
        *seeds({**PUGD, "base": ADAMW}, 0.951, 0.948, 0.95, cost=cost, method=method),
    )
    lines = [line.split() for line in table(groups, width=160).splitlines()]
    figures = ["1–2", "sam+adamw", "3", "95.03", "±", "0.15", "94.65–95.41", "99.00", "0.3000", "2.00"]
    assert [*figures, "100.0k", "62m", "1,234", "12.3", "0.05", "0.87"] in lines
    assert any(line[:3] == ["3", "sgd", "3"] and line[-2:] == ["–", "–"] for line in lines)
    for width in (80, 100, 120):
        text = table(groups, width=width)
        assert max(map(len, text.splitlines())) <= width
        assert "cifar10 × resnet18.tv_in1k" in text
        assert "224 px, 100 epochs, batch 100, fp32, cosine" in text


def test_columns_that_nobody_measured_are_left_out() -> None:
    text = table(board(run(SGD), run(SAM)))
    assert not any(word in text for word in ("‖e‖", "GiB", "CI", "±", "trials"))


@pytest.mark.parametrize(
    ("records", "sentence"),
    [
        ([run(SGD), run(SAM)], "One seed each: no difference can be claimed."),
        ([run(SGD), *seeds(SAM, 0.9, 0.8)], "An optimizer with one seed shares a range with all."),
        ([*seeds(SGD, 0.9, 0.8), *seeds(SAM, 0.9, 0.8)], "(Holm over all pairs, 5 %)"),
        ([run(SGD)], "Nothing to compare with."),
        ([run(SGD, top1=NAN), run(SAM)], "Nothing to compare with."),
    ],
)
def test_the_footer_says_what_the_seeds_allow(records: list[RunRecord], sentence: str) -> None:
    text = " ".join(table(board(*records)).split())
    assert sentence in text
    assert "top-1 is the last epoch's on the test split" in text


def test_the_metric_ranks_and_marks_its_column() -> None:
    def metrics(top1: float, loss: float) -> dict[str, Any]:
        return {"test": {"top1": top1, "top5": 0.99, "loss": loss, "ece": 0.02}}

    records = [run(SGD, metrics=metrics(0.9, 0.2)), run(SAM, metrics=metrics(0.8, 0.1))]
    assert [labels(board(*records, metric=metric)[0]) for metric in ("top1", "loss")] == [
        ["sgd", "sam"],
        ["sam", "sgd"],
    ]
    assert "↓ loss" in table(board(*records, metric="loss"))


def test_brackets_are_text_and_no_record_reaches_the_terminals_controls() -> None:
    name = f"sam[bold]x[/bold][link=http://evil]{ESCAPE}\n:boom:"
    hostile = {"name": name, "rho": ESCAPE, "base": {"name": f"{ESCAPE}b", "lr": 0.1}}
    records = [
        run(
            hostile,
            0,
            id=f"a{ESCAPE}",
            data__name=f"d{ESCAPE}",
            model__name=f"m[red]{ESCAPE}",
            train__precision=ESCAPE,
        ),
        run(
            hostile,
            0,
            id=f"b{ESCAPE}",
            data__name=f"d{ESCAPE}",
            model__name=f"m[red]{ESCAPE}",
            train__precision=ESCAPE,
        ),
        run(
            {**hostile, "rho": 2},
            data__name=f"d{ESCAPE}",
            model__name=f"m[red]{ESCAPE}",
            train__precision=ESCAPE,
        ),
    ]
    groups = board(*records)
    text = table(groups, width=400)
    assert all(line.isprintable() for line in text.split("\n"))
    assert "sam[bold]x[/bold][link=http://evil]" in text
    assert ":boom:" in text
    coloured = table(groups, width=400, force_terminal=True, color_system="truecolor")
    assert "evil\x1b\\" not in coloured
    assert as_json(groups).replace("\n", "").isprintable()
    with pytest.raises(UserError) as caught:
        board(*records, dataset=ESCAPE + "z")
    assert str(caught.value).isprintable()


# --- the command -----------------------------------------------------------------------------------------


def leaderboard(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pugdft", "leaderboard", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
    )


@pytest.fixture
def one_good_and_two_broken(tmp_path: Path) -> Path:
    write_record(run(), tmp_path / "good")
    for name in ("bad", "worse"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "record.yaml").write_text("hello: world")
    return tmp_path


def test_what_is_left_out_is_named_and_counted_and_does_not_cost_the_table(
    one_good_and_two_broken: Path,
) -> None:
    done = leaderboard(str(one_good_and_two_broken), "--format", "json")
    assert done.returncode == 0
    assert len(json.loads(done.stdout)["groups"]) == 1
    assert [line.partition(": ")[0] for line in done.stderr.splitlines()] == [
        "left out",
        "left out",
        "2 records left out",
    ]
    assert done.stderr.startswith(f"left out: {one_good_and_two_broken}/bad/record.yaml: not a run record")


def test_strict_fails_after_showing_what_there_is(one_good_and_two_broken: Path) -> None:
    done = leaderboard(str(one_good_and_two_broken), "--strict", "--format", "json")
    assert done.returncode == 1
    assert len(json.loads(done.stdout)["groups"]) == 1
    assert leaderboard(str(one_good_and_two_broken / "good"), "--strict").returncode == 0


def test_runs_of_a_search_alone_are_nothing_to_rank(tmp_path: Path) -> None:
    write_record(run(train__evaluate="validation", data__validation=0.1), tmp_path / "a")
    done = leaderboard(str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert "nothing to rank: 1 record of a search" in done.stderr


@pytest.mark.parametrize(
    ("form", "begins"),
    [
        ("table", "cifar10 × "),
        ("json", "{"),
        ("csv", "dataset,model,"),
        ("markdown", "### cifar10"),
        ("latex", "% needs"),
        ("html", "<!doctype html>"),
    ],
)
def test_every_format_goes_to_stdout_and_into_a_file_alike(form: str, begins: str, tmp_path: Path) -> None:
    for record in (*seeds(SGD, 0.9, 0.91), *seeds(SAM, 0.92, 0.94)):
        write_record(record, tmp_path / "runs" / record.id)
    printed = leaderboard("--format", form, "--metric", "loss", cwd=tmp_path)
    assert (printed.returncode, printed.stderr) == (0, "")
    assert printed.stdout.lower().startswith(begins.lower())
    assert printed.stdout.endswith("\n")
    assert "\x1b" not in printed.stdout
    kept = leaderboard("--format", form, "--metric", "loss", "--output", "board", cwd=tmp_path)
    assert (kept.returncode, kept.stdout) == (0, "")
    assert (tmp_path / "board").read_text(encoding="utf-8") == printed.stdout


@pytest.mark.parametrize("output", ["folder", "file/below", "/proc/x", "", "pipe", "x" * 300])
def test_an_output_that_cannot_be_written_is_one_message_and_exit_code_2(output: str, tmp_path: Path) -> None:
    write_record(run(), tmp_path / "runs" / "a")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    os.mkfifo(tmp_path / "pipe")
    done = leaderboard("runs", "--output", output, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--output" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "pipe", "runs"]
    assert (tmp_path / "pipe").is_fifo()


def test_the_import_needs_neither_torch_nor_scipy_nor_rich() -> None:
    code = (
        "import sys, pugdft.leaderboard; print([m for m in ('torch', 'scipy', 'rich') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
