"""What a record says is held against its weights and its recipe, and whoever wrote it is not trusted."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import typer
from bad_inputs.case import call
from conftest import pugdft, write_image_folder

from pugdft.cli.verify import rerun_command, verify_command
from pugdft.data.loader import EvaluationBatches
from pugdft.errors import UserError
from pugdft.paths import file_sha256
from pugdft.predictions import Predictions, read_predictions
from pugdft.records import RunRecord, read_record, write_record
from pugdft.reproduce import (
    RunComparison,
    Verification,
    changes_on_the_way,
    compare_runs,
    open_run,
    rerun,
    rerun_folder,
    rerun_recipe,
    verify,
)
from pugdft.training import trainer as loop
from pugdft.training.checkpoint import RESTART_LOG_NAME
from pugdft.training.run import finetune, read_recipe
from pugdft.training.trainer import Observer

RECIPE: dict[str, Any] = {
    "model": {"name": "test_vit", "pretrained": False},
    "optimizer": {"name": "sam", "base": {"name": "sgd", "lr": 0.05, "momentum": 0.9}},
    "train": {"epochs": 2, "batch_size": 24},
}


@pytest.fixture(scope="module")
def finished(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a validation split; copied, never changed."""
    data = {"name": str(image_folder), "image_size": 32, "crop_padding": 2, "validation": 0.25}
    folder = tmp_path_factory.mktemp("finished") / "run"
    finetune(read_recipe({**RECIPE, "data": data}), folder)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def change(run: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Rewrite the record with something else in it."""
    data = read_record(run / "record.yaml").model_dump(mode="json", by_alias=True)
    edit(data)
    write_record(RunRecord.model_validate(data), run)


def claim(run: Path, **facts: float) -> None:
    change(run, lambda data: data["metrics"]["test"].update(facts))


def rehash(run: Path, name: str) -> None:
    """Make the record speak of the file that is there now."""

    def edit(data: dict[str, Any]) -> None:
        data["artifacts"][name]["sha256"] = file_sha256(run / data["artifacts"][name]["path"])

    change(run, edit)


def elsewhere(run: Path) -> None:
    change(run, lambda data: data["environment"].update(torch="2.9.0"))


def cheat(run: Path, num_images: int) -> float:
    """Turn wrong predictions into right ones, with everything that follows from them; the new top-1."""
    predictions = read_predictions(run / "predictions.npz")
    wrong = np.flatnonzero(predictions.prediction != predictions.label)[:num_images]
    assert len(wrong) == num_images
    predictions.prediction[wrong] = predictions.label[wrong]
    predictions.write(run / "predictions.npz")
    metrics = predictions.metrics()
    claim(run, **metrics.model_dump())
    rehash(run, "predictions")
    return metrics.top1


def differing(result: Verification | RunComparison) -> list[str]:
    return [check.name for check in result.checks if check.agrees is False]


def detail(result: Verification | RunComparison, name: str) -> str:
    return next(check.detail for check in result.checks if check.name == name)


# verify


def test_a_fresh_run_holds_bit_for_bit(run: Path) -> None:
    verification = verify(run)
    assert verification.agrees
    assert "compared bit for bit" in verification.notes[0]
    assert [check.name for check in verification.checks] == [
        "weights file", "data",
        "test top-1", "test top-5", "test loss", "test ECE", "test balanced top-1",
        "test predictions file", "test predictions",
        "validation top-1", "validation top-5", "validation loss", "validation ECE",
        "validation balanced top-1",
        "validation predictions file", "validation predictions",
    ]  # fmt: skip
    assert detail(verification, "test predictions") == "33 images, identical"


def test_batch_norm_precision_batch_size_and_initial_weights_of_a_file_are_the_record_s(
    small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    """The initial weights are gone by then: those of the run are enough."""
    import timm

    initial = tmp_path / "initial.safetensors"
    safetensors.torch.save_file(timm.create_model("test_resnet").state_dict(), initial)
    small_recipe["model"] = {"name": "test_resnet", "pretrained": str(initial)}
    small_recipe["train"] |= {"precision": "bf16", "eval_batch_size": 7}
    finetune(read_recipe(small_recipe), tmp_path / "run")
    initial.unlink()
    verification = verify(tmp_path / "run" / "record.yaml")
    assert verification.agrees
    assert "compared bit for bit" in verification.notes[0]


def test_a_search_keeps_no_weights_and_verify_says_so(small_recipe: dict[str, Any], tmp_path: Path) -> None:
    overrides = ["train.evaluate=validation", "data.validation=0.25"]
    finetune(read_recipe(small_recipe, overrides), tmp_path)
    with pytest.raises(UserError, match=r"no stored weights: a search keeps none, or `pugdft rerun`"):
        verify(tmp_path)


def flip_bit(run: Path, bit: int) -> None:
    weights = safetensors.torch.load_file(run / "model.safetensors")
    weights["head.bias"].view(torch.int32)[0] ^= 1 << bit
    safetensors.torch.save_file(weights, run / "model.safetensors")


def test_the_last_bit_of_one_weight_is_seen(run: Path) -> None:
    flip_bit(run, 0)
    assert differing(verify(run))[0] == "weights file"


def test_other_weights_are_seen_by_what_they_do_even_if_the_record_speaks_of_them(run: Path) -> None:
    flip_bit(run, 30)
    assert {"weights file", "test loss"} <= set(differing(verify(run)))
    rehash(run, "model")
    names = differing(verify(run))
    assert "weights file" not in names
    assert "test loss" in names


@pytest.mark.parametrize(
    ("facts", "named"),
    [
        ({"top1": 0.97}, "test top-1"),
        ({"top5": 0.97}, "test top-5"),
        ({"loss": 0.91}, "test loss"),
        ({"ece": 0.01}, "test ECE"),
        ({"balanced_top1": 0.9}, "test balanced top-1"),
    ],
)
def test_a_changed_metric_is_named(facts: dict[str, float], named: str, run: Path) -> None:
    claim(run, **facts)
    assert differing(verify(run)) == [named, "test predictions file"]
    assert "is not what the metrics are of" in detail(verify(run), "test predictions file")


def test_one_prediction_changed_with_all_that_follows_from_it_is_named(run: Path) -> None:
    cheat(run, 1)
    verification = verify(run)
    assert differing(verification) == ["test top-1", "test ECE", "test balanced top-1", "test predictions"]
    assert "1 of 33 images have another class" in detail(verification, "test predictions")


def test_labels_changed_to_what_the_model_says_are_named(run: Path) -> None:
    predictions = read_predictions(run / "predictions.npz")
    predictions = replace(predictions, label=predictions.prediction)
    predictions.write(run / "predictions.npz")
    assert "of other images" in detail(verify(run), "test predictions")


def test_other_images_are_named_and_moved_ones_found(run: Path, image_folder: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(image_folder, tmp_path / "moved"))
    change(run, lambda data: data["recipe"]["data"].update(name=str(tmp_path / "gone")))
    with pytest.raises(UserError, match=r"no such folder(.|\n)*--data NAME_OR_FOLDER says where"):
        verify(run)
    assert verify(run, str(moved)).agrees
    shutil.copy(moved / "test" / "ant" / "000.png", moved / "test" / "bee" / "001.png")
    assert "data" in differing(verify(run, str(moved)))


def test_data_of_other_classes_is_not_evaluated(run: Path, image_folder: Path, tmp_path: Path) -> None:
    fewer = Path(shutil.copytree(image_folder, tmp_path / "fewer"))
    shutil.rmtree(fewer / "train" / "cat")
    shutil.rmtree(fewer / "test" / "cat")
    verification = verify(run, str(fewer))
    assert differing(verification) == ["data"]
    assert verification.notes[-1] == "not evaluated: the data has 2 classes here, 3 in the record"


def test_without_stored_predictions_the_metrics_are_compared(run: Path) -> None:
    (run / "predictions.npz").unlink()
    verification = verify(run)
    assert verification.agrees
    assert any("test: no stored predictions" in note for note in verification.notes)
    claim(run, top1=0.97)
    assert differing(verify(run)) == ["test top-1"]


def test_with_another_version_rounding_is_allowed_and_no_more(run: Path) -> None:
    metrics = read_record(run / "record.yaml").metrics
    assert metrics is not None
    assert metrics.test is not None
    loss, top1 = metrics.test.loss, metrics.test.top1
    (run / "predictions.npz").unlink()
    elsewhere(run)
    claim(run, loss=loss + 0.0009, top1=top1 + 1 / 33)
    verification = verify(run)
    assert verification.agrees
    assert (
        verification.notes[0] == f"compared up to rounding (torch: recorded 2.9.0, found {version('torch')})"
    )
    assert "allowed: top-1 by 0.2%" in verification.notes[1]
    claim(run, loss=loss + 0.0011, top1=top1 + 2 / 33)
    assert differing(verify(run)) == ["test top-1", "test loss"]
    claim(run, loss=float("nan"), top1=top1)
    assert differing(verify(run)) == ["test loss"]


def test_rounding_does_not_excuse_more_images_than_it_can_move(run: Path) -> None:
    elsewhere(run)
    assert verify(run).agrees
    cheat(run, 1)
    assert "test predictions" not in differing(verify(run))
    cheat(run, 1)
    verification = verify(run)
    assert "test predictions" in differing(verification)
    assert "(allowed: 1 with another class or loss)" in detail(verification, "test predictions")


def test_tolerant_allows_for_rounding_with_the_record_s_own_versions(run: Path) -> None:
    cheat(run, 1)
    assert "test predictions" in differing(verify(run))
    assert "test predictions" not in differing(verify(run, tolerant=True))


@pytest.mark.skipif(torch.cuda.is_available(), reason="fp16 is for GPUs")
def test_a_record_in_fp16_is_evaluated_in_fp32_where_there_is_no_fp16(run: Path) -> None:
    def edit(data: dict[str, Any]) -> None:
        data["recipe"]["train"]["precision"] = data["environment"]["precision"] = "fp16"

    change(run, edit)
    verification = verify(run)
    assert verification.agrees
    assert verification.notes[0].startswith("evaluated in fp32: this device has no fp16")
    assert "precision: recorded fp16, found fp32" in verification.notes[1]
    assert "top-1 by 0.5%" in verification.notes[2]


def test_a_run_without_weights_is_refused_with_what_to_do(run: Path) -> None:
    (run / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model.safetensors is not beside the record.*pugdft rerun"):
        verify(run)
    change(run, lambda data: data.update(status="diverged", artifacts={}))
    with pytest.raises(UserError, match=r"no stored weights \(diverged\).*pugdft rerun"):
        verify(run)
    change(run, lambda data: data.update(metrics=None))
    with pytest.raises(UserError, match=r"has no metrics \(diverged\)"):
        verify(run)


@pytest.mark.parametrize("name", ["model", "predictions", "notes"])
@pytest.mark.parametrize("where", ["../outside", "/outside", "link", "a\0b", "x" * 5000])
def test_a_file_outside_the_record_s_folder_is_never_opened(
    where: str, name: str, run: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    shutil.copy(run / "model.safetensors", outside)
    (run / "link").symlink_to(outside)
    path = str(outside) if where == "/outside" else where
    change(run, lambda data: data["artifacts"].update({name: {"path": path, "sha256": file_sha256(outside)}}))
    with pytest.raises(UserError, match=rf"artifacts.{name}.path: .* leads out of the record's folder"):
        open_run(run)


class Harm:
    """Makes a folder when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_nothing_is_unpickled(run: Path, tmp_path: Path) -> None:
    harm = tmp_path / "harm"
    columns = vars(read_predictions(run / "predictions.npz"))
    np.savez(run / "predictions.npz", **{**columns, "loss": np.array([Harm(harm)] * 33, dtype=object)})
    verification = verify(run)
    assert differing(verification) == ["test predictions file", "test predictions"]
    assert "loss is of type object" in detail(verification, "test predictions")
    torch.save({"head.bias": Harm(harm)}, run / "model.safetensors")
    verification = verify(run)
    assert differing(verification) == ["weights file"]
    assert "not evaluated" in verification.notes[-1]
    rehash(run, "model")
    with pytest.raises(UserError, match=r"not readable as \.safetensors"):
        verify(run)
    assert not harm.exists()
    pickle.loads(pickle.dumps(Harm(harm)))
    assert harm.exists()  # it would have been


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"loss": np.zeros(10**7)}, "loss has the shape (10000000,)"),
        (
            {"loss": np.zeros(5, np.float32)},
            "loss has the shape (5,), expected one value for each of 33 images",
        ),
        ({"prediction": np.zeros(33, np.float32)}, "prediction is of type float32"),
    ],
    ids=["bomb", "short", "kind"],
)
def test_predictions_that_are_none_are_named(arrays: dict[str, np.ndarray], said: str, run: Path) -> None:
    columns = vars(read_predictions(run / "predictions.npz"))
    np.savez_compressed(run / "predictions.npz", **{**columns, **arrays})
    assert said in detail(verify(run), "test predictions")


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda data: data["recipe"]["model"].update(name="hf-hub:someone/model"), "timm cannot resolve it"),
        (lambda data: data["recipe"]["model"].update(name="test_resnet"), "does not fit test_resnet"),
        (lambda data: data["recipe"].update(data=5), "recipe: data: must be a mapping"),
        (lambda data: data["recipe"].update(more=5), "recipe: more: unknown key"),
        (lambda data: data["recipe"]["data"].update(validation=0.0), "its recipe has no validation split"),
        (lambda data: data.update(data=None), "has no data"),
    ],
    ids=["hub", "another model", "no mapping", "unknown key", "no split", "no data"],
)  # fmt: skip
def test_a_record_that_cannot_be_evaluated_is_said(
    edit: Callable[[dict[str, Any]], object], said: str, run: Path
) -> None:
    change(run, edit)
    with pytest.raises(UserError, match=said):
        verify(run)


