"""``pugdft trajectory``: the ways of runs through weight space."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from pugdft.cli import pictures
from pugdft.cli.output import say
from pugdft.cli.pictures import check_pictures, compute_and_draw
from pugdft.machine import share_cores


def command(
    records: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Runs' folders or records.", show_default=False)
    ],
    plane: Annotated[
        Literal["pca", "ends", "axes"],
        typer.Option(
            help="Nearest to all snapshots; through three runs' ends; the straight way and a detour."
        ),
    ] = "pca",
    margin: Annotated[float, typer.Option(help="Of the plane around the ways, a share of it.")] = 0.2,
    grid: pictures.Grid = 21,
    images: pictures.Images = 256,
    split: pictures.Split = "train",
    batch_norm: pictures.BatchNorm = None,
    seed: pictures.Seed = 0,
    data: pictures.Data = None,
    output: pictures.Output = None,
    form: pictures.Formats = "svg,png",
    width: pictures.Width = None,
    theme: pictures.Theme = "light",
    resume: pictures.Resume = True,
    plan: pictures.Plan = False,
    minutes: pictures.Minutes = None,
    progress: pictures.ProgressOption = "text",
) -> None:
    """Draw the ways of runs through weight space.

    The runs must have kept snapshots: train.snapshots=1 does. The ways are projected on a plane, with the
    loss on it; below, the loss at each snapshot stands beside the loss at its projection, for snapshots lie
    outside the plane. Prints the paths of the data and the pictures. Exit code 4 if --minutes ended first.

    Examples:
      pugdft trajectory runs/ID
      pugdft trajectory runs/SGD runs/SAM runs/PUGD --plane ends --grid 31
    """
    formats = check_pictures(form, width, minutes)
    share_cores()
    from pugdft.analysis.overlay import Overlay, batch_norm_mode, folder_of, open_models
    from pugdft.analysis.points import take_sample
    from pugdft.analysis.trajectory import Trajectory, TrajectoryOptions, snapshot_files

    options = TrajectoryOptions(plane, margin, grid)
    options.check()
    models = open_models(records)
    for each in models:
        snapshot_files(each)  # a run without them is said before images are read
    folder = output or folder_of(models[0]) / "analysis"
    mode = batch_norm_mode(models[0], batch_norm)
    jobs = []
    for name in ["train", "test"] if split == "both" else [split]:
        sample = take_sample(models[0], name, images, seed, data=data, on_message=say)
        jobs.append(Trajectory(Overlay(models, sample, mode), options, folder, resume))
    compute_and_draw(jobs, formats, plan, minutes, progress, width=width, theme=theme)
