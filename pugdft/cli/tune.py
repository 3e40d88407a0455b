"""``pugdft tune``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pugdft.cli.output import given_path
from pugdft.errors import undriven

if TYPE_CHECKING:
    from pugdft.tuning.trials import Tuned

_PLAIN_WIDTH = 120


def command(
    recipe: Annotated[
        str,
        typer.Argument(metavar="RECIPE", help="A recipe's file or bundled name.", show_default=False),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE", help="Overrides for all trials and the comparison.", show_default=False
        ),
    ] = None,
    optimizers: Annotated[
        str, typer.Option(help="Such as 'sgd,sam,sam+adamw[lr=1e-3],pugd'.", show_default=False)
    ] = ...,  # type: ignore[assignment]
    search: Annotated[str, typer.Option(help="greedy, general, or a search file.")] = "greedy",
    trials: Annotated[
        int | None,
        typer.Option(min=1, help="Of each optimizer, in a general search.", show_default="the search's"),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Of every trial, such as 0 or 0-2.")] = "0",
    output: Annotated[
        Path, typer.Option(parser=given_path, metavar="PATH", help="Folder for trials and results.")
    ] = Path("tuned"),
    num_processes: Annotated[
        int, typer.Option(min=1, help="Processes of each trial, such as one a GPU.")
    ] = 1,
) -> None:
    """Choose the options of every optimizer on held-out images, never looking at the test split.

    The search starts from the options in brackets. Writes a bench file for the final comparison and prints
    its path. The same command continues an interrupted search. Started again while it runs, in another
    terminal or on another machine with the same folder, it shares the trials. With other optimizers and the
    same folder, it adds them to the bench file.
    """
    from pugdft.bench.executors.local import USER_MISTAKE
    from pugdft.tuning.search import TuneRequest, tune
    from pugdft.tuning.trials import StoppedError

    request = TuneRequest(recipe, overrides or [], optimizers, search, trials, seeds, output, num_processes)
    try:
        tuned, bench = tune(request, _say)
    except StoppedError as stop:
        if stop.code != USER_MISTAKE:
            _say("interrupted: the same command continues the search")
        raise typer.Exit(stop.code) from None
    for each in tuned:
        for line in _warnings(each):
            _say(f"{each.label}: {line}")
    sys.stdout.write(_table(tuned))
    if bench is None:
        raise typer.Exit(1)
    _say("the final comparison, on the test split: pugdft bench with this file")
    typer.echo(str(bench))


def _say(line: str) -> None:
    print(undriven(line), file=sys.stderr, flush=True)


def _warnings(tuned: Tuned) -> list[str]:
    from pugdft.tuning.trials import options_text

    lines = list(tuned.remarks)
    for option, edge in tuned.at_edge.items():
        value = options_text({option: tuned.options[option]})
        lines.append(f"{value} lies at the {edge} end of what was searched: the best may lie beyond it")
    if tuned.spec is None:
        lines.append("no trial has a score, so nothing can be chosen")
    return lines


def _count(tuned: Tuned) -> str:
    seeds = len(tuned.trials[0].trial.cells)
    return f"{len(tuned.trials):,}" + (f" × {seeds} seeds" if seeds > 1 else "")


def _table(tuned: Sequence[Tuned]) -> str:
    from io import StringIO

    from rich.console import Console
    from rich.table import Table

    from pugdft.tuning.trials import options_text

    table = Table(title="Chosen on held-out images", title_justify="left")
    for name in ("optimizer", "options"):
        table.add_column(name, overflow="fold")
    for name in ("validation top-1", "trials", "passes"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in tuned:
        top1 = each.outcome.top1 if each.outcome else None
        options = "  ".join(
            options_text({option: value}) + (" (at the edge)" if option in each.at_edge else "")
            for option, value in each.options.items()
        )
        table.add_row(
            each.label,
            options if each.spec is not None else "none has a score",
            "–" if top1 is None else f"{top1:.2%}",
            _count(each),
            f"{each.gradient_passes:,.0f}",
        )
    buffer = StringIO()
    Console(file=buffer, width=_PLAIN_WIDTH, highlight=False, markup=False).print(table)
    return buffer.getvalue()
