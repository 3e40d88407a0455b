"""Prepare a data set: decode it once into a memory-mapped store, or read its files at each use."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import PIL
from filelock import FileLock
from PIL import features
from pydantic import BaseModel, ConfigDict, Field

from pugdft.data.decode import NotNative, decode, decoded_images, kept_name
from pugdft.data.source import SPLITS, Contents, EncodedImage, Source, Split, writable
from pugdft.errors import RunFailed, UserError, human_bytes, reason, refuse
from pugdft.machine import usable_cores
from pugdft.paths import cache_folder, cache_subfolder, write_atomically

Storage = Literal["auto", "decoded", "files"]

_META = "meta.json"
_CHUNK = 512
_RESERVE = 0.1  # of the disk, and of what is free on it
_LARGER_DISK = "set PUGDFT_CACHE to a folder on a larger disk"
_UNPACK = "unpack them into train/CLASS/*.png and test/CLASS/*.png and give that folder as data.name"
_REMEDY = (
    "Images that are not kept decoded (data.storage) must stay as they are while a run reads them: "
    "put the file back, and the same command goes on"
)


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
    needed, free = map(human_bytes, (num_bytes, usage.free))
    found = f"{source.name} takes {needed} decoded, {free} are free in {folder}"
    is_small = num_bytes <= _RESERVE * usage.free
    if keeps_reserve and not is_small and usage.free - num_bytes < _RESERVE * usage.total:
        raise NoRoom(found)
    if num_bytes > usage.free:
        otherwise = "data.storage=files, which decodes images each time" if source.folder else _UNPACK
        raise UserError(f"{found}. Either {_LARGER_DISK}, or {otherwise}")


class FileFacts(BaseModel):
    """Digest and size of a data set whose images stay in their files, found by decoding each once.

    Attributes:
        source: the data set's name.
        sha256: over all pixels and labels, as a store has it.
        side: of the decoded images.
        resize_to: as ``decode`` takes it.
        images: how many, in all splits together.
        notes: what a person should know of them.
        decoder: the libraries that turned files into pixels: another version of one may round otherwise.
    """

    model_config = ConfigDict(strict=True, frozen=True)

    source: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    side: Annotated[int, Field(ge=1)]
    resize_to: int | None
    images: int
    notes: list[str]
    decoder: str


def _decoder() -> str:
    """The versions of the libraries that decode images."""
    libraries = ("libjpeg_turbo", "jpg", "webp", "libtiff")
    versions = [features.version(name) for name in libraries if features.check(name)]
    return " ".join(["pillow", PIL.__version__, *map(str, versions)])


def _facts_path(root: Path, source: Source, resize_to: int | None) -> Path:
    return root / f"{kept_name(source.key, resize_to)}.json"


def kept_facts(root: Path, source: Source, image_size: int) -> FileFacts | None:
    """Read the facts kept for a source; None if they are damaged or another decoder made them."""
    for resize_to in (None, image_size):
        with suppress(FileNotFoundError, ValueError):
            kept = _facts_path(root, source, resize_to).read_text(encoding="utf-8")
            facts = FileFacts.model_validate_json(kept)
            if facts.decoder == _decoder() and facts.side <= image_size:
                return facts
    return None


def _learn_facts(source: Source, contents: Contents, resize_to: int | None, image_size: int) -> FileFacts:
    """Decode every image once for the digest and the size of all.

    Raises:
        NotNative, UserError: as ``decoded_images``.
    """
    digest, num_images, side, notes = hashlib.sha256(), 0, 0, list(contents.notes)
    for split, row, _, pixels in decoded_images(source.name, contents, resize_to, image_size, notes):
        if row == 0:
            digest.update(_labels(contents.splits[split]).tobytes())
        digest.update(pixels.tobytes())
        num_images, side = num_images + 1, len(pixels)
    return FileFacts(
        source=source.name, sha256=digest.hexdigest(), side=side, resize_to=resize_to, images=num_images,
        notes=notes, decoder=_decoder(),
    )  # fmt: skip


def _labels(split: Split) -> np.ndarray:
    return np.array([sample.label for sample in split.samples()], np.int64)


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
            what = f"{file}: {error.strerror}" if isinstance(error, OSError) else str(error)
            raise RunFailed(f"{what}. {_REMEDY}") from None
        if not is_same:
            # The run's record names the digest of other pixels.
            raise RunFailed(f"{file}: this image has changed since it was first read. {_REMEDY}")
        return pixels


Pixels = np.ndarray | ImageFiles
"""uint8, (images, side, side, 3)."""


def _stamp(file: str) -> tuple[int, int]:
    stat = os.stat(file)
    return stat.st_size, stat.st_mtime_ns


@dataclass(frozen=True)
class Store:
    """A prepared data set.

    Attributes:
        name: the source's name.
        folder: where the decoded images lie, or the images' own files.
        classes: names in label order.
        sha256: over all pixels and labels, so that equal data has equal digests whatever it came from.
        kept: the folder or file in the cache that belongs to it.
        files: images and labels by split, if no decoded images are kept.
        notes: what a person should know of the images.
        paths: of each split's images, relative to the data's folder; empty where images lie in tables.
    """

    name: str
    folder: Path
    classes: list[str]
    sha256: str
    kept: Path
    files: Mapping[str, tuple[ImageFiles, np.ndarray]] | None = None
    notes: tuple[str, ...] = ()
    paths: Mapping[str, list[str]] = field(default_factory=dict)

    @property
    def splits(self) -> list[str]:
        """``train``, ``test``, and ``validation`` where the data set has one of its own."""
        if self.files:
            return list(self.files)
        has_own = (self.folder / "validation_images.npy").exists()
        return [split for split in SPLITS if split != "validation" or has_own]

    def images(self, split: str) -> Pixels:
        """uint8, (images, side, side, 3), read-only: memory-mapped, or decoded from files each time."""
        if self.files:
            return self.files[split][0]
        return np.load(self.folder / f"{split}_images.npy", mmap_mode="r", allow_pickle=False)

    def labels(self, split: str) -> np.ndarray:
        """int64, (images,)."""
        if self.files:
            return self.files[split][1]
        return np.load(self.folder / f"{split}_labels.npy", allow_pickle=False)

    def content_sha256(self) -> str:
        """sha256 (hex) over the labels and pixels as they are now: what ``sha256`` must say."""
        digest = hashlib.sha256()
        for split in self.splits:
            digest.update(self.labels(split).tobytes())
            images = self.images(split)
            for start in range(0, len(images), _CHUNK):
                digest.update(np.ascontiguousarray(images[start : start + _CHUNK]).tobytes())
        return digest.hexdigest()


def content_sha256(folder: Path) -> str:
    """sha256 (hex) over the labels and pixels of a store's files: what ``meta.json`` must say."""
    return Store("", folder, [], "", folder).content_sha256()


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
        on_message: called with what a person should know: files left out, the choice of splits, storage.

    Raises:
        UserError: an image does not decode, a label or a split is not usable, the cache cannot be read
            or written, the disk is too small, the source has no files of its own.
    """
    say = on_message or (lambda text: None)
    for note in source.notes:
        say(note)
    store = _prepared(source, image_size, storage, say)
    for note in store.notes:
        say(note)
    if source.folder is None:
        return store
    splits = source.read().splits
    return replace(store, paths={name: _relative(splits[name], source.folder) for name in splits})


def _relative(split: Split, folder: Path) -> list[str]:
    """Each image's path in the folder of its data set, as text that UTF-8 can write."""
    root, files = f"{folder}{os.sep}", (str(sample.content) for sample in split.samples())
    return [
        writable(file.removeprefix(root) if file.startswith(root) else os.path.relpath(file, folder))
        for file in files
    ]


