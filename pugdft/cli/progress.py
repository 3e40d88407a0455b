"""A run on the terminal: a live line with loss, accuracy, speed and time left, and a table at the end."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from pugdft.cli.output import duration
from pugdft.errors import counted, undriven
from pugdft.records import RunRecord
from pugdft.training.trainer import Observer, Position, Totals

_SECONDS = 0.5
_LOG_SECONDS = 10.0


class _TimedObserver(Observer):
    """Measures how fast updates or gradient passes go, to tell the time left."""

    def __init__(self) -> None:
        self._total = 0
        self._first = self._begin = self._shown = 0.0

    def on_start(self, total: int, done: float, images_per_step: int) -> None:
        """Start the clock."""
        self._total, self._first = total, done
        self._begin = time.monotonic()

    def _seconds_left(self, done: float) -> float:
        return (self._total - done) * (time.monotonic() - self._begin) / max(1, done - self._first)


class JsonProgress(_TimedObserver):
    """``{"event": "progress", "done": …, "total": …, "seconds_left": …}`` twice a second, and epochs."""

    def on_message(self, text: str) -> None:
        """Print a line for people."""
        print(undriven(text), file=sys.stderr, flush=True)

    def on_step(self, position: Position, totals: Totals, done: float) -> None:
        """Print the progress; never reads ``totals``, so that nothing waits for the device."""
        if time.monotonic() - self._shown < _SECONDS:
            return
        self._shown = time.monotonic()
        left = round(self._seconds_left(done), 1)
        self._print(event="progress", done=done, total=self._total, seconds_left=left)

    def on_epoch(self, row: dict[str, Any]) -> None:
        """Print the history's row."""
        self._print(event="epoch", **row)

    def _print(self, **event: Any) -> None:
        print(json.dumps(event), file=sys.stderr, flush=True)


class ProgressLog(_TimedObserver):
    """Progress on stderr: live on a terminal, a plain line every ten seconds elsewhere."""

    def __init__(self, console: Console | None = None) -> None:
        super().__init__()
        self._console = console or Console(stderr=True, highlight=False)
        self._live: Progress | None = None
        self._done = 0.0
        self._images_per_step = 0
        self._first_step = -1

    def on_message(self, text: str) -> None:
        """Print one line."""
        self._console.print(undriven(text), markup=False, soft_wrap=True)

    def on_start(self, total: int, done: float, images_per_step: int) -> None:
        """Start the clock and the bar."""
        super().on_start(total, done, images_per_step)
        self._shown, self._done = self._begin, done
        self._images_per_step, self._first_step = images_per_step, -1
        if self._console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}"),
                TextColumn("{task.fields[facts]}"),
                TimeRemainingColumn(),
                TextColumn("left"),
            )
            self._live = Progress(*columns, console=self._console)
            self._task = self._live.add_task("starting", total=total, completed=int(done), facts="")
            self._live.start()

    def on_step(self, position: Position, totals: Totals, done: float) -> None:
        """Show the state from time to time; only then does this wait for the device."""
        self._done = done
        if self._first_step < 0:
            self._first_step = position.steps - 1
        elapsed = time.monotonic() - self._shown
        if elapsed < (_SECONDS if self._live else _LOG_SECONDS):
            return
        self._shown = time.monotonic()
        loss, top1 = totals.means()
        speed = (position.steps - self._first_step) * self._images_per_step / (self._shown - self._begin)
        facts = f"loss {loss:.3f}  train top-1 {top1:.1%}  {speed:.0f} images/s"
        if self._live:
            description = f"epoch {position.epoch + 1}"
            self._live.update(self._task, description=description, completed=done, facts=facts)
        else:
            left = duration(self._seconds_left(done))
            self.on_message(f"epoch {position.epoch + 1}  {done:g}/{self._total}  {facts}  {left} left")

    def on_epoch(self, row: dict[str, Any]) -> None:
        """Print one line an epoch."""
        if self._live:
            self._live.update(self._task, completed=self._done)
        tested = [split for split in ("test", "validation") if f"{split}_top1" in row]
        test = f"  {tested[0]} top-1 {row[f'{tested[0]}_top1']:.2%}" if tested else ""
        train = "no finite train loss"  # all of its updates were skipped
        if row["train_loss"] is not None:
            train = f"train loss {row['train_loss']:.3f}  train top-1 {row['train_top1']:.2%}"
        self.on_message(f"epoch {row['epoch']} done: {train}{test}")

    def on_end(self) -> None:
        """Leave the terminal as it was."""
        if self._live:
            self._live.stop()
            self._live = None


def print_summary(record: RunRecord) -> None:
    """Print the run as a table on stderr."""
    console = Console(stderr=True, highlight=False)
    table = Table(title=f"{record.id}: {record.status}", show_header=False, title_justify="left")
    for name, value in _summary(record):
        table.add_row(name, value)
    console.print(table, markup=False)


def _summary(record: RunRecord) -> list[tuple[str, str]]:
    rows = []
    if record.metrics:
        if test := record.metrics.test:
            rows += [
                ("test top-1 (last epoch)", f"{test.top1:.2%}"),
                ("test top-5", f"{test.top5:.2%}"),
                ("test loss", f"{test.loss:.4f}"),
                ("calibration error", f"{test.ece:.4f}"),
            ]
        if record.metrics.validation:
            rows.append(("validation top-1", f"{record.metrics.validation.top1:.2%}"))
        if best := record.metrics.best_test:
            rows.append(("best epoch, picked on test", f"{best.top1:.2%} (epoch {best.epoch})"))
    cost, method = record.cost, record.method
    rows += [
        ("updates", f"{cost.steps:,} ({counted(cost.epochs, 'whole epoch')})"),
        ("gradient passes", f"{cost.gradient_passes:,.0f}"),
        ("training time", f"{duration(cost.train_seconds)} ({cost.images_per_second:.0f} images/s)"),
        ("evaluation time", duration(cost.eval_seconds)),
        ("peak memory", f"{cost.peak_memory_bytes / 2**20:,.0f} MiB"),
        ("two-pass updates", f"{method.two_pass_fraction:.0%}"),
    ]
    if method.mean_perturbation_norm is not None and method.mean_gradient_cosine is not None:
        rows.append(("mean ‖perturbation‖", f"{method.mean_perturbation_norm:.4g}"))
        rows.append(("mean cos(g, g*)", f"{method.mean_gradient_cosine:.3f}"))
    return rows
