"""What can go wrong in a run, or between its start and its going on: said clearly, or of no consequence."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from conftest import write_image_folder
from small_runs import IMAGES, SGD, Messages, StopAt, differences, outcome_of, tiny_recipe, whole_run

from pugdft.cli.main import main
from pugdft.config import yaml
from pugdft.errors import UserError
from pugdft.paths import cache_folder
from pugdft.training import checkpoint
from pugdft.training.checkpoint import RESTART_LOG_NAME, Checkpoint, RestartLog, load_checkpoint
from pugdft.training.run import claim, finetune, read_recipe


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_image_folder(tmp_path / "insects", IMAGES)


def test_a_clock_that_jumps_changes_nothing(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(images, {"name": "vasso", "base": SGD})
    whole = whole_run(recipe, tmp_path / "whole")
    rng, clock, numbers = random.Random(3), time.time, []
    monkeypatch.setattr(time, "time", lambda: clock() + rng.uniform(-1e9, 1e9))
    jumping = whole_run(recipe, tmp_path / "jumping")
    assert differences(whole, jumping) == []
    assert 0 < jumping.record.cost.train_seconds < 60
    # The clock that does count cannot be set; if it could, checkpoints would come sooner, and nothing else.
    monkeypatch.undo()
    steady, save = time.monotonic, checkpoint.save_checkpoint
    monkeypatch.setattr(time, "monotonic", lambda: steady() + 3600 * rng.randrange(1000))
    monkeypatch.setattr(
        checkpoint,
        "save_checkpoint",
        lambda *given: numbers.append(given[3]["position"]["steps"]) or save(*given),
    )
    assert differences(whole, whole_run(recipe, tmp_path / "sooner")) == []
    assert len(numbers) > 1


def stopped(recipe: dict[str, Any], folder: Path, *overrides: str) -> None:
    record, _ = finetune(read_recipe(recipe, overrides), folder, observer=StopAt(4))
    assert record.status == "interrupted"


def test_images_or_weights_that_changed_since_the_start_are_refused(images: Path, tmp_path: Path) -> None:
    weights, folder = tmp_path / "weights.safetensors", tmp_path / "run"
    model = timm.create_model("test_resnet")
    safetensors.torch.save_file(model.state_dict(), weights)
    recipe = tiny_recipe(images, SGD)
    recipe["model"]["pretrained"] = str(weights)
    stopped(recipe, folder)
    original = weights.read_bytes()
    with torch.no_grad():
        model.conv1[0].weight[0, 0, 0, 0] += 1
    safetensors.torch.save_file(model.state_dict(), weights)
    with pytest.raises(UserError, match=r"run: the weights have changed since this run began .*--no-resume"):
        finetune(read_recipe(recipe), folder)
    weights.write_bytes(original)
    first, second = images / "train" / "ant" / "000.png", images / "train" / "bee" / "000.png"
    before = first.read_bytes()
    shutil.copy(second, first)
    with pytest.raises(UserError, match=r"run: the images have changed since this run began"):
        finetune(read_recipe(recipe), folder)
    first.write_bytes(before)
    record, _ = finetune(read_recipe(recipe), folder)
    assert record.status == "completed", "with both as they were, it goes on"


def test_another_number_of_processes_is_told_and_listed(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, messages = tiny_recipe(images, SGD), Messages()
    stopped(recipe, tmp_path / "run")
    load = checkpoint.load_checkpoint

    def of_two(folder: Path) -> tuple[Checkpoint | None, list[str]]:
        found, faults = load(folder)
        assert found is not None
        found.state["processes"] = 2
        return found, faults

    monkeypatch.setattr(checkpoint, "load_checkpoint", of_two)
    record, _ = finetune(read_recipe(recipe), tmp_path / "run", observer=messages)
    assert messages.among("it began with 2 processes and goes on with 1: the result is not what")
    assert [(each["step"], each["processes"]) for each in record.restarts] == [(4, 1)]


def test_a_store_that_is_damaged_or_gone_is_made_again(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PUGDFT_CACHE", str(tmp_path / "cache"))
    recipe = tiny_recipe(images, SGD)
    whole = whole_run(recipe, tmp_path / "whole")

    def truncate(store: Path) -> None:
        os.truncate(store / "train_images.npy", 1000)

    def empty(store: Path) -> None:
        (store / "meta.json").write_text("")

    def lose(store: Path) -> None:
        (store / "test_labels.npy").unlink()

    harms: list[Callable[[Path], None]] = [truncate, empty, lose, shutil.rmtree]
    for number, harm in enumerate(harms):
        folder = tmp_path / str(number)
        stopped(recipe, folder)
        stores = [each for each in (cache_folder() / "stores").iterdir() if (each / "meta.json").is_file()]
        for store in stores:
            harm(store)
        finetune(read_recipe(recipe), folder)
        assert differences(whole, outcome_of(folder)) == [], harm
    folder = tmp_path / "no cache"
    stopped(recipe, folder)
    shutil.rmtree(cache_folder())
    finetune(read_recipe(recipe), folder)
    assert differences(whole, outcome_of(folder)) == []


def test_what_a_run_killed_at_its_very_end_left_is_cleared_away(images: Path, tmp_path: Path) -> None:
    recipe, folder = tiny_recipe(images, SGD), tmp_path / "run"
    stopped(recipe, folder)
    shutil.copytree(folder / "checkpoint", tmp_path / "kept")
    record, _ = finetune(read_recipe(recipe), folder)
    shutil.move(tmp_path / "kept", folder / "checkpoint")
    again, _ = finetune(read_recipe(recipe), folder)
    assert again == record
    assert not (folder / "checkpoint").exists()


def test_a_start_whose_note_was_lost_is_still_a_restart(images: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(images, SGD)
    stopped(recipe, tmp_path / "run")
    (tmp_path / "run" / RESTART_LOG_NAME).write_text("{")
    record, _ = finetune(read_recipe(recipe), tmp_path / "run")
    assert [each["step"] for each in record.restarts] == [4]
    assert RestartLog(tmp_path).restarts == []


def test_two_recipes_in_one_folder_are_told_apart_even_if_both_found_it_free(
    images: Path, tmp_path: Path
) -> None:
    first, second = (read_recipe(tiny_recipe(images, SGD), [f"train.epochs={n}"]) for n in (2, 3))
    with claim(tmp_path / "run", first):
        pass
    with pytest.raises(UserError, match=re.escape("train.epochs: 2 there, 3 here")):
        claim(tmp_path / "run", second)
    with claim(tmp_path / "run", first):  # and the refusal has left no lock
        pass


def test_a_file_system_that_flushes_no_folders_takes_checkpoints(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, refused = os.fsync, errno.EINVAL

    def picky(handle: int) -> None:
        place = os.readlink(f"/proc/self/fd/{handle}")
        if os.path.isdir(place) and (refused == errno.EINVAL or place.endswith(".new")):
            raise OSError(refused, os.strerror(refused))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", picky)
    stopped(tiny_recipe(images, SGD), tmp_path / "run")
    assert load_checkpoint(tmp_path / "run")[0] is not None
    refused, messages = errno.EIO, Messages()  # of a checkpoint that is being made
    record, _ = finetune(read_recipe(tiny_recipe(images, SGD)), tmp_path / "other", observer=messages)
    assert messages.among("no checkpoint could be made: "), "a disk that fails is another matter"
    assert record.status == "completed"
    assert not (tmp_path / "other" / checkpoint.CHECKPOINT_NAME).exists()


def rewrite(place: Path, change: Callable[[dict[str, Any], dict[str, Any]], Any]) -> None:
    """Change ``state.json`` and the optimizer's state of a checkpoint, and its digests accordingly."""
    state, optimizer = place / "state.json", place / "optimizer.pt"
    content, tensors = json.loads(state.read_text()), torch.load(optimizer, weights_only=True)
    del content["own_sha256"]
    change(content, tensors)
    torch.save(tensors, optimizer)
    content["sha256"]["optimizer.pt"] = checkpoint.file_sha256(optimizer)
    state.write_text(json.dumps({**content, "own_sha256": checkpoint._digest(content)}))


