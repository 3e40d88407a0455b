"""``pugdft landscape``: the loss around runs' weights, as curves and surfaces."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pugdft.cli.output import duration, emit, given_path, say
from pugdft.errors import UserError, counted, unknown
from pugdft.machine import share_cores

if TYPE_CHECKING:
    from pugdft.analysis.jobs import PointJob, Progress


class SplitChosen(StrEnum):
    TRAIN = "train"
    TEST = "test"
    BOTH = "both"


class Scaling(StrEnum):
    FILTER = "filter"
    LAYER = "layer"
    MODEL = "model"
    NONE = "none"


class OneD(StrEnum):
    ZERO = "zero"
    BLOCK = "block"


class Statistics(StrEnum):
    REESTIMATE = "reestimate"
    FIXED = "fixed"
    BATCH = "batch"


class Along(StrEnum):
    RANDOM = "random"
    HESSIAN = "hessian"


class View(StrEnum):
    LINE = "line"
    CONTOUR = "contour"
    SURFACE = "surface"
    ALL = "all"


class PageTheme(StrEnum):
    LIGHT = "light"
    DARK = "dark"


class ProgressForm(StrEnum):
    TEXT = "text"
    JSON = "json"


# Options that this command shares with `pugdft trajectory`.
Images = Annotated[int, typer.Option(min=1, help="Images, of all classes alike.")]
SplitOption = Annotated[SplitChosen, typer.Option("--split", help="Whose images.")]
Grid = Annotated[int, typer.Option(help="Points along an axis, odd.")]
BatchNorm = Annotated[
    Statistics | None,
    typer.Option(
        "--batch-norm", help="BatchNorm's statistics at each point.", show_default="reestimate, or as trained"
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Of directions and images.")]
Data = Annotated[
    str | None,
    typer.Option(metavar="DATA", help="Where the data lies here.", show_default="as in the recipe"),
]
Output = Annotated[
    Path | None,
    typer.Option(parser=given_path, metavar="PATH", help="Folder.", show_default="analysis in the run's"),
]
Formats = Annotated[str, typer.Option("--format", metavar="FORMATS", help="Of the pictures: svg, pdf, png.")]
Width = Annotated[
    str | None,
    typer.Option(metavar="WIDTH", help="Of pictures: column, text or inches.", show_default="by panels"),
]
Theme = Annotated[PageTheme, typer.Option(help="Of the pictures.")]
Resume = Annotated[bool, typer.Option("--resume/--no-resume", help="Go on where it was stopped.")]
Plan = Annotated[bool, typer.Option("--plan", help="Show points, passes and time; compute no more.")]
Minutes = Annotated[float | None, typer.Option(help="Stop then, with exit code 4.", show_default="no limit")]
ProgressOption = Annotated[ProgressForm, typer.Option("--progress", help="For people, or for programs.")]

OUT_OF_TIME = 4


def command(
    record: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run's folder or record.", show_default=False)
    ],
    others: Annotated[
        list[Path] | None,
        typer.Option("--with", metavar="RUN", help="Another run, drawn beside it.", show_default=False),
    ] = None,
    kind: Annotated[str, typer.Option(metavar="KINDS", help="Of line, plane, between.")] = "line,plane",
    directions: Annotated[
        int | None, typer.Option(help="Directions of a line.", show_default="5; 2 of the Hessian")
    ] = None,
    extent: Annotated[float, typer.Option("--range", help="The largest step to each side.")] = 1.0,
    grid: Grid = 21,
    images: Images = 256,
    split: SplitOption = SplitChosen.TRAIN,
    normalize: Annotated[Scaling, typer.Option(help="What the steps are scaled by.")] = Scaling.FILTER,
    one_d: Annotated[
        OneD, typer.Option("--one-d", help="Whether biases and norms' weights move.")
    ] = OneD.ZERO,
    batch_norm: BatchNorm = None,
    seed: Seed = 0,
    along: Annotated[Along, typer.Option(help="Random, or the sharpest two.")] = Along.RANDOM,
    view: Annotated[View, typer.Option(help="Pictures to draw.")] = View.ALL,
    data: Data = None,
    output: Output = None,
    form: Formats = "svg,png",
    width: Width = None,
    theme: Theme = PageTheme.LIGHT,
    resume: Resume = True,
    plan: Plan = False,
    minutes: Minutes = None,
    progress: ProgressOption = ProgressForm.TEXT,
) -> None:
    """Draw the loss around runs' weights.

    A line shows the mean and the range over random directions, a plane a contour and a 3-D surface, between
    the straight way to another run. Several runs share images, directions, axes and colours.
    Prints the paths of the data and the pictures. An interrupted command goes on where it was. Exit code 4
    if --minutes ended first.

    Examples:
      pugdft landscape runs/ID
      pugdft landscape runs/SGD --with runs/SAM --kind plane --split both
    """
    formats = check_pictures(form, width)
    kinds = _kinds(kind, bool(others))
    share_cores()
    from pugdft.analysis.landscape import NUM_SHARPEST, Landscape, LandscapeOptions
    from pugdft.analysis.overlay import Overlay, batch_norm_mode, open_runs, stored_run
    from pugdft.analysis.points import take_sample

    count = (5 if along is Along.RANDOM else NUM_SHARPEST) if directions is None else directions
    options = [
        LandscapeOptions(each, count, extent, grid, normalize.value, one_d.value, seed, along.value)
        for each in kinds
    ]
    for each in options:
        each.check()
    models = open_runs([record, *(others or [])])
    folder = output or stored_run(models[0]).path.parent / "analysis"
    mode = batch_norm_mode(models[0], batch_norm and batch_norm.value)
    splits = ["train", "test"] if split is SplitChosen.BOTH else [split.value]
    jobs = []
    for name in splits:
        sample = take_sample(models[0], name, images, seed, data=data, on_message=say)
        jobs += [Landscape(Overlay(models, sample, mode), each, folder, resume) for each in options]
    if plan:
        print_plan(jobs)
        return
    from pugdft.figures.surfaces import draw_landscape

    with progress_of(sum(job.num_points for job in jobs), minutes, progress) as watched:
        for number, job in enumerate(jobs):
            done = sum(each.num_points for each in jobs[:number])
            is_whole = job.compute(watched.of(done))
            typer.echo(str(job.path))
            pictures, stem = view.value, job.path.with_suffix("")
            if view is not View.ALL and view.value not in _views(job.options.kind):
                continue
            from pugdft.analysis.files import read_analysis

            stored = read_analysis(job.path)
            if is_whole or job.num_done > 1:
                with told_when_too_few(is_whole):
                    for path in draw_landscape(
                        stored.facts,
                        stored.arrays,
                        stem,
                        formats,
                        view=pictures,
                        width=width,
                        theme=theme.value,
                    ):
                        typer.echo(str(path))
            for line in stored.facts["caveats"] if number == len(jobs) - 1 or not is_whole else ():
                say(f"note: {line}")
            if not is_whole:
                raise typer.Exit(watched.exit_code)


def _kinds(text: str, has_others: bool) -> list[Any]:
    known = ("line", "plane", "between")
    kinds = [each.strip() for each in text.split(",") if each.strip()]
    for each in kinds:
        if each not in known:
            raise UserError(f"--kind: {unknown('kind', each, known)}")
    if not kinds:
        raise UserError(f"--kind: is empty; known are {', '.join(known)}")
    if "between" in kinds and not has_others:
        raise UserError("--kind between: needs another run, with --with RUN")
    return list(dict.fromkeys(kinds))


def _views(kind: str) -> tuple[str, ...]:
    from pugdft.figures.surfaces import VIEWS

    return VIEWS[kind]


# --- shared with `pugdft trajectory` ----------------------------------------------------------------------


def check_pictures(formats: str, width: str | None) -> list[str]:
    """The formats of ``--format``; a mistake in them or in the width is said before anything is computed."""
    from pugdft.figures.paper import check_formats, inches

    if width is not None:
        inches(width)
    return check_formats([each.strip() for each in formats.split(",") if each.strip()])


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
        self._first = done - 1 if self._first is None else self._first
        if now - self._shown < (0.5 if self._form is ProgressForm.JSON else 10.0):
            return
        self._shown = now
        left = (self._total - done) * (now - self._begin) / max(1, done - self._first)
        if self._form is ProgressForm.JSON:
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


@contextmanager
def progress_of(total: int, minutes: float | None, form: ProgressForm) -> Iterator[Watched]:
    """Watch a computation of so many points; signals stop it between two of them."""
    from pugdft.training.distributed import StopSignal

    if minutes is not None and not minutes > 0:
        raise UserError(f"--minutes {minutes:g}: must be above 0")
    with StopSignal() as stop_signal:
        yield Watched(total, minutes, form, stop_signal)


@contextmanager
def told_when_too_few(is_whole: bool) -> Iterator[None]:
    """Say on stderr that an interrupted computation has too few points for a picture."""
    try:
        yield
    except UserError as error:
        if is_whole:
            raise
        say(str(error))


def print_plan(jobs: Sequence[PointJob]) -> None:
    """Print points, passes and minutes of computations, from the time of two points of the first."""
    seconds = jobs[0].seconds_a_point()
    for job in jobs:
        left = job.num_points - job.num_done
        share = left * job.evaluators[0].passes / jobs[0].evaluators[0].passes
        points = f"{counted(left, 'point')} of {job.num_points:,} left"
        images = f"{job.passes:,} forward passes over {len(job.overlay.sample)} images"
        sys.stdout.write(f"{job.title}: {points}; {images}; about {duration(seconds * share)}\n")
