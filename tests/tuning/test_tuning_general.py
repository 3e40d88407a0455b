"""Searches of all options together with Optuna."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from tuning_runs import SMALL_GREEDY, Runs, Search, general, response

from pugdft.errors import UserError
from pugdft.tuning.trials import StoppedError


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


def journal(search: Search) -> Path:
    return search.output / "study" / "journal"


def told(search: Search) -> list[optuna.trial.FrozenTrial]:
    """What Optuna and its dashboard read from the journal."""
    storage = JournalStorage(JournalFileBackend(str(journal(search))))
    (study,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=study, storage=storage).trials


def test_optuna_finds_every_result_in_its_journal(search: Search, runs: Runs) -> None:
    ends = {1: "diverged", 3: "failed"}  # of the n-th run
    runs.response = lambda spec, seed: ends.get(len(runs.started)) or response(spec)
    search("sgd", general(5))
    scores = [response(cell.recipe.optimizer)[0] for cell in runs.started]
    # The sampler ignores failed trials, but should learn that options diverge.
    assert [trial.value for trial in told(search)] == [0.0, scores[1], None, *scores[3:]]
    assert told(search)[2].state == optuna.trial.TrialState.FAIL
    assert told(search)[0].params == {"base.lr": 1.0}, "the untuned optimizer"


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
    assert all(trial.state.is_finished() for trial in told(search))


def test_a_journal_with_a_half_written_last_line_is_mended(search: Search, runs: Runs) -> None:
    search("sam", general(3))
    with journal(search).open("a") as file:
        file.write('{"op_code":4,"worker')
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
