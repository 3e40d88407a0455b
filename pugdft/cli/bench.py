"""``pugdft bench``."""

from __future__ import annotations

from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pugdft.cli.output import given_path, say


class Budget(StrEnum):
    EPOCHS = "epochs"
    PASSES = "passes"


def command(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RECIPE|TABLE|KEY=VALUE",
            help="Recipes' files or bundled names, or one bench file or table; overrides for all cells.",
            show_default="quickstart",
        ),
    ] = None,
    optimizers: Annotated[
        str | None,
        typer.Option(help="Such as 'sgd,sam[rho=0.1],sam+adamw[lr=1e-3],pugd'.", show_default=False),
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Such as 0-4 or 0,2,7.", show_default="0-2")] = None,
    budget: Annotated[
        Budget | None,
        typer.Option(
            help="Equal epochs, or equal gradient passes: what the recipe's own optimizer would take.",
            show_default="as in the recipe",
        ),
    ] = None,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan",
            help="Show the cells, their cost, and the differences that the seeds can show; run nothing.",
        ),
    ] = False,
    output: Annotated[
        Path, typer.Option(parser=given_path, metavar="PATH", help="Folder for the cells' runs.")
    ] = Path("runs"),
    num_processes: Annotated[int, typer.Option(min=1, help="Processes of each cell, such as one a GPU.")] = 1,
    retry: Annotated[bool, typer.Option("--retry", help="Run cells that diverged once more.")] = False,
) -> None:
    """Run every optimizer with every seed, then rank them.

    The arguments are recipes and overrides for all of them, or one bench file, or one of the papers' tables
    (pugdft recipes ls lists them).
    Options in brackets go to the method if it has them, else to its base; quote them for the shell.
    Finished cells are skipped and interrupted ones continue; several commands may share a folder, and each
    cell runs once. Exit code 4 and a list if any cell is incomplete.

    Examples:
      pugdft bench quickstart --optimizers 'sgd,sam[rho=0.1]' train.epochs=2
      pugdft bench pugd_iv --plan
    """
    from rich.console import Console

    from pugdft.bench.executors.local import USER_MISTAKE, Options, cell_status, prepare_output, run_cells
    from pugdft.bench.grid import build_matrix, plan_cells
    from pugdft.cli.bench_view import LiveView, PlainView, precision_notes, print_plan
    from pugdft.cli.leaderboard import show
    from pugdft.errors import UserError

    matrix = build_matrix(arguments or [], optimizers, seeds, budget.value if budget else None)
    cells = plan_cells(matrix, output)
    if plan:
        from pugdft.bench.estimate import estimate, probe
        from pugdft.training.launchers import check_first_task

        check_first_task("pugdft bench --plan")
        made = estimate(cells, output, probe)
        causes: dict[str, dict[str, None]] = {}  # each with the recipes that it stops, in their order
        for line in made.lines:
            if line.problem:
                causes.setdefault(line.problem, {})[line.source] = None
        if len({source for sources in causes.values() for source in sources}) < len(matrix.recipes):
            print_plan(made, Console(highlight=False, soft_wrap=True), precision_notes(cells))
        if causes:
            raise UserError("\n".join(f"{', '.join(sources)}: {cause}" for cause, sources in causes.items()))
        return
    prepare_output(output)
    for note in precision_notes(cells):
        say(note)
    console = Console(stderr=True, highlight=False)
    live = console.is_terminal
    with LiveView(cells, console) if live else nullcontext(PlainView(cells, console)) as view:
        code = run_cells(cells, view, Options(num_processes, retry))
    if code == USER_MISTAKE:
        raise typer.Exit(code)  # the cell has printed the message
    left = [(cell, status) for cell in cells if (status := cell_status(cell)) != "completed"]
    if code == 0:
        try:
            show([cell.folder for cell in cells if cell.folder.is_dir()] or [output])
        except UserError as error:
            if not left:
                raise
            say(f"pugdft: {error}")
    for cell, status in left:
        say(f"incomplete: {cell.optimizer} seed {cell.seed}: {status} ({cell.folder})")
    raise typer.Exit(code or (4 if left else 0))
