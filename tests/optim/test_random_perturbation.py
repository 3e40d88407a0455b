"""``rwp``: noise as a function of seed and step, of the length that it says, whatever the layout."""

from __future__ import annotations

import math

import pytest
import torch
from optimizer_cases import deviation, make_closure, network, run, spec_of, start
from torch import Tensor, nn

from pugdft.optim import build_optimizer, resolve_spec


def perturbation(model: nn.Module, images: Tensor, seed: int = 0, sigma: float = 0.3) -> list[Tensor]:
    """The e of a first step."""
    before = [p.detach().clone() for p in model.parameters()]
    spec = spec_of("rwp", {"name": "sgd", "lr": 0.0}, sigma=sigma)
    optimizer = build_optimizer(spec, model, seed=seed)
    seen: list[Tensor] = []

    def closure() -> Tensor:
        seen.extend(p.detach() - w for p, w in zip(model.parameters(), before, strict=True))
        loss = model(images).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    return seen


def convolutions() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 8, 3))


def test_each_filter_moves_in_proportion_to_its_length() -> None:
    net, images = convolutions(), torch.ones(1, 3, 8, 8)
    with torch.no_grad():
        net[2].weight[0] = 0
        net[2].weight[1] *= 10
    (wide, _, weight, bias) = perturbation(net, images)
    lengths = weight.flatten(1).norm(dim=1) / net[2].weight.detach().flatten(1).norm(dim=1)
    assert torch.equal(weight[0], torch.zeros_like(weight[0])), "a filter of zeros stays"
    assert lengths[1:].tolist() == pytest.approx([0.3] * 7, rel=0.15)
    assert float(wide.norm() / net[0].weight.norm()) == pytest.approx(0.3, rel=0.1)
    assert float(wide.mean()) == pytest.approx(0, abs=4 * float(wide.std()) / math.sqrt(wide.numel()))
    assert float(bias.norm()) < float(net[2].bias.norm())


def test_the_noise_is_the_seed_s_and_the_step_s_and_not_the_memory_layout_s() -> None:
    images = torch.ones(1, 3, 8, 8)
    state = torch.get_rng_state()
    first, again = perturbation(convolutions(), images), perturbation(convolutions(), images)
    assert torch.equal(torch.get_rng_state(), state), "the model's own random numbers stay as they are"
    assert deviation(first, again) == 0
    assert deviation(first, perturbation(convolutions(), images, seed=1)) > 0.01
    last = convolutions().to(memory_format=torch.channels_last)
    assert deviation(first, perturbation(last, images)) < 1e-6, "but for the rounding of lengths"


def test_every_step_draws_anew() -> None:
    net = network()
    optimizer = build_optimizer(spec_of("rwp", {"name": "sgd", "lr": 0.0}), net)
    seen: list[Tensor] = []
    inner = make_closure(optimizer, net)

    def closure() -> Tensor:
        seen.append(net.first.weight.detach() - start()[0])
        return inner()

    for _ in range(3):
        optimizer.step(closure)
    assert all(float((a - b).abs().max()) > 1e-3 for a, b in ((seen[0], seen[1]), (seen[1], seen[2])))
    assert optimizer.diagnostics.mean("norm") == pytest.approx(
        math.sqrt(sum(float((w * w).sum()) for w in start())) * 0.05, rel=0.6
    )


def test_with_a_share_of_the_clean_gradient_it_takes_the_options_of_two_passes() -> None:
    assert "trigger" not in resolve_spec(spec_of("rwp"))
    spec = spec_of("rwp", alpha=0.5, trigger={"name": "every", "k": 2})
    assert resolve_spec(spec)["trigger"]["k"] == 2
    assert resolve_spec(resolve_spec(spec)) == resolve_spec(spec)
    _, optimizer = run(spec, steps=6)
    assert optimizer.num_two_pass_steps == 3