def test_a_number_without_end_is_refused(run: Path) -> None:
    text = (run / "record.yaml").read_text()
    (run / "record.yaml").write_text(text.replace("threads: ", f"threads: 0x{'f' * 5000}", 1))
    with pytest.raises(UserError, match="not readable"):
        open_run(run)


# rerun


def test_a_rerun_on_a_cpu_is_identical(run: Path, tmp_path: Path) -> None:
    old = open_run(run)
    new = rerun(old, tmp_path / "again")
    comparison = compare_runs(old, new)
    assert comparison.agrees
    assert comparison.verdict == "identical: all results have the same bits"
    assert set(differing(comparison)) <= {"environment"}  # a commit in between
    names = [check.name for check in comparison.checks]
    for name in (
        *("data", "training split", "order of images", "augmentation", "initial weights", "new head"),
        *("history", "test predictions", "validation loss", "trained weights", "gradient passes"),
    ):
        assert name in names


def test_another_seed_is_no_rerun(run: Path, tmp_path: Path) -> None:
    """The negative control: everything that the seed decides differs, the data does not."""
    old = open_run(run)
    change(run, lambda data: data["recipe"]["train"].update(seed=1))
    comparison = compare_runs(old, rerun(open_run(run), tmp_path / "again"))
    assert not comparison.agrees
    assert {"order of images", "augmentation", "new head", "history", "test loss", "trained weights"} <= set(
        differing(comparison)
    )
    assert "data" not in differing(comparison)
    assert "from epoch 1 on: train_loss" in detail(comparison, "history")


