"""Whole small runs: equal however they are cut into micro-batches, processes or sessions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from small_runs import Weights, largest_difference, parts_of, run
from torch.nn import functional

from pugdft.errors import UserError
from pugdft.optim.methods import METHODS
from pugdft.paths import file_sha256
from pugdft.predictions import Predictions, read_predictions
from pugdft.records import read_record
from pugdft.training.lr_schedule import lr_factor


@pytest.mark.parametrize("method", ["sgd", "sam", "pugd"])
def test_a_run_learns_and_leaves_a_whole_record(
    method: str, small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    base = small_recipe["optimizer"]["base"]
    small_recipe["optimizer"] = base if method == "sgd" else {"name": method, "base": base}
    small_recipe["train"]["epochs"] = 6
    record, _ = run(small_recipe, tmp_path, "data.validation=0.25", "train.eval_every=4")
    assert record == read_record(tmp_path / "record.yaml")
    assert record.status == "completed"
    assert record.metrics is not None
    assert record.metrics.validation is not None
    assert record.metrics.test.top1 > 0.8
    assert record.data is not None
    assert record.data.sizes == {"train": 54, "test": 33, "validation": 18}
    assert len(record.history) == 6
    assert [row["epoch"] for row in record.history if "test_top1" in row] == [4, 6]
    assert record.history[-1]["train_loss"] < record.history[0]["train_loss"]
    passes = 1 if method == "sgd" else 2
    assert (record.cost.steps, record.cost.gradient_passes) == (12, 12 * passes)
    assert record.method.two_pass_fraction == passes - 1
    if method == "pugd":
        assert record.method.mean_perturbation_norm == pytest.approx(1, rel=1e-5)
    assert record.recipe["optimizer"]["name"] == method


def test_artifacts_are_what_the_record_says(small_recipe: dict[str, Any], tmp_path: Path) -> None:
    record, weights = run(small_recipe, tmp_path)
    assert set(record.artifacts) == {"predictions", "model"}
    for artifact in record.artifacts.values():
        assert file_sha256(tmp_path / artifact.path) == artifact.sha256
    assert record.metrics is not None
    assert read_predictions(tmp_path / "predictions.npz").metrics() == record.metrics.test
    assert {path.name for path in tmp_path.iterdir()} == {
        "record.yaml", "recipe.yaml", "predictions.npz", "model.safetensors", ".lock",
        "config.json", "README.md",
    }  # fmt: skip
    model = timm.create_model(
        "test_vit", num_classes=3, img_size=32, depth=2, checkpoint_path=str(tmp_path / "model.safetensors")
    )
    assert largest_difference(model.state_dict(), weights) == 0


@pytest.mark.parametrize("model", ["test_vit", "test_resnet"])
def test_evaluation_is_of_every_image_once_and_equals_a_plain_loop(
    model: str, small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    small_recipe["model"] = {"name": model, "pretrained": False}
    _, weights = run(small_recipe, tmp_path, "train.eval_batch_size=7", "train.epochs=1")
    predictions = read_predictions(tmp_path / "predictions.npz")
    parts = parts_of(small_recipe)
    parts.backbone.model.load_state_dict(weights)
    parts.backbone.model.eval()
    test = parts.evaluations["test"].images
    pixels = test.gather(test.indices, torch.device("cpu"))
    labels = torch.from_numpy(test.labels[test.indices])
    with torch.no_grad():
        logits = torch.cat([parts.backbone.model(parts.training.to_input(each[None])) for each in pixels])
    assert np.array_equal(predictions.label, labels)
    assert np.array_equal(predictions.prediction, logits.argmax(1))
    losses = functional.cross_entropy(logits, labels, reduction="none")
    np.testing.assert_allclose(predictions.loss, losses, rtol=2e-4, atol=1e-5)
    assert predictions.in_top5.all()


def test_calibration_error_and_metrics_of_a_worked_example() -> None:
    predictions = Predictions(
        label=np.array([0, 1, 1, 0]),
        prediction=np.array([0, 1, 0, 0]),
        in_top5=np.array([True, True, True, False]),
        confidence=np.array([0.95, 0.97, 0.95, 0.51], np.float32),
        loss=np.array([1, 2, 3, 6], np.float32),
    )
    metrics = predictions.metrics()
    assert (metrics.top1, metrics.top5, metrics.loss) == (0.75, 0.75, 3.0)
    # the bin of .95–.97 is right in 2 of 3, the bin of .51 in 1 of 1
    expected = 3 / 4 * abs(2 / 3 - (0.95 + 0.97 + 0.95) / 3) + 1 / 4 * abs(1 - 0.51)
    assert metrics.ece == pytest.approx(expected, abs=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sgd", "sam", "pugd"])
def test_micro_batches_make_the_same_updates_as_the_big_batch(
    method: str, small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    base = small_recipe["optimizer"]["base"]
    small_recipe["optimizer"] = base if method == "sgd" else {"name": method, "base": base}
    whole, weights = run(small_recipe, tmp_path / "whole")
    for size in (12, 7):
        micro, same = run(small_recipe, tmp_path / str(size), f"train.micro_batch_size={size}")
        assert largest_difference(weights, same) < 2e-5
        assert micro.cost.gradient_passes == whole.cost.gradient_passes
        assert micro.history[-1]["train_loss"] == pytest.approx(whole.history[-1]["train_loss"], rel=1e-4)
        assert micro.history[-1]["train_top1"] == whole.history[-1]["train_top1"]
    other, _ = run(small_recipe, tmp_path / "other", "train.batch_size=12")
    assert other.history[-1]["train_loss"] != whole.history[-1]["train_loss"]


def test_logged_loss_and_accuracy_are_the_clean_pass_s(small_recipe: dict[str, Any], tmp_path: Path) -> None:
    """With a learning rate of almost nothing the first epoch's loss is that of the initial weights."""
    small_recipe["optimizer"] = {"name": "sam", "rho": 5.0, "base": {"name": "sgd", "lr": 1e-12}}
    sam, _ = run(small_recipe, tmp_path / "sam", "train.epochs=1")
    small_recipe["optimizer"] = {"name": "sgd", "lr": 1e-12}
    plain, _ = run(small_recipe, tmp_path / "sgd", "train.epochs=1")
    assert sam.history[0]["train_loss"] == pytest.approx(plain.history[0]["train_loss"], rel=1e-6)
    assert sam.history[0]["train_top1"] == plain.history[0]["train_top1"]


