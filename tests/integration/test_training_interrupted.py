"""Runs that are stopped, fail or are started again: they go on to the same bits."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_runs import StopAt, largest_difference, run, without_times
from standing_still import Command, go_on

from pugdft.errors import UserError
from pugdft.records import read_record
from pugdft.training.trainer import Observer, Position, Totals


@pytest.mark.parametrize(("method", "base", "precision", "stops"), [
    ("sam", "sgd", "fp32", (1,)),
    pytest.param("sgd", "sgd", "bf16", (3,), marks=pytest.mark.slow),
    pytest.param("pugd", "adamw", "bf16", (2, 5), marks=pytest.mark.slow),
])  # fmt: skip
def test_an_interrupted_run_goes_on_to_the_same_bits(
    method: str,
    base: str,
    precision: str,
    stops: tuple[int, ...],
    small_recipe: dict[str, Any],
    tmp_path: Path,
) -> None:
    base_spec = small_recipe["optimizer"]["base"] if base == "sgd" else {"name": "adamw", "lr": 1e-3}
    small_recipe["optimizer"] = base_spec if method == "sgd" else {"name": method, "base": base_spec}
    small_recipe["model"] = {"name": "test_resnet", "pretrained": False}
    small_recipe["train"] |= {"precision": precision, "micro_batch_size": 12}
    whole, weights = run(small_recipe, tmp_path / "whole")
    for step in stops:
        stopped, _ = run(small_recipe, tmp_path / "cut", observer=StopAt(step))
        assert (stopped.status, stopped.cost.steps) == ("interrupted", step)
    resumed, same = run(small_recipe, tmp_path / "cut")
    assert largest_difference(weights, same) == 0
    assert without_times(resumed) == without_times(whole)
    assert [restart["step"] for restart in resumed.restarts] == list(stops)


def test_a_resume_without_the_checkpoint_s_momentum_is_noticed(
    small_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control of the test above."""
    _, weights = run(small_recipe, tmp_path / "whole")
    run(small_recipe, tmp_path / "cut", observer=StopAt(3))
    monkeypatch.setattr("pugdft.optim.PerturbedOptimizer.load_state_dict", lambda self, state: None)
    _, other = run(small_recipe, tmp_path / "cut")
    assert largest_difference(weights, other) > 1e-4


def test_a_damaged_newest_checkpoint_is_not_used(small_recipe: dict[str, Any], tmp_path: Path) -> None:
    _, weights = run(small_recipe, tmp_path / "whole")
    run(small_recipe, tmp_path / "cut", observer=StopAt(3))
    path = tmp_path / "cut" / "checkpoint" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    resumed, same = run(small_recipe, tmp_path / "cut")
    assert [restart["step"] for restart in resumed.restarts] == [0], "there was no other"
    assert largest_difference(weights, same) == 0


def test_a_finished_run_is_returned_and_no_resume_runs_it_again(
    small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    first, weights = run(small_recipe, tmp_path)
    again, _ = run(small_recipe, tmp_path)
    assert again == first
    anew, same = run(small_recipe, tmp_path, resume=False)
    assert anew.environment["started"] >= first.environment["finished"]
    assert largest_difference(weights, same) == 0


def test_an_output_folder_of_another_recipe_is_refused(small_recipe: dict[str, Any], tmp_path: Path) -> None:
    run(small_recipe, tmp_path, "train.epochs=1")
    with pytest.raises(UserError, match=r"holds the run of another recipe:\n  train.epochs: 1 there, 3 here"):
        run(small_recipe, tmp_path, "train.epochs=3")


class Break(Observer):
    """Fails in the middle of an epoch."""

    def on_step(self, position: Position, totals: Totals, done: float) -> None:
        if position.steps == 4:
            raise OSError("the disk is gone")


def test_an_unexpected_failure_is_recorded_and_raised_and_the_run_can_go_on(
    small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    _, weights = run(small_recipe, tmp_path / "whole")
    with pytest.raises(OSError, match="the disk is gone"):
        run(small_recipe, tmp_path / "cut", observer=Break())
    record = read_record(tmp_path / "cut" / "record.yaml")
    assert (record.status, record.error) == ("failed", "OSError: the disk is gone")
    _, same = run(small_recipe, tmp_path / "cut")
    assert largest_difference(weights, same) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [
    (signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
])  # fmt: skip
def test_a_signal_to_the_command_leaves_a_checkpoint_and_the_shell_s_exit_code(
    number: int, code: int, recipe_file: Path, tmp_path: Path, start: Callable[..., Command]
) -> None:
    options = ("train.epochs=500", "--output", str(tmp_path / "run"))
    command = start("finetune", str(recipe_file), *options, stops=0, after=0.05)
    process = command.stopped()
    process.send_signal(number)
    go_on(process)
    returncode, out, err = command.end()
    assert returncode == code, err
    assert out.strip() == str(tmp_path / "run" / "record.yaml")
    assert read_record(tmp_path / "run" / "record.yaml").status == "interrupted"
    assert (tmp_path / "run" / "checkpoint" / "state.json").exists()
