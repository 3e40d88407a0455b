"""Prepare a data set: decode it once into a memory-mapped store, or read its files at each use."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL
from filelock import FileLock
from PIL import features

from pugdft.data.datasets import SPLITS, Contents, EncodedImage, Source
from pugdft.data.decode import NotNative, decode, decoded_split, kept_name
from pugdft.errors import RunFailed, UserError
from pugdft.machine import usable_cores
from pugdft.paths import cache_subfolder, write_atomically

_SHARE = 0.1

LARGER_DISK = "set PUGDFT_CACHE to a folder on a larger disk"

UNPACK = "unpack them into train/CLASS/*.png and test/CLASS/*.png and give that folder as data.name"


class NoRoom(Exception):
    """Decoded images would leave too little free space on the disk."""


def check_room(folder: Path, source: Source, num_bytes: int, keeps_reserve: bool) -> None:
    """Check that a source's decoded images fit on the disk of ``folder``.

    Args:
        num_bytes: what is still to be written of them.
        keeps_reserve: whether a tenth of the disk is to stay free, unless the images take less than a tenth
            of what is free.

    Raises:
        NoRoom: there would be no such reserve.
        UserError: they do not fit. A memory-mapped file would find out late, and end the process.
    """
    usage = shutil.disk_usage(folder)
    if not usage.total:  # not every file system can tell
        return
    found = f"{source.name} takes {_gib(num_bytes)} decoded, {_gib(usage.free)} are free in {folder}"
    is_small = num_bytes <= _SHARE * usage.free
    if keeps_reserve and not is_small and usage.free - num_bytes < _SHARE * usage.total:
        raise NoRoom(found)
    if num_bytes > usage.free:
        otherwise = "data.storage=files, which decodes images each time" if source.folder else UNPACK
        raise UserError(f"{found}. Either {LARGER_DISK}, or {otherwise}")


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:,.2f} GiB"


_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class FileFacts:
    """Digest and size of a data set whose images stay in their files, found by decoding each once.

    Attributes:
        path: where it is kept.
        sha256: over all pixels and labels, as a store has it.
        side: of the decoded images.
        resize_to: as ``decode`` takes it.
        num_images: of both splits together.
    """

    path: Path
    sha256: str
    side: int
    resize_to: int | None
    num_images: int

    @property
    def nbytes(self) -> int:
        """Bytes of all decoded images."""
        return self.num_images * self.side**2 * 3


@dataclass(frozen=True)
class Files:
    """A data set's images in their files, with their labels, by split."""

    facts: FileFacts
    images: Mapping[str, ImageFiles]
    labels: Mapping[str, np.ndarray]


def open_files(contents: Contents, facts: FileFacts) -> Files:
    """Open the images that ``facts`` describe.

    Raises:
        OSError: a file is not there any more.
    """
    images, labels = {}, {}
    for split in SPLITS:
        samples = list(getattr(contents, split).samples())
        images[split] = ImageFiles([each.content for each in samples], facts.side, facts.resize_to)
        labels[split] = np.array([each.label for each in samples], np.int64)
    return Files(facts, images, labels)


def find_facts(root: Path, source: Source, image_size: int) -> FileFacts | None:
    """Read the facts kept for a source; None if they are incomplete or another decoder made them."""
    for resize_to in (None, image_size):
        path = _path(root, source, resize_to)
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            facts = FileFacts(path, kept["sha256"], kept["side"], resize_to, kept["images"])
            is_whole = (
                kept["decoder"] == _decoder()
                and _SHA256.fullmatch(facts.sha256)
                and facts.side in (range(1, image_size + 1) if resize_to is None else (image_size,))
                and type(facts.num_images) is int
            )
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            continue
        if is_whole:
            return facts
    return None


def learn_facts(root: Path, source: Source, contents: Contents, image_size: int) -> FileFacts:
    """Decode every image once and keep its digest and size.

    Raises:
        UserError: an image does not decode, or a split is not usable.
        OSError: ``root`` cannot be written.
    """
    try:
        facts = _learn(root, source, contents, None, image_size)
    except NotNative:
        facts = _learn(root, source, contents, image_size, image_size)
    kept: dict[str, Any] = {
        "source": source.name,
        "sha256": facts.sha256,
        "side": facts.side,
        "images": facts.num_images,
        "decoder": _decoder(),
    }
    write_atomically(facts.path, json.dumps(kept, indent=1).encode())
    return facts


def _learn(
    root: Path, source: Source, contents: Contents, resize_to: int | None, image_size: int
) -> FileFacts:
    digest, sides, num_images = hashlib.sha256(), range(1, image_size + 1), 0
    for split in SPLITS:
        part = getattr(contents, split)
        digest.update(np.array([sample.label for sample in part.samples()], np.int64).tobytes())
        where = f"data set {source.name}: the {split} split"
        for _, pixels in decoded_split(part, where, len(contents.classes), resize_to, sides):
            digest.update(pixels.tobytes())
            sides = range(len(pixels), len(pixels) + 1)
            num_images += 1
    return FileFacts(_path(root, source, resize_to), digest.hexdigest(), sides[0], resize_to, num_images)


