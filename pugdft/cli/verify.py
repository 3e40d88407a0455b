"""``pugdft verify`` evaluates a run's stored weights again, ``pugdft rerun`` runs its recipe again."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pugdft.cli.leaderboard import GATE_DID_NOT_HOLD
from pugdft.cli.output import given_path
from pugdft.errors import ConfigIssue, UserError, collect, printable
from pugdft.machine import share_cores
from pugdft.training.launchers import check_variables

if TYPE_CHECKING:
    from pugdft.records import StoredRun
    from pugdft.reproduce import ValueCheck

Data = Annotated[
    str | None,
    typer.Option(metavar="DATA", help="Where the data lies here.", show_default="as in the recipe"),
]
Tolerant = Annotated[
    bool, typer.Option("--tolerant", help="Allow for rounding even with the record's versions and device.")
]


def verify_command(
    records: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Runs' folders or records.", show_default=False)
    ],
    data: Data = None,
    tolerant: Tolerant = False,
) -> None:
    """Evaluate runs' stored weights again and compare.

    The results are compared with what the records say.

    Bit for bit if versions and device are the record's, else up to rounding; the output says which, and
    what is allowed. Exit code 0 if all agree, 3 if not, 2 if something cannot be read.

    Examples:
      pugdft verify runs/*
      pugdft verify runs/ID --data /path/to/images --tolerant
    """
    from pugdft.cli.progress import ProgressLog

    share_cores()
    from pugdft.reproduce import verify

    agree: list[bool] = []
    faults: list[ConfigIssue] = []
    for path in records:
        with collect(faults):
            found = verify(path, data, tolerant=tolerant, observer=ProgressLog())
            _print_checks(found.run, "", found.notes, found.checks, "ok")
            agree.append(_print_verdict(found.agrees))
    if faults:
        raise UserError("\n".join(map(str, faults)))
    raise typer.Exit(0 if all(agree) else GATE_DID_NOT_HOLD)


def rerun_command(
    record: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run's folder or record.", show_default=False)
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            parser=given_path, metavar="PATH", help="The new run's folder.", show_default="reruns/ID"
        ),
    ] = None,
    num_processes: Annotated[
        int | None, typer.Option(min=1, help="Processes to start, such as one a GPU.", show_default="1")
    ] = None,
    data: Data = None,
    tolerant: Tolerant = False,
    no_resume: Annotated[bool, typer.Option("--no-resume", help="Start anew.")] = False,
    only_run: Annotated[bool, typer.Option("--only-run", hidden=True)] = False,
) -> None:
    """Run a record's recipe again and compare both runs.

    The new run has a folder of its own.

    On a CPU with the record's versions the results must be identical, elsewhere the top-1 may differ as
    chance makes it. Prints the comparison and the new record's path; the same command goes on with an
    interrupted rerun. Exit code 0 if the record holds, 3 if not.

    Examples:
      pugdft rerun runs/ID
      pugdft rerun theirs/record.yaml --data /path/to/images --output again
    """
    check_variables()
    from pugdft.cli.launch import is_main_process, launch
    from pugdft.cli.progress import ProgressLog
    from pugdft.records import open_run

    share_cores()
    from pugdft.reproduce import compare_runs, rerun, rerun_folder, rerun_recipe

    old = open_run(record)
    folder = rerun_folder(old, output)
    rerun_recipe(old, data)  # a mistake is said before processes start
    if num_processes is not None and num_processes > 1:
        # They only run: one that ended with the verdict as its exit code would take the others down.
        words = ["rerun", str(record), "--output", str(folder), "--only-run"]
        words += ["--data", data] if data is not None else []
        if code := launch(num_processes, words + (["--no-resume"] if no_resume else [])):
            raise typer.Exit(code)
        new = open_run(folder)
    else:
        observer = ProgressLog() if is_main_process() else None
        new = rerun(old, folder, data, resume=not no_resume, observer=observer)
        if new.record.status == "interrupted":
            if is_main_process():
                typer.echo(str(new.path))
            raise typer.Exit(143 if "signal 15" in (new.record.error or "") else 130)
        if only_run or not is_main_process():
            raise typer.Exit
    status = new.record.status
    if status in ("oom", "failed") and status != old.record.status:
        print(f"pugdft: the run ended as {status}: {new.record.error}", file=sys.stderr)
        code = 1
    else:
        comparison = compare_runs(old, new, tolerant=tolerant)
        _print_checks(old, ", run again", [], comparison.checks, "same")
        code = 0 if _print_verdict(comparison.agrees, f": {comparison.verdict}") else GATE_DID_NOT_HOLD
    typer.echo(str(new.path))
    raise typer.Exit(code)


def _print_verdict(agrees: bool, why: str = "") -> bool:
    typer.echo(f"  the record {'holds' if agrees else 'does not hold'}{printable(why)}")
    return agrees


def _print_checks(
    run: StoredRun, what: str, notes: Sequence[str], checks: Sequence[ValueCheck], agreement: str
) -> None:
    """Print a run, notes, and for each check whether it agrees, and the values."""
    typer.echo(printable(f"{run.path}: {run.record.id}{what}"))
    for note in notes:
        typer.echo(f"  {printable(note)}")
    width = max(len(check.name) for check in checks)
    for check in checks:
        word = "" if check.agrees is None else agreement if check.agrees else "differs"
        typer.echo(f"  {check.name:<{width}}  {word:<7}  {printable(check.detail)}")
