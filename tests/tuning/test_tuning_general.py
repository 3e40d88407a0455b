"""Searches of all options together with Optuna."""

from __future__ import annotations

import sys
from typing import Any

import optuna
import pytest
from tuning_runs import SMALL_GREEDY, Runs, Search, general, response

from pugdft.errors import UserError


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


def test_the_sampler_learns_that_options_diverge(
    search: Search, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[list[float | None]] = []
    ask = optuna.Study.ask

    def asked(study: optuna.Study, *arguments: Any) -> optuna.Trial:
        told.append([trial.value for trial in study.trials])
        return ask(study, *arguments)

    monkeypatch.setattr(optuna.Study, "ask", asked)
    runs.response = lambda spec, seed: (
        ("diverged" if spec["lr"] > 0.03 else "failed") if len(runs.started) < 4 else response(spec)
    )
    search("sgd", general(5))
    assert [len(each) for each in told] == [1, 2, 3, 4], "the first trial is the untuned optimizer"
    learned = [0.0 if cell.recipe.optimizer["lr"] > 0.03 else None for cell in runs.started[:3]]
    assert told[-1][:3] == learned
    assert told[-1][3] not in (0.0, None)


def test_a_command_killed_while_it_writes_leaves_the_trials_before(search: Search, runs: Runs) -> None:
    search("sam", general(3))
    (chosen,) = (search.output / "study").glob("*.json")
    (chosen.parent / f".{chosen.name}.torn").write_text('[{"rho": 0.')
    (sam,) = search("sam", general(5))
    assert (sam.num_runs, len(runs.started)) == (5, 5)


def test_without_optuna_the_message_says_what_to_install(
    search: Search, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r'pip install "pugdft\[tune\]"'):
        search("sgd", "general")
    assert not search.output.exists()
    search("sgd", SMALL_GREEDY)
