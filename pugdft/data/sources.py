"""From ``data.name`` to a source: a table of known data sets, and folders by their layout."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pugdft.data.contents import Source
from pugdft.data.image_folders import image_folder_source
from pugdft.data.tables import hub_source, parquet_source
from pugdft.errors import UserError, unknown
from pugdft.folders import cache_folder, data_folder, expanded


@dataclass(frozen=True)
class HubDataset:
    """Where a known data set lives on the Hugging Face Hub."""

    repository: str
    test_split: str


HUB_DATASETS = {
    "cifar10": HubDataset("uoft-cs/cifar10", "test"),
    "cifar100": HubDataset("uoft-cs/cifar100", "test"),
    # Its test split has no labels; the papers report on the validation split.
    "tiny_imagenet": HubDataset("zh-plus/tiny-imagenet", "valid"),
}

BUNDLED = "bundled"
_SHOWN_LENGTH = 200

LAYOUTS = (
    "train*.parquet and test*.parquet (columns img or image, label or fine_label), "
    "or train/CLASS/*.jpg and test/CLASS/*.jpg"
)


def dataset_names() -> list[str]:
    """Every name that is not a path."""
    return [*HUB_DATASETS, BUNDLED]


def open_source(name: str) -> Source:
    """The source behind ``data.name``.

    A known name is looked for in the data folder first (``cifar10/`` there, in any layout), then on the
    Hub. Anything else is a path.

    Raises:
        UserError: unknown name, missing folder or layout, or a Hub data set that cannot be had; the
            message names the folder, the layout and the command that fetches it.
    """
    try:
        return _open_source(name)
    except OSError as error:  # whatever is not readable in the data or not writable in the cache
        raise UserError(f"{error.filename or name}: {error.strerror or error}") from None


def _open_source(name: str) -> Source:
    if name == BUNDLED:
        return folder_source(Path(__file__).parent / "bundled", BUNDLED)
    if name in HUB_DATASETS:
        local = data_folder() / name
        if local.is_dir():
            return folder_source(local, name)
        entry = HUB_DATASETS[name]
        try:
            return hub_source(name, entry.repository, entry.test_split)
        except UserError as error:
            raise UserError(
                f"data.name: {name} is not on this machine and cannot be fetched ({error}).\n"
                f"  With a network: pugdft data prepare {name}\n"
                f"  Without one: put {LAYOUTS}\n  into {local}, or give such a folder as data.name;\n"
                f"  or copy {cache_folder()} from a machine where `pugdft data prepare {name}` has run."
            ) from None
    if not name:
        # As a path it would be the current folder.
        raise UserError(f"data.name: is empty. Give a folder, or one of {', '.join(dataset_names())}")
    path = expanded(name, "data.name")
    if not os.path.isdir(path):  # pathlib's raises where a name is too long
        shown = name if len(name) <= _SHOWN_LENGTH else name[:_SHOWN_LENGTH] + "…"
        raise UserError(f"data.name: no such folder, and {unknown('data set', shown, dataset_names())}")
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
