"""Folders of pugdft, use of the Hub without a network, atomic writes, digests and locks of files."""

from __future__ import annotations

import functools
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from pugdft.errors import UserError, printable, reason, refuse

with suppress(ImportError):  # on Windows there is none
    import fcntl


def cache_folder() -> Path:
    """``$PUGDFT_CACHE``, or ``pugdft`` under ``$XDG_CACHE_HOME`` or ``~/.cache``; it may not exist yet."""
    folder = _chosen("PUGDFT_CACHE")
    if folder is None:
        parent = _chosen("XDG_CACHE_HOME") or expanded("~/.cache", "PUGDFT_CACHE is not set")
        folder = parent / "pugdft"
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise UserError(f"PUGDFT_CACHE: {folder} is not a folder")
    return folder


def cache_subfolder(name: str) -> Path:
    """The folder ``name`` in the cache, made if it is not there; UserError if it cannot be made."""
    folder = cache_folder() / name
    advice = "Set PUGDFT_CACHE to a folder that can be written"
    with refuse(OSError, lambda error: f"PUGDFT_CACHE: {folder} cannot be made: {reason(error)}. {advice}"):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def data_folder() -> Path:
    """``$PUGDFT_DATA`` or ``data`` in the cache: ``cifar10/`` here is used instead of the Hub's copy."""
    return _chosen("PUGDFT_DATA") or cache_folder() / "data"


def weights_folder() -> Path:
    """``$PUGDFT_WEIGHTS`` or ``weights`` in the cache: ``MODEL.TAG.safetensors`` here needs no Hub."""
    return _chosen("PUGDFT_WEIGHTS") or cache_folder() / "weights"


def _chosen(variable: str) -> Path | None:
    """The folder that an environment variable names, if it is set."""
    return expanded(os.environ[variable], variable) if os.environ.get(variable) else None


def expanded(path: str, where: str) -> Path:
    """Put ``~`` and ``~name`` of a path in full; UserError, opened by ``where``, if there is no such home."""
    home = "".join(Path(path).parts[:1])
    words = f"{where}: {home} is no home folder on this machine; give a full path"
    with refuse(RuntimeError, lambda error: words):
        return Path(path).expanduser()


@functools.cache
def stay_offline_without_network() -> bool:
    """Keep the Hub's client from trying for half a minute if the Hub's name does not resolve; True if so."""
    import socket  # with the next one, a fifth of the start of a command that needs no network
    from urllib.parse import urlparse
    from urllib.request import getproxies

    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return True
    if getproxies():
        return False  # behind a proxy, names need not resolve here
    with suppress(OSError):
        socket.getaddrinfo(urlparse(constants.ENDPOINT).hostname or "", 443)
        return False
    os.environ["HF_HUB_OFFLINE"] = "1"  # for what is imported or started later
    constants.HF_HUB_OFFLINE = True
    return True


def write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content``; a reader or a crash sees the old file or the new one, no mixture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with ExitStack() as stack:
        stack.callback(Path(name).unlink, missing_ok=True)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, readable_mode())  # mkstemp makes private files
        os.replace(name, path)


def nearest_folder(folder: Path) -> Path:
    """The folder itself if it is there, else the nearest one above it that is."""
    places = (folder, *folder.absolute().parents)
    return next(place for place in places if place.exists())


def readable_mode() -> int:
    """Return the mode of a new file under the umask, as ``open`` would set it."""
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


# File systems that one machine has to itself. On any other, its locks need not reach the others.
_OF_ONE_MACHINE = {
    *("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "bcachefs", "tmpfs", "ramfs", "overlay"),
    *("vfat", "exfat", "apfs", "hfs", "ntfs3", "erofs"),
}


def file_system(folder: Path) -> str:
    """The type of the file system that a folder is on, empty where it is not known."""
    import psutil

    place = Path(os.path.realpath(folder))
    kinds = {Path(each.mountpoint): each.fstype for each in psutil.disk_partitions(all=True)}
    return next((kinds[each] for each in (place, *place.parents) if each in kinds), "")


def is_shared(folder: Path) -> bool:
    """Whether a folder lies on a file system that other machines may have too; False where nothing tells."""
    kind = file_system(folder)
    return bool(kind) and kind not in _OF_ONE_MACHINE


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_inside(folder: Path, name: str) -> Path | None:
    """The file inside ``folder`` that ``name``, which a stranger may have written, leads to, if any."""
    file = folder / name
    try:
        # The usual case, without a look at every folder above: a table reads thousands.
        if os.path.basename(name) == name and stat.S_ISREG(os.lstat(file).st_mode):
            return file
        file = file.resolve()
        if file.is_relative_to(folder.resolve()):
            return file if file.is_file() else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RuntimeError):  # too long, a null byte, a loop of links
        pass
    raise UserError(
        f'"{printable(name)[:80]}" leads out of the record\'s folder; files are read from there only'
    )


def check_locks() -> None:
    """Refuse a system without the kernel's locks, which keep a folder from being written by two commands."""
    if "fcntl" not in globals():
        raise UserError(
            "this command needs the file locks of Linux or macOS (Python's module fcntl), which this system "
            "does not have. On Windows run pugdft in WSL: https://learn.microsoft.com/windows/wsl/install"
        )


def flock(file: IO[Any], wait: bool, shared: bool = False) -> None:
    """Lock an open file for this process; BlockingIOError if another has it and this one may not wait."""
    check_locks()
    fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))


@contextmanager
def locked(path: Path, folder: Path | None = None, wait: bool = True) -> Iterator[int | None]:
    """Wait for the kernel's lock (flock) on a file and hold it; a killed command leaves none."""
    without = f"--output {folder or path.parent}: this file system has no locks"
    need = "which commands need to share a folder; choose a folder on another file system"
    held = None
    with path.open("ab") as file:
        with refuse(OSError, lambda fault: f"{without} ({reason(fault)}), {need}"), suppress(BlockingIOError):
            flock(file, wait)
            held = file.fileno()
        yield held
