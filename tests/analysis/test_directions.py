"""Directions: drawn by name, scaled as the weights are, blind to what leaves the function as it is."""

from __future__ import annotations

import pytest
import torch
from analysis_runs import SmallNet, trained_net
from torch import Tensor

from pugdft.analysis.directions import (
    Normalization,
    move_,
    random_direction,
    sharpest_directions,
    way_to,
    weights_of,
)
from pugdft.analysis.points import Evaluator, restored


def test_each_filter_gets_the_length_of_the_weights_own_filter() -> None:
    net = SmallNet()
    direction = random_direction(net, 0, 0)
    assert set(direction) == {"body.0.weight", "body.3.weight", "body.6.weight", "head.weight"}
    for name, values in direction.items():
        own = dict(net.named_parameters())[name].detach()
        assert torch.allclose(values.flatten(1).norm(dim=1), own.flatten(1).norm(dim=1), rtol=1e-5)
        assert abs(float(torch.nn.functional.cosine_similarity(values.flatten(), own.flatten(), 0))) < 0.5


@pytest.mark.parametrize(("normalize", "same"), [("layer", "tensor"), ("model", "all"), ("none", "neither")])
def test_the_other_normalizations(normalize: Normalization, same: str) -> None:
    net = SmallNet()
    direction, own = random_direction(net, 0, 0, normalize), weights_of(net)
    own = {name: own[name] for name in direction}

    def length(tensors: dict[str, Tensor]) -> Tensor:
        return torch.stack([each.norm() for each in tensors.values()])

    assert torch.allclose(length(direction), length(own), rtol=1e-5) == (same == "tensor")
    assert torch.allclose(length(direction).norm(), length(own).norm(), rtol=1e-5) == (
        same in ("tensor", "all")
    )
    if same == "neither":
        raw = torch.cat([each.flatten() for each in direction.values()])
        assert float(raw.std()) == pytest.approx(1, abs=0.1)


def test_one_dimensional_parameters_are_scaled_as_blocks_never_each_number() -> None:
    net = SmallNet()
    direction = random_direction(net, 0, 0, one_d="block")
    values = direction["body.1.weight"]
    assert float(values.norm()) == pytest.approx(float(net.body[1].weight.detach().norm()))
    assert float(values.abs().std()) > 0.1  # all ones would be signs alone


def test_a_frozen_part_changes_no_other_tensor() -> None:
    net = SmallNet()
    whole = random_direction(net, 0, 0)
    net.body[3].weight.requires_grad_(False)
    part = random_direction(net, 0, 0)
    assert set(whole) - set(part) == {"body.3.weight"}
    assert all(torch.equal(values, whole[name]) for name, values in part.items())
    other = random_direction(net, 0, 1)
    assert not torch.equal(other["head.weight"], whole["head.weight"])


def test_the_way_to_another_model_ends_at_it() -> None:
    first, second = SmallNet(), SmallNet()
    centre, aim = weights_of(first), weights_of(second)
    move_(first, centre, [1.0], [way_to(centre, aim)])
    assert all(torch.allclose(values, aim[name], atol=1e-6) for name, values in weights_of(first).items())
    move_(first, centre, [0.0], [way_to(centre, aim)])
    assert all(torch.equal(values, centre[name]) for name, values in weights_of(first).items())


def test_weights_times_four_before_batch_norm_leave_the_filter_curve_as_it_is() -> None:
    net, inputs, labels = trained_net()
    evaluate = Evaluator(net, inputs, labels, "reestimate", 400)

    def curve(normalize: Normalization, extent: float) -> list[float]:
        with restored(net):
            centre, direction = weights_of(net), random_direction(net, 0, 0, normalize)
            losses = []
            for step in (-extent, 0, extent):
                move_(net, centre, [step], [direction])
                losses.append(evaluate.at().loss)
        return losses

    before, raw_before = curve("filter", 0.4), curve("none", 0.1)
    with torch.no_grad():
        for number in (0, 3, 6):
            net.body[number].weight.mul_(4)
            net.body[number + 1].eps *= 16  # else the function itself changes a little
    after, raw_after = curve("filter", 0.4), curve("none", 0.1)
    assert after == pytest.approx(before, rel=1e-4)
    assert raw_after[1] == pytest.approx(raw_before[1], rel=1e-4)
    assert raw_before[2] - raw_before[1] > 2 * (raw_after[2] - raw_after[1])


def test_no_random_direction_bends_the_loss_as_the_sharpest_two_do() -> None:
    net, inputs, labels = trained_net(steps=40)
    torch.manual_seed(0)
    named = list(net.named_parameters())
    loss = torch.nn.functional.cross_entropy(net(inputs).double(), labels)
    slopes = torch.autograd.grad(loss, [each for _, each in named], create_graph=True)

    def bend(direction: dict[str, Tensor]) -> float:
        """dᵀ H d / dᵀ d."""
        along = [direction.get(name, torch.zeros_like(each)) for name, each in named]
        product = torch.autograd.grad(slopes, [each for _, each in named], along, retain_graph=True)
        inner = sum(float((one.double() * other).sum()) for one, other in zip(product, along, strict=True))
        return inner / sum(float(each.double().square().sum()) for each in along)

    first, second = sharpest_directions(net, inputs, labels, 0)
    random = [bend(random_direction(net, 0, number)) for number in range(3)]
    assert bend(first) > bend(second) > 3 * max(random)
    size = sum(float(each.double().square().sum()) for each in first.values())
    own = sum(float(each.detach().double().square().sum()) for _, each in named if each.ndim > 1)
    assert size == pytest.approx(own, rel=1e-5)  # as long as a random direction
