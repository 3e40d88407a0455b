"""What a run keeps to be drawn: epoch 0, means of each epoch, evaluated training images, snapshots."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import write_image_folder
from small_runs import (
    IMAGES,
    SGD,
    Messages,
    cut_run,
    differences,
    outcome_of,
    parts_of,
    tiny_recipe,
    whole_run,
)

from pugdft.data.rng import class_balanced
from pugdft.errors import UserError
from pugdft.leaderboard.validate import check_records, record_faults
from pugdft.paths import file_sha256
from pugdft.records import RunRecord, open_run
from pugdft.reproduce import compare_runs, verify
from pugdft.training import snapshots
from pugdft.training.run import finetune, read_recipe
from pugdft.training.snapshots import count
from pugdft.training.trainer import evaluate

KEPT = ("train.evaluate_train=12", "train.snapshots={every_steps: 2}")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image_folder(tmp_path_factory.mktemp("tiny") / "insects", IMAGES)


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of six updates that kept everything."""
    folder = tmp_path_factory.mktemp("run") / "whole"
    whole_run(tiny_recipe(images), folder, *KEPT)
    return folder


def stored(folder: Path) -> list[str]:
    return sorted(file.name for file in (folder / "snapshots").iterdir())


def test_no_update_depends_on_what_is_kept(images: Path, run: Path, tmp_path: Path) -> None:
    plain = whole_run(tiny_recipe(images), tmp_path / "plain")
    kept = safetensors.torch.load_file(run / "model.safetensors")
    assert all(torch.equal(kept[name], weight) for name, weight in plain.weights.items())
    record = open_run(run).record
    assert record.id == plain.record.id, "equal digests"
    assert record.metrics == plain.record.metrics
    own = [{key: row[key] for key in row if key != "train_seconds"} for row in plain.record.history]
    rows = record.history[1:]
    assert [{key: row[key] for key in each} for row, each in zip(rows, own, strict=True)] == own
    compared = compare_runs(open_run(tmp_path / "plain"), open_run(run))
    assert compared.agrees, compared.verdict


def test_neither_key_is_in_a_recipes_digest_and_both_stand_in_the_recipe(images: Path) -> None:
    plain, kept = read_recipe(tiny_recipe(images)), read_recipe(tiny_recipe(images), KEPT)
    assert plain.digest() == kept.digest()
    assert plain.digest() != read_recipe(tiny_recipe(images), ["train.epochs=3"]).digest()
    assert {"evaluate_train", "snapshots"} & set(plain.as_dict()["train"]) == set()
    assert kept.as_dict()["train"]["snapshots"] == {"every_steps": 2}


def test_the_history_begins_with_the_weights_before_the_first_update(images: Path, run: Path) -> None:
    components = parts_of(tiny_recipe(images), *KEPT)
    first, rows = open_run(run).record.history[0], open_run(run).record.history
    found = evaluate(components.model, components.evaluations["test"], components.accelerator).metrics()
    assert (first["epoch"], first["steps"], first["gradient_passes"]) == (0, 0, 0)
    assert (first["test_loss"], first["test_top1"]) == (found.loss, found.top1)
    assert "train_loss" not in first
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert list(record_faults(open_run(run).record)) == []


def test_the_evaluated_training_loss_is_that_of_fixed_images_without_augmentation(
    images: Path, run: Path
) -> None:
    components = parts_of(tiny_recipe(images), *KEPT)
    sample = components.train_sample
    assert sample is not None
    labels = sample.images.labels[sample.images.indices]
    assert np.bincount(labels).tolist() == [4, 4, 4]
    assert set(sample.images.indices) <= set(components.training.images.indices)
    components.backbone.model.load_state_dict(safetensors.torch.load_file(run / "model.safetensors"))
    found = evaluate(components.model, sample, components.accelerator).metrics()
    last = open_run(run).record.history[-1]
    assert (last["train_eval_loss"], last["train_eval_top1"]) == (found.loss, found.top1)
    assert last["train_eval_loss"] != last["train_loss"]


