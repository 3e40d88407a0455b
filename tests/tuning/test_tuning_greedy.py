"""Searches through grids, one option after another: what they find, and what every optimizer gets."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from tuning_runs import SMALL_GREEDY, Runs, Search, log_distance, response

from pugdft.config import yaml


def test_greedy_finds_the_best_of_a_known_response(search: Search, runs: Runs) -> None:
    sgd, sam, gnp = search("sgd,sam,gnp", search="greedy")
    assert sgd.options["base.lr"] == pytest.approx(0.025, rel=0.1)
    assert sam.options == {"base.lr": 0.025, "rho": pytest.approx(0.1, rel=0.1)}
    assert gnp.options == {"base.lr": 0.025, "rho": 0.1, "alpha": 0.3}
    assert gnp.spec is not None
    assert (gnp.spec["base"]["lr"], gnp.spec["base"]["momentum"], gnp.spec["alpha"]) == (0.025, 0.9, 0.3)
    assert gnp.outcome is not None
    assert gnp.outcome.top1 == pytest.approx(response(gnp.spec)[0])


def test_every_optimizer_gets_the_same_number_of_trials_and_shared_runs_count_for_each(
    search: Search, runs: Runs
) -> None:
    tuned = search("sgd,sam,gnp,pugd")
    # gnp: 6 lr of sgd, 5 radii, 9 alphas of which the default was run with the best radius already.
    assert [each.num_runs for each in tuned] == [19] * 4
    sgd, sam, gnp, _ = ({run for each in one.trials for run in each.trial.runs} for one in tuned)
    assert len(sgd & sam & gnp) == 6
    assert len(runs.started) == len(search.records) == 4 * 19 - 2 * 6
    assert max(Counter(cell.folder for cell in runs.started).values()) == 1
    assert [each.gradient_passes for each in tuned] == [190, 60 + 13 * 20, 60 + 13 * 20, 19 * 20]


@pytest.mark.parametrize(
    ("stages", "number"),
    [
        # The best lr with the untuned weight decay: the second stage with the base alone finds it run.
        ("{option: base.lr, times: [0.1, 1, 10], with: base}, "
         "{option: base.weight_decay, times: [0.1, 1, 10], with: base}, {option: rho, values: [.05, .1]}", 7),
        # The middle of sgd's lr is the untuned one, which the stage before has run.
        ("{option: base.nesterov, values: [true, false]}, {option: base.lr, times: [0.5, 2]}, "
         "{option: rho, values: [0.1]}", 5),
    ],
)  # fmt: skip
def test_what_is_announced_is_what_runs_whichever_stages_share_a_trial(
    stages: str, number: int, search: Search, runs: Runs
) -> None:
    runs.response = lambda spec, seed: (0.5, 1.0)
    overrides = ["optimizer.base.weight_decay=0.001"]
    tuned = search("sam,sgd", f"search: greedy\nstages: [{stages}]\n", overrides=overrides)
    assert [each.num_runs for each in tuned] == [number, number]
    assert any(
        line.endswith(f"trials of each optimizer: sam {number}, sgd {number}") for line in search.lines
    )


def test_without_equalize_budgets_differ_and_that_is_said(search: Search, runs: Runs) -> None:
    tuned = search("sgd,sam,pugd", SMALL_GREEDY + "\nequalize: false")
    assert [each.num_runs for each in tuned] == [3, 5, 4]
    assert any("which differ: sgd 3, sam 5, pugd 4" in line for line in search.lines)
    assert sorted(tuned[0].options.items()) == [("base.lr", 0.025)]


def test_a_finer_grid_keeps_the_points_of_the_coarse_one_and_fills_the_widest_gaps(
    search: Search, runs: Runs
) -> None:
    (sgd, _) = search("sgd,sam", SMALL_GREEDY)
    tried = [each.trial.options["base.lr"] for each in sgd.trials]
    assert tried == [0.025, 0.05, 0.1, 0.035355, 0.0707], "multiples are filled on a logarithmic scale"
    absolute = SMALL_GREEDY.replace("times: [0.5, 1, 2]", "values: [0.1, 0.2, 0.3]")
    (sgd, _) = search("sgd,sam", absolute, output=search.output.parent / "absolute")
    assert [each.trial.options["base.lr"] for each in sgd.trials] == [0.1, 0.2, 0.3, 0.15, 0.25]
    (sgd, _) = search("sgd,gnp", output=search.output.parent / "other")
    factors = [each.trial.options["base.lr"] / 0.05 for each in sgd.trials]
    assert factors[:6] == pytest.approx([0.1, 0.2, 0.5, 1, 2, 5])
    assert sorted(factors[6:8]) == pytest.approx([math.sqrt(0.1), math.sqrt(10)], rel=1e-3)


def test_a_method_of_unit_gradients_searches_its_own_lr(search: Search, runs: Runs) -> None:
    sam, pugd, ugd = search("sam,pugd,ugd")
    assert {each.trial.spec["name"] for each in pugd.trials} == {"pugd"}
    assert pugd.options == {"base.lr": 0.1, "rho": pytest.approx(0.4, rel=0.1)}
    assert {each.trial.spec["name"] for each in ugd.trials} == {"ugd"}
    assert {each.trial.spec["name"] for each in sam.trials} == {"sgd", "sam"}


def test_times_multiply_what_an_optimizer_would_run_with_and_schedules_too(
    search: Search, runs: Runs
) -> None:
    runs.response = lambda spec, seed: (0.5, 1.0)
    only_rho = "search: greedy\nequalize: false\nstages: [{option: rho, times: [0.5, 2]}]"
    sam, asam, pugd, scheduled = search("sam[rho=0.3],asam,pugd,pugd_r", only_rho)
    tried = [[each.trial.options["rho"] for each in one.trials] for one in (sam, asam, pugd)]
    assert tried == [[0.15, 0.6], [0.25, 1.0], [0.5, 2.0]]
    # icos runs between 1/max and 1/min.
    schedules = [each.trial.options["rho"] for each in scheduled.trials]
    assert schedules[1] == {"schedule": "icos", "min": 0.25, "max": 1.0}


def test_an_lr_in_brackets_is_where_the_search_of_another_base_starts(search: Search, runs: Runs) -> None:
    (tuned,) = search("sam+adamw[lr=1e-3]", SMALL_GREEDY)
    assert [each.trial.options["base.lr"] for each in tuned.trials][:3] == [0.0005, 0.001, 0.002]
    assert {each.trial.spec.get("base", each.trial.spec)["name"] for each in tuned.trials} == {"adamw"}


@pytest.mark.parametrize("status", ["diverged", "failed", "oom"])
def test_a_run_that_ends_badly_has_no_score_counts_and_is_not_run_again(
    status: str, search: Search, runs: Runs
) -> None:
    runs.response = lambda spec, seed: (
        status if spec.get("base", spec)["lr"] > 0.07 and spec["name"] == "sgd" else response(spec)
    )
    tuned = search("sgd,sam", SMALL_GREEDY)
    assert [each.num_runs for each in tuned] == [5, 5]
    bad = [each for each in tuned[0].trials if each.outcome.top1 is None]
    assert [each.outcome.status for each in bad] == [status] * 2
    assert tuned[0].options == {"base.lr": 0.025}
    before = len(runs.started)
    assert search("sgd,sam", SMALL_GREEDY) == tuned
    assert len(runs.started) == before


def test_an_optimizer_without_any_score_gets_no_comparison(search: Search, runs: Runs) -> None:
    runs.response = lambda spec, seed: "diverged" if spec["name"] == "sam" else response(spec)
    sgd, sam = search("sgd,sam", SMALL_GREEDY)
    assert search.bench is None
    assert sgd.spec is not None
    assert sam.spec is None
    assert "no trial of rho has a score: it stays at 0.05" in sam.remarks[0]
    evidence = yaml.parse((search.output / "tuning.yaml").read_text())
    assert evidence["optimizers"][1]["choice"] is None


def test_equal_top1_goes_to_the_lower_loss_then_to_the_earlier_trial(search: Search, runs: Runs) -> None:
    only_lr = "search: greedy\nstages: [{option: base.lr, values: [0.4, 0.2, 0.3, 0.1]}]"
    losses = {0.4: 2.0, 0.2: 1.0, 0.3: 1.0, 0.1: math.nan}
    runs.response = lambda spec, seed: (0.5, losses[spec["lr"]])
    (sgd,) = search("sgd", only_lr)
    assert sgd.options == {"base.lr": 0.2}


def test_what_was_found_before_stays_if_no_later_value_is_better(search: Search, runs: Runs) -> None:
    stages = "[{option: rho, values: [0.1, 0.2, 0.3]}, {option: alpha, values: [0.9, 1.0]}]"
    text = f"search: greedy\nstages: {stages}"
    runs.response = lambda spec, seed: response({**spec, "alpha": spec["alpha"] - 0.5})
    (gnp,) = search("gnp", text)
    assert gnp.options == {"rho": 0.1, "alpha": 0.8}, "0.8 is the untuned alpha, with which rho was searched"


def test_a_score_is_the_mean_over_the_seeds_and_needs_all_of_them(search: Search, runs: Runs) -> None:
    def by_seed(spec: Mapping[str, Any], seed: int) -> tuple[float, float] | str:
        if spec["lr"] == 0.05:
            return 0.5 + 0.1 * seed, 1.0
        return "diverged" if (spec["lr"], seed) == (0.025, 1) else (0.55 + 0.01 * seed, 1.0)

    runs.response = by_seed
    (sgd,) = search("sgd", SMALL_GREEDY, seeds="0-2")
    assert sgd.options == {"base.lr": 0.05}
    assert sgd.outcome is not None
    assert sgd.outcome.top1 == pytest.approx(0.6)
    assert [each.outcome.status for each in sgd.trials] == ["diverged", "completed", "completed"]
    assert sgd.num_runs == 9


@pytest.mark.parametrize(("best", "edge"), [(0.025, "lower"), (0.05, None), (0.1, "upper")])
def test_a_best_value_at_the_end_of_its_grid_is_marked(
    best: float, edge: str | None, search: Search, runs: Runs
) -> None:
    runs.response = lambda spec, seed: (0.9 - log_distance(spec["lr"], best), 1.0)
    (sgd,) = search("sgd", SMALL_GREEDY)
    assert sgd.at_edge.get("base.lr") == edge
