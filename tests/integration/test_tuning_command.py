"""``pugdft tune``: what it prints, how it ends, and trials that are real runs."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from bad_inputs.case import call
from standing_still import Command, go_on, is_caught, is_pending, until
from tuning_runs import Runs, response

from pugdft.bench.grid import build_matrix, plan_cells
from pugdft.records import RunRecord, read_record
from pugdft.training.run import finetune


def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recipe: Path, *arguments: str
) -> tuple[int, str, str]:
    from pugdft.cli import main as cli

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


@pytest.mark.parametrize(("ending", "code"), [
    ({0: 2}, 2),
    pytest.param({1: 130}, 130, marks=pytest.mark.slow),
    pytest.param({3: 143}, 143, marks=pytest.mark.slow),
])  # fmt: skip
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
    assert err.endswith("choose a folder on another file system\n")
    assert not runs.started


REAL = {
    "greedy": "search: greedy\nequalize: false\nstages:\n- {option: base.lr, times: [1], with: base}\n"
    "- {option: rho, times: [1, 2]}",
    "general": "search: general\nspace: {rho: {low: 0.01, high: 0.2, log: true}}\ntrials: 2",
}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "number"), [("greedy", signal.SIGTERM), ("general", signal.SIGKILL)])
def test_real_trials_survive_kills_and_never_look_at_the_test_split(
    kind: str,
    number: int,
    recipe_file: Path,
    tmp_path: Path,
    in_process: None,
    start: Callable[..., Command],
    monkeypatch: pytest.MonkeyPatch,
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

    first = start(*arguments, stops=1, cwd=tmp_path)
    trial = first.stopped()  # the second trial, in the middle of its training
    before = finished()
    assert len(before) == 1
    (state,) = tmp_path.glob("tuned/trials/*/checkpoint/state.json")
    if number == signal.SIGKILL:
        first.kill()  # the command and its run
    else:
        until(lambda: is_caught(first.process.pid, signal.SIGTERM))
        first.send(signal.SIGTERM)
        until(lambda: is_pending(trial.pid, signal.SIGTERM))
        go_on(trial)
        assert first.end()[0] == 143
    monkeypatch.chdir(tmp_path)
    done = call(arguments)
    assert done.code == 0, done.err
    records = {path.parent.name: read_record(path) for path in tmp_path.glob("tuned/trials/*/record.yaml")}
    assert len(records) == (3 if kind == "greedy" else 2)
    assert before.items() <= finished().items(), "a finished trial is not run again"
    assert records[state.parent.parent.name].restarts, "the interrupted run is continued"
    for record in records.values():
        assert record.status == "completed"
        assert record.metrics is not None
        assert (record.metrics.test, record.metrics.best_test) == (None, None)
        assert record.metrics.validation is not None
        assert set(record.data.sizes if record.data else {}) == {"train", "validation"}
        assert not any("test" in key for row in record.history for key in row)
    assert done.out.splitlines()[-1] == "tuned/bench.yaml"
    if kind == "greedy":
        the_comparison_runs_and_its_records_say_what_the_choice_cost(tmp_path, list(records.values()))


def the_comparison_runs_and_its_records_say_what_the_choice_cost(
    folder: Path, trials: list[RunRecord]
) -> None:
    matrix = build_matrix([str(folder / "tuned" / "bench.yaml"), "train.epochs=1"], seeds="0")
    budgets = {}
    for cell in plan_cells(matrix, folder / "runs"):
        record, _ = finetune(cell.recipe, cell.folder)
        assert record.metrics is not None
        assert record.metrics.test is not None
        budgets[record.recipe["optimizer"]["name"]] = record.recipe["tuning"]
    passes = sum(record.cost.gradient_passes for record in trials)
    assert budgets["sam"] == {"trials": 3, "gradient_passes": passes, "search": "mine.yaml"}
    assert budgets["sgd"]["trials"] == 1
