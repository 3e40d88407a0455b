"""The networks a second time, from the papers: plain functions of named tensors, in training mode.

Each takes the parameters by the names that the network gives them, and images; it returns the logits. Nothing
of pugdft or timm takes part, and every normalisation is written out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

Tensors = Mapping[str, Tensor]


def _conv(p: Tensors, name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = p[f"{name}.weight"]
    return functional.conv2d(x, weight, p.get(f"{name}.bias"), stride, weight.shape[-1] // 2)


def _norm(p: Tensors, name: str, x: Tensor) -> Tensor:
    """BatchNorm by the batch's own statistics."""
    centred = x - x.mean((0, 2, 3), keepdim=True)
    scaled = centred / (centred.square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()
    return scaled * p[f"{name}.weight"][:, None, None] + p[f"{name}.bias"][:, None, None]


def _layer_norm(x: Tensor) -> Tensor:
    """Of each image, over all that belongs to it."""
    over = tuple(range(1, x.ndim))
    centred = x - x.mean(over, keepdim=True)
    return centred / (centred.square().mean(over, keepdim=True) + 1e-5).sqrt()


def _linear(p: Tensors, name: str, x: Tensor) -> Tensor:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def _relu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.zeros_like(x))


def _mean2(x: Tensor) -> Tensor:
    """Means of 2 × 2 pixels."""
    batch, channels, height, width = x.shape
    return x.reshape(batch, channels, height // 2, 2, width // 2, 2).mean((3, 5))


def _residual(p: Tensors, name: str, x: Tensor, stride: int) -> Tensor:
    """A ResNet's block of two or three convolutions; its shortcut projects if there are weights for that."""
    wide = f"{name}.conv3.weight" in p
    y = _relu(_norm(p, f"{name}.bn1", _conv(p, f"{name}.conv1", x, 1 if wide else stride)))
    y = _norm(p, f"{name}.bn2", _conv(p, f"{name}.conv2", y, stride if wide else 1))
    if wide:
        y = _norm(p, f"{name}.bn3", _conv(p, f"{name}.conv3", _relu(y)))
    if f"{name}.downsample.0.weight" in p:
        x = _norm(p, f"{name}.downsample.1", _conv(p, f"{name}.downsample.0", x, stride))
    return _relu(x + y)


def resnet(p: Tensors, x: Tensor, layers: tuple[int, ...]) -> Tensor:
    x = _relu(_norm(p, "bn1", _conv(p, "conv1", x)))
    for stage, depth in enumerate(layers):
        for block in range(depth):
            stride = 2 if stage and not block else 1
            x = _residual(p, f"layer{stage + 1}.{block}", x, stride)
    return _linear(p, "fc", x.mean((2, 3)))


def densenet(p: Tensors, x: Tensor, layers: tuple[int, ...]) -> Tensor:
    x = _conv(p, "features.conv0", x)
    for number, depth in enumerate(layers, 1):
        for layer in range(1, depth + 1):
            name = f"features.denseblock{number}.denselayer{layer}"
            y = _conv(p, f"{name}.conv1", _relu(_norm(p, f"{name}.norm1", x)))
            y = _conv(p, f"{name}.conv2", _relu(_norm(p, f"{name}.norm2", y)))
            x = torch.cat([x, y], 1)
        if number < len(layers):
            name = f"features.transition{number}"
            x = _mean2(_conv(p, f"{name}.conv", _relu(_norm(p, f"{name}.norm", x))))
    return _linear(p, "classifier", _relu(_norm(p, "features.norm5", x)).mean((2, 3)))


def wide_resnet(p: Tensors, x: Tensor, depth: int, pads: bool) -> Tensor:
    """He and others' pre-activation ResNet of width 1, or of any other."""
    x = _conv(p, "stem", x)
    for stage in range(3):
        for block in range((depth - 4) // 6):
            name, stride = f"stages.{stage}.{block}", 2 if stage and not block else 1
            active = _relu(_norm(p, f"{name}.norm1", x))
            y = _conv(p, f"{name}.conv1", active, stride)
            y = _conv(p, f"{name}.conv2", _relu(_norm(p, f"{name}.norm2", y)))
            if pads:
                x = active if stage == block == 0 else x
                x = _mean2(x) if stride == 2 else x
                zeros = torch.zeros_like(y)[:, x.shape[1] :]
                x = torch.cat([x, zeros], 1)
            elif x.shape[1] != y.shape[1]:
                x = _conv(p, f"{name}.project", active, stride)
            x = x + y
    return _linear(p, "head.fc", _relu(_norm(p, "norm.0", x)).mean((2, 3)))


def vgg(p: Tensors, x: Tensor) -> Tensor:
    """VGG16; the names of the parameters say whether there are BatchNorm and hidden layers."""

    def convolution(name: str, x: Tensor) -> Tensor:
        y = _conv(p, f"{name}.0", x)
        return _relu(_norm(p, f"{name}.1", y) if f"{name}.1.weight" in p else y)

    x = convolution("stem", x)
    for stage, depth in enumerate((1, 2, 3, 3, 3)):
        for number in range(depth):
            x = convolution(f"stages.{stage}.{number}", x)
        batch, channels, height, width = x.shape
        x = x.reshape(batch, channels, height // 2, 2, width // 2, 2).amax((3, 5))
    x = x.mean((2, 3))
    if "head.hidden.0.weight" in p:
        x = _relu(_linear(p, "head.hidden.3", _relu(_linear(p, "head.hidden.0", x))))
    return _linear(p, "head.fc", x)


def _attention(p: Tensors, name: str, x: Tensor, kind: str) -> Tensor:
    """A block with pixel attention; the first sum is under the layer norm, the second is not."""

    def pixels(layer: str) -> Tensor:
        weight, bias = p[f"{name}.{layer}.0.weight"].flatten(1), p[f"{name}.{layer}.0.bias"]
        return _norm(p, f"{name}.{layer}.1", torch.einsum("oc,bchw->bohw", weight, x) + bias[:, None, None])

    y = x
    for number in (0, 3):
        y = _conv(p, f"{name}.convolutions.{number}", y)
        y = _relu(_norm(p, f"{name}.convolutions.{number + 1}", y))
    y = _layer_norm(y + pixels("pixels"))
    if kind in ("first", "down"):
        y = y + pixels("shortcut")
    y = _mean2(y) if kind == "down" else y
    return torch.cat([x, y], 1) if kind == "append" else y


def upanet(p: Tensors, x: Tensor) -> Tensor:
    x = _attention(p, "stem", x, "first")
    maps = [x]
    for stage in range(4):
        x = _attention(p, f"stages.{stage}.0", x, "down" if stage else "first")
        for block in range(1, 5):
            x = _attention(p, f"stages.{stage}.{block}", x, "append")
        maps.append(x)
    vectors = []
    for number, each in enumerate(maps):
        pixels = each.reshape(*each.shape[:2], -1)
        vectors.append(
            _layer_norm(pixels.mean(2) + _linear(p, f"summaries.{number}.linear", pixels).squeeze(2))
        )
    joined = _norm(p, "norm", torch.cat(vectors[::-1], 1)[:, :, None, None])
    return _linear(p, "head.fc", joined[:, :, 0, 0])


def resnet_cpa(p: Tensors, x: Tensor) -> Tensor:
    x = _relu(_norm(p, "stem.1", _conv(p, "stem.0", x)))
    for stage in range(4):
        x = _attention(p, f"stages.{stage}.0", x, "down" if stage else "first")
        x = _attention(p, f"stages.{stage}.1", x, "plain")
    return _linear(p, "head.fc", x.mean((2, 3)))


def dla(p: Tensors, x: Tensor) -> Tensor:
    def convolution(name: str, x: Tensor) -> Tensor:
        return _relu(_norm(p, f"{name}.1", _conv(p, f"{name}.0", x)))

    def small_tree(name: str, x: Tensor, stride: int, *others: Tensor) -> Tensor:
        left = _residual(p, f"{name}.left", x, stride)
        right = _residual(p, f"{name}.right", left, 1)
        return convolution(f"{name}.root", torch.cat([*others, left, right], 1))

    def large_tree(name: str, x: Tensor, stride: int) -> Tensor:
        beside, deep = _residual(p, f"{name}.beside", x, stride), small_tree(f"{name}.subtree", x, stride)
        return small_tree(name, deep, 1, beside, deep)

    for number in range(3):
        x = convolution(f"stem.{number}", x)
    x = small_tree("stages.0", x, 1)
    x = large_tree("stages.2", large_tree("stages.1", x, 2), 2)
    return _linear(p, "head.fc", small_tree("stages.3", x, 2).mean((2, 3)))


def vit(p: Tensors, x: Tensor, heads: int) -> Tensor:
    """Dosovitskiy and others' encoder: norms before, a class token, exact GELU."""

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return scaled * p[f"{name}.weight"] + p[f"{name}.bias"]

    weight = p["patch_embed.proj.weight"]
    tokens = functional.conv2d(x, weight, p["patch_embed.proj.bias"], weight.shape[-1]).flatten(2).mT
    x = torch.cat([p["cls_token"].expand(len(x), -1, -1), tokens], 1) + p["pos_embed"]
    for number in range(sum(name.endswith("attn.qkv.weight") for name in p)):
        name = f"blocks.{number}"
        mixed = _linear(p, f"{name}.attn.qkv", norm(f"{name}.norm1", x))
        query, key, value = mixed.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        shares = (query @ key.mT / math.sqrt(query.shape[-1])).softmax(-1)
        x = x + _linear(p, f"{name}.attn.proj", (shares @ value).transpose(1, 2).flatten(2))
        hidden = _linear(p, f"{name}.mlp.fc1", norm(f"{name}.norm2", x))
        hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
        x = x + _linear(p, f"{name}.mlp.fc2", hidden)
    return _linear(p, "head", norm("norm", x)[:, 0])


REFERENCES: dict[str, Callable[[Tensors, Tensor], Tensor]] = {
    "cifar_resnet18": lambda p, x: resnet(p, x, (2, 2, 2, 2)),
    "cifar_resnet50": lambda p, x: resnet(p, x, (1, 1, 2, 1)),
    "cifar_resnet18_cpa": resnet_cpa,
    "cifar_densenet121": lambda p, x: densenet(p, x, (2, 3, 2, 2)),
    "cifar_densenet121_k16": lambda p, x: densenet(p, x, (2, 2, 2, 2)),
    "cifar_wrn28_10": lambda p, x: wide_resnet(p, x, 10, pads=False),
    "cifar_wrn28_10_pad": lambda p, x: wide_resnet(p, x, 16, pads=True),
    "cifar_vgg16_bn": vgg,
    "cifar_vgg16_fc4096": vgg,
    "cifar_vgg16_bn_fc4096": vgg,
    "cifar_upanet16": upanet,
    "cifar_upanet64": upanet,
    "cifar_dla": dla,
    "cifar_vit_tiny_patch4": lambda p, x: vit(p, x, 3),
    "cifar_vit_small_patch4": lambda p, x: vit(p, x, 6),
}
