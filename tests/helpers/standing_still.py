"""Commands that tests start, and look at only while they stand still: no look depends on a moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import psutil

HANG_SECONDS = 300.0
"""Bounds a hang, and nothing else: no machine that is merely slow comes near."""

Found = TypeVar("Found")


def until(condition: Callable[[], Found], process: subprocess.Popen[str] | None = None) -> Found:
    """What the condition gives as soon as it is true; fails if the process that it waits for has ended."""
    end = time.monotonic() + HANG_SECONDS
    while not (found := condition()):
        if process is not None and process.poll() is not None and not (found := condition()):
            raise AssertionError(f"it ended with {process.returncode}: {process.communicate()}")
        if found:
            break
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)
    return found


class Command:
    """``pugdft ARGUMENTS`` in a process of its own.

    Args:
        arguments: of the command.
        stops: so many finished runs beside it make a run stop in the middle of its training; None: none does.
        after: it stops this many seconds after it was about to replace its first checkpoint.
        options: of ``subprocess.Popen``.
    """

    def __init__(
        self, *arguments: str, stops: int | None = None, after: float = 0.0, env: Any = (), **options: Any
    ) -> None:
        environment = {**os.environ, **dict(env)}
        if stops is not None:
            environment["STOPS_ITSELF"] = f"{stops}:{after}"
            places = [str(Path(__file__).parent / "stops_itself"), environment.get("PYTHONPATH", "")]
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, places))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pugdft", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            **options,
        )

    def below(self) -> list[psutil.Process]:
        """The command's process, and all that it has started."""
        try:
            root = psutil.Process(self.process.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def stopped(self) -> psutil.Process:
        """Wait until one of its processes has stopped itself."""

        def found() -> psutil.Process | None:
            return next((each for each in self.below() if status_of(each) == psutil.STATUS_STOPPED), None)

        process = until(found, self.process)
        assert process is not None
        return process

    def send(self, number: int) -> None:
        """A signal to the command alone."""
        self.process.send_signal(number)

    def end(self) -> tuple[int, str, str]:
        """Wait for it; the exit code, and what it has printed on stdout and stderr."""
        out, err = self.process.communicate(timeout=HANG_SECONDS)
        return self.process.returncode, out, err

    def kill(self) -> None:
        """Kill all of its processes."""
        for each in self.below():
            try:
                each.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.communicate()


def status_of(process: psutil.Process) -> str:
    """Of a process that may be gone by now."""
    try:
        return str(process.status())
    except psutil.NoSuchProcess:
        return "gone"


def is_pending(pid: int, number: int) -> bool:
    """Whether a process that stands still was sent a signal, which it will meet as soon as it goes on."""
    return _has(pid, number, "SigPnd", "ShdPnd")


def is_caught(pid: int, number: int) -> bool:
    """Whether a process has a handler of its own for a signal."""
    return _has(pid, number, "SigCgt")


def _has(pid: int, number: int, *masks: str) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = dict(line.split(":\t") for line in lines if line.startswith(masks))
    return any(int(mask, 16) >> (number - 1) & 1 for mask in found.values())


def go_on(process: psutil.Process) -> None:
    """Let a process that stands still go on."""
    process.send_signal(signal.SIGCONT)
