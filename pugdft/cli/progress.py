"""A run on the terminal: a live line with loss, accuracy, speed and time left, and a table at the end."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TimeRemainingColumn
from rich.table import Table

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

    def on_message(self, text: str) -> None:
        self._console.print(undriven(text), markup=False, soft_wrap=True)

    def on_facts(self, event: str, facts: dict[str, Any]) -> None:
        if event == "device":
            processes = counted(facts["processes"], "process") + " of " if facts["processes"] > 1 else ""
            where = f"{facts['device_name']}, {processes}{counted(facts['threads'], 'thread')}"
            text = f"device {facts['device']} ({where}), {facts['precision']}, folder {facts['folder']}"
        else:
            images = " and ".join(f"{number:,} {split}" for split, number in facts["images"].items())
            classes, parameters = counted(facts["classes"], "class"), f"{facts['parameters']:,} parameters"
            text = f"data: {images} images in {classes}; {parameters}"
        self.on_message(text)

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
        if row["train_loss"] is not None:
            train = f"train loss {row['train_loss']:.3f}  train top-1 {row['train_top1']:.2%}"
        self.on_message(f"epoch {row['epoch']} done: {train}{test}")

    def on_end(self) -> None:
        if self._live:
            self._live.stop()
            self._live = None


def print_summary(record: RunRecord) -> None:
    """Print the run as a table on stderr."""
    table = Table(title=f"{record.id}: {record.status}", show_header=False, title_justify="left")
    metrics, cost, method = record.metrics, record.cost, record.method
    if metrics and (test := metrics.test):
        table.add_row("test top-1 (last epoch)", f"{test.top1:.2%}")
        table.add_row("test top-5", f"{test.top5:.2%}")
        table.add_row("test loss", f"{test.loss:.4f}")
        table.add_row("calibration error", f"{test.ece:.4f}")
    if metrics and metrics.validation:
        table.add_row("validation top-1", f"{metrics.validation.top1:.2%}")
    if metrics and (best := metrics.best_test):
        table.add_row("best epoch, picked on test", f"{best.top1:.2%} (epoch {best.epoch})")
    table.add_row("updates", f"{cost.steps:,} ({counted(cost.epochs, 'whole epoch')})")
    table.add_row("gradient passes", f"{cost.gradient_passes:,.0f}")
    train = f"{duration(cost.train_seconds)} ({cost.images_per_second:.0f} images/s)"
    table.add_row("training time", train)
    table.add_row("evaluation time", duration(cost.eval_seconds))
    table.add_row("peak memory", human_bytes(cost.peak_memory_bytes))
    table.add_row("two-pass updates", f"{method.two_pass_fraction:.0%}")
    if method.mean_perturbation_norm is not None and method.mean_gradient_cosine is not None:
        table.add_row("mean ‖perturbation‖", f"{method.mean_perturbation_norm:.4g}")
        table.add_row("mean cos(g, g*)", f"{method.mean_gradient_cosine:.3f}")
    Console(stderr=True, highlight=False).print(table, markup=False)
