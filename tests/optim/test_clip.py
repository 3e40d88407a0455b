"""``clip``: the global norm of the gradient that the base takes, for every method and for a base alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from optimizer_cases import ADAMW_BASE, DECAYS, SGD_BASE, deviation, network, run, spec_of
from reference import SGD, AdamW, List, Plain, cases, reference_run
from torch import Tensor, nn

from pugdft.bench.grid import method_of
from pugdft.bench.optimizer_spec import parse_optimizers
from pugdft.errors import FaultsError
from pugdft.optim import LossScale, build_optimizer, resolve_spec
from pugdft.optim.build import explain_options, respec

LIMIT = 0.05


def shortened(gradient: List, limit: float) -> List:
    """g · min(1, limit / ‖g‖) over all tensors together."""
    norm = torch.cat([each.flatten() for each in gradient]).norm()
    return [each * min(1.0, limit / float(norm)) for each in gradient]


class ClippedSgd(SGD):
    def step(self, weights: List, direction: List, lrs: list[float]) -> List:
        return super().step(weights, shortened(direction, LIMIT), lrs)


class ClippedAdamW(AdamW):
    def step(self, weights: List, direction: List, lrs: list[float]) -> List:
        return super().step(weights, shortened(direction, LIMIT), lrs)


@pytest.mark.parametrize(("name", "options", "reference", "base", "clear"), cases(["optimizer", "nothing"]))
def test_every_method_s_base_takes_the_clipped_gradient(
    name: str, options: dict[str, Any], reference: type[Plain], base: str, clear: str
) -> None:
    """Against float64 references, on two groups of unequal rates and decays."""
    steps, decays = 5, [DECAYS[0]] * 3 + [DECAYS[1]] * 3
    spec = spec_of(name, SGD_BASE if base == "sgd" else ADAMW_BASE, **options) | {"clip": LIMIT}
    net, _ = run(spec, steps, clear, closure_accumulates=clear == "nothing")
    written = ClippedSgd(0.9, decays) if base == "sgd" else ClippedAdamW(decays)
    assert deviation(net, reference_run(reference(), written, steps)) < 1e-10
    # Adam's steps do not depend on a constant factor, SGD's do.
    if base == "sgd":
        plain = SGD(0.9, decays)
        assert deviation(net, reference_run(reference(), plain, steps)) > 1e-3


@pytest.mark.parametrize("name", ["plain", "sam", "pugd", "looksam"])
def test_a_limit_that_is_never_reached_changes_no_bit(name: str) -> None:
    loose, _ = run(spec_of(name) | {"clip": 1e6})
    free, _ = run(spec_of(name))
    assert deviation(loose, free) == 0


@pytest.mark.parametrize("name", ["plain", "sam", "gnp", "wsam"])
def test_a_loss_scale_is_undone_before_clipping(name: str) -> None:
    spec = spec_of(name) | {"clip": LIMIT}
    scaled, _ = run(spec, closure_accumulates=True, clear="nothing", loss_scale=LossScale())
    plain, _ = run(spec, closure_accumulates=True, clear="nothing")
    assert deviation(scaled, plain) == 0


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["plain", "sam", "ugd", "ngd_cw"])
def test_a_gradient_that_is_not_finite_skips_the_update(name: str, broken: float) -> None:
    net = network()
    optimizer = build_optimizer(spec_of(name) | {"clip": LIMIT}, net)
    before = [parameter.detach().clone() for parameter in net.parameters()]

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = net(torch.ones(2, 5, dtype=torch.float64)).square().mean()
        loss.backward()
        net.first.weight.grad[0, 0] = broken  # type: ignore[index]
        return loss

    optimizer.step(closure)
    assert optimizer.num_skipped_steps == 1
    assert deviation(net, before) == 0


def test_a_base_alone_clips_sparse_gradients_too() -> None:
    table = nn.Embedding(4, 3, sparse=True, dtype=torch.float64)
    start = table.weight.detach().clone()
    optimizer = build_optimizer({"name": "sgd", "lr": 1.0, "clip": 0.5}, table)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = table(torch.tensor([1, 1, 2])).sum()  # the first row twice: its gradient is 2
        loss.backward()
        return loss

    optimizer.step(closure)
    moved = start - table.weight.detach()
    assert float(moved.norm()) == pytest.approx(0.5, abs=1e-9)
    assert float(moved[1, 0] / moved[2, 0]) == pytest.approx(2)


def test_a_resolved_spec_has_clip_only_where_it_is_used() -> None:
    for name in ("plain", "sam", "ugd"):
        spec = spec_of(name)
        assert "clip" not in resolve_spec(spec)
        assert resolve_spec(spec | {"clip": None}) == resolve_spec(spec)
        clipped = resolve_spec(spec | {"clip": 1})
        assert clipped["clip"] == 1.0
        assert type(clipped["clip"]) is float
        assert resolve_spec(clipped) == clipped
        assert method_of(clipped) == method_of(resolve_spec(spec))
    assert "clip: null" in explain_options("sgd")
    assert "clip: null" in explain_options("ugd")


@pytest.mark.parametrize("name", ["plain", "sam"])
@pytest.mark.parametrize(
    ("value", "words"), [(0, "above 0"), (-1, "above 0"), ("a", "number or null"), (True, "number or null")]
)
def test_a_limit_that_is_none_is_refused(name: str, value: Any, words: str) -> None:
    with pytest.raises(FaultsError, match=rf"optimizer\.clip: must be .*{words}") as refusal:
        resolve_spec(spec_of(name) | {"clip": value})
    assert len(refusal.value.faults) == 1


def test_the_recipe_s_clipping_goes_with_its_base_to_other_optimizers() -> None:
    recipes = [spec_of("pugd", rho=1.0) | {"clip": 2.0}, SGD_BASE | {"clip": 2.0}]
    for recipe in recipes:
        assert respec(recipe, "sam") == {"name": "sam", "base": SGD_BASE, "clip": 2.0}
        assert respec(recipe, "adam") == {"name": "adam", "lr": 0.1, "clip": 2.0}
        assert respec(recipe, {"name": "sam", "clip": None})["clip"] is None
        assert "clip" not in respec(recipe, {"name": "sam", "base": ADAMW_BASE})
        (entry,) = parse_optimizers("sam+adamw[lr=1e-3]")
        assert entry.spec(recipe)["clip"] == 2.0
        (entry,) = parse_optimizers("sam[clip=0.5,lr=3]")
        assert entry.spec(recipe) == {"name": "sam", "base": {**SGD_BASE, "lr": 3}, "clip": 0.5}
        (entry,) = parse_optimizers("sgd[clip=0.5]")
        assert entry.spec(recipe) == {**SGD_BASE, "clip": 0.5}
