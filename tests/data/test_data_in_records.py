"""What a record and its predictions say of the data, and how a run knows its data again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_layouts import as_parquet

from pugdft.errors import UserError
from pugdft.predictions import Predictions, read_predictions
from pugdft.records import read_record
from pugdft.training.run import finetune, read_recipe

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
