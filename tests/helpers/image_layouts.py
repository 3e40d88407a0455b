"""The same images in each layout that is read."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pugdft.data.cache import prepare
from pugdft.data.datasets import open_source

CLASSES = ["ant", "bee", "cat"]


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def as_parquet(images: Path, folder: Path, names: bool = True, label: str = "label") -> Path:
    """The images of a class folder tree as parquet in the Hub's layout."""
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        files = [(file, CLASSES.index(c)) for c in CLASSES for file in sorted((images / split / c).iterdir())]
        table = pa.table(
            {
                "image": [{"bytes": file.read_bytes(), "path": None} for file, _ in files],
                label: [number for _, number in files],
            }
        )
        if names:
            features = {"image": {"_type": "Image"}, label: {"names": CLASSES, "_type": "ClassLabel"}}
            table = table.replace_schema_metadata(
                {"huggingface": json.dumps({"info": {"features": features}})}
            )
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    return folder


def as_tiny_imagenet(images: Path, folder: Path) -> Path:
    """The same images as Tiny ImageNet's archive lays them out."""
    lines = []
    (folder / "val" / "images").mkdir(parents=True)
    (folder / "test" / "images").mkdir(parents=True)
    for name in CLASSES:
        shutil.copytree(images / "train" / name, folder / "train" / name / "images")
        (folder / "train" / name / f"{name}_boxes.txt").write_text("ant_0.JPEG\t0\t0\t62\t62\n")
        for file in sorted((images / "test" / name).iterdir()):
            shutil.copy(file, folder / "val" / "images" / f"{name}_{file.name}")
            lines.append(f"{name}_{file.name}\t{name}\t0\t0\t62\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    return folder


def store_of(folder: Path, image_size: int = 32):  # type: ignore[no-untyped-def]
    return prepare(open_source(str(folder)), image_size)