def test_a_best_epoch_before_the_first_update_is_no_fault_of_a_record(run: Path) -> None:
    record = open_run(run).record.model_copy(deep=True)
    record.history[0] |= {"test_top1": 1.0, "validation_top1": 1.0}
    assert list(record_faults(record)) == []
    record.history[1]["gradient_cosine"] = 1.5
    record.history[2]["gradient_norm"] = -1.0
    where = [fault.where for fault in record_faults(record)]
    assert where == ["history.1.gradient_cosine", "history.2.gradient_norm"]


@pytest.mark.parametrize("name", ["sgd", "sam", "pugd", "msam"])
def test_each_epoch_has_means_of_its_own(name: str, images: Path, tmp_path: Path) -> None:
    optimizer = SGD if name == "sgd" else {"name": name, "base": SGD}
    record = whole_run(tiny_recipe(images, optimizer), tmp_path / name).record
    expected = {"gradient_norm"}
    expected |= set() if name == "sgd" else {"perturbation_norm"}
    expected |= {"gradient_cosine"} if name in ("sam", "pugd") else set()
    for row in record.history:
        found = {key: row[key] for key in row if key.endswith(("_norm", "_cosine"))}
        assert set(found) == expected
    first, second = record.history
    assert first["gradient_norm"] != second["gradient_norm"], "not a mean over the whole run"
    if name == "sam":
        assert first["perturbation_norm"] == pytest.approx(record.recipe["optimizer"]["rho"], rel=1e-4)
    if name == "sam":
        mean = (first["gradient_cosine"] + second["gradient_cosine"]) / 2
        assert record.method.mean_gradient_cosine == pytest.approx(mean)


@pytest.mark.slow
@pytest.mark.parametrize("stops", [(1,), (2, 4), (3,), (5,)])
def test_a_run_that_was_stopped_keeps_the_same(
    stops: tuple[int, ...], images: Path, run: Path, tmp_path: Path
) -> None:
    cut = cut_run(tiny_recipe(images), tmp_path / "cut", stops, *KEPT)
    assert differences(outcome_of(run), cut) == []
    assert stored(tmp_path / "cut") == stored(run)
    digests = [each.record.artifacts for each in (open_run(run), open_run(tmp_path / "cut"))]
    names = open_run(run).record.snapshots.values()
    assert [digests[0][name] for name in names] == [digests[1][name] for name in names]


def test_snapshots_are_the_first_the_due_and_the_last_weights(images: Path, run: Path) -> None:
    assert stored(run) == [f"{steps:08d}.safetensors" for steps in (0, 2, 4, 6)]
    opened = open_run(run)
    assert list(opened.record.snapshots) == [0, 2, 4, 6]
    for name in opened.record.snapshots.values():
        file = opened.artifact(name)
        assert file is not None
        assert file_sha256(file) == opened.record.artifacts[name].sha256
    last, model = (run / "snapshots" / "00000006.safetensors", run / "model.safetensors")
    assert last.read_bytes() == model.read_bytes()
    first = safetensors.torch.load_file(run / "snapshots" / "00000000.safetensors")
    own = parts_of(tiny_recipe(images)).backbone.model.state_dict()
    assert all(torch.equal(first[name], weight) for name, weight in own.items())
    assert first.keys() == own.keys(), "BatchNorm's buffers too"


@pytest.mark.parametrize(
    ("train", "expected"),
    [({"snapshots": 1}, [0, 3, 6]), ({"snapshots": 2, "epochs": 3}, [0, 6, 9]),
     ({"snapshots": {"every_steps": 4}}, [0, 4, 6]), ({"snapshots": 5}, [0, 6]),
     ({"snapshots": 1, "max_steps": 4}, [0, 3, 4]), ({}, [])],
    ids=str,
)  # fmt: skip
def test_which_snapshots_there_are(
    train: dict[str, Any], expected: list[int], images: Path, tmp_path: Path
) -> None:
    recipe = tiny_recipe(images, SGD, **train)
    record = whole_run(recipe, tmp_path / "run").record
    assert list(record.snapshots) == expected
    assert count(read_recipe(recipe).train, steps_per_epoch=3) == len(expected)