def known_classes(source: Source, image_size: int) -> list[str] | None:
    """Class names of a source whose images were decoded before; None if they are still to be."""
    root = cache_subfolder("stores")
    with _explained(root):
        if store := find_store(root, source, image_size):
            return store.classes
        return source.read().classes if kept_facts(root, source, image_size) else None


def known_sha256(source: Source, image_size: int) -> str | None:
    """The digest of a source's pixels and labels, as records have it; None if they were never prepared."""
    root = cache_folder() / "stores"
    found = find_store(root, source, image_size) or kept_facts(root, source, image_size)
    return found.sha256 if found else None


def _explained(root: Path) -> AbstractContextManager[None]:
    otherwise = f"Decoded images are kept in {root}; PUGDFT_CACHE chooses another folder"
    return refuse(OSError, lambda error: f"{error.filename or root}: {reason(error)}. {otherwise}")


def _prepared(source: Source, image_size: int, storage: Storage, say: Callable[[str], None]) -> Store:
    root = cache_subfolder("stores")
    with _explained(root):
        if storage == "files":
            return _files_store(root, source, image_size)
        try:
            return _decoded_store(root, source, image_size, storage == "auto" and source.folder is not None)
        except NoRoom as problem:
            say(f"{problem}: images are decoded from their files each time")
        return _files_store(root, source, image_size)


