"""The good inputs that the cases spoil: a recipe, a folder of images, tables, weights, records."""

from __future__ import annotations

import copy
import functools
import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from run_records import record

from pugdft.config import yaml
from pugdft.records import write_record

Build = Callable[[Path], object]

RECIPE: dict[str, Any] = {
    "model": {"name": "test_vit", "pretrained": False},
    "data": {"name": "images", "image_size": 32},
    "optimizer": {"name": "sam", "base": {"name": "sgd", "lr": 0.05}},
    "train": {"epochs": 1, "batch_size": 4},
}
SIDE = 8


class Harm:
    """Leaves a folder named ``harm`` where it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, ("harm",)


def both(*steps: Build) -> Build:
    """One after another."""
    return lambda folder: [step(folder) for step in steps]


def file(name: str, content: str | bytes) -> Build:
    """A file with this content."""

    def build(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return build


def recipe(changes: Mapping[str, Any] | None = None, name: str = "r.yaml") -> Build:
    """The recipe with other values at dotted places."""
    return lambda folder: file(name, yaml.dump(with_changes(RECIPE, changes or {})))(folder)


def with_changes(data: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested mappings with other values at dotted places."""
    changed = copy.deepcopy(dict(data))
    for place, value in changes.items():
        *sections, key = place.split(".")
        node = changed
        for section in sections:
            node = node.setdefault(section, {})
        node[key] = value
    return changed


def encoded(pixels: np.ndarray, format_: str = "PNG", mode: str | None = None) -> bytes:
    """An image file's bytes."""
    buffer = io.BytesIO()
    made = Image.fromarray(pixels)
    (made.convert(mode) if mode else made).save(buffer, format_)
    return buffer.getvalue()


def colours(number: int, side: int = SIDE) -> np.ndarray:
    """Pixels, (side, side, 3), that tell a class."""
    return np.random.default_rng(number).integers(0, 255, (side, side, 3), dtype=np.uint8)


def images(folder: Path) -> None:
    """``images/`` with two classes of four training and two test images."""
    for split, count in (("train", 4), ("test", 2)):
        for number, name in enumerate(("ant", "bee")):
            place = folder / "images" / split / name
            place.mkdir(parents=True)
            for index in range(count):
                (place / f"{index}.png").write_bytes(encoded(colours(10 * number + index)))


def data_set(*changes: Build) -> Build:
    """The recipe, its images, and then what is changed of them."""
    return both(recipe(), images, *changes)


def image(content: bytes, name: str = "test/bee/1.png") -> Build:
    """The data set with another content of one image."""
    return data_set(file(f"images/{name}", content))


def column(count: int) -> list[bytes]:
    """Encoded images."""
    return [encoded(colours(number)) for number in range(count)]


def tables(**columns: Any) -> Build:
    """The recipe with a train table of these columns and a good test table, in the place of the images."""

    def build(folder: Path) -> None:
        (folder / "images").mkdir()
        good = {"image": column(4), "label": [0, 1, 0, 1]}
        pq.write_table(pa.table(columns or good), folder / "images" / "train.parquet")
        pq.write_table(pa.table(good), folder / "images" / "test.parquet")

    return both(recipe(), build)


def table(split: str, made: pa.Table) -> Build:
    """One table more, or another in a good one's place."""
    return lambda folder: pq.write_table(made, folder / "images" / f"{split}.parquet")


@functools.cache
def tensors() -> dict[str, Any]:
    """The weights of the recipe's model, with its own head of a thousand classes."""
    import timm

    return dict(timm.create_model("test_vit", pretrained=False).state_dict())


def weights(name: str, write: Callable[[Path], object]) -> Build:
    """The data set, a recipe that names a file of weights, and that file."""
    return both(recipe({"model.pretrained": name}), images, lambda folder: write(folder / name))


def run(folder: str, **changes: Any) -> Build:
    """A record in a folder of its own."""
    return lambda root: write_record(record(**changes), root / folder)


def run_text(change: Callable[[str], str], folder: str = "runs/a") -> Build:
    """A record whose text somebody changed."""

    def build(root: Path) -> None:
        path = write_record(record(), root / folder)
        path.write_text(change(path.read_text()))

    return build
