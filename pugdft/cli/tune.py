"""``pugdft tune``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pugdft.cli.output import given_path, say

if TYPE_CHECKING:
    from pugdft.tuning.trials import Tuned


def command(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A recipe's file or bundled name.", show_default=False)
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
    """Choose each optimizer's options on held-out images.

    The test split is never evaluated.
    The search starts from the options in brackets. Writes a bench file for the final comparison and prints
    its path. The same command continues an interrupted search. Started again while it runs, in another
    terminal or on another machine with the same folder, it shares the trials. With other optimizers and the
    same folder, it adds them to the bench file.

    Examples:
      pugdft tune resnet18_cifar10 --optimizers sgd,sam,pugd
      pugdft tune quickstart --optimizers sgd,pugd --search general --trials 20
    """
    from pugdft.bench.worker import USER_MISTAKE
    from pugdft.errors import FolderBusy
    from pugdft.tuning.search import TuneRequest, tune
    from pugdft.tuning.trials import StoppedError

    request = TuneRequest(recipe, overrides or [], optimizers, search, trials, seeds, output, num_processes)
    try:
        tuned, bench = tune(request, say)
    except StoppedError as stop:
        if stop.code not in (USER_MISTAKE, FolderBusy.exit_code):
            say("interrupted: the same command continues the search")
        raise typer.Exit(stop.code) from None
    _print_table(tuned)
    if bench is None:
        raise typer.Exit(1)
    say("the final comparison, on the test split: pugdft bench with this file")
    typer.echo(str(bench))


def _print_table(tuned: Sequence[Tuned]) -> None:
    """Print what was found on stdout, and what a reader must know of it on stderr."""
    from rich.console import Console
    from rich.table import Table

    from pugdft.tuning.trials import options_text

    table = Table(title="Chosen on held-out images", title_justify="left")
    for name in ("optimizer", "options"):
        table.add_column(name, overflow="fold")
    for name in ("validation top-1", "trials", "passes"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in tuned:
        texts = {option: options_text({option: value}) for option, value in each.options.items()}
        remarks = list(each.remarks)
        for option, edge in each.at_edge.items():
            place = f"at the {edge} end of what was searched"
            remarks.append(f"{texts[option]} lies {place}: the best may lie beyond it")
            texts[option] += " (at the edge)"
        if each.spec is None:
            remarks.append("no trial has a score, so nothing can be chosen")
        for remark in remarks:
            say(f"{each.label}: {remark}")
        top1 = each.outcome.top1 if each.outcome else None
        num_seeds = len(each.trials[0].trial.cells)
        table.add_row(
            each.label,
            "  ".join(texts.values()) if each.spec is not None else "none has a score",
            "–" if top1 is None else f"{top1:.2%}",
            f"{len(each.trials):,}" + (f" × {num_seeds} seeds" if num_seeds > 1 else ""),
            f"{each.gradient_passes:,.0f}",
        )
    Console(width=120, color_system=None, highlight=False, markup=False).print(table)
