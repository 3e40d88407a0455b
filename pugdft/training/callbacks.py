"""What a run tells while it goes on; the command line draws it, and without an observer nothing is said."""

from __future__ import annotations

from typing import Any

from pugdft.training.trainer import Position, Totals


class Observer:
    """Hears of a run's progress. Every method may be left as it is."""

    def on_message(self, text: str) -> None:
        """Something a person may want to know, such as the data being decoded."""

    def on_start(self, total: int, done: float, images_per_step: int) -> None:
        """Training starts, or goes on after ``done`` of ``total`` updates (or gradient passes)."""

    def on_step(self, position: Position, totals: Totals, done: float) -> None:
        """An update was made. Reading ``totals`` waits for the device: not at every step, please."""

    def on_epoch(self, row: dict[str, Any]) -> None:
        """An epoch was finished; ``row`` is its line of the record's history."""

    def on_end(self) -> None:
        """Training ended, however it did."""
