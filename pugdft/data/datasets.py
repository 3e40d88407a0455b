"""Open a data set by its name or folder: the registry, the Hub, parquet files and class folders.

To add a data set, add one row to ``DATASETS``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pugdft.errors import UserError, counted, reason, refuse, unknown
from pugdft.paths import (
    cache_folder,
    cache_subfolder,
    data_folder,
    expanded,
    file_sha256,
    stay_offline_without_network,
    write_atomically,
)

SPLITS = ("train", "test")


@dataclass(frozen=True)
class KnownDataset:
    """Where a data set that has a name is found: a repository of the Hugging Face Hub, or a folder.

    Attributes:
        repository: ``owner/name`` on the Hub; a folder of the data set's name in the data folder comes first.
        test_split: the repository's split that is evaluated.
        folder: where the files lie, in any layout that a path may have; then nothing is fetched.
    """

    repository: str = ""
    test_split: str = "test"
    folder: Path | None = None


BUNDLED = "bundled"
DATASETS = {
    "cifar10": KnownDataset("uoft-cs/cifar10"),
    "cifar100": KnownDataset("uoft-cs/cifar100"),
    # Its test split has no labels; the papers report on the validation split.
    "tiny_imagenet": KnownDataset("zh-plus/tiny-imagenet", test_split="valid"),
    BUNDLED: KnownDataset(folder=Path(__file__).parent / "bundled"),
}


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
    with suppress(OSError, UnicodeDecodeError):
        known = (cache_subfolder("keys") / memo).read_text().strip()
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


# Layout of class folders.
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm"})

_ANNOTATIONS = "val_annotations.txt"

_TEST_NAMES = ("test", "val", "valid")

Labelled = list[tuple[Path, str]]


def image_folder_source(folder: Path, name: str) -> Source:
    """``train/CLASS/*.jpg`` and ``test|val/CLASS/*.jpg``, or Tiny ImageNet as its authors pack it.

    In Tiny ImageNet's archive (``train/WNID/images/*.JPEG``, ``val/images/*.JPEG`` with
    ``val_annotations.txt``) the ``test`` folder has no labels; its ``val`` folder is the test split.

    Raises:
        UserError: a split is missing, a class folder has no image or holds its own split, a test class
            is unknown, the annotations do not fit.
    """
    train = _class_folders(folder / "train")
    annotations = folder / "val" / _ANNOTATIONS
    if annotations.is_file():
        test = _annotated(annotations)
    else:
        test_folder = next((folder / each for each in _TEST_NAMES if (folder / each).is_dir()), None)
        if test_folder is None:
            raise UserError(f"{folder}: has no folder {' or '.join(_TEST_NAMES)} beside train")
        test = _class_folders(test_folder)
    classes = sorted({label for _, label in train})
    if strangers := sorted({label for _, label in test} - set(classes)):
        raise UserError(
            f'{folder}: {counted(len(strangers), "class")} of the test split, "{strangers[0]}" first, '
            "not in the train split"
        )
    numbers = {label: number for number, label in enumerate(classes)}

    def split(files: Labelled) -> Split:
        def samples() -> Iterator[EncodedImage]:
            return (EncodedImage(file, numbers[label], str(file)) for file, label in files)

        return Split(len(files), samples)

    files = [file for file, _ in (*train, *test)]
    if annotations.is_file():
        files.append(annotations)
    key = content_key("images", folder, files)
    return Source(name, key, lambda: Contents(classes, split(train), split(test)), folder)


def _class_folders(split: Path) -> Labelled:
    """Every image below ``split/CLASS``, in the order of their names."""
    labelled: Labelled = []
    real_split = split.resolve()
    for folder in sorted(each for each in split.iterdir() if each.is_dir() and not each.name.startswith(".")):
        target = folder.resolve()
        if target == real_split or target in real_split.parents:
            raise UserError(
                f"{folder}: is a link to {target}, which holds every class; "
                "a class folder holds the images of one. Remove the link"
            )
        named = [file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES]
        files = sorted(file for file in named if file.is_file())
        # What was not fetched must not go missing in silence.
        if len(files) < len(named) and (gone := [file for file in named if not file.exists()]):
            raise UserError(f"{min(gone)}: is a link that leads nowhere; fetch the image, or remove the link")
        if not files:
            raise UserError(f"{folder}: holds no image ({', '.join(sorted(SUFFIXES))})")
        labelled += [(file, folder.name) for file in files]
    if not labelled:
        raise UserError(f"{split}: holds no class folders")
    return labelled


def _utf8_text(file: Path) -> str:
    def not_utf8(error: UnicodeDecodeError) -> str:
        number = error.object[: error.start].count(b"\n") + 1
        return f"{file} line {number}: is not UTF-8 text; save the file as UTF-8"

    with refuse(UnicodeDecodeError, not_utf8):
        return file.read_text(encoding="utf-8")


def _annotated(annotations: Path) -> Labelled:
    labelled: Labelled = []
    lines = _utf8_text(annotations).splitlines()
    for number, line in enumerate(lines, start=1):
        fields = line.split("\t")
        file = annotations.parent / "images" / Path(fields[0]).name
        if len(fields) < 2 or not os.path.isfile(file):  # pathlib's raises where a name is too long
            raise UserError(f"{annotations} line {number}: names no image of {annotations.parent / 'images'}")
        labelled.append((file, fields[1]))
    return labelled


IMAGE_COLUMNS = ("img", "image")

LABEL_COLUMNS = ("label", "fine_label")

_TEST_PREFIXES = ("test", "valid")

_LABEL_KINDS = (
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_boolean,
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_null,  # every cell is empty, which has a message of its own
)


def parquet_source(folder: Path, name: str) -> Source:
    """A folder of ``train*.parquet`` and ``test*.parquet`` or ``valid*.parquet`` (also below ``data/``).

    Raises:
        UserError: a split is missing, or a folder where a file should be.
    """
    train = _split_files(folder, ("train",))
    test = _split_files(folder, _TEST_PREFIXES)
    for files, wanted in ((train, "train*.parquet"), (test, "test*.parquet or valid*.parquet")):
        if not files:
            raise UserError(f"{folder}: holds no {wanted}")
    key = content_key("parquet", folder, [*train, *test])
    return Source(name, key, lambda: _read_files(train, test))


def hub_source(name: str, repository: str, test_split: str) -> Source:
    """A data set of the Hugging Face Hub, through ``datasets`` and its cache.

    Its key is remembered, so that a prepared data set asks neither the Hub nor ``datasets`` again.

    Raises:
        UserError: it can neither be fetched nor found in the cache of ``datasets``.
    """
    memo = f"{name}.hub.txt"
    if known := remembered_key(memo):
        return Source(name, known, lambda: _read_hub(repository, test_split)[1])
    key, contents = _read_hub(repository, test_split)
    remember_key(memo, key)
    return Source(name, key, lambda: contents)


def _read_hub(repository: str, test_split: str) -> tuple[str, Contents]:
    stay_offline_without_network()
    import datasets

    datasets.disable_progress_bars()
    # Whatever the network, the Hub or its client raises.
    with refuse(Exception, lambda error: f"{repository}: {type(error).__name__}: {reason(error)}"):
        parts = datasets.load_dataset(repository)
    image, label = _columns(parts["train"].column_names, repository)
    features = parts["train"].features[label]
    raw = parts.cast_column(image, datasets.Image(decode=False)).with_format("arrow")

    def split(part: str) -> Split:
        def samples() -> Iterator[EncodedImage]:
            return _samples(raw[part].iter(batch_size=1000), image, label, f"{repository} {part}", None)

        return Split(len(raw[part]), samples)

    key = text_key([repository, *(part._fingerprint for part in parts.values())])
    return key, Contents(list(features.names), split("train"), split(test_split))


def _split_files(folder: Path, prefixes: tuple[str, ...]) -> list[Path]:
    for place in (folder, folder / "data"):
        for prefix in prefixes:
            if files := sorted(place.glob(f"{prefix}*.parquet")):
                for file in files:
                    if not file.is_file():
                        raise UserError(
                            f"{file}: is not a file. Put parquet files named {prefix}*.parquet into {place}"
                        )
                return files
    return []


def _read_files(train: list[Path], test: list[Path]) -> Contents:
    schemas, num_rows = {}, {}
    for file in (*train, *test):
        with _opened(file) as table:
            schemas[file], num_rows[file] = table.schema_arrow, table.metadata.num_rows
    first = schemas[train[0]]
    image, label = _columns(first.names, str(train[0]))
    for file, schema in schemas.items():
        if image not in schema.names or label not in schema.names:
            raise UserError(f'{file}: has no columns "{image}" and "{label}" as {train[0].name} has')
        for name in (image, label):
            if (count := schema.names.count(name)) > 1:
                raise UserError(f'{file}: has {count} columns "{name}"; one is needed')
        _check_labels(schema.field(label).type, file, label)
    names = _class_names(first, label)
    numbers = None
    if names is None:
        values = _distinct_labels(train, label)
        names, numbers = [str(value) for value in values], {value: i for i, value in enumerate(values)}

    def split(files: list[Path]) -> Split:
        def samples() -> Iterator[EncodedImage]:
            for file in files:
                with _opened(file) as table:
                    batches = table.iter_batches(1000, columns=[image, label])
                    yield from _samples(batches, image, label, str(file), numbers)

        return Split(sum(num_rows[file] for file in files), samples)

    return Contents(names, split(train), split(test))


@contextmanager
def _opened(file: Path) -> Iterator[pq.ParquetFile]:
    """A parquet file to read from; damage that shows only later, inside the ``with``, is explained too."""
    kinds = (OSError, pa.ArrowException, UnicodeDecodeError)
    with (
        refuse(kinds, lambda error: f"{file}: not readable as parquet: {reason(error)}"),
        file.open("rb") as opened,  # by Python: pyarrow takes no path that is not UTF-8
    ):
        yield pq.ParquetFile(opened)


def _check_labels(kind: pa.DataType, file: Path, label: str) -> None:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not any(is_kind(kind) for is_kind in _LABEL_KINDS):
        raise UserError(f'{file}: column "{label}" holds {kind}; labels are whole numbers or words')


def _distinct_labels(files: list[Path], label: str) -> list[Any]:
    """Every label of the files once, numbers before words, in their order."""
    values: set[Any] = set()
    for file in files:
        with _opened(file) as table:
            found = set(table.read([label])[label].to_pylist())
        if any(value is None or value != value for value in found):  # an empty number may read as NaN
            raise UserError(f'{file}: column "{label}" has empty cells')
        values |= found
    return sorted(values, key=lambda value: (isinstance(value, str), value))


def _columns(names: list[str], where: str) -> tuple[str, str]:
    image = next((name for name in IMAGE_COLUMNS if name in names), None)
    label = next((name for name in LABEL_COLUMNS if name in names), None)
    if image is None or label is None:
        raise UserError(
            f"{where}: needs an image column ({' or '.join(IMAGE_COLUMNS)}) and a label column "
            f"({' or '.join(LABEL_COLUMNS)}); it has {', '.join(names)}"
        )
    return image, label


def _class_names(schema: pa.Schema, label: str) -> list[str] | None:
    """The names that ``datasets`` keeps in a file's metadata, if there are any."""
    with suppress(KeyError, TypeError, ValueError):
        info = json.loads((schema.metadata or {})[b"huggingface"])
        return [str(name) for name in info["info"]["features"][label]["names"]]
    return None


def _samples(
    tables: Iterable[Any], image: str, label: str, where: str, numbers: dict[Any, int] | None
) -> Iterator[EncodedImage]:
    """The rows of tables; without ``numbers``, labels are class numbers already."""
    row = 0
    for table in tables:
        for cell, value in zip(table[image].to_pylist(), table[label].to_pylist(), strict=True):
            content = cell.get("bytes") if isinstance(cell, dict) else cell
            place = f"{where} row {row}"
            if not isinstance(content, bytes):
                raise UserError(f'{place}: column "{image}" holds no image bytes')
            number = value if numbers is None else numbers.get(value)
            if not isinstance(number, int):
                raise UserError(f'{place}: label "{value}" is not among the classes of the train split')
            yield EncodedImage(content, number, place)
            row += 1


_SHOWN_LENGTH = 200

LAYOUTS = (
    "train*.parquet and test*.parquet (columns img or image, label or fine_label), "
    "or train/CLASS/*.jpg and test/CLASS/*.jpg"
)


def open_source(name: str) -> Source:
    """The source behind ``data.name``.

    A known name is looked for in the data folder first (``cifar10/`` there, in any layout), then on the
    Hub. Anything else is a path.

    Raises:
        UserError: unknown name, missing folder or layout, or a Hub data set that cannot be had; the
            message names the folder, the layout and the command that fetches it.
    """
    # Whatever is not readable in the data or not writable in the cache.
    with refuse(OSError, lambda error: f"{error.filename or name}: {reason(error)}"):
        return _open_source(name)


def _open_source(name: str) -> Source:
    if entry := DATASETS.get(name):
        local = entry.folder or data_folder() / name
        if local.is_dir():
            return folder_source(local, name)
        remedy = (
            f"  With a network: pugdft data prepare {name}\n"
            f"  Without one: put {LAYOUTS}\n  into {local}, or give such a folder as data.name;\n"
            f"  or copy {cache_folder()} from a machine where `pugdft data prepare {name}` has run."
        )
        problem = f"data.name: {name} is not on this machine and cannot be fetched"
        with refuse(UserError, lambda error: f"{problem} ({error}).\n{remedy}"):
            return hub_source(name, entry.repository, entry.test_split)
    if not name:
        # As a path it would be the current folder.
        raise UserError(f"data.name: is empty. Give a folder, or one of {', '.join(DATASETS)}")
    path = expanded(name, "data.name")
    if not os.path.isdir(path):  # pathlib's raises where a name is too long
        shown = name if len(name) <= _SHOWN_LENGTH else name[:_SHOWN_LENGTH] + "…"
        raise UserError(f"data.name: no such folder, and {unknown('data set', shown, DATASETS)}")
    # Records are UTF-8 and carry this name; a folder's may be any bytes.
    return folder_source(path, os.fsencode(path.resolve().name).decode("utf-8", "backslashreplace"))


def folder_source(folder: Path, name: str) -> Source:
    """The source in a folder, by its layout.

    Raises:
        UserError: neither parquet files nor image folders.
    """
    if (folder / "train").is_dir() and not list((folder / "train").glob("*.parquet")):
        return image_folder_source(folder, name)
    if any(folder.glob("*.parquet")) or any(folder.glob("data/*.parquet")):
        return parquet_source(folder, name)
    raise UserError(f"{folder}: holds no data set. Expected {LAYOUTS}.")
