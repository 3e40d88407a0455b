"""The health of pugdft's cache: decoded stores, and what killed preparations left behind."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pugdft.doctor.folders import is_held
from pugdft.doctor.report import Line, reason, size
from pugdft.errors import counted
from pugdft.paths import cache_folder

_STORE = re.compile(r"(?P<key>[0-9a-f]{64})-v(?P<version>\d+)-(native|\d+)")
_FILE_FACTS = re.compile(_STORE.pattern + r"\.json")
_LOCK = re.compile(r"(?P<key>[0-9a-f]{64})(-files)?\.lock")
_KEY_LENGTH = 64
_MAKING = ".making-"
_STALE_SECONDS = 3600.0
_MOST_NAMED = 6


@dataclass(frozen=True)
class StoreState:
    """One store as it lies on the disk.

    Attributes:
        name: of the source it was made from, ``?`` if it does not say.
        num_classes, num_images, side: zero where damaged.
        fault: what is wrong with it, empty if it is whole as far as was looked.
        outdated: made by another version of the decoding, and not used any more.
    """

    folder: Path
    name: str
    num_bytes: int
    num_classes: int = 0
    num_images: int = 0
    side: int = 0
    fault: str = ""
    outdated: bool = False


@dataclass(frozen=True)
class Leftover:
    """A folder or a lock file of a preparation that never ended."""

    path: Path
    num_bytes: int


def cache_lines(deep: bool, clean: bool) -> Iterator[Line]:
    """Every store's health, and leftovers, which ``clean`` removes."""
    root = cache_folder() / "stores"
    if not root.is_dir():
        yield Line("ok", "stores", "none yet")
        return
    stores = [examine(each, deep) for each in sorted(root.iterdir()) if _is_store(each)]
    yield _summary([each for each in stores if not each.fault and not each.outdated], deep)
    for store in stores:
        where = f"{store.name}, {size(store.num_bytes)}, {store.folder}"
        if store.fault:
            remedy = "delete this folder; the next run decodes the images again"
            yield Line("problem", "damaged", f"{store.fault}: {where}", remedy)
        elif store.outdated:
            text = f"made by another version of pugdft, which alone uses it: {where}"
            yield Line("note", "outdated", text, "delete this folder if that version is not used any more")
    found = leftovers(root)
    total = size(sum(each.num_bytes for each in found))
    what = f"{counted(len(found), 'folder or lock')} of killed preparations, {total}".replace(
        "folder or locks", "folders or locks"
    )
    if found and clean:
        freed, kept = remove(found)
        yield Line("ok", "cleaned", f"{size(freed)} freed: {what}")
        for path, why in kept:
            yield Line("problem", "leftover", f"{path} could not be removed: {why}", "remove it by hand")
    elif found:
        yield Line("note", "leftovers", what, "pugdft doctor --clean")
    else:
        yield Line("ok", "leftovers", "none; nothing to clean" if clean else "none")


def examine(folder: Path, deep: bool = False) -> StoreState:
    """Look at one store: its description, the shapes and sizes of its files; ``deep``: every byte."""
    from pugdft.data.decode import DECODING_VERSION

    named = _STORE.fullmatch(folder.name)
    assert named is not None
    num_bytes, name = bytes_below(folder), "?"
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        name, classes, sha256 = str(meta["source"]), list(meta["classes"]), str(meta["sha256"])
        num_images, side = _checked(folder, len(classes))
        if deep:
            from pugdft.data.cache import content_sha256

            if content_sha256(folder) != sha256:
                raise ValueError("its pixels or labels are not those that were decoded")
    except ImportError:
        raise
    except Exception as error:  # what is in a damaged file can raise anything
        words = str(error) if isinstance(error, ValueError) else reason(error)
        return StoreState(folder, name, num_bytes, fault=" ".join(words.split())[:200])
    outdated = int(named["version"]) != DECODING_VERSION
    return StoreState(folder, name, num_bytes, len(classes), num_images, side, outdated=outdated)


