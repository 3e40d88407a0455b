"""``pugdft finetune``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from pugdft.cli.launch import is_main_process, launch
from pugdft.cli.output import given_path
from pugdft.config import yaml
from pugdft.training.launchers import check_variables


def command(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A recipe's file or bundled name.", show_default=False)
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Overrides: optimizer.rho=0.1", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(parser=given_path, metavar="PATH", help="The run's folder.", show_default="runs/ID"),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Short for train.seed=N.", show_default=False)] = None,
    num_processes: Annotated[
        int | None, typer.Option(min=1, help="Processes to start, such as one a GPU.", show_default="1")
    ] = None,
    no_resume: Annotated[bool, typer.Option("--no-resume", help="Start from the beginning.")] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Measure where the time goes; write a trace to the folder.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe and stop.")] = False,
    progress: Annotated[
        Literal["text", "json"], typer.Option(help="On stderr: text for people, JSON lines for programs.")
    ] = "text",
) -> None:
    """Fine-tune a backbone as a recipe says.

    Prints the record's path. The same command continues an interrupted run.
    """
    from pugdft.config.load import find_recipe

    # These mistakes are told before torch is imported.
    find_recipe(recipe)
    if not dry_run:
        check_variables()
    from pugdft.training.run import finetune, read_recipe

    texts = list(overrides or [])
    if seed is not None:
        texts.append(f"train.seed={seed}")
    resolved = read_recipe(recipe, texts)
    if dry_run:
        typer.echo(yaml.dump(resolved.as_dict()), nl=False)
        return
    if num_processes is not None and num_processes > 1:
        options = ["--output", str(output)] if output else []
        options += ["--no-resume"] if no_resume else []
        options += ["--profile"] if profile else []
        options += ["--progress", progress]
        raise typer.Exit(launch(num_processes, ["finetune", recipe, *texts, *options]))
    from pugdft.cli.progress import JsonProgress, ProgressLog, print_summary

    is_main, is_text = is_main_process(), progress == "text"
    observer = (ProgressLog() if is_text else JsonProgress()) if is_main else None
    record, path = finetune(resolved, output, resume=not no_resume, observer=observer, profile=profile)
    if is_main:
        if is_text:
            print_summary(record)
        typer.echo(str(path))
        sys.stdout.flush()
    if record.status == "interrupted":
        raise typer.Exit(143 if "signal 15" in (record.error or "") else 130)
    if record.status != "completed":
        if is_main:
            print(f"pugdft: the run ended as {record.status}: {record.error}", file=sys.stderr)
        raise typer.Exit(1)
