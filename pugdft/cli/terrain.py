"""``pugdft terrain``: the paths of optimizers on the loss surface of two weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pugdft.cli import pictures
from pugdft.cli.output import duration, emit, given_path, say
from pugdft.errors import UserError, counted

_OPTIMIZERS = "sgd,adagrad,ngd_cw,ugd,amp,sam,asam,pugd"
_BASE = {"name": "sgd", "lr": 0.2}  # without a recipe


def command(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE",
            help="Whose base optimizer, options and data are used.",
            show_default="SGD with lr 0.2, bundled",
        ),
    ] = None,
    optimizers: Annotated[
        str, typer.Option(metavar="OPTIMIZERS", help="Such as 'sgd,sam[rho=0.1]'.")
    ] = _OPTIMIZERS,
    passes: Annotated[int, typer.Option(min=2, help="Gradient passes of every optimizer.")] = 4_000,
    start: Annotated[str, typer.Option(metavar="POINT", help="Where all start, as X,Y.")] = "-10.1,-15",
    slice_: Annotated[
        Literal["unit", "output"],
        typer.Option("--slice", help="Free: in and out of a unit, or both into an output."),
    ] = "unit",
    rest: Annotated[
        Literal["trained", "random"], typer.Option(help="What the other weights are.")
    ] = "trained",
    images: Annotated[int, typer.Option(min=2, help="Images of each split, as many of each class.")] = 100,
    data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="A name or a folder.", show_default="the recipe's, or bundled"),
    ] = None,
    grid: pictures.Grid = 81,
    every: Annotated[int, typer.Option(min=1, help="Passes between kept points.")] = 10,
    seed: Annotated[
        int, typer.Option(min=0, max=pictures.MOST_SEED, help="Of the weights and the slice.")
    ] = 0,
    animate: Annotated[
        Literal["gif", "webp", "apng", "none"], typer.Option(help="Format of the animation.")
    ] = "gif",
    form: pictures.Formats = "svg,png",
    width: pictures.Width = None,
    theme: pictures.Theme = "light",
    output: Annotated[
        Path, typer.Option(parser=given_path, metavar="PATH", help="Folder of data and pictures.")
    ] = Path("analysis"),
    plan: pictures.Plan = False,
    progress: pictures.ProgressOption = "text",
) -> None:
    """Draw paths of optimizers on the loss surface of two weights.

    All weights of a small net are fixed but two, so paths lie on the surface itself. Every optimizer starts
    at one point and has the same passes. Prints the paths of the data, the contours, the surface in three
    dimensions and the animation; a table of the ends goes to stderr. No run is needed. It takes one or two
    minutes.

    Examples:
      pugdft terrain
      pugdft terrain --optimizers 'sgd[lr=5],sam[rho=1],pugd' --animate webp
    """
    formats = pictures.check_pictures(form, width)
    place = _start(start)
    pictures.check_writable(output)
    from pugdft.analysis.files import analysis_stem, digest_of, write_analysis
    from pugdft.analysis.landscape import check_grid
    from pugdft.analysis.terrain import TerrainOptions, make_terrain, planned_seconds
    from pugdft.data.datasets import open_source
    from pugdft.figures.terrain_pictures import draw_terrain

    check_grid(grid)
    specs, name = _specs(optimizers, recipe)
    source = open_source(data or name)
    options = TerrainOptions(
        passes=passes, start=place, kind=slice_, rest=rest, images=images, grid=grid, every=every, seed=seed
    )

    def tell(line: str) -> None:
        if progress == "json":
            emit("progress", message=line)
        else:
            say(line)

    if plan:
        candidate, seconds = planned_seconds(source, specs, options)
        typer.echo(
            f"terrain: candidate {candidate} of the slices; {counted(len(specs), 'optimizer')} × {passes:,} "
            f"passes; 2 surfaces of {grid} × {grid} points; about {duration(seconds)}, without the pictures"
        )
        return
    arrays, facts = make_terrain(source, specs, options, tell)
    digest = digest_of({"options": facts["options"], "specs": specs, "data": source.key})
    file = write_analysis(output, "terrain", digest, arrays, facts)
    stem = analysis_stem(output, "terrain", digest)
    typer.echo(str(file))
    for written in draw_terrain(
        facts, arrays, stem, formats, width=width, theme=theme, animate=None if animate == "none" else animate
    ):
        typer.echo(str(written))
    for line in (*end_table(facts), *facts["caveats"]):
        tell(line)


def _start(text: str) -> tuple[float, float]:
    try:
        x, y = (float(each) for each in text.split(","))
    except ValueError:
        x = y = math.nan
    if not (math.isfinite(x) and math.isfinite(y) and max(abs(x), abs(y)) <= 1_000):
        raise UserError(f'--start "{text}": expected two numbers from -1000 to 1000, such as -10.1,-15')
    return x, y


def _specs(optimizers: str, recipe: str | None) -> tuple[dict[str, dict[str, Any]], str]:
    """Every optimizer's resolved spec by its text, and the data's name."""
    from pugdft.bench.optimizer_spec import parse_optimizers
    from pugdft.config.load import load_recipe
    from pugdft.data.datasets import BUNDLED
    from pugdft.errors import ConfigIssue, FaultsError, collect
    from pugdft.optim.build import resolve_spec

    base, name = dict[str, Any](_BASE), BUNDLED
    if recipe is not None:
        found = load_recipe(recipe)
        base, name = found.as_dict()["optimizer"], found.data.name
    specs, faults = dict[str, dict[str, Any]](), list[ConfigIssue]()
    for entry in parse_optimizers(optimizers):
        with collect(faults, f'"{entry.text}"'):
            specs[entry.text] = resolve_spec(entry.spec(base))
    if faults:
        raise FaultsError("--optimizers", faults)
    return specs, name


def end_table(facts: dict[str, Any]) -> list[str]:
    """Where each optimizer ended, as lines of equal columns."""
    rows = [("optimizer", "updates", "passes", "weight 1", "weight 2", "moved", "train loss", "test loss")]
    for each in facts["optimizers"]:
        x, y = each["end"]
        numbers = (
            f"{each['updates']:,}",
            f"{each['passes']:,}",
            *(f"{far:.3f}" if abs(far) < 1e5 else f"{far:.3g}" for far in (x, y, each["moved"])),
        )
        rows.append((each["name"], *numbers, f"{each['train_loss']:.5f}", f"{each['test_loss']:.5f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(cell.rjust(wide) for cell, wide in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in rows
    ]
