"""Work on a queue of cells: take one, run it as a process of its own, note its end, take the next.

Several commands may share a folder, on one machine or on many: each runs the cells that no other is running.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pugdft.bench import process
from pugdft.bench.cell import BenchCell, cell_status
from pugdft.bench.queue import LOST, Agreement, CellNames, Claim, FolderLedger, Queue
from pugdft.config import yaml
from pugdft.errors import FolderBusy, reason, refuse
from pugdft.paths import is_shared, write_atomically
from pugdft.training.attempts import CLAIMS

USER_MISTAKE = 2
LOGS = ".logs"

_STOPPING = (USER_MISTAKE, 130, 143)  # interrupted, terminated
_KILLED = 137
_RECIPES, _STOP = "recipes", "stop"
_LOOK_AGAIN_SECONDS, _ASK_SECONDS = 1.0, 2.0
_LONGEST_LOG = 2**20  # bytes
LEAST_SECONDS = 120.0  # of a worker's time for one more cell


class Watcher:
    """Is told of every change of a cell; the methods here do nothing."""

    follows_others = True  # also of cells that other commands settle

    def on_state(self, cell: BenchCell, state: str) -> None:
        """``running``, ``elsewhere`` (another command runs it), ``stopped``, or the status of its record."""

    def on_progress(self, cell: BenchCell, done: int, total: int, seconds_left: float) -> None:
        """The progress of the running cell, in updates or in gradient passes."""

    def on_line(self, cell: BenchCell, line: str) -> None:
        """A line that the running cell wrote for people."""


@dataclass(frozen=True)
class Options:
    """How cells are run."""

    retry: bool = False  # run those that diverged once more
    wait: bool = True  # at the end, for the cells that other commands are running
    warm: bool = False  # fork cells from a process that has imported all they need
    logs: bool = False  # keep what a cell says in a file
    until: float = float("inf")  # take no cell shortly before, in seconds since the epoch
    idle_seconds: float = float("inf")  # end when no cell was free for so long


def prepare_output(folder: Path) -> None:
    """Make the folder of the cells, and check that it can be written, before anything runs."""

    def say(error: OSError) -> str:
        cause = "a file is in the way" if isinstance(error, FileExistsError) else reason(error)
        return f"--output {folder}: cannot be used as the folder of runs: {cause}"

    with refuse(OSError, say):
        (folder / _RECIPES).mkdir(parents=True, exist_ok=True)
        for each in (folder, folder / _RECIPES):
            tempfile.TemporaryFile(dir=each).close()


def ledger_of(runs: Path, lease_seconds: float | None = None) -> FolderLedger:
    """The ledger of a folder: with the kernel's locks where one machine has it, else with leases.

    Args:
        lease_seconds: of leases, wherever the folder lies; the first command on a folder decides.
    """
    needs_lease = lease_seconds is not None or is_shared(runs)
    agreement = Agreement.of(runs, "lease" if needs_lease else "flock", lease_seconds or 60.0)
    ledger = FolderLedger(runs, agreement.kind, agreement.lease_seconds)
    ledger.prepare()
    return ledger


def request_stop(runs: Path) -> None:
    """Ask all workers on a folder to save and to end."""
    (runs / CLAIMS / _STOP).touch()


def is_stop_requested(runs: Path) -> bool:
    """Whether workers on a folder are to end."""
    return (runs / CLAIMS / _STOP).exists()


def forget_stop(runs: Path) -> None:
    """Let workers begin again."""
    (runs / CLAIMS / _STOP).unlink(missing_ok=True)


def run_cells(cells: Sequence[BenchCell], watcher: Watcher, options: Options = Options()) -> int:
    """Run every cell that has no result and that no other command is running, then wait for those of others.

    After a cell that diverged or failed, the next one runs. A mistake of the user, which all cells share and
    the cell has told, stops everything, as an interruption does: it returns the code, 2, 130 or 143, else 0.
    A folder where a run that is no command's cell is going on is looked at once more at the end.
    """
    if not cells:
        return 0
    ledger = ledger_of(cells[0].folder.parent)
    named = {cell.folder.name: cell for cell in cells}
    ledger.reopen(named, options.retry)
    return Worker(Queue(CellNames(named), ledger), ledger, named, watcher, options).work()


class Worker:
    """One worker on a queue.

    Args:
        cells: of the queue, by their names.
        news: gives cells that were planned since it was called last.
    """

    def __init__(
        self,
        queue: Queue,
        ledger: FolderLedger,
        cells: dict[str, BenchCell],
        watcher: Watcher,
        options: Options,
        news: Callable[[], Mapping[str, BenchCell]] = dict,
    ) -> None:
        self._queue, self._ledger, self._cells = queue, ledger, cells
        self._watcher, self._options, self._news = watcher, options, news
        self._seen_elsewhere: set[str] = set()
        self._busy: set[str] = set()  # a run that is no command's cell is going on there
        self._ask_at, self._is_stopped = 0.0, False

    def work(self) -> int:
        """Work until nothing is left to take, or something stops it; returns as :func:`run_cells`."""
        queue, wait = self._queue, self._options.wait
        busy_at = time.monotonic()
        while True:
            if self.is_asked_to_stop() or time.time() > self._options.until - LEAST_SECONDS:
                return 143
            if queue.look():
                if new := self._news():
                    self._cells.update(new)
                    queue.add(new)
                if self._watcher.follows_others:
                    for name, status in queue.news().items():
                        self._watcher.on_state(self._cells[name], status)
            drawn = queue.draw()
            if drawn is None:
                for name in queue.held:
                    self._say_elsewhere(name)
                is_idle = time.monotonic() - busy_at > self._options.idle_seconds
                if not wait or is_idle or not queue.has_open():
                    return 0
                time.sleep(_LOOK_AGAIN_SECONDS)
                continue
            name, patience = drawn
            code = self._attend(name, patience)
            if code in _STOPPING:
                return code
            if code is not None:
                busy_at = time.monotonic()
            elif not wait:
                queue.put_last(name, is_left=True)

    def is_asked_to_stop(self) -> bool:
        """Whether ``--stop`` was said; the file is asked for every other second."""
        now = time.monotonic()
        if now >= self._ask_at and not self._is_stopped:
            self._ask_at = now + _ASK_SECONDS
            self._is_stopped = is_stop_requested(self._ledger.folder)
        return self._is_stopped

    def _attend(self, name: str, patience: float) -> int | None:
        """Run a cell if it needs it: its exit code, 0 if it does not, None if another worker has it."""
        cell, queue, ledger = self._cells[name], self._queue, self._ledger
        with ledger.take(name, patience) as claim:
            if claim is None:
                self._say_elsewhere(name)
                queue.found_taken(name)
                return None
            if status := ledger.status(name):  # a moment ago
                queue.close(name, status)
                self._watcher.on_state(cell, status)
                return 0
            status = cell_status(cell)
            if status == "completed" or (status == "diverged" and not self._options.retry):
                return self._settle(cell, status, claim)
            if not ledger.begin(name, claim):
                return self._settle(cell, LOST, claim)
            self._watcher.on_state(cell, "running")
            code = _run(cell, self._watcher, self._options, claim, self.is_asked_to_stop)
            if claim.is_lost():
                self._watcher.on_state(cell, "elsewhere")
                queue.found_taken(name)
                return None
            status = cell_status(cell)
            if code == FolderBusy.exit_code:
                ledger.end(name, claim)
                self._watcher.on_state(cell, "elsewhere")
                queue.put_last(name, is_left=name in self._busy)  # once more at the end, and then no more
                self._busy.add(name)
                return code
            if code in _STOPPING:
                ledger.end(name, claim)
                self._watcher.on_state(cell, "stopped" if code == USER_MISTAKE else status)
                return code
            has_lease = claim.descriptor is None
            if has_lease and code == _KILLED and status not in ("completed", "diverged"):
                # Its worker is perhaps about to be killed too: it counts as one of the attempts.
                self._watcher.on_state(cell, status)
                queue.put_last(name, is_left=False)
                return code
            return self._settle(cell, status, claim)

    def _settle(self, cell: BenchCell, status: str, claim: Claim) -> int:
        name = cell.folder.name
        self._ledger.settle(name, status, claim)
        self._queue.close(name, status)
        self._watcher.on_state(cell, status)
        return 0

    def _say_elsewhere(self, name: str) -> None:
        if name in self._cells and name not in self._seen_elsewhere:
            self._seen_elsewhere.add(name)
            self._watcher.on_state(self._cells[name], "elsewhere")


def _run(
    cell: BenchCell, watcher: Watcher, options: Options, claim: Claim, is_stopped: Callable[[], bool]
) -> int:
    folder = cell.folder
    path = folder.parent / _RECIPES / f"{folder.name}.yaml"
    write_atomically(path, yaml.dump(cell.recipe.as_dict()).encode())
    arguments = ["finetune", str(path), "--output", str(folder)]
    arguments += ["--progress", "json", "--num-processes", str(cell.processes)]
    is_warm = options.warm and cell.processes == 1
    started, stream = process.start(arguments, claim, is_warm, cell.planned)
    log = _Log(folder.parent / LOGS / f"{folder.name}.log") if options.logs else None
    listener = threading.Thread(target=_listen, args=(stream, cell, watcher, log), daemon=True)
    listener.start()
    code = process.wait(started, claim.is_lost, is_stopped)
    listener.join(timeout=10)  # a grandchild may hold the pipe open
    return code


class _Log:
    """What cells say, in a file that keeps its last MiB."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(exist_ok=True)
        if path.exists() and path.stat().st_size > _LONGEST_LOG:
            path.write_bytes(path.read_bytes()[-_LONGEST_LOG // 2 :])

    def add(self, line: str) -> None:
        with suppress(OSError), self._path.open("a", encoding="utf-8") as file:  # a run needs no log
            file.write(line + "\n")


def _listen(stream: IO[str], cell: BenchCell, watcher: Watcher, log: _Log | None) -> None:
    def say(line: str) -> None:
        watcher.on_line(cell, line)
        if log is not None:
            log.add(line)

    for line in stream:
        event: dict[str, Any] = {}
        if line.startswith('{"event": '):
            with suppress(ValueError):
                event = json.loads(line)
        if not event:
            say(line.rstrip("\n"))
        elif event["event"] == "progress":
            watcher.on_progress(cell, event["done"], event["total"], event["seconds_left"])
        elif event["event"] in ("message", "warning", "error"):
            start = "pugdft: " if event["event"] == "error" else ""
            for each in f"{start}{event['message']}".split("\n"):
                say(each)
