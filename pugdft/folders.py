"""Where pugdft keeps what it can make again, and where it looks for what a user puts there."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$PUGDFT_CACHE``, or ``pugdft`` under ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if chosen := os.environ.get("PUGDFT_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "pugdft"


def data_folder() -> Path:
    """``$PUGDFT_DATA`` or ``data`` in the cache: ``cifar10/`` here is used instead of the Hub's copy."""
    return Path(os.environ.get("PUGDFT_DATA") or cache_folder() / "data").expanduser()


def weights_folder() -> Path:
    """``$PUGDFT_WEIGHTS`` or ``weights`` in the cache: ``MODEL.TAG.safetensors`` here needs no Hub."""
    return Path(os.environ.get("PUGDFT_WEIGHTS") or cache_folder() / "weights").expanduser()
