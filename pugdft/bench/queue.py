"""The cells of a folder of runs as a queue that many commands, on many machines, take from.

The folder itself is the queue; there is no server. Below ``RUNS/.claims`` lie

- ``settled/ID.STATUS``, an empty file made after a cell's record: one listing tells all that is done;
- ``ID`` or ``ID.lease``, the lock of a cell. A *lock of the kernel* excludes others on one machine and is
  released with its last process. A *lease* (a file that its owner touches again and again) works on every
  shared file system, also where the kernel's locks do not reach other machines; it expires;
- ``ID.attempts``, who began the cell. Only the last one may write the cell's folder: an earlier owner that
  comes back, such as a machine that was cut off, finds another's token there and ends.
"""

from __future__ import annotations

import heapq
import json
import os
import random
import secrets
import socket
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from filelock import SoftFileLease, Timeout

from pugdft.errors import UserError
from pugdft.paths import flock, locked, write_atomically
from pugdft.training.attempts import CLAIMS, attempts_file, read_attempts

Kind = Literal["flock", "lease"]

MOST_ATTEMPTS = 3  # of a cell that takes its worker along each time and comes no further
LOST = "lost"  # the status of a cell after these

_SETTLED, _LEASE = "settled", ".lease"
STATUSES = ("completed", "diverged", "failed", "oom", "interrupted", "missing", LOST)
_TRIED_AGAIN = set(STATUSES) - {"completed", "diverged"}  # by the next command that is given the same cells
_BUSY_SECONDS = 1.0
_LOOK_SECONDS, _LOOK_SHARE = 10.0, 20  # between two listings: at least so long, and so many times as long
_WORKERS_A_PLACE = 15  # that draw among the first cells that look free, for each of these
_WIDEST = 256
_WATCHED = 8  # leases that one worker watches for a sign of life
_PATIENCE = 5.0  # seconds beyond a lease


@dataclass(frozen=True)
class Claim:
    """A cell that this process has."""

    token: str
    descriptor: int | None = None  # of a lock of the kernel; who inherits it holds the lock
    is_lost: Callable[[], bool] = lambda: False  # whether another process has taken the cell over


class Ledger(Protocol):
    """What the workers on one folder know of each other."""

    lease_seconds: float

    def settled(self) -> Mapping[str, str]:
        """The status of every cell that is done."""

    def held(self) -> set[str]:
        """Cells that are leased, by living or dead owners; nothing where the kernel keeps the locks."""

    def stamp(self, name: str) -> object:
        """What a living owner of a lease changes; None if it is no longer leased."""


