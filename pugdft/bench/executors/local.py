"""Run cells on this machine, one after another, each in a process of its own.

A process costs a few seconds of start-up; in return a crash, a leak or a setting of one run cannot affect
another. Several commands may share a folder: each runs the cells that no other is running.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any

from pugdft.bench.grid import BenchCell
from pugdft.config import yaml
from pugdft.errors import FolderBusy, UserError, reason, refuse
from pugdft.paths import claimed, write_atomically
from pugdft.records import RECORD_NAME, RunRecord, read_record
from pugdft.training.launchers import own_environment

USER_MISTAKE = 2

_STOPPING = (USER_MISTAKE, 130, 143)  # interrupted, terminated
_RECIPES = "recipes"
_LOOK_AGAIN_SECONDS, _POLL_SECONDS = 1.0, 0.05


class Watcher:
    """Is told of every change of a cell; the methods here do nothing."""

    def on_state(self, cell: BenchCell, state: str) -> None:
        """``running``, ``elsewhere`` (another command runs it), ``stopped``, or the status of its record."""

    def on_progress(self, cell: BenchCell, done: int, total: int, seconds_left: float) -> None:
        """The progress of the running cell, in updates or in gradient passes."""

    def on_line(self, cell: BenchCell, line: str) -> None:
        """A line that the running cell wrote for people."""


@dataclass(frozen=True)
class Options:
    """How cells are run."""

    num_processes: int = 1  # of each cell
    retry: bool = False  # run those that diverged once more
    wait: bool = True  # at the end, for the cells that other commands are running


def prepare_output(folder: Path) -> None:
    """Make the folder of the cells, and check that it can be written, before anything runs."""

    def say(error: OSError) -> str:
        cause = "a file is in the way" if isinstance(error, FileExistsError) else reason(error)
        return f"--output {folder}: cannot be used as the folder of runs: {cause}"

    with refuse(OSError, say):
        (folder / _RECIPES).mkdir(parents=True, exist_ok=True)
        for each in (folder, folder / _RECIPES):
            tempfile.TemporaryFile(dir=each).close()


def cell_record(cell: BenchCell) -> RunRecord | None:
    """A cell's record, whatever its status; None if there is none that can be read."""
    with suppress(UserError):
        return read_record(cell.folder / RECORD_NAME)
    return None


def cell_status(cell: BenchCell) -> str:
    """The status of a cell's record, or ``missing``."""
    record = cell_record(cell)
    return record.status if record else "missing"


def cell_top1(cell: BenchCell) -> float | None:
    """The test top-1 of a completed cell, None for any other."""
    record = cell_record(cell)
    if record and record.status == "completed" and record.metrics and record.metrics.test:
        return record.metrics.test.top1
    return None


def run_cells(cells: Sequence[BenchCell], watcher: Watcher, options: Options = Options()) -> int:
    """Run every cell that has no result and that no other command is running, then wait for those of others.

    After a cell that diverged or failed, the next one runs. A mistake of the user, which all cells share and
    the cell has told, stops everything, as an interruption does: it returns the code, 2, 130 or 143, else 0.
    A folder where a run that is no command's cell is going on is looked at once more at the end.
    """
    elsewhere: list[BenchCell] = []
    before = {cell.folder: _record_stamp(cell) for cell in cells}
    for cell in cells:
        code = _run_if_free(cell, watcher, options, before)
        if code is None:
            watcher.on_state(cell, "elsewhere")
        if code in (None, FolderBusy.exit_code):
            elsewhere.append(cell)
        elif code in _STOPPING:
            return code
    for cell in elsewhere if options.wait else ():
        # If the other command is killed, the cell becomes free, and this one runs it.
        while (code := _run_if_free(cell, watcher, options, before)) is None:
            time.sleep(_LOOK_AGAIN_SECONDS)
        if code in _STOPPING:
            return code
    return 0


_Stamps = Mapping[Path, tuple[int, ...]]


