"""Show a comparison on the terminal: the state of its cells, the time left, and its plan."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.live import Live
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from pugdft.bench.cell import BenchCell, cell_status, cell_top1
from pugdft.bench.estimate import Estimate, PlanLine
from pugdft.bench.queue import LOST
from pugdft.bench.worker import Watcher
from pugdft.cli.output import duration
from pugdft.errors import counted, human_bytes
from pugdft.training.performance import precision_note
from pugdft.training.setup import device_type

_WIDEST_MATRIX = 8  # seeds
_NARROWEST = 24  # characters of an optimizer's column, whatever the terminal's width
_WIDEST_PLAN = 400  # characters
_LONGEST_PLAN = 12  # lines; a longer plan has one for each recipe
_MARKS = {
    "completed": "✓", "diverged": "✗", "failed": "✗", "oom": "✗", "interrupted": "‖", "missing": "·",
    "elsewhere": "⇄", "stopped": "✗", LOST: "✗",
}  # fmt: skip
_ENDED = {"completed", "diverged", "failed", "oom", LOST}


class PlainView(Watcher):
    """Print a line on stderr for every change, for logs."""

    def __init__(self, cells: Sequence[BenchCell], console: Console) -> None:
        self._cells, self._console = cells, console
        self._numbers = {cell.folder: number for number, cell in enumerate(cells, start=1)}
        self._lines: list[str] = []
        self._several = len({cell.source for cell in cells}) > 1

    def on_state(self, cell: BenchCell, state: str) -> None:
        if state == "stopped":
            self._say(self._lines)
            return
        words = "another command is running it" if state == "elsewhere" else state
        if state == "completed" and (top1 := cell_top1(cell)) is not None:
            words += f", test top-1 {top1:.2%}"
        recipe = f"{cell.source} " if self._several else ""
        number = f"[{self._numbers[cell.folder]}/{len(self._cells)}]"
        self._say([f"{number} {recipe}{cell.optimizer} seed {cell.seed}: {words}"])
        if state == "running":
            self._lines = []
        elif state in ("failed", "missing"):
            self._say([f"  {line}" for line in self._lines[-5:]])

    def on_line(self, cell: BenchCell, line: str) -> None:
        self._lines.append(line)  # shown only if the cell fails

    def _say(self, lines: Sequence[str]) -> None:
        if lines:
            self._console.print(Text("\n".join(lines)), soft_wrap=True)


class LiveView(PlainView):
    """The matrix of cells, redrawn as it fills; below it the time left."""

    def __init__(self, cells: Sequence[BenchCell], console: Console) -> None:
        super().__init__(cells, console)
        states = {cell.folder: cell_status(cell) for cell in cells}
        self._texts = {cell.folder: _marked(cell, states[cell.folder]) for cell in cells}
        self._open = {folder for folder, state in states.items() if state != "completed"}
        self._current: BenchCell | None = None
        self._left = self._begin = self._spent_seconds = self._spent_passes = 0.0
        self._live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> LiveView:
        self._live.start()
        self._draw()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def on_state(self, cell: BenchCell, state: str) -> None:
        if state == "running":
            self._lines, self._current, self._begin, self._left = [], cell, time.monotonic(), 0.0
        else:
            if state in _ENDED:
                self._open.discard(cell.folder)
            if self._current is cell:
                self._spent_seconds += time.monotonic() - self._begin
                self._spent_passes += _relative_passes(cell)
                self._current, self._left = None, 0.0
        if state in ("failed", "missing", "stopped"):
            self._say(self._lines if state == "stopped" else self._lines[-5:])
        self._texts[cell.folder] = "…" if state == "running" else _marked(cell, state)
        self._draw()

    def on_progress(self, cell: BenchCell, done: int, total: int, seconds_left: float) -> None:
        self._left = seconds_left
        self._texts[cell.folder] = f"{100 * done // max(1, total)} % {duration(seconds_left)}"
        self._draw()

    def _draw(self) -> None:
        seeds = sorted({cell.seed for cell in self._cells})
        wide = len(seeds) > _WIDEST_MATRIX
        rows: dict[tuple[str, ...], list[BenchCell]] = {}
        for cell in self._cells:  # seed by seed, so each row is in the order of the seeds
            rows.setdefault((cell.source, cell.optimizer)[not self._several :], []).append(cell)
        table = Table(box=box.SIMPLE_HEAD, caption=self._caption(), caption_justify="left")
        for heading in ("recipe", "optimizer")[not self._several :]:
            table.add_column(heading, overflow="fold")
        for heading in ["done", "now"] if wide else [f"seed {seed}" for seed in seeds]:
            table.add_column(heading, justify="right", no_wrap=True)
        for names, members in rows.items():
            texts = [self._texts[cell.folder] for cell in members]
            if wide:
                settled = sum(cell.folder not in self._open for cell in members)
                now = self._texts[self._current.folder] if self._current in members else ""
                texts = [f"{settled}/{len(members)}", now]
            table.add_row(*map(Text, (*names, *texts)))
        self._live.update(table, refresh=True)

    def _caption(self) -> str:
        if not self._open:
            return "all cells are done"
        if not self._spent_passes:
            return f"{len(self._open)} cells to go"
        waiting = [cell for cell in self._cells if cell.folder in self._open and cell is not self._current]
        ahead = sum(map(_relative_passes, waiting)) * self._spent_seconds / self._spent_passes
        return f"{len(self._open)} cells to go, about {duration(ahead + self._left)}"


def precision_notes(cells: Sequence[BenchCell]) -> list[str]:
    """What to know of precisions that this machine only emulates, once each."""
    precisions = dict.fromkeys(cell.recipe.train.precision for cell in cells)
    return list(filter(None, (precision_note(each, device_type()) for each in precisions)))


def print_plan(plan: Estimate, console: Console, notes: Sequence[str] = ()) -> None:
    """Print the plan on stdout: cells, cost, disk, the differences that the seeds can show, and notes."""
    by_recipe: dict[str, list[PlanLine]] = {}
    for line in plan.lines:
        by_recipe.setdefault(line.source, []).append(line)
    several = len(by_recipe) > 1
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    if several and len(plan.lines) > _LONGEST_PLAN:
        table.add_column("recipe", overflow="fold")
        for heading in ("cells left", "time left", "disk"):
            table.add_column(heading, justify="right", no_wrap=True)
        for source, lines in by_recipe.items():
            table.add_row(Text(source), str(sum(each.cells - each.finished for each in lines)), *_cost(lines))
    else:
        longest = max(len(line.optimizer) for line in plan.lines)
        for heading in ("recipe", "optimizer")[not several :]:
            least = min(longest, _NARROWEST) if heading == "optimizer" else None
            table.add_column(heading, overflow="fold", min_width=least)
        for heading in ("cells", "finished", "updates", "gradient passes", "time left", "disk"):
            table.add_column(heading, justify="right", no_wrap=True)
        for line in plan.lines:
            cost = ["", "", *_cost([line])]
            if line.updates is not None:
                bound = "≤ " if line.passes_are_bound else ""
                cost[:2] = f"{line.updates:,}", f"{bound}{line.passes:,}"
            names = (line.source, line.optimizer)[not several :]
            table.add_row(*map(Text, names), str(line.cells), str(line.finished), *cost)
    # A column that may break keeps its least width, whatever the terminal's.
    wide = console.options.update(max_width=_WIDEST_PLAN)
    needed = Measurement.get(console, wide, table).minimum
    if needed > console.width:
        table.width = needed
    console.print(table, crop=False)
    for text in (*_plan_lines(plan), *notes):
        console.print(Text(text))


def _cost(lines: Sequence[PlanLine]) -> list[str]:
    """Time and disk of what is left; two blanks if nothing is known."""
    if all(line.seconds is None for line in lines):
        return ["", ""]
    seconds, disk = (sum(getattr(line, key) or 0 for line in lines) for key in ("seconds", "disk_bytes"))
    return [duration(seconds), human_bytes(disk)]


def _plan_lines(plan: Estimate) -> list[str]:
    left = sum(line.cells - line.finished for line in plan.lines if not line.problem)
    stuck = sum(line.cells - line.finished for line in plan.lines if line.problem)
    seconds = sum(line.seconds or 0.0 for line in plan.lines)
    disk = sum(line.disk_bytes or 0 for line in plan.lines) + plan.checkpoint_bytes
    hours = f" ({seconds / 3600:,.1f} hours)" if seconds >= 3600 else ""
    lines = [f"{counted(stuck, 'cell')} cannot run here; the sums below leave them out."] if stuck else []
    lines += [
        f"{left} cells to run, about {duration(seconds)}{hours} one after another on this machine.",
        f"Disk: about {human_bytes(disk)}, {human_bytes(plan.checkpoint_bytes)} of it while a cell runs; "
        f"{human_bytes(plan.free_bytes)} are free.",
    ]
    if plan.is_sampled:
        lines.append("Measured: one optimizer of each recipe; the others by their gradient passes.")
    if disk > plan.free_bytes:
        lines.append("That does not fit: choose another --output, or make room.")
    low, high = plan.detectable
    if math.isinf(low):
        return [*lines, "One seed cannot tell optimizers apart, however large their difference."]
    pairs = f"{plan.num_pairs} pairs" if plan.num_pairs > 1 else "one pair"
    images = f" and {plan.num_test_images:,} test images" if plan.num_test_images else ""
    lines.append(
        f"{plan.num_seeds} seeds{images} find a true difference of {_points(low, high)} of top-1 or more "
        f"(power 80 %, {pairs}, Holm, level 5 %)."
    )
    spreads = plan.spreads
    whose = (
        "as those of the finished cells do"
        if spreads.are_measured
        else "as elsewhere: no cell has finished yet"
    )
    lines.append(
        f"That is if paired differences spread by {_points(*spreads.seeds)} over seeds and by "
        f"{_points(*spreads.images)} over test images, {whose}. More seeds do not reduce the images' part."
    )
    if not plan.num_test_images:
        lines.append("The number of test images is not known, and their part is left out.")
    return lines


def _points(low: float, high: float) -> str:
    """Write ``0.3 to 2.4 points``."""
    ends = dict.fromkeys(f"{100 * each:.2g}" for each in (low, high))
    return f"{' to '.join(ends)} points"


def _marked(cell: BenchCell, state: str) -> str:
    """A state as a mark, with the accuracy of a completed cell, the reason of one that is not."""
    top1 = cell_top1(cell) if state == "completed" else None
    text = f"{top1:.1%}" if top1 is not None else state if state in _ENDED - {"completed"} else ""
    return f"{_MARKS[state]} {text}".strip()


def _relative_passes(cell: BenchCell) -> float:
    """The cost of a cell among those of its recipe."""
    return 1.0 if cell.recipe.train.budget == "passes" else cell.passes_per_update