def test_a_claim_of_five_points_more_is_refused_with_the_difference(run: Path, tmp_path: Path) -> None:
    new = rerun(open_run(run), tmp_path / "again")
    assert new.record.metrics is not None
    assert new.record.metrics.test is not None
    claim(run, top1=new.record.metrics.test.top1 + 0.05)
    for tolerant in (False, True):
        comparison = compare_runs(open_run(run), new, tolerant=tolerant)
        assert not comparison.agrees
        assert differing(comparison) == ["test top-1", "test predictions file"]
        assert "(-5.00 points)" in comparison.verdict


def test_an_interrupted_rerun_goes_on_to_the_same_bits(run: Path, tmp_path: Path) -> None:
    class Stop(Observer):
        def on_step(self, position: Any, totals: Any, done: int) -> None:
            if position.steps == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    old = open_run(run)
    assert rerun(old, tmp_path / "again", observer=Stop()).record.status == "interrupted"
    new = rerun(old, tmp_path / "again")
    assert len(new.record.restarts) == 1
    assert compare_runs(old, new).verdict.startswith("identical")


def test_a_recipe_of_an_older_version_runs_with_the_defaults_and_moved_data(
    run: Path, image_folder: Path, tmp_path: Path
) -> None:
    def edit(data: dict[str, Any]) -> None:
        for key in ("budget", "evaluate", "batch_norm", "eval_every"):
            del data["recipe"]["train"][key]
        del data["recipe"]["model"]["head_init"]
        data["recipe"]["data"]["name"] = "gone"
        for key in ("split_sha256", "order_sha256", "augmentation_sha256"):
            del data["data"][key]
        for row in data["history"]:
            del row["gradient_passes"]

    change(run, edit)
    old = open_run(run)
    with pytest.raises(UserError, match="no such folder"):
        rerun(old, tmp_path / "again")
    comparison = compare_runs(old, rerun(old, tmp_path / "again", str(image_folder)))
    assert comparison.verdict.startswith("identical")


