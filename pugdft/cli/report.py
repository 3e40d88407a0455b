"""``pugdft report``: what runs achieved, what they get wrong, and how they were made, as one page."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from pugdft.cli.output import given_path, say, write_result
from pugdft.errors import ConfigIssue, UserError, collect, human_bytes, printable

_NAME = "report.html"


def command(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN …", help="Runs' folders or records.", show_default=False)
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            parser=given_path,
            metavar="FILE",
            help="Write to this file.",
            show_default=f"{_NAME} in the run's folder; of several runs, here",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="NAME_OR_FOLDER", help="Where the images lie here.", show_default="as in the recipe"
        ),
    ] = None,
) -> None:
    """Write a report on a run as one page that needs no network; print the page's path.

    It shows the accuracy with its interval, curves, landscapes and sharpness that lie beside the run, the
    accuracy of each class, the confusion matrix, the most confident mistakes, calibration, recipe,
    environment and cost. Several runs stand side by side; to rank them is for `pugdft leaderboard`.

    Examples:
      pugdft report runs/my-run
      pugdft report runs/*/ --output report.html
    """
    os.environ["HF_HUB_OFFLINE"] = "1"  # the Hub's client reads it when it is imported
    paths = {path.resolve(): path for path in runs}.values()
    page = output or (runs[0] if runs[0].is_dir() else runs[0].parent) / _NAME
    if output is None and len(paths) > 1:
        page = Path(_NAME)
    if not page.parent.is_dir() and (output or runs[0].exists()):
        raise UserError(f"--output {page}: there is no folder {page.parent}")
    from pugdft.report.facts import run_facts
    from pugdft.report.page import as_page

    found, faults = [], list[ConfigIssue]()
    for path in paths:
        with collect(faults):
            found.append(run_facts(path, data))
    if faults:
        raise UserError("\n".join(map(str, faults)))
    for run in found:
        if run.without_pictures:
            say(printable(f"{run.run.path}: no pictures of the mistakes: {run.without_pictures}"))
    text = as_page(found)
    write_result(text, page)
    say(f"{human_bytes(len(text.encode()))}; it needs no other file")
    typer.echo(str(page))
