"""The decoded store: every image once as uint8, memory-mapped, under the cache folder.

``stores/KEY-native/`` holds images as they are if all are squares of one size that is not above the
backbone's; else ``stores/KEY-SIZE/`` holds them resized (shorter side to SIZE, bicubic, antialiased) and
centre-cropped. A folder is complete or absent: it is built beside and renamed, under a lock, so that two
processes preparing the same data at once do it once.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from PIL import Image

from pugdft.data.contents import Contents, Sample, Source
from pugdft.errors import UserError
from pugdft.folders import cache_folder

SPLITS = ("train", "test")
_META = "meta.json"
_CHUNK = 512


class _NotNative(Exception):
    """The images cannot be stored as they are."""


@dataclass(frozen=True)
class Store:
    """A decoded data set.

    Attributes:
        name: the source's name.
        folder: where it lies.
        classes: names in label order.
        sha256: over all pixels and labels, so that equal data has equal digests whatever it came from.
    """

    name: str
    folder: Path
    classes: list[str]
    sha256: str

    def images(self, split: str) -> np.ndarray:
        """uint8, (images, side, side, 3), read-only and memory-mapped."""
        return np.load(self.folder / f"{split}_images.npy", mmap_mode="r", allow_pickle=False)

    def labels(self, split: str) -> np.ndarray:
        """int64, (images,)."""
        return np.load(self.folder / f"{split}_labels.npy", allow_pickle=False)


def prepare(source: Source, image_size: int) -> Store:
    """The store of a source, decoded now if it is not there yet.

    Args:
        source: the images.
        image_size: side of the square that the backbone sees.

    Raises:
        UserError: an image does not decode, a label or a split is not usable.
    """
    root = cache_folder() / "stores"
    root.mkdir(parents=True, exist_ok=True)
    if store := _find(root, source, image_size):
        return store
    with FileLock(root / f"{source.key}.lock"):
        if store := _find(root, source, image_size):
            return store
        contents = source.read()
        try:
            return _build(root, source, contents, None, image_size)
        except _NotNative:
            return _build(root, source, contents, image_size, image_size)


def content_sha256(folder: Path) -> str:
    """sha256 (hex) over the labels and pixels of a store's files: what ``meta.json`` must say."""
    digest = hashlib.sha256()
    for split in SPLITS:
        digest.update(np.load(folder / f"{split}_labels.npy", allow_pickle=False).tobytes())
        images = np.load(folder / f"{split}_images.npy", mmap_mode="r", allow_pickle=False)
        for start in range(0, len(images), _CHUNK):
            digest.update(np.ascontiguousarray(images[start : start + _CHUNK]).tobytes())
    return digest.hexdigest()


def _find(root: Path, source: Source, image_size: int) -> Store | None:
    for kind in ("native", str(image_size)):
        folder = root / f"{source.key}-{kind}"
        try:
            meta = json.loads((folder / _META).read_text())
            store = Store(source.name, folder, meta["classes"], meta["sha256"])
            sides = [store.images(split).shape[1] for split in SPLITS]
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError):
            shutil.rmtree(folder, ignore_errors=True)  # damaged: it can be made again
            continue
        if max(sides) <= image_size:
            return store
    return None


def _build(root: Path, source: Source, contents: Contents, resize_to: int | None, image_size: int) -> Store:
    temporary = Path(tempfile.mkdtemp(dir=root, prefix=".making-"))
    try:
        for split in SPLITS:
            _decode_split(temporary, split, contents, resize_to, image_size)
        sha256 = content_sha256(temporary)
        meta = {"source": source.name, "classes": contents.classes, "sha256": sha256}
        (temporary / _META).write_text(json.dumps(meta, indent=1))
        temporary.chmod(0o755)
        folder = root / f"{source.key}-{resize_to or 'native'}"
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return Store(source.name, folder, contents.classes, sha256)


def _decode_split(
    folder: Path, split: str, contents: Contents, resize_to: int | None, image_size: int
) -> None:
    part = getattr(contents, split)
    if part.size == 0:
        raise UserError(f"data.name: the {split} split is empty")
    labels = np.empty(part.size, np.int64)
    images: np.memmap[Any, Any] | None = None
    row = 0
    with ThreadPoolExecutor() as pool:  # decoding releases the interpreter lock
        for chunk in _chunks(part.samples()):
            for sample, pixels in zip(chunk, pool.map(lambda s: decode(s, resize_to), chunk), strict=True):
                height, width, _ = pixels.shape
                if images is None:
                    if height != width or height > image_size:
                        raise _NotNative
                    shape = (part.size, height, width, 3)
                    path = folder / f"{split}_images.npy"
                    images = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
                if pixels.shape != images.shape[1:]:
                    raise _NotNative
                if not 0 <= sample.label < len(contents.classes):
                    raise UserError(f"{sample.where}: label {sample.label} is not one of the classes")
                images[row], labels[row] = pixels, sample.label
                row += 1
    assert images is not None
    images.flush()
    if len(np.unique(labels)) < 2:
        raise UserError(f"data.name: the {split} split has one class only; at least two are needed")
    np.save(folder / f"{split}_labels.npy", labels)


def decode(sample: Sample, resize_to: int | None = None) -> np.ndarray:
    """uint8 RGB pixels, (height, width, 3); grey, palette and RGBA images are converted.

    Raises:
        UserError: not an image, or a damaged one; the message says which.
    """
    try:
        content = BytesIO(sample.content) if isinstance(sample.content, bytes) else sample.content
        with Image.open(content) as opened:
            image: Image.Image = opened
            if image.mode.startswith("I"):  # 16-bit grey: conversion to RGB would clip, not scale
                grey = np.asarray(image, np.float64) / 257
                image = Image.fromarray(grey.clip(0, 255).round().astype(np.uint8))
            rgb = image.convert("RGB")
            if resize_to is not None:
                rgb = _resize_and_crop(rgb, resize_to)
            return np.asarray(rgb)
    except Exception as error:  # Pillow's decoders raise many kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{sample.where}: this image does not decode: {reason}") from None


def _resize_and_crop(image: Image.Image, side: int) -> Image.Image:
    scale = side / min(image.size)
    width, height = (max(side, round(length * scale)) for length in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - side) // 2, (height - side) // 2
    return resized.crop((left, top, left + side, top + side))


def _chunks(samples: Iterator[Sample]) -> Iterator[list[Sample]]:
    while chunk := list(islice(samples, _CHUNK)):
        yield chunk
