"""What the commands that draw share: options of pictures and computations, and the watch on a computation."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pugdft.cli.output import duration, emit, given_path, say
from pugdft.errors import UserError, counted

if TYPE_CHECKING:
    from pugdft.analysis.jobs import PointJob, Progress

OUT_OF_TIME = 4  # the exit code of --minutes

# Of pictures.
Formats = Annotated[str, typer.Option("--format", metavar="FORMATS", help="Of the pictures: svg, pdf, png.")]
Width = Annotated[
    str | None,
    typer.Option(
        metavar="WIDTH", help="column (3.4 inches), text (6.9), or inches.", show_default="what fits"
    ),
]
Theme = Annotated[Literal["light", "dark"], typer.Option(help="Of the pictures.")]
View = Annotated[Literal["all", "line", "contour", "surface"], typer.Option(help="Pictures to draw.")]
Output = Annotated[
    Path | None,
    typer.Option(
        parser=given_path, metavar="PATH", help="Folder of the files.", show_default="that of the first run"
    ),
]

# Of computations.
ProgressForm = Literal["text", "json"]
ProgressOption = Annotated[ProgressForm, typer.Option("--progress", help="For people, or for programs.")]
Plan = Annotated[bool, typer.Option("--plan", help="Show passes and time; compute no more.")]
Minutes = Annotated[float | None, typer.Option(help="Stop then, with exit code 4.", show_default="no limit")]
Resume = Annotated[bool, typer.Option("--resume/--no-resume", help="Go on where it was stopped.")]
Data = Annotated[
    str | None,
    typer.Option(metavar="DATA", help="Where the data lies here.", show_default="as in the recipe"),
]
Images = Annotated[int, typer.Option(min=1, help="Images, of all classes alike.")]
Split = Annotated[Literal["train", "test", "both"], typer.Option(help="Whose images.")]
Grid = Annotated[int, typer.Option(help="Points along an axis, odd.")]
MOST_SEED = 2**31 - 1  # as a recipe's
Seed = Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Of directions and images.")]
BatchNorm = Annotated[
    Literal["reestimate", "fixed", "batch"] | None,
    typer.Option(
        "--batch-norm", help="BatchNorm's statistics at each point.", show_default="reestimate, or as trained"
    ),
]


def check_pictures(formats: str, width: str | None, minutes: float | None = None) -> list[str]:
    """The formats of ``--format``; a mistake in any of the three is said before anything is computed."""
    from pugdft.figures.paper import check_formats, inches

    check_minutes(minutes)
    if width is not None:
        inches(width)
    return check_formats([each.strip() for each in formats.split(",") if each.strip()])


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be written, before anything is computed for it."""
    from pugdft.paths import nearest_folder

    place = nearest_folder(folder)
    if not place.is_dir():
        raise UserError(f"{folder}: cannot be written: {place} is not a folder")
    if not os.access(place, os.W_OK):
        raise UserError(f"{folder}: cannot be written: {place} is read-only")


class Watched:
    """Prints progress, and says when to stop: at a signal, or after ``--minutes``."""

    def __init__(self, total: int, minutes: float | None, form: ProgressForm, stop_signal: Any) -> None:
        self._total, self._form, self._signal = total, form, stop_signal
        self._begin = self._shown = time.monotonic()
        self._first: int | None = None
        self._deadline = float("inf") if minutes is None else self._begin + 60 * minutes

    def of(self, done_before: int) -> Progress:
        """What a computation after so many points is given."""
        from pugdft.analysis.jobs import Progress

        return Progress(
            self._deadline,
            lambda: bool(self._signal.received),
            lambda done, total: self._show(done_before + done),
        )

    def _show(self, done: int) -> None:
        now = time.monotonic()
        if self._first is None:  # its time has that of getting ready in it
            self._first, self._begin = done, now
            return
        if now - self._shown < (0.5 if self._form == "json" else 10.0):
            return
        self._shown = now
        left = (self._total - done) * (now - self._begin) / max(1, done - self._first)
        if self._form == "json":
            emit("progress", done=done, total=self._total, seconds_left=round(left, 1))
        else:
            say(f"{done:,}/{self._total:,} points  {duration(left)} left")

    @property
    def exit_code(self) -> int:
        """Of a command that did not end."""
        if not self._signal.received:
            say("--minutes: the time is over; the same command goes on")
            return OUT_OF_TIME
        return 143 if self._signal.received == signal.SIGTERM else 130


def compute_and_draw(
    jobs: Sequence[PointJob],
    formats: list[str],
    plan: bool,
    minutes: float | None,
    progress: ProgressForm,
    **drawing: Any,
) -> None:
    """Compute and draw one after the other; print their files' paths on stdout and caveats on stderr.

    Args:
        plan: only print points, passes and time.
        drawing: ``view``, ``width`` and ``theme``.

    Raises:
        typer.Exit: with code 4, 130 or 143: it was stopped, after what is computed is stored and drawn.
    """
    if plan:
        _print_plan(jobs)
        return
    check_writable(jobs[0].path.parent)
    from pugdft.analysis.files import read_analysis
    from pugdft.figures.redraw import redraw
    from pugdft.training.distributed import StopSignal

    with StopSignal() as stop_signal:
        watched = Watched(sum(job.num_points for job in jobs), minutes, progress, stop_signal)
        done, said = 0, dict[str, None]()
        for job in jobs:
            is_whole = job.compute(watched.of(done))
            done += job.num_points
            typer.echo(str(job.path))
            stored = read_analysis(job.path)
            try:
                for path in redraw(stored.kind, stored.facts, stored.arrays, job.path, formats, **drawing):
                    typer.echo(str(path))
            except UserError as error:  # too few points
                if is_whole:
                    raise
                say(str(error))
            said |= dict.fromkeys(stored.facts["caveats"])
            if not is_whole:
                break
        for line in said:
            say(f"note: {line}")
        if not is_whole:
            raise typer.Exit(watched.exit_code)


def check_minutes(minutes: float | None) -> None:
    """Refuse a time that is not above zero."""
    if minutes is not None and not minutes > 0:
        raise UserError(f"--minutes {minutes:g}: must be above 0")


def _print_plan(jobs: Sequence[PointJob]) -> None:
    """Print points, passes and minutes of computations, from the time of two points of the first."""
    seconds = jobs[0].seconds_a_point()
    for job in jobs:
        left = job.num_points - job.num_done
        share = left * job.evaluators[0].passes / jobs[0].evaluators[0].passes
        points = f"{counted(left, 'point')} of {job.num_points:,} left"
        images = f"{job.passes:,} forward passes over {len(job.overlay.sample)} images"
        sys.stdout.write(f"{job.title}: {points}; {images}; about {duration(seconds * share)}\n")
