"""Open a data set by its name, path or id of the Hub.

To add a data set, add one row to ``DATASETS``.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pugdft.config import plugins
from pugdft.data.image_folders import image_folder_source, table_source
from pugdft.data.source import Source, SplitChoice
from pugdft.data.tables import hub_source, parquet_source, saved_source
from pugdft.errors import UserError, reason, refuse, unknown
from pugdft.paths import cache_folder, data_folder, expanded


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


@cache  # a function may take its time
def _as_dataset(name: str, found: Any) -> KnownDataset:
    """Accept a ``KnownDataset`` of another package, or a function without arguments that returns one."""
    if inspect.isfunction(found) and inspect.get_annotations(found).get("return") in (
        KnownDataset,
        "KnownDataset",
    ):
        # Foreign code may raise anything.
        with refuse(Exception, lambda error: f'"{name}" failed: {reason(error)}'):
            found = found()
    if not isinstance(found, KnownDataset):
        raise UserError(f'"{name}": must be a KnownDataset, or a function `-> KnownDataset`')
    return found


BUNDLED = "bundled"  # comes with pugdft
DATASETS: MutableMapping[str, KnownDataset] = plugins.OpenRegistry(
    {
        "cifar10": KnownDataset("uoft-cs/cifar10"),
        "cifar100": KnownDataset("uoft-cs/cifar100"),
        # Its test split has no labels; the papers report on the validation split.
        "tiny_imagenet": KnownDataset("zh-plus/tiny-imagenet", test_split="valid"),
        BUNDLED: KnownDataset(folder=Path(__file__).parent / "bundled"),
    },
    plugins.DATASETS,
    _as_dataset,
)
"""Name in a recipe to where it is found; other packages' too."""

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_TABLES = (".csv", ".tsv", ".jsonl")

LAYOUTS = (
    "train*.parquet and test*.parquet (columns img or image, label or fine_label), "
    "or train/CLASS/*.jpg and test/CLASS/*.jpg"
)


def open_source(
    name: str,
    test: float = 0.0,
    splits: Mapping[str, str] | None = None,
    trusts_memory: bool = True,
    only_looks: bool = False,
) -> Source:
    """The source behind ``data.name``.

    A known name is looked for in the data folder first (``cifar10/`` there, in any layout), then on the
    Hub. Anything else is a path, or the id of a data set on the Hub, ``owner/name``.

    Args:
        name: as in a recipe.
        test: the fraction of the training images to cut off as the test split (``data.test``).
        splits: the data set's own names by ``train``, ``test``, ``validation`` (``data.splits``).
        trusts_memory: whether a digest of files that seem unchanged may be remembered; a check reads them.
        only_looks: whether nothing is written, and a missing test split is no error but a note.

    Raises:
        UserError: unknown name, missing folder or layout, or a Hub data set that cannot be had; the
            message names the folder, the layout and the command that fetches it.
    """
    choice = SplitChoice(dict(splits or {}), test, trusts_memory, only_looks)
    # Whatever is not readable in the data or not writable in the cache.
    with refuse(OSError, lambda error: f"{error.filename or name}: {reason(error)}"):
        with refuse(UserError, lambda error: f"data.name: {error}"):
            known = DATASETS.get(name)
        return _known(name, known, choice) if known is not None else _by_path(name, choice)


def _known(name: str, entry: KnownDataset, choice: SplitChoice) -> Source:
    local = entry.folder or data_folder() / name
    if local.is_dir():
        return folder_source(local, name, choice)
    remedy = (
        f"  With a network: pugdft data prepare {name}\n"
        f"  Without one: put {LAYOUTS}\n  into {local}, or give such a folder as data.name;\n"
        f"  or copy {cache_folder()} from a machine where `pugdft data prepare {name}` has run."
    )
    problem = f"data.name: {name} is not on this machine and cannot be fetched"
    return hub_source(
        name, entry.repository, choice, lambda why: f"{problem} ({why}).\n{remedy}", entry.test_split
    )


def _by_path(name: str, choice: SplitChoice) -> Source:
    if not name:
        # As a path it would be the current folder.
        raise UserError(f"data.name: is empty. Give a folder, or one of {', '.join(DATASETS)}")
    path = expanded(name, "data.name")
    # Records are UTF-8 and carry this name; a folder's may be any bytes.
    shown = os.fsencode(os.path.basename(os.path.realpath(path)) if "\0" not in name else name)
    title = shown.decode("utf-8", "backslashreplace")
    if os.path.isdir(path):  # pathlib's raises where a name is too long
        return folder_source(path, title, choice)
    if path.suffix.lower() in _TABLES and os.path.isfile(path):
        return table_source(path.parent, title.rpartition(".")[0], choice, [path])
    if os.path.isfile(path):
        raise UserError(
            f"data.name: {path} is a file; of files, only {', '.join(_TABLES)} are read. Give its folder"
        )
    problem = f"data.name: no such folder, and {unknown('data set', name, DATASETS)}"
    if not _HUB_ID.fullmatch(name):
        raise UserError(problem)
    fetched = f"; with a network, `pugdft data prepare {name}` fetches it" if choice.only_looks else ""
    return hub_source(
        name, name, choice, lambda why: f"{problem} Nor can it be had from the Hub ({why}){fetched}"
    )


def folder_source(folder: Path, name: str, choice: SplitChoice) -> Source:
    """The source in a folder, by its layout.

    Raises:
        UserError: the folder holds no data set in a layout that is read.
    """
    readers = [saved_source, parquet_source, image_folder_source]
    if (folder / "train").is_dir() and not any(folder.glob("train/*.parquet")):
        readers.sort(key=lambda reader: reader is parquet_source)
    for reader in readers:
        if source := reader(folder, name, choice):
            return source
    raise UserError(f"{folder}: holds no data set. Expected {LAYOUTS}.")
