"""stderr that may lose its reader: whoever listened may be gone, and the disk of a log may be full."""

from __future__ import annotations

from contextlib import suppress
from io import TextIOBase
from pathlib import Path
from typing import Any, TextIO

import typer


class Unheard(TextIOBase):
    """A text stream that passes everything on and is not troubled when that fails.

    Args:
        stream: where it goes.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """The number of characters, heard or not."""
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Pass on what is held back."""
        with suppress(OSError):
            self._stream.flush()

    def writable(self) -> bool:
        """True."""
        return True

    def isatty(self) -> bool:
        """Of the stream."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """Of the stream."""
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Of the stream."""
        return self._stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        """Of the stream."""
        return self._stream.errors

    @property
    def buffer(self) -> Any:
        """Of the stream: whoever writes bytes has to look out for himself."""
        return self._stream.buffer


def given_path(text: str | Path) -> Path:
    """A path from the command line; ``--output ""``, from an unset variable, would mean this folder."""
    if not str(text):
        raise typer.BadParameter("is empty: expected a path")
    return Path(text)


def duration(seconds: float) -> str:
    """``45 s``, ``3 min 05 s``, ``2 h 10 min``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
