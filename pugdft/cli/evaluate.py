"""``pugdft evaluate``: a model on labelled images."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pugdft.cli.output import given_path, say
from pugdft.cli.predict import BatchSize, ImageProgress, ModelArgument, ModelName
from pugdft.machine import share_cores

if TYPE_CHECKING:
    from pugdft.inference.evaluate import MetricEstimate, ModelEvaluation


class EvaluationFormat(StrEnum):
    """A table for people, JSON for programs."""

    TABLE = "table"
    JSON = "json"


def command(
    model: ModelArgument,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="NAME_OR_FOLDER", help="Images in class folders, or any data.", show_default="the run's"
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Split to evaluate.", show_default="test, if there is one"),
    ] = None,
    form: Annotated[
        EvaluationFormat, typer.Option("--format", help="For people, or for programs.")
    ] = EvaluationFormat.TABLE,
    output: Annotated[
        Path | None,
        typer.Option(
            parser=given_path, metavar="FILE.npz", help="Write each image's prediction.", show_default=False
        ),
    ] = None,
    skip_unknown: Annotated[
        bool, typer.Option("--skip-unknown", help="Leave out images of classes the model lacks.")
    ] = False,
    batch_size: BatchSize = None,
    model_name: ModelName = None,
) -> None:
    """Evaluate a model on labelled images, with 95 % intervals.

    Classes are matched by name. A run without --data is evaluated on its own test split.

    Examples:
      pugdft evaluate runs/my-run --data more-photos
      pugdft evaluate resnet18 --data imagenet --split val --format json
    """
    from pugdft.errors import UserError, printable, reason, refuse

    share_cores()
    from pugdft.inference.evaluate import evaluate_model
    from pugdft.inference.load import load_model

    if output is not None and (output.is_dir() or not output.absolute().parent.is_dir()):
        why = "is a folder; give a file" if output.is_dir() else "its folder does not exist"
        raise UserError(f"--output {output}: {why}")
    loaded = load_model(model, model_name)
    for note in loaded.notes:
        say(note)
    with ImageProgress(0) as progress:
        found = evaluate_model(
            loaded,
            data,
            split,
            batch_size=batch_size,
            skip_unknown=skip_unknown,
            on_message=progress.say,
            on_images=progress.of,
        )
    if output is not None:
        with refuse(OSError, lambda error: f"--output {output}: cannot be written: {reason(error)}"):
            found.predictions.write(output)
    metrics = found.metrics()
    if form is EvaluationFormat.JSON:
        typer.echo(json.dumps(_as_json(found, metrics), indent=2, ensure_ascii=False))
        return
    typer.echo(printable(f"{found.model} on {found.data}, {found.split}: {found.num_images:,} images"))
    for note in found.notes:
        typer.echo(f"  {printable(note)}")
    for line in _lines(metrics):
        typer.echo(line)


def _lines(metrics: dict[str, MetricEstimate]) -> list[str]:
    """A line for each metric: its name, value and interval."""
    from pugdft.predictions import METRICS

    lines = []
    for key, each in metrics.items():
        metric = METRICS[key]
        ends = [value for value in (each.low, each.high) if value is not None]
        value, *interval = (f"{number * metric.scale:.{metric.digits}f}" for number in (each.value, *ends))
        words = f"95 % CI {interval[0]} to {interval[1]} ({each.method})" if interval else "no interval"
        lines.append(f"  {metric.name:<6}  {value + metric.unit:>9}  {words}")
    return lines


def _as_json(found: ModelEvaluation, metrics: dict[str, MetricEstimate]) -> dict[str, object]:
    """JSON has no numbers like NaN: null."""
    values = {
        key: {name: None if isinstance(value, float) and not math.isfinite(value) else value
              for name, value in asdict(estimate).items()}
        for key, estimate in metrics.items()
    }  # fmt: skip
    return {
        "model": found.model,
        "data": found.data,
        "split": found.split,
        "images": found.num_images,
        "left_out": found.num_left_out,
        "metrics": values,
        "per_class": found.per_class(),
        "notes": found.notes,
        "device": found.device,
        "precision": found.precision,
        "seconds": round(found.seconds, 3),
    }