def test_other_images_cannot_be_compared(run: Path, tmp_path: Path) -> None:
    other = write_image_folder(tmp_path / "insects", {"train": 24, "test": 11}, seed=1)
    comparison = compare_runs(open_run(run), rerun(open_run(run), tmp_path / "again", str(other)))
    assert not comparison.agrees
    assert "the images are not those of the record" in comparison.verdict


def test_elsewhere_chance_is_allowed_and_no_more(run: Path, finished: Path) -> None:
    """Images that only one of the two gets right: 6 of 6 may be chance (p = 0.03), 8 of 8 are not (0.008)."""
    new = open_run(finished)
    elsewhere(run)
    cheat(run, 6)
    comparison = compare_runs(open_run(run), new)
    assert comparison.agrees
    assert (
        "of 33 images 6 are right only in the recorded run, 0 only in the new one; p = 0.031"
        in comparison.verdict
    )
    cheat(run, 2)
    comparison = compare_runs(open_run(run), new)
    assert not comparison.agrees
    assert "p = 0.0078" in comparison.verdict
    change(run, lambda data: data["environment"].update(new.record.environment))
    assert "comes to the same bits" in compare_runs(open_run(run), new).verdict


def test_without_predictions_three_standard_errors_are_allowed(run: Path, finished: Path) -> None:
    new = open_run(finished)
    assert new.record.metrics is not None
    assert new.record.metrics.test is not None
    top1 = new.record.metrics.test.top1
    elsewhere(run)
    (run / "predictions.npz").unlink()
    for difference, agrees in ((0.0, True), (0.28, True), (0.3, False)):
        claim(run, top1=top1 + difference)
        middle = top1 + difference / 2
        assert (difference <= 3 * (2 * middle * (1 - middle) / 33) ** 0.5) == agrees
        assert compare_runs(open_run(run), new).agrees == agrees


