"""``pugdft doctor``."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Format(StrEnum):
    """How the report is written."""

    TEXT = "text"
    JSON = "json"


def command(
    recipe: Annotated[
        str | None,
        typer.Argument(metavar="[RECIPE]", help="Also look at what this recipe needs.", show_default=False),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE …]", help="Overrides: train.precision=bf16", show_default=False),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="The folder the run would have.", show_default="runs/ID")
    ] = None,
    deep: Annotated[bool, typer.Option("--deep", help="Read every pixel of the cache.")] = False,
    clean: Annotated[
        bool, typer.Option("--clean", help="Remove what killed preparations of data left in the cache.")
    ] = False,
    format_: Annotated[
        Format, typer.Option("--format", help="Text to paste into a bug report, JSON for programs.")
    ] = Format.TEXT,
) -> None:
    """Say what is installed, what works here and what does not, with a remedy for each problem.

    Needs no network; fetches and trains nothing. Exit code 0 if there is no problem, 1 if there is one, 2 if
    the recipe is not valid.
    """
    if recipe is not None:
        from pugdft.config.load import find_recipe

        find_recipe(recipe)
    from pugdft.doctor.examine import examine
    from pugdft.doctor.report import as_json, as_text, num_problems

    sections = examine(recipe, overrides, output, deep=deep, clean=clean)
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    text = as_json(sections) if format_ is Format.JSON else as_text(sections, colour)
    encoding = sys.stdout.encoding or "utf-8"
    typer.echo(text.encode(encoding, "replace").decode(encoding))
    raise typer.Exit(1 if num_problems(sections) else 0)
