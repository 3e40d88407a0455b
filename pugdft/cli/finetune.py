"""``pugdft finetune``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pugdft.cli.launch import is_main_process, launch
from pugdft.cli.output import emit, given_path, say
from pugdft.config import yaml
from pugdft.errors import ConfigIssue, FaultsError, RunFailed, UserError, collect, counted
from pugdft.machine import share_cores
from pugdft.training.launchers import check_variables


def command(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A recipe's file or bundled name.", show_default=False)
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Overrides, such as optimizer.rho=0.1.", show_default=False),
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(
            help="Instead of the recipe's, as in bench: 'sam[rho=0.1]+adamw[lr=1e-4]'.", show_default=False
        ),
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
    track: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,…",
            help="Trackers that get the run's numbers: tensorboard, wandb, mlflow, …",
            show_default=False,
        ),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show more: switches, versions, all results.")
    ] = False,
) -> None:
    """Fine-tune a backbone as a recipe says.

    Prints the record's path. The same command continues an interrupted run.

    Examples:
      pugdft finetune quickstart
      pugdft finetune resnet18_cifar10 data.name=photos --optimizer sam+adamw
    """
    from pugdft.config.load import find_recipe

    # These mistakes are told before torch is imported.
    find_recipe(recipe)
    if not dry_run:
        check_variables()
    texts = list(overrides or [])
    if seed is not None:
        texts.append(f"train.seed={seed}")
    is_main, is_text = is_main_process(), progress == "text"
    if is_main and not dry_run and "PUGDFT_LAUNCHER" not in os.environ:
        _announce(recipe, texts, is_text)
    share_cores()
    from pugdft.training.run import finetune, read_recipe
    from pugdft.training.tracking import check_trackers

    trackers = [] if track is None else list(dict.fromkeys(map(str.strip, track.split(","))))
    check_trackers(trackers)
    if optimizer is not None:
        texts.insert(0, f"optimizer={json.dumps(_spec_of(optimizer, recipe))}")
    resolved = read_recipe(recipe, texts)
    if dry_run:
        typer.echo(yaml.dump(resolved.as_dict()), nl=False)
        if resolved.train.takes_snapshots:
            from pugdft.training.snapshots import planned

            say(f"train.snapshots: {planned(resolved)}")
        return
    if num_processes is not None and num_processes > 1:
        options = ["--output", str(output)] if output else []
        options += ["--no-resume"] if no_resume else []
        options += ["--profile"] if profile else []
        options += ["--verbose"] if verbose else []
        options += ["--track", track] if track else []
        options += ["--progress", progress]
        raise SystemExit(launch(num_processes, ["finetune", recipe, *texts, *options]))
    from pugdft.cli.progress import JsonProgress, ProgressLog, print_summary

    observer = (ProgressLog if is_text else JsonProgress)(verbose) if is_main else None
    record, path = finetune(
        resolved, output, resume=not no_resume, observer=observer, profile=profile, track=trackers
    )
    if is_main:
        if not is_text:
            emit("end", status=record.status, message=record.error, record=str(path))
        elif record.status == "interrupted":
            say(str(record.error))
        else:
            print_summary(record, verbose)
        typer.echo(str(path))
        sys.stdout.flush()
    if record.status == "interrupted":
        # Not typer.Exit, whose 130 is also that of an interruption which nothing has told.
        raise SystemExit(143 if "signal 15" in (record.error or "") else 130)
    if record.status != "completed":
        raise RunFailed(f"the run ended as {record.status}: {record.error}" if is_main else "")


def _announce(recipe: str, overrides: Sequence[str], is_text: bool) -> None:
    """Say what is about to run before torch is imported, which takes seconds."""
    from pugdft.config.load import load_recipe

    try:
        # Without the optimizer, which needs torch to be read.
        given = load_recipe(recipe, [text for text in overrides if not text.startswith("optimizer")])
    except UserError:
        return  # told with all other faults, once torch is there
    if is_text:
        epochs = counted(given.train.epochs, "epoch")
        say(f"preparing {given.data.name} and {given.model.name}: {epochs}, seed {given.train.seed}")
    else:
        train = given.train
        facts = {"epochs": train.epochs, "precision": train.precision, "seed": train.seed}
        emit("start", model=given.model.name, data=given.data.name, **facts)


def _spec_of(text: str, recipe: str) -> dict[str, Any]:
    """The ``optimizer`` mapping of ``--optimizer`` in place of the recipe's."""
    from pugdft.bench.optimizer_spec import parse_optimizers
    from pugdft.training.run import read_recipe

    entries = parse_optimizers(text, "--optimizer")
    if len(entries) > 1:
        raise UserError("--optimizer: expected one optimizer; pugdft bench --optimizers compares several")
    own, faults = read_recipe(recipe).optimizer, list[ConfigIssue]()
    with collect(faults, f'"{text}"'):
        return entries[0].spec(own)
    raise FaultsError("--optimizer", faults)
