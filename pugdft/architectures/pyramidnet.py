"""PyramidNets for 32 px (arXiv 1610.02915) with ShakeDrop: every block is a little wider than the last."""

from __future__ import annotations

from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional

from pugdft.architectures.frame import Init, SmallImageNet, check_number, check_switch, config, create
from pugdft.architectures.shake import ShakeDrop

_EXPANSION = 4


class PyramidBlock(nn.Module):
    """A branch without a ReLU at its start, shaken, plus the input with channels of zeros appended."""

    def __init__(self, channels: int, width: int, stride: int, bottleneck: bool, keep: float) -> None:
        super().__init__()
        outputs = width * _EXPANSION if bottleneck else width
        if bottleneck:
            layers: list[nn.Module] = [
                nn.Conv2d(channels, width, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Conv2d(width, width, 3, stride, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Conv2d(width, outputs, 1, bias=False),
            ]
        else:
            layers = [
                nn.Conv2d(channels, width, 3, stride, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Conv2d(width, width, 3, padding=1, bias=False),
            ]
        self.branch = nn.Sequential(nn.BatchNorm2d(channels), *layers, nn.BatchNorm2d(outputs))
        self.shake = ShakeDrop(keep) if keep < 1 else nn.Identity()
        # Odd maps too halve as the strided convolution does: a mean over the pixels that there are.
        pool = nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)
        self.pool = pool if stride == 2 else nn.Identity()
        self.num_added, self.outputs = outputs - channels, outputs

    def forward(self, maps: Tensor) -> Tensor:
        shortcut = functional.pad(self.pool(maps), (0, 0, 0, 0, 0, self.num_added))
        return self.shake(self.branch(maps)) + shortcut


class PyramidNet(SmallImageNet):
    """PyramidNet of ``depth`` and widening ``alpha``: block l of N has round(16 + l·alpha/N) channels.

    ``bottleneck`` blocks give four times as many. The first blocks of the second and third stage halve the
    map. The l-th block is kept by ShakeDrop with probability 1 − l/N · ``shake_drop_rate``: with the
    default .5 (arXiv 1802.02375) the last block is kept half the time; 0 is the network without ShakeDrop.

    Raises:
        ValueError: ``depth`` is not 9n + 2 (6n + 2 without ``bottleneck``; n blocks a stage), ``alpha`` is
            negative, or ``shake_drop_rate`` is not in 0..1.
    """

    def __init__(
        self,
        depth: int = 164,
        alpha: float = 48,
        bottleneck: bool = True,
        shake_drop_rate: float = 0.5,
        num_classes: int = 10,
        in_chans: int = 3,
        init: Init = "he",
        **options: Any,
    ) -> None:
        check_switch("bottleneck", bottleneck)
        layers = 9 if bottleneck else 6
        if not isinstance(depth, int) or depth < layers + 2 or (depth - 2) % layers:
            raise ValueError(f"depth: {depth} is not {layers}n + 2, such as {18 * layers + 2}")
        check_number("alpha", alpha, 0)
        check_number("shake_drop_rate", shake_drop_rate, 0, 1)
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_chans, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))
        num_blocks = (depth - 2) // layers * 3
        stages, widths, channels, width = [], [], 16, 16.0
        for stage in range(3):
            blocks = []
            for number in range(num_blocks // 3):
                # Added up, as the authors do: the sum's rounding decides where the product ends in .5.
                width += alpha / num_blocks
                keep = 1 - (stage * num_blocks // 3 + number + 1) / num_blocks * shake_drop_rate
                stride = 2 if stage and number == 0 else 1
                blocks.append(PyramidBlock(channels, round(width), stride, bottleneck, keep))
                channels = blocks[-1].outputs
            stages.append(nn.Sequential(*blocks))
            widths.append(channels)
        self.stages = nn.Sequential(*stages)
        self.norm = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())
        self.finish(widths, [1, 2, 4], num_classes, init, **options)


default_cfgs = generate_default_cfgs(
    dict.fromkeys(("cifar_pyramidnet164_a48", "cifar_pyramidnet272_a200"), config("stem.0", "head.fc"))
)


@register_model
def cifar_pyramidnet164_a48(pretrained: bool = False, **options: Any) -> nn.Module:
    """PyramidNet-164, alpha 48, the size that GNP's Table 1 names; 1,715,442 parameters for 10 classes."""
    return create(PyramidNet, "cifar_pyramidnet164_a48", pretrained, **{"depth": 164, "alpha": 48, **options})


@register_model
def cifar_pyramidnet272_a200(pretrained: bool = False, **options: Any) -> nn.Module:
    """PyramidNet-272, alpha 200, of the ShakeDrop and SAM papers; 26,210,842 parameters for 10 classes."""
    return create(
        PyramidNet, "cifar_pyramidnet272_a200", pretrained, **{"depth": 272, "alpha": 200, **options}
    )
