"""What a data set is before it is decoded: encoded images in splits, and a key of its content."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path

import numpy as np

from pugdft.data.rng import validation_split
from pugdft.errors import UserError, counted, refuse
from pugdft.paths import cache_folder, cache_subfolder, file_sha256, write_atomically

SPLITS = ("train", "test", "validation")

SPLIT_NAMES = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "validation": ("validation", "valid", "val", "dev", "eval", "evaluation"),
}
_USE_OF = {name: use for use, names in SPLIT_NAMES.items() for name in names}
_TEST_SEED = 2**31  # no run has it: every seed of a comparison has the same test images
_MOST_NAMED = 5


@dataclass(frozen=True)
class EncodedImage:
    """One encoded image: its bytes or its file, its class number, and its place for messages."""

    content: bytes | Path
    label: int
    where: str


@dataclass(frozen=True)
class Split:
    """Images of a split: ``size`` of them; each call of ``samples`` reads them again."""

    size: int
    samples: Callable[[], Iterator[EncodedImage]]

    def part(self, mask: np.ndarray) -> Split:
        """The images where ``mask``, bool, (size,), is true."""
        return Split(int(mask.sum()), lambda: compress(self.samples(), mask))


@dataclass(frozen=True)
class Contents:
    """Class names in label order, the splits by name, and what a person should know of them.

    Attributes:
        origins: the data set's own name of each split.
    """

    classes: list[str]
    splits: Mapping[str, Split]
    notes: tuple[str, ...] = ()
    origins: Mapping[str, str] = field(default_factory=dict)

    @property
    def train(self) -> Split:
        """The training split."""
        return self.splits["train"]

    @property
    def test(self) -> Split:
        """The test split."""
        return self.splits["test"]

    def with_test(self, fraction: float) -> Contents:
        """Cut a test split from the training images: this fraction of each class, the same at every call.

        Raises:
            UserError: a class has too few images.
        """
        train = self.train
        labels = np.array([sample.label for sample in train.samples()], np.int64)
        with refuse(ValueError, lambda error: f"data.test: {error}"):
            _, rows = validation_split(labels, fraction, _TEST_SEED)
        mask = np.zeros(train.size, bool)
        mask[rows] = True
        splits = {**self.splits, "train": train.part(~mask), "test": train.part(mask)}
        origins = {**self.origins, "test": f"{fraction:g} of each class"}
        splits = {use: splits[use] for use in SPLITS if use in splits}
        return replace(self, splits=splits, origins=origins)


@dataclass(frozen=True)
class Source:
    """A data set that can be read.

    Attributes:
        name: for records and tables.
        key: hex digest of the content, equal for equal files wherever they lie.
        read: opens it; may raise ``UserError``.
        folder: where each image is a file of its own; None if images lie in tables.
        notes: what a person should know: files left out, the choice of splits.
    """

    name: str
    key: str
    read: Callable[[], Contents]
    folder: Path | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class SplitChoice:
    """Which splits are used: ``data.splits`` and ``data.test`` of a recipe.

    Attributes:
        named: the data set's own names by ``train``, ``test``, ``validation``.
        test: the fraction of the training images to cut off as the test split, or 0.
        trusts_memory: whether a digest of unchanged files may be remembered.
        only_looks: whether nothing is written, and a missing test split is no error but a note.
    """

    named: Mapping[str, str] = field(default_factory=dict)
    test: float = 0.0
    trusts_memory: bool = True
    only_looks: bool = False

    def pick(
        self, names: Sequence[str], where: str, is_usable: Callable[[str, str], bool]
    ) -> tuple[dict[str, str], tuple[str, ...]]:
        """Choose the splits of a data set; returns their names by use, and a note if there was a choice.

        Args:
            names: of all splits that the data set has; a single one is the training split.
            where: opens messages.
            is_usable: called with the names of train and of one of several test splits.

        Raises:
            UserError: there is no split of a name or use, or a test split besides ``data.test``.
        """
        for use, name in self.named.items():
            if name not in names:
                raise UserError(f'data.splits.{use}: {where} has no split "{name}"; it has {_listed(names)}')
        chosen = dict(self.named)
        free = [name for name in names if name not in chosen.values()]
        by_use: dict[str, list[str]] = {}
        for use, words in SPLIT_NAMES.items():
            spoken = [name for name in free if not is_split_name(name) and split_use(name) == use]
            exact = [name for known in words for name in free if name.casefold() == known]
            by_use[use] = exact or (spoken if len(spoken) == 1 else [])
        if "train" not in chosen:
            candidates = by_use["train"] or (free if len(names) == 1 and not is_split_name(names[0]) else [])
            if not candidates:
                raise UserError(f"{where}: has no train split, but {_listed(names)}; data.splits can name it")
            chosen["train"] = candidates[0]
        candidates = [*by_use["test"], *by_use["validation"]]
        usable = candidates[:1]
        if len(candidates) > 1 and "test" not in chosen:
            usable = [name for name in candidates if is_usable(chosen["train"], name)][:1] or usable
        if self.test and ("test" in chosen or usable):
            raise UserError(
                f"data.test: {where} has a test split, {chosen.get('test') or usable[0]}; leave data.test out"
            )
        notes: tuple[str, ...] = ()
        if not self.test and "test" not in chosen:
            known = ", ".join(SPLIT_NAMES["test"] + SPLIT_NAMES["validation"])
            lacking = (
                f"{where}: has no test split ({known}). data.test=0.2 cuts one from the training images; "
                "data.splits names one"
            )
            if not usable and not self.only_looks:
                raise UserError(lacking)
            notes = () if usable else (lacking,)
            chosen |= {"test": usable[0]} if usable else {}
        chosen = {use: chosen[use] for use in SPLITS if use in chosen}
        unused = [name for name in names if name not in chosen.values()]
        if len(names) == 1 or (not unused and all(use == name for use, name in chosen.items())):
            return chosen, notes
        note = f"{where}: " + ", ".join(f"the {use} split is {name}" for use, name in chosen.items())
        note += f"; {_listed(unused)} not used (data.splits chooses)" if unused else ""
        return chosen, (note, *notes)

    def applied(self, source: Source) -> Source:
        """The source with its test split cut off, if that is asked for, under a key of its own."""
        marks = [f"{use}={name}" for use, name in sorted(self.named.items())]
        if not self.test and not marks:
            return source
        key = text_key([source.key, *marks, f"test={self.test}"])
        if not self.test:
            return replace(source, key=key)
        return replace(source, key=key, read=lambda: source.read().with_test(self.test))


def is_split_name(name: str) -> bool:
    """Return whether a folder, file or column value of this name is a split."""
    return name.casefold() in _USE_OF


def split_use(name: str) -> str:
    """The use that one word of a name tells, such as ``train`` of ``seg_train``; empty if none or two do."""
    words = re.split(r"[\W\d_]+", name.casefold())
    uses = [_USE_OF[word] for word in words if word in _USE_OF]
    return uses[0] if len(uses) == 1 else ""


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(visible(name) for name in names[:_MOST_NAMED])
    return shown + (f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else "")


def class_name(name: str) -> str:
    """A class's name as it is compared: composed (Unicode NFC), without spaces around it."""
    return unicodedata.normalize("NFC", name).strip()


