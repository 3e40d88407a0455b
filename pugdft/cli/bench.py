"""``pugdft bench``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pugdft.cli.leaderboard import given_path


def command(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A recipe's file or bundled name.")
    ] = "quickstart",
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Overrides for all cells.", show_default=False),
    ] = None,
    optimizers: Annotated[
        str,
        typer.Option(help="Such as 'sgd,sam[rho=0.1,lr=0.02],sam+adamw[lr=1e-3],pugd'.", show_default=False),
    ] = ...,  # type: ignore[assignment]
    seeds: Annotated[str, typer.Option(help="Such as 0-4 or 0,2,7.")] = "0-2",
    output: Annotated[
        Path, typer.Option(parser=given_path, metavar="PATH", help="Folder for the cells' runs.")
    ] = Path("runs"),
) -> None:
    """Run every optimizer with every seed under one recipe, then show the leaderboard.

    Options in brackets go to the method if it has them, else to its base; quote them for the shell.
    Finished cells are skipped and interrupted ones go on; exit code 4 and a list if any is incomplete.
    """
    from pugdft.bench.entries import parse_optimizers
    from pugdft.bench.local import USER_MISTAKE, incomplete, prepare_output, run_cells
    from pugdft.bench.plan import parse_seeds, plan_cells
    from pugdft.cli.leaderboard import show
    from pugdft.errors import UserError

    if "=" in recipe:  # the recipe may be left out before overrides
        overrides, recipe = [recipe, *(overrides or [])], "quickstart"
    cells = plan_cells(recipe, overrides or [], parse_optimizers(optimizers), parse_seeds(seeds), output)
    prepare_output(output)
    code = run_cells(cells, lambda line: print(line, file=sys.stderr, flush=True))
    if code == USER_MISTAKE:
        raise typer.Exit(code)  # the cell's own message is all there is to say
    left = incomplete(cells)
    if code == 0:
        try:
            show([cell.folder for cell in cells if cell.folder.is_dir()] or [output])
        except UserError as error:
            if not left:
                raise
            print(f"pugdft: {error}", file=sys.stderr)
    for cell, status, folder in left:
        print(f"incomplete: {cell.optimizer} seed {cell.seed}: {status} ({folder})", file=sys.stderr)
    raise typer.Exit(code or (4 if left else 0))