def test_the_head_depends_on_the_seed_and_the_optimizer_changes_nothing_before_the_first_step(
    small_recipe: dict[str, Any],
) -> None:
    def start(*overrides: str) -> tuple[Weights, torch.Tensor]:
        parts = parts_of(small_recipe, *overrides)
        return dict(parts.backbone.model.state_dict()), next(parts.training.epoch(0))[0][0]

    weights, batch = start()
    torch.rand(100)  # what was drawn before must not matter
    same, same_batch = start("optimizer.name=pugd", "train.precision=bf16")
    assert largest_difference(weights, same) == 0
    assert torch.equal(batch, same_batch)
    other, other_batch = start("train.seed=1")
    assert largest_difference(weights, other) > 0
    assert not torch.equal(batch, other_batch)


@pytest.mark.parametrize("model", ["test_resnet", "test_vit"])
def test_a_frozen_backbone_keeps_every_bit_but_the_head(
    model: str, small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    small_recipe["model"] = {"name": model, "pretrained": False}
    before = {k: v.clone() for k, v in parts_of(small_recipe).backbone.model.state_dict().items()}
    record, after = run(small_recipe, tmp_path, "train.freeze=backbone")
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    head = "fc" if model == "test_resnet" else "head"
    assert changed == {f"{head}.weight", f"{head}.bias"}
    assert record.method.two_pass_fraction == 1


def test_fixed_batch_norm_keeps_its_statistics_and_trains_its_scale(
    small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    small_recipe["model"] = {"name": "test_resnet", "pretrained": False}
    before = parts_of(small_recipe).backbone.model.state_dict()
    _, after = run(small_recipe, tmp_path / "fixed", "train.batch_norm=fixed")
    statistics = {name for name in after if "running_" in name or "num_batches" in name}
    assert statistics
    assert all(torch.equal(before[name], after[name]) for name in statistics)
    assert not torch.equal(before["bn1.weight"], after["bn1.weight"])
    _, updated = run(small_recipe, tmp_path / "update")
    assert not any(torch.equal(before[name], updated[name]) for name in statistics)


def test_a_zero_head_starts_at_the_loss_of_guessing(small_recipe: dict[str, Any], tmp_path: Path) -> None:
    small_recipe["optimizer"] = {"name": "sgd", "lr": 1e-12}
    record, _ = run(small_recipe, tmp_path, "model.head_init=zero", "train.epochs=1")
    assert record.history[0]["train_loss"] == pytest.approx(np.log(3), rel=1e-6)


def test_divergence_ends_the_run_and_is_recorded(small_recipe: dict[str, Any], tmp_path: Path) -> None:
    small_recipe["optimizer"] = {"name": "sgd", "lr": 1e30}
    record, _ = run(small_recipe, tmp_path)
    assert record.status == "diverged"
    assert "not finite at update 2" in (record.error or "")
    assert not (tmp_path / "model.safetensors").exists()


def test_the_schedule_rises_then_falls_to_nothing() -> None:
    factors = [lr_factor("cosine", step, 100, 10) for step in range(100)]
    assert factors[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert factors[10] == 1
    assert factors[55] == pytest.approx(0.5)
    assert factors[99] < 1e-3
    assert {lr_factor("constant", step, 100) for step in range(100)} == {1.0}


@pytest.mark.parametrize("name", [name for name in METHODS if name != "pugd_t"])
def test_every_method_runs_and_is_seen_to_act(
    name: str, small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    small_recipe["optimizer"] = {"name": name, "base": small_recipe["optimizer"]["base"]}
    record, _ = run(small_recipe, tmp_path, "train.epochs=1")
    assert record.status == "completed"
    perturbs = name not in ("ugd", "ngd_cw")
    assert (record.method.mean_perturbation_norm is not None) == perturbs
    if perturbs and name != "msam":  # which has no momentum to perturb along at its first step
        assert record.method.mean_perturbation_norm
        assert (record.method.two_pass_fraction > 0) == (name != "rwp")


def test_a_method_whose_trigger_never_fires_ends_as_failed(
    small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    small_recipe["optimizer"]["trigger"] = {"name": "after", "fraction": 1.0}
    record, _ = run(small_recipe, tmp_path)
    assert record.status == "failed"
    assert record.error == "sam never perturbed: its trigger did not fire"
    assert record.metrics is not None


def test_the_gap_trigger_needs_held_out_images_and_uses_them(
    small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    small_recipe["optimizer"]["trigger"] = {"name": "generalization_gap", "mu": 0.0, "every": 1}
    with pytest.raises(UserError, match=r"data.validation: this trigger .* test split is never used"):
        run(small_recipe, tmp_path / "without")
    overrides = ("data.validation=0.25", "train.epochs=6", "train.eval_every=6")
    record, _ = run(small_recipe, tmp_path / "with", *overrides)
    assert [("validation_loss" in row, "test_loss" in row) for row in record.history] == [
        *[(True, False)] * 5,
        (True, True),
    ]
    # a gap above 0 × the baseline fires as soon as there is a baseline of three epochs: in the fifth
    assert record.method.two_pass_fraction == pytest.approx(2 / 6)


def test_fp16_without_a_gpu_is_refused(small_recipe: dict[str, Any], tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        run(small_recipe, tmp_path, "train.precision=fp16")
