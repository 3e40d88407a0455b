"""AutoAugment's policy of CIFAR-10 against its table and its operations, computed once more with numpy."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_image_folder
from PIL import Image
from small_runs import differences, tiny_recipe, whole_run

from pugdft.data.auto_augment import auto_augmentation, data_faults

SIDE = 32
# Table 7 of arXiv 1805.09501: name, probability, magnitude from 0 to 9; ``_`` where it has no effect.
TABLE = """
Invert .1 _ Contrast .2 6 | Rotate .7 2 TranslateX .3 9 | Sharpness .8 1 Sharpness .9 3
ShearY .5 8 TranslateY .7 9 | AutoContrast .5 _ Equalize .9 _ | ShearY .2 7 Posterize .3 7
Color .4 3 Brightness .6 7 | Sharpness .3 9 Brightness .7 9 | Equalize .6 _ Equalize .5 _
Contrast .6 7 Sharpness .6 5 | Color .7 7 TranslateX .5 8 | Equalize .3 _ AutoContrast .4 _
TranslateY .4 3 Sharpness .2 6 | Brightness .9 6 Color .2 8 | Solarize .5 2 Invert .0 _
Equalize .2 _ AutoContrast .6 _ | Equalize .2 _ Equalize .6 _ | Color .9 9 Equalize .6 _
AutoContrast .8 _ Solarize .2 8 | Brightness .1 3 Color .7 0 | Solarize .4 5 AutoContrast .9 _
TranslateY .9 9 TranslateY .7 9 | AutoContrast .9 _ Solarize .8 3 | Equalize .8 _ Invert .1 _
TranslateY .7 9 AutoContrast .9 _
"""
ROWS = [row.split() for row in TABLE.replace("\n", "|").split("|") if row]
POLICY = [
    [
        (name, float(chance), None if level == "_" else int(level))
        for name, chance, level in (row[:3], row[3:])
    ]
    for row in ROWS
]


def blended(pixels: np.ndarray, other: np.ndarray, factor: float) -> np.ndarray:
    """From ``other`` (0) to the image (1) and beyond, cut to a byte."""
    other, factor = other.astype(np.float32), np.float32(factor)
    return np.clip(other + factor * (pixels.astype(np.float32) - other), 0, 255).astype(np.uint8)


def grey(pixels: np.ndarray) -> np.ndarray:
    return (pixels.astype(np.int64) @ np.array([19595, 38470, 7471]) + 0x8000) >> 16


def smooth(pixels: np.ndarray) -> np.ndarray:
    out, wide = pixels.copy(), pixels.astype(np.float64)
    total = sum(wide[1 + y : SIDE - 1 + y, 1 + x : SIDE - 1 + x] for y in (-1, 0, 1) for x in (-1, 0, 1))
    out[1:-1, 1:-1] = ((total + 4 * wide[1:-1, 1:-1]) / 13 + 0.5).astype(np.uint8)
    return out


def by_table(pixels: np.ndarray, table: Any) -> np.ndarray:
    """Each channel through a table made of its histogram."""
    channels = [
        table(np.bincount(channel.ravel(), minlength=256))[channel] for channel in np.moveaxis(pixels, 2, 0)
    ]
    return np.stack(channels, 2).astype(np.uint8)


def stretched(counts: np.ndarray) -> np.ndarray:
    low, high = np.flatnonzero(counts)[[0, -1]]
    scale = 255 / (high - low)
    return np.clip((np.arange(256) * scale - low * scale).astype(np.int64), 0, 255)


def equalized(counts: np.ndarray) -> np.ndarray:
    step = (counts.sum() - counts[np.flatnonzero(counts)[-1]]) // 255
    if step == 0:
        return np.arange(256)
    return np.minimum((step // 2 + np.cumsum(counts) - counts) // step, 255)


def moved(pixels: np.ndarray, source: Any) -> np.ndarray:
    """Each pixel is the nearest one to where ``source`` says its centre comes from; black outside."""
    out = np.zeros_like(pixels)
    for y in range(SIDE):
        for x in range(SIDE):
            column, row = (math.floor(each) for each in source(x + 0.5, y + 0.5))
            if 0 <= row < SIDE and 0 <= column < SIDE:
                out[y, x] = pixels[row, column]
    return out


def applied(pixels: np.ndarray, name: str, level: int | None, sign: int) -> np.ndarray:
    """One operation of the table, with torchvision's magnitudes."""
    share = sign * (level or 0) / 9
    factor, angle, centre = 1 + 0.9 * share, math.radians(30 * share), SIDE / 2
    shift, cos, sin = int(150 / 331 * SIDE * share), math.cos(angle), math.sin(angle)
    match name:
        case "Invert":
            return 255 - pixels
        case "Brightness":
            return blended(pixels, np.zeros_like(pixels), factor)
        case "Contrast":
            return blended(pixels, np.full_like(pixels, int(grey(pixels).mean() + 0.5)), factor)
        case "Color":
            return blended(pixels, np.repeat(grey(pixels)[..., None], 3, 2), factor)
        case "Sharpness":
            return blended(pixels, smooth(pixels), factor)
        case "Posterize":
            return pixels & (256 - 2 ** round((level or 0) * 4 / 9))
        case "Solarize":
            return np.where(pixels < 255 - 255 * (level or 0) / 9, pixels, 255 - pixels)
        case "AutoContrast":
            return by_table(pixels, stretched)
        case "Equalize":
            return by_table(pixels, equalized)
        case "TranslateX":
            return moved(pixels, lambda x, y: (x - shift, y))
        case "TranslateY":
            return moved(pixels, lambda x, y: (x, y - shift))
        case "ShearY":
            return moved(pixels, lambda x, y: (x, y + 0.3 * share * x))
        case "Rotate":
            return moved(
                pixels,
                lambda x, y: (
                    centre + cos * (x - centre) - sin * (y - centre),
                    centre + sin * (x - centre) + cos * (y - centre),
                ),
            )
    raise AssertionError(name)


