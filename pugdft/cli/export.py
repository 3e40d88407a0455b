"""``pugdft export``: a run's model for timm, ONNX or torch, and for the Hugging Face Hub."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pugdft.cli.leaderboard import GATE_DID_NOT_HOLD
from pugdft.cli.output import given_path, say
from pugdft.errors import human_bytes, printable


class ExportFormat(StrEnum):
    TIMM = "timm"
    ONNX = "onnx"
    PT2 = "pt2"


def command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder or record.", show_default=False)],
    format_: Annotated[
        ExportFormat,
        typer.Option("--format", help="timm: a repository that timm loads; onnx; pt2: torch.export's."),
    ] = ExportFormat.TIMM,
    output: Annotated[
        Path | None,
        typer.Option(
            parser=given_path, metavar="PATH", help="The new folder.", show_default="exports/ID-FORMAT"
        ),
    ] = None,
    repository: Annotated[
        str | None,
        typer.Option(
            "--push-to-hub",
            metavar="USER/NAME",
            help="Upload it to the Hugging Face Hub.",
            show_default=False,
        ),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --push-to-hub: list what would be uploaded; no upload.")
    ] = False,
) -> None:
    """Write a run's model in a form that other programs load, and compare it with the run's own.

    The folder gets the model (of any number of images at a time), a card, and the preprocessing: in
    config.json for timm, else in preprocessing.json. Prints how far the logits of 64 images are apart, and
    the folder. Exit code 3 if that is more than rounding; then nothing is uploaded.

    Examples:
      pugdft export runs/my-run
      pugdft export runs/my-run --format onnx --push-to-hub me/insects --dry-run
    """
    if repository is None and (dry_run or private):
        raise typer.BadParameter("needs --push-to-hub", param_hint="--dry-run" if dry_run else "--private")
    from pugdft.inference import export as exporting
    from pugdft.inference.load import load_model

    exporting.check_packages(format_.value)
    if repository is not None:
        exporting.check_repository(repository, needs_token=not dry_run)
    loaded = load_model(run)
    for note in loaded.notes:
        say(note)
    identity = loaded.run.record.id if loaded.run else run
    # An id may be a stranger's: nothing in it may lead elsewhere.
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", identity)[:150].lstrip(".-") or "run"
    folder = output or Path("exports") / f"{name}-{format_.value}"
    made = exporting.export(loaded, folder, format_.value, repository)
    typer.echo(
        f"compared with the run's model on {made.num_images} images: the same class for {made.num_same}, "
        f"largest difference of a logit {made.largest_difference:.2g}"
    )
    if not made.agrees:
        say(f"{folder}: this is more than rounding: the export is not the run's model")
        raise typer.Exit(GATE_DID_NOT_HOLD)
    for file in made.files:
        typer.echo(f"  {file}  {human_bytes((folder / file).stat().st_size)}")
    if repository is not None and dry_run:
        say(f"these {len(made.files)} files would be uploaded to {repository}; --dry-run uploads nothing")
    elif repository is not None:
        typer.echo(exporting.push(made, repository, private))
    typer.echo(printable(folder))