def test_a_search_stores_none(images: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(images, SGD, evaluate="validation", snapshots=1, batch_size=5)
    recipe["data"]["validation"] = 0.34
    record = whole_run(recipe, tmp_path / "run").record
    assert record.snapshots == {}
    assert not (tmp_path / "run" / "snapshots").exists()
    assert record.history[0]["epoch"] == 1


def test_what_a_killed_run_stored_after_its_checkpoint_is_made_again(images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "snapshots").mkdir(parents=True)
    (folder / "snapshots" / "00000099.safetensors").write_text("of an earlier run")
    whole_run(tiny_recipe(images, SGD), folder, "train.snapshots=1")
    assert stored(folder) == [f"{steps:08d}.safetensors" for steps in (0, 3, 6)]


def test_a_snapshot_that_the_disk_does_not_take_ends_no_run(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(weights: Any, path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(snapshots, "save_weights", full)
    observer, recipe = Messages(), read_recipe(tiny_recipe(images, SGD), ["train.snapshots=1"])
    record, _ = finetune(recipe, tmp_path / "run", observer=observer)
    assert (record.status, record.snapshots) == ("completed", {})
    assert observer.among("00000003.safetensors: this snapshot cannot be stored: No space left")


def test_too_many_snapshots_for_the_disk_are_refused_before_anything_is_written(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"total": 10**9, "used": 0, "free": 1000})
    monkeypatch.setattr(snapshots.shutil, "disk_usage", lambda folder: usage)
    monkeypatch.setattr("pugdft.training.setup.shutil.disk_usage", lambda folder: usage)
    monkeypatch.setattr("pugdft.training.setup._check_room", lambda *_: None)
    recipe = read_recipe(tiny_recipe(images, SGD), ["train.snapshots=1"])
    with pytest.raises(UserError, match=r"train.snapshots: 3 files × .* are free; take fewer"):
        finetune(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_verify_and_check_know_the_snapshots(run: Path, images: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    assert "OK" in check_records([copy], print)[0].lines()[0]
    assert verify(copy).agrees
    (copy / "snapshots" / "00000002.safetensors").write_bytes(b"other")
    assert "artifacts.snapshot_00000002.sha256" in check_records([copy], print)[0].lines()[0]
    checks = {check.name: check.agrees for check in verify(copy).checks}
    assert checks["snapshots"] is False
    shutil.rmtree(copy / "snapshots")
    assert "its trajectory cannot be drawn" in check_records([copy], print)[0].lines()[0]
    assert any("4 of 4 snapshots are not beside" in note for note in verify(copy).notes)


def test_more_training_images_than_there_are_is_one_message(images: Path, tmp_path: Path) -> None:
    recipe = read_recipe(tiny_recipe(images), ["train.evaluate_train=25"])
    with pytest.raises(UserError, match=r"train\.evaluate_train: 25 is more than the 24 training images"):
        finetune(recipe, tmp_path / "run")


@pytest.mark.parametrize("value", ["-1", "true", "often", "{every_steps: 0}", "{every: 3}", "1.5"])
def test_snapshots_that_are_none_are_one_fault(value: str, images: Path) -> None:
    with pytest.raises(UserError) as told:
        read_recipe(tiny_recipe(images), [f"train.snapshots={value}"])
    lines = str(told.value).splitlines()
    assert len([line for line in lines if "train.snapshots" in line]) == 1, lines


def test_a_class_balanced_choice_is_even_sorted_and_depends_on_the_seed_alone() -> None:
    labels = np.repeat([0, 1, 2], [50, 5, 45])
    chosen = class_balanced(labels, 31, seed=0)
    counts = np.bincount(labels[chosen])
    assert counts[1] == 5
    assert sorted(counts[[0, 2]]) == [13, 13]
    assert (np.diff(chosen) > 0).all()
    assert (chosen == class_balanced(labels, 31, seed=0)).all()
    assert (chosen != class_balanced(labels, 31, seed=1)).any()


def test_a_record_without_epoch_0_agrees_with_one_that_has_it(run: Path) -> None:
    new = open_run(run).record
    old = RunRecord.model_validate(new.model_dump(by_alias=True))
    del old.history[0]
    assert list(record_faults(old)) == []
