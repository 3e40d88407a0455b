"""How a comparison stands, read from its folder: no engine is asked, torch is not needed."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pugdft.bench.plan import PlannedCell, Plans, planned_cells
from pugdft.bench.queue import STATUSES, Agreement, FolderLedger, server_time
from pugdft.training.attempts import CLAIMS, read_attempts

_RECENT_SECONDS = 3600.0
_LAST_BYTES = 4096


@dataclass(frozen=True)
class Running:
    """A cell that was begun and has not ended, and its worker."""

    cell: PlannedCell
    host: str
    pid: int
    attempt: int
    since: str
    silent_seconds: float | None  # since its last sign of life; None where the kernel keeps the locks


@dataclass(frozen=True)
class Unfinished:
    """A cell that ended without a result."""

    cell: PlannedCell
    status: str
    attempts: int
    last_line: str  # of its log


@dataclass
class Standing:
    """Of all cells of a folder of runs."""

    total: int
    counts: dict[str, int]  # by status; open ones are ``waiting`` or ``running``
    running: list[Running] = field(default_factory=list)
    unfinished: list[Unfinished] = field(default_factory=list)
    per_hour: float | None = None  # cells that were settled in the last hour, or since the first one
    seconds_left: float | None = None
    claims: str = "flock"

    @property
    def is_complete(self) -> bool:
        return self.counts.get("completed", 0) == self.total


def standing(runs: Path) -> Standing:
    """Read how the comparison in ``runs`` stands.

    Raises:
        UserError: there is no plan.
    """
    plans = Plans(runs)
    plans.require()
    cells = {cell.name: cell for plan in plans.news() for cell in planned_cells(plan)}
    agreement = Agreement.read(runs) or Agreement("flock", 60.0, "")
    ledger = FolderLedger(runs, agreement.kind, agreement.lease_seconds)
    now = server_time(runs / CLAIMS)
    known = cells.keys() - ledger.deleted()
    settled = {name: status for name, status in ledger.settled().items() if name in known}
    numbers = Counter(settled.values())
    counts = {status: numbers[status] for status in STATUSES if numbers[status]}
    found = Standing(len(cells), counts, claims=agreement.kind)
    claims = os.listdir(runs / CLAIMS) if (runs / CLAIMS).is_dir() else []
    begun = (each.removesuffix(".attempts") for each in claims if each.endswith(".attempts"))
    for name in sorted(set(begun) & cells.keys() - settled.keys()):
        attempts: list[dict[str, Any]] = read_attempts(runs, name)
        if not attempts:
            continue
        silent, is_held = None, False
        if agreement.kind == "lease":
            with suppress(OSError):
                silent = max(0.0, now - (runs / CLAIMS / f"{name}.lease").stat().st_mtime)
                is_held = True
        else:
            is_held = ledger.is_locked(name)
        if not is_held:
            continue  # killed, or at its end
        last = attempts[-1]
        pid = last.get("pid")
        host, pid, since = str(last.get("host")), pid if isinstance(pid, int) else 0, str(last.get("time"))
        found.running.append(Running(cells[name], host, pid, len(attempts), since, silent))
    counts["running"] = len(found.running)
    counts["waiting"] = len(cells) - len(settled) - len(found.running)
    for name, status in settled.items():
        if status != "completed":
            line, attempts = last_line(runs / ".logs" / f"{name}.log"), read_attempts(runs, name)
            found.unfinished.append(Unfinished(cells[name], status, len(attempts) or 1, line))
    _rate(found, runs, now)
    return found


def _rate(found: Standing, runs: Path, now: float) -> None:
    folder = runs / CLAIMS / "settled"
    ages = sorted(now - entry.stat().st_mtime for entry in os.scandir(folder)) if folder.is_dir() else []
    recent = [age for age in ages if age < _RECENT_SECONDS]
    if len(recent) >= 2 and recent[-1] > 0:
        span = recent[-1] if len(recent) == len(ages) else _RECENT_SECONDS
        found.per_hour = len(recent) / span * 3600
        left = found.counts["running"] + found.counts["waiting"]
        found.seconds_left = left / found.per_hour * 3600


def last_line(path: Path) -> str:
    """The last line of a log that is not empty."""
    with suppress(OSError), path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _LAST_BYTES))
        lines = file.read().decode(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "")
    return ""
