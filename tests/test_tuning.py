"""Searches on held-out images: what they find, what they cost, and what interruptions and company do to them.

Most of them run nothing: a run's record is made from a known response to the options.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import pugdft
from standing_still import HANG_SECONDS, Command, go_on, is_caught, is_pending, until

from pugdft import yaml_text
from pugdft.bench import local
from pugdft.bench.matrix import build_matrix
from pugdft.bench.plan import Cell, plan_cells
from pugdft.errors import UserError
from pugdft.record import (
    Cost,
    Metrics,
    RunRecord,
    SplitMetrics,
    read_record,
    write_atomically,
    write_record,
)
from pugdft.tuning.search_file import bundled_searches, read_search
from pugdft.tuning.trials import StoppedError
from pugdft.tuning.tune import Request, tune
from pugdft.tuning.tuned import Tuned

Response = Callable[[Mapping[str, Any], int], tuple[float, float] | str]
"""Of an optimizer's mapping and a seed: top-1 and loss on the held-out images, or how the run ends badly."""

SMALL_GREEDY = """\
search: greedy
stages: [{option: base.lr, times: [0.5, 1, 2], with: base}, {option: rho, times: [1, 2]}]"""


def log_distance(value: float, best: float) -> float:
    return math.log10(value / best) ** 2


def response(spec: Mapping[str, Any], seed: int = 0) -> tuple[float, float]:
    """Best at lr .025 (pugd: .1), rho .1 (pugd: .4), alpha .3."""
    base = spec.get("base", spec)
    best_lr, best_rho = (0.1, 0.4) if spec["name"] == "pugd" else (0.025, 0.1)
    worse = 0.1 * log_distance(base["lr"], best_lr)
    worse += 0.05 * log_distance(spec.get("rho", best_rho), best_rho)
    worse += 0.2 * (spec.get("alpha", 0.3) - 0.3) ** 2
    return 0.9 - worse, 0.5 + worse


class Runs:
    """Stands in for the processes of runs: makes records, and counts what was started."""

    def __init__(self) -> None:
        self.started: list[Cell] = []
        self.response: Response = response
        self.exit_codes: dict[int, int] = {}  # of the n-th run that is started, which then leaves no record
        self.seconds = 0.0

    def run(self, cell: Cell, watcher: Any, options: Any, descriptor: int) -> int:
        number = len(self.started)
        self.started.append(cell)
        time.sleep(self.seconds)
        if number in self.exit_codes:
            return self.exit_codes[number]
        assert cell.recipe.train.evaluate == "validation"
        result = self.response(cell.recipe.optimizer, cell.seed)
        passes = 10.0 * cell.passes_per_update
        record = RunRecord(
            id=cell.folder.name, status="completed", recipe=cell.recipe.as_dict(), seed=cell.seed
        )
        record.cost = Cost(gradient_passes=passes)
        if isinstance(result, str):
            record.status = result  # type: ignore[assignment]
        else:
            top1, loss = result
            split = SplitMetrics(top1=top1, top5=1.0, loss=loss, ece=0.0)
            record.metrics = Metrics(validation=split)
        cell.folder.mkdir(parents=True, exist_ok=True)
        write_record(record, cell.folder)
        return 0 if record.status == "completed" else 1


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    fake = Runs()
    monkeypatch.setattr(local, "_run", fake.run)
    return fake


class Search:
    """One recipe, one output folder, and what was said."""

    def __init__(self, recipe: Path) -> None:
        self.recipe, self.output = recipe, recipe.parent / "tuned"
        self.lines: list[str] = []

    def __call__(self, optimizers: str, search: str = "greedy", **options: Any) -> list[Tuned]:
        overrides = options.pop("overrides", ())
        if "\n" in search:
            path = self.recipe.parent / "mine.yaml"
            write_atomically(path, search.encode())  # commands side by side never read half of it
            search = str(path)
        options = {"output": self.output, **options}
        request = Request(str(self.recipe), overrides, optimizers, search, **options)
        tuned, self.bench = tune(request, self.lines.append)
        return tuned

    @property
    def records(self) -> list[RunRecord]:
        return [read_record(path) for path in self.output.glob("trials/*/record.yaml")]


@pytest.fixture
def search(recipe_file: Path) -> Search:
    return Search(recipe_file)


