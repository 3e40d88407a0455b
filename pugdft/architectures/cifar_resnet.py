"""ResNets for 32 px (arXiv 1512.03385): timm's, with a 3 × 3 stem of stride 1 and no pool behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.models import generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from pugdft.architectures.frame import Init, SmallImageNet, check_whole, config, create, initialise
from pugdft.architectures.upanet import PixelAttentionBlock


class CifarResNet(ResNet):
    """timm's ResNet with a stem for small images; ``width`` (even) is that of stem and first stage.

    ``block`` is a class of timm's, ``layers`` the numbers of blocks in the four stages.

    The public CIFAR code of PUGD (arXiv 2110.00199) has the same network and torch's default initialisation.
    """

    feature_info: list[dict[str, Any]]

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        layers: Sequence[int],
        *,
        width: int = 64,
        init: Init = "torch",
        **options: Any,
    ) -> None:
        check_whole("width", width, least=2, multiple_of=2)
        if not isinstance(block, type):
            raise ValueError("block: is a class; cifar_resnet18 and cifar_resnet50 have one each")
        if not isinstance(layers, Sequence) or len(layers) != 4:
            raise ValueError(f"layers: {layers} are not four numbers of blocks, such as [2, 2, 2, 2]")
        for number in layers:
            check_whole("layers", number)
        for name in ("stem_type", "stem_width", "channels"):
            if name in options:
                raise ValueError(f"{name}: cannot be given: width decides the stem and the channels")
        # Of timm's stems, this one alone lets the first stage begin with another width than 64.
        super().__init__(
            block,
            layers,
            stem_type="deep",
            stem_width=width // 2,
            channels=tuple(width * 2**stage for stage in range(4)),
            **options,
        )
        self.conv1 = nn.Conv2d(options.get("in_chans", 3), width, 3, padding=1, bias=False)
        self.maxpool = nn.Identity()
        for row in self.feature_info:
            row["reduction"] = max(1, row["reduction"] // 4)
        initialise(self, init)


class CifarResNetCpa(SmallImageNet):
    """ResNet-18 whose blocks have pixel attention as their shortcut; ``width`` is that of the first stage."""

    num_stages = 4

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        width: int = 64,
        init: Init = "torch",
        drop_rate: float = 0.0,
        global_pool: str = "avg",
    ) -> None:
        super().__init__()
        check_whole("width", width)
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        widths, stages, before = [width * 2**stage for stage in range(4)], [], width
        for number, own in enumerate(widths):
            first = PixelAttentionBlock(before, own, "down" if number else "first", own)
            stages.append(nn.Sequential(first, PixelAttentionBlock(own, own, "plain", own)))
            before = own
        self.stages, self.norm = nn.Sequential(*stages), nn.Identity()
        self.finish(widths, [1, 2, 4, 8], num_classes, init, drop_rate, global_pool)


default_cfgs = generate_default_cfgs(
    {
        "cifar_resnet18": config("conv1", "fc"),
        "cifar_resnet50": config("conv1", "fc"),
        "cifar_resnet18_cpa": config("stem.0", "head.fc"),
    }
)


@register_model
def cifar_resnet18(pretrained: bool = False, **options: Any) -> nn.Module:
    """ResNet-18 of PUGD's Tables IV and V; 11,173,962 parameters for 10 classes."""
    return create(
        CifarResNet, "cifar_resnet18", pretrained, **{"block": BasicBlock, "layers": (2, 2, 2, 2), **options}
    )


@register_model
def cifar_resnet50(pretrained: bool = False, **options: Any) -> nn.Module:
    """ResNet-50 of SAM-GNS's Tables 2 and 3 (arXiv 2110.00199v1); 23,520,842 parameters for 10 classes."""
    return create(
        CifarResNet, "cifar_resnet50", pretrained, **{"block": Bottleneck, "layers": (3, 4, 6, 3), **options}
    )


@register_model
def cifar_resnet18_cpa(pretrained: bool = False, **options: Any) -> nn.Module:
    """ResNet-18 + CPA of SAM-GNS's Tables 2 and 3 (arXiv 2110.00199v1); 11,709,194 parameters, 10 classes.

    Warning: a reconstruction. No code of it was published, and the paper describes it by a name and a size,
    11.71 million. Two other readings come close to that size. Treat results as those of a similar network.
    """
    return create(CifarResNetCpa, "cifar_resnet18_cpa", pretrained, **options)
