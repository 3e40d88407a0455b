"""What every source of images gives: a key for its content, class names, and samples per split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pugdft.folders import cache_subfolder
from pugdft.record import file_sha256, write_atomically

SPLITS = ("train", "test")


@dataclass(frozen=True)
class Sample:
    """One encoded image: its bytes or its file, its class, and words that lead a person to it."""

    content: bytes | Path
    label: int
    where: str


@dataclass(frozen=True)
class Split:
    """``size`` samples, read again at each call of ``samples``."""

    size: int
    samples: Callable[[], Iterator[Sample]]


@dataclass(frozen=True)
class Contents:
    """Class names in label order, and the splits ``train`` and ``test``."""

    classes: list[str]
    train: Split
    test: Split


@dataclass(frozen=True)
class Source:
    """A data set that can be read.

    Attributes:
        name: for records and tables.
        key: hex digest of the content, equal for equal files wherever they lie.
        read: opens it; may raise ``UserError``.
        folder: where each image is a file of its own; None if images lie in tables.
    """

    name: str
    key: str
    read: Callable[[], Contents]
    folder: Path | None = None


def content_key(kind: str, root: Path, files: Sequence[Path]) -> str:
    """sha256 over the names below ``root`` and the bytes of ``files``.

    Reading every byte of a large folder at every start would cost seconds, so the answer is remembered
    for as long as no file's size or time of change differs.
    """
    names = [file.relative_to(root).as_posix() for file in files]
    stats = [file.stat() for file in files]
    seen = [[kind, str(root.resolve())]] + [
        [name, stat.st_size, stat.st_mtime_ns] for name, stat in zip(names, stats, strict=True)
    ]
    name_of_memo = f"{_digest(json.dumps(seen).encode())}.txt"
    if known := remembered_key(name_of_memo):
        return known
    lines = (f"{name} {file_sha256(file)}\n" for name, file in zip(names, files, strict=True))
    # A name on Linux is bytes, not always UTF-8: Python hands the others through as surrogates.
    key = _digest(f"{kind}\n{''.join(lines)}".encode("utf-8", "surrogateescape"))
    remember_key(name_of_memo, key)
    return key


def remembered_key(memo: str) -> str | None:
    """The key under this name in the cache, if there is a whole one."""
    try:
        known = (cache_subfolder("keys") / memo).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    return known if len(known) == 64 else None


def remember_key(memo: str, key: str) -> None:
    """Keep a key under this name in the cache."""
    write_atomically(cache_subfolder("keys") / memo, key.encode())


def text_key(parts: Iterable[str]) -> str:
    """A key for a source whose provider already names its content."""
    return _digest("\n".join(parts).encode())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
