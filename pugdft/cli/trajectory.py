"""``pugdft trajectory``: the ways of runs through weight space."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pugdft.cli.landscape import (
    BatchNorm,
    Data,
    Formats,
    Grid,
    Images,
    Minutes,
    Output,
    PageTheme,
    Plan,
    ProgressForm,
    ProgressOption,
    Resume,
    Seed,
    SplitChosen,
    SplitOption,
    Theme,
    Width,
    check_pictures,
    print_plan,
    progress_of,
    told_when_too_few,
)
from pugdft.cli.output import say
from pugdft.machine import share_cores


class PlaneChosen(StrEnum):
    PCA = "pca"
    ENDS = "ends"


def command(
    records: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Runs' folders or records.", show_default=False)
    ],
    plane: Annotated[
        PlaneChosen, typer.Option(help="Nearest to all snapshots, or through three runs' ends.")
    ] = PlaneChosen.PCA,
    margin: Annotated[float, typer.Option(help="Of the plane around the ways, a share of it.")] = 0.2,
    grid: Grid = 21,
    images: Images = 256,
    split: SplitOption = SplitChosen.TRAIN,
    batch_norm: BatchNorm = None,
    seed: Seed = 0,
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
    """Draw the ways of runs through weight space.

    The runs must have kept snapshots: train.snapshots=1 does. The ways are projected on a plane, with the
    loss on it; below, the loss at each snapshot stands beside the loss at its projection, for snapshots lie
    outside the plane. Prints the paths of the data and the pictures. Exit code 4 if --minutes ended first.

    Examples:
      pugdft trajectory runs/ID
      pugdft trajectory runs/SGD runs/SAM runs/PUGD --plane ends --grid 31
    """
    formats = check_pictures(form, width)
    share_cores()
    from pugdft.analysis.files import read_analysis
    from pugdft.analysis.overlay import Overlay, batch_norm_mode, open_runs, stored_run
    from pugdft.analysis.points import take_sample
    from pugdft.analysis.trajectory import Trajectory, TrajectoryOptions, snapshot_files
    from pugdft.figures.surfaces import draw_trajectory

    options = TrajectoryOptions(plane.value, margin, grid)
    options.check()
    models = open_runs(records)
    for each in models:
        snapshot_files(each)  # a run without them is said before images are read
    folder = output or stored_run(models[0]).path.parent / "analysis"
    mode = batch_norm_mode(models[0], batch_norm and batch_norm.value)
    jobs = []
    for name in ["train", "test"] if split is SplitChosen.BOTH else [split.value]:
        sample = take_sample(models[0], name, images, seed, data=data, on_message=say)
        jobs.append(Trajectory(Overlay(models, sample, mode), options, folder, resume))
    if plan:
        print_plan(jobs)
        return
    with progress_of(sum(job.num_points for job in jobs), minutes, progress) as watched:
        done = 0
        for job in jobs:
            is_whole = job.compute(watched.of(done))
            done += job.num_points
            typer.echo(str(job.path))
            stored, stem = read_analysis(job.path), job.path.with_suffix("")
            with told_when_too_few(is_whole):
                for path in draw_trajectory(
                    stored.facts, stored.arrays, stem, formats, width=width, theme=theme.value
                ):
                    typer.echo(str(path))
            for line in stored.facts["caveats"]:
                say(f"note: {line}")
            if not is_whole:
                raise typer.Exit(watched.exit_code)
