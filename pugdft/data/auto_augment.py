"""Build augmentations of single images: timm's from timm's own names, and AutoAugment's of CIFAR-10."""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from pugdft.data.rng import global_generators_kept
from pugdft.errors import ConfigIssue, collect, reason, refuse

Transform = Callable[[Image.Image], Image.Image]

CIFAR10 = "cifar10"
"""AutoAugment's policy for CIFAR-10 and CIFAR-100 (arXiv 1805.09501, Table 7): timm has ImageNet's only."""

_SECTION = re.compile(r"[a-z]+\d[\d.]*")
_RAND_SET = re.compile(r"t[a-z]\w*")

# Operations on an image one after another, and chains of them: more would take seconds an image.
_MOST_OPERATIONS = 100
_TRIED_SIDE = 32
_LENGTHS = {"num_layers": "n", "width": "w", "depth": "d"}


def auto_augmentation(text: str, side: int, mean: tuple[float, ...], interpolation: str) -> Transform:
    """Build an augmentation as timm's script does; AssertionError, KeyError, ValueError if it is unknown."""
    if text == CIFAR10:
        return _cifar10_policy()
    from timm.data import auto_augment
    from timm.data.transforms import str_to_pil_interp

    kind, *sections = text.split("-")
    for section in sections:  # timm passes over what has no number in it
        if not (_SECTION.fullmatch(section) or (kind == "rand" and _RAND_SET.fullmatch(section))):
            raise ValueError(f'"{section}" is a letter or a word and a number, such as m9')
    mode = interpolation if interpolation in ("bicubic", "bilinear") else "bicubic"
    parameters: dict[str, Any] = {
        "translate_const": int(side * 0.45),
        "img_mean": tuple(min(255, round(255 * channel)) for channel in mean),
        "interpolation": str_to_pil_interp(mode),
    }
    make = auto_augment.auto_augment_transform
    if kind == "rand":
        make = auto_augment.rand_augment_transform
    elif kind == "augmix":
        make, parameters["translate_pct"] = auto_augment.augment_and_mix_transform, 0.3
    transform: Transform = make(text, parameters)
    for attribute, letter in _LENGTHS.items():
        if getattr(transform, attribute, 0) > _MOST_OPERATIONS:
            raise ValueError(f"{letter} is at most {_MOST_OPERATIONS}")
    for operation in _operations(transform):
        if operation.aug_fn is auto_augment.posterize:
            operation.aug_fn = _posterize
    return transform


def _cifar10_policy() -> Transform:
    """Build torchvision's: 25 sub-policies of two operations, its magnitudes, nearest pixels, black outside.

    Each image gets one of them; its numbers come from ``random``, as timm's do. The authors' code has 95.
    """
    import torch
    from torchvision.transforms import autoaugment

    class Policy(autoaugment.AutoAugment):
        @staticmethod
        def get_params(transform_num: int) -> tuple[int, torch.Tensor, torch.Tensor]:
            chosen = random.randrange(transform_num)  # noqa: S311
            chances = [random.random() for _ in range(2)]  # noqa: S311
            signs = [random.randrange(2) for _ in range(2)]  # noqa: S311
            return chosen, torch.tensor(chances, dtype=torch.float64), torch.tensor(signs)

    transform: Transform = Policy(autoaugment.AutoAugmentPolicy.CIFAR10)
    return transform


def data_faults(section: Mapping[str, Any]) -> list[ConfigIssue]:
    """Check a recipe's ``data`` section against the names of augmentations."""
    text = section.get("auto_augment")
    if not isinstance(text, str) or text == CIFAR10:
        return []
    known = "such as rand-m9-mstd0.5-inc1, augmix-m3-w3, v0, original-mstd0.5 or 3a; or cifar10"
    faults: list[ConfigIssue] = []
    with collect(faults, "data.auto_augment"):
        unknown = (AssertionError, KeyError, ValueError)
        with refuse(unknown, lambda error: f'"{text}" is nothing that timm knows ({reason(error)}); {known}'):
            transform = auto_augmentation(text, _TRIED_SIDE, (0.5,) * 3, "bicubic")
        problem = f'"{text}" has numbers that timm\'s augmentation cannot do with'
        # timm, Pillow and numpy raise anything for odd numbers.
        image = Image.new("RGB", (_TRIED_SIDE, _TRIED_SIDE), (128, 128, 128))
        with (
            refuse(Exception, lambda error: f"{problem} ({reason(error)}); {known}"),
            global_generators_kept(),
            np.errstate(invalid="raise"),
        ):
            random.seed(0)
            np.random.seed(0)
            transform(image)
            for operation in _operations(transform):
                certain = copy.copy(operation)
                certain.prob = 1.0
                certain(image)
    return faults


def _operations(transform: Any) -> Iterator[Any]:
    """List timm's single operations from which an augmentation draws."""
    if hasattr(transform, "ops"):
        yield from transform.ops
    else:
        for part in transform.policy:
            yield from part


def _posterize(image: Image.Image, bits_to_keep: int, **_: Any) -> Image.Image:
    """Keep the highest bits; of none, return black, as timm means it: Pillow 13 refuses that."""
    if bits_to_keep >= 8:
        return image
    # timm asks for none in ``v0``, and where ``rand-m9-mstd0.5-inc1`` draws a magnitude of 10.
    return ImageOps.posterize(image, bits_to_keep) if bits_to_keep > 0 else Image.new(image.mode, image.size)