def general(trials: int, space: str = "base.lr: {times: {low: 0.1, high: 10, log: true}}") -> str:
    return f"search: general\ntrials: {trials}\nspace:\n  {space}\n  rho: {{low: 0.01, high: 1, log: true}}"


# --- greedy ----------------------------------------------------------------------------------------------


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
    evidence = yaml_text.parse((search.output / "tuning.yaml").read_text())
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


# --- interruptions and company ---------------------------------------------------------------------------


def outputs_of(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.glob("*.yaml")}


@pytest.mark.parametrize("text", [SMALL_GREEDY, general(6)], ids=["greedy", "general"])
@pytest.mark.parametrize("code", [2, 130, 143])
def test_a_stopped_search_goes_on_and_comes_to_the_same(
    code: int, text: str, search: Search, runs: Runs
) -> None:
    runs.exit_codes = {2: code, 7: code}
    for _ in range(2):
        with pytest.raises(StoppedError) as stopped:
            search("sgd,sam", text)
        assert stopped.value.code == code
        assert not (search.output / "bench.yaml").exists()
    search("sgd,sam", text)
    stopped_cells = [runs.started[number].folder for number in (2, 7)]
    assert runs.started[3].folder == stopped_cells[0], "the run that was under way is taken up first"
    assert runs.started[8].folder == stopped_cells[1]
    number = len(runs.started) - 2
    assert len(search.records) == number
    interrupted = outputs_of(search.output)

    runs.started, runs.exit_codes = [], {}
    search("sgd,sam", text, output=search.output.parent / "unbroken")
    assert outputs_of(search.output.parent / "unbroken") == interrupted
    assert len(runs.started) == number


@pytest.mark.parametrize("text", [SMALL_GREEDY, general(4)], ids=["greedy", "general"])
def test_the_same_search_again_runs_nothing_and_writes_the_same(
    text: str, search: Search, runs: Runs
) -> None:
    first = search("sgd,sam", text)
    number, written = len(runs.started), outputs_of(search.output)
    assert search("sgd,sam", text) == first
    assert (len(runs.started), outputs_of(search.output)) == (number, written)


@pytest.mark.parametrize("text", [SMALL_GREEDY, general(6)], ids=["greedy", "general"])
def test_two_commands_share_the_trials_and_come_to_the_same(
    text: str, search: Search, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_LOOK_AGAIN_SECONDS", 0.01)
    monkeypatch.setattr("pugdft.tuning.general._LOOK_AGAIN_SECONDS", 0.01)
    found: dict[int, list[Tuned]] = {}
    at_work: set[int] = set()
    both, run = threading.Barrier(2), runs.run

    def together(*arguments: Any) -> int:
        """A command's first run goes on as soon as the other command is at a run of its own."""
        if threading.get_ident() not in at_work:
            at_work.add(threading.get_ident())
            both.wait(HANG_SECONDS)
        return run(*arguments)

    monkeypatch.setattr(local, "_run", together)

    def work(number: int) -> None:
        found[number] = search("sgd,sam", text)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1]
    expected = 7 if text == SMALL_GREEDY else 12
    assert len(runs.started) == len(search.records) == expected
    assert len(at_work) == 2, "both had their share"


@pytest.mark.parametrize("text", [SMALL_GREEDY, general(4)], ids=["greedy", "general"])
def test_a_run_killed_without_a_record_counts_as_failed_until_the_next_command(
    text: str, search: Search, runs: Runs
) -> None:
    runs.exit_codes = {1: 137}
    (first,) = search("sgd", text)
    assert [each.outcome.status for each in first.trials].count("failed") == 1
    lost = runs.started[1].folder
    number = len(runs.started)
    assert [cell.folder for cell in runs.started].count(lost) == 1
    (second,) = search("sgd", text)
    assert [cell.folder for cell in runs.started[number:]] == [lost]
    assert {each.outcome.status for each in second.trials} == {"completed"}


