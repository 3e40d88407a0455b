"""``pugdft evaluate``: the recorded metrics on a run's own data, and classes matched by name elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
from scipy.stats import norm
from test_predict import Cli, cli

from pugdft.inference import evaluate
from pugdft.inference.evaluate import ModelEvaluation, evaluate_model
from pugdft.inference.load import load_model
from pugdft.predictions import METRICS, Predictions, read_predictions
from pugdft.records import read_record

__all__ = ["cli"]  # a fixture


def test_a_run_on_its_own_data_gives_the_recorded_metrics(
    trained: Path, turned_photos: Path, cli: Cli, tmp_path: Path
) -> None:
    record = read_record(trained / "record.yaml")
    assert record.metrics is not None
    assert record.metrics.test is not None
    recorded, stored = dict(record.metrics.test), read_predictions(trained / "predictions.npz")
    code, out, err = cli("evaluate", trained, "--format", "json", "--output", tmp_path / "own.npz")
    found = json.loads(out)
    assert (code, found["images"], found["split"]) == (0, 15, "test"), err
    assert {key: found["metrics"][key]["value"] for key in METRICS} == {key: recorded[key] for key in METRICS}
    written = read_predictions(tmp_path / "own.npz", 15, exact=True)
    for name, array in vars(stored).items():
        assert array.tobytes() == getattr(written, name).tobytes(), name
    assert [row["images"] for row in found["per_class"]] == [5, 5, 5]
    right = sum(row["images"] * row["top1"] for row in found["per_class"])
    assert right == pytest.approx(15 * recorded["top1"])
    # The same photos elsewhere, without train and in another folder, are decoded as they are read.
    moved = tmp_path / "moved"
    shutil.copytree(turned_photos / "test", moved)
    code, out, err = cli("evaluate", trained, "--data", moved, "--output", tmp_path / "moved.npz")
    assert code == 0
    assert "moved, all: 15 images" in out
    assert "has no test split" not in err
    elsewhere = read_predictions(tmp_path / "moved.npz", 15)
    assert (elsewhere.prediction == stored.prediction).all()
    assert (elsewhere.path == [path.removeprefix("test/") for path in stored.path]).all()
    np.testing.assert_allclose(elsewhere.loss, stored.loss, atol=1e-5)
    train = evaluate_model(load_model(trained), split="train")
    assert (train.num_images, train.split) == (24, "train")


def test_classes_are_matched_by_name(trained: Path, turned_photos: Path, cli: Cli, tmp_path: Path) -> None:
    stored, loaded = read_predictions(trained / "predictions.npz"), load_model(trained)
    fewer, other = tmp_path / "fewer", tmp_path / "other"
    for name in ("cat", "bee"):  # without the first class, every number is another
        shutil.copytree(turned_photos / "test" / name, fewer / "val" / name)
    found = evaluate_model(loaded, str(fewer), "val")
    chosen = stored.label > 0
    assert found.predictions.label.tolist() == stored.label[chosen].tolist()
    assert found.predictions.prediction.tolist() == stored.prediction[chosen].tolist()
    assert found.notes == ["classes are matched by name", "1 of the model's 3 classes have no image here"]
    shutil.copytree(fewer / "val", other)
    shutil.copytree(turned_photos / "test" / "ant", other / "ants")
    code, out, err = cli("evaluate", trained, "--data", other)
    assert (code, out) == (2, "")
    assert '1 class with 5 images not among the model\'s 3: "ants". Did you mean "ant"?' in err
    assert "does not hold" not in err
    code, out, _ = cli("evaluate", trained, "--data", other, "--skip-unknown", "--format", "json")
    skipped = json.loads(out)
    assert (code, skipped["images"], skipped["left_out"]) == (0, 10, 5)
    assert skipped["metrics"]["top1"]["value"] == found.predictions.metrics().top1
    assert any("left out: 5 images" in note for note in skipped["notes"])
    weights = tmp_path / "weights.safetensors"
    shutil.copy(trained / "model.safetensors", weights)
    code, _, err = cli("evaluate", weights, "--model", "test_resnet", "--data", fewer, "--split", "val")
    assert code == 2
    assert "has 3 classes without names, fewer has 2" in err
    in_order = evaluate_model(load_model(weights, "test_resnet"), str(turned_photos))
    assert in_order.num_images == 15
    assert "in order" in in_order.notes[0]


def test_a_timm_model_is_evaluated_on_data_with_its_names(turned_photos: Path, tmp_path: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=1000)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "w.safetensors")
    loaded = load_model(tmp_path / "w.safetensors", "test_resnet")
    with pytest.raises(ValueError, match="has 3: they cannot be matched"):
        evaluate_model(loaded, str(turned_photos))
    small = timm.create_model("test_resnet", num_classes=4)
    names = {"label_names": ["cat", "dog", "ant", "bee"]}
    timm.models.save_for_hf(small, tmp_path / "four", model_config=names)
    found = evaluate_model(load_model(tmp_path / "four"), str(turned_photos))
    assert sorted(set(found.predictions.label.tolist())) == [0, 2, 3]
    assert [row["class"] for row in found.per_class()] == ["cat", "ant", "bee"]


def test_intervals_cover_as_often_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "_RESAMPLES", 200)
    random, hits = np.random.default_rng(1), dict.fromkeys(("top1", "loss"), 0)
    trials, size = 30, 150
    for _ in range(trials):
        right, loss = random.random(size) < 0.8, random.exponential(0.7, size).astype(np.float32)
        label = np.zeros(size, np.int64)
        confidence = np.full(size, 0.8, np.float32)
        predictions = Predictions(label, (~right).astype(np.int64), right, confidence, loss)
        metrics = ModelEvaluation("", "", "", ["a", "b"], predictions).metrics()
        for key, true in (("top1", 0.8), ("loss", 0.7)):
            low, high = metrics[key].low, metrics[key].high
            assert low is not None
            assert high is not None
            hits[key] += low <= true <= high
        p, z = metrics["top1"].value, norm.ppf(0.975)
        middle = (p + z**2 / (2 * size)) / (1 + z**2 / size)
        assert metrics["top1"].low + metrics["top1"].high == pytest.approx(2 * middle)  # type: ignore[operator]
    assert all(count >= 0.8 * trials for count in hits.values()), hits
    assert metrics["ece"].low is not None
    assert 0 <= metrics["ece"].low <= metrics["ece"].high  # type: ignore[operator]


def test_mistakes_are_one_message(trained: Path, turned_photos: Path, cli: Cli, tmp_path: Path) -> None:
    empty, broken = tmp_path / "empty", tmp_path / "broken"
    empty.mkdir()
    shutil.copytree(turned_photos / "test", broken)
    for name in ("ant", "bee"):
        (broken / name / "001.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    checkpoint = tmp_path / "w.safetensors"
    shutil.copy(trained / "model.safetensors", checkpoint)
    for arguments, words in (
        ((turned_photos,), "no record.yaml here"),
        ((checkpoint, "--model", "test_resnet"), "--data: is needed"),
        ((trained, "--data", empty), "holds no data set"),
        ((trained, "--data", tmp_path / "none"), "--data: no such folder"),
        ((trained, "--data", broken), "2 images cannot be used"),
        ((trained, "--split", "validation"), "--split: the run's data has no validation split; it has test"),
        ((trained, "--data", turned_photos, "--split", "nonsense"), "nonsense"),
        ((trained, "--output", empty), "is a folder; give a file"),
        ((trained, "--output", empty / "no" / "x.npz"), "its folder does not exist"),
        ((trained, trained), "unexpected extra argument"),
        ((trained, "--batch-size", "0"), "--batch-size"),
    ):
        code, out, err = cli("evaluate", *arguments)
        assert (code, out) == (2, ""), (arguments, err)
        assert words in " ".join(err.split()), (arguments, err)
    assert list(empty.iterdir()) == []
