"""What the networks for small images share: timm's configuration, initialisation, a classifier's frame."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from timm.layers import ClassifierHead
from timm.models import build_model_with_cfg, checkpoint_seq
from torch import Tensor, nn

# Of the pixels of CIFAR-10's training images. Some code divides by (.2023, .1994, .2010), the mean over the
# images of each image's own deviation: a recipe says so by data.std.
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)

Init = Literal["torch", "he"]


def config(first_conv: str, classifier: str, **others: Any) -> dict[str, Any]:
    """Make timm's configuration of a network for 32 px; none has pretrained weights."""
    return {
        "url": "",
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "pool_size": None,
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": CIFAR10_MEAN,
        "std": CIFAR10_STD,
        "first_conv": first_conv,
        "classifier": classifier,
        **others,
    }


def create(network: type[nn.Module], name: str, pretrained: bool, **options: Any) -> nn.Module:
    """Build a registered network through timm's builder; ``options`` are its arguments and timm's."""
    if issubclass(network, SmallImageNet):
        # timm finds the maps of a sequence of stages only if it is flat, and looks for five.
        maps = {"flatten_sequential": True, "out_indices": tuple(range(network.num_stages))}
        options = {"feature_cfg": maps, **options}
    model: nn.Module = build_model_with_cfg(network, name, pretrained, **options)
    return model


def check_whole(name: str, value: object, least: int = 1, multiple_of: int = 1) -> None:
    """Refuse an argument that is not a whole number of a kind.

    Raises:
        ValueError: what it is, and what it may be.
    """
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or value < least or value % multiple_of:  # type: ignore[operator]
        kind = f"multiple of {multiple_of}" if is_whole and multiple_of > 1 else "whole number"
        raise ValueError(f"{name}: {_shown(value)} is no {kind} from {least} on")


def check_number(name: str, value: object, least: float, most: float = math.inf) -> None:
    """Refuse an argument that is no number in ``least`` to ``most``.

    Raises:
        ValueError: what it is, and what it may be.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not least <= value <= most:  # type: ignore[operator]
        allowed = f"is no number from {least} on" if most == math.inf else f"is not in {least}..{most}"
        raise ValueError(f"{name}: {_shown(value)} {allowed}")


def check_switch(name: str, value: object) -> None:
    """Refuse an argument that is neither true nor false.

    Raises:
        ValueError: what it is.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{name}: {_shown(value)} is neither true nor false")


def _shown(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def initialise(model: nn.Module, init: Init) -> None:
    """Set all weights anew: ``torch``, each layer's own default; ``he``, as Wide ResNets (arXiv 1605.07146).

    ``he``: convolutions N(0, 2/fan_out), the head U(±1/√classes), biases 0, BatchNorm 1 and 0.

    Raises:
        ValueError: another ``init``.
    """
    if init not in ("torch", "he"):
        raise ValueError(f'init: "{init}" is neither torch nor he')
    for layer in model.modules():
        if isinstance(reset := getattr(layer, "reset_parameters", None), type(model.forward)):
            reset()
        if init == "torch":
            continue
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out")
        elif isinstance(layer, nn.Linear):
            bound = 1 / math.sqrt(layer.out_features)
            nn.init.uniform_(layer.weight, -bound, bound)
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
            nn.init.zeros_(layer.bias)


class SmallImageNet(nn.Module):
    """A classifier in four parts: ``stem``, ``stages`` (a sequence), ``norm`` and ``head`` (pool, linear).

    A subclass sets the first three and calls :meth:`finish`. Images are (batch, 3, height, width); the head's
    mean over the last map takes any size that the stages take.
    """

    num_stages: ClassVar[int] = 3
    stem: nn.Module
    stages: nn.Sequential
    norm: nn.Module
    head: ClassifierHead
    num_classes: int
    num_features: int
    head_hidden_size: int
    feature_info: list[dict[str, Any]]

    def finish(
        self,
        channels: list[int],
        reductions: list[int],
        num_classes: int,
        init: Init,
        drop_rate: float = 0.0,
        global_pool: str = "avg",
        head: ClassifierHead | None = None,
    ) -> None:
        """Add the head, initialise; each stage has a row of ``channels``, ``reductions`` (image / map).

        ``head`` is for a network with another one than pool and linear layer; it has the drop rate already.
        """
        self.num_classes, self.num_features = num_classes, channels[-1]
        self.head = head or ClassifierHead(channels[-1], num_classes, global_pool, drop_rate)
        self.head_hidden_size = self.head.num_features
        self.feature_info = [
            {"num_chs": width, "reduction": reduction, "module": f"stages.{number}"}
            for number, (width, reduction) in enumerate(zip(channels, reductions, strict=True))
        ]
        self.grad_checkpointing = False
        initialise(self, init)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the last map, (batch, features, height, width)."""
        maps = self.stem(images)
        maps = checkpoint_seq(self.stages, maps) if self.grad_checkpointing else self.stages(maps)
        return self.norm(maps)

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits, (batch, classes), or what the linear layer sees."""
        return self.head(maps, pre_logits=pre_logits)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Lay in a new linear layer (0 classes: none)."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)
        self.head_hidden_size = self.head.num_features

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Tell timm's layer decay which parameters make a layer."""
        deeper = r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"
        return {"stem": r"^stem", "blocks": [(deeper, None), (r"^norm", (99999,))]}

    def no_weight_decay(self) -> set[str]:
        return set()