class FolderLedger:
    """The ledger in a folder of runs."""

    def __init__(self, folder: Path, kind: Kind = "flock", lease_seconds: float = 60.0) -> None:
        self.folder, self.kind, self.lease_seconds = folder, kind, lease_seconds
        self._claims = folder / CLAIMS
        self._settled = self._claims / _SETTLED

    def prepare(self) -> None:
        """Make the folders of claims, before the first one."""
        self._settled.mkdir(parents=True, exist_ok=True)

    def settled(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for name, _, status in (name.rpartition(".") for name in _listed(self._settled)):
            if found.get(name) != "completed":
                found[name] = status
        return found

    def status(self, name: str) -> str:
        """The status of one cell that is done, else the empty string."""
        return next((each for each in STATUSES if (self._settled / f"{name}.{each}").exists()), "")

    def held(self) -> set[str]:
        if self.kind == "flock":
            return set()
        return {name.removesuffix(_LEASE) for name in _listed(self._claims) if name.endswith(_LEASE)}

    def stamp(self, name: str) -> tuple[int, int, int] | None:
        with suppress(OSError), self._lease_file(name).open("rb") as file:
            stat = os.fstat(file.fileno())  # of an open file: a network's cache is not asked
            return stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns
        return None

    @contextmanager
    def take(self, name: str, patience: float = 0.0) -> Iterator[Claim | None]:
        """Take a cell, after at most ``patience`` seconds, and hold it; None if another has it.

        A patience beyond the lease also takes it from an owner that gives no sign of life meanwhile.
        """
        token = secrets.token_hex(8)
        if self.kind == "flock":
            with locked(self._claims / name, self.folder, wait=False) as descriptor:
                yield None if descriptor is None else Claim(token, descriptor)
            return
        lease = self._lease(name, patience)
        before = self.stamp(name) if patience > self.lease_seconds else None
        is_mine = _acquired(lease)
        if not is_mine and before is not None and self._free_silent(name, before):
            lease = self._lease(name, 0)
            is_mine = _acquired(lease)
        if not is_mine:
            yield None
            return
        try:
            yield Claim(token, is_lost=lambda: lease.compromise is not None)
        finally:
            lease.release()

    def _lease(self, name: str, patience: float) -> SoftFileLease:
        seconds = self.lease_seconds
        return SoftFileLease(
            self._lease_file(name),
            lease_duration=seconds,
            heartbeat_interval=seconds / 3,
            timeout=patience,
            poll_interval=seconds / 60,
            thread_local=False,
        )

    def _free_silent(self, name: str, before: tuple[int, int, int]) -> bool:
        """Remove a lease that has not changed since ``before``, where filelock could not take it over.

        filelock takes over by exchanging two names, which network file systems and FUSE refuse. One worker
        alone may remove a lease, so that no fresh one is removed by a second that was slow. Should its owner
        wake up at this very moment, it finds its lease gone, and another's token where it wants to write.
        """
        right = self._claims / f"{name}.over"
        try:
            right.touch(exist_ok=False)
        except FileExistsError:
            with suppress(OSError):  # of a worker that was killed in these few lines
                if server_time(self._claims) - right.stat().st_mtime > self.lease_seconds:
                    right.unlink()
            return False
        try:
            if is_silent := self.stamp(name) == before:
                self._lease_file(name).unlink(missing_ok=True)
            return is_silent
        finally:
            right.unlink(missing_ok=True)

    def is_locked(self, name: str) -> bool:
        """Whether a process of this machine has the kernel's lock of a cell; writes nothing."""
        with suppress(OSError), (self._claims / name).open("rb") as file:
            try:
                flock(file, wait=False, shared=True)
            except BlockingIOError:
                return True
        return False

    def settle(self, name: str, status: str, claim: Claim) -> None:
        """Note that a cell is done."""
        (self._settled / f"{name}.{status}").touch()
        if status != LOST:
            self.end(name, claim)

    def reopen(self, names: Iterable[str], retry: bool) -> None:
        """Forget the end of cells that are to be tried again, and of those whose record is gone."""
        again = _TRIED_AGAIN | ({"diverged"} if retry else set())
        found = self.settled()
        for name in names:
            status = found.get(name)
            if status and (status in again or not (self.folder / name / "record.yaml").exists()):
                (self._settled / f"{name}.{status}").unlink(missing_ok=True)
                attempts_file(self.folder, name).unlink(missing_ok=True)

    def deleted(self) -> set[str]:
        """The cells with a result whose folders have been deleted since."""
        there = set(_listed(self.folder))
        found = self.settled().items()
        return {name for name, status in found if status not in _TRIED_AGAIN and name not in there}

    def forget_deleted(self) -> None:
        """Forget the end of cells whose folders have been deleted, so that they run again."""
        for name in self.deleted():
            for status in set(STATUSES) - _TRIED_AGAIN:
                (self._settled / f"{name}.{status}").unlink(missing_ok=True)

    def begin(self, name: str, claim: Claim) -> bool:
        """Note an attempt at a cell; False if too many have ended their workers at the same place."""
        place = ""  # the time of the checkpoint from which it goes on
        with suppress(OSError):
            place = str((self.folder / name / "checkpoint" / "state.json").stat().st_mtime_ns)
        attempts = read_attempts(self.folder, name)
        if sum(each.get("from") == place for each in attempts[-MOST_ATTEMPTS:]) == MOST_ATTEMPTS:
            return False
        own = {"token": claim.token, "host": socket.gethostname(), "pid": os.getpid(), "from": place}
        own["time"] = datetime.now(UTC).isoformat(timespec="seconds")
        write_atomically(attempts_file(self.folder, name), json.dumps([*attempts, own]).encode())
        return True

    def end(self, name: str, claim: Claim) -> None:
        """Forget the attempts at a cell that ended in an orderly way, unless another has begun it since."""
        attempts = read_attempts(self.folder, name)
        if attempts and attempts[-1].get("token") == claim.token:
            attempts_file(self.folder, name).unlink(missing_ok=True)

    def _lease_file(self, name: str) -> Path:
        return self._claims / f"{name}{_LEASE}"


def _listed(folder: Path) -> list[str]:
    with suppress(FileNotFoundError):
        return os.listdir(folder)
    return []


def _acquired(lease: SoftFileLease) -> bool:
    with suppress(Timeout):
        lease.acquire()
        return True
    return False


def server_time(folder: Path) -> float:
    """The time by the clock of the machine that keeps a folder; this one's if it cannot be written."""
    with suppress(OSError), tempfile.NamedTemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_mtime
    return time.time()


class CellNames:
    """The names of the cells of a queue, in their order; a simulation shares them among its workers."""

    def __init__(self, names: Iterable[str]) -> None:
        self.order = list(names)
        self.known = set(self.order)

    def add(self, names: Iterable[str]) -> None:
        """Add those that are new, at the end."""
        new = [name for name in names if name not in self.known]
        self.order += new
        self.known.update(new)


class Queue:
    """The order in which a worker tries cells.

    A worker that is alone takes them in their order. Many would all try the same first ones. So each draws at
    random among the first that look free: about one for each 15 workers, as far as leases tell how many there
    are, and twice as many each time that it finds a cell taken.

    A lease of a dead worker looks like one of a living worker. Each worker watches a few of them, chosen by a
    number of its own, so that each is watched by some.
    """

    def __init__(
        self,
        names: CellNames,
        ledger: Ledger,
        clock: Callable[[], float] = time.monotonic,
        draws: random.Random | None = None,
    ) -> None:
        self.names, self.ledger, self._clock = names, ledger, clock
        self._draws = draws or random.Random()  # noqa: S311
        self._own_number = self._draws.getrandbits(32)
        self.settled: Mapping[str, str] = {}  # as it was listed
        self._own: dict[str, str] = {}  # settled by this worker, or found so, since the listing
        self.held: set[str] = set()
        self._silent: list[str] = []  # leases whose owners gave no sign of life for as long as a lease lasts
        self._stamps: dict[str, tuple[object, float]] = {}  # of watched leases, and when they were seen first
        self._busy: dict[str, float] = {}  # found taken, and until when not to try again
        self._last: dict[str, None] = {}  # to be tried after all others
        self._left: set[str] = set()  # not to be tried again
        self._place = 0  # in the order; names before it are closed or among the open ones
        self._open: list[str] = []
        self._near: list[str] = []  # the first that are not leased
        self._window = 1
        self._told: set[str] = set()
        self._look_at = float("-inf")

    def add(self, names: Iterable[str]) -> None:
        """Add cells at the end."""
        self.names.add(names)

    def is_closed(self, name: str) -> bool:
        """Whether nothing is left to do at a cell, as far as this worker knows."""
        return name in self.settled or name in self._own

    def has_open(self) -> bool:
        """Whether anything may be left to do."""
        self._find_near()
        return any(name not in self._left for name in self._open)

    def look(self) -> bool:
        """List what others have done, if it is time to; returns whether it did."""
        begin = self._clock()
        if begin < self._look_at:
            return False
        self.settled = self.ledger.settled()
        self._own = {name: status for name, status in self._own.items() if name not in self.settled}
        self.held = self.ledger.held()
        self._window = max(1, len(self.held) // _WORKERS_A_PLACE, self._window // 2)
        self._watch(begin)
        self._find_near()
        # A slow file server is asked less often.
        now = self._clock()
        self._look_at = now + max(_LOOK_SECONDS, _LOOK_SHARE * (now - begin))
        return True

    def look_soon(self) -> None:
        """Let the next look be a real one: a single command that watches may ask more often than workers."""
        self._look_at = float("-inf")

    def news(self) -> dict[str, str]:
        """The cells that others have settled since it was asked last, as far as the last look tells."""
        new = {
            name: status
            for name, status in self.settled.items()
            if name in self.names.known and name not in self._told
        }
        self._told.update(new)
        return new

    def draw(self) -> tuple[str, float] | None:
        """The next cell to try and how many seconds to be patient with it; None if none looks free."""
        while self._silent:
            name = self._silent.pop()
            if not self.is_closed(name):
                return name, self.ledger.lease_seconds + _PATIENCE
        free = self._free()
        if len(free) < self._window and self._place < len(self.names.order):
            self._find_near()
            free = self._free()
        return (self._draws.choice(free), 0.0) if free else None

    def found_taken(self, name: str) -> None:
        """Another worker has this cell: try others first."""
        now = self._clock()
        self._busy[name] = max(now + _BUSY_SECONDS, self._look_at if self.held else 0.0)
        self._stamps.pop(name, None)
        self._window = min(2 * self._window, _WIDEST)

    def put_last(self, name: str, is_left: bool) -> None:
        """Try this cell after all others, or leave it."""
        self._last.pop(name, None)
        if is_left:
            self._left.add(name)
        else:
            self._last[name] = None
        self._find_near()

    def close(self, name: str, status: str) -> None:
        """Nothing is left to do at this cell, which whoever asks for news knows already."""
        self._own[name] = status
        self._told.add(name)
        self._busy.pop(name, None)

    def _find_near(self) -> None:
        """Find the first cells that are not leased: enough of them for several draws."""
        now, order, most = self._clock(), self.names.order, 4 * self._window + 8
        self._busy = {name: until for name, until in self._busy.items() if until > now}
        most += len(self._busy)
        settled, own, held = self.settled, self._own, self.held
        self._open = [name for name in self._open if name not in own and name not in settled]
        self._near = [name for name in self._open if name not in held and self._is_in_order(name)]
        while len(self._near) < most and self._place < len(order):
            name = order[self._place]
            self._place += 1
            if not self.is_closed(name):
                self._open.append(name)
                if name not in held and self._is_in_order(name):
                    self._near.append(name)
        if self._place == len(order):
            self._near += [name for name in self._last if not self.is_closed(name) and name not in held]

    def _is_in_order(self, name: str) -> bool:
        return name not in self._last and name not in self._left

    def _free(self) -> list[str]:
        now, free = self._clock(), list[str]()
        for name in self._near:
            if not self.is_closed(name) and now >= self._busy.get(name, 0.0):
                free.append(name)
                if len(free) == self._window:
                    break
        return free

    def _watch(self, now: float) -> None:
        """Look for signs of life of a few leases."""
        leased, own = self.held & self.names.known, self._own_number
        watched = heapq.nsmallest(_WATCHED, leased, key=lambda name: zlib.crc32(name.encode()) ^ own)
        before, self._stamps, self._silent = self._stamps, {}, []
        for name in watched:
            seen = before.get(name)
            if self.is_closed(name) or (stamp := self.ledger.stamp(name)) is None:
                continue
            if seen is None or seen[0] != stamp:
                seen = stamp, now
            self._stamps[name] = seen
            if now - seen[1] >= self.ledger.lease_seconds:
                self._silent.append(name)


@dataclass(frozen=True)
class Agreement:
    """What all commands on a folder of runs must do alike; the first one decides."""

    kind: Kind
    lease_seconds: float
    host: str  # of the first command

    @classmethod
    def of(cls, runs: Path, kind: Kind, lease_seconds: float = 60.0) -> Agreement:
        """Make the agreement of a folder, or return the one that is there.

        Raises:
            UserError: it is one of locks of the kernel, which do not reach as far as is needed.
        """
        path = runs / CLAIMS / "agreement.json"
        own = cls(kind, lease_seconds, socket.gethostname())
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{secrets.token_hex(8)}")
        draft.write_text(json.dumps(vars(own)), encoding="utf-8")
        try:
            with suppress(FileExistsError):
                os.link(draft, path)  # one of many wins, and it is whole at once
        except OSError:  # a file system without hard links
            if not path.exists():
                draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
        found = cls.read(runs)
        if found is None:
            raise UserError(f"{path}: cannot be read; remove it when no command runs on {runs}")
        # Elsewhere, a folder that machines share is known as such, and leases are asked for.
        if found.kind == "flock" and kind == "lease":
            raise UserError(
                f"{runs}: commands here exclude each other by locks of the kernel of {found.host}, which "
                f"need not reach other machines. When none runs any more, remove {path}; then the next "
                "command decides anew. --executor 'local[lease=60]' uses leases, which reach all machines"
            )
        return found

    @classmethod
    def read(cls, runs: Path) -> Agreement | None:
        """The agreement of a folder, if there is one that can be read."""
        with suppress(OSError, ValueError, TypeError, RecursionError):
            found: Mapping[str, Any] = json.loads(
                (runs / CLAIMS / "agreement.json").read_text(encoding="utf-8")
            )
            known = cls(**found)
            if known.kind in get_args(Kind) and 0 < known.lease_seconds <= 3600:
                return known
        return None