def leftovers(root: Path) -> list[Leftover]:
    """What preparations that were killed left in a folder of stores: nothing younger than an hour.

    A folder's age is that of its newest file. While anybody prepares data here, no folder counts: which one
    is theirs, its name does not say. A lock counts if nobody holds it and no store came of it; those beside a
    store stay there by design.
    """
    entries = sorted(root.iterdir())
    locks = [each for each in entries if _LOCK.fullmatch(each.name) and _is_file(each)]
    held = {lock: _is_held(lock) for lock in locks}
    ended = [each for each in entries if _is_store(each) or _FILE_FACTS.fullmatch(each.name)]
    keys = {each.name[:_KEY_LENGTH] for each in ended}
    found = []
    if not any(state is not False for state in held.values()):
        found += [
            Leftover(each, bytes_below(each))
            for each in entries
            if each.name.startswith(_MAKING) and _is_folder(each) and _is_old(each)
        ]
    found += [
        Leftover(lock, bytes_below(lock))
        for lock in locks
        if held[lock] is False and lock.name[:_KEY_LENGTH] not in keys and _is_old(lock)
    ]
    return found


def remove(found: list[Leftover]) -> tuple[int, list[tuple[Path, str]]]:
    """Remove leftovers; returns the bytes freed, and what could not be removed with the reason."""
    freed, kept = 0, []
    for each in found:
        try:
            if _is_folder(each.path):
                shutil.rmtree(each.path)
            elif not unlink_unheld(each.path):
                continue
            freed += each.num_bytes
        except OSError as error:
            kept.append((each.path, error.strerror or str(error)))
    return freed, kept


def bytes_below(path: Path) -> int:
    """What a file or everything in a folder takes on the disk; links are not followed."""
    total = _disk_bytes(path)
    for folder, names, files in os.walk(path, onerror=None, followlinks=False):
        total += sum(_disk_bytes(Path(folder) / name) for name in (*names, *files))
    return total


def _summary(whole: list[StoreState], deep: bool) -> Line:
    if not whole:
        return Line("ok", "stores", "none")
    named = [f"{each.name} ({each.num_images:,} × {each.side}²)" for each in whole[:_MOST_NAMED]]
    if len(whole) > _MOST_NAMED:
        named.append(f"and {len(whole) - _MOST_NAMED} more")
    how = "every pixel read" if deep else "by shape and size; --deep reads every pixel"
    total = size(sum(each.num_bytes for each in whole))
    return Line("ok", "stores", f"{len(whole)} whole ({how}), {total}: {', '.join(named)}")


def _checked(folder: Path, num_classes: int) -> tuple[int, int]:
    """Images in both splits, and their side.

    Raises:
        ValueError: a file is not what a store has.
        OSError: one is missing or cannot be read.
    """
    import numpy as np

    num_images, sides = 0, set()
    for split in ("train", "test"):
        path = folder / f"{split}_images.npy"
        if not path.is_file():
            raise ValueError(f"{path.name} is missing")
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


def unlink_unheld(lock: Path) -> bool:
    """Remove a lock file that nobody holds, while holding it: whoever comes meanwhile sees that it is gone.

    Raises:
        OSError: it cannot be opened or removed.
    """
    descriptor = os.open(lock, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lock.unlink()
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _is_held(lock: Path) -> bool | None:
    try:
        return is_held(lock)
    except FileNotFoundError:
        return None


def _is_store(path: Path) -> bool:
    return bool(_STORE.fullmatch(path.name)) and path.is_dir()


def _is_old(path: Path) -> bool:
    times = [path.lstat().st_mtime]
    for folder, _, files in os.walk(path, followlinks=False):
        times += [each.lstat().st_mtime for name in files if (each := Path(folder) / name).exists()]
    return time.time() - max(times) > _STALE_SECONDS


def _is_folder(path: Path) -> bool:
    """A folder itself, not a link to one, which would lead out of the cache."""
    return stat.S_ISDIR(path.lstat().st_mode)


def _is_file(path: Path) -> bool:
    return stat.S_ISREG(path.lstat().st_mode)


def _disk_bytes(path: Path) -> int:
    try:
        return path.lstat().st_blocks * 512
    except OSError:
        return 0
