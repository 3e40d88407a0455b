"""``pugdft compare``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pugdft.cli.doctor import ReportFormat
from pugdft.cli.leaderboard import GATE_DID_NOT_HOLD, RankedBy


def command(
    first: Annotated[
        str, typer.Argument(metavar="A", help="A record, a folder with one optimizer's runs, or its label.")
    ],
    second: Annotated[str, typer.Argument(metavar="B", help="Likewise.")],
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="PATH", help="Where labels are looked up, like --records.", show_default=False
        ),
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Exit code 3 unless A is shown to be worse than B by less than this, as a fraction: 0.002.",
            show_default=False,
        ),
    ] = None,
    metric: Annotated[
        RankedBy, typer.Option(help="Compare this, of the last epoch on the test split.")
    ] = RankedBy.TOP1,
    records: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="Where labels are looked up.", show_default="runs"),
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Only this data set.", show_default=False)] = None,
    model: Annotated[str | None, typer.Option(help="Only this model.", show_default=False)] = None,
    full: Annotated[bool, typer.Option("--full", help="Add McNemar's test of each seed.")] = False,
    format_: Annotated[
        ReportFormat, typer.Option("--format", help="Text for people, JSON for programs.")
    ] = ReportFormat.TEXT,
) -> None:
    """Tell how much better one optimizer is than another.

    A minus B, with an interval and how sure that is.

    Equal seeds are pairs; with stored predictions the test images count as drawn, too. A label is what the
    leaderboard calls an optimizer, such as 'sam[rho=0.1]'.

    Examples:
      pugdft compare pugd sgd --margin 0.002
      pugdft compare 'sam[rho=0.1]' sgd --records runs --dataset cifar10
    """
    from pugdft.errors import UserError
    from pugdft.leaderboard.compare import as_json, compare_selections, find_selections
    from pugdft.leaderboard.verdicts import comparison_text

    if margin is not None and margin >= 1 and metric is not RankedBy.LOSS:
        raise UserError(
            f"--margin: {margin:g} is everything there is: a fraction is meant, 0.02 for 2 points"
        )
    places = [*(paths or ()), *(records or ())] or [Path("runs")]
    one, two = find_selections(
        first, second, places, dataset, model, lambda line: print(line, file=sys.stderr)
    )
    report = compare_selections(one, two, metric.value, margin)
    typer.echo(as_json(report) if format_ is ReportFormat.JSON else comparison_text(report, full))
    if report.gate is not None and not report.gate.holds:
        raise typer.Exit(GATE_DID_NOT_HOLD)
