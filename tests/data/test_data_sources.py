"""Images from any layout become the same store."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import write_image_folder
from image_layouts import CLASSES, as_parquet, as_tiny_imagenet, encoded, store_of
from PIL import Image

from pugdft.data.cache import prepare
from pugdft.data.datasets import open_source
from pugdft.data.decode import decode
from pugdft.data.source import EncodedImage
from pugdft.errors import UserError


@pytest.mark.parametrize("layout", ["parquet", "parquet without names", "fine_label", "data folder", "tiny"])
def test_every_layout_gives_the_same_store(layout: str, image_folder: Path, tmp_path: Path) -> None:
    expected = store_of(image_folder)
    if layout == "tiny":
        folder = as_tiny_imagenet(image_folder, tmp_path / "tiny")
    else:
        below = tmp_path / "p" / ("data" if layout == "data folder" else "")
        label = "fine_label" if layout == "fine_label" else "label"
        as_parquet(image_folder, below, names=layout != "parquet without names", label=label)
        folder = tmp_path / "p"
    store = store_of(folder)
    assert store.sha256 == expected.sha256
    if layout != "parquet without names":
        assert store.classes == CLASSES
    assert store.images("train").shape == (72, 16, 16, 3)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["tables", "image files"])
def test_the_hub_is_read_through_datasets_and_remembered(
    layout: str, image_folder: Path, tmp_path: Path
) -> None:
    """``datasets`` takes a folder of the repository's name for the repository: the same code, no network."""
    if layout == "tables":
        as_parquet(image_folder, tmp_path / "uoft-cs" / "cifar100", label="fine_label")
    else:
        shutil.copytree(image_folder, tmp_path / "uoft-cs" / "cifar100")
    script = (
        "from pugdft.data.datasets import open_source; from pugdft.data.cache import prepare\n"
        "print(prepare(open_source('cifar100'), 32).sha256)"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "PUGDFT_CACHE": str(tmp_path / "cache")}
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.stdout.strip() == store_of(image_folder).sha256, done.stderr
        shutil.rmtree(tmp_path / "uoft-cs", ignore_errors=True)  # the second time nothing is asked


def test_offline_without_the_data_the_error_names_folder_layout_and_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PUGDFT_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        open_source("tiny_imagenet")
    message = str(caught.value)
    assert str(tmp_path / "data" / "tiny_imagenet") in message
    assert "train*.parquet" in message
    assert "pugdft data prepare tiny_imagenet" in message


def test_a_known_name_is_found_in_the_data_folder(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PUGDFT_DATA", str(tmp_path))
    shutil.copytree(image_folder, tmp_path / "cifar10")
    source = open_source("cifar10")
    assert source.name == "cifar10"
    assert prepare(source, 32).sha256 == store_of(image_folder).sha256


def test_the_bundled_images_are_balanced() -> None:
    store = prepare(open_source("bundled"), 224)
    assert store.images("train").shape == (3000, 32, 32, 3)
    assert np.bincount(store.labels("train")).tolist() == [300] * 10
    assert np.bincount(store.labels("test")).tolist() == [200] * 10
    assert store.classes[0] == "airplane"


def test_images_of_unequal_size_are_resized_and_cropped(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "mixed", {"train": 2, "test": 2}, side=20)
    tall = np.zeros((60, 40, 3), np.uint8)
    tall[10:50] = 200  # the centre square of the resized image is all 200 but for ringing at the edge
    Image.fromarray(tall).save(folder / "train" / "ant" / "999.png")
    store = store_of(folder, 32)
    assert store.folder.name.endswith("-32px")
    pixels = store.images("train")
    assert pixels.shape == (7, 32, 32, 3)
    assert pixels[2][4:28].min() >= 195
    assert store_of(folder, 48).images("train").shape[1] == 48


def test_splits_of_different_sides_are_resized_to_one(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "f", {"train": 2}, side=20)
    write_image_folder(folder, {"test": 2}, side=16)
    store = store_of(folder, 32)
    assert store.folder.name.endswith("-32px")
    assert {store.images(split).shape[1:] for split in ("train", "test")} == {(32, 32, 3)}


@pytest.mark.parametrize(
    ("pixels", "mode", "expected"),
    [
        (np.full((4, 4), 70, np.uint8), "L", (70, 70, 70)),
        (np.full((4, 4, 4), 90, np.uint8), "RGBA", (90, 90, 90)),
        (np.full((4, 4), 65535, np.uint16), "I;16", (255, 255, 255)),
        (np.full((4, 4), 25700, np.uint16), "I;16", (100, 100, 100)),
    ],
)
def test_other_colour_modes_become_rgb(pixels: np.ndarray, mode: str, expected: tuple[int, ...]) -> None:
    assert Image.open(io.BytesIO(encoded(pixels))).mode == mode
    decoded = decode(EncodedImage(encoded(pixels), 0, "x"))
    assert decoded.dtype == np.uint8
    assert tuple(decoded[0, 0]) == expected


def test_a_palette_image_becomes_rgb() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (3, 3), (10, 200, 30)).quantize(4).save(buffer, "PNG")
    assert tuple(decode(EncodedImage(buffer.getvalue(), 0, "x"))[1, 1]) == (10, 200, 30)
