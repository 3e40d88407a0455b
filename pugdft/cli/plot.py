"""``pugdft plot``."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pugdft.cli import pictures
from pugdft.cli.leaderboard import RankedBy
from pugdft.cli.output import say, write_result
from pugdft.errors import UserError, printable, unknown

if TYPE_CHECKING:
    from pugdft.records import StoredRun

_ANALYSIS = re.compile(r"^schema: *['\"]?pugdft\.analysis/", re.MULTILINE)
_FOLDER = "analysis"


def command(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN|FOLDER|FILE",
            help="Records, folders with runs below, or data files of the other verbs to draw again.",
            show_default=False,
        ),
    ],
    x: Annotated[
        Literal["epochs", "passes", "seconds"] | None,
        typer.Option(
            help="The horizontal axis.", show_default="passes if they differ per update, else epochs"
        ),
    ] = None,
    y: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,…",
            help="Of loss, top1, gap, gradient, perturbation, cosine, lr.",
            show_default="those of loss,gap,gradient that exist",
        ),
    ] = None,
    by: Annotated[
        Literal["optimizer", "run"], typer.Option(help="What a line is of: all seeds, or one run.")
    ] = "optimizer",
    band: Annotated[
        Literal["auto", "range", "sd", "ci", "none"],
        typer.Option(help="About a mean; auto: the range, of five runs on the 95 % interval (ci)."),
    ] = "auto",
    sweep: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="Results over this key of the recipes instead, such as optimizer.alpha.",
            show_default=False,
        ),
    ] = None,
    series: Annotated[
        str | None,
        typer.Option(
            metavar="KEY", help="With --sweep: a line for each value of this key.", show_default=False
        ),
    ] = None,
    metric: Annotated[
        RankedBy, typer.Option(help="With --sweep and --across: the result, as the leaderboard ranks.")
    ] = RankedBy.TOP1,
    across: Annotated[
        bool, typer.Option("--across", help="A verdict over all data sets and models, by --metric, instead.")
    ] = False,
    view: pictures.View = "all",
    width: pictures.Width = None,
    theme: pictures.Theme = "light",
    form: pictures.Formats = "svg,png",
    output: pictures.Output = None,
    interactive: Annotated[
        bool, typer.Option("--interactive", help="Of a data file, also a page with surfaces to turn.")
    ] = False,
) -> None:
    """Draw histories of runs, or the data file of another verb again; print the pictures' paths.

    Every optimizer is a line with a band over its seeds. A run that diverged ends with a cross at its last
    finite value. Nothing is computed again: equal input gives equal bytes.

    Examples:
      pugdft plot runs/ --y loss,gap,gradient --format pdf
      pugdft plot runs/ --sweep optimizer.alpha --series optimizer.rho
    """
    formats = pictures.check_pictures(form, width)
    if across and sweep is not None:
        raise UserError("--across: draws a verdict over tasks, --sweep one option's values: give one of both")
    if series is not None and sweep is None:
        raise UserError("--series: goes with --sweep, which names the horizontal axis")
    quantities = _quantities(y)
    files = [path for path in paths if _is_data(path)]
    if files and len(files) < len(paths):
        other = next(path for path in paths if path not in files)
        raise UserError(f"{other}: draw records and data files apart: {files[0]} is a data file")
    for file in files:
        _draw_again(file, formats, output, interactive, view=view, width=width, theme=theme)
    if files:
        return
    if interactive:
        raise UserError("--interactive: is of data files; of runs `pugdft report` writes a page")
    from pugdft.leaderboard.load import collect

    found = collect(paths)
    for line in (*found.left_out, *found.notes):
        say(line)
    if not found.records:
        raise UserError(f"no run record in {', '.join(printable(path) for path in paths)}")
    from pugdft.figures import histories, paper

    folder = output or (paths[0] if paths[0].is_dir() else paths[0].parent) / _FOLDER
    records = sorted(run.record.id for run in found.records)
    if across:
        _draw_across(found.records, metric.value, folder, formats, [records, metric.value, width, theme])
        return
    from pugdft.report import curves

    curves.check_comparable(found.records)
    if sweep is not None:
        drawn, names, headings, captions = curves.sweep_of(found.records, sweep, series, metric.value, band)
        with paper.style(theme):
            figure = histories.sweep_figure(drawn, names, headings, width, theme)
        kind, options = "sweep", {"sweep": sweep, "series": series, "metric": metric.value}
    else:
        lines = curves.series_of(found.records, by)
        axis = x or curves.usual_axis(lines)
        panels, heading, captions = curves.panels_of(lines, quantities, axis, band)
        with paper.style(theme):
            figure = histories.histories_figure(panels, heading, width, theme)
        kind, options = "histories", {"y": ",".join(quantities or ()), "x": axis, "by": by}
    digest = _digest([records, options, band, width, theme])
    for path in paper.save(figure, folder / f"{kind}-{digest}", formats):
        typer.echo(str(path))
    for caption in captions:
        say(printable(caption))


def _digest(content: list[Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:8]


def _draw_across(
    records: Sequence[StoredRun], metric: str, folder: Path, formats: list[str], drawing: list[Any]
) -> None:
    """Draw every figure of a verdict over tasks; ``drawing`` ends with the width and the theme."""
    from pugdft.figures import paper
    from pugdft.leaderboard.across import build_across
    from pugdft.leaderboard.across.formats import remarks, sentence
    from pugdft.leaderboard.across.pictures import pictures

    verdict = build_across(records, metric=metric)
    width, theme = drawing[-2:]
    for name, (_, draw) in pictures(verdict).items():
        with paper.style(theme):
            figure = draw(width=width, theme=theme)
        for path in paper.save(figure, folder / f"across-{name}-{_digest(drawing)}", formats):
            typer.echo(str(path))
    for line in (sentence(verdict), *remarks(verdict)):
        say(line)


def _quantities(given: str | None) -> list[str] | None:
    from pugdft.report.curves import QUANTITIES

    if given is None:
        return None
    names = [name.strip() for name in given.split(",") if name.strip()]
    for name in names:
        if name not in QUANTITIES:
            raise UserError(f"--y: {unknown('quantity', name, QUANTITIES)}")
    if not names:
        raise UserError(f"--y: names none of {', '.join(QUANTITIES)}")
    return list(dict.fromkeys(names))


def _is_data(path: Path) -> bool:
    """Whether a file is of an analysis, not a record."""
    from pugdft.config import yaml

    if path.suffix == ".npz":
        return True
    return path.suffix == ".yaml" and path.is_file() and bool(_ANALYSIS.search(yaml.read_text(path)[:1000]))


def _draw_again(
    file: Path, formats: list[str], output: Path | None, interactive: bool, **drawing: str | None
) -> None:
    from pugdft.analysis.files import read_analysis
    from pugdft.figures.redraw import redraw

    stored = read_analysis(file)
    place = stored.path if output is None else output / stored.path.name
    for path in redraw(stored.kind, stored.facts, stored.arrays, place, formats, **drawing):
        typer.echo(str(path))
    if interactive:
        from pugdft.report.analyses import analysis_page

        write_result(analysis_page(stored), place.with_suffix(".html"))
        typer.echo(str(place.with_suffix(".html")))
