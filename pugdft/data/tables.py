"""Read images in tables: parquet files, and what the library ``datasets`` fetches or has saved."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pugdft.data.image_folders import is_accidental
from pugdft.data.path_tables import opened_parquet, path_columns
from pugdft.data.source import (
    SPLIT_NAMES,
    Contents,
    EncodedImage,
    Source,
    Split,
    SplitChoice,
    class_name,
    content_key,
    is_split_name,
    remember_key,
    remembered_key,
    text_key,
)
from pugdft.errors import UserError, reason, refuse
from pugdft.paths import stay_offline_without_network

if TYPE_CHECKING:
    import pyarrow as pa

_IMAGE_COLUMNS = ("img", "image")
_LABEL_COLUMNS = ("label", "fine_label")
# An empty column is of the type null, which has a message of its own.
_LABEL_KINDS = ("integer", "floating", "boolean", "string", "large_string", "null")
_WORDS = sorted((word for words in SPLIT_NAMES.values() for word in words), key=len, reverse=True)


def parquet_source(folder: Path, name: str, choice: SplitChoice) -> Source | None:
    """A folder of parquet files; None if it has none.

    A file's split is the word that its name begins with (``train-00000-of-00001.parquet``), or its folder's
    name (``default/train/0000.parquet``).

    Raises:
        UserError: a split is missing, a folder where a file should be, several configurations.
    """
    parts = _parquet_parts(folder)
    if not parts:
        return None

    def is_usable(train: str, test: str) -> bool:
        files = parts[test]
        with opened_parquet(files[0]) as table:
            names = table.schema_arrow.names
        label = next((each for each in _LABEL_COLUMNS if each in names), None)
        return label is None or _has_labels(_distinct_labels(files, label, may_be_empty=True))

    chosen, notes = choice.pick(list(parts), str(folder), is_usable)
    used = {use: parts[each] for use, each in chosen.items()}
    files = [file for each in used.values() for file in each]
    key = content_key("parquet", folder, files, choice)
    return choice.applied(Source(name, key, lambda: _read_files(used, chosen), notes=notes))


def _has_labels(values: Iterable[Any]) -> bool:
    """Return whether any of these is a label; a split whose labels are kept back has −1, or nothing."""
    return any(value is not None and value == value and value != -1 and value != "" for value in values)


def _parquet_parts(folder: Path) -> dict[str, list[Path]]:
    """Find parquet files by split: in the folder, in ``data``, then one and two folders below."""
    parts: dict[str, list[Path]] = {}
    for pattern in ("*.parquet", "data/*.parquet", "*/*.parquet", "*/*/*.parquet"):
        found: dict[str, list[Path]] = {}
        for file in sorted(folder.glob(pattern)):
            if any(map(is_accidental, file.relative_to(folder).parts)):
                continue
            if file.name == "metadata.parquet" and path_columns(file).path not in (None, "image"):
                continue  # a table of image files
            word = next((word for word in _WORDS if file.stem.casefold().startswith(word)), "")
            part = word or (file.parent.name if is_split_name(file.parent.name) else "all")
            if not file.is_file():
                begins = word or "train"
                raise UserError(
                    f"{file}: is not a file. Put parquet files named {begins}*.parquet into {file.parent}"
                )
            found.setdefault(part, []).append(file)
        for part, files in found.items():
            places = {
                each.parent.parent if is_split_name(each.parent.name) else each.parent for each in files
            }
            if part not in parts and len(places) > 1:
                names = ", ".join(sorted(each.name for each in places))
                raise UserError(f"{folder}: holds several data sets ({names}); give one folder as data.name")
            parts.setdefault(part, files)
    if len(parts) > 1:
        parts.pop("all", None)
    return parts


def hub_source(
    name: str, repository: str, choice: SplitChoice, failure: Callable[[str], str], test_split: str = ""
) -> Source:
    """A data set of the Hugging Face Hub, through ``datasets`` and its cache.

    Its key is remembered, so that a prepared data set asks neither the Hub nor ``datasets`` again.

    Args:
        failure: makes the message where the data set cannot be had.
        test_split: the repository's split that is evaluated, unless ``choice`` names one.

    Raises:
        UserError: it can neither be fetched nor found in the cache of ``datasets``.
    """
    named = {"test": test_split, **choice.named} if test_split else choice.named

    def fetched() -> Mapping[str, Any]:
        stay_offline_without_network()
        import datasets

        datasets.disable_progress_bars()
        # Whatever the network, the Hub or its client raises.
        with refuse(Exception, lambda e: failure(f"{repository}: {type(e).__name__}: {reason(e)}")):
            parts: Mapping[str, Any] = datasets.load_dataset(repository)
            return parts

    def read(parts: Mapping[str, Any]) -> Contents:
        return _contents(parts, repository, replace(choice, named=named))

    memo = f"{name.replace('/', '--')}.hub.txt"
    if known := remembered_key(memo):
        return choice.applied(Source(name, known, lambda: read(fetched())))
    parts = fetched()
    key = text_key([repository, *(part._fingerprint for part in parts.values())])
    contents = read(parts)
    if not choice.only_looks:
        remember_key(memo, key)
    return choice.applied(Source(name, key, lambda: contents))


def saved_source(folder: Path, name: str, choice: SplitChoice) -> Source | None:
    """What ``save_to_disk`` of ``datasets`` wrote; None if the folder holds something else.

    Raises:
        UserError: it cannot be read.
    """
    if not (folder / "dataset_dict.json").is_file() and not (folder / "state.json").is_file():
        return None

    def read() -> Contents:
        import datasets

        with refuse(Exception, lambda error: f"{folder}: {type(error).__name__}: {reason(error)}"):
            saved = datasets.load_from_disk(str(folder))
        return _contents(saved if isinstance(saved, dict) else {"all": saved}, str(folder), choice)

    files = sorted(each for each in folder.rglob("*") if each.suffix in (".arrow", ".json"))
    return choice.applied(Source(name, content_key("saved", folder, files, choice), read))


def _contents(parts: Mapping[str, Any], where: str, choice: SplitChoice) -> Contents:
    """Read the splits that ``datasets`` has opened."""
    import datasets

    features = next(iter(parts.values())).features
    image, label = _columns({name: type(each).__name__ for name, each in features.items()}, where)

    def is_usable(_: str, test: str) -> bool:
        return label in parts[test].column_names and _has_labels(parts[test].unique(label))

    chosen, notes = choice.pick(list(parts), where, is_usable)
    names: list[str] | None = getattr(features[label], "names", None)
    numbers = None
    if names is None:
        values = _sorted_labels(parts[chosen["train"]].unique(label), where, label)
        names, numbers = [str(value) for value in values], {value: i for i, value in enumerate(values)}

    def split(part: str) -> Split:
        raw = parts[part].cast_column(image, datasets.Image(decode=False)).with_format("arrow")

        def samples() -> Iterator[EncodedImage]:
            return _samples(raw.iter(batch_size=1000), image, label, f"{where} {part}", numbers, True)

        return Split(len(raw), samples)

    return Contents(list(names), {use: split(part) for use, part in chosen.items()}, notes, chosen)


def _read_files(parts: Mapping[str, list[Path]], origins: Mapping[str, str]) -> Contents:
    """Read the schemas of parquet files; the images are read when they are asked for."""
    from pyarrow import types

    schemas, num_rows = {}, {}
    files = [file for each in parts.values() for file in each]
    for file in files:
        with opened_parquet(file) as table:
            schemas[file], num_rows[file] = table.schema_arrow, table.metadata.num_rows
    train = parts["train"]
    first = schemas[train[0]]
    features = _features(first)
    kinds = {name: str(features.get(name, {}).get("_type", "")) for name in first.names}
    image, label = _columns(kinds, str(train[0]))
    for file, schema in schemas.items():
        if image not in schema.names or label not in schema.names:
            raise UserError(f'{file}: has no columns "{image}" and "{label}" as {train[0].name} has')
        for name in (image, label):
            if (count := schema.names.count(name)) > 1:
                raise UserError(f'{file}: has {count} columns "{name}"; one is needed')
        kind = schema.field(label).type
        kind = kind.value_type if types.is_dictionary(kind) else kind
        if not any(getattr(types, f"is_{each}")(kind) for each in _LABEL_KINDS):
            raise UserError(f'{file}: column "{label}" holds {kind}; labels are whole numbers or words')
    names, numbers = features.get(label, {}).get("names"), None
    if not isinstance(names, list):
        values = _distinct_labels(train, label)
        names, numbers = [str(value) for value in values], {value: i for i, value in enumerate(values)}

    def split(files: list[Path]) -> Split:
        def samples() -> Iterator[EncodedImage]:
            for file in files:
                with opened_parquet(file) as table:
                    batches = table.iter_batches(1000, columns=[image, label])
                    yield from _samples(batches, image, label, str(file), numbers)

        return Split(sum(num_rows[file] for file in files), samples)

    splits = {use: split(files) for use, files in parts.items()}
    return Contents([str(name) for name in names], splits, origins=origins)


def _distinct_labels(files: list[Path], label: str, may_be_empty: bool = False) -> list[Any]:
    """Every label of the files once."""
    values: set[Any] = set()
    for file in files:
        with opened_parquet(file) as table:
            found = {_normal(value) for value in table.read([label])[label].to_pylist()}
        values |= found if may_be_empty else set(_sorted_labels(found, str(file), label))
    return list(values) if may_be_empty else _sorted_labels(values, "", label)


def _sorted_labels(found: Iterable[Any], where: str, label: str) -> list[Any]:
    """Labels once, numbers before words, in their order."""
    values = {_normal(value) for value in found}
    if any(value is None or value != value for value in values):  # an empty number may read as NaN
        raise UserError(f'{where}: column "{label}" has empty cells')
    return sorted(values, key=lambda value: (isinstance(value, str), value))


def _normal(label: Any) -> Any:
    return class_name(label) if isinstance(label, str) else label


def _columns(kinds: Mapping[str, str], where: str) -> tuple[str, str]:
    """The columns of images and labels, by name, or by kind where one alone is of that kind."""
    found: list[str | None] = []
    for known, kind in ((_IMAGE_COLUMNS, "Image"), (_LABEL_COLUMNS, "ClassLabel")):
        of_kind = [name for name, each in kinds.items() if each == kind]
        named = [name for name in known if name in kinds]
        found += [*named, *(of_kind if len(of_kind) == 1 else [])][:1] or [None]
    image, label = found
    if image is None or label is None:
        raise UserError(
            f"{where}: needs an image column ({' or '.join(_IMAGE_COLUMNS)}) and a label column "
            f"({' or '.join(_LABEL_COLUMNS)}); it has {', '.join(kinds)}"
        )
    return image, label


def _features(schema: pa.Schema) -> dict[str, Any]:
    """What ``datasets`` keeps of the columns in a file's metadata, if anything."""
    with suppress(KeyError, TypeError, ValueError):
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: each for name, each in features.items() if isinstance(each, dict)}
    return {}


def _samples(
    tables: Iterable[Any],
    image: str,
    label: str,
    where: str,
    numbers: dict[Any, int] | None,
    takes_paths: bool = False,
) -> Iterator[EncodedImage]:
    """The rows of tables; without ``numbers``, labels are class numbers already.

    Args:
        takes_paths: whether an image may be a path. Tables of ``datasets`` name files that it has fetched;
            a file that somebody else made might name any file.
    """
    row = 0
    for table in tables:
        for cell, value in zip(table[image].to_pylist(), table[label].to_pylist(), strict=True):
            content = cell.get("bytes") if isinstance(cell, dict) else cell
            place = f"{where} row {row}"
            if content is None and takes_paths and os.path.isfile(str(cell and cell.get("path"))):
                content = Path(cell["path"])
            if not isinstance(content, bytes | Path):
                raise UserError(f'{place}: column "{image}" holds no image bytes')
            number = value if numbers is None else numbers.get(_normal(value))
            if not isinstance(number, int):
                raise UserError(f'{place}: label "{value}" is not among the classes of the train split')
            yield EncodedImage(content, number, place)
            row += 1
