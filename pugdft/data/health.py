"""Find out which decoded stores are whole, and what killed preparations of data left in the cache."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_STORE = re.compile(r"[0-9a-f]{64}-v(?P<version>\d+)-(native|\d+)")
_LOCK = re.compile(r"[0-9a-f]{64}(-files)?\.lock")
_STALE_SECONDS = 3600.0


def find_stores(root: Path) -> list[Path]:
    """Find the folders of decoded images, whole or not."""
    return [each for each in _entries(root) if _is_store(each)]


def store_fault(folder: Path, deep: bool = False) -> tuple[str, str]:
    """Name a store with its images, and what is wrong with it; ``deep``: after reading every byte."""
    from pugdft.data.cache import content_sha256

    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        num_images, side = _check_arrays(folder, len(list(meta["classes"])))
        if deep and content_sha256(folder) != meta["sha256"]:
            raise ValueError("its pixels or labels are not those that were decoded")
        return f"{meta['source']} ({num_images:,} × {side}²)", ""
    except Exception as error:  # a damaged file can raise anything
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        return "", " ".join(f"{kind}{error}".split())[:300]


def _check_arrays(folder: Path, num_classes: int) -> tuple[int, int]:
    """Return the number of images in both splits, and their side.

    Raises:
        ValueError: a file has another shape, size or content than a store's.
        OSError: one is missing or cannot be read.
    """
    import numpy as np

    num_images, sides = 0, set()
    for split in ("train", "test"):
        path = folder / f"{split}_images.npy"
        images = np.load(path, mmap_mode="r", allow_pickle=False)
        labels = np.load(folder / f"{split}_labels.npy", allow_pickle=False)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (*images.shape[1:2] * 2, 3):
            raise ValueError(f"{path.name} holds {images.dtype} of shape {images.shape}")
        if path.stat().st_size != images.offset + images.nbytes:
            raise ValueError(f"{path.name} has {path.stat().st_size} bytes instead of {images.nbytes}")
        if labels.shape != images.shape[:1] or labels.min() < 0 or labels.max() >= num_classes:
            raise ValueError(f"{split}_labels.npy does not fit {path.name} and {num_classes} classes")
        num_images += len(images)
        sides.add(images.shape[1])
    if len(sides) != 1:
        raise ValueError(f"train and test images have the sides {sorted(sides)}")
    return num_images, sides.pop()


def leftovers(root: Path) -> list[Path]:
    """Find the folders and lock files that killed preparations left, unused for an hour.

    While anybody prepares data here, no folder counts: its name does not say whose it is. A lock counts if
    nobody holds it and no store came of it; the lock beside a store stays there by design.
    """
    entries = _entries(root)
    locks = {each: is_held(each) for each in entries if _LOCK.fullmatch(each.name) and not each.is_symlink()}
    kept = {each.name[:64] for each in entries if _is_store(each) or _STORE.fullmatch(each.stem)}
    found = []
    if not any(locks.values()):
        found = [
            each for each in entries
            if each.name.startswith(".making-") and each.is_dir() and not each.is_symlink()
        ]  # fmt: skip
    found += [lock for lock, held in locks.items() if not held and lock.name[:64] not in kept]
    return [each for each in found if _is_old(each)]


def remove_leftovers(found: Iterable[Path]) -> tuple[int, list[tuple[Path, str]]]:
    """Remove leftovers; return the bytes freed, and what could not be removed with the reason."""
    freed, kept = 0, []
    for path in found:
        num_bytes = bytes_below(path)
        try:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                with locking(path) as is_free:  # held while it is removed: whoever comes now sees it gone
                    if is_free:
                        path.unlink()
        except OSError as error:
            kept.append((path, error.strerror or str(error)))
        freed += 0 if path.exists() else num_bytes
    return freed, kept


def bytes_below(path: Path) -> int:
    """Return what a file or a folder's content takes on the disk; links are not followed."""
    return sum(each.lstat().st_blocks * 512 for each in (path, *path.rglob("*")))


def _entries(root: Path) -> list[Path]:
    return sorted(root.iterdir()) if root.is_dir() else []


def _is_store(path: Path) -> bool:
    return bool(_STORE.fullmatch(path.name)) and path.is_dir()


def is_held(lock: Path) -> bool:
    """Return whether a process holds a lock; True as well if that cannot be found out."""
    with suppress(OSError), locking(lock) as is_free:
        return not is_free
    return True


def _is_old(path: Path) -> bool:
    newest = max(each.lstat().st_mtime for each in (path, *path.rglob("*")))
    return time.time() - newest > _STALE_SECONDS


@contextmanager
def locking(path: Path) -> Iterator[bool]:
    """Hold the lock on a file that exists; False if another process holds it.

    Raises:
        OSError: it cannot be opened or locked.
    """
    with os.fdopen(os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW), "rb+") as file:
        is_free = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            is_free = False
        yield is_free