def _path(root: Path, source: Source, resize_to: int | None) -> Path:
    return root / f"{kept_name(source.key, resize_to)}.json"


def _decoder() -> str:
    """The libraries that turn files into pixels: another version of one may round otherwise."""
    libraries = ("libjpeg_turbo", "jpg", "webp", "libtiff")
    versions = [features.version(name) for name in libraries if features.check(name)]
    return " ".join(["pillow", PIL.__version__, *map(str, versions)])


_REMEDY = (
    "Images that are not kept decoded (data.storage) must stay as they are while a run reads them: "
    "put the file back, and the same command goes on"
)


def cores() -> int:
    """Count the processor cores that each training process may use."""
    return max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


class ImageFiles:
    """The images of a split as an array that decodes its files at each access.

    An index gives one image, (side, side, 3); an array of indices or a slice gives theirs, (images, side,
    side, 3), decoded by a thread for each core. In a process that it was sent to there is one thread:
    workers are as many as cores.

    Args:
        files: paths, which must stay as they are for as long as the images are read.
        side: of the decoded images.
        resize_to: as ``decode`` takes it.

    Raises:
        OSError: a file is not there.
        RunFailed: on reading: a file is gone, does not decode, or is another than it was.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, files: Sequence[Path], side: int, resize_to: int | None) -> None:
        self.shape = (len(files), side, side, 3)
        self._resize_to, self._num_threads = resize_to, cores()
        self._files = [str(file) for file in files]  # smaller than paths, and quick to send
        self._stamps = np.array([_stamp(file) for file in self._files], np.int64).reshape(-1, 2)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_num_threads": 1}

    def __len__(self) -> int:
        return len(self._files)

    @property
    def nbytes(self) -> int:
        """Bytes of all decoded images."""
        return int(np.prod(self.shape, dtype=np.int64))

    def __getitem__(self, key: int | np.integer | slice | np.ndarray) -> np.ndarray:
        if isinstance(key, int | np.integer):
            return self._decoded(int(key))
        chosen = np.arange(len(self))[key]
        out = np.empty((len(chosen), *self.shape[1:]), self.dtype)
        self.read(chosen, out)
        return out

    def read(self, chosen: np.ndarray, out: np.ndarray) -> None:
        """Decode images into the rows of ``out``, uint8, (images, side, side, 3)."""

        def fill(row: int) -> None:
            out[row] = self._decoded(int(chosen[row]))

        if self._num_threads == 1 or len(chosen) == 1:
            for row in range(len(chosen)):
                fill(row)
            return
        with ThreadPoolExecutor(self._num_threads) as pool:  # decoding releases the interpreter lock
            for _ in pool.map(fill, range(len(chosen))):
                pass

    def _decoded(self, index: int) -> np.ndarray:
        file = self._files[index]
        try:
            pixels = decode(EncodedImage(Path(file), 0, file), self._resize_to)
            is_same = _stamp(file) == tuple(self._stamps[index]) and pixels.shape == self.shape[1:]
        except (UserError, OSError) as error:
            reason = f"{file}: {error.strerror}" if isinstance(error, OSError) else str(error)
            raise RunFailed(f"{reason}. {_REMEDY}") from None
        if not is_same:
            # The run's record names the digest of other pixels.
            raise RunFailed(f"{file}: this image has changed since it was first read. {_REMEDY}")
        return pixels


Pixels = np.ndarray | ImageFiles
"""uint8, (images, side, side, 3)."""


def _stamp(file: str) -> tuple[int, int]:
    stat = os.stat(file)
    return stat.st_size, stat.st_mtime_ns


Storage = Literal["auto", "decoded", "files"]

_META = "meta.json"

_CHUNK = 512


@dataclass(frozen=True)
class Store:
    """A prepared data set.

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
        """The folder or file in the cache that belongs to it."""
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
    """Open a source's store; decode it now if it does not exist, or use the images' own files.

    Args:
        source: the images.
        image_size: side of the square that the backbone sees.
        storage: ``decoded``; ``files``, where each image is one; or ``auto``: files where the disk has no
            room for decoded images and none are there.
        on_message: called with a message if `auto` chooses to read the files.

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
    """Open or build the decoded store.

    Raises:
        NoRoom: ``keeps_reserve`` is set and the free space would fall below the reserve.
    """
    if store := find_store(root, source, image_size):
        return store
    if keeps_reserve and (facts := find_facts(root, source, image_size)):
        check_room(root, source, facts.nbytes, keeps_reserve)  # without decoding anything
    with FileLock(root / f"{source.key}.lock"):
        if store := find_store(root, source, image_size):
            return store
        contents = source.read()
        try:
            return _build(root, source, contents, None, image_size, keeps_reserve)
        except NotNative:
            return _build(root, source, contents, image_size, image_size, keeps_reserve)


def find_store(root: Path, source: Source, image_size: int) -> Store | None:
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
    """Write a split's arrays; return the side of its images, one of ``sides``."""
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
