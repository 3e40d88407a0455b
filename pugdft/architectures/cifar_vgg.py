"""VGG16 for 32 px (arXiv 1409.1556) with one linear layer or three, with BatchNorm or without."""

from __future__ import annotations

from typing import Any

from timm.layers import ClassifierHead
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from pugdft.architectures.frame import Init, SmallImageNet, check_switch, check_whole, config, create


def _convolution(in_channels: int, channels: int, batch_norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(in_channels, channels, 3, padding=1)]  # with bias, as published
    layers += [nn.BatchNorm2d(channels)] if batch_norm else []
    return nn.Sequential(*layers, nn.ReLU(inplace=True))


class HiddenLayersHead(ClassifierHead):
    """The mean over the map, two hidden layers with ReLU and dropout, and a linear layer."""

    def __init__(
        self, in_features: int, hidden: int, num_classes: int, global_pool: str, drop_rate: float
    ) -> None:
        _check_pool(global_pool)
        super().__init__(hidden, num_classes, global_pool, drop_rate)
        self.hidden = nn.Sequential(
            nn.Linear(in_features, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(drop_rate),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
        )

    def reset(self, num_classes: int, pool_type: str | None = None) -> None:
        _check_pool(pool_type)
        super().reset(num_classes, pool_type)

    def forward(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        values: Tensor = self.drop(self.hidden(self.global_pool(maps)))
        return values if pre_logits else self.fc(values)


def _check_pool(name: str | None) -> None:
    if name in ("", "catavgmax"):
        raise ValueError(f'global_pool: "{name}" does not fit hidden layers; avg, max and avgmax do')


class CifarVgg(SmallImageNet):
    """Five stages of 2, 2, 3, 3, 3 convolutions, each with a max-pool behind; images of at least 32 px.

    ``width`` is that of the first stage; ``hidden`` that of the head's two hidden layers, 0 for none.
    """

    num_stages = 5

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        width: int = 64,
        hidden: int = 0,
        batch_norm: bool = True,
        init: Init = "torch",
        drop_rate: float = 0.0,
        global_pool: str = "avg",
    ) -> None:
        super().__init__()
        check_whole("width", width)
        check_whole("hidden", hidden, least=0)
        check_switch("batch_norm", batch_norm)
        widths, stages = [width * factor for factor in (1, 2, 4, 8, 8)], []
        self.stem = _convolution(in_chans, width, batch_norm)
        before = width
        for own, depth in zip(widths, (1, 2, 3, 3, 3), strict=True):  # the stem is the first of stage 0
            ins = [before] + [own] * (depth - 1)
            convolutions = [_convolution(each, own, batch_norm) for each in ins]
            stages.append(nn.Sequential(*convolutions, nn.MaxPool2d(2)))
            before = own
        self.stages, self.norm = nn.Sequential(*stages), nn.Identity()
        head = HiddenLayersHead(before, hidden, num_classes, global_pool, drop_rate) if hidden else None
        self.finish(widths, [2, 4, 8, 16, 32], num_classes, init, drop_rate, global_pool, head)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the last map, (batch, 8 · width, height / 32, width / 32)."""
        if min(images.shape[-2:]) < 32:
            raise ValueError("five pools halve the image: at least 32 pixels a side are needed")
        return super().forward_features(images)


default_cfgs = generate_default_cfgs(
    {
        "cifar_vgg16_bn": config("stem.0", "head.fc"),
        "cifar_vgg16_fc4096": config("stem.0", "head.fc"),
        "cifar_vgg16_bn_fc4096": config("stem.0", "head.fc"),
    }
)


@register_model
def cifar_vgg16_bn(pretrained: bool = False, **options: Any) -> nn.Module:
    """VGG16 of PUGD's Tables IV and V (arXiv 2110.00199), with BatchNorm: 14,728,266 parameters."""
    return create(CifarVgg, "cifar_vgg16_bn", pretrained, **options)


@register_model
def cifar_vgg16_fc4096(pretrained: bool = False, **options: Any) -> nn.Module:
    """VGG16 of the gradient-norm penalty's Table 1 (arXiv 2202.03599); 33,638,218 parameters for 10 classes.

    Its head has two hidden layers of 4096 with dropout of 0.5; there is no BatchNorm. Weights start by
    ``he``, as in its code.
    """
    own = {"hidden": 4096, "batch_norm": False, "drop_rate": 0.5, "init": "he"}
    return create(CifarVgg, "cifar_vgg16_fc4096", pretrained, **{**own, **options})


@register_model
def cifar_vgg16_bn_fc4096(pretrained: bool = False, **options: Any) -> nn.Module:
    """VGG16-BN of the gradient-norm penalty's Table 1 (arXiv 2202.03599); 33,646,666 parameters, 10 classes.

    Its head has two hidden layers of 4096 with dropout of 0.5. Weights start by ``he``, as in its code.
    """
    own = {"hidden": 4096, "drop_rate": 0.5, "init": "he"}
    return create(CifarVgg, "cifar_vgg16_bn_fc4096", pretrained, **{**own, **options})
