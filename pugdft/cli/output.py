"""What commands share: paths, durations, lines on stderr, and a stderr whose reader or disk may be gone."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import typer

from pugdft.errors import undriven


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


def given_path(text: str | Path) -> Path:
    """Read a path from the command line; refuses ``--output ""``, which would mean the current folder."""
    if not str(text):
        raise typer.BadParameter("is empty: expected a path")
    return Path(text)


def say(line: str) -> None:
    """Print a line for people on stderr."""
    print(undriven(line), file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Format as ``45 s``, ``3 min 05 s`` or ``2 h 10 min``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