# --- general ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_general_searches_near_the_best_with_equal_budgets_from_the_untuned_on(
    sampler: str, search: Search, runs: Runs
) -> None:
    sgd, sam = search("sgd,sam", general(25) + f"\nsampler: {sampler}")
    assert [each.num_runs for each in (sgd, sam)] == [25, 25]
    assert sam.trials[0].trial.options == {"base.lr": 0.05, "rho": 0.05}
    assert sgd.options["base.lr"] == pytest.approx(0.025, rel=0.35)
    assert sam.outcome is not None
    assert sam.outcome.top1 is not None
    assert sam.outcome.top1 > sam.trials[0].outcome.top1  # type: ignore[operator]
    assert sam.outcome.top1 == max(each.outcome.top1 or 0 for each in sam.trials)


def test_a_longer_general_search_goes_on_from_a_shorter_one(search: Search, runs: Runs) -> None:
    search("sam", general(5))
    (longer,) = search("sam", general(9))
    assert len(runs.started) == 9
    (at_once,) = search("sam", general(9), output=search.output.parent / "at_once")
    assert [each.trial.options for each in at_once.trials] == [each.trial.options for each in longer.trials]
    (shorter,) = search("sam", general(5))
    assert shorter.num_runs == 5


def test_another_seed_of_the_sampler_is_another_search(search: Search, runs: Runs) -> None:
    (zero,) = search("sgd", general(5))
    (one,) = search("sgd", general(5) + "\nseed: 1", output=search.output.parent / "one")
    assert zero.trials[1].trial.options != one.trials[1].trial.options


def test_the_number_of_trials_of_the_command_goes_over_the_files(search: Search, runs: Runs) -> None:
    (sgd,) = search("sgd", general(30), trials=3)
    assert sgd.num_runs == 3


def test_lists_ranges_and_multiples_make_the_options_of_trials(search: Search, runs: Runs) -> None:
    space = "base.nesterov: [true, false]\n  base.lr: {times: [0.5, 1]}"
    (sam,) = search("sam", general(12, space))
    tried = [each.trial.options for each in sam.trials]
    assert {each["base.nesterov"] for each in tried} == {True, False}
    assert {each["base.lr"] for each in tried} == {0.025, 0.05}
    assert all(0.01 <= each["rho"] <= 1 for each in tried)


def test_the_sampler_learns_that_options_diverge(search: Search, runs: Runs) -> None:
    runs.response = lambda spec, seed: "diverged" if spec["lr"] > 0.03 else response(spec)
    search("sgd", general(4))
    told = [json.loads(line).get("values") for line in journal(search).read_text().splitlines()]
    assert [0.0] in told


def journal(search: Search) -> Path:
    return search.output / "study" / "journal"


def test_a_command_killed_while_it_asked_the_sampler_costs_no_trial(search: Search, runs: Runs) -> None:
    runs.exit_codes = {2: 130}
    with pytest.raises(StoppedError):
        search("sam", general(4))
    lines = journal(search).read_text().splitlines(keepends=True)
    # A new trial with the first of its two options.
    torn = [line for line in lines if '"param_name":"base.lr"' in line][-1]
    created = next(line for line in reversed(lines) if json.loads(line)["op_code"] == 4)
    number = sum(json.loads(line)["op_code"] == 4 for line in lines)
    torn = json.dumps({**json.loads(torn), "trial_id": number}) + "\n"
    journal(search).write_text("".join(lines) + created + torn)
    (sam,) = search("sam", general(4))
    assert sam.num_runs == len(search.records) == 4


def test_a_journal_with_a_half_written_last_line_is_mended(search: Search, runs: Runs) -> None:
    search("sam", general(3))
    with journal(search).open("a") as file:
        file.write('{"op_code":4,"worker')
    (sam,) = search("sam", general(5))
    assert sam.num_runs == 5


def test_without_optuna_the_message_says_what_to_install(
    search: Search, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r'pip install "pugdft\[tune\]"'):
        search("sgd", "general")
    assert not search.output.exists()
    search("sgd", SMALL_GREEDY)


# --- trials and outputs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("held_out", [0.0, 0.25])
def test_trials_hold_images_out_and_the_comparison_keeps_the_recipe(
    held_out: float, search: Search, runs: Runs
) -> None:
    overrides = [f"data.validation={held_out}", "train.epochs=3", "train.seed=7"]
    search("sgd", SMALL_GREEDY, overrides=overrides, seeds="4")
    assert {cell.recipe.data.validation for cell in runs.started} == {held_out or 0.1}
    assert {(cell.seed, cell.recipe.train.epochs) for cell in runs.started} == {(4, 3)}
    assert any("holds no images out" in line for line in search.lines) == (not held_out)
    final = yaml_text.parse((search.output / "recipe.yaml").read_text())
    assert (final["data"]["validation"], final["train"]["evaluate"]) == (held_out, "all")


