"""Parquet files and Hub data sets: tables with a column of encoded images and one of labels."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pugdft.data.contents import (
    Contents,
    Sample,
    Source,
    Split,
    content_key,
    remember_key,
    remembered_key,
    text_key,
)
from pugdft.errors import UserError
from pugdft.hub import stay_offline_without_network

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
    try:
        parts = datasets.load_dataset(repository)
    except Exception as error:  # whatever the network, the Hub or its client raises
        reason = str(error).splitlines()[0][:200] if str(error) else ""
        raise UserError(f"{repository}: {type(error).__name__}: {reason}") from None
    image, label = _columns(parts["train"].column_names, repository)
    features = parts["train"].features[label]
    raw = parts.cast_column(image, datasets.Image(decode=False)).with_format("arrow")

    def split(part: str) -> Split:
        def samples() -> Iterator[Sample]:
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
        def samples() -> Iterator[Sample]:
            for file in files:
                with _opened(file) as table:
                    batches = table.iter_batches(1000, columns=[image, label])
                    yield from _samples(batches, image, label, str(file), numbers)

        return Split(sum(num_rows[file] for file in files), samples)

    return Contents(names, split(train), split(test))


@contextmanager
def _opened(file: Path) -> Iterator[pq.ParquetFile]:
    """A parquet file to read from; damage that shows only later, inside the ``with``, is explained too."""
    try:
        with file.open("rb") as opened:  # by Python: pyarrow takes no path that is not UTF-8
            yield pq.ParquetFile(opened)
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{file}: not readable as parquet: {reason}") from None


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
    try:
        info = json.loads((schema.metadata or {})[b"huggingface"])
        return [str(name) for name in info["info"]["features"][label]["names"]]
    except (KeyError, TypeError, ValueError):
        return None


def _samples(
    tables: Iterable[Any], image: str, label: str, where: str, numbers: dict[Any, int] | None
) -> Iterator[Sample]:
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
            yield Sample(content, number, place)
            row += 1
