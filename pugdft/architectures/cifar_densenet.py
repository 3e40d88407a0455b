"""DenseNet-121 for 32 px (arXiv 1608.06993): timm's, with one 3 × 3 convolution of stride 1 as its stem."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from timm.models import checkpoint, generate_default_cfgs, register_model
from timm.models.densenet import DenseBlock, DenseLayer, DenseNet
from torch import Tensor, nn
from torch.nn import functional

from pugdft.architectures.frame import Init, check_whole, config, create, initialise


def _grown(layer: DenseLayer, x: Tensor) -> Tensor:
    """Append what a layer makes of all channels so far."""
    new = layer.conv2(layer.norm2(layer.conv1(layer.norm1(x))))
    if layer.drop_rate:
        new = functional.dropout(new, layer.drop_rate, layer.training)
    return torch.cat([x, new], 1)


class GrowingBlock(nn.Sequential):
    """timm's layers, which append to one growing tensor.

    timm's own block keeps the parts apart and joins all of them for each layer, so the gradient of a part
    sums over all later layers: a quarter more calls of torch's operators in an update of DenseNet-121.
    """

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = checkpoint(_grown, layer, x) if layer.grad_checkpointing else _grown(layer, x)
        return x


class CifarDenseNet(DenseNet):
    """timm's DenseNet with a stem for small images, to which no BatchNorm belongs; ``growth_rate`` is k.

    The public CIFAR code of PUGD (arXiv 2110.00199) has the same network and torch's default initialisation.
    """

    feature_info: list[dict[str, Any]]
    features: nn.Sequential

    def __init__(self, *args: Any, growth_rate: int = 32, init: Init = "torch", **options: Any) -> None:
        check_whole("growth_rate", growth_rate)
        if options.get("stem_type") or options.get("aa_layer"):
            raise ValueError("stem_type and aa_layer change a stem that this network does not have")
        super().__init__(*args, growth_rate=growth_rate, **options)
        in_channels = options.get("in_chans", 3)
        self.features.conv0 = nn.Conv2d(in_channels, 2 * growth_rate, 3, padding=1, bias=False)
        del self.features.norm0, self.features.pool0
        for name, block in self.features.named_children():
            if isinstance(block, DenseBlock):
                setattr(self.features, name, GrowingBlock(OrderedDict(block.items())))
        self.feature_info[0]["module"] = "features.conv0"
        for row in self.feature_info:
            row["reduction"] = max(1, row["reduction"] // 4)
        names = [f"features.{name}" for name, _ in self.features.named_children()]
        self.feature_ends = [names.index(row["module"]) for row in self.feature_info]
        initialise(self, init)


default_cfgs = generate_default_cfgs(
    {
        "cifar_densenet121": config("features.conv0", "classifier"),
        "cifar_densenet121_k16": config("features.conv0", "classifier"),
    }
)


def _create(name: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    maps = {"flatten_sequential": True}  # as for timm's own
    return create(CifarDenseNet, name, pretrained, feature_cfg=maps, **options)


@register_model
def cifar_densenet121(pretrained: bool = False, **options: Any) -> nn.Module:
    """DenseNet-121 of SAM-GNS's Table 2 (arXiv 2110.00199v1), k = 32; 6,956,298 parameters for 10 classes."""
    return _create("cifar_densenet121", pretrained, {"growth_rate": 32, **options})


@register_model
def cifar_densenet121_k16(pretrained: bool = False, **options: Any) -> nn.Module:
    """DenseNet-121 of PUGD's Tables IV and V (arXiv 2110.00199), k = 16; 1,762,954 parameters, 10 classes."""
    return _create("cifar_densenet121_k16", pretrained, {"growth_rate": 16, **options})
