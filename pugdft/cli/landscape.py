"""``pugdft landscape``: the loss around runs' weights, as curves and surfaces."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from pugdft.cli import pictures
from pugdft.cli.output import say
from pugdft.cli.pictures import check_pictures, compute_and_draw
from pugdft.cli.predict import ModelArgument, ModelName
from pugdft.errors import UserError, unknown
from pugdft.machine import share_cores


def command(
    model: ModelArgument,
    others: Annotated[
        list[str] | None,
        typer.Option("--with", metavar="RUN", help="Another run, drawn beside it.", show_default=False),
    ] = None,
    kind: Annotated[str, typer.Option(metavar="KINDS", help="Of line, plane, between.")] = "line,plane",
    directions: Annotated[
        int | None, typer.Option(help="Directions of a line.", show_default="5; 2 of the Hessian")
    ] = None,
    extent: Annotated[float, typer.Option("--range", help="The largest step to each side.")] = 1.0,
    grid: pictures.Grid = 21,
    images: pictures.Images = 256,
    split: pictures.Split = "train",
    normalize: Annotated[
        Literal["filter", "layer", "model", "none"], typer.Option(help="What the steps are scaled by.")
    ] = "filter",
    one_d: Annotated[
        Literal["zero", "block"], typer.Option("--one-d", help="Whether biases and norms' weights move.")
    ] = "zero",
    batch_norm: pictures.BatchNorm = None,
    seed: pictures.Seed = 0,
    along: Annotated[
        Literal["random", "hessian"], typer.Option(help="Random, or the sharpest two.")
    ] = "random",
    view: pictures.View = "all",
    data: pictures.Data = None,
    output: pictures.Output = None,
    form: pictures.Formats = "svg,png",
    width: pictures.Width = None,
    theme: pictures.Theme = "light",
    resume: pictures.Resume = True,
    plan: pictures.Plan = False,
    minutes: pictures.Minutes = None,
    progress: pictures.ProgressOption = "text",
    model_name: ModelName = None,
) -> None:
    """Draw the loss around runs' weights.

    A line shows the mean and the range over random directions, a plane a contour and a 3-D surface, between
    the straight way to another run. Several runs share images, directions, axes and colours.
    Prints the paths of the data and the pictures. An interrupted command goes on where it was. Exit code 4
    if --minutes ended first. A model that no run trained needs --data.

    Examples:
      pugdft landscape runs/ID
      pugdft landscape runs/SGD --with runs/SAM --kind plane --split both
    """
    formats = check_pictures(form, width, minutes)
    kinds = _kinds(kind, view, bool(others))
    share_cores()
    from pugdft.analysis.landscape import NUM_SHARPEST, Landscape, LandscapeOptions
    from pugdft.analysis.overlay import Overlay, batch_norm_mode, folder_of, open_models
    from pugdft.analysis.points import take_sample

    count = (5 if along == "random" else NUM_SHARPEST) if directions is None else directions
    options = [LandscapeOptions(each, count, extent, grid, normalize, one_d, seed, along) for each in kinds]
    for each in options:
        each.check()
    models = open_models([model, *(others or [])], model_name)
    folder = output or folder_of(models[0]) / "analysis"
    mode = batch_norm_mode(models[0], batch_norm)
    jobs = []
    for name in ["train", "test"] if split == "both" else [split]:
        sample = take_sample(models[0], name, images, seed, data=data, on_message=say)
        jobs += [Landscape(Overlay(models, sample, mode), each, folder, resume) for each in options]
    compute_and_draw(jobs, formats, plan, minutes, progress, view=view, width=width, theme=theme)


def _kinds(text: str, view: str, has_others: bool) -> list[Any]:
    """The kinds that are asked for and have the view."""
    from pugdft.figures.surfaces import VIEWS

    known = tuple(VIEWS)
    kinds = [each.strip() for each in text.split(",") if each.strip()]
    for each in kinds:
        if each not in known:
            raise UserError(f"--kind: {unknown('kind', each, known)}")
    if not kinds:
        raise UserError(f"--kind: is empty; known are {', '.join(known)}")
    if "between" in kinds and not has_others:
        raise UserError("--kind between: needs another run, with --with RUN")
    seen = [each for each in dict.fromkeys(kinds) if view in ("all", *VIEWS[each])]
    if not seen:
        raise UserError(f"--view {view}: no {' and no '.join(kinds)} has this view")
    return seen
