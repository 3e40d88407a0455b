"""What processes are told by their environment, and what they do before they meet."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from pugdft.errors import UserError
from pugdft.training.distributed import check_variables, must_use_cpu
from pugdft.training.run import finetune, read_recipe
from pugdft.training.setup import device_type


@pytest.mark.parametrize(("given", "message"), [
    ({"WORLD_SIZE": "abc"}, "WORLD_SIZE: must be a whole number of at least 1, not 'abc'"),
    ({"WORLD_SIZE": "0"}, "WORLD_SIZE: must be a whole number of at least 1"),
    ({"LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE: must be"),
    ({"RANK": "-1"}, "RANK: must be a whole number of at least 0"),
    ({"WORLD_SIZE": "2"}, "RANK, MASTER_ADDR, MASTER_PORT is not set"),
    ({"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"},
     "RANK: 2 is no number of 2 processes"),
    ({"ACCELERATE_USE_CPU": "maybe"}, "ACCELERATE_USE_CPU: must be true or false, not 'maybe'"),
    ({"ACCELERATE_USE_DEEPSPEED": "true"}, "ACCELERATE_USE_DEEPSPEED: is not supported"),
    ({"ACCELERATE_USE_FSDP": "1"}, "ACCELERATE_USE_FSDP: is not supported"),
    ({"ACCELERATE_DYNAMO_BACKEND": "inductor"}, "set train.performance.compile=true"),
])  # fmt: skip
def test_an_environment_that_cannot_be_followed_is_said_before_anything_is_made(
    given: dict[str, str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    small_recipe: dict[str, Any],
    tmp_path: Path,
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as error:
        finetune(read_recipe(small_recipe), tmp_path / "run")
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()


def test_what_launchers_and_accelerate_usually_set_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    check_variables()
    for name, value in {
        "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost", "MASTER_PORT": "29500",
        "ACCELERATE_USE_FSDP": "false", "ACCELERATE_DYNAMO_BACKEND": "NO", "ACCELERATE_USE_CPU": "yes",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    check_variables()
    assert must_use_cpu()
    assert device_type() == "cpu"


def test_images_and_weights_are_there_before_processes_meet(
    small_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process group has a time limit for those who wait; a file's lock has none."""
    module = sys.modules["pugdft.training.run"]
    order = []

    def noted(name: str) -> None:
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given: order.append(name) or function(*given))

    noted("load")
    noted("make_accelerator")
    finetune(read_recipe(small_recipe, ["train.max_steps=1"]), tmp_path)
    assert order == ["load", "make_accelerator"]


def test_a_failed_load_is_raised_only_after_the_processes_have_met(
    small_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before that, the others could not be told."""
    module, met = sys.modules["pugdft.training.run"], []
    connect = module.make_accelerator
    monkeypatch.setattr(module, "make_accelerator", lambda recipe: met.append(1) or connect(recipe))
    with pytest.raises(UserError, match="no such folder"):
        finetune(read_recipe(small_recipe, ["data.name=nowhere"]), tmp_path)
    assert met
