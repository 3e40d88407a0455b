"""Runs that no longer compute with numbers end, and say so."""

from __future__ import annotations

import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pugdft.models import Backbone
from pugdft.optim import LossScale
from pugdft.training import setup
from pugdft.training.divergence import Diverged, DivergenceMonitor
from pugdft.training.run import finetune, read_recipe


@pytest.mark.parametrize("validation", [0.0, 0.3])
def test_weights_that_the_last_update_destroyed_are_no_completed_run(
    validation: float, small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    small_recipe["optimizer"] = {"name": "sgd", "lr": 1e38}
    small_recipe["data"]["validation"] = validation
    record, _ = finetune(read_recipe(small_recipe, ["train.max_steps=1"]), tmp_path)
    assert record.status == "diverged"
    assert "loss is not finite after update 1" in (record.error or "")
    assert "model" not in record.artifacts


def fp16_run(skipped: int = 0) -> tuple[DivergenceMonitor, SimpleNamespace]:
    recipe: Any = SimpleNamespace(train=SimpleNamespace(max_skipped_steps=0, precision="fp16"))
    optimizer: Any = SimpleNamespace(num_skipped_steps=skipped)
    return DivergenceMonitor(recipe, optimizer, steps=skipped), optimizer


def test_in_fp16_updates_may_be_skipped_but_not_all_of_a_hundred() -> None:
    monitor, optimizer = fp16_run(skipped=5)
    for steps, skipped in ((40, 40), (90, 89), (140, 139), (188, 187)):
        optimizer.num_skipped_steps = skipped
        monitor.check(steps, 0)
    optimizer.num_skipped_steps = 189
    with pytest.raises(Diverged, match="no gradient was finite after update 90"):
        monitor.check(190, 0)


def test_a_run_none_of_whose_updates_was_made_learned_nothing() -> None:
    monitor, optimizer = fp16_run()
    optimizer.num_skipped_steps = 6
    with pytest.raises(Diverged, match="none of 6 updates"):
        monitor.check_end(6)
    monitor.check_end(7)


def test_a_loss_scale_never_falls_so_low_that_it_cannot_come_back() -> None:
    scale, broken, sound = LossScale(growth_interval=1), torch.tensor(False), torch.tensor(True)
    for _ in range(300):
        scale.update(broken)
    gradient = [torch.tensor([3.0])]
    scale.scale_(gradient)
    scale.unscale_(gradient)
    assert gradient[0].item() == 3.0
    low = scale.state_dict()["scale"]
    scale.update(sound)
    assert scale.state_dict()["scale"] == 2 * low > 0


class Narrow(torch.autograd.Function):
    """In bf16, infinite beyond a limit in the forward or the backward pass, as fp16 is; else nothing."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, where: str) -> torch.Tensor:
        ctx.spoils = where == "gradient" and values.dtype == torch.bfloat16
        return values * math.inf if where == "loss" and values.dtype == torch.bfloat16 else values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return (gradient * math.inf if ctx.spoils else gradient), None


@pytest.mark.parametrize(
    ("where", "freeze", "said"),
    [
        (
            "loss",
            "none",
            r"at update 2: for the same weights and batch, bf16 gives a loss that is not finite",
        ),
        (
            "loss",
            "backbone",
            r"at update 3: .* bf16 gives a loss that is not finite where fp32 gives [01]\.\d\d",
        ),
        ("gradient", "none", r"at update 2: .* bf16 gives a gradient that is not finite where fp32's is"),
        (
            "evaluation",
            "none",
            r"the test loss .* after update 3: for the same weights and images of test, bf16",
        ),
        (
            "average",
            "none",
            r"the test loss .* after update 3: for the same weights and images of test, bf16",
        ),
        ("weights", "none", None),
        ("data", "none", None),
        ("fp32", "none", None),
    ],
)
def test_a_precision_that_cannot_hold_the_numbers_is_not_blamed_on_the_optimizer(
    where: str,
    freeze: str,
    said: str | None,
    small_recipe: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build, passes, is_evaluation = setup.build_model, [0], where in ("evaluation", "average")

    def spoil(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        if not module.training and freeze == "none":
            return Narrow.apply(output, "loss") if is_evaluation else output  # type: ignore[no-any-return]
        passes[0] += 1
        if passes[0] < 3 or is_evaluation:
            return output
        if where == "weights":
            with torch.no_grad():
                next(module.parameters()).fill_(math.nan)
        return output * math.nan if where in ("data", "fp32") else Narrow.apply(output, where)  # type: ignore[no-any-return]

    def built(*arguments: Any, **options: Any) -> Backbone:
        backbone = build(*arguments, **options)
        # After a layer: what enters the model is fp32 under autocast too.
        next(m for m in backbone.model.modules() if isinstance(m, torch.nn.Conv2d)).register_forward_hook(
            spoil
        )
        return backbone

    monkeypatch.setattr(setup, "build_model", built)
    precision = "fp32" if where == "fp32" else "bf16"
    small_recipe["train"] |= {"precision": precision, "freeze": freeze, "epochs": 1, "max_steps": 3}
    small_recipe["train"] |= {"ema": 0.9, "class_weights": "balanced"} if where == "average" else {}
    record, _ = finetune(read_recipe(small_recipe), tmp_path)
    if said is None:
        assert record.status == "diverged"
        assert "precision" not in (record.error or "")
    else:
        assert record.status == "failed"
        assert re.search(said, record.error or ""), record.error
        assert (record.error or "").endswith(": set train.precision=fp32")
