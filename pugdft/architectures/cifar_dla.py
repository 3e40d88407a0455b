"""Deep layer aggregation for 32 px (arXiv 1707.06484), in the full version of the public CIFAR code."""

from __future__ import annotations

from typing import Any

import torch
from timm.models import generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, downsample_conv
from torch import Tensor, nn

from pugdft.architectures.frame import Init, SmallImageNet, check_whole, config, create


def _block(in_channels: int, channels: int, stride: int) -> BasicBlock:
    project = None
    if stride > 1 or in_channels != channels:
        project = downsample_conv(in_channels, channels, kernel_size=1, stride=stride)
    return BasicBlock(in_channels, channels, stride, project)


def _convolution(in_channels: int, channels: int, size: int = 3) -> nn.Sequential:
    layer = nn.Conv2d(in_channels, channels, size, padding=size // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


class AggregationTree(nn.Module):
    """Two residual blocks whose outputs a 1 × 1 convolution joins; at level 2 behind a tree of level 1.

    At level 2, the same convolution also joins that tree's output and those of a block beside it.
    """

    def __init__(self, in_channels: int, channels: int, level: int, stride: int) -> None:
        super().__init__()
        self.beside = self.subtree = None
        if level == 2:
            self.beside = _block(in_channels, channels, stride)
            self.subtree = AggregationTree(in_channels, channels, 1, stride)
            in_channels, stride = channels, 1
        self.left = _block(in_channels, channels, stride)
        self.right = _block(channels, channels, 1)
        self.root = _convolution(2 * level * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        joined = []
        if self.beside is not None and self.subtree is not None:
            joined = [self.beside(x), self.subtree(x)]
            x = joined[-1]
        left = self.left(x)
        result: Tensor = self.root(torch.cat([*joined, left, self.right(left)], 1))
        return result


class CifarDla(SmallImageNet):
    """Three convolutions and four trees; the last tree has 32 times the first convolution's ``width``."""

    num_stages = 4

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        width: int = 16,
        init: Init = "torch",
        drop_rate: float = 0.0,
        global_pool: str = "avg",
    ) -> None:
        super().__init__()
        check_whole("width", width)
        self.stem = nn.Sequential(
            _convolution(in_chans, width), _convolution(width, width), _convolution(width, 2 * width)
        )
        widths = [width * factor for factor in (2, 4, 8, 16, 32)]
        trees = zip(widths, widths[1:], (1, 2, 2, 1), (1, 2, 2, 2), strict=False)
        self.stages, self.norm = nn.Sequential(*(AggregationTree(*each) for each in trees)), nn.Identity()
        self.finish(widths[1:], [1, 2, 4, 8], num_classes, init, drop_rate, global_pool)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Tell timm's layer decay which parameters make a layer: a tree is one."""
        return super().group_matcher(coarse=True)


default_cfgs = generate_default_cfgs({"cifar_dla": config("stem.0.0", "head.fc")})


@register_model
def cifar_dla(pretrained: bool = False, **options: Any) -> nn.Module:
    """DLA of SAM-GNS's Table 2 (arXiv 2110.00199v1); 16,291,386 parameters for 10 classes.

    timm's dla34 is another network.
    """
    return create(CifarDla, "cifar_dla", pretrained, **options)
