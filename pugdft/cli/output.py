"""What commands share: paths, durations, lines and events on stderr, and streams that stderr may be."""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import typer

from pugdft.errors import UserError, refuse, undriven


class LossyStream:
    """A text stream that drops what its target cannot take: its reader is gone, or the disk is full."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


_EVENT, _END = '{"event": ', '{"event": "end"'


def emit(event: str, **facts: Any) -> None:
    """Print ``{"event": …}`` with its facts as one JSON line on stderr; JSON has no numbers like NaN."""
    for key, value in facts.items():
        facts[key] = None if isinstance(value, float) and not math.isfinite(value) else value
    sys.stderr.write(json.dumps({"event": event, **facts}) + "\n")  # at once, for threads
    sys.stderr.flush()


class JsonLines(LossyStream):
    """A stream of events only: any other line becomes a ``message``, and ``end`` waits for :meth:`close`."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._begun = self._end = ""
        self._reader: threading.Thread | None = None
        if stream is sys.__stderr__:
            self._take_descriptor()
        warnings.showwarning = lambda message, category, *place, **further: emit(
            "warning", message=str(message), category=category.__name__
        )

    def write(self, text: str) -> int:
        if self._begun and text.startswith(_EVENT):  # a progress bar's line has no end yet
            text = f"\n{text}"
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._pass(line)
        return len(text)

    def _pass(self, line: str) -> None:
        line = line.rstrip("\r").rpartition("\r")[2]  # the last state of a progress bar
        if line.startswith(_END):
            self._end = line
        elif line.strip():
            is_event = line.startswith(_EVENT)
            super().write((line if is_event else json.dumps({"event": "message", "message": line})) + "\n")
            self.flush()

    def _take_descriptor(self) -> None:
        """Read what C++ code and other processes write to this process's stderr through a pipe."""
        self._stream = os.fdopen(os.dup(2), "w", encoding="utf-8")
        reading, writing = os.pipe()
        os.dup2(writing, 2)
        os.close(writing)

        def read() -> None:
            with os.fdopen(reading, encoding="utf-8", errors="replace", newline="\n") as lines:
                for line in lines:
                    self._pass(line.rstrip("\n"))

        self._reader = threading.Thread(target=read, daemon=True)
        self._reader.start()

    def close_with(self, code: int, says_end: bool) -> None:
        """Write what is left and, as the last line, the event ``end`` with the exit code."""
        self.write("\n")
        if self._reader:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            self._reader.join(timeout=1)  # a process that lives on may hold the pipe open
        if says_end:
            end = {**json.loads(self._end or _END + "}"), "exit_code": code}
            super().write(json.dumps(end) + "\n")
            self.flush()


def given_path(text: str | Path) -> Path:
    """Read a path from the command line; refuses ``--output ""``, which would mean the current folder."""
    if not str(text):
        raise typer.BadParameter("is empty: expected a path")
    return Path(text)


def write_result(text: str, path: Path | None) -> None:
    """Write a command's result to the file of ``--output``, or to stdout."""
    from pugdft.paths import write_atomically

    if path is None:
        sys.stdout.write(text)
        return
    with refuse(OSError, lambda error: f"--output {path}: cannot be written: {error.strerror}"):
        # Writing atomically replaces what is there, which must not happen to a device or a pipe.
        if path.exists() and not path.is_file():
            raise UserError(f"--output {path}: is not a file")
        write_atomically(path, text.encode())


def say(line: str) -> None:
    """Print a line for people on stderr."""
    print(undriven(line), file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Format as ``45 s``, ``3 min 05 s``, ``2 h 10 min`` or ``12 days``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 240:
        return f"{round(hours / 24):,} days"
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
