"""The decoded store: every image once as uint8, memory-mapped, under the cache folder.

``stores/KEY-vVERSION-native/`` holds images as they are if all, of both splits, are squares of one size
that is not above the backbone's; else ``stores/KEY-vVERSION-SIZE/`` holds them resized (shorter side to
SIZE, bicubic, antialiased) and centre-cropped. A folder is complete or absent: it is built beside and
renamed, under a lock, so that two processes preparing the same data at once do it once. A damaged one is
replaced in the same way, by whoever holds the lock.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from pugdft.data.contents import Contents, Sample, Source
from pugdft.data.decoding import DECODING_VERSION, decode
from pugdft.errors import UserError
from pugdft.folders import cache_subfolder

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
        UserError: an image does not decode, a label or a split is not usable, the cache cannot be read
            or written.
    """
    root = cache_subfolder("stores")
    try:
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
    except OSError as error:
        raise UserError(
            f"{error.filename or root}: {error.strerror or error}. Decoded images are kept in {root}; "
            "PUGDFT_CACHE chooses another folder"
        ) from None


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
    for resize_to in (None, image_size):
        folder = _folder(root, source, resize_to)
        try:
            meta = json.loads((folder / _META).read_text())
            store = Store(source.name, folder, list(meta["classes"]), str(meta["sha256"]))
            sides = [_checked_side(store, split) for split in SPLITS]
        except (FileNotFoundError, EOFError, ValueError, KeyError, TypeError):
            # Absent or damaged, which is the same: building replaces it. Nothing is deleted here, where
            # another process may be building; and any other OSError says nothing about the content.
            continue
        if max(sides) <= image_size:
            return store
    return None


def _folder(root: Path, source: Source, resize_to: int | None) -> Path:
    return root / f"{source.key}-v{DECODING_VERSION}-{resize_to or 'native'}"


def _checked_side(store: Store, split: str) -> int:
    """The side of a split's images.

    Raises:
        FileNotFoundError, EOFError, ValueError: a file is missing, or is not what was written.
    """
    images, labels = store.images(split), store.labels(split)
    num_images, height, width, _ = images.shape
    if labels.shape != (num_images,) or height != width:
        raise ValueError(f"{split} images of shape {images.shape}, labels of shape {labels.shape}")
    return height


def _build(root: Path, source: Source, contents: Contents, resize_to: int | None, image_size: int) -> Store:
    temporary = Path(tempfile.mkdtemp(dir=root, prefix=".making-"))
    try:
        sides = range(1, image_size + 1)
        for split in SPLITS:
            where = f"data set {source.name}: the {split} split"
            side = _decode_split(temporary, split, where, contents, resize_to, sides)
            sides = range(side, side + 1)  # one resize on the device serves both splits
        sha256 = content_sha256(temporary)
        meta = {"source": source.name, "classes": contents.classes, "sha256": sha256}
        (temporary / _META).write_text(json.dumps(meta, indent=1))
        temporary.chmod(0o755)
        folder = _folder(root, source, resize_to)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return Store(source.name, folder, contents.classes, sha256)


def _decode_split(
    folder: Path, split: str, where: str, contents: Contents, resize_to: int | None, sides: range
) -> int:
    """Write a split's files; returns the side of its images, which is one of ``sides``."""
    part = getattr(contents, split)
    if part.size == 0:
        raise UserError(f"{where} is empty")
    labels = np.empty(part.size, np.int64)
    images: np.memmap[Any, Any] | None = None
    row = 0
    with ThreadPoolExecutor() as pool:  # decoding releases the interpreter lock
        for chunk in _chunks(part.samples()):
            for sample, pixels in zip(chunk, pool.map(lambda s: decode(s, resize_to), chunk), strict=True):
                height, width, _ = pixels.shape
                if images is None:
                    if height != width or height not in sides:
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
    assert row == part.size
    images.flush()
    if len(np.unique(labels)) < 2:
        raise UserError(f"{where} has one class only; at least two are needed")
    np.save(folder / f"{split}_labels.npy", labels)
    return int(images.shape[1])


def _chunks(samples: Iterator[Sample]) -> Iterator[list[Sample]]:
    while chunk := list(islice(samples, _CHUNK)):
        yield chunk
