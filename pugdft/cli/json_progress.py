"""A run's progress for programs: one JSON object a line on stderr."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from pugdft.errors import undriven
from pugdft.loop import Position, Totals
from pugdft.observer import Observer

_SECONDS = 0.5


class JsonProgress(Observer):
    """``{"event": "progress", "done": …, "total": …, "seconds_left": …}`` twice a second, and epochs."""

    def __init__(self) -> None:
        self._total = 0
        self._first = self._begin = self._told = 0.0

    def on_message(self, text: str) -> None:
        """For people: as it is."""
        print(undriven(text), file=sys.stderr, flush=True)

    def on_start(self, total: int, done: float, images_per_step: int) -> None:
        """Start the clock."""
        self._total, self._first = total, done
        self._begin = time.monotonic()

    def on_step(self, position: Position, totals: Totals, done: float) -> None:
        """Never reads ``totals``: nothing here waits for the device."""
        now = time.monotonic()
        if now - self._told < _SECONDS:
            return
        self._told = now
        left = (self._total - done) * (now - self._begin) / max(1, done - self._first)
        self._tell(event="progress", done=done, total=self._total, seconds_left=round(left, 1))

    def on_epoch(self, row: dict[str, Any]) -> None:
        """The history's row."""
        self._tell(event="epoch", **row)

    def _tell(self, **event: Any) -> None:
        print(json.dumps(event), file=sys.stderr, flush=True)
