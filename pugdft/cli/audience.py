"""stderr that may lose its reader: whoever listened may be gone, and the disk of a log may be full."""

from __future__ import annotations

from contextlib import suppress
from io import TextIOBase
from typing import Any, TextIO


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
