"""Learning-rate schedules against torch's own and closed forms, in whole runs, and through bad values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import run

from pugdft.bench.grid import _with_budget
from pugdft.errors import UserError
from pugdft.training.lr_schedule import lr_factor, schedule_of
from pugdft.training.run import read_recipe

STEPS = 12  # an epoch in the unit tests below


def factors(recipe: dict[str, Any], *overrides: str, epochs: int = 10) -> list[float]:
    resolved = read_recipe(recipe, [f"train.epochs={epochs}", *overrides])
    shape = schedule_of(resolved, STEPS, epochs * STEPS)
    return [shape(step) for step in range(epochs * STEPS)]


def of_torch(make: Any, num_steps: int = 10 * STEPS) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    rates = []
    for _ in range(num_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_schedules_are_those_of_torch(small_recipe: dict[str, Any]) -> None:
    rates = torch.optim.lr_scheduler
    pairs = {
        ("schedule.min_lr=0.01",): lambda o: rates.CosineAnnealingLR(o, 10 * STEPS, eta_min=0.2),
        ("schedule.name=linear", "schedule.min_lr=0.01"): lambda o: rates.LinearLR(o, 1.0, 0.2, 10 * STEPS),
        ("schedule.name=linear",): lambda o: rates.LinearLR(o, 1.0, 0.0, 10 * STEPS),
        ("schedule.name=step", "schedule.milestones=[2, 7.5]", "schedule.factor=0.3"): lambda o: (
            rates.MultiStepLR(o, [2 * STEPS, 90], gamma=0.3)
        ),
        ("schedule.name=step", "schedule.step_epochs=3"): lambda o: rates.StepLR(o, 3 * STEPS),
        ("schedule.name=constant",): lambda o: rates.ConstantLR(o, 1.0),
    }
    for overrides, make in pairs.items():  # the recipe's lr is 0.05
        assert factors(small_recipe, *overrides) == pytest.approx(of_torch(make), abs=1e-12), overrides


def test_one_cycle_is_torch_s_but_for_its_last_place(small_recipe: dict[str, Any]) -> None:
    """torch's phases are one update shorter, so that both of its ends are reached."""
    mine = factors(small_recipe, "schedule.name=one_cycle")
    theirs = of_torch(lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 1.0, total_steps=10 * STEPS))
    assert mine[0] == pytest.approx(theirs[0]) == pytest.approx(1 / 25)
    assert mine == pytest.approx(theirs, abs=0.05)
    assert mine.index(max(mine)) == 36
    assert max(mine) == 1
    assert mine[-1] < 1e-3
    early = factors(
        small_recipe, "schedule.name=one_cycle", "schedule.warmup_epochs=1", "schedule.min_lr=0.025"
    )
    assert early.index(1.0) == STEPS
    assert min(early[STEPS:]) == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("name", ["cosine", "linear", "step", "constant"])
def test_each_schedule_has_a_linear_warm_up_and_then_its_own_shape(
    name: str, small_recipe: dict[str, Any]
) -> None:
    own = ("schedule.milestones=[5]",) if name == "step" else ()
    found = factors(small_recipe, f"schedule.name={name}", "schedule.warmup_epochs=2", *own)
    assert found[: 2 * STEPS] == pytest.approx([(i + 1) / 24 for i in range(24)])
    assert found[2 * STEPS] == 1
    middle = {"cosine": 0.5, "linear": 0.5, "step": 0.1, "constant": 1.0}[name]
    assert found[6 * STEPS] == pytest.approx(middle)


def test_a_floor_is_of_the_recipe_s_rate_and_groups_keep_their_proportion(
    small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    small_recipe["optimizer"]["base"]["layer_decay"] = 0.5
    record, _ = run(small_recipe, tmp_path, "schedule.name=step", "schedule.milestones=[1]",
                    "schedule.min_lr=0.02")  # fmt: skip
    first, second = (row["lr"] for row in record.history)
    assert second / first == pytest.approx(0.02 / 0.05)
    assert record.recipe["schedule"] == {
        "name": "step", "warmup_epochs": 0.0, "min_lr": 0.02, "milestones": [1.0],
    }  # fmt: skip


def test_a_budget_of_passes_stretches_every_time_of_the_schedule(small_recipe: dict[str, Any]) -> None:
    for own in ("schedule.milestones=[1, 4]", "schedule.step_epochs=2"):
        overrides = ["train.epochs=6", "schedule.name=step", "schedule.warmup_epochs=0.5", own]
        recipe = read_recipe(small_recipe, overrides)
        passes = _with_budget(recipe, "passes")  # SAM: two an update
        before = [schedule_of(recipe, STEPS, 6 * STEPS)(step) for step in range(6 * STEPS)]
        after = [schedule_of(passes, STEPS, 12 * STEPS)(2 * step) for step in range(6 * STEPS)]
        assert before[6:] == pytest.approx(after[6:])
        assert _with_budget(passes, "epochs").schedule == recipe.schedule


def test_a_schedule_s_factor_depends_on_the_update_alone() -> None:
    assert lr_factor("step", 50, 100, drops=[20, 50, 60]) == pytest.approx(0.01)
    assert lr_factor("cosine", 100, 100, floor=0.1) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["schedule.name=step"], r"schedule\.name: step needs either milestones"),
        (["schedule.name=step", "schedule.milestones=[1]", "schedule.step_epochs=1"], "step needs either"),
        (["schedule.milestones=[1]"], r"schedule\.milestones: is only for schedule\.name=step"),
        (["schedule.factor=0.5"], r"schedule\.factor: is only for schedule\.name=step"),
        (["schedule.name=step", "schedule.milestones=[3, 2]"], "must rise, after the warm-up and before"),
        (["schedule.name=step", "schedule.milestones=[4]"], "must rise, after the warm-up and before"),
        (["schedule.name=step", "schedule.milestones=[]"], r"schedule\.milestones: must not be empty"),
        (["schedule.name=step", "schedule.milestones=2"], r"schedule\.milestones: must be a list"),
        (["schedule.name=step", "schedule.step_epochs=4"], r"must be less than train\.epochs \(4\)"),
        (["schedule.name=step", "schedule.step_epochs=1", "schedule.factor=1"], "must be less than 1"),
        (["schedule.min_lr=0.06"], r"schedule\.min_lr: must be at most the optimizer's lr, 0\.05"),
        (["schedule.min_lr=0.01", "schedule.name=constant"], r"schedule\.min_lr: constant never falls"),
        (["schedule.gamma=0.5"], 'Did you mean "factor"'),
    ],
)
def test_what_does_not_go_together_is_refused(
    overrides: list[str], message: str, small_recipe: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match=message):
        read_recipe(small_recipe, ["train.epochs=4", *overrides])
