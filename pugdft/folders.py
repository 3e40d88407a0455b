"""Where pugdft keeps what it can make again, and where it looks for what a user puts there."""

from __future__ import annotations

import os
from pathlib import Path

from pugdft.errors import UserError


def cache_folder() -> Path:
    """``$PUGDFT_CACHE``, or ``pugdft`` under ``$XDG_CACHE_HOME`` or ``~/.cache``; it may not exist yet.

    Raises:
        UserError: something else than a folder is there, or there is no home folder.
    """
    if chosen := os.environ.get("PUGDFT_CACHE"):
        folder = expanded(chosen, "PUGDFT_CACHE")
    elif chosen := os.environ.get("XDG_CACHE_HOME"):
        folder = expanded(chosen, "XDG_CACHE_HOME") / "pugdft"
    else:
        folder = expanded("~/.cache", "PUGDFT_CACHE is not set") / "pugdft"
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise UserError(f"PUGDFT_CACHE: {folder} is not a folder")
    return folder


def cache_subfolder(name: str) -> Path:
    """The folder ``name`` in the cache, made if it is not there.

    Raises:
        UserError: it cannot be made.
    """
    folder = cache_folder() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"PUGDFT_CACHE: {folder} cannot be made: {error.strerror}. "
            "Set PUGDFT_CACHE to a folder that can be written"
        ) from None
    return folder


def data_folder() -> Path:
    """``$PUGDFT_DATA`` or ``data`` in the cache: ``cifar10/`` here is used instead of the Hub's copy."""
    if chosen := os.environ.get("PUGDFT_DATA"):
        return expanded(chosen, "PUGDFT_DATA")
    return cache_folder() / "data"


def weights_folder() -> Path:
    """``$PUGDFT_WEIGHTS`` or ``weights`` in the cache: ``MODEL.TAG.safetensors`` here needs no Hub."""
    if chosen := os.environ.get("PUGDFT_WEIGHTS"):
        return expanded(chosen, "PUGDFT_WEIGHTS")
    return cache_folder() / "weights"


def expanded(path: str, where: str) -> Path:
    """A path with ``~`` and ``~name`` put in full; ``where`` opens the message if there is no such home.

    Raises:
        UserError: that user, or whoever runs this, has no home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        home = Path(path).parts[0]
        raise UserError(f"{where}: {home} is no home folder on this machine; give a full path") from None
