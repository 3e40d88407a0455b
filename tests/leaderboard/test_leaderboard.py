"""The leaderboard: what is compared with what, and what the numbers of seeds allow to claim."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest
from ranked_records import NAN, one_group, seeds
from run_records import ADAMW, PUGD, SAM, SGD, board, facts, labels, ranks, table
from run_records import record as run

from pugdft.errors import UserError
from pugdft.leaderboard import as_json
from pugdft.leaderboard.grouping import entry_labels, protocol_line


@pytest.mark.parametrize(
    "change",
    [
        {"data__image_size": 32},
        {"data__validation": 0.1},
        {"data__flip": False},
        {"train__epochs": 100},
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
    group = one_group(run(SGD, train__eval_every=1, train__eval_batch_size=None), run(SAM, **change))
    assert len(group.entries) == 2
    assert not {"eval_every", "eval_batch_size"} & group.recipe["train"].keys()


def test_the_optimizer_and_the_seed_are_no_part_of_the_protocol() -> None:
    group = one_group(*seeds(SGD, 0.9, 0.91), *seeds(SAM, 0.92, 0.93))
    assert [entry.num_seeds for entry in group.entries] == [2, 2]


def test_equal_names_of_different_images_are_not_compared() -> None:
    groups = board(run(SGD, data=facts("mine", "a" * 64)), run(SAM, data=facts("mine", "b" * 64)))
    assert [labels(group) for group in groups] == [["sgd"], ["sam"]]
    assert ["data aaaaaaaa" in group.protocol for group in groups] == [True, False]


def test_the_same_images_under_two_paths_are_compared() -> None:
    here = run(SGD, data__name="/here/mine", data=facts("mine"))
    there = run(SAM, data__name="/there/mine", data=facts("mine"))
    failed = run(SAM, 1, status="failed", data__name="/there/mine/")
    group = one_group(here, there, failed)
    assert {entry.label: entry.num_failed for entry in group.entries} == {"sgd": 0, "sam": 1}


def test_different_pretrained_weights_under_one_name_are_noted() -> None:
    def weights(digest: str) -> dict[str, Any]:
        return {"name": "resnet18", "pretrained_tag": "t", "weights_sha256": digest, "parameters": 1}

    assert "2 different sets of weights" in table(
        [one_group(run(SGD, model=weights("a")), run(SAM, model=weights("b")))]
    )
    scratch = [run(spec, model=weights(str(spec["name"])), model__pretrained=False) for spec in (SGD, SAM)]
    assert one_group(*scratch).notes == ()


def test_protocol_lines_read_as_people_speak() -> None:
    assert one_group(run()).protocol == "224 px, 10 epochs, batch 100, fp32, cosine"
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
        ([SAM, {**SAM, "trigger": {"name": "every", "k": 2}}], ["sam", "sam[trigger=every]"]),
        (
            [SAM, *({**SAM, "trigger": {"name": "every", "k": k}} for k in (2, 3))],
            ["sam", "sam[trigger.k=2,trigger.name=every]", "sam[trigger.k=3,trigger.name=every]"],
        ),
        ([SAM, {**SAM, "flag": True}], ["sam", "sam[flag=true]"]),
        ([SAM, {**SAM, "rho": 0.35000000000000003}], ["sam[rho=0.05]", "sam[rho=0.35]"]),
    ],
)  # fmt: skip
def test_labels_are_as_short_as_the_group_allows(specs: list[dict[str, Any]], expected: list[str]) -> None:
    assert entry_labels(specs) == expected


def test_key_order_and_one_against_one_point_zero_make_no_new_entry() -> None:
    other = {"base": dict(reversed(SGD.items())), "rho": 1, "name": "pugd"}
    assert labels(one_group(run(PUGD, 0), run(other, 1))) == ["pugd"]
    assert len(one_group(run({**SGD, "nesterov": True}), run({**SGD, "nesterov": 1})).entries) == 2


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


def test_a_seed_that_ran_twice_counts_once_by_its_first_result() -> None:
    old = run(SGD, 0, 0.9, id="z", environment={"finished": "2025-01-01T00:00:00"})
    new = run(SGD, 0, 0.8, id="a", environment={"finished": "2025-02-01T00:00:00"})
    undated = run(SGD, 0, 0.7, id="y")
    entry = one_group(new, old, undated).entries[0]
    assert (entry.num_seeds, entry.records) == (1, ("z",))
    assert entry.top1 is not None
    assert entry.top1.std is None
    assert entry.notes == ("seed 0 ran 3 times; z, which finished first, counts",)


def test_unfinished_runs_are_counted_and_shown_but_never_averaged() -> None:
    failed = [run(SAM, 2, status="diverged"), run(SAM, 3, status="oom"), run(SAM, 4, status="diverged")]
    group = one_group(*seeds(SAM, 0.9, 0.92), *failed)
    entry = group.entries[0]
    assert entry.top1 is not None
    assert entry.top1.mean == pytest.approx(0.91)
    assert (entry.num_seeds, entry.num_failed) == (2, 3)
    assert "sam: 2 diverged, 1 oom; not in its mean." in table([group])


def test_an_optimizer_that_never_completed_is_shown_without_a_rank() -> None:
    group = one_group(run(PUGD, status="failed"), *seeds(SGD, 0.5, 0.6))
    assert labels(group) == ["sgd", "pugd"]
    assert ranks(group) == [(1, 1), (None, None)]
    assert "pugd: 1 failed" in table([group])


@pytest.mark.parametrize("bad", [NAN, None, math.inf, 1.5, -0.1])
def test_a_completed_run_without_a_valid_top1_ranks_its_optimizer_last(bad: float | None) -> None:
    group = one_group(*seeds(SAM, 0.99, bad), *seeds(SGD, 0.5, 0.6), *seeds(PUGD, 0.4, 0.6))
    assert labels(group) == ["sgd", "pugd", "sam"]
    assert ranks(group) == [(1, 2), (1, 2), (3, 3)]
    assert "no valid top-1 for seed 1: ranked last" in table([group])
    entry = json.loads(as_json([group]))["groups"][0]["entries"][2]
    assert entry["top1_mean"] is entry["top1_ci95"] is None


def test_costs_too_large_to_add_are_not_measured() -> None:
    costs = {"train_seconds": 1.7e308, "peak_memory_bytes": 10**400}
    entry = one_group(*seeds(SGD, 0.9, 0.8, cost=costs)).entries[0]
    assert (entry.train_seconds, entry.peak_memory_bytes) == (None, None)


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