def test_a_recipe_that_is_judged_on_validation_ends_in_a_comparison_on_the_test_split(
    search: Search, runs: Runs
) -> None:
    search("sgd", SMALL_GREEDY, overrides=["train.evaluate=validation", "data.validation=0.2"])
    assert yaml_text.parse((search.output / "recipe.yaml").read_text())["train"]["evaluate"] == "all"
    assert any("judged on the test split" in line for line in search.lines)


def test_the_bench_file_holds_the_tuned_optimizers_with_what_they_cost(search: Search, runs: Runs) -> None:
    tuned = search("sam,sgd", general(4), overrides=["train.epochs=3"])
    assert search.bench == search.output / "bench.yaml"
    matrix = build_matrix([str(search.bench)])
    cells = plan_cells(matrix.recipes, matrix.overrides, matrix.entries, matrix.seeds, search.output)
    assert [cell.seed for cell in cells] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    for cell, each in zip(cells, tuned, strict=False):
        assert each.spec is not None
        assert (cell.recipe.optimizer, cell.recipe.train.epochs) == (dict(each.spec), 3)
        assert cell.recipe.train.evaluate == "all"
        assert cell.recipe.tuning is not None
        budget = cell.recipe.tuning.model_dump()
        passes = 80.0 if each.label == "sam" else 40.0
        assert budget == {"trials": 4, "gradient_passes": passes, "search": "mine.yaml"}


def test_the_evidence_leads_from_the_choice_to_the_runs(search: Search, runs: Runs) -> None:
    _, sam = search("sgd,sam", SMALL_GREEDY)
    evidence = yaml_text.parse((search.output / "tuning.yaml").read_text())
    assert (evidence["schema"], evidence["seeds"], evidence["validation"]) == ("pugdft.tuning/1", [0], 0.1)
    entry = evidence["optimizers"][1]
    assert entry["choice"]["optimizer"] == sam.spec
    assert [trial["stage"] for trial in entry["trials"]] == ["base.lr"] * 3 + ["rho"] * 2
    assert [trial["number"] for trial in entry["trials"]] == [1, 2, 3, 4, 5]
    by_id = {record.id: record for record in search.records}
    for trial in entry["trials"]:
        (record,) = (by_id[run] for run in trial["runs"])
        assert record.metrics is not None
        assert record.metrics.validation is not None
        assert record.metrics.validation.top1 == trial["validation_top1"]
        assert record.cost.gradient_passes == trial["gradient_passes"]
    chosen = [trial for trial in entry["trials"] if trial["options"] == entry["choice"]["options"]]
    assert [trial["validation_top1"] for trial in chosen] == [entry["choice"]["validation_top1"]]


def test_a_recipes_own_tuning_is_not_the_trials(search: Search, runs: Runs) -> None:
    overrides = ["tuning={trials: 99, gradient_passes: 1, search: by hand}"]
    search("sam", SMALL_GREEDY, overrides=overrides)
    assert {cell.recipe.tuning for cell in runs.started} == {None}
    assert "99" not in (search.output / "bench.yaml").read_text()


# --- mistakes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(bundled_searches()))
def test_bundled_searches_are_read_and_fit_every_kind_of_method(
    name: str, search: Search, runs: Runs
) -> None:
    runs.response = lambda spec, seed: (0.5, 1.0)
    optimizers = "sgd,ugd,sam,asam,pugd,pugd_rs,gnp,gsam,looksam,amp,msam,wsam"
    tuned = search(optimizers, name, trials=2 if name == "general" else None)
    assert len({each.num_runs for each in tuned}) == 1
    assert "alpha" in next(each for each in tuned if each.label == "gsam").options


