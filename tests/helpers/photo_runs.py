"""Small runs on photos of different sizes, for the tests of what uses a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

CLASSES = ("ant", "bee <b>", "cat|*_")


def write_photos(root: Path, per_class: dict[str, int], seed: int = 0) -> Path:
    """``train`` and ``test`` class folders of images of 40 to 150 pixels a side, some of them grey."""
    random = np.random.default_rng(seed)
    for split, count in per_class.items():
        for number, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 90, (8, 8, 3), dtype=np.uint8)
                pixels[..., number] += 50
                width, height = map(int, random.integers(40, 150, 2))
                image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
                (image.convert("L") if index == 1 else image).save(folder / f"{index}.png")
    return root


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos") / "insects", {"train": 8, "test": 11})


@pytest.fixture(scope="session")
def photo_run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of a small ViT at 48 pixels, which is not the size that timm knows it for."""
    from pugdft.training.run import finetune, read_recipe

    recipe = {
        "model": {"name": "test_vit", "pretrained": False},
        "data": {"name": str(photos), "image_size": 48, "crop_padding": 2},
        "optimizer": {"name": "sam", "base": {"name": "adamw", "lr": 1e-3}},
        "train": {"epochs": 2, "batch_size": 8},
    }
    record, path = finetune(read_recipe(recipe), tmp_path_factory.mktemp("runs") / "photos")
    assert record.status == "completed", record.error
    return path.parent


def write_turned_photos(root: Path, per_class: dict[str, int], seed: int = 0) -> Path:
    """Class folders of photos of many sizes, some grey, some turned; the colour tells the class."""
    random = np.random.default_rng(seed)
    for split, count in per_class.items():
        for number, name in enumerate(("ant", "bee", "cat")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                height, width = random.integers(36, 90, 2)
                pixels = random.integers(0, 120, (height, width, 3), dtype=np.uint8)
                pixels[..., number] += 100
                image, options = Image.fromarray(pixels), dict[str, Any]()
                if index % 4 == 1:
                    exif = Image.Exif()
                    exif[0x0112] = 6
                    options = {"exif": exif}
                if index % 4 == 2:
                    image = image.convert("L")
                image.save(folder / f"{index:03d}.png", **options)
    return root


@pytest.fixture(scope="session")
def turned_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 training and 5 test photos a class."""
    return write_turned_photos(tmp_path_factory.mktemp("turned"), {"train": 8, "test": 5})


@pytest.fixture(scope="session")
def trained(turned_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two epochs on the photos."""
    from pugdft.training.run import finetune, read_recipe

    recipe = {
        "model": {"name": "test_resnet", "pretrained": False},
        "data": {"name": str(turned_photos), "image_size": 32, "crop_padding": 2},
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
        "train": {"epochs": 2, "batch_size": 8},
    }
    folder = tmp_path_factory.mktemp("runs") / "trained"
    record, _ = finetune(read_recipe(recipe), folder)
    assert record.status == "completed", record.error
    return folder
