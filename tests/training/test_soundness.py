"""Runs that no longer compute with numbers end, and say so."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pugdft.optim import LossScale
from pugdft.training.run import Diverged, DivergenceMonitor, finetune, read_recipe


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
