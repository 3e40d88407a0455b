"""The ranking, and how formats show it."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from ranked_records import NAN, one_group, seeds
from run_records import ADAMW, PUGD, SAM, SGD, board, facts, labels, ranks, table
from run_records import record as run

from pugdft.errors import UserError
from pugdft.leaderboard import as_json

ESCAPE = "\x1b]8;;http://evil\x1b\\\x1b[31m\x07\x9b2J\u202e"


def test_entries_stand_by_mean_with_their_ranges_and_evidence() -> None:
    group = one_group(
        *seeds(SGD, 0.9, 0.901, 0.899), *seeds(SAM, 0.95, 0.952, 0.949), *seeds(PUGD, 0.951, 0.948, 0.95)
    )
    assert labels(group) == ["sam", "pugd", "sgd"]
    assert ranks(group) == [(1, 2), (1, 2), (3, 3)]
    entry = group.entries[0]
    assert (entry.gradient_passes, entry.train_seconds, entry.peak_memory_bytes) == (1000, 60, None)
    assert len(entry.records) == 3


def test_the_size_of_the_test_split_comes_from_the_records() -> None:
    def ranked(num_images: int | None) -> list[tuple[int | None, int | None]]:
        sizes = {"train": 100} if num_images is None else {"train": 100, "test": num_images}
        data = {**facts("cifar10"), "sizes": sizes}
        return ranks(one_group(*seeds(SGD, 0.5, 0.5, 0.5, data=data), *seeds(SAM, 0.6, 0.6, 0.6, data=data)))

    assert ranked(10) == [(1, 2), (1, 2)]
    assert ranked(20) == [(1, 1), (2, 2)]
    assert ranked(None) == [(1, 2), (1, 2)]


def test_the_last_epoch_ranks_not_the_best() -> None:
    def picked(last: float, best: float) -> dict[str, Any]:
        test = {"top1": last, "top5": 0.99, "loss": 0.3, "ece": 0.02}
        return {"test": test, "best_test": {"top1": best, "epoch": 3}}

    group = one_group(run(SGD, metrics=picked(0.8, 0.99)), run(SAM, metrics=picked(0.9, 0.9)))
    assert labels(group) == ["sam", "sgd"]


def test_json_has_the_contracts_fields_and_null_for_what_is_undefined() -> None:
    content = json.loads(as_json(board(*seeds(SAM, 0.9, 0.92), run(SGD, 0, 0.8))))
    assert content["schema"] == "pugdft.leaderboard/1"
    group = content["groups"][0]
    assert (group["dataset"], group["model"]) == ("cifar10", "resnet18")
    sam, sgd = group["entries"]
    assert sam["top1_mean"] == pytest.approx(0.91)
    assert sam["top1_std"] == pytest.approx(0.0141421356)
    assert len(sam["top1_ci95"]) == 2
    assert sgd.items() >= {
        "optimizer": "sgd", "status": "measured", "rank_low": 1, "rank_high": 2, "num_seeds": 1,
        "top1_mean": 0.8, "top1_std": None, "top1_ci95": None,
        "gradient_passes": 1000, "train_seconds": 60,
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
        assert "cifar10 × resnet18" in text
        assert "224 px, 10 epochs, batch 100, fp32, cosine" in text


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
    place = {"data__name": f"d{ESCAPE}", "model__name": f"m[red]{ESCAPE}", "train__precision": ESCAPE}
    records = [run(hostile, 0, id=f"{name}{ESCAPE}", **place) for name in "ab"]
    records.append(run({**hostile, "rho": 2}, **place))
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
