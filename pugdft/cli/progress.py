"""A run on the terminal: a live line with loss, accuracy, speed and time left, and a table at the end."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from pugdft.cli.output import duration, emit
from pugdft.errors import counted, human_bytes, undriven
from pugdft.records import RunRecord
from pugdft.training.trainer import Observer, Position, Totals

_SECONDS = 0.5
_LOG_SECONDS = 10.0


class _TimedObserver(Observer):
    """Measures how fast updates or gradient passes go, to tell the time left."""

    _shown = 0.0

    def __init__(self, verbose: bool = False) -> None:
        self._verbose = verbose

    def on_detail(self, text: str) -> None:
        if self._verbose:
            self.on_message(text)

    def on_start(self, total: int, done: float, images_per_step: int) -> None:
        self._total, self._first, self._begin = total, done, time.monotonic()

    def _seconds_left(self, done: float) -> float:
        return (self._total - done) * (time.monotonic() - self._begin) / max(1, done - self._first)


class JsonProgress(_TimedObserver):
    """``{"event": "progress", "done": …, "total": …, "seconds_left": …}`` twice a second; other events."""

    def on_message(self, text: str) -> None:
        emit("message", message=text)

    def on_facts(self, event: str, facts: dict[str, Any]) -> None:
        emit(event, **facts)

    def on_step(self, position: Position, totals: Totals, done: float) -> None:
        # Never reads totals, so nothing waits for the device.
        if time.monotonic() - self._shown < _SECONDS:
            return
        self._shown = time.monotonic()
        left = round(self._seconds_left(done), 1)
        emit("progress", done=done, total=self._total, seconds_left=left)

    def on_epoch(self, row: dict[str, Any]) -> None:
        emit("epoch", **row)


class ProgressLog(_TimedObserver):
    """Progress on stderr: live on a terminal, a plain line every ten seconds elsewhere."""

    def __init__(self, verbose: bool = False) -> None:
        super().__init__(verbose)
        self._console = Console(stderr=True, highlight=False)
        self._live: Progress | None = None
        self._facts: dict[str, Any] = {}

    def on_message(self, text: str) -> None:
        self._console.print(undriven(text), markup=False, soft_wrap=True)

    def on_facts(self, event: str, facts: dict[str, Any]) -> None:
        """Say device and data on one line, as soon as both are known."""
        self._facts |= facts
        if event != "data":
            return
        facts = self._facts
        processes = counted(facts["processes"], "process") + " of " if facts["processes"] > 1 else ""
        where = f"{facts['device_name']}, {processes}{counted(facts['threads'], 'thread')}"
        images = " and ".join(f"{number:,} {split}" for split, number in facts["images"].items())
        classes = counted(facts["classes"], "class")
        device = f"device {facts['device']} ({where}), {facts['precision']}"
        self.on_message(f"{device}; {images} images in {classes}; folder {facts['folder']}")
        self.on_detail(f"model: {facts['parameters']:,} parameters")

    def on_start(self, total: int, done: float, images_per_step: int) -> None:
        super().on_start(total, done, images_per_step)
        self._shown, self._done = self._begin, done
        self._images_per_step, self._first_step = images_per_step, -1
        if self._console.is_terminal:
            amount, facts = "{task.completed}/{task.total}", "{task.fields[facts]}"
            columns = ("{task.description}", BarColumn(), amount, facts, TimeRemainingColumn(), "left")
            self._live = Progress(*columns, console=self._console)
            self._task = self._live.add_task("starting", total=total, completed=int(done), facts="")
            self._live.start()

    def on_step(self, position: Position, totals: Totals, done: float) -> None:
        self._done = done
        if self._first_step < 0:
            self._first_step = position.steps - 1
        elapsed = time.monotonic() - self._shown
        if elapsed < (_SECONDS if self._live else _LOG_SECONDS):
            return
        self._shown = time.monotonic()
        loss, top1 = totals.means()  # waits for the device
        speed = (position.steps - self._first_step) * self._images_per_step / (self._shown - self._begin)
        facts = f"loss {loss:.3f}  train top-1 {top1:.1%}  {speed:.0f} images/s"
        if self._live:
            description = f"epoch {position.epoch + 1}"
            self._live.update(self._task, description=description, completed=done, facts=facts)
        else:
            left = duration(self._seconds_left(done))
            self.on_message(f"epoch {position.epoch + 1}  {round(done)}/{self._total}  {facts}  {left} left")

    def on_epoch(self, row: dict[str, Any]) -> None:
        if self._live:
            self._live.update(self._task, completed=self._done)
        tested = [split for split in ("test", "validation") if f"{split}_top1" in row]
        test = f"  {tested[0]} top-1 {row[f'{tested[0]}_top1']:.2%}" if tested else ""
        train = "no finite train loss"  # all of its updates were skipped
        if not row["epoch"]:
            self.on_message(f"before the first update:{test}")
            return
        if row["train_loss"] is not None:
            train = f"train loss {row['train_loss']:.3f}  train top-1 {row['train_top1']:.2%}"
        self.on_message(f"epoch {row['epoch']} done: {train}{test}")

    def on_end(self) -> None:
        if self._live:
            self._live.stop()
            self._live = None


_SUMMARY_ROWS = 6


def print_summary(record: RunRecord, verbose: bool = False) -> None:
    """Print the run as a table on stderr: what matters most, or with ``verbose`` all."""
    table = Table(show_header=False)
    metrics, cost, method = record.metrics, record.cost, record.method
    rows: list[tuple[str, str]] = []  # the most important first
    if metrics and (test := metrics.test):
        which = metrics.origin.removeprefix("the ").removesuffix(" weights")  # in 80 columns
        rows.append((f"test top-1 ({which})", f"{test.top1:.2%}"))
        if metrics.plain_test:
            rows.append(("of the weights without averaging", f"{metrics.plain_test.top1:.2%}"))
        if test.balanced_top1 is not None and abs(test.balanced_top1 - test.top1) > 1e-6:
            rows.append(("test balanced top-1", f"{test.balanced_top1:.2%}"))
    if metrics and metrics.validation:
        rows.append(("validation top-1", f"{metrics.validation.top1:.2%}"))
    if metrics and (test := metrics.test):
        rows.append(("test loss", f"{test.loss:.4f}"))
    rows.append(("gradient passes", f"{cost.gradient_passes:,.0f}"))
    train = f"{duration(cost.train_seconds)} ({cost.images_per_second:.0f} images/s)"
    rows.append(("training time", train))
    rows.append(("peak memory", human_bytes(cost.peak_memory_bytes)))
    if metrics and (test := metrics.test):
        rows.append(("calibration error", f"{test.ece:.4f}"))
        rows.append(("test top-5", f"{test.top5:.2%}"))
    if metrics and (best := metrics.best_test):
        rows.append(("best epoch, picked on test", f"{best.top1:.2%} (epoch {best.epoch})"))
    rows.append(("updates", f"{cost.steps:,} ({counted(cost.epochs, 'whole epoch')})"))
    rows.append(("evaluation time", duration(cost.eval_seconds)))
    rows.append(("two-pass updates", f"{method.two_pass_fraction:.0%}"))
    if method.mean_perturbation_norm is not None and method.mean_gradient_cosine is not None:
        rows.append(("mean ‖perturbation‖", f"{method.mean_perturbation_norm:.4g}"))
        rows.append(("mean cos(g, g*)", f"{method.mean_gradient_cosine:.3f}"))
    for row in rows if verbose else rows[:_SUMMARY_ROWS]:
        table.add_row(*row)
    console = Console(stderr=True, highlight=False)
    console.print(Text(f"{record.id}: {record.status}"), soft_wrap=True)
    console.print(table, markup=False)
