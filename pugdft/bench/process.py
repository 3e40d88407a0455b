"""One cell as a process of its own.

It costs a few seconds of start-up; in return a crash, a leak or a setting of one run cannot affect another. A
*warm* start forks a process that has imported everything, but run nothing: below a second instead of six. The
forked cell imports, draws and computes as a cold one does; its files have the same bytes.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from types import FrameType
from typing import IO, Any, Protocol

from pugdft.bench.queue import Claim
from pugdft.errors import FolderBusy
from pugdft.training.attempts import ATTEMPT
from pugdft.training.launchers import PLANNED, WORKER, own_environment

_POLL_SECONDS = 0.05


class _Process(Protocol):
    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""

    def send_signal(self, number: int) -> None: ...


class _Forked:
    """A process of the fork server, with Popen's methods."""

    def __init__(self, process: Any, held: Connection) -> None:
        self._process, self._held = process, held  # the cell ends when nobody holds its connection any more

    def poll(self) -> int | None:
        code: int | None = self._process.exitcode
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self._process.pid, number)


def start(
    arguments: Sequence[str], claim: Claim, is_warm: bool, planned: str = ""
) -> tuple[_Process, IO[str]]:
    """Start ``pugdft ARGUMENTS``, which inherits the claim's lock; returns the process and its stderr."""
    environment = own_environment() | {ATTEMPT: claim.token, PLANNED: planned}
    if claim.descriptor is None:
        environment[WORKER] = str(os.getpid())  # a lease dies with this process, and so must the cell
    if is_warm:
        return _start_warm(arguments, environment, claim)
    passed = () if claim.descriptor is None else (claim.descriptor,)
    # The cell's stdout is its record's path, which is no result of this command.
    streams: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "errors": "replace"}
    command = [sys.executable, "-m", "pugdft", *arguments]
    process = subprocess.Popen(command, text=True, env=environment, pass_fds=passed, **streams)
    assert process.stderr is not None
    return process, process.stderr


def _start_warm(
    arguments: Sequence[str], environment: dict[str, str], claim: Claim
) -> tuple[_Process, IO[str]]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pugdft.cli.preloaded"])
    reading, writing = os.pipe()
    # A Connection is what multiprocessing passes on to another process as a descriptor.
    worker, held = multiprocessing.Pipe(duplex=False)
    passed = [Connection(writing), worker]
    if claim.descriptor is not None:
        passed.append(Connection(os.dup(claim.descriptor)))
    process = context.Process(
        target=_run_forked, args=(list(arguments), environment, os.getcwd(), passed), name="pugdft"
    )
    process.start()
    for each in passed:
        each.close()
    return _Forked(process, held), os.fdopen(reading, encoding="utf-8", errors="replace")


def _run_forked(
    arguments: list[str], environment: dict[str, str], folder: str, passed: list[Connection]
) -> None:
    """Become ``pugdft ARGUMENTS``; the lock among ``passed`` stays open until the end."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDWR)
    for target, source in ((0, nothing), (1, nothing), (2, passed[0].fileno())):
        os.dup2(source, target)
    passed[0].close()
    # The fork server's own may believe to be files, in which one can seek.
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    if os.environ.pop(WORKER, None):  # it is not the parent of this process: that is the fork server
        threading.Thread(target=_end_with, args=(passed[1],), daemon=True).start()
    sys.argv = ["pugdft", *arguments]
    runpy.run_module("pugdft", run_name="__main__", alter_sys=True)


def _end_with(worker: Connection) -> None:
    worker.poll(None)  # until the other end is closed
    os._exit(1)


@contextmanager
def forwarded_signals(process: _Process) -> Iterator[list[int]]:
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


def wait(process: _Process, is_lost: Callable[[], bool], is_stopped: Callable[[], bool]) -> int:
    """Wait for a cell; returns its exit code, or 128 + n after signal n to this process or to the cell.

    A cell that another worker has taken over is killed, one that is to stop is told so once.
    """
    is_told = False
    with forwarded_signals(process) as received:
        # wait() would miss a signal that comes just before it blocks, and not look again until the cell ends.
        while (code := process.poll()) is None:
            time.sleep(_POLL_SECONDS)
            if is_lost():
                process.send_signal(signal.SIGKILL)
            elif not is_told and is_stopped():
                process.send_signal(signal.SIGTERM)
                is_told = True
    if received:
        return 128 + received[0]  # also if the cell had just completed
    if is_lost():
        return FolderBusy.exit_code
    # A signal ends a cell that has no handler yet: 128 + n, as in shells.
    return code if code >= 0 else 128 - code
