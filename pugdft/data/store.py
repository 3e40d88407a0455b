"""The store of a data set: every image decoded once to uint8, memory-mapped, under the cache folder.

``stores/KEY-vVERSION-native/`` holds images as they are if all, of both splits, are squares of one size
that is not above the backbone's; else ``stores/KEY-vVERSION-SIZE/`` holds them resized (shorter side to
SIZE, bicubic, antialiased) and centre-cropped. A folder is complete or absent: it is built beside and
renamed, under a lock, so that two processes preparing the same data at once do it once. A damaged one is
replaced in the same way, by whoever holds the lock.

Image files for whose pixels the disk has no room are read from the files instead, each time: the same
pixels, and nothing else differs but speed (``image_files.py``).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock

from pugdft.data.contents import SPLITS, Contents, Source
from pugdft.data.decoding import NotNative, decoded_split, kept_name
from pugdft.data.disk_room import LARGER_DISK, UNPACK, NoRoom, check_room
from pugdft.data.file_facts import Files, find_facts, learn_facts, open_files
from pugdft.data.image_files import Pixels
from pugdft.errors import UserError
from pugdft.folders import cache_subfolder

Storage = Literal["auto", "decoded", "files"]

_META = "meta.json"
_CHUNK = 512


@dataclass(frozen=True)
class Store:
    """A data set that is ready to be read.

    Attributes:
        name: the source's name.
        folder: where the decoded images lie, or the images' own files.
        classes: names in label order.
        sha256: over all pixels and labels, so that equal data has equal digests whatever it came from.
        files: the images' own files, if no decoded ones are kept.
    """

    name: str
    folder: Path
    classes: list[str]
    sha256: str
    files: Files | None = None

    @property
    def kept(self) -> Path:
        """What the cache has of it: a folder, or one file."""
        return self.files.facts.path if self.files else self.folder

    def images(self, split: str) -> Pixels:
        """uint8, (images, side, side, 3), read-only: memory-mapped, or decoded from files each time."""
        if self.files:
            return self.files.images[split]
        return np.load(self.folder / f"{split}_images.npy", mmap_mode="r", allow_pickle=False)

    def labels(self, split: str) -> np.ndarray:
        """int64, (images,)."""
        if self.files:
            return self.files.labels[split]
        return np.load(self.folder / f"{split}_labels.npy", allow_pickle=False)

    def content_sha256(self) -> str:
        """sha256 (hex) over the labels and pixels as they are now: what ``sha256`` must say."""
        digest = hashlib.sha256()
        for split in SPLITS:
            digest.update(self.labels(split).tobytes())
            images = self.images(split)
            for start in range(0, len(images), _CHUNK):
                digest.update(np.ascontiguousarray(images[start : start + _CHUNK]).tobytes())
        return digest.hexdigest()


def prepare(
    source: Source,
    image_size: int,
    storage: Storage = "auto",
    on_message: Callable[[str], None] | None = None,
) -> Store:
    """The store of a source, decoded now if it is not there yet, or the images' own files.

    Args:
        source: the images.
        image_size: side of the square that the backbone sees.
        storage: ``decoded``; ``files``, where each image is one; or ``auto``: files where the disk has no
            room for decoded images and none are there.
        on_message: hears that images are read from their files unasked.

    Raises:
        UserError: an image does not decode, a label or a split is not usable, the cache cannot be read
            or written, the disk is too small, the source has no files of its own.
    """
    root = cache_subfolder("stores")
    try:
        if storage == "files":
            return _files_store(root, source, image_size)
        return _decoded_store(root, source, image_size, storage == "auto" and source.folder is not None)
    except NoRoom as problem:
        if on_message is not None:
            on_message(f"{problem}: images are decoded from their files each time")
        return prepare(source, image_size, "files")
    except OSError as error:
        raise UserError(
            f"{error.filename or root}: {error.strerror or error}. Decoded images are kept in {root}; "
            "PUGDFT_CACHE chooses another folder"
        ) from None


def content_sha256(folder: Path) -> str:
    """sha256 (hex) over the labels and pixels of a store's files: what ``meta.json`` must say."""
    return Store("", folder, [], "").content_sha256()


def _files_store(root: Path, source: Source, image_size: int) -> Store:
    if source.folder is None:
        raise UserError(
            f"data.storage: files is for folders of image files; the images of {source.name} lie in tables. "
            f"Either {UNPACK}, or {LARGER_DISK} and leave data.storage at auto"
        )
    contents = source.read()
    facts = find_facts(root, source, image_size)
    if facts is None:
        with FileLock(root / f"{source.key}-files.lock"):
            facts = find_facts(root, source, image_size) or learn_facts(root, source, contents, image_size)
    files = open_files(contents, facts)
    return Store(source.name, source.folder, contents.classes, facts.sha256, files)


def _decoded_store(root: Path, source: Source, image_size: int, keeps_reserve: bool) -> Store:
    """The decoded store.

    Raises:
        NoRoom: ``keeps_reserve`` is wanted and cannot be.
    """
    if store := _find(root, source, image_size):
        return store
    if keeps_reserve and (facts := find_facts(root, source, image_size)):
        check_room(root, source, facts.nbytes, keeps_reserve)  # without decoding anything
    with FileLock(root / f"{source.key}.lock"):
        if store := _find(root, source, image_size):
            return store
        contents = source.read()
        try:
            return _build(root, source, contents, None, image_size, keeps_reserve)
        except NotNative:
            return _build(root, source, contents, image_size, image_size, keeps_reserve)


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
    return root / kept_name(source.key, resize_to)


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


def _build(
    root: Path,
    source: Source,
    contents: Contents,
    resize_to: int | None,
    image_size: int,
    keeps_reserve: bool,
) -> Store:
    temporary = Path(tempfile.mkdtemp(dir=root, prefix=".making-"))
    try:
        sides = range(1, image_size + 1)
        num_left = sum(getattr(contents, split).size for split in SPLITS)
        for split in SPLITS:

            def fits(num_bytes: int, num_images: int = num_left) -> None:
                check_room(root, source, num_images * num_bytes, keeps_reserve)

            where = f"data set {source.name}: the {split} split"
            side = _decode_split(temporary, split, where, contents, resize_to, sides, fits)
            sides = range(side, side + 1)  # one resize on the device serves both splits
            num_left -= getattr(contents, split).size
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
    folder: Path,
    split: str,
    where: str,
    contents: Contents,
    resize_to: int | None,
    sides: range,
    check_image_bytes: Callable[[int], None],
) -> int:
    """Write a split's files; returns the side of its images, which is one of ``sides``."""
    part = getattr(contents, split)
    labels = np.empty(part.size, np.int64)
    images: np.memmap[Any, Any] | None = None
    decoded = decoded_split(part, where, len(contents.classes), resize_to, sides)
    for row, (sample, pixels) in enumerate(decoded):
        if images is None:
            check_image_bytes(pixels.nbytes)
            shape = (part.size, *pixels.shape)
            images = np.lib.format.open_memmap(folder / f"{split}_images.npy", "w+", np.uint8, shape)
        images[row], labels[row] = pixels, sample.label
    assert images is not None
    assert row == part.size - 1
    images.flush()
    np.save(folder / f"{split}_labels.npy", labels)
    return int(images.shape[1])
