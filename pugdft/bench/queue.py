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

import json
import os
import random
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from filelock import SoftFileLease, Timeout

from pugdft.errors import UserError
from pugdft.paths import locked, write_atomically
from pugdft.training.attempts import CLAIMS, attempts_file, read_attempts

Kind = Literal["flock", "lease"]

MOST_ATTEMPTS = 3  # of a cell that takes its worker along each time and comes no further
LOST = "lost"  # the status of a cell after these

_SETTLED, _LEASE = "settled", ".lease"
_STATUSES = ("completed", "diverged", "failed", "oom", "interrupted", "missing", LOST)
_TRIED_AGAIN = set(_STATUSES) - {"completed", "diverged"}  # by the next command that is given the same cells
_BUSY_SECONDS = 1.0
_LOOK_SECONDS, _LOOK_SHARE = 10.0, 20  # between two listings: at least so long, and so many times as long


@dataclass(frozen=True)
class Claim:
    """A cell that this process has."""

    token: str
    descriptor: int | None = None  # of a lock of the kernel; who inherits it holds the lock
    is_lost: Callable[[], bool] = lambda: False  # whether another process has taken the cell over


class Ledger(Protocol):
    """What the workers on one folder know of each other."""

    lease_seconds: float

    def settled(self) -> dict[str, str]:
        """The status of every cell that is done."""

    def held(self) -> set[str]:
        """Cells that are leased, by living or dead owners; nothing where the kernel keeps the locks."""

    def stamp(self, name: str) -> object:
        """What a living owner of a lease changes."""

    def take(self, name: str, patience: float = 0.0) -> AbstractContextManager[Claim | None]:
        """Take a cell, after at most ``patience`` seconds; None if another has it."""

    def settle(self, name: str, status: str) -> None:
        """Note that a cell is done."""


class FolderLedger:
    """The ledger in a folder of runs."""

    def __init__(self, folder: Path, kind: Kind = "flock", lease_seconds: float = 60.0) -> None:
        self.folder, self.kind, self.lease_seconds = folder, kind, lease_seconds
        self._claims = folder / CLAIMS
        self._settled = self._claims / _SETTLED
        self._settled.mkdir(parents=True, exist_ok=True)

    def settled(self) -> dict[str, str]:
        names = (name.rpartition(".") for name in os.listdir(self._settled))
        return {name: status for name, _, status in names}

    def status(self, name: str) -> str:
        """The status of one cell that is done, else the empty string."""
        return next((each for each in _STATUSES if (self._settled / f"{name}.{each}").exists()), "")

    def held(self) -> set[str]:
        if self.kind == "flock":
            return set()
        return {name.removesuffix(_LEASE) for name in os.listdir(self._claims) if name.endswith(_LEASE)}

    def stamp(self, name: str) -> object:
        with suppress(OSError), (self._claims / f"{name}{_LEASE}").open("rb") as file:
            stat = os.fstat(file.fileno())  # of an open file: a network's cache is not asked
            return stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns
        return None

    @contextmanager
    def take(self, name: str, patience: float = 0.0) -> Iterator[Claim | None]:
        token = secrets.token_hex(8)
        if self.kind == "flock":
            with locked(self._claims / name, self.folder, wait=False) as descriptor:
                yield None if descriptor is None else Claim(token, descriptor)
            return
        seconds = self.lease_seconds
        lease = SoftFileLease(
            self._claims / f"{name}{_LEASE}",
            lease_duration=seconds,
            heartbeat_interval=seconds / 3,
            timeout=patience,
            thread_local=False,
        )
        try:
            lease.acquire()
        except Timeout:
            yield None
            return
        try:
            yield Claim(token, is_lost=lambda: lease.compromise is not None)
        finally:
            lease.release()

    def settle(self, name: str, status: str) -> None:
        (self._settled / f"{name}.{status}").touch()
        if status != LOST:
            self._attempts(name).unlink(missing_ok=True)

    def reopen(self, names: Iterable[str], retry: bool) -> None:
        """Forget the end of cells that are to be tried again, and of those whose record is gone."""
        again = _TRIED_AGAIN | ({"diverged"} if retry else set())
        found = self.settled()
        for name in names:
            status = found.get(name)
            if status and (status in again or not (self.folder / name / "record.yaml").exists()):
                (self._settled / f"{name}.{status}").unlink(missing_ok=True)
                self._attempts(name).unlink(missing_ok=True)

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
        write_atomically(self._attempts(name), json.dumps([*attempts, own]).encode())
        return True

    def end(self, name: str) -> None:
        """Forget the attempts at a cell that was ended in an orderly way, to go on later."""
        self._attempts(name).unlink(missing_ok=True)

    def _attempts(self, name: str) -> Path:
        return attempts_file(self.folder, name)