def visible(name: str) -> str:
    """A name for a message: what a reader could not see or tell apart is written as an escape."""
    plain = name.isprintable() and name == class_name(name)
    return name if plain else ascii(name)


def writable(name: str) -> str:
    """A name that UTF-8 can write: bytes of a file's name that are not UTF-8 become escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


def unknown_classes(strangers: Sequence[str], where: str, known: Iterable[str] = ()) -> UserError:
    """The error for test classes that the train split lacks; it names the ``known`` one that looks alike."""
    first = visible(strangers[0])
    alike = next((name for name in known if _look(name) == _look(strangers[0])), None)
    written = f'; "{ascii(alike)[1:-1]}" of train is written {strangers[0]!a} there' if alike else ""
    return UserError(
        f'{where}: {counted(len(strangers), "class")} of the test split, "{first}" first, '
        f"not in the train split{written}"
    )


def _look(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()


def content_key(kind: str, root: Path, files: Sequence[Path], choice: SplitChoice) -> str:
    """sha256 over the names below ``root`` and the bytes of ``files``.

    Reading every byte of a large folder at every start would cost seconds, so the answer is remembered
    for as long as each name leads to the same file, of the same size, that was not changed since.
    """
    names = [(file.relative_to(root) if file.is_relative_to(root) else file).as_posix() for file in files]
    stats = [file.stat() for file in files]
    seen = [[kind, str(root.resolve())]] + [
        [name, stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
        for name, stat in zip(names, stats, strict=True)
    ]
    memo = f"{_digest(json.dumps(seen).encode())}.txt"
    if choice.trusts_memory and (known := remembered_key(memo)):
        return known
    lines = (f"{name} {file_sha256(file)}\n" for name, file in zip(names, files, strict=True))
    # A name on Linux is bytes, not always UTF-8: Python hands the others through as surrogates.
    key = _digest(f"{kind}\n{''.join(lines)}".encode("utf-8", "surrogateescape"))
    if not choice.only_looks:
        remember_key(memo, key)
    return key


def remembered_key(memo: str) -> str | None:
    """The key under this name in the cache, if there is a whole one."""
    with suppress(OSError, UnicodeDecodeError):
        known = (cache_folder() / "keys" / memo).read_text().strip()
        return known if len(known) == 64 else None
    return None


def remember_key(memo: str, key: str) -> None:
    """Keep a key under this name in the cache."""
    write_atomically(cache_subfolder("keys") / memo, key.encode())


def text_key(parts: Iterable[str]) -> str:
    """A key for a source whose provider already names its content."""
    return _digest("\n".join(parts).encode())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
