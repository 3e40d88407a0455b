"""UPANets (Tseng and others, Entropy 24(9):1243, 2022), networks with pixel attention by PUGD's authors."""

from __future__ import annotations

from typing import Any, Literal

import torch
from timm.layers import ClassifierHead, to_2tuple
from timm.models import checkpoint, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional

from pugdft.architectures.frame import Init, SmallImageNet, check_whole, config, create

Kind = Literal["first", "down", "append", "plain"]


class PixelLinear(nn.Sequential):
    """A linear layer over the channels, the same at each pixel, and BatchNorm."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__(nn.Conv2d(in_channels, channels, 1), nn.BatchNorm2d(channels))


class PixelAttentionBlock(nn.Module):
    """y = LN(convolutions(x) + pixels(x)), LN over channels and pixels without parameters.

    ``first`` and ``down`` add a second pixel-wise layer of x; ``down`` then averages 2 × 2 pixels;
    ``append`` returns the channels of x and y together; ``plain`` returns y.
    """

    def __init__(self, in_channels: int, channels: int, kind: Kind, hidden: int) -> None:
        super().__init__()
        self.kind = kind
        self.convolutions = nn.Sequential(
            nn.Conv2d(in_channels, hidden, 3, padding=1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )
        self.pixels = PixelLinear(in_channels, channels)
        self.shortcut = PixelLinear(in_channels, channels) if kind in ("first", "down") else None

    def forward(self, x: Tensor) -> Tensor:
        # One group of all channels is this layer norm, and keeps the memory format.
        y = functional.group_norm(self.convolutions(x) + self.pixels(x), 1)
        if self.shortcut is not None:
            y = y + self.shortcut(x)
        if self.kind == "down":
            y = functional.avg_pool2d(y, 2)
        return torch.cat([x, y], 1) if self.kind == "append" else y


class PixelSummary(nn.Module):
    """A map to a vector: each channel's mean plus a linear layer over its pixels, then LN."""

    def __init__(self, num_pixels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(num_pixels, 1)

    def forward(self, maps: Tensor) -> Tensor:
        # The mean is a linear layer of weights 1/pixels, so one product gives both.
        weight = self.linear.weight + 1 / self.linear.in_features
        vector = functional.linear(maps.flatten(2), weight, self.linear.bias).squeeze(2)
        return functional.layer_norm(vector, vector.shape[1:])


class UPANet(SmallImageNet):
    """Four stages of a block of ``width`` · 2^k channels and four blocks that append a quarter of that each.

    The head sees summaries of the stem's and of all four stages' maps, 31 · ``width`` values. So the image's
    size is fixed by ``img_size``, at least 8 pixels a side, when the model is built.
    Its BatchNorm cannot train on a batch of one image.
    """

    num_stages = 4

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        img_size: int | tuple[int, int] = 32,
        width: int = 16,
        init: Init = "torch",
        drop_rate: float = 0.0,
        global_pool: str = "avg",
    ) -> None:
        super().__init__()
        self.img_size: tuple[int, int] = to_2tuple(img_size)
        check_whole("width", width, least=4, multiple_of=4)
        if min(self.img_size) < 8:
            raise ValueError("three stages halve the image: at least 8 pixels a side are needed")
        self.stem = PixelAttentionBlock(in_chans, width, "first", 2 * width)
        channels, reductions, stages = [width], [1, 1, 2, 4, 8], []
        for number in range(4):
            own = width * 2**number
            blocks = [PixelAttentionBlock(channels[-1], own, "down" if number else "first", 2 * own)]
            for each in range(4):
                blocks.append(PixelAttentionBlock(own + each * own // 4, own // 4, "append", own // 2))
            stages.append(nn.Sequential(*blocks))
            channels.append(2 * own)
        self.stages, self.norm = nn.Sequential(*stages), nn.BatchNorm2d(sum(channels))
        height, breadth = self.img_size
        self.summaries = nn.ModuleList(
            PixelSummary((height // each) * (breadth // each)) for each in reductions
        )
        head = ClassifierHead(sum(channels), num_classes, global_pool, drop_rate)  # of one pixel
        self.finish(channels[1:], reductions[1:], num_classes, init, head=head)
        self.num_features = sum(channels)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return all summaries, the deepest first, as a map of one pixel: (batch, 31 · width, 1, 1)."""
        if images.shape[-2:] != self.img_size:
            given, own = ("×".join(map(str, size)) for size in (images.shape[-2:], self.img_size))
            raise ValueError(f"images of {given} pixels do not fit a model built for img_size {own}")
        maps = [self.stem(images)]
        for stage in self.stages:
            maps.append(checkpoint(stage, maps[-1]) if self.grad_checkpointing else stage(maps[-1]))
        vectors = [summary(each) for summary, each in zip(self.summaries, maps, strict=True)]
        return self.norm(torch.cat(vectors[::-1], 1)[..., None, None])


default_cfgs = generate_default_cfgs(
    dict.fromkeys(
        ("cifar_upanet16", "cifar_upanet64"), config("stem.convolutions.0", "head.fc", fixed_input_size=True)
    )
)


@register_model
def cifar_upanet16(pretrained: bool = False, **options: Any) -> nn.Module:
    """UPANet16 of PUGD's Tables IV and V (arXiv 2110.00199); 1,512,431 parameters for 10 classes at 32 px."""
    return create(UPANet, "cifar_upanet16", pretrained, **{"width": 16, **options})


@register_model
def cifar_upanet64(pretrained: bool = False, **options: Any) -> nn.Module:
    """UPANet64 of SAM-GNS's Table 3 (arXiv 2110.00199v1); 24,195,833 parameters for 100 classes at 32 px.

    That is the size of the published code; the paper prints 23.59 million and does not say why.
    """
    return create(UPANet, "cifar_upanet64", pretrained, **{"width": 64, **options})
