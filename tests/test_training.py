"""Whole small runs: equal however they are cut into micro-batches, processes or sessions."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from standing_still import Command, go_on
from torch.nn import functional

from pugdft import yaml_text
from pugdft.accelerator import make_accelerator
from pugdft.errors import UserError
from pugdft.finetune import finetune, read_recipe
from pugdft.loop import Position, Totals
from pugdft.observer import Observer
from pugdft.optim import build_optimizer
from pugdft.optim.registry import METHODS
from pugdft.parts import Parts, assemble, load
from pugdft.predictions import Predictions, read_predictions
from pugdft.record import RunRecord, file_sha256, read_record
from pugdft.schedule import lr_factor

Weights = dict[str, torch.Tensor]


def run(recipe: dict[str, Any], output: Path, *overrides: str, **options: Any) -> tuple[RunRecord, Weights]:
    record, path = finetune(read_recipe(recipe, overrides), output, **options)
    assert path == output / "record.yaml"
    model = output / "model.safetensors"
    return record, safetensors.torch.load_file(model) if model.exists() else {}


def parts_of(recipe: dict[str, Any], *overrides: str) -> Parts:
    resolved = read_recipe(recipe, overrides)
    accelerator = make_accelerator(resolved)
    return assemble(resolved, accelerator, *load(resolved))


def largest_difference(first: Weights, second: Weights) -> float:
    assert first.keys() == second.keys()
    return max(float((first[k].double() - second[k].double()).abs().max()) for k in first)


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
    }  # fmt: skip
    model = timm.create_model(
        "test_vit", num_classes=3, img_size=32, checkpoint_path=str(tmp_path / "model.safetensors")
    )
    assert largest_difference(model.state_dict(), weights) == 0


@pytest.mark.parametrize("model", ["test_vit", "test_resnet"])
def test_evaluation_is_of_every_image_once_and_equals_a_plain_loop(
    model: str, small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    small_recipe["model"]["name"] = model
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


class StopAt(Observer):
    """Sends this process a signal after an update, as a person or a scheduler would."""

    def __init__(self, step: int, number: int = signal.SIGTERM) -> None:
        self.step, self.number = step, number

    def on_step(self, position: Position, totals: Totals, done: float) -> None:
        if position.steps == self.step:
            os.kill(os.getpid(), self.number)


def without_times(record: RunRecord) -> dict[str, Any]:
    data = copy.deepcopy(record.model_dump())
    for row in data["history"]:
        row.pop("train_seconds")
    for key in ("environment", "restarts"):
        data.pop(key)
    for key in ("train_seconds", "eval_seconds", "images_per_second", "peak_memory_bytes"):
        data["cost"].pop(key)
    return data


@pytest.mark.parametrize("stops", [(1,), (3,), (2, 5)])
@pytest.mark.parametrize(("method", "base", "precision"), [
    ("sam", "sgd", "fp32"), ("pugd", "sgd", "fp32"), ("sgd", "sgd", "bf16"), ("pugd", "adamw", "bf16"),
])  # fmt: skip
def test_an_interrupted_run_goes_on_to_the_same_bits(
    stops: tuple[int, ...],
    method: str,
    base: str,
    precision: str,
    small_recipe: dict[str, Any],
    tmp_path: Path,
) -> None:
    base_spec = small_recipe["optimizer"]["base"] if base == "sgd" else {"name": "adamw", "lr": 1e-3}
    small_recipe["optimizer"] = base_spec if method == "sgd" else {"name": method, "base": base_spec}
    small_recipe["model"]["name"] = "test_resnet"
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
    small_recipe["model"]["name"] = model
    before = {k: v.clone() for k, v in parts_of(small_recipe).backbone.model.state_dict().items()}
    record, after = run(small_recipe, tmp_path, "train.freeze=backbone")
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    head = "fc" if model == "test_resnet" else "head"
    assert changed == {f"{head}.weight", f"{head}.bias"}
    assert record.method.two_pass_fraction == 1


def test_fixed_batch_norm_keeps_its_statistics_and_trains_its_scale(
    small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    small_recipe["model"]["name"] = "test_resnet"
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


def test_max_steps_ends_the_run_and_the_schedule(small_recipe: dict[str, Any], tmp_path: Path) -> None:
    record, _ = run(small_recipe, tmp_path, "train.max_steps=4")
    assert (record.cost.steps, record.cost.epochs) == (4, 1)
    assert record.history[-1]["lr"] == pytest.approx(0.05 * lr_factor("cosine", 3, 4))


@pytest.mark.parametrize(
    ("optimizer", "updates", "passes", "last"),
    [
        ({}, 6, 12, 10),  # sam: 12 passes are the 2 epochs' worth of it
        ({"name": "looksam", "k": 4}, 9, 12, 10),  # 2 1 1 1, 2 1 1 1, 2
        ({"name": "amp", "inner_iter": 4}, 3, 15, 10),  # an update is not cut
    ],
)
def test_a_budget_of_passes_ends_the_run_and_the_schedule(
    optimizer: dict[str, Any],
    updates: int,
    passes: int,
    last: int,
    small_recipe: dict[str, Any],
    tmp_path: Path,
) -> None:
    small_recipe["optimizer"] |= optimizer
    record, _ = run(small_recipe, tmp_path, "train.budget=passes", "train.epochs=4", "train.max_steps=12")
    assert (record.cost.steps, record.cost.gradient_passes) == (updates, passes)
    assert record.history[-1]["lr"] == pytest.approx(0.05 * lr_factor("cosine", last, 12))


def test_a_run_cut_in_the_middle_of_its_budget_of_passes_goes_on_to_the_same_bits(
    small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    small_recipe["optimizer"] = {
        "name": "pugd", "trigger": {"name": "after", "fraction": 0.4}, "base": {"name": "sgd", "lr": 0.05},
    }  # fmt: skip
    small_recipe["train"]["budget"] = "passes"
    whole, weights = run(small_recipe, tmp_path / "whole")
    run(small_recipe, tmp_path / "cut", observer=StopAt(4))
    resumed, same = run(small_recipe, tmp_path / "cut")
    assert largest_difference(weights, same) == 0
    assert without_times(resumed) == without_times(whole)
    assert 0 < whole.method.two_pass_fraction < 1


@pytest.mark.parametrize("micro_batch_size", [None, 5])
def test_the_ascent_gradient_may_come_from_a_part_of_the_batch(
    micro_batch_size: int | None, small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    small_recipe["train"] |= {"max_steps": 1, "ascent_batch": 0.25, "micro_batch_size": micro_batch_size}
    record, weights = run(small_recipe, tmp_path)
    assert record.cost.gradient_passes == 1.25
    parts = parts_of(small_recipe)
    model, micro_batches = parts.backbone.model, next(parts.training.epoch(0))
    inputs = torch.cat([each for each, _ in micro_batches])
    labels = torch.cat([targets.labels for _, targets in micro_batches])
    optimizer = build_optimizer(small_recipe["optimizer"], model)
    sizes = iter([6, 24])  # a quarter of 24, then all

    def closure() -> torch.Tensor:
        size = next(sizes)
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(inputs[:size]), labels[:size])
        loss.backward()
        return loss

    model.train()
    loss = float(optimizer.step(closure))
    assert record.history[0]["train_loss"] == pytest.approx(loss, rel=1e-5)
    assert largest_difference(weights, dict(model.state_dict())) < 1e-6


def test_an_ascent_batch_is_for_methods_that_perturb_at_each_step(
    small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    small_recipe["train"] |= {"max_steps": 2, "ascent_batch": 0.5}
    small_recipe["optimizer"]["name"] = "looksam"
    with pytest.raises(UserError, match=r"train\.ascent_batch: is for methods that perturb at each step"):
        run(small_recipe, tmp_path / "looksam")
    small_recipe["optimizer"] = small_recipe["optimizer"]["base"]
    record, _ = run(small_recipe, tmp_path / "sgd")
    assert record.cost.gradient_passes == 2


def test_a_search_s_run_never_sees_the_test_split(small_recipe: dict[str, Any], tmp_path: Path) -> None:
    small_recipe["data"]["validation"] = 0.25
    record, _ = run(small_recipe, tmp_path, "train.evaluate=validation")
    assert record.metrics is not None
    assert record.metrics.test is None
    assert record.metrics.best_test is None
    assert record.metrics.validation is not None
    assert not any(key.startswith("test") for row in record.history for key in row)
    assert set(record.artifacts) == {"predictions_validation"}, "of a search nobody wants the weights"
    assert record.data is not None
    assert set(record.data.sizes) == {"train", "validation"}
    with pytest.raises(UserError, match=r"train\.evaluate: validation needs held-out images"):
        run(small_recipe, tmp_path / "b", "train.evaluate=validation", "data.validation=0")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.batch_size=73"], r"train.batch_size: 73 is more than the 72 training images of .*insects"),
        (["data.validation=0.99"], "data.validation: class 0 has 24 training images: too few"),
        (["data.name=nowhere"], "data.name: no such folder"),
        (
            ["model.name=resnet18.tv_in1k", "model.pretrained=true"],
            r"weights resnet18.tv_in1k are not on this machine",
        ),
        (
            ["model.name=test_vit2", "model.pretrained=@weights"],
            r"does not fit test_vit2: .* missing, such as",
        ),
        (["model.pretrained=@pickle"], "not readable as weights"),
        (["model.pretrained=@empty"], "not readable as weights"),
    ],
)
def test_what_cannot_be_used_is_said_before_training(
    overrides: list[str], said: str, small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    class Harm:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
            return os.mkdir, (str(tmp_path / "harm"),)

    safetensors.torch.save_file(timm.create_model("test_vit").state_dict(), tmp_path / "weights.safetensors")
    torch.save({"weight": Harm()}, tmp_path / "pickle.pth")
    (tmp_path / "empty.pth").write_bytes(b"")
    files = {"@weights": "weights.safetensors", "@pickle": "pickle.pth", "@empty": "empty.pth"}
    for mark, name in files.items():
        overrides = [text.replace(mark, str(tmp_path / name)) for text in overrides]
    with pytest.raises(UserError, match=said):
        run(small_recipe, tmp_path / "run", *overrides)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_weights_from_a_file_fill_the_backbone_and_leave_the_head_new(
    suffix: str, small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(5)
    source = timm.create_model("test_vit", num_classes=7, img_size=32)
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save({"state_dict": source.state_dict()}, path)
    else:
        safetensors.torch.save_file(source.state_dict(), path)
    backbone = parts_of(small_recipe, f"model.pretrained={path}").backbone
    assert backbone.tag == f"file:weights.{suffix}"
    for name, tensor in backbone.model.state_dict().items():
        if name.startswith("head."):
            assert tensor.shape[0] == 3
        else:
            assert torch.equal(tensor, source.state_dict()[name])


def test_the_schedule_rises_then_falls_to_nothing() -> None:
    factors = [lr_factor("cosine", step, 100, 10) for step in range(100)]
    assert factors[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert factors[10] == 1
    assert factors[55] == pytest.approx(0.5)
    assert factors[99] < 1e-3
    assert {lr_factor("constant", step, 100) for step in range(100)} == {1.0}


def by_two_processes(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A script of this folder in two gloo processes; their start is dear, so one does for many runs."""
    path = Path(__file__).parent / script
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*command, path, *arguments], capture_output=True, text=True, cwd=path.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.mark.slow
def test_two_processes_make_the_updates_of_one(small_recipe: dict[str, Any], tmp_path: Path) -> None:
    # 13 images are shared as 7 and 6, and micro-batches of 4 make two passes of unequal length
    small_recipe["train"] |= {"batch_size": 13, "micro_batch_size": 4}
    base = small_recipe["optimizer"]["base"]
    methods = {"sgd": base, "sam": {"name": "sam", "base": base}, "pugd": {"name": "pugd", "base": base}}
    arguments = []
    for method, optimizer in methods.items():
        path = tmp_path / f"{method}.yaml"
        path.write_text(yaml_text.dump({**small_recipe, "optimizer": optimizer}))
        arguments += [str(path), str(tmp_path / "two" / method)]
    by_two_processes("several_runs.py", *arguments)
    for method, optimizer in methods.items():
        one, two = (tmp_path / number / method for number in ("one", "two"))
        single, weights = run({**small_recipe, "optimizer": optimizer}, one)
        double = read_record(two / "record.yaml")
        assert double.recipe == single.recipe
        assert double.environment["processes"] == 2
        assert largest_difference(weights, safetensors.torch.load_file(two / "model.safetensors")) < 2e-5
        assert double.history[-1]["train_top1"] == single.history[-1]["train_top1"]
        assert double.history[-1]["train_loss"] == pytest.approx(single.history[-1]["train_loss"], rel=1e-4)
        theirs, ours = (read_predictions(folder / "predictions.npz") for folder in (one, two))
        assert np.array_equal(theirs.label, ours.label)
        assert np.array_equal(theirs.prediction, ours.prediction)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
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
        assert record.method.two_pass_fraction > 0


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


@pytest.mark.slow
def test_two_processes_equal_one_for_every_method_and_local_is_the_mean_of_each_process_s_own() -> None:
    """One start of two gloo processes for all methods: see ``two_processes.py``."""
    done = by_two_processes("two_processes.py")
    assert done.stdout.count("equal: ") == len(METHODS) + 1
    assert done.stdout.count("local: ") == 3
