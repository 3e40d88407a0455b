"""Updates without a finite loss or gradient: left out without a trace, counted, and too many are the end."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import write_image_folder
from small_runs import IMAGES, SGD, tiny_recipe

from pugdft.cli.progress import ProgressLog
from pugdft.models import Backbone
from pugdft.optim import directions as direction
from pugdft.optim import scaler as guard
from pugdft.optim.methods import METHODS
from pugdft.training import run as finetune_module
from pugdft.training import setup as parts
from pugdft.training.divergence import BufferGuard
from pugdft.training.run import finetune, read_recipe
from pugdft.training.setup import RunComponents
from pugdft.training.trainer import Position, Totals


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_image_folder(tmp_path / "insects", IMAGES)


class Spoiled(ProgressLog):
    """Makes the inputs of some updates NaN, and looks at what is left of the run after each."""

    def __init__(self, steps: set[int], monkeypatch: pytest.MonkeyPatch, only_second: bool = False) -> None:
        super().__init__()
        self.steps, self.only_second = steps, only_second
        self.step, self.num_passes = 0, 0
        self.parts: RunComponents | None = None
        self.seen: dict[int, dict[str, Any]] = {}
        build, assemble = parts.build_model, finetune_module.assemble

        def spoil(model: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor] | None:
            if not model.training or self.step + 1 not in self.steps:
                return None
            self.num_passes += 1
            return None if self.only_second and self.num_passes % 2 else (inputs[0] * float("nan"),)

        def built(*arguments: Any, **options: Any) -> Backbone:
            backbone = build(*arguments, **options)
            backbone.model.register_forward_pre_hook(spoil)
            return backbone

        def assembled(*arguments: Any) -> RunComponents:
            self.parts = assemble(*arguments)
            return self.parts

        monkeypatch.setattr(parts, "build_model", built)
        monkeypatch.setattr(finetune_module, "assemble", assembled)

    def on_step(self, position: Position, totals: Totals, done: float) -> None:
        super().on_step(position, totals, done)
        self.step = position.steps
        assert self.parts is not None
        state = copy.deepcopy(self.parts.optimizer.state_dict())
        weights = {
            name: value.clone()
            for name, value in self.parts.backbone.model.state_dict().items()
            if "num_batches" not in name
        }
        self.seen[position.steps] = {
            "weights": weights,
            "base": state["state"],
            "memories": state["pugdft"]["memories"],
            "sums": totals.sums[:3].tolist(),
        }


def equal(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    return bool(first == second)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("sgd", "sam", "pugd", "vasso", "msam") else pytest.mark.slow)
        for name in ("sgd", *METHODS)
        if name not in ("looksam", "rules")
    ],
)
def test_an_update_that_is_left_out_leaves_no_trace(
    name: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in weights and BatchNorm, nor in the base's and the method's memory, nor in the mean loss."""
    recipe = tiny_recipe(
        images, SGD if name == "sgd" else {"name": name, "base": SGD}, max_skipped_steps=1, epochs=1
    )
    observer = Spoiled({2}, monkeypatch)
    record, _ = finetune(read_recipe(recipe), tmp_path / "run", observer=observer)
    assert record.error in (None, "pugd_t never perturbed: its trigger did not fire")
    assert record.method.skipped_steps == 1
    assert record.cost.steps == 3
    for what in ("weights", "base", "memories", "sums"):
        assert equal(observer.seen[1][what], observer.seen[2][what]), what
        # The trigger of pugd_t remembers norms of the first tenth of a training, which is over.
        assert what == "memories" or not equal(observer.seen[2][what], observer.seen[3][what]), what
    assert record.metrics is not None
    assert record.metrics.test is not None
    assert record.metrics.test.loss < 10, "NaN in a running mean would be in here"
    loss, _, count = observer.seen[3]["sums"]
    assert count == 16, "the images of two updates"
    assert record.history[0]["train_loss"] == loss / count


@pytest.mark.parametrize("lost", ["weights", "base", "memories"])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_trace_would_be_noticed(
    lost: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control of the test above."""
    blind = SimpleNamespace(
        isfinite=lambda tensor: torch.ones_like(tensor, dtype=torch.bool),
        where=torch.where,
        lerp=torch.lerp,
        strided=torch.strided,
    )
    if lost == "weights":
        monkeypatch.setattr(BufferGuard, "after_step", lambda self: None)
    else:
        monkeypatch.setattr(direction if lost == "memories" else guard, "torch", blind)
    observer = Spoiled({5}, monkeypatch)
    recipe = tiny_recipe(images, {"name": "vasso", "base": SGD}, max_skipped_steps=9)
    finetune(read_recipe(recipe), tmp_path / "run", observer=observer)
    assert not equal(observer.seen[4][lost], observer.seen[5][lost])


def test_looksam_forgets_what_it_would_have_reused(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(images, {"name": "looksam", "k": 4, "base": SGD}, max_skipped_steps=1)
    observer = Spoiled({5}, monkeypatch)
    record, _ = finetune(read_recipe(recipe), tmp_path / "run", observer=observer)
    assert (record.status, record.method.skipped_steps) == ("completed", 1)
    assert equal(observer.seen[4]["weights"], observer.seen[5]["weights"])
    across = observer.seen[5]["memories"]["combine"]["tensors"]["across"]
    assert all(not each.any() for each in across.values())


def test_a_perturbed_pass_alone_may_fail(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    observer = Spoiled({2}, monkeypatch, only_second=True)
    recipe = tiny_recipe(images, max_skipped_steps=1)
    record, _ = finetune(read_recipe(recipe), tmp_path / "run", observer=observer)
    assert (record.status, record.method.skipped_steps) == ("completed", 1)
    for what in ("base", "memories"):
        assert equal(observer.seen[1][what], observer.seen[2][what]), what
    parameters = [name for name in observer.seen[1]["weights"] if "running" not in name]
    for name in parameters:
        assert torch.equal(observer.seen[1]["weights"][name], observer.seen[2]["weights"][name])


@pytest.mark.parametrize("allowed", [0, 1, 3])
def test_as_many_updates_are_left_out_as_the_recipe_allows_and_no_more(
    allowed: int, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    recipe = tiny_recipe(images, max_skipped_steps=allowed, epochs=3)
    bad = {4, 5, 6, 7}  # all of the second epoch's
    with monkeypatch.context() as patch:
        observer = Spoiled(set(sorted(bad)[:allowed]), patch)
        record, _ = finetune(read_recipe(recipe), tmp_path / "enough", observer=observer)
    assert (record.status, record.method.skipped_steps) == ("completed", allowed)
    if allowed == 3:
        assert record.history[1]["train_loss"] is None
        assert "epoch 2 done: no finite train loss  test top-1" in capsys.readouterr().err
    record, _ = finetune(read_recipe(recipe), tmp_path / "more", observer=Spoiled(bad, monkeypatch))
    assert record.status == "diverged"
    step, good = 4 + allowed, 6 if allowed == 3 else 3
    words = f"not finite at update {step}, the last good checkpoint is of update {good}"
    assert words in (record.error or "")