def test_bundled_searches_are_no_recipes() -> None:
    from pugdft.recipe import bundled_recipes

    assert not set(bundled_searches()) & set(bundled_recipes())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1]\n", ["search: is required: greedy, with stages, or general"]),
        ("search: gredy\n", ['search: must be greedy or general, not "gredy"']),
        ("search: greedy\nstage: []\n",
         ['stage: unknown key', 'Did you mean "stages"?', "stages: is required"]),
        ("search: greedy\nstages: [1, {}]",
         ["stages.0: must be a mapping", "stages.1: expected either", "stages.1.option: must"]),
        ("search: greedy\nequalize: 1\nstages: [{option: rho, values: [1], time: 2}]",
         ["equalize: must be true or false, not 1", 'stages.0.time: unknown key', 'Did you mean "times"?']),
        ("search: greedy\nstages: [{option: rho, values: [1], times: [1]}]",
         ["expected either values or times"]),
        ("search: greedy\nstages: [{option: rho, values: 1}, {option: a.b, values: []}]",
         ["stages.0.values: must be a list", "stages.1.option: must be", "stages.1.values: must be a list"]),
        ("search: greedy\nstages: [{option: rho, times: [1, 0, -2, .inf, a]}]",
         ["finite numbers above 0, not 0", "not -2", "not Infinity", 'not "a"']),
        ("search: greedy\nstages: [{option: rho, values: [1, 1, .nan]}]",
         ["1 stands twice", "must be finite"]),
        ("search: greedy\nstages: [{option: rho, values: [1], with: base}]",
         ["base searches options of the base"]),
        ("search: greedy\nstages: [{option: base.lr, values: [1], with: bass}]",
         ["must be base or method"]),
        ("search: greedy\nstages: [{option: rho, values: [1]}, {option: base.lr, values: [1], with: base}, "
         "{option: base.momentum, values: [1]}]",
         ["stages.1.with: base must come before stages with the method (rho)"]),
        ("search: greedy\nstages: [{option: rho, values: [1]}, {option: rho, values: [2]}]",
         ['"rho" stands twice']),
        ("search: general\nsampler: tp\nspace: {}\n",
         ['sampler: must be tpe or random, not "tp". Did you mean "tpe"?', "space: is required"]),
        ("search: general\ntrials: 0\nseed: -1\nspace: {base.name: [1]}",
         ["trials: must be a whole number from 1", "seed: must be", "space.base.name: must be an option"]),
        ("search: general\nspace: {rho: {low: 2, high: 1}, alpha: {low: 0, high: 1, log: true}}",
         ["rho: low (2) must be below high (1)", "alpha.low: must be above 0 with log: true, not 0"]),
        ("search: general\nspace: {rho: {low: a, log: 1}, alpha: 3}",
         ["space.rho.low: must be a finite number", "space.rho.high: is required",
          "space.rho.log: must be", "space.alpha: must be a list"]),
        ("search: general\nspace: {rho: {times: {low: -1, high: 1}, log: true}, alpha: {lo: 1}}",
         ["space.rho.log: unknown key", "must be above 0 with times", "space.alpha.lo: unknown key"]),
        ("search: general\nspace: {rho: {times: 3}}", ["space.rho.times: must be a list, {low"]),
        ("search: greedy\nsearch: general", ['the key "search" stands twice']),
    ],
)  # fmt: skip
def test_a_bad_search_file_is_explained_all_at_once(text: str, said: list[str], tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_search(str(path))
    for part in said:
        assert part in str(caught.value)
    assert all(line.startswith(str(path)) for line in str(caught.value).splitlines())


@pytest.mark.parametrize(
    ("optimizers", "text", "options", "said"),
    [
        ("sgd", "gredy", {}, ['no such file or bundled search', 'Did you mean "greedy"?']),
        ("sgd", "greedy", {"trials": 5}, ["--trials: greedy is a greedy search"]),
        ("sam", "search: greedy\nstages: [{option: roh, values: [1]}]\n", {},
         ["roh: no optimizer has this option", 'Did you mean "rho"?']),
        ("sgd,sam", "search: greedy\nstages: [{option: rho, values: [1]}]\n", {},
         ['"sgd" has none of the options that are searched']),
        ("sam,asam", "search: greedy\nstages: [{option: rho, values: [-1, word]}]\n", {},
         ['rho of "sam": optimizer: rho must be', 'rho of "asam"', "word"]),
        ("sgd", "search: general\nspace: {base.lr: {low: -1, high: 1}}", {},
         ['base.lr of "sgd"', "greater than 0"]),
        ("sgd", "search: general\nspace: {base.weight_decay: {times: [1, 2]}}", {},
         ["base.weight_decay", "is 0.0 untuned, of which there are no multiples"]),
        ("sam", "search: general\nspace: {trigger: {times: [1, 2]}}", {}, ["is None untuned"]),
        ("sgd", "greedy", {"seeds": "x"}, ["--seeds"]),
        ("pgud", "greedy", {}, ["--optimizers", "unknown optimizer"]),
        ("sgd", "greedy", {"overrides": ["train.epoch=1"]}, ["train.epoch: unknown key"]),
    ],
)  # fmt: skip
def test_a_mistake_in_the_arguments_is_said_before_anything_is_written(
    optimizers: str, text: str, options: dict[str, Any], said: list[str], search: Search, runs: Runs
) -> None:
    with pytest.raises(UserError) as caught:
        search(optimizers, text, **options)
    for part in said:
        assert part in str(caught.value)
    assert not runs.started
    assert not search.output.exists()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"overrides": ["train.epochs=3"]}, "recipe.train.epochs: 2 there, 3 here"),
        ({"seeds": "0-1"}, r"seeds: \[0\] there, \[0, 1\] here"),
        ({"text": SMALL_GREEDY.replace("0.5", "0.4")}, "search.stages.0.times.0: 0.5 there, 0.4 here"),
        ({"text": general(3)}, "search.search: 'greedy' there, 'general' here"),
        ({"overrides": ["data.validation=0.1"]}, "recipe.data.validation: 0.0 there, 0.1 here"),
    ],
)
def test_another_question_in_the_same_folder_is_refused_with_the_difference(
    changed: dict[str, Any], said: str, search: Search, runs: Runs
) -> None:
    search("sgd", SMALL_GREEDY)
    written, number = outputs_of(search.output), len(runs.started)
    with pytest.raises(UserError, match=f"holds another search:\n(.*\n)*  {said}"):
        search("sgd", changed.pop("text", SMALL_GREEDY), **changed)
    assert (outputs_of(search.output), len(runs.started)) == (written, number)


