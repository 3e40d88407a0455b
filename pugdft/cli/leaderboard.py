"""``pugdft leaderboard``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

_PLAIN_WIDTH = 120


def given_path(text: str | Path) -> Path:
    """A path from the command line; ``--output ""``, from an unset variable, would mean this folder."""
    if not str(text):
        raise typer.BadParameter("is empty: expected a path")
    return Path(text)


class Format(StrEnum):
    """How the leaderboard is written."""

    TABLE = "table"
    JSON = "json"


def command(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="PATH", help="Records, or folders searched for them.", show_default="runs"),
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Only this data set.", show_default=False)] = None,
    model: Annotated[str | None, typer.Option(help="Only this model.", show_default=False)] = None,
    format_: Annotated[
        Format, typer.Option("--format", help="Table for people, JSON for programs.")
    ] = Format.TABLE,
    output: Annotated[
        Path | None,
        typer.Option(parser=given_path, metavar="PATH", help="Write to this file.", show_default="stdout"),
    ] = None,
) -> None:
    """Rank the optimizers of finished runs, for each data set and model."""
    show(paths or [Path("runs")], dataset, model, format_, output)


def show(
    paths: Sequence[Path],
    dataset: str | None = None,
    model: str | None = None,
    format_: Format = Format.TABLE,
    output: Path | None = None,
) -> None:
    """Collect, rank and write the leaderboard of records.

    Raises:
        UserError: no record, or none that fits the filters; ``output`` cannot be written.
    """
    from io import StringIO

    from pugdft.errors import UserError
    from pugdft.leaderboard import as_json, build_leaderboard, collect, print_table

    records, messages = collect(paths)
    for message in messages:
        print(message, file=sys.stderr)
    if not records:
        places = ", ".join(map(str, paths))
        raise UserError(f"no run record in {places}; `pugdft finetune` and `pugdft bench` write them")
    groups = build_leaderboard(records, dataset, model)
    if format_ is Format.JSON:
        text = as_json(groups) + "\n"
    else:
        from rich.console import Console

        is_terminal = sys.stdout.isatty() and output is None
        buffer = StringIO()
        width = None if is_terminal else _PLAIN_WIDTH
        print_table(groups, Console(file=sys.stdout if is_terminal else buffer, width=width, highlight=False))
        text = buffer.getvalue()
    if output is not None:
        _write(output, text)
    else:
        sys.stdout.write(text)


def _write(path: Path, text: str) -> None:
    from pugdft.errors import UserError
    from pugdft.record import write_atomically

    try:
        # Writing atomically replaces what is there, which must not happen to a device or a pipe.
        if path.exists() and not path.is_file():
            raise UserError(f"--output {path}: is not a file")
        write_atomically(path, text.encode())
    except OSError as error:
        raise UserError(f"--output {path}: cannot be written: {error.strerror}") from None
