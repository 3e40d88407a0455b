"""What interruptions and other commands do to a search: nothing to what it comes to."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from standing_still import HANG_SECONDS
from tuning_runs import SMALL_GREEDY, Runs, Search, general, outputs_of

from pugdft.bench import worker
from pugdft.tuning.trials import StoppedError, Tuned


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
    monkeypatch.setattr(worker, "_LOOK_AGAIN_SECONDS", 0.01)
    found: dict[int, list[Tuned]] = {}
    at_work: set[int] = set()
    both, run = threading.Barrier(2), runs.run

    def together(*arguments: Any) -> int:
        """A command's first run goes on as soon as the other command is at a run of its own."""
        if threading.get_ident() not in at_work:
            at_work.add(threading.get_ident())
            both.wait(HANG_SECONDS)
        return run(*arguments)

    monkeypatch.setattr(worker, "_run", together)

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


@pytest.mark.parametrize("text", [SMALL_GREEDY, general(4)], ids=["greedy", "general"])
def test_a_trial_in_whose_folder_another_process_is_running_is_no_failed_one(
    text: str, search: Search, runs: Runs
) -> None:
    free, run = [False], runs.run

    def busy_once(cell: Any, *further: Any) -> int:
        if runs.started and cell.folder == runs.started[0].folder and not free[0]:
            return 5
        return run(cell, *further)

    runs.exit_codes = {0: 5}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "_run", busy_once)
        with pytest.raises(StoppedError) as stopped:
            search("sgd", text)
        assert stopped.value.code == 5
        assert (
            f"{runs.started[0].folder}: another process is running here; after its end, " in search.lines[-1]
        )
        free[0], runs.exit_codes = True, {}
        (found,) = search("sgd", text)
    assert {each.outcome.status for each in found.trials} == {"completed"}


def test_a_search_says_as_a_bench_does_that_bf16_is_emulated(
    search: Search, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pugdft.training.performance.emulates_bf16", lambda device: device == "cpu")
    search("sgd", SMALL_GREEDY, overrides=["train.precision=bf16"])
    assert sum("bf16 is emulated on this CPU" in line for line in search.lines) == 1
