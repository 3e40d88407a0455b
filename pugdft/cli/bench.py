"""``pugdft bench``."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from pugdft.cli.output import given_path, say
from pugdft.errors import UserError, reason


@contextmanager
def _usable(runs: Path) -> Iterator[None]:
    """Tell what the system refuses in a folder of runs: it is another user's, or a file is in the way."""
    try:
        yield
    except OSError as error:
        if isinstance(error, BrokenPipeError) or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise  # which every command tells alike
        where = f" ({error.filename})" if error.filename else ""
        raise UserError(f"{runs}: cannot be used as a folder of runs: {reason(error)}{where}") from None


def _refuse_others(context: typer.Context) -> None:
    """Refuse what stands beside --join, --status or --stop and would do nothing there."""
    said = {each: context.get_parameter_source(each) for each in context.params}
    given = [each for each, source in said.items() if source is not None and source.name == "COMMANDLINE"]
    what = next(each for each in _BESIDE if each in given)
    if others := [each for each in given if each != what and each not in _BESIDE[what]]:
        names = {str(each.name): each.opts[0] for each in context.command.params}
        shown = ", ".join("RECIPE|TABLE|KEY=VALUE" if each == "arguments" else names[each] for each in others)
        raise UserError(f"--{what} takes the folder of a bench and nothing else: leave out {shown}")


class Budget(StrEnum):
    EPOCHS = "epochs"
    PASSES = "passes"


# What may stand beside each option that is a command of its own.
_BESIDE = {"join": {"cells", "cold", "retry"}, "status": {"form"}, "stop": set[str]()}


def command(
    context: typer.Context,
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
    executor: Annotated[
        str | None,
        typer.Option(
            metavar="ENGINE[…]",
            help="What starts workers: 'local[workers=2]', 'slurm[workers=8,partition=gpu,time=240,gpus=1]', "
            "'ray[workers=8]'.",
            show_default="this process, or one for each GPU",
        ),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Return when the workers are started.")] = False,
    join: Annotated[
        Path | None, typer.Option(parser=given_path, metavar="RUNS", help="Be a worker on a planned bench.")
    ] = None,
    status: Annotated[
        Path | None,
        typer.Option(
            parser=given_path, metavar="RUNS", help="Tell how a bench stands; exit code 4: unfinished."
        ),
    ] = None,
    stop: Annotated[
        Path | None,
        typer.Option(parser=given_path, metavar="RUNS", help="Ask all workers to save and to end."),
    ] = None,
    cells: Annotated[
        int, typer.Option(min=1, max=64, help="With --join: cells side by side.", hidden=True)
    ] = 1,
    cold: Annotated[
        bool, typer.Option("--cold", help="With --join: a new interpreter for each cell.", hidden=True)
    ] = False,
    form: Annotated[Literal["text", "json"], typer.Option("--format", help="Of --status.")] = "text",
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
    from pugdft.cli import bench_workers

    if runs := join or status or stop:
        _refuse_others(context)
        with _usable(runs):
            if join is not None:
                raise typer.Exit(bench_workers.join(join, cells, not cold, retry))
            raise typer.Exit(bench_workers.show(status, form) if status else bench_workers.stop(runs))
    from rich.console import Console

    from pugdft.bench.cell import cell_status
    from pugdft.bench.executors import parse_executor
    from pugdft.bench.grid import build_matrix, plan_cells
    from pugdft.bench.worker import USER_MISTAKE, prepare_output
    from pugdft.cli.bench_view import LiveView, PlainView, precision_notes, print_plan
    from pugdft.cli.leaderboard import show

    matrix = build_matrix(arguments or [], optimizers, seeds, budget.value if budget else None)
    wanted = parse_executor(executor or matrix.executor, detach)
    planned = plan_cells(matrix, output, num_processes)
    if plan:
        from pugdft.bench.estimate import estimate, probe
        from pugdft.leaderboard.across.planning import plan_lines
        from pugdft.training.launchers import check_first_task

        check_first_task("pugdft bench --plan")
        made = estimate(planned, output, probe)
        causes: dict[str, dict[str, None]] = {}  # each with the recipes that it stops, in their order
        for line in made.lines:
            if line.problem:
                causes.setdefault(line.problem, {})[line.source] = None
        if len({source for sources in causes.values() for source in sources}) < len(matrix.recipes):
            tasks = {(cell.recipe.data.name, cell.recipe.model.name) for cell in planned}
            notes = precision_notes(planned) + plan_lines(
                tasks, made.num_seeds, made.num_pairs, made.spreads.seeds[1]
            )
            print_plan(made, Console(highlight=False, soft_wrap=True), notes)
        if causes:
            raise UserError("\n".join(f"{', '.join(sources)}: {cause}" for cause, sources in causes.items()))
        return
    prepare_output(output)
    for note in precision_notes(planned):
        say(note)
    console = Console(stderr=True, highlight=False)
    with (
        LiveView(planned, console)
        if console.is_terminal
        else nullcontext(PlainView(planned, console)) as view,
        _usable(output),
    ):
        code = bench_workers.run(planned, output, wanted, view, retry)
    if detach:
        raise typer.Exit(code)
    if code == USER_MISTAKE:
        raise typer.Exit(code)  # the cell has printed the message
    left = [(cell, state) for cell in planned if (state := cell_status(cell)) != "completed"]
    if code == 0 and any(cell.folder.is_dir() for cell in planned):
        try:
            show([cell.folder for cell in planned if cell.folder.is_dir()])
        except UserError as error:
            if not left:
                raise
            say(f"pugdft: {error}")
    for cell, state in left:
        say(f"incomplete: {cell.optimizer} seed {cell.seed}: {state} ({cell.folder})")
    raise typer.Exit(code or (4 if left else 0))
