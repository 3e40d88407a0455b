"""Shake-Shake residual networks for 32 px (arXiv 1705.07485): two branches a block, mixed at random."""

from __future__ import annotations

from typing import Any

import torch
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional

from pugdft.architectures.frame import Init, SmallImageNet, check_switch, check_whole, config, create
from pugdft.architectures.shake import ShakeShake


class ShakeShortcut(nn.Module):
    """Two 1 × 1 convolutions to half the channels each, one of the map moved by a pixel up and left."""

    def __init__(self, channels: int, width: int, stride: int, relu: bool) -> None:
        super().__init__()
        self.stride, self.relu = stride, nn.ReLU() if relu else nn.Identity()
        self.straight = nn.Conv2d(channels, width // 2, 1, bias=False)
        self.moved = nn.Conv2d(channels, width // 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, maps: Tensor) -> Tensor:
        maps, stride = self.relu(maps), self.stride
        moved = functional.pad(maps, (-1, 1, -1, 1))  # zeros enter
        halves = self.straight(maps[..., ::stride, ::stride]), self.moved(moved[..., ::stride, ::stride])
        return self.norm(torch.cat(halves, 1))


class ShakeBlock(nn.Module):
    """Shake-Shake of two branches, plus the shortcut."""

    def __init__(self, channels: int, width: int, stride: int, shortcut_relu: bool) -> None:
        super().__init__()
        self.left, self.right = (_branch(channels, width, stride) for _ in range(2))
        self.shake = ShakeShake()
        is_same = channels == width and stride == 1
        self.shortcut = nn.Identity() if is_same else ShakeShortcut(channels, width, stride, shortcut_relu)

    def forward(self, maps: Tensor) -> Tensor:
        return self.shake(self.left(maps), self.right(maps)) + self.shortcut(maps)


def _branch(channels: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(channels, width, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
    )


class ShakeResNet(SmallImageNet):
    """Shake-Shake ``depth`` 2 × ``width`` d: a stem of 16 channels, three stages of width · (1, 2, 4).

    The first blocks of the second and third stage halve the map. As in the code of SAM and GNP
    (arXiv 2010.01412, 2202.03599), the shortcuts that change channels begin without a ReLU;
    ``shortcut_relu`` adds one, as in the paper's own code.

    Raises:
        ValueError: ``depth`` is not 6n + 2 (n blocks a stage), or ``width`` is not even.
    """

    def __init__(
        self,
        depth: int = 26,
        width: int = 96,
        shortcut_relu: bool = False,
        num_classes: int = 10,
        in_chans: int = 3,
        init: Init = "he",
        **options: Any,
    ) -> None:
        if not isinstance(depth, int) or depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth: {depth} is not 6n + 2, such as 26")
        check_switch("shortcut_relu", shortcut_relu)
        check_whole("width", width, least=2, multiple_of=2)
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_chans, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))
        stages, channels = [], 16
        widths = [width * 2**stage for stage in range(3)]
        for stage, stage_width in enumerate(widths):
            blocks = []
            for number in range((depth - 2) // 6):
                stride = 2 if stage and number == 0 else 1
                blocks.append(ShakeBlock(channels, stage_width, stride, shortcut_relu))
                channels = stage_width
            stages.append(nn.Sequential(*blocks))
        self.stages, self.norm = nn.Sequential(*stages), nn.ReLU()
        self.finish(widths, [1, 2, 4], num_classes, init, **options)


default_cfgs = generate_default_cfgs({"cifar_shake26_2x96d": config("stem.0", "head.fc")})


@register_model
def cifar_shake26_2x96d(pretrained: bool = False, **options: Any) -> nn.Module:
    """Shake-Shake 26 2×96d, "WRN-SS 2×96" of GNP's Table 1; 26,192,922 parameters for 10 classes."""
    return create(ShakeResNet, "cifar_shake26_2x96d", pretrained, **{"depth": 26, "width": 96, **options})
