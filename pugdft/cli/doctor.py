"""``pugdft doctor``."""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from pugdft.errors import counted

if TYPE_CHECKING:
    from pugdft.doctor import Report

_STYLES = {"ok": "32", "note": "33", "problem": "1;31"}
_NAME_WIDTH = 14

ReportFormat = StrEnum("ReportFormat", ["TEXT", "JSON"])


def command(
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="Also look at what it needs.", show_default=False)
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE", help="Overrides, such as train.precision=bf16.", show_default=False
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="The folder the run would have.", show_default="runs/ID")
    ] = None,
    deep: Annotated[bool, typer.Option("--deep", help="Read every pixel of the cache.")] = False,
    clean: Annotated[
        bool, typer.Option("--clean", help="Remove what killed preparations of data left in the cache.")
    ] = False,
    format_: Annotated[
        ReportFormat, typer.Option("--format", help="Text to paste into a bug report, JSON for programs.")
    ] = ReportFormat.TEXT,
) -> None:
    """Say what works on this machine and what does not.

    Each problem comes with a remedy. Needs no network; fetches and trains nothing. Exit code 0 if there is no
    problem, 1 if there is one, 2 if the recipe is not valid.

    Examples:
      pugdft doctor
      pugdft doctor vit_cifar100 train.precision=bf16
    """
    if recipe is not None:
        from pugdft.config.load import find_recipe

        find_recipe(recipe)  # a misspelt name is reported before other packages are imported
    from pugdft.doctor import examine

    end_with(examine(recipe, overrides or (), str(output or ""), deep, clean), format_)


def end_with(report: Report, format_: ReportFormat = ReportFormat.TEXT) -> NoReturn:
    """Print a report and end the command; exit code 1 if there is a problem."""
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    typer.echo(as_json(report) if format_ is ReportFormat.JSON else as_text(report, colour))
    raise typer.Exit(1 if _count(report, "problem") else 0)


def as_text(report: Report, colour: bool = False) -> str:
    """Write a line for each result, its remedy below it, and the number of problems at the end."""
    rows: list[str] = []
    for title, checks in report.items():
        rows.append(shown(title))
        for check in checks:
            state = f"{check.state:<7}"
            state = f"\x1b[{_STYLES[check.state]}m{state}\x1b[0m" if colour else state
            rows.append(f"  {state}  {shown(check.name):<{_NAME_WIDTH}} {shown(check.text)}")
            if check.remedy:
                rows.append(f"{'':{11 + _NAME_WIDTH}} remedy: {shown(check.remedy)}")
        rows.append("")
    counts = counted(_count(report, "problem"), "problem").replace("0 problems", "no problem")
    return "\n".join([*rows, f"{counts}, {counted(_count(report, 'note'), 'note')}"])


def as_json(report: Report) -> str:
    """Write the same for programs."""
    sections = []
    for title, checks in report.items():
        lines = [{key: shown(value) for key, value in asdict(check).items()} for check in checks]
        sections.append({"title": shown(title), "lines": lines})
    whole = {"schema": "pugdft.doctor/1", "problems": _count(report, "problem"), "sections": sections}
    return json.dumps(whole, indent=1, ensure_ascii=False)


def _count(report: Report, state: str) -> int:
    return sum(check.state == state for checks in report.values() for check in checks)


def shown(text: str) -> str:
    """Make text safe to publish: ``~`` for the home folder, no account in an address, escapes for marks."""
    home = os.path.expanduser("~")
    for each in sorted({home, os.path.realpath(home)} - {"/"}, key=len, reverse=True):
        text = re.sub(rf"{re.escape(each)}(?=[/\s,;:)'\"]|$)", "~", text)
    text = re.sub(r"(?<=://)[^/@\s]+@", "***@", text)
    # A file's name may hold control characters, bidirectional overrides and lone surrogates.
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
