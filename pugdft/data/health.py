"""Find out which decoded stores are whole, and what killed preparations of data left in the cache."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pugdft.errors import ConfigIssue, UserError, collect, reason, refuse
from pugdft.paths import check_locks, flock

_STORE = re.compile(r"[0-9a-f]{64}-v\d+-(native|\d+(px)?)")
_LOCK = re.compile(r"[0-9a-f]{64}(-files)?\.lock")
_STALE_SECONDS = 3600.0


def described(error: object) -> str:
    """Write an exception on one line, with its kind."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def find_stores(root: Path) -> list[Path]:
    """Find the folders of decoded images, whole or not."""
    return [each for each in _entries(root) if _STORE.fullmatch(each.name) and each.is_dir()]


def _entries(root: Path) -> list[Path]:
    return sorted(root.iterdir()) if root.is_dir() else []


def check_store(folder: Path, deep: bool = False) -> str:
    """Name a whole store, with the number and size of its images; ``deep``: after reading every byte."""
    import numpy as np

    from pugdft.data.cache import Store

    with refuse(Exception, described):  # a damaged file can raise anything
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        store = Store(meta["source"], folder, list(meta["classes"]), meta["sha256"], kept=folder)
        num_images, num_classes, sides = 0, len(store.classes), set()
        for split in store.splits:
            path, labels = folder / f"{split}_images.npy", store.labels(split)
            images = np.load(path, mmap_mode="r", allow_pickle=False)
            side = images.shape[1] if len(images.shape) == 4 else 0
            if images.dtype != np.uint8 or images.shape[1:] != (side, side, 3):
                raise UserError(f"{path.name} holds {images.dtype} of shape {images.shape}")
            if path.stat().st_size != images.offset + images.nbytes:
                raise UserError(f"{path.name} has {path.stat().st_size} bytes instead of {images.nbytes}")
            if labels.shape != images.shape[:1] or labels.min() < 0 or labels.max() >= num_classes:
                raise UserError(f"{split}_labels.npy does not fit {path.name} and {num_classes} classes")
            num_images += len(images)
            sides.add(side)
        if len(sides) != 1:
            raise UserError(f"the splits' images have the sides {sorted(sides)}")
        if deep and store.content_sha256() != store.sha256:
            raise UserError("its pixels or labels are not those that were decoded")
    return f"{store.name} ({num_images:,} × {side}²)"


def leftovers(root: Path) -> list[Path]:
    """Find the folders and lock files that killed preparations left, unused for an hour."""
    # A lock counts if nobody holds it and no store came of it: the one beside a store stays by design.
    kept = {each.name[:64] for each in _entries(root) if _STORE.fullmatch(each.stem)}
    entries = [each for each in _entries(root) if not each.is_symlink()]
    locks = {each: is_held(each) for each in entries if _LOCK.fullmatch(each.name)}
    found = [lock for lock, held in locks.items() if not held and lock.name[:64] not in kept]
    if not any(locks.values()):  # else the name of a folder does not say whose it is
        found += [each for each in entries if each.name.startswith(".making-") and each.is_dir()]
    newest = {path: max(each.lstat().st_mtime for each in (path, *path.rglob("*"))) for path in found}
    return [path for path in found if time.time() - newest[path] > _STALE_SECONDS]


def remove_leftovers(found: Iterable[Path]) -> tuple[int, list[ConfigIssue]]:
    """Remove leftovers; return the bytes freed, and why something could not be removed."""
    freed = 0
    faults: list[ConfigIssue] = []
    for path in found:
        num_bytes = bytes_below(path)
        with collect(faults, str(path)), refuse(OSError, reason):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                with locking(path) as is_free:  # held while it is removed: whoever comes now sees it gone
                    if is_free:
                        path.unlink()
        freed += 0 if path.exists() else num_bytes
    return freed, faults


def bytes_below(path: Path) -> int:
    """Return what a file or a folder's content takes on the disk; links are not followed."""
    return sum(each.lstat().st_blocks * 512 for each in (path, *path.rglob("*")))


def is_held(lock: Path) -> bool:
    """Return whether a process holds a lock; True as well if that cannot be found out."""
    with suppress(OSError), locking(lock) as is_free:
        return not is_free
    return True


@contextmanager
def locking(path: Path) -> Iterator[bool]:
    """Hold the lock on a file that exists, False if another process holds it; OSError if it has no locks."""
    check_locks()
    with os.fdopen(os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW), "rb+") as file:
        is_free = False
        with suppress(BlockingIOError):
            flock(file, wait=False)
            is_free = True
        yield is_free