def image(seed: int) -> np.ndarray:
    """Smooth, with a range of its own, so that equalising and stretching change it."""
    draw = np.random.default_rng(seed)
    coarse = draw.integers(20, 220, (8, 8, 3), dtype=np.uint8)
    fine = np.asarray(Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)).astype(int)
    return np.clip(fine + draw.integers(-9, 10, (SIDE, SIDE, 3)), 5, 240).astype(np.uint8)


def test_the_policy_is_the_paper_s_with_its_operations() -> None:
    """600 images: of each, the sub-policy, which operations happen and their signs, by the same numbers."""
    transform = auto_augmentation("cifar10", SIDE, (0.5,) * 3, "bicubic")
    happened = set()
    for seed in range(600):
        pixels = image(seed)
        random.seed(seed)
        result = np.asarray(transform(Image.fromarray(pixels)))
        random.seed(seed)
        chosen = random.randrange(25)
        chances, signs = ([draw() for _ in range(2)] for draw in (random.random, lambda: random.randrange(2)))
        for (name, chance, level), drawn, is_positive in zip(POLICY[chosen], chances, signs, strict=True):
            if drawn <= chance:
                pixels = applied(pixels, name, level, 1 if is_positive else -1)
                happened.add((name, level, is_positive))
        # Blends may be one off (see below), and a later operation widens this for some pixels.
        assert np.abs(result.astype(int) - pixels).mean() < 0.5, (seed, POLICY[chosen])
    assert len(POLICY) == 25
    assert {name for name, *_ in happened} == {name for pair in POLICY for name, *_ in pair}
    assert len(happened) > 45


@pytest.mark.parametrize("name", sorted({name for pair in POLICY for name, *_ in pair}))
@pytest.mark.parametrize("is_positive", [0, 1])
def test_each_operation_alone(name: str, is_positive: int) -> None:
    transform: Any = auto_augmentation("cifar10", SIDE, (0.5,) * 3, "bicubic")
    levels = {level for pair in POLICY for other, _, level in pair if other == name}
    for level in levels:
        transform.policies = [((name, 1.0, level), ("Invert", -1.0, None))]
        transform.get_params = lambda count: (0, [0.0, 0.0], [is_positive, 0])
        for seed in range(5):
            pixels = image(seed)
            result = np.asarray(transform(Image.fromarray(pixels)))
            expected = applied(pixels, name, level, 1 if is_positive else -1)
            distance = np.abs(result.astype(int) - expected).max()
            # A blend that is a whole number may be cut to the one below.
            assert distance <= (1 if name in ("Brightness", "Contrast", "Color", "Sharpness") else 0)
            assert level == 0 or not np.array_equal(result, pixels)


def test_every_draw_is_a_function_of_seed_epoch_and_step(tmp_path: Path) -> None:
    """Whatever else draws, and in however many processes."""
    folder = write_image_folder(tmp_path / "insects", {"train": 8, "test": 3})
    recipe = tiny_recipe(folder, {"name": "sgd", "lr": 0.05})
    recipe["data"]["auto_augment"] = "cifar10"
    first, second = (whole_run(recipe, tmp_path / name, "train.epochs=1", "data.workers=0") for name in "ab")
    assert differences(first, second) == []
    plain = whole_run(recipe, tmp_path / "plain", "train.epochs=1", "data.auto_augment=null")
    assert any(each.startswith("weight ") for each in differences(first, plain))


@pytest.mark.slow
def test_processes_make_the_same_images(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "insects", {"train": 8, "test": 3})
    recipe = tiny_recipe(folder, {"name": "sgd", "lr": 0.05})
    recipe["data"]["auto_augment"] = "cifar10"
    here, there = (
        whole_run(recipe, tmp_path / str(count), "train.epochs=2", f"data.workers={count}")
        for count in (0, 2)
    )
    assert differences(here, there) == ["record id", "record recipe"]


def test_it_takes_no_numbers() -> None:
    assert data_faults({"auto_augment": "cifar10"}) == []
    (fault,) = data_faults({"auto_augment": "cifar10-m9"})
    assert "or cifar10" in str(fault)
