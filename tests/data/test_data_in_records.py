"""What a record and its predictions say of the data, and how a run knows its data again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from image_layouts import as_parquet
from PIL import Image
from small_runs import Messages

from pugdft.errors import UserError
from pugdft.leaderboard.grouping import group_runs
from pugdft.leaderboard.load import collect
from pugdft.predictions import Predictions, read_predictions
from pugdft.records import read_record
from pugdft.training.run import finetune, read_recipe
from pugdft.training.trainer import Observer, Position, Totals

# --- b4: which output is which class, which row is which image


@pytest.mark.parametrize("storage", ["decoded", "files"])
def test_a_run_names_its_classes_and_the_image_of_each_prediction(
    storage: str, small_recipe: dict[str, Any], image_folder: Path, tmp_path: Path
) -> None:
    small_recipe["data"] |= {"validation": 0.2, "storage": storage}
    small_recipe["train"]["epochs"] = 1
    finetune(read_recipe(small_recipe), tmp_path / "run")
    record = read_record(tmp_path / "run" / "record.yaml")
    assert record.data
    assert record.data.class_names == ["ant", "bee", "cat"]
    for name, split, number in (("predictions", "test", 33), ("predictions_validation", "train", 15)):
        found = read_predictions(tmp_path / "run" / f"{name}.npz", number, exact=True)
        assert found.path is not None
        assert len(set(found.path)) == number
        for path, label in zip(found.path, found.label, strict=True):
            assert path.startswith(f"{split}/{record.data.class_names[label]}/")
            assert (image_folder / path).is_file()


def test_names_that_yaml_or_utf8_read_otherwise_are_kept(
    small_recipe: dict[str, Any], image_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(image_folder, tmp_path / "insects")
    names = {"ant": "yes", "bee": "null: [1", "cat": os.fsdecode(b"\xffcat\x85")}
    for split in ("train", "test"):
        for old, new in names.items():
            (folder / split / old).rename(folder / split / new)
    small_recipe["data"]["name"] = str(folder)
    small_recipe["train"]["epochs"] = 1
    finetune(read_recipe(small_recipe), tmp_path / "run")
    record = read_record(tmp_path / "run" / "record.yaml")
    assert record.data
    assert record.data.class_names == ["null: [1", "yes", "\\udcffcat\\udc85"]
    paths = read_predictions(tmp_path / "run" / "predictions.npz").path
    assert paths is not None
    assert paths[-1] == "test/\\udcffcat\\udc85/010.png"


def test_images_in_tables_have_no_paths(
    small_recipe: dict[str, Any], image_folder: Path, tmp_path: Path
) -> None:
    as_parquet(image_folder, tmp_path / "tables")
    small_recipe["data"]["name"] = str(tmp_path / "tables")
    small_recipe["train"]["epochs"] = 1
    finetune(read_recipe(small_recipe), tmp_path / "run")
    assert read_predictions(tmp_path / "run" / "predictions.npz", 33, exact=True).path is None


def predictions(path: np.ndarray | None) -> Predictions:
    numbers = np.zeros(3, np.int64)
    values = np.zeros(3, np.float32)
    return Predictions(numbers, numbers, numbers == 0, values, values, path)


def test_predictions_are_read_with_and_without_paths(tmp_path: Path) -> None:
    file = tmp_path / "predictions.npz"
    for path in (None, np.array(["a/1.png", "ä/2.png", "c/3.png"])):
        predictions(path).write(file)
        found = read_predictions(file, 3, exact=True).path
        assert (found is None) == (path is None)
        assert path is None or (found is not None and found.tolist() == path.tolist())


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (np.array([b"a", b"b", b"c"]), "path is of type"),
        (np.array(["a", "b"]), "path has the shape"),
        (np.array([{}, {}, {}]), "path is of type"),
        (np.zeros(3, "<U100"), "path is larger than"),
    ],
)
def test_paths_that_are_no_texts_are_refused(
    path: np.ndarray, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pugdft.predictions._MOST_PATH_BYTES", 1000)
    predictions(path).write(tmp_path / "predictions.npz")
    with pytest.raises(UserError, match=said):
        read_predictions(tmp_path / "predictions.npz", 3)


# --- a11: data that moved is the same data


class StopsInTheSecondEpoch(Observer):
    """A person who presses Ctrl-C."""

    def on_step(self, position: Position, totals: Totals, done: float) -> None:
        if position.epoch == 1:
            raise KeyboardInterrupt


@pytest.fixture
def moved(image_folder: Path, small_recipe: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """The recipe with the same images under another name, and in another order of time."""
    folder = shutil.copytree(image_folder, tmp_path / "elsewhere" / "beasts", copy_function=shutil.copy)
    return {**small_recipe, "data": {**small_recipe["data"], "name": str(folder)}}


def test_a_run_goes_on_where_its_data_moved(
    small_recipe: dict[str, Any], moved: dict[str, Any], tmp_path: Path
) -> None:
    whole, _ = finetune(read_recipe(small_recipe), tmp_path / "whole")
    record, _ = finetune(read_recipe(small_recipe), tmp_path / "run", observer=StopsInTheSecondEpoch())
    assert record.status == "interrupted"
    (tmp_path / "run" / "record.yaml").unlink()  # as after a kill: the checkpoint knows the images too
    record, _ = finetune(read_recipe(moved), tmp_path / "run")
    assert record.status == "completed"
    assert len(record.restarts) == 1
    assert record.metrics == whole.metrics
    assert record.recipe["data"]["name"] == moved["data"]["name"]
    assert moved["data"]["name"] in (tmp_path / "run" / "recipe.yaml").read_text()


def test_a_finished_run_is_known_by_its_images(
    small_recipe: dict[str, Any], moved: dict[str, Any], tmp_path: Path
) -> None:
    small_recipe["train"]["epochs"] = moved["train"]["epochs"] = 1
    first, path = finetune(read_recipe(small_recipe), tmp_path / "run")
    before = path.read_bytes()
    assert finetune(read_recipe(moved), tmp_path / "run")[0] == first
    assert path.read_bytes() == before
    Image.new("RGB", (16, 16)).save(Path(moved["data"]["name"]) / "train" / "ant" / "000.png")
    for resume in (True, False):
        with pytest.raises(UserError, match=r"another recipe:\n  data\.name:"):
            finetune(read_recipe(moved), tmp_path / "run", resume=resume)
    moved["train"]["batch_size"] = 12
    with pytest.raises(UserError, match=r"train\.batch_size: 24 there, 12 here"):
        finetune(read_recipe(moved), tmp_path / "run")
    assert path.read_bytes() == before


def test_without_an_output_a_run_is_found_again_by_its_images(
    small_recipe: dict[str, Any], moved: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    record, path = finetune(read_recipe(small_recipe), observer=StopsInTheSecondEpoch())
    assert record.status == "interrupted"
    said = Messages()
    record, again = finetune(read_recipe(moved), observer=said)
    assert (record.status, again, len(record.restarts)) == ("completed", path, 1)
    assert said.among(f"{path.parent}: is this run, on images at {small_recipe['data']['name']}")
    assert finetune(read_recipe(moved))[1] == path
    moved["train"]["epochs"] = small_recipe["train"]["epochs"] = 1
    assert finetune(read_recipe(moved))[1] != path, "another recipe"
    other = Path(shutil.copytree(moved["data"]["name"], tmp_path / "others"))
    Image.new("RGB", (16, 16)).save(other / "train" / "ant" / "000.png")
    moved["data"]["name"] = str(other)
    assert finetune(read_recipe(moved))[1] != path, "other images"
    assert len(list(Path("runs").iterdir())) == 3


def test_equal_images_under_two_names_are_in_one_table(
    small_recipe: dict[str, Any], moved: dict[str, Any], tmp_path: Path
) -> None:
    for seed, recipe in enumerate((small_recipe, moved, small_recipe)):
        recipe["train"] |= {"epochs": 1, "seed": seed}
        finetune(read_recipe(recipe), tmp_path / "runs" / str(seed))
    (group,) = group_runs(collect([tmp_path / "runs"]).records)
    assert group.dataset == "insects"
    assert [run.record.seed for run in group.entries[0].completed] == [0, 1, 2]
    assert any("also called beasts" in note for note in group.notes)


# --- a13: what is checked in seconds comes before images are decoded


def into_a_file(recipe: dict[str, Any], tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "run"


def missing_weights(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe["model"]["pretrained"] = True


def weights_of_another_model(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe["model"]["pretrained"] = str(tmp_path / "w.safetensors")
    safetensors.torch.save_file({"a": torch.zeros(2)}, tmp_path / "w.safetensors")


def no_held_out_images(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe["optimizer"] |= {"trigger": {"name": "generalization_gap"}}


def too_large_a_batch(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe["train"]["batch_size"] = 500


@pytest.mark.parametrize(
    "fault", [into_a_file, missing_weights, weights_of_another_model, no_held_out_images, too_large_a_batch]
)
def test_no_image_is_decoded_for_a_run_that_cannot_be(
    fault: Callable[[dict[str, Any], Path], Path | None],
    small_recipe: dict[str, Any],
    tmp_path: Path,
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = fault(small_recipe, tmp_path) or tmp_path / "run"
    recipe = read_recipe(small_recipe)
    monkeypatch.setattr("pugdft.data.decode.decode", lambda *_: pytest.fail("an image was decoded"))
    with pytest.raises(UserError):
        finetune(recipe, output)
    assert not (tmp_path / "run").exists()


def test_a_disk_without_room_for_the_weights_is_said_first(
    small_recipe: dict[str, Any], tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(total=2**40, used=2**40, free=1000))
    with pytest.raises(UserError, match=r"run: the weights take .* choose another --output"):
        finetune(read_recipe(small_recipe), tmp_path / "run")