class Queue:
    """The order in which a worker tries cells.

    One worker takes them in their order. Many would all try the same first ones, so each draws at random
    among the first that look free, about one for each 15 workers.
    """

    def __init__(
        self,
        names: Sequence[str],
        ledger: Ledger,
        workers: int = 1,
        clock: Callable[[], float] = time.monotonic,
        draws: random.Random | None = None,
    ) -> None:
        self.ledger, self._clock, self._draws = ledger, clock, draws or random.Random()  # noqa: S311
        self._window = 1 if workers <= 1 else max(8, workers // 15)
        self.settled: dict[str, str] = {}
        self.held: set[str] = set()
        self._open = dict.fromkeys(names)  # in their order
        self._stamps: dict[str, tuple[object, float]] = {}  # of leases, and when they were seen first
        self._busy: dict[str, float] = {}  # found taken, and when
        self._look_at = float("-inf")

    def __len__(self) -> int:
        """Cells that are not settled, as far as this worker knows."""
        return len(self._open)

    def add(self, names: Iterable[str]) -> None:
        """Add cells at the end."""
        self._open |= dict.fromkeys(name for name in names if name not in self.settled)

    def look(self) -> dict[str, str]:
        """List what others have done, if it is time to; returns the cells that were settled since."""
        begin = self._clock()
        if begin < self._look_at:
            return {}
        found = self.ledger.settled()
        new = {name: found[name] for name in self._open if name in found}
        for name in new:
            self.close(name, new[name])
        self.held = self.ledger.held()
        # A slow file server is asked less often.
        self._look_at = begin + max(_LOOK_SECONDS, _LOOK_SHARE * (self._clock() - begin))
        return new

    def look_soon(self) -> None:
        """Let the next look be a real one: a single command that watches may ask more often than workers."""
        self._look_at = float("-inf")

    def draw(self) -> tuple[str, float] | None:
        """The next cell to try and how many seconds to be patient with it; None if none looks free."""
        now, free, looked_at = self._clock(), list[tuple[str, float]](), 0
        for name in self._open:
            if name in self.held:
                # Its owner may be dead: then nothing has changed since this worker looked a lease ago.
                looked_at += 1
                if looked_at > self._window or not self._is_silent(name, now):
                    continue
                free.append((name, self.ledger.lease_seconds + 5))
            elif now >= self._busy.get(name, 0.0):
                free.append((name, 0.0))
            if len(free) == self._window:
                break
        return self._draws.choice(free) if free else None

    def found_taken(self, name: str) -> None:
        """Another worker has this cell: try others first."""
        self._busy[name] = self._clock() + _BUSY_SECONDS
        self._stamps.pop(name, None)

    def put_last(self, name: str, is_left: bool) -> None:
        """Try this cell after all others, or leave it."""
        self._open.pop(name, None)
        if not is_left:
            self._open[name] = None

    def close(self, name: str, status: str) -> None:
        """Nothing is left to do at this cell."""
        self._open.pop(name, None)
        self._busy.pop(name, None)
        self._stamps.pop(name, None)
        self.settled[name] = status

    def _is_silent(self, name: str, now: float) -> bool:
        stamp = self.ledger.stamp(name)
        seen = self._stamps.get(name)
        if seen is None or seen[0] != stamp:
            self._stamps[name] = stamp, now
            return False
        return now - seen[1] >= self.ledger.lease_seconds


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
            os.link(draft, path)  # one of many wins, on every file system
        except FileExistsError:
            pass
        finally:
            draft.unlink()
        found = cls.read(runs) or own
        if found.kind == "flock" and (found.host != own.host or kind == "lease"):
            raise UserError(
                f"{runs}: commands here exclude each other by locks of the kernel of {found.host}, which "
                f"need not reach other machines. When none runs any more, remove {path}; then the next "
                "command decides anew. --executor 'local[lease=60]' uses leases, which reach all machines"
            )
        return found

    @classmethod
    def read(cls, runs: Path) -> Agreement | None:
        """The agreement of a folder, if there is one that can be read."""
        with suppress(OSError, ValueError, TypeError):
            found: Mapping[str, Any] = json.loads(
                (runs / CLAIMS / "agreement.json").read_text(encoding="utf-8")
            )
            return cls(**found)
        return None
