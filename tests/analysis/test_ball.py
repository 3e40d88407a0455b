"""The worst rise of the loss against brute force, known answers and the optimizer's own perturbation."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from helpers import curved_networks as networks
from torch import Tensor, nn

from pugdft.analysis import ball, curvature
from pugdft.optim import build_optimizer

_POINTS = torch.randn(20, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
_TARGETS = ((_POINTS[:, 0] - 0.5 * _POINTS[:, 1]).tanh() > 0).double()


def tiny_loss(weights: Tensor) -> Tensor:
    """A net of five weights, (..., 5): two inputs, one tanh with bias, one output with bias."""
    hidden = (weights[..., :2] @ _POINTS.T + weights[..., 2:3]).tanh()
    logits = weights[..., 3:4] * hidden + weights[..., 4:5]
    targets = _TARGETS.expand_as(logits)
    losses = nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    # A small decay, without which the minimum would lie at infinity.
    return losses.mean(-1) + 0.01 * weights.square().sum(-1)


def tiny_slope(weights: Tensor) -> tuple[float, Tensor]:
    place = weights.detach().requires_grad_()
    loss = tiny_loss(place)
    return float(loss.detach()), torch.autograd.grad(loss, place)[0]


@cache
def minimum() -> Tensor:
    weights = torch.tensor([1.0, -0.5, 0.1, 1.0, 0.1], dtype=torch.float64)
    for _ in range(1_500):
        weights = weights - 0.5 * tiny_slope(weights)[1]
    assert float(tiny_slope(weights)[1].norm()) < 1e-4
    return weights


@pytest.mark.slow
@pytest.mark.parametrize("away", [0.0, 0.5], ids=["minimum", "elsewhere"])
@pytest.mark.parametrize("rho", [0.05, 0.5, 1.5])
def test_no_random_point_of_the_ball_is_much_worse(rho: float, away: float) -> None:
    weights = minimum() + away
    hessian = torch.autograd.functional.hessian(tiny_loss, weights)
    found = ball.worst_rise(tiny_slope, weights, rho, [torch.linalg.eigh(hessian)[1][:, -1]])
    generator = torch.Generator().manual_seed(0)
    highest, centre = 0.0, float(tiny_loss(weights))
    for _ in range(20):
        points = torch.randn(50_000, 5, generator=generator, dtype=torch.float64)
        radii = torch.rand(50_000, 1, generator=generator, dtype=torch.float64) ** 0.2
        points = rho * radii * points / points.norm(dim=1, keepdim=True)
        highest = max(highest, float(tiny_loss(weights + points).max()) - centre)
    assert found.rise >= 0.995 * highest
    assert float(found.perturbation.norm()) <= rho * (1 + 1e-6)
    assert float(tiny_loss(weights + found.perturbation)) - centre == pytest.approx(found.rise, rel=1e-9)
    assert found.one_step <= found.rise
    assert found.num_gradients == 3 * 21 + 1


def test_the_worst_rise_of_a_quadratic_is_known() -> None:
    curvatures = torch.tensor([5.0, 4.0, 1.0, 0.1, -2.0], dtype=torch.float64)
    slope_ = torch.tensor([0.1, 0.3, -0.2, 0.1, 0.3], dtype=torch.float64)

    def slope(weights: Tensor) -> tuple[float, Tensor]:
        gradient = curvatures * weights + slope_
        return float(0.5 * weights @ (curvatures * weights) + slope_ @ weights), gradient

    # At the maximum on the sphere (λ − H) e = g, where λ above the largest curvature gives ‖e‖ = ρ.
    for rho in (0.1, 1.0):
        low, high = 5.0 + 1e-9, 1e6
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if (slope_ / (middle - curvatures)).norm() > rho else (low, middle)
        best = slope(slope_ / (low - curvatures))[0]
        top = torch.eye(5, dtype=torch.float64)[0]
        found = ball.worst_rise(slope, torch.zeros(5, dtype=torch.float64), rho, [top])
        assert found.rise == pytest.approx(best, rel=1e-3)
        assert found.one_step < 0.95 * best


def test_the_ball_may_be_measured_in_the_weights() -> None:
    # ½ Σ (c uᵢ)² with u = e / T: the worst point lies along the largest c T.
    scales = torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64)
    curvatures = torch.tensor([200.0, 1.0, 0.5], dtype=torch.float64)

    def slope(weights: Tensor) -> tuple[float, Tensor]:
        away = weights - 1
        return float(0.5 * (curvatures * away.square()).sum()), curvatures * away

    directions = list(torch.eye(3, dtype=torch.float64))
    found = ball.worst_rise(slope, torch.ones(3, dtype=torch.float64), 0.5, directions, scales=scales)
    assert found.rise == pytest.approx(0.5 * 0.25 * 4.5, rel=1e-6)
    assert float((found.perturbation / scales).norm()) <= 0.5 * (1 + 1e-6)


def test_a_flat_place_has_no_rise() -> None:
    found = ball.worst_rise(lambda weights: (1.0, torch.zeros_like(weights)), torch.ones(4), 0.5)
    assert found.rise == 0
    assert found.one_step == 0
    assert found.one_step_share is None


@pytest.mark.parametrize(("name", "is_adaptive"), [("sam", False), ("asam", True)])
def test_the_one_step_value_is_that_of_the_optimizer(name: str, is_adaptive: bool) -> None:
    model = networks.trained("convnet", torch.float64)
    objective = networks.objective(model)
    weights = objective.weights()
    scales = torch.cat([each.view(-1) for each in ball.adaptive_scales(dict(model.named_parameters()))])

    def slope(place: Tensor) -> tuple[float, Tensor]:
        objective.write_(place)
        return objective.loss_and_gradient()

    found = ball.worst_rise(slope, weights, 0.3, scales=scales if is_adaptive else None, num_steps=1)
    objective.write_(weights)
    losses = []

    def closure() -> Tensor:
        loss = objective.parts[0].loss()
        losses.append(float(loss.detach()))
        loss.backward()
        return loss

    options = {"name": name, "rho": 0.3, "base": {"name": "sgd", "lr": 0.1}}
    build_optimizer(options, model).step(closure)
    assert losses[1] - losses[0] == pytest.approx(found.one_step, rel=1e-9)


def test_the_search_finds_more_than_one_step_in_a_network() -> None:
    objective = networks.objective(networks.trained("convnet"))
    start = curvature.random_vector(objective.size, objective.weights(), 0)
    top = curvature.lanczos(objective.product, start).vector()
    objective.forget()
    weights = objective.weights()

    def slope(place: Tensor) -> tuple[float, Tensor]:
        objective.write_(place)
        return objective.loss_and_gradient()

    found = ball.worst_rise(slope, weights, 0.2, [top])
    assert found.one_step_share is not None
    assert 0 < found.one_step_share < 0.9
