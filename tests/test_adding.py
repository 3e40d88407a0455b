"""The recipes of docs/architecture.md for additions, each followed from outside the package's files."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ranked_records import entry_of, one_group, seeds
from run_records import SGD
from torch import nn

from pugdft.config import load
from pugdft.config.schema import Recipe, TrainSection
from pugdft.data.cache import prepare
from pugdft.data.datasets import DATASETS, KnownDataset, open_source
from pugdft.leaderboard import as_csv, as_json, as_markdown
from pugdft.leaderboard import columns as columns_module
from pugdft.leaderboard.columns import Column
from pugdft.optim import build_optimizer, foreach, optimizer_names, spec_faults
from pugdft.optim.combine import Unit, Weighted
from pugdft.optim.directions import DIRECTIONS, Ascent, Direction, Gradient
from pugdft.optim.methods import METHODS, Method, as_radius
from pugdft.optim.triggers import Always
from pugdft.predictions import METRICS

BASE = {"name": "sgd", "lr": 0.1}


def step(spec: dict[str, Any]) -> torch.Tensor:
    """The weights of a small linear model after one update, float64."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1, bias=False, dtype=torch.float64)
    inputs = torch.linspace(-1, 1, 12, dtype=torch.float64).view(4, 3)
    optimizer = build_optimizer(spec, model)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (model(inputs) - 1).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    return model.weight.detach().clone()


def test_a_method_is_a_function_and_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def sam_unit(*, rho: float = 0.05) -> Method:
        """SAM with its gradient as one unit vector."""
        return Method(Gradient(), as_radius(rho), Always(), Weighted(0, 1), Unit())

    monkeypatch.setitem(METHODS, "sam_unit", sam_unit)  # type: ignore[arg-type]
    assert "sam_unit" in optimizer_names()
    assert "Did you mean" in str(spec_faults({"name": "sam_unit", "roh": 1, "base": BASE})[0])
    mine = step({"name": "sam_unit", "rho": 0.1, "base": BASE})
    assert torch.equal(mine, step({"name": "sam_gns", "rho": 0.1, "base": BASE}))
    assert not torch.equal(mine, step({"name": "sam", "rho": 0.1, "base": BASE}))


def test_a_rule_is_a_class_and_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Downhill(Direction):
        """e = −ρ·g/‖g‖: against the gradient, a control for SAM."""

        def perturb_(self, at: Ascent) -> None:
            factor = foreach.ratio(-at.rho, foreach.global_norm(at.gradients))
            foreach.set_sum_(at.parameters, at.weights, at.gradients, factor)

    monkeypatch.setitem(DIRECTIONS, "downhill", Downhill)  # type: ignore[arg-type]
    rules = {"name": "rules", "rho": 0.1, "base": BASE}
    assert not spec_faults(rules | {"direction": "downhill"})
    down, up = step(rules | {"direction": "downhill"}), step(rules | {"direction": "gradient"})
    plain = step(BASE)
    # On a square loss the gradient is linear: both perturbed steps lie at equal distances from the plain one.
    torch.testing.assert_close((down + up) / 2, plain, rtol=0, atol=1e-12)
    assert not torch.equal(down, up)


def test_a_data_set_is_a_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shutil.copytree(DATASETS["bundled"].folder, tmp_path / "photos")  # type: ignore[arg-type]
    monkeypatch.setitem(DATASETS, "photos", KnownDataset(folder=tmp_path / "photos"))
    store = prepare(open_source("photos"), image_size=64)
    assert (store.name, len(store.classes), len(store.labels("train"))) == ("photos", 10, 3000)
    assert store.sha256 == prepare(open_source("bundled"), image_size=64).sha256


def test_a_metric_and_a_column_are_a_row_each(monkeypatch: pytest.MonkeyPatch) -> None:
    brier = replace(METRICS["loss"], key="brier", name="Brier", importance=20, per_image=None)
    monkeypatch.setitem(METRICS, "brier", brier)  # type: ignore[arg-type]
    hours = Column(
        field="train_hours",
        value=lambda entry: entry.train_seconds / 3600,
        name="hours",
        heading="hours",
        write=lambda entry: f"{entry.train_seconds / 3600:.3f}",
        importance=30,
    )
    monkeypatch.setattr(columns_module, "_LATER", (*columns_module._LATER, hours))
    records = seeds(SGD, 0.5, 0.6)
    for number, each in enumerate(records):
        each.metrics.test.brier = 0.25 + number / 4  # type: ignore[union-attr, attr-defined]
    group = one_group(*records)
    assert entry_of(group, "sgd").summary("brier").mean == 0.375  # type: ignore[union-attr]
    assert '"train_hours": ' in as_json([group])
    assert "brier_mean" in as_csv([group]).splitlines()[0]
    header = next(line for line in as_markdown([group]).splitlines() if line.startswith("|"))
    assert "Brier" in header
    assert "hours" in header
    ranked = one_group(*records, metric="brier")
    assert ranked.metric == "brier"


def test_a_recipe_key_is_a_field(monkeypatch: pytest.MonkeyPatch) -> None:
    class LongerTrainSection(TrainSection):
        """The training loop, with one more key."""

        rewinds: int | None = None

    class LongerRecipe(Recipe):
        train: LongerTrainSection

    monkeypatch.setattr(load, "Recipe", LongerRecipe)
    recipe = load.load_recipe("quickstart", ["train.rewinds=3"])
    assert recipe.train.rewinds == 3  # type: ignore[attr-defined]
    with pytest.raises(Exception, match=r'train\.rewind: unknown key.*Did you mean "rewinds"'):
        load.load_recipe("quickstart", ["train.rewind=3"])
