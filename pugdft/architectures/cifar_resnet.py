"""ResNets for 32 px (arXiv 1512.03385): timm's, with a 3 × 3 stem of stride 1 and no pool behind it."""

from __future__ import annotations

from typing import Any

from timm.models import generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from pugdft.architectures.frame import Init, config, create, initialise


class CifarResNet(ResNet):
    """timm's ResNet with a stem for small images; ``width`` (even) is that of stem and first stage.

    The public CIFAR code of PUGD (arXiv 2110.00199) has the same network and torch's default initialisation.
    """

    feature_info: list[dict[str, Any]]

    def __init__(self, *args: Any, width: int = 64, init: Init = "torch", **options: Any) -> None:
        if width < 2 or width % 2:
            raise ValueError(f"width: {width} is no even number from 2 on")
        # Of timm's stems, this one alone lets the first stage begin with another width than 64.
        super().__init__(
            *args,
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


default_cfgs = generate_default_cfgs(
    dict.fromkeys(("cifar_resnet18", "cifar_resnet50"), config("conv1", "fc"))
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
