"""timm's augmentations of single images, by the words that timm has for them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image

from pugdft.errors import Fault

Transform = Callable[[Image.Image], Image.Image]

_SECTION = re.compile(r"[a-z]+\d[\d.]*")
_RAND_SET = re.compile(r"t[a-z]\w*")


def auto_augmentation(text: str, side: int, mean: tuple[float, ...], interpolation: str) -> Transform:
    """timm's augmentation of this name, with the parameters that timm's own training gives it.

    Raises:
        ValueError: there is none.
    """
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
    try:
        return make(text, parameters)
    except (AssertionError, KeyError, ValueError) as error:
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None


def data_faults(section: Mapping[str, Any]) -> list[Fault]:
    """What is wrong with a recipe's ``data`` that only timm can tell."""
    text = section.get("auto_augment")
    if not isinstance(text, str):
        return []
    try:
        auto_augmentation(text, 32, (0.5,) * 3, "bicubic")
    except ValueError as error:
        known = "rand-m9-mstd0.5-inc1, augmix-m3-w3, v0, original-mstd0.5 or 3a"
        return [Fault("data.auto_augment", f'"{text}" is nothing that timm knows ({error}); such as {known}')]
    return []
