"""pugdft's folders: where they are, whether they can be written, how much fits, whether locks work."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from pugdft.doctor.report import Line, size, within
from pugdft.errors import UserError
from pugdft.paths import cache_folder, data_folder, weights_folder

_LITTLE = 2 * 2**30
_SECONDS = 10.0
_OF_A_NETWORK = ("nfs", "cifs", "smb", "lustre", "gpfs", "beegfs", "ceph", "9p", "fuse.", "afs", "glusterfs")
_IN_MEMORY = ("tmpfs", "ramfs")


def folder_lines() -> Iterator[Line]:
    """The cache, the places of data and weights, the Hub's cache, temporary files, the current folder."""
    yield from _found("cache", cache_folder, "PUGDFT_CACHE", written=True)
    yield from _found("data", data_folder, "PUGDFT_DATA", written=False)
    yield from _found("weights", weights_folder, "PUGDFT_WEIGHTS", written=False)
    yield from _found("Hub's cache", hub_cache, "HF_HOME", written=True)
    yield from _found("temporary", lambda: Path(tempfile.gettempdir()), "TMPDIR", written=True)
    yield from _found("this folder", Path.cwd, "--output", written=True)


def hub_cache() -> Path:
    """Where the Hub's client keeps what it fetched, as it decides that itself."""
    if chosen := os.environ.get("HF_HOME"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "huggingface"


def existing(folder: Path) -> Path:
    """The folder or the nearest one above it that exists."""
    folder = folder.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def file_system(folder: Path) -> str:
    """The type of the file system that a folder lies on, empty where nobody tells."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        place = os.path.realpath(folder)
    except OSError:
        return ""
    best, kind = "", ""
    for line in lines:
        left, _, right = line.partition(" - ")
        mount = left.split(" ")[4].replace(r"\040", " ")
        inside = place == mount or place.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):
            best, kind = mount, right.split(" ")[0]
    return kind


def try_lock(folder: Path) -> str:
    """Write a file in a folder, lock it, and remove it.

    Returns:
        ``locks work``, or in words why not.

    Raises:
        OSError: no file can be written.
    """
    descriptor, name = tempfile.mkstemp(prefix=".pugdft-doctor-", dir=folder)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        other = os.open(name, os.O_RDWR)
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return "locks work"
        finally:
            os.close(other)
        return "locks keep nobody out"
    except OSError as error:
        return f"no locks ({error.strerror})"
    finally:
        os.close(descriptor)
        os.unlink(name)


def is_held(lock: Path) -> bool | None:
    """Whether a process holds the lock on this file now; None if that cannot be told.

    Raises:
        FileNotFoundError: there is no such file.
    """
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return True if error.errno in (errno.EAGAIN, errno.EACCES) else None
    finally:
        os.close(descriptor)
    return False


def _found(name: str, choose: Callable[[], Path], variable: str, *, written: bool) -> list[Line]:
    try:
        folder = choose()
    except (UserError, OSError, RuntimeError) as error:
        return [Line("problem", name, " ".join(str(error).split()), _another(variable))]
    return within(_SECONDS, partial(_looked_at, name, folder, variable, written), name)


def _looked_at(name: str, folder: Path, variable: str, written: bool) -> list[Line]:
    another = _another(variable)
    if os.path.lexists(folder) and not folder.is_dir():
        what = "a link to nothing" if folder.is_symlink() and not folder.exists() else "not a folder"
        return [Line("problem", name, f"{folder} is {what}", another)]
    if not written and not folder.exists():
        return [Line("ok", name, f"{folder}, not there; nothing needs it")]
    place, kind = existing(folder), file_system(folder)
    free = shutil.disk_usage(place).free
    words = [str(folder) if folder == place else f"{folder}, to be made", f"{size(free)} free", kind]
    if not written:
        state = "readable" if os.access(folder, os.R_OK | os.X_OK) else "not readable"
        words.append(state)
        return [_line(name, words, "" if state == "readable" else f"make it readable, or {another}")]
    problem = note = ""
    try:
        words.append(try_lock(place) if os.access(place, os.W_OK | os.X_OK) else "not writable")
    except OSError as error:
        words.append(f"not writable ({error.strerror})")
    if words[-1] != "locks work":
        problem = f"make it writable on a file system with locks, or {another}"
    elif free < _LITTLE:
        note = f"free some space, or {another}"
    elif kind.startswith(_IN_MEMORY) and name != "temporary":
        words.append("in memory: gone when the machine stops")
        note = f"for what is to stay, {another}"
    elif kind.startswith(_OF_A_NETWORK):
        words.append("a network drive: slower, and locks between machines depend on how it is mounted")
        note = f"if several machines share it, test it; else {another}"
    return [_line(name, words, problem, note)]


def _another(variable: str) -> str:
    if variable == "--output":
        return "go to another folder, or give one by --output"
    return f"set {variable} to another folder"


def _line(name: str, words: list[str], problem: str, note: str = "") -> Line:
    text = ", ".join(word for word in words if word)
    return Line("problem" if problem else "note" if note else "ok", name, text, problem or note)