def _files_store(root: Path, source: Source, image_size: int) -> Store:
    """Open the images in their own files; decode them first if their digest is not known."""
    if source.folder is None:
        raise UserError(
            f"data.storage: files is for folders of image files; the images of {source.name} lie in tables. "
            f"Either {_UNPACK}, or {_LARGER_DISK} and leave data.storage at auto"
        )
    contents = source.read()
    facts = kept_facts(root, source, image_size)
    if facts is None:
        with FileLock(root / f"{source.key}-files.lock"):
            facts = kept_facts(root, source, image_size)
            if facts is None:
                with suppress(NotNative):
                    facts = _learn_facts(source, contents, None, image_size)
                facts = facts or _learn_facts(source, contents, image_size, image_size)
                kept = _facts_path(root, source, facts.resize_to)
                write_atomically(kept, facts.model_dump_json(indent=1).encode())
    files = {}
    for name, split in contents.splits.items():
        paths = [sample.content for sample in split.samples() if isinstance(sample.content, Path)]
        files[name] = ImageFiles(paths, facts.side, facts.resize_to), _labels(split)
    kept = _facts_path(root, source, facts.resize_to)
    return Store(source.name, source.folder, contents.classes, facts.sha256, kept, files, tuple(facts.notes))


def _decoded_store(root: Path, source: Source, image_size: int, keeps_reserve: bool) -> Store:
    """Open or build the decoded store; ``keeps_reserve`` as in ``check_room``."""
    if store := find_store(root, source, image_size):
        return store
    if keeps_reserve and (facts := kept_facts(root, source, image_size)):
        check_room(root, source, facts.images * facts.side**2 * 3, keeps_reserve)  # nothing is decoded yet
    with FileLock(root / f"{source.key}.lock"):
        if store := find_store(root, source, image_size):
            return store
        contents = source.read()
        with suppress(NotNative):
            return _build(root, source, contents, None, image_size, keeps_reserve)
        return _build(root, source, contents, image_size, image_size, keeps_reserve)


def find_store(root: Path, source: Source, image_size: int) -> Store | None:
    """Find the whole store of a source; None if it is absent or damaged, and is to be built.

    Raises:
        OSError: it cannot be read just now, which says nothing about its content.
    """
    for resize_to in (None, image_size):
        folder = root / kept_name(source.key, resize_to)
        with suppress(FileNotFoundError, EOFError, ValueError, KeyError, TypeError):
            meta = json.loads((folder / _META).read_text())
            classes, sha256, notes = list(meta["classes"]), str(meta["sha256"]), tuple(meta["notes"])
            store = Store(source.name, folder, classes, sha256, folder, notes=notes)
            sides = [_checked_side(store, split) for split in meta["splits"]]
            if max(sides) <= image_size:
                return store
    return None


def _checked_side(store: Store, split: str) -> int:
    """The side of a split's images; an error if a file is missing or is not what was written."""
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
    """Decode all images into a new store, which takes the place of a damaged one."""
    folder = root / kept_name(source.key, resize_to)
    num_left, notes = sum(split.size for split in contents.splits.values()), list(contents.notes)
    images: dict[str, np.memmap[Any, Any]] = {}
    with tempfile.TemporaryDirectory(dir=root, prefix=".making-", ignore_cleanup_errors=True) as temporary:
        making = Path(temporary) / "store"
        making.mkdir()
        decoded = decoded_images(source.name, contents, resize_to, image_size, notes)
        for split, row, sample, pixels in decoded:
            if row == 0:
                size = contents.splits[split].size
                check_room(root, source, num_left * pixels.nbytes, keeps_reserve)
                num_left -= size
                path = making / f"{split}_images.npy"
                images[split] = np.lib.format.open_memmap(path, "w+", np.uint8, (size, *pixels.shape))
                labels = np.empty(size, np.int64)
            images[split][row], labels[row] = pixels, sample.label
            if row == size - 1:
                images[split].flush()
                np.save(making / f"{split}_labels.npy", labels)
        sha256 = content_sha256(making)
        meta = {"source": source.name, "classes": contents.classes, "sha256": sha256}
        meta |= {"splits": list(contents.splits), "notes": notes}
        (making / _META).write_text(json.dumps(meta, indent=1))
        shutil.rmtree(folder, ignore_errors=True)
        making.rename(folder)
    return Store(source.name, folder, contents.classes, sha256, folder, notes=tuple(notes))
