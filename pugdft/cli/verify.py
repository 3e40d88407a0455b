"""``pugdft verify`` evaluates a run's stored weights again, ``pugdft rerun`` runs its recipe again."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from pugdft.cli.output import given_path
from pugdft.errors import UserError, printable

if TYPE_CHECKING:
    from pugdft.records import StoredRun
    from pugdft.reproduce import ValueCheck

GATE_DID_NOT_HOLD = 3

Data = Annotated[
    str | None,
    typer.Option(metavar="NAME_OR_FOLDER", help="Where the data lies here.", show_default="as in the recipe"),
]
Tolerant = Annotated[
    bool, typer.Option("--tolerant", help="Allow for rounding even with the record's versions and device.")
]


def verify_command(
    records: Annotated[
        list[Path], typer.Argument(metavar="RECORD …", help="Records or runs' folders.", show_default=False)
    ],
    data: Data = None,
    tolerant: Tolerant = False,
) -> None:
    """Evaluate the stored weights of runs again and compare with what their records say.

    Bit for bit if versions and device are the record's, else up to rounding; the output says which, and
    what is allowed. Exit code 0 if all agree, 3 if not, 2 if something cannot be read.
    """
    from pugdft.cli.progress import ProgressLog
    from pugdft.reproduce import verify

    agree, unreadable = [], []
    for path in records:
        try:
            verification = verify(path, data, tolerant=tolerant, observer=ProgressLog())
        except UserError as error:
            unreadable.append(str(error))
            continue
        typer.echo(printable(f"{verification.run.path}: {verification.run.record.id}"))
        for note in verification.notes:
            typer.echo(f"  {printable(note)}")
        _print_checks(verification.checks, "ok")
        typer.echo("  the record holds" if verification.agrees else "  the record does not hold")
        sys.stdout.flush()
        agree.append(verification.agrees)
    if unreadable:
        raise UserError("\n".join(unreadable))
    raise typer.Exit(0 if all(agree) else GATE_DID_NOT_HOLD)


def rerun_command(
    record: Annotated[
        Path, typer.Argument(metavar="RECORD", help="A record or a run's folder.", show_default=False)
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
    """Run a record's recipe again in a new folder and compare both runs.

    On a CPU with the record's versions the results must be identical, elsewhere the top-1 may differ as
    chance makes it. Prints the comparison and the new record's path; the same command goes on with an
    interrupted rerun. Exit code 0 if the record holds, 3 if not.
    """
    from pugdft.cli.launch import is_main_process, launch
    from pugdft.reproduce import open_run, rerun, rerun_folder, rerun_recipe

    old = open_run(record)
    folder = rerun_folder(old, output)
    rerun_recipe(old, data)  # a mistake is said before processes start
    if num_processes is not None and num_processes > 1:
        # They only run: one that ended with the verdict as its exit code would take the others down.
        options = ["--output", str(folder), "--only-run"]
        options += ["--data", data] if data is not None else []
        options += ["--no-resume"] if no_resume else []
        if code := launch(num_processes, ["rerun", str(record), *options]):
            raise typer.Exit(code)
        new = open_run(folder)
    else:
        from pugdft.cli.progress import ProgressLog
        from pugdft.training.trainer import Observer

        is_main = is_main_process()
        new = rerun(
            old, folder, data, resume=not no_resume, observer=ProgressLog() if is_main else Observer()
        )
        if new.record.status == "interrupted":
            code = 143 if "signal 15" in (new.record.error or "") else 130
            _end(new.path if is_main else None, code)
        if only_run or not is_main:
            raise typer.Exit
    _conclude(old, new, tolerant)


def _conclude(old: StoredRun, new: StoredRun, tolerant: bool) -> NoReturn:
    """Compare both runs, print the result and exit."""
    from pugdft.reproduce import compare_runs

    status = new.record.status
    if status in ("oom", "failed") and status != old.record.status:
        print(f"pugdft: the run ended as {status}: {new.record.error}", file=sys.stderr)
        _end(new.path, 1)
    comparison = compare_runs(old, new, tolerant=tolerant)
    typer.echo(printable(f"{old.path}: {old.record.id}, run again"))
    _print_checks(comparison.checks, "same")
    verdict = "the record holds" if comparison.agrees else "the record does not hold"
    typer.echo(f"  {verdict}: {printable(comparison.verdict)}")
    _end(new.path, 0 if comparison.agrees else GATE_DID_NOT_HOLD)


def _print_checks(checks: Sequence[ValueCheck], agreement: str) -> None:
    """Print a line for each check: ok or same, differs, and the values."""
    width = max(len(check.name) for check in checks)
    for check in checks:
        word = "" if check.agrees is None else agreement if check.agrees else "differs"
        typer.echo(f"  {check.name:<{width}}  {word:<7}  {printable(check.detail)}")


def _end(path: Path | None, code: int) -> NoReturn:
    """Print the new record's path as the last line, and exit."""
    if path is not None:
        typer.echo(str(path))
        sys.stdout.flush()
    raise typer.Exit(code)
