"""Where pugdft keeps what it can make again, and where it looks for what a user puts there."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import socket
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
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


@functools.cache
def stay_offline_without_network() -> bool:
    """Tell the Hub's client to use its cache alone if the Hub's name does not resolve; True if so.

    Its client otherwise tries again for half a minute before it says that there is no network. Behind a
    proxy names need not resolve here, so nothing is concluded then.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return True
    if urllib.request.getproxies():
        return False
    host = urllib.parse.urlparse(constants.ENDPOINT).hostname or ""
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"  # for what is imported or started later
        constants.HF_HUB_OFFLINE = True
        return True
    return False


def write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content``; a reader or a crash sees the old file or the new one, no mixture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, readable_mode())  # mkstemp makes private files
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def readable_mode() -> int:
    """The mode of a new file under the umask: to be read by whoever may read the folder."""
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_FOLDER = ".claims"


@contextmanager
def claimed(folder: Path) -> Iterator[int | None]:
    """The descriptor of the lock on a cell's folder, or None if somebody else has it.

    The kernel's own lock (flock) and not a file that says "locked": it ends with its last holder, however
    that ended, so a killed command leaves nothing stale. A child that inherits the descriptor goes on
    holding it after its parent was killed, so a cell still at work is never started a second time.
    """
    locks = folder.parent / _FOLDER
    locks.mkdir(exist_ok=True)
    descriptor = os.open(locks / folder.name, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        except OSError as error:
            raise UserError(
                f"--output {folder.parent}: this file system has no locks ({error.strerror}), by which "
                "several commands share a folder; choose a folder on another one"
            ) from None
        else:
            yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Nobody else's turn until the end of the ``with``; waits for one's own.

    The kernel's own lock (flock) on the file ``path``, which a killed command lets go.

    Raises:
        UserError: the file system has no locks, as some network drives.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            raise UserError(
                f"--output {path.parent}: this file system has no locks ({error.strerror}), without which "
                "commands cannot share a folder; choose a local folder"
            ) from None
        yield
    finally:
        os.close(descriptor)
