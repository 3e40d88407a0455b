"""``pugdft bench``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def command(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A recipe's file or bundled name.")
    ] = "quickstart",
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Overrides for all cells.", show_default=False),
    ] = None,
    optimizers: Annotated[
        str, typer.Option(help="Such as sgd,sam[rho=0.1],sam+adamw,pugd.", show_default=False)
    ] = ...,  # type: ignore[assignment]
    seeds: Annotated[str, typer.Option(help="Such as 0-4 or 0,2,7.")] = "0-2",
    output: Annotated[Path, typer.Option(help="Folder for the cells' runs.")] = Path("runs"),
) -> None:
    """Run every optimizer with every seed under one recipe, then show the leaderboard.

    Finished cells are skipped and interrupted ones go on; exit code 4 and a list if any is incomplete.
    """
    from rich.console import Console

    from pugdft.bench.local import incomplete, run_cells
    from pugdft.bench.plan import parse_optimizers, parse_seeds, plan_cells
    from pugdft.cli.leaderboard import show

    if "=" in recipe:  # the recipe may be left out before overrides
        overrides, recipe = [recipe, *(overrides or [])], "quickstart"
    cells = plan_cells(recipe, overrides or [], parse_optimizers(optimizers), parse_seeds(seeds), output)
    console = Console(stderr=True, highlight=False, markup=False)
    code = run_cells(cells, console.print)
    if code == 0:
        show([cell.folder for cell in cells if cell.folder.is_dir()])
    left = incomplete(cells)
    for cell, status, folder in left:
        print(f"incomplete: {cell.optimizer} seed {cell.seed}: {status} ({folder})", file=sys.stderr)
    raise typer.Exit(code or (4 if left else 0))
