"""Two small trained networks with curved losses, on images that need no file, and their exact Hessians."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from pugdft.analysis.objective import LossPart, Objective

NUM_CLASSES = 10


def images(count: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Noisy copies of ten patterns of 8 × 8 pixels, (count, 1, 8, 8), and their classes.

    As in photographs, few directions have most of the variance.
    """
    fixed, generator = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    patterns = torch.randn(NUM_CLASSES, 64, generator=fixed)
    mixing = torch.randn(64, 64, generator=fixed) * (4 / (1 + torch.arange(64)))[:, None]
    labels = torch.arange(count) % NUM_CLASSES
    pixels = patterns[labels] + torch.randn(count, 64, generator=generator) @ mixing
    return pixels.view(count, 1, 8, 8), labels


def mlp() -> nn.Module:
    """64-10-10 with tanh: 760 parameters."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Tanh(), nn.Linear(10, NUM_CLASSES))


def convnet(channels: int = 4) -> nn.Module:
    """Three convolutions, each with BatchNorm and a ReLU."""
    layers: list[nn.Module] = []
    for before, stride in ((1, 1), (channels, 2), (channels, 2)):
        layers += [nn.Conv2d(before, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, NUM_CLASSES))


BUILDERS: dict[str, Callable[[], nn.Module]] = {"mlp": mlp, "convnet": convnet}


@cache
def _trained(name: str, updates: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model, (inputs, labels) = BUILDERS[name](), images(200)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(updates):
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return {key: value.clone() for key, value in model.state_dict().items()}


def trained(name: str, dtype: torch.dtype = torch.float32, updates: int = 150) -> nn.Module:
    """A network of ``BUILDERS`` after some updates, in evaluation mode."""
    model = BUILDERS[name]()
    model.load_state_dict(_trained(name, updates))
    return model.eval().to(dtype)


def objective(model: nn.Module, count: int = 100, parts: int = 1, keeps_graphs: bool = True) -> Objective:
    """The mean cross-entropy of a model on images, in equal parts."""
    inputs, labels = images(count)
    inputs = inputs.to(next(model.parameters()).dtype)

    def loss_of(part: slice) -> Callable[[], Tensor]:
        return lambda: functional.cross_entropy(model(inputs[part]), labels[part])

    size = count // parts
    slices = [slice(start, start + size) for start in range(0, count, size)]
    return Objective(
        [LossPart(loss_of(part), 1 / parts) for part in slices], list(model.parameters()), keeps_graphs
    )


@cache
def exact_hessian(name: str) -> Tensor:
    """The Hessian of the same loss in fp64, (D, D): each row is the gradient of one entry of the gradient."""
    model, (inputs, labels) = trained(name, torch.float64), images(100)
    parameters = list(model.parameters())
    loss = functional.cross_entropy(model(inputs.double()), labels)
    entries = torch.cat([each.flatten() for each in torch.autograd.grad(loss, parameters, create_graph=True)])
    rows = [torch.autograd.grad(entry, parameters, retain_graph=True) for entry in entries]
    return torch.stack([torch.cat([each.flatten() for each in row]) for row in rows])
