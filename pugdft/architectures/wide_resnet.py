"""Wide ResNets for 32 px (arXiv 1605.07146) with either of the two published kinds of shortcut."""

from __future__ import annotations

from typing import Any, Literal

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional

from pugdft.architectures.frame import Init, SmallImageNet, check_whole, config, create

Shortcut = Literal["conv", "pad"]


class WideBlock(nn.Module):
    """x → BN-ReLU-conv-BN-ReLU-conv plus a shortcut, which is x itself where the shape stays.

    Where channels change, ``conv`` projects BN-ReLU(x), and ``pad`` averages pixels and appends zeros to x.
    With ``shares``, the shortcut begins at BN-ReLU(x) in any case.
    """

    def __init__(
        self, in_channels: int, channels: int, stride: int, shortcut: Shortcut, shares: bool = False
    ) -> None:
        super().__init__()
        self.stride, self.added = stride, channels - in_channels
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.project = None
        if shortcut == "conv" and self.added:
            self.project = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
        self.shares = shares or self.project is not None

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.norm1(x), inplace=True)
        x = y if self.shares else x
        y = self.conv2(functional.relu(self.norm2(self.conv1(y)), inplace=True))
        if self.project is not None:
            return y + self.project(x)
        if self.stride > 1:
            x = functional.avg_pool2d(x, self.stride, ceil_mode=True)  # as a convolution with padding
        return y + (functional.pad(x, (0, 0, 0, 0, 0, self.added)) if self.added else x)


class WideResNet(SmallImageNet):
    """WRN-``depth``-``width``: a convolution of 16 channels, three stages of 16, 32, 64 times ``width``."""

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        depth: int = 28,
        width: int = 10,
        shortcut: Shortcut = "conv",
        init: Init = "he",
        drop_rate: float = 0.0,
        global_pool: str = "avg",
    ) -> None:
        super().__init__()
        check_whole("depth", depth, least=10)
        if (depth - 4) % 6:
            raise ValueError(f"depth: {depth} is not 6n + 4, such as 28 (n blocks a stage)")
        check_whole("width", width)
        if shortcut not in ("conv", "pad"):
            raise ValueError(f'shortcut: "{shortcut}" is neither conv nor pad')
        self.stem = nn.Conv2d(in_chans, 16, 3, padding=1, bias=False)
        widths, before, stages = [16 * width, 32 * width, 64 * width], 16, []
        for number, own in enumerate(widths):
            shares = shortcut == "pad" and not number
            first = WideBlock(before, own, 2 if number else 1, shortcut, shares)
            others = [WideBlock(own, own, 1, shortcut) for _ in range((depth - 4) // 6 - 1)]
            stages.append(nn.Sequential(first, *others))
            before = own
        self.stages = nn.Sequential(*stages)
        self.norm = nn.Sequential(nn.BatchNorm2d(before), nn.ReLU(inplace=True))
        self.finish(widths, [1, 2, 4], num_classes, init, drop_rate, global_pool)


default_cfgs = generate_default_cfgs(
    dict.fromkeys(("cifar_wrn28_10", "cifar_wrn28_10_pad"), config("stem", "head.fc"))
)


@register_model
def cifar_wrn28_10(pretrained: bool = False, **options: Any) -> nn.Module:
    """WRN-28-10 of its paper (arXiv 1605.07146): shortcuts of 1 × 1; 36,479,194 parameters for 10 classes."""
    return create(WideResNet, "cifar_wrn28_10", pretrained, **options)


@register_model
def cifar_wrn28_10_pad(pretrained: bool = False, **options: Any) -> nn.Module:
    """WRN-28-10 of the gradient-norm penalty's Table 1 (arXiv 2202.03599) and of SAM's code.

    Shortcuts have no parameters: 36,220,634 for 10 classes.
    """
    return create(WideResNet, "cifar_wrn28_10_pad", pretrained, **{"shortcut": "pad", **options})
