"""The callbacks of a run; the command line implements them to show the progress."""

from __future__ import annotations

from typing import Any

from pugdft.training.trainer import Position, Totals


class Observer:
    """Callbacks of a run. None of them has to be overridden."""

    def on_message(self, text: str) -> None:
        """Called with a message for people, such as the data being decoded."""

    def on_start(self, total: int, done: float, images_per_step: int) -> None:
        """Called when training begins after ``done`` of ``total`` updates (or gradient passes)."""

    def on_step(self, position: Position, totals: Totals, done: float) -> None:
        """Called after an update. Reading ``totals`` waits for the device, so do not do it at every step."""

    def on_epoch(self, row: dict[str, Any]) -> None:
        """Called after an epoch; ``row`` is its row of the record's history."""

    def on_end(self) -> None:
        """Called when training has ended, for whatever reason."""
