"""Parquet files and Hub data sets: tables with a column of encoded images and one of labels."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pugdft.data.contents import Contents, Sample, Source, Split, content_key, text_key
from pugdft.errors import UserError
from pugdft.folders import cache_folder
from pugdft.hub import stay_offline_without_network
from pugdft.record import write_atomically

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "fine_label")
_TEST_PREFIXES = ("test", "valid")


def parquet_source(folder: Path, name: str) -> Source:
    """A folder of ``train*.parquet`` and ``test*.parquet`` or ``valid*.parquet`` (also below ``data/``).

    Raises:
        UserError: a split is missing.
    """
    train = _split_files(folder, ("train",))
    test = _split_files(folder, _TEST_PREFIXES)
    for files, wanted in ((train, "train*.parquet"), (test, "test*.parquet or valid*.parquet")):
        if not files:
            raise UserError(f"{folder}: holds no {wanted}")
    root = train[0].parent
    return Source(name, content_key("parquet", root, [*train, *test]), lambda: _read_files(train, test))


def hub_source(name: str, repository: str, test_split: str) -> Source:
    """A data set of the Hugging Face Hub, through ``datasets`` and its cache.

    Its key is remembered, so that a prepared data set asks neither the Hub nor ``datasets`` again.

    Raises:
        UserError: it can neither be fetched nor found in the cache of ``datasets``.
    """
    memo = cache_folder() / "keys" / f"{name}.hub.txt"
    if memo.is_file():
        key = memo.read_text().strip()
        return Source(name, key, lambda: _read_hub(repository, test_split)[1])
    key, contents = _read_hub(repository, test_split)
    write_atomically(memo, key.encode())
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
            return _samples(raw[part].iter(batch_size=1000), image, label, f"{repository} {part}", {})

        return Split(len(raw[part]), samples)

    key = text_key([repository, *(part._fingerprint for part in parts.values())])
    return key, Contents(list(features.names), split("train"), split(test_split))


def _split_files(folder: Path, prefixes: tuple[str, ...]) -> list[Path]:
    for place in (folder, folder / "data"):
        for prefix in prefixes:
            if files := sorted(place.glob(f"{prefix}*.parquet")):
                return files
    return []


def _read_files(train: list[Path], test: list[Path]) -> Contents:
    schema = _open(train[0]).schema_arrow
    image, label = _columns(schema.names, str(train[0]))
    for file in (*train[1:], *test):
        names = _open(file).schema_arrow.names
        if image not in names or label not in names:
            raise UserError(f'{file}: has no columns "{image}" and "{label}" as {train[0].name} has')
    names = _class_names(schema, label)
    numbers: dict[Any, int] = {}
    if names is None:
        values = {value for file in train for value in _open(file).read([label])[label].to_pylist()}
        if None in values:
            raise UserError(f'{train[0]}: column "{label}" has empty cells')
        ordered = sorted(values, key=lambda value: (isinstance(value, str), value))
        names, numbers = [str(value) for value in ordered], {value: i for i, value in enumerate(ordered)}

    def split(files: list[Path]) -> Split:
        def samples() -> Iterator[Sample]:
            for file in files:
                batches = _open(file).iter_batches(1000, columns=[image, label])
                yield from _samples(batches, image, label, str(file), numbers)

        return Split(sum(_open(file).metadata.num_rows for file in files), samples)

    return Contents(names, split(train), split(test))


def _open(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file}: not readable as parquet: {str(error).splitlines()[0]}") from None


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
    tables: Iterable[Any], image: str, label: str, where: str, numbers: dict[Any, int]
) -> Iterator[Sample]:
    row = 0
    for table in tables:
        for cell, value in zip(table[image].to_pylist(), table[label].to_pylist(), strict=True):
            content = cell.get("bytes") if isinstance(cell, dict) else cell
            place = f"{where} row {row}"
            if not isinstance(content, bytes):
                raise UserError(f'{place}: column "{image}" holds no image bytes')
            number = numbers.get(value, value)
            if not isinstance(number, int):
                raise UserError(f'{place}: label "{value}" is not among the classes of the train split')
            yield Sample(content, number, place)
            row += 1