def _record_stamp(cell: BenchCell) -> tuple[int, ...]:
    """What changes when a cell's record is written anew; no clock is asked, for a server's may be another."""
    with suppress(OSError):
        stat = (cell.folder / RECORD_NAME).stat()
        return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
    return ()


def _run_if_free(cell: BenchCell, watcher: Watcher, options: Options, before: _Stamps) -> int | None:
    """The exit code of a cell, 0 if it needs no run, None if another command is running it."""
    with claimed(cell.folder) as descriptor:
        if descriptor is None:
            return None
        status = cell_status(cell)
        # A cell that diverged would diverge again. One that failed is tried again, but not if another command
        # has tried it since this one began.
        is_settled = status == "completed" or (status == "diverged" and not options.retry)
        if not is_settled and status not in ("missing", "interrupted"):
            is_settled = _record_stamp(cell) != before[cell.folder]
        if is_settled:
            watcher.on_state(cell, status)
            return 0
        watcher.on_state(cell, "running")
        code = _run(cell, watcher, options, descriptor)
        states = {USER_MISTAKE: "stopped", FolderBusy.exit_code: "elsewhere"}
        watcher.on_state(cell, states[code] if code in states else cell_status(cell))
        return code


def _run(cell: BenchCell, watcher: Watcher, options: Options, descriptor: int) -> int:
    path = cell.folder.parent / _RECIPES / f"{cell.folder.name}.yaml"
    write_atomically(path, yaml.dump(cell.recipe.as_dict()).encode())
    command = [sys.executable, "-m", "pugdft", "finetune", str(path), "--output", str(cell.folder)]
    command += ["--progress", "json", "--num-processes", str(options.num_processes)]
    # The cell's stdout is its record's path, which is no result of this command; stderr goes to the watcher.
    streams: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "errors": "replace"}
    streams |= {"env": own_environment(), "pass_fds": (descriptor,)}
    process = subprocess.Popen(command, text=True, **streams)
    assert process.stderr is not None
    listener = threading.Thread(target=_listen, args=(process.stderr, cell, watcher), daemon=True)
    listener.start()
    with _forwarded_signals(process) as received:
        # wait() would miss a signal that comes just before it blocks, and not look again until the cell ends.
        while (code := process.poll()) is None:
            time.sleep(_POLL_SECONDS)
    listener.join(timeout=10)  # a grandchild may hold the pipe open
    if received:
        return 128 + received[0]  # also if the cell had just completed
    # A signal ends a cell that has no handler yet: 128 + n, as in shells.
    return code if code >= 0 else 128 - code


def _listen(stream: IO[str], cell: BenchCell, watcher: Watcher) -> None:
    for line in stream:
        event: dict[str, Any] = {}
        if line.startswith('{"event": '):
            with suppress(ValueError):
                event = json.loads(line)
        if not event:
            watcher.on_line(cell, line.rstrip("\n"))
        elif event["event"] == "progress":
            watcher.on_progress(cell, event["done"], event["total"], event["seconds_left"])
        elif event["event"] in ("message", "warning", "error"):
            start = "pugdft: " if event["event"] == "error" else ""
            for each in f"{start}{event['message']}".split("\n"):
                watcher.on_line(cell, each)


@contextmanager
def _forwarded_signals(process: subprocess.Popen[str]) -> Iterator[list[int]]:
    """Forward Ctrl-C and SIGTERM to the cell, which saves a checkpoint and ends; yields those that came.

    A terminal itself sends Ctrl-C to the cell; a second one would end it without a checkpoint.
    """
    received: list[int] = []
    by_terminal = sys.stdin is not None and sys.stdin.isatty()

    def on_signal(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if number == signal.SIGTERM or not by_terminal:
            process.send_signal(number)

    is_main = threading.current_thread() is threading.main_thread()  # no other may have handlers
    numbers = (signal.SIGINT, signal.SIGTERM) if is_main else ()
    before = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