# runs whose memory ran out, or that changed on the way


@pytest.fixture(scope="module")
def shrunk(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with BatchNorm whose memory held 4 of 24 images a pass; copied, never changed."""
    data = {"name": str(image_folder), "image_size": 32, "crop_padding": 2}
    model = {"name": "test_resnet", "pretrained": False}
    train = {**RECIPE["train"], "epochs": 1, "eval_batch_size": 33}
    folder = tmp_path_factory.mktemp("shrunk") / "run"
    recipe = read_recipe({**RECIPE, "data": data, "model": model, "train": train})
    record, _ = finetune(recipe, folder, micro_batch_size=4)
    assert record.environment["micro_batch_size"] == 4
    return folder


def test_a_run_whose_memory_ran_out_is_evaluated_in_its_own_batches(
    shrunk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def evaluate(model: Any, batches: EvaluationBatches, accelerator: Any) -> Predictions:
        sizes.append(batches.batch_size)
        return loop.evaluate(model, batches, accelerator)

    monkeypatch.setattr("pugdft.reproduce.evaluate", evaluate)
    verification = verify(shrunk)
    assert sizes == [33 * 4 // 24]  # sums over other batches may have other bits
    assert verification.agrees
    assert "compared bit for bit" in verification.notes[0]
    assert verification.notes[1].endswith("memory held 4 of 24 images")


def test_a_run_whose_memory_ran_out_is_run_again_in_passes_as_small(shrunk: Path, tmp_path: Path) -> None:
    old = open_run(shrunk)
    new = rerun(old, tmp_path / "again")
    assert new.record.environment["micro_batch_size"] == 4
    comparison = compare_runs(old, new)
    assert comparison.verdict == "identical: all results have the same bits"
    assert set(differing(comparison)) <= {"environment"}  # a commit in between
    assert not (tmp_path / "again" / RESTART_LOG_NAME).exists()


def test_another_number_of_images_a_pass_is_another_environment(shrunk: Path, tmp_path: Path) -> None:
    old = open_run(shrunk)
    finetune(read_recipe(old.record.recipe), tmp_path / "again")
    new = open_run(tmp_path / "again")
    assert new.record.environment["micro_batch_size"] == 24
    comparison = compare_runs(old, new)
    assert {"history", "test predictions"} <= set(differing(comparison))
    assert "micro_batch_size: recorded 4, found 24" in detail(comparison, "environment")
    assert "comes to the same bits" not in comparison.verdict
    del old.record.environment["micro_batch_size"]  # as in a record of an older version
    assert "micro_batch_size" not in detail(compare_runs(old, new), "environment")


def test_a_rerun_in_smaller_passes_leaves_nothing_behind_where_it_cannot_run(
    shrunk: Path, finished: Path, tmp_path: Path
) -> None:
    old = open_run(shrunk)
    with pytest.raises(UserError, match="no such folder"):
        rerun(old, tmp_path / "a" / "b", str(tmp_path / "nowhere"))
    assert list(tmp_path.iterdir()) == []
    other = shutil.copytree(finished, tmp_path / "other")
    (other / "record.yaml").unlink()
    before = sorted(other.iterdir())
    with pytest.raises(UserError, match="holds the run of another recipe"):
        rerun(old, other)
    assert sorted(other.iterdir()) == before


def test_an_interrupted_rerun_in_smaller_passes_goes_on_to_the_same_bits(
    shrunk: Path, tmp_path: Path
) -> None:
    class Stop(Observer):
        def on_step(self, position: Any, totals: Any, done: int) -> None:
            if position.steps == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    old = open_run(shrunk)
    assert rerun(old, tmp_path / "again", observer=Stop()).record.status == "interrupted"
    assert compare_runs(old, rerun(old, tmp_path / "again")).verdict.startswith("identical")


@pytest.mark.parametrize("entry", [{"processes": 2}, {"micro_batch_size": 12}], ids=str)
def test_a_change_on_the_way_is_another_environment(entry: dict[str, int], run: Path, finished: Path) -> None:
    new = open_run(finished)
    cheat(run, 6)
    change(run, lambda data: data.update(restarts=[{"time": "", "step": 3}]))
    assert "comes to the same bits" in compare_runs(open_run(run), new).verdict
    change(run, lambda data: data.update(restarts=[{"time": "", "step": 3, **entry}]))
    comparison = compare_runs(open_run(run), new)
    assert comparison.agrees, "6 of 6 images may be chance"
    assert "from update 3 on" in detail(comparison, "environment")
    assert "recorded: from update 3 on" in detail(comparison, "environment")
    cheat(run, 2)
    comparison = compare_runs(open_run(run), new)
    assert not comparison.agrees
    assert "p = 0.0078" in comparison.verdict
    assert "They did not run alike, which may be why: " in comparison.verdict
    reverse = compare_runs(new, open_run(run))
    assert "found: from update 3 on" in detail(reverse, "environment")


@pytest.mark.parametrize(
    ("restarts", "changes"),
    [
        ([], []),
        ([{"step": 3}, {"step": 5}], []),
        ([{"step": 0, "micro_batch_size": 12}, {"step": 0, "micro_batch_size": 6}], []),
        ([{"step": 0, "micro_batch_size": 6}, {"step": 4, "micro_batch_size": 6}], []),
        ([{"step": 3, "micro_batch_size": 12}], ["recorded: from update 3 on 12 images a pass"]),
        (
            [{"step": 3, "micro_batch_size": 2}, {"step": 5, "micro_batch_size": 1}],
            ["recorded: from update 3 on 2 images a pass", "recorded: from update 5 on 1 image a pass"],
        ),
        ([{"step": 3, "processes": 1}], ["recorded: from update 3 on 1 process"]),
        ([{"step": 3, "processes": 1}, {"step": 0}], []),  # begun anew
        ([{"step": 3, "processes": 2}, {"step": 3}], []),  # killed before it saved anything
        (
            [{"step": 3, "processes": 2}, {"step": 5, "processes": 1}],
            ["recorded: from update 3 on 2 processes", "recorded: from update 5 on 1 process"],
        ),
        ([{"step": "x", "processes": 2}, {"processes": [], "step": 4}, {}], []),
        ([{"step": 10**3000, "processes": 1}], [f"recorded: from update 1{'0' * 78}… on 1 process"]),
    ],
)
def test_what_changed_on_the_way_is_read_off_the_restarts(
    restarts: list[dict[str, Any]], changes: list[str], finished: Path
) -> None:
    record = read_record(finished / "record.yaml").model_copy(update={"restarts": restarts})
    assert changes_on_the_way(record, "recorded") == changes


def test_another_end_is_said(run: Path, finished: Path) -> None:
    change(run, lambda data: data.update(status="diverged", metrics=None))
    comparison = compare_runs(open_run(run), open_run(finished), tolerant=True)
    assert (comparison.agrees, comparison.verdict) == (False, "ended as completed; the record says diverged")
    change(run, lambda data: data.update(status="interrupted"))
    with pytest.raises(UserError, match="interrupted: there is nothing to compare with"):
        rerun_recipe(open_run(run))


@pytest.mark.parametrize(
    ("identity", "name"),
    [
        ("../../x", "_.._x"),
        ("/etc/x", "_etc_x"),
        ("..", "record"),
        ("a b\0c", "a_b_c"),
        ("x" * 999, "x" * 150),
    ],
)
def test_a_record_s_id_chooses_no_folder_outside_reruns(identity: str, name: str, run: Path) -> None:
    change(run, lambda data: data.update(id=identity))
    folder = rerun_folder(open_run(run))
    assert folder.parent == Path("reruns")
    assert folder.name == name


def test_the_record_s_own_folder_is_not_run_in(run: Path) -> None:
    with pytest.raises(UserError, match="holds the record itself"):
        rerun_folder(open_run(run), run / ".." / "run")


# the commands


def exit_code(command: Callable[..., None], *arguments: Any, **options: Any) -> int:
    with pytest.raises(typer.Exit) as error:
        command(*arguments, **options)
    return error.value.exit_code


def test_verify_prints_a_line_for_each_check_and_goes_through_all_records(
    run: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(verify_command, [finished]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{finished / 'record.yaml'}: {read_record(finished / 'record.yaml').id}"
    assert "  weights file                 ok       sha256 " in lines[2]
    assert lines[-1] == "  the record holds"
    change(run, lambda data: data.update(id="a\x1b[31mb"))
    claim(run, top1=0.97)
    assert exit_code(verify_command, [run, finished]) == 3
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert out.count("the record holds") == out.count("the record does not hold") == 1
    with pytest.raises(UserError, match="nowhere: no such file"):
        verify_command([Path("nowhere"), finished])
    assert "the record holds" in capsys.readouterr().out


def test_a_folder_of_runs_says_how_to_verify_them_all(run: Path) -> None:
    with pytest.raises(UserError, match=r"no record.yaml here; 1 record below it: .*/\*/record.yaml"):
        open_run(run.parent)


def test_rerun_prints_the_comparison_and_the_new_record_s_path_last(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert exit_code(rerun_command, run) == 0
    lines = capsys.readouterr().out.splitlines()
    path = Path("reruns") / read_record(run / "record.yaml").id / "record.yaml"
    assert lines[-2:] == ["  the record holds: identical: all results have the same bits", str(path)]
    assert read_record(path).status == "completed"
    claim(run, top1=0.97)
    assert exit_code(rerun_command, run) == 3
    lines = capsys.readouterr().out.splitlines()
    assert "does not hold: test top-1" in lines[-2]
    assert lines[-1] == str(path)


@pytest.mark.slow
def test_the_commands_exit_codes_and_two_processes(run: Path, tmp_path: Path) -> None:
    done = pugdft("rerun", str(run), "--num-processes", "2", "--output", "two", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "two/record.yaml"
    assert "processes: recorded 1, found 2" in done.stdout
    assert done.stdout.count("the record holds: ") == 1
    assert read_record(tmp_path / "two" / "record.yaml").environment["processes"] == 2
    claim(run, top1=0.97)
    assert pugdft("rerun", str(run), "--num-processes", "2", "--output", "two", cwd=tmp_path).returncode == 3
    assert pugdft("verify", str(run)).returncode == 3
    (run / "model.safetensors").unlink()
    done = call(("verify", str(run)))
    assert (done.code, done.out) == (2, "")
    assert "no stored weights" in done.err
    assert "Traceback" not in done.err
