"""Shake-Shake and PyramidNet: sizes, an independent float64 reference, equivalences, and runs of a recipe."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import write_image_folder
from small_runs import IMAGES, cut_run, differences, tiny_recipe, whole_run
from torch import Tensor, nn
from torch.nn import functional

from pugdft.architectures.pyramidnet import PyramidNet
from pugdft.architectures.shake import ShakeDrop
from pugdft.architectures.shake_resnet import ShakeResNet, ShakeShortcut

SHAKE, PYRAMID, LARGE = "cifar_shake26_2x96d", "cifar_pyramidnet164_a48", "cifar_pyramidnet272_a200"
SMALL: dict[str, dict[str, Any]] = {
    SHAKE: {"depth": 14, "width": 8},
    PYRAMID: {"depth": 29, "alpha": 12},
    LARGE: {"depth": 20, "alpha": 12, "bottleneck": False},
}


def build(name: str, **options: Any) -> Any:
    return timm.create_model(name, **{**SMALL[name], **options})


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# --- sizes -------------------------------------------------------------------------------------------------

BASIC = {"depth": 110, "bottleneck": False}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("side", [32, 64, 33])
def test_maps_halve_twice_at_even_and_odd_sizes(name: str, side: int) -> None:
    model = build(name)
    maps = model.forward_features(torch.zeros(2, 3, side, side))
    assert maps.shape == (2, model.num_features, -(-side // 4), -(-side // 4))
    assert model(torch.zeros(2, 3, side, side)).shape == (2, 10)
    features = timm.create_model(name, features_only=True, out_indices=(0, 1, 2), **SMALL[name])
    shapes = [tuple(each.shape[1:]) for each in features(torch.zeros(2, 3, side, side))]
    sides = [side, -(-side // 2), -(-side // 4)]
    assert shapes == [
        (channels, here, here) for channels, here in zip(features.feature_info.channels(), sides, strict=True)
    ]
    assert features.feature_info.reduction() == [1, 2, 4]


@pytest.mark.parametrize("name", SMALL)
def test_timm_s_tools_find_head_layers_and_dtype(name: str) -> None:
    model = build(name)
    model.reset_classifier(7)
    assert model.get_classifier().out_features == 7
    images = torch.rand(2, 3, 32, 32).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model.to(memory_format=torch.channels_last)(images)
    assert logits.shape == (2, 7)
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()
    logits.float().square().sum().backward()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in model.parameters())
    groups = timm.models.group_parameters(model, model.group_matcher())
    found = [parameter for names in groups.values() for parameter in names]
    assert sorted(found) == sorted(parameter for parameter, _ in model.named_parameters())
    assert len(groups) > 3


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (SHAKE, {"depth": 25}, r"depth: 25 is not 6n \+ 2"),
        (SHAKE, {"depth": 2}, r"depth: 2 is not 6n \+ 2"),
        (SHAKE, {"width": 5}, r"width: 5 is no multiple of 2 from 2 on"),
        (SHAKE, {"width": "wide"}, r'width: "wide" is no whole number from 2 on'),
        (PYRAMID, {"depth": 111}, r"depth: 111 is not 9n \+ 2, such as 164"),
        (PYRAMID, {"depth": 164.0}, r"depth: 164.0 is not 9n \+ 2, such as 164"),
        (PYRAMID, {"depth": 164 + 3, "bottleneck": False}, r"depth: 167 is not 6n \+ 2, such as 110"),
        (PYRAMID, {"alpha": -1}, r"alpha: -1 is no number from 0 on"),
        (PYRAMID, {"shake_drop_rate": 1.5}, r"shake_drop_rate: 1\.5 is not in 0\.\.1"),
    ],
    ids=str,
)
def test_impossible_sizes_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        timm.create_model(name, **options)


# --- an independent reference ------------------------------------------------------------------------------


class Reference:
    """The networks once more as plain functions, with another one's weights in the order of their layers."""

    def __init__(self, model: nn.Module) -> None:
        kinds = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)
        self.layers: Iterator[Any] = (each for each in model.modules() if isinstance(each, kinds))
        self.training = model.training

    def conv(self, x: Tensor, stride: int = 1) -> Tensor:
        weight = next(self.layers).weight
        return functional.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    def norm(self, x: Tensor) -> Tensor:
        layer, shape = next(self.layers), (1, -1, 1, 1)
        mean, variance = layer.running_mean, layer.running_var
        if self.training:
            mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        scaled = (x - mean.view(shape)) / (variance.view(shape) + 1e-5).sqrt()
        return scaled * layer.weight.view(shape) + layer.bias.view(shape)

    def head(self, x: Tensor) -> Tensor:
        layer = next(self.layers)
        return x.mean((2, 3)) @ layer.weight.T + layer.bias

    def draw(self, count: int, x: Tensor) -> Tensor:
        return torch.rand(count, len(x), 1, 1, 1, dtype=torch.float32).to(x.dtype)

    def shake(self, images: Tensor, depth: int, relu: bool = False) -> Tensor:
        x = self.norm(self.conv(images))
        for stage, block in itertools.product(range(3), range((depth - 2) // 6)):
            stride = 2 if stage > 0 and block == 0 else 1
            branches = [self.norm(self.conv(self.norm(self.conv(x.relu(), stride)).relu())) for _ in range(2)]
            alpha = self.draw(2, x)[0] if self.training else 0.5
            mixed = alpha * branches[0] + (1 - alpha) * branches[1]
            if block == 0:
                x = x.relu() if relu else x
                shifted = torch.zeros_like(x)
                shifted[:, :, :-1, :-1] = x[:, :, 1:, 1:]
                picked = [each[:, :, ::stride, ::stride] for each in (x, shifted)]
                x = self.norm(torch.cat([self.conv(each) for each in picked], 1))
            x = x + mixed
        return self.head(x.relu())

    def pyramid(self, images: Tensor, depth: int, bottleneck: bool, rate: float) -> Tensor:
        x = self.norm(self.conv(images))
        blocks = (depth - 2) // (3 if bottleneck else 2)
        for number in range(1, blocks + 1):
            stride = 2 if number in (blocks // 3 + 1, 2 * blocks // 3 + 1) else 1
            if bottleneck:
                y = self.norm(self.conv(self.norm(x))).relu()
                y = self.norm(self.conv(self.norm(self.conv(y, stride)).relu()))
            else:
                y = self.norm(self.conv(self.norm(self.conv(self.norm(x), stride)).relu()))
            keep = 1 - number / blocks * rate
            factor: Any = keep
            if self.training:
                gate, alpha, _ = self.draw(3, x)
                factor = torch.where(gate < keep, 1.0, 2 * alpha - 1)
            x = functional.avg_pool2d(x, 2) if stride == 2 else x
            x = torch.cat([x, x.new_zeros(len(x), y.shape[1] - x.shape[1], *x.shape[2:])], 1) + factor * y
        return self.head(self.norm(x).relu())


def filled(model: Any) -> Any:
    """Float64, with statistics of BatchNorm that differ from those at the start."""
    model = model.double()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor, least in ((layer.running_mean, -0.5), (layer.running_var, 0.5), (layer.weight, 0.5)):
                nn.init.uniform_(tensor, least, least + 1)
            nn.init.uniform_(layer.bias, -0.5, 0.5)
    return model


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("relu", [True, False])
def test_shake_shake_equals_a_reference_in_float64(training: bool, relu: bool) -> None:
    torch.manual_seed(0)
    model = filled(ShakeResNet(depth=14, width=6, shortcut_relu=relu)).train(training)
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    torch.manual_seed(1)
    expected = Reference(model).shake(images, 14, relu)
    torch.manual_seed(1)
    torch.testing.assert_close(model(images), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("bottleneck", [True, False])
def test_pyramidnet_equals_a_reference_in_float64(training: bool, bottleneck: bool) -> None:
    torch.manual_seed(0)
    depth = 29 if bottleneck else 20
    model = filled(PyramidNet(depth, alpha=10, bottleneck=bottleneck, shake_drop_rate=0.7)).train(training)
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    torch.manual_seed(1)
    expected = Reference(model).pyramid(images, depth, bottleneck, 0.7)
    torch.manual_seed(1)
    torch.testing.assert_close(model(images), expected, rtol=1e-11, atol=1e-11)


# --- equivalences ------------------------------------------------------------------------------------------


def result(model: nn.Module, training: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and gradients of a fixed batch."""
    model.train(training).zero_grad()
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    logits = model(images)
    logits.square().sum().backward()
    return logits, {
        name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None
    }


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("bottleneck", [True, False])
def test_a_pyramidnet_that_keeps_every_block_is_one_without_shake_drop(
    training: bool, bottleneck: bool
) -> None:
    torch.manual_seed(0)
    plain = PyramidNet(29 if bottleneck else 20, 12, bottleneck, shake_drop_rate=0)
    assert not any(isinstance(module, ShakeDrop) for module in plain.modules())
    logits, gradients = result(plain, training)
    for block in plain.stages.modules():
        if hasattr(block, "shake"):
            block.shake = ShakeDrop(keep=1.0)
    again, its_gradients = result(plain, training)
    assert torch.equal(logits, again)
    assert all(torch.equal(each, its_gradients[name]) for name, each in gradients.items())


class First(nn.Module):
    """In place of Shake-Shake: the first branch alone."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a


@pytest.mark.parametrize("training", [True, False])
def test_shake_shake_of_equal_branches_is_a_plain_residual_network(training: bool) -> None:
    torch.manual_seed(0)
    model = ShakeResNet(depth=14, width=6)
    blocks: list[Any] = [block for block in model.stages.modules() if hasattr(block, "shake")]
    for block in blocks:
        block.right.load_state_dict(block.left.state_dict())
    logits, gradients = result(model, training)
    for block in blocks:
        block.shake = First()
        block.right.load_state_dict(block.left.state_dict())
    plain, its_gradients = result(model, training)
    torch.testing.assert_close(logits, plain, rtol=1e-6, atol=1e-6)
    for name, gradient in its_gradients.items():
        other = gradients.get(name.replace(".left.", ".right."))
        total = gradients[name] + (other if ".left." in name and other is not None else 0)
        torch.testing.assert_close(total, gradient, rtol=1e-3, atol=1e-4)


def test_pyramidnet_widens_by_alpha_and_not_at_all_without_it() -> None:
    widths = {
        alpha: [
            each.out_channels
            for each in PyramidNet(29, alpha).stages.modules()
            if isinstance(each, nn.Conv2d) and each.kernel_size == (3, 3)
        ]
        for alpha in (0, 12)
    }
    assert widths[0] == [16] * 9
    assert widths[12] == [17, 19, 20, 21, 23, 24, 25, 27, 28]


def test_later_blocks_are_kept_less_often_down_to_half() -> None:
    keeps = [layer.keep for layer in PyramidNet(29, 12).modules() if isinstance(layer, ShakeDrop)]
    assert keeps == pytest.approx([1 - number / 18 for number in range(1, 10)])


def test_a_shortcut_s_second_half_sees_the_map_one_pixel_further() -> None:
    shortcut = ShakeShortcut(1, 2, 2, relu=False).eval()
    nn.init.ones_(shortcut.straight.weight)
    nn.init.ones_(shortcut.moved.weight)
    maps = torch.arange(16.0).view(1, 1, 4, 4)
    straight, moved = shortcut(maps)[0] * (1 + 1e-5) ** 0.5
    torch.testing.assert_close(straight, torch.tensor([[0.0, 2.0], [8.0, 10.0]]))
    torch.testing.assert_close(moved, torch.tensor([[5.0, 7.0], [13.0, 15.0]]))


@pytest.mark.parametrize("name", SMALL)
def test_evaluation_is_the_same_each_time_and_for_each_image_alone(name: str) -> None:
    torch.manual_seed(0)
    model, images = build(name).eval(), torch.rand(5, 3, 32, 32)
    together = model(images)
    assert torch.equal(together, model(images))
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)


# --- runs --------------------------------------------------------------------------------------------------

RUNS: dict[str, dict[str, Any]] = {SHAKE: {"depth": 8, "width": 4}, PYRAMID: {"depth": 11, "alpha": 6}}


def noisy_recipe(images: Path, name: str, method: str, **train: Any) -> dict[str, Any]:
    base = {"name": "sgd", "lr": 0.05, "momentum": 0.9}
    recipe = tiny_recipe(images, {"name": method, "base": base}, **train)
    recipe["model"] = {"name": name, "pretrained": False, "args": RUNS[name]}
    return recipe


@pytest.fixture(scope="module")
def insects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image_folder(tmp_path_factory.mktemp("tiny") / "insects", IMAGES)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method"), [(SHAKE, "gnp"), (PYRAMID, "pugd")])
def test_a_run_cut_in_the_middle_of_its_epochs_goes_on_to_the_same_bits(
    name: str, method: str, insects: Path, tmp_path: Path
) -> None:
    recipe = noisy_recipe(insects, name, method, micro_batch_size=4)
    whole = whole_run(recipe, tmp_path / "whole")
    assert differences(whole, cut_run(recipe, tmp_path / "cut", (2, 4))) == []


@pytest.mark.slow
@pytest.mark.parametrize(("name", "args"), [(SHAKE, SMALL[SHAKE]), (PYRAMID, SMALL[PYRAMID])], ids=str)
def test_a_noisy_network_learns_images_by_heart(name: str, args: dict[str, Any]) -> None:
    """Noise and small width keep it from all of them: the loss falls by a fifth at least, from ln 10."""
    torch.manual_seed(0)
    model, images = timm.create_model(name, **args), torch.randn(128, 3, 16, 16)
    labels = torch.randint(10, (128,))
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
    losses = []
    for update in range(60):
        part = slice(64 * (update % 2), 64 * (update % 2) + 64)
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(images[part]), labels[part])
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-4:]) / 4 < 0.8 * math.log(10)