def test_a_further_optimizer_joins_the_same_folder(search: Search, runs: Runs) -> None:
    (alone,) = search("sgd", SMALL_GREEDY)
    sgd, sam = search("sgd,sam", SMALL_GREEDY)
    assert (alone.num_runs, sgd.num_runs, sam.num_runs) == (3, 5, 5)
    assert len(runs.started) == len(search.records) == 7


def names_in(path: Path) -> list[str]:
    return [each.get("label") or each["name"] for each in yaml_text.parse(path.read_text())["optimizers"]]


@pytest.mark.parametrize("text", [SMALL_GREEDY, general(3)], ids=["greedy", "general"])
def test_commands_that_split_the_work_by_optimizer_end_with_all_of_them(
    text: str, search: Search, runs: Runs
) -> None:
    for optimizers in ("sgd,sam,pugd", "sam", "gnp"):
        before = outputs_of(search.output)
        search(optimizers, text)
    assert names_in(search.output / "tuning.yaml") == ["sgd", "sam", "pugd", "gnp"]
    assert names_in(search.output / "bench.yaml") == ["sgd", "sam", "pugd", "gnp"]
    for name, written in outputs_of(search.output).items():
        there, now = yaml_text.parse(before[name]), yaml_text.parse(written)
        assert now.get("optimizers", [])[:3] == there.get("optimizers", []), "what others found is as it was"


