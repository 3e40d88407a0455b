"""Small runs for the tests of analyses: a convolutional net with BatchNorm, and its images."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pugdft.training.run import finetune, read_recipe


def batch_norm_recipe(images: Path, optimizer: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    """A run of seconds: a small ResNet from random weights, on images of 32 pixels."""
    return {
        "model": {"name": "test_resnet", "pretrained": False},
        "data": {"name": str(images), "image_size": 32},
        "optimizer": optimizer,
        "train": {"epochs": 4, "batch_size": 24, "seed": seed},
    }


SGD = {"name": "sgd", "lr": 0.05, "momentum": 0.9}


def trained_run(
    folder: Path, images: Path, optimizer: dict[str, Any] = SGD, seed: int = 0, **train: Any
) -> Path:
    """The folder of a completed run."""
    recipe = batch_norm_recipe(images, optimizer, seed)
    recipe["train"] |= train
    record, path = finetune(read_recipe(recipe), folder)
    assert record.status == "completed", record.error
    return path.parent


class SmallNet(nn.Module):
    """Three convolutions, each with BatchNorm, and a linear head: 8 × 8 grey images to 10 classes."""

    def __init__(self, channels: int = 6) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number, width in enumerate((1, channels, channels)):
            layers += [nn.Conv2d(width, channels, 3, stride=1 + number // 2, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(channels), nn.ReLU()]
        self.body, self.head = nn.Sequential(*layers), nn.Linear(channels, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.body(inputs).mean((2, 3)))  # type: ignore[no-any-return]


def blobs(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images of ten classes, each a fixed pattern under noise: float32, (count, 1, 8, 8), and labels."""
    random = torch.Generator().manual_seed(0)
    patterns = torch.randn(10, 1, 8, 8, generator=random)
    random.manual_seed(seed + 1)
    labels = torch.arange(count) % 10
    return patterns[labels] + 0.6 * torch.randn(count, 1, 8, 8, generator=random), labels


def trained_net(steps: int = 150, seed: int = 0) -> tuple[SmallNet, Tensor, Tensor]:
    """A small net after some steps of SGD, in evaluation mode, with its 400 images."""
    return copy.deepcopy(_trained_net(steps, seed))


@functools.cache
def _trained_net(steps: int, seed: int) -> tuple[SmallNet, Tensor, Tensor]:
    torch.manual_seed(seed)
    net, (inputs, labels) = SmallNet(), blobs(400)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    for step in range(steps):
        rows = torch.randperm(len(labels), generator=torch.Generator().manual_seed(step))[:100]
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(inputs[rows]), labels[rows]).backward()
        optimizer.step()
        schedule.step()
    return net.eval(), inputs, labels