def from_before_formats_had_numbers(content: dict[str, Any], optimizer: dict[str, Any]) -> None:
    del content["format"], content["pugdft"]


def test_a_checkpoint_of_another_version_is_one_message(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, folder, kept = tiny_recipe(images, SGD), tmp_path / "run", tmp_path / "kept"
    stopped(recipe, folder)
    shutil.copytree(folder, kept)
    changes: dict[str, Callable[[dict[str, Any], dict[str, Any]], Any]] = {
        "its format is 2, not 1": lambda content, optimizer: content.update(format=2, pugdft="9.1"),
        "missing or unknown 'sources'": lambda content, optimizer: content["state"].pop("sources"),
        "missing or unknown 'day'": lambda content, optimizer: content["state"]["position"].update(day=1),
        "missing or unknown 'progress'": lambda content, optimizer: optimizer["pugdft"].pop("progress"),
        "missing or unknown 'extra'": lambda content, optimizer: optimizer["pugdft"].update(extra=1),
    }
    for reason, change in changes.items():
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)
        rewrite(folder / "checkpoint", change)
        with pytest.raises(UserError) as caught:
            finetune(read_recipe(recipe), folder)
        said = str(caught.value)
        assert "checkpoint: was written by another version of pugdft" in said
        assert reason in said
        assert said.endswith("Install that version, or begin anew with --no-resume")
        assert "\n" not in said
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.dump(recipe))
    monkeypatch.setattr(sys, "argv", ["pugdft", "finetune", str(path), "--output", str(folder)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert "Traceback" not in capsys.readouterr().err
    shutil.rmtree(folder)
    shutil.copytree(kept, folder)
    rewrite(folder / "checkpoint", from_before_formats_had_numbers)
    record, _ = finetune(read_recipe(recipe), folder)
    assert (record.status, [each["step"] for each in record.restarts]) == ("completed", [4])