def test_commands_that_write_at_the_same_time_lose_nothing(
    search: Search, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pugdft.tuning import outputs

    def slow_write(path: Path, content: bytes) -> None:
        time.sleep(0.05)
        write_atomically(path, content)

    monkeypatch.setattr(outputs, "write_atomically", slow_write)
    optimizers = ["sgd", "ugd", "pugd", "adamw"]
    with ThreadPoolExecutor(len(optimizers)) as commands:
        list(commands.map(lambda each: search(each, general(1)), optimizers))
    assert sorted(names_in(search.output / "tuning.yaml")) == sorted(optimizers)
    assert sorted(names_in(search.output / "bench.yaml")) == sorted(optimizers)


def test_budgets_that_differ_between_commands_are_said(search: Search, runs: Runs) -> None:
    search("sgd", general(3))
    search("sam", general(2))
    assert "bench.yaml: runs of each optimizer's search, which differ: sgd 3, sam 2" in search.lines


def test_no_bench_file_of_before_stays_beside_an_optimizer_without_a_score(
    search: Search, runs: Runs
) -> None:
    search("sgd", general(2))
    runs.response = lambda spec, seed: "diverged" if spec["name"] == "sam" else response(spec)
    search("sam", general(2))
    assert search.bench is None
    assert not (search.output / "bench.yaml").exists()
    assert f"{search.output / 'bench.yaml'}: removed, it was of what was found before" in search.lines
    search("sgd", general(2))
    assert names_in(search.output / "bench.yaml") == ["sgd"]
    assert names_in(search.output / "tuning.yaml") == ["sgd", "sam"]
    assert "not in bench.yaml, since no trial of an earlier command has a score: sam" in search.lines


@pytest.mark.parametrize("edited", ["optimizers: 3", "optimizers: [1]", "optimizers: [{label: sgd}]"])
def test_a_tuning_file_whose_optimizers_were_edited_is_refused_before_anything_runs(
    edited: str, search: Search, runs: Runs
) -> None:
    search("sgd", SMALL_GREEDY)
    path, number = search.output / "tuning.yaml", len(runs.started)
    path.write_text(path.read_text().split("optimizers:")[0] + edited)
    with pytest.raises(UserError, match=r"tuning.yaml: optimizers: are not as a search writes them"):
        search("sgd,sam", SMALL_GREEDY)
    assert len(runs.started) == number


@pytest.mark.parametrize("name", ["bench.yaml", "recipe.yaml", "tuning.yaml", "trials"])
def test_files_of_somebody_else_are_not_written_over(name: str, search: Search, runs: Runs) -> None:
    search.output.mkdir()
    (search.output / name).write_text("mine: 1")
    with pytest.raises(UserError, match="tuned"):
        search("sgd", SMALL_GREEDY)
    assert (search.output / name).read_text() == "mine: 1"
    assert not runs.started


# --- the command -----------------------------------------------------------------------------------------


def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recipe: Path, *arguments: str
) -> tuple[int, str, str]:
    from pugdft import cli

    output = str(recipe.parent / "tuned")
    monkeypatch.setattr(sys, "argv", ["pugdft", "tune", str(recipe), "--output", output, *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def test_the_command_prints_a_table_then_the_bench_files_path(
    recipe_file: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.response = lambda spec, seed: response({"name": "sgd", "lr": spec.get("base", spec)["lr"] / 10})
    arguments = ("--optimizers", "sgd,sam[replay_rng=false]", "--search", "greedy")
    code, out, err = command(monkeypatch, capsys, recipe_file, *arguments)
    assert code == 0
    *table, last = out.splitlines()
    assert last == str(recipe_file.parent / "tuned" / "bench.yaml")
    assert any("sam[replay_rng=false]" in line and "base.lr=0.25 (at the edge)" in line for line in table)
    assert "sgd: base.lr=0.25 lies at the upper end of what was searched: the best may lie beyond it" in err
    assert err.count("validation top-1") == len(runs.started)
    assert sum("11" in line for line in table) == 2, "the same number of trials"
    assert command(monkeypatch, capsys, recipe_file, *arguments)[:2] == (0, out)


@pytest.mark.parametrize(("ending", "code"), [({0: 2}, 2), ({1: 130}, 130), ({3: 143}, 143)])
def test_the_command_ends_with_the_code_of_what_stopped_it(
    ending: dict[int, int],
    code: int,
    recipe_file: Path,
    runs: Runs,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs.exit_codes = ending
    ended, out, _ = command(monkeypatch, capsys, recipe_file, "--optimizers", "sgd,sam")
    assert (ended, out) == (code, "")
    assert command(monkeypatch, capsys, recipe_file, "--optimizers", "sgd,sam")[0] == 0


def test_the_command_ends_with_1_if_an_optimizer_has_no_score(
    recipe_file: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.response = lambda spec, seed: "oom" if spec["name"] == "sam" else response(spec)
    code, out, err = command(monkeypatch, capsys, recipe_file, "--optimizers", "sgd,sam")
    assert code == 1
    assert "bench.yaml" not in out
    assert "none has a score" in out
    assert "sam: no trial has a score" in err


def test_the_command_says_mistakes_in_one_message(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--optimizers", "sgd", "--search", "greedy", "--trials", "3")
    code, out, err = command(monkeypatch, capsys, recipe_file, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("pugdft: --trials: ")


@pytest.mark.parametrize("name", ["greedy", "general"])
def test_a_file_system_without_locks_is_one_clear_message(
    name: str,
    recipe_file: Path,
    runs: Runs,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    code, out, err = command(monkeypatch, capsys, recipe_file, "--optimizers", "sgd", "--search", name)
    assert (code, out) == (2, "")
    output = recipe_file.parent / "tuned"
    assert f"pugdft: --output {output}: this file system has no locks (No locks available)" in err
    assert err.endswith("choose a local folder\n")
    assert not runs.started


# --- real runs -------------------------------------------------------------------------------------------

REAL = {
    "greedy": "search: greedy\nequalize: false\nstages:\n- {option: base.lr, times: [1], with: base}\n"
    "- {option: rho, times: [1, 2]}",
    "general": "search: general\nspace: {rho: {low: 0.01, high: 0.2, log: true}}\ntrials: 2",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(REAL))
def test_real_trials_survive_kills_and_never_look_at_the_test_split(
    kind: str, recipe_file: Path, tmp_path: Path, start: Callable[..., Command]
) -> None:
    (tmp_path / "mine.yaml").write_text(REAL[kind])
    arguments = ["tune", str(recipe_file), "--optimizers", "sgd,sam" if kind == "greedy" else "sam"]
    arguments += ["--search", "mine.yaml", "train.epochs=4", "train.batch_size=8"]

    def finished() -> dict[str, int]:
        paths = tmp_path.glob("tuned/trials/*/record.yaml")
        return {
            path.parent.name: path.stat().st_mtime_ns
            for path in paths
            if read_record(path).status == "completed"
        }

    def under_way(num_finished: int) -> tuple[Command, psutil.Process, str]:
        """A command whose trial after so many others stands still in the middle of its training."""
        command = start(*arguments, stops=num_finished, cwd=tmp_path)
        process = command.stopped()
        assert len(finished()) == num_finished
        (state,) = tmp_path.glob("tuned/trials/*/checkpoint/state.json")
        return command, process, state.parent.parent.name

    first, _, name = under_way(1)
    names, before = [name], finished()
    first.kill()  # the command and its run
    if kind == "greedy":
        second, trial, name = under_way(2)
        until(lambda: is_caught(second.process.pid, signal.SIGTERM))
        second.send(signal.SIGTERM)
        until(lambda: is_pending(trial.pid, signal.SIGTERM))
        go_on(trial)
        assert second.end()[0] == 143
        names.append(name)
    done = pugdft(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    records = {path.parent.name: read_record(path) for path in tmp_path.glob("tuned/trials/*/record.yaml")}
    assert len(records) == (3 if kind == "greedy" else 2)
    assert before.items() <= finished().items(), "a finished trial is not run again"
    assert len({*names}) == len(names)
    assert [name for name in names if not records[name].restarts] == [], "what was under way goes on"
    for record in records.values():
        assert record.status == "completed"
        assert record.metrics is not None
        assert (record.metrics.test, record.metrics.best_test) == (None, None)
        assert record.metrics.validation is not None
        assert set(record.data.sizes if record.data else {}) == {"train", "validation"}
        assert not any("test" in key for row in record.history for key in row)
    assert done.stdout.splitlines()[-1] == "tuned/bench.yaml"
    if kind == "greedy":
        the_comparison_runs_and_its_records_say_what_the_choice_cost(tmp_path, list(records.values()))


def the_comparison_runs_and_its_records_say_what_the_choice_cost(
    folder: Path, trials: list[RunRecord]
) -> None:
    bench = pugdft("bench", "tuned/bench.yaml", "train.epochs=1", "--seeds", "0", cwd=folder)
    assert bench.returncode == 0, bench.stderr
    budgets = {}
    for path in folder.glob("runs/*/record.yaml"):
        record = read_record(path)
        assert record.metrics is not None
        assert record.metrics.test is not None
        budgets[record.recipe["optimizer"]["name"]] = record.recipe["tuning"]
    passes = sum(record.cost.gradient_passes for record in trials)
    assert budgets["sam"] == {"trials": 3, "gradient_passes": passes, "search": "mine.yaml"}
    assert budgets["sgd"]["trials"] == 1
