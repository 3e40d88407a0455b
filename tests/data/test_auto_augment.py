"""timm's augmentations: every number that passes the check of a recipe can be trained with."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from timm.data import auto_augment

from pugdft.data.auto_augment import auto_augmentation, data_faults
from pugdft.errors import FaultsError
from pugdft.training.run import read_recipe

HALF = (0.5,) * 3
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))


def operation(words: str, name: str, magnitude: float) -> Any:
    """One of timm's operations as an augmentation has it, applied with certainty."""
    transform: Any = auto_augmentation(words, 16, HALF, "bicubic")
    parts = (
        transform.ops if hasattr(transform, "ops") else [each for pair in transform.policy for each in pair]
    )
    found = next(each for each in parts if each.name == name)
    found.prob, found.magnitude, found.magnitude_std = 1.0, magnitude, 0
    return found


@pytest.mark.parametrize(
    ("words", "name", "magnitude"),
    [
        ("rand-m9-mstd0.5-inc1", "PosterizeIncreasing", 10),
        ("rand-m9", "Posterize", 2),
        ("v0", "Posterize", 2),
        ("augmix-m3-w3", "PosterizeIncreasing", 10),
    ],
)
def test_no_bits_of_a_colour_are_black_as_timm_means_it(words: str, name: str, magnitude: float) -> None:
    """Pillow 13 refuses to posterize so; in training, one image of some hundred or thousand came to it."""
    assert not np.asarray(operation(words, name, magnitude)(IMAGE)).any()
    for level in np.arange(0, 10.1, 0.5):
        result = np.asarray(operation(words, name, level)(IMAGE))
        bits = auto_augment.LEVEL_TO_ARG[name](level, {})[0]
        expected = np.asarray(ImageOps.posterize(IMAGE, bits)) if bits else np.zeros((16, 16, 3), np.uint8)
        assert np.array_equal(result, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        *(
            "rand-m9-mstd0.5-inc1",
            "rand-m999-n99-inc1",
            "rand-m99-mmax99-inc1",
            "rand-m2",
            "rand-m9-tweights",
        ),
        *("augmix-m3-w3", "augmix-m99-b1", "v0", "v0r-mstd100", "original-mstd0.5", "originalr", "3a"),
    ],
)
def test_what_passes_the_check_can_be_applied_to_thousands_of_images(words: str) -> None:
    assert not data_faults({"auto_augment": words})
    transform = auto_augmentation(words, 16, HALF, "bicubic")
    random.seed(1)
    np.random.seed(1)
    ended = Counter(transform(IMAGE).size for _ in range(100 if "n99" in words else 2000))
    assert list(ended) == [(16, 16)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("rand-m9-n20-tweights", "cannot do with (Cannot take a larger sample"),
        ("augmix-a0", "cannot do with (alpha <= 0)"),
        ("augmix-a" + "9" * 400, "cannot do with (invalid value"),
        ("rand-mstd1-m1" + "0" * 400, "cannot do with (int too large"),
        ("rand-m9-n1000000000", "(n is at most 100)"),
        ("augmix-w101", "(w is at most 100)"),
        ("augmix-d101", "(d is at most 100)"),
    ],
)
def test_numbers_that_fail_at_the_first_images_are_a_fault(
    words: str, said: str, small_recipe: dict[str, Any]
) -> None:
    with pytest.raises(FaultsError) as caught:
        read_recipe(small_recipe, [f"data.auto_augment='{words}'"])
    assert said in str(caught.value)
    assert "such as rand-m9-mstd0.5-inc1" in str(caught.value)


def test_the_check_leaves_the_random_numbers_be() -> None:
    random.seed(5)
    np.random.seed(5)
    expected = random.random(), np.random.random()
    random.seed(5)
    np.random.seed(5)
    assert not data_faults({"auto_augment": "rand-m9-mstd0.5-inc1"})
    assert data_faults({"auto_augment": "augmix-a0"})
    assert (random.random(), np.random.random()) == expected
