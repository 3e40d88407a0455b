"""How many updates and passes a run makes, and with which images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import StopAt, largest_difference, parts_of, run, without_times
from torch.nn import functional

from pugdft.errors import UserError
from pugdft.optim import build_optimizer
from pugdft.training.lr_schedule import lr_factor


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
