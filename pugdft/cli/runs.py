"""``pugdft runs``: list the runs below some folders, and print one record for people."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pugdft.cli.output import duration, say
from pugdft.errors import ConfigIssue, UserError, collect, counted, human_bytes, printable, shortened

if TYPE_CHECKING:
    from pugdft.records import RunRecord

app = typer.Typer(help="List and show runs.", no_args_is_help=True, rich_markup_mode=None)

_HEADINGS = ("id", "status", "data", "model", "optimizer", "seed", "top-1", "ended", "folder")
_WIDEST = 40  # of data, model and optimizer


class RunStatus(StrEnum):
    """How runs ended, and ``unfinished``: no record yet, because it is running or was killed."""

    COMPLETED = "completed"
    DIVERGED = "diverged"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    OOM = "oom"
    UNFINISHED = "unfinished"


@app.command("ls")
def list_runs(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[PATH …]", help="Folders to search, or records.", show_default="runs"),
    ] = None,
    status: Annotated[
        RunStatus | None, typer.Option(help="Only runs that ended so.", show_default=False)
    ] = None,
) -> None:
    """List runs, the newest last: id, status, data, model, optimizer, seed, test top-1, end, folder.

    A run without a record is "unfinished": it is running, or was killed, and the same command resumes it.

    Examples:
      pugdft runs ls
      pugdft runs ls runs bench --status diverged
    """
    faults: list[ConfigIssue] = []
    rows = sorted(_rows(paths or [Path("runs")], faults), key=lambda row: row[-2])
    rows = [row for row in rows if status is None or row[1] == status.value]
    for fault in faults:
        say(f"left out: {printable(fault)}")
    if not rows:
        say("no runs" + (f" that are {status.value}" if status else ""))
        return
    widths = [max(len(row[column]) for row in (_HEADINGS, *rows)) for column in range(len(_HEADINGS))]
    for row in (_HEADINGS, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())


@app.command("show")
def show_run(
    path: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run's folder or record.", show_default=False)
    ],
) -> None:
    """Print what a record says, in sections. For programs there is the record itself, which is YAML.

    Examples:
      pugdft runs show runs/my-run
      pugdft runs show runs/my-run/record.yaml
    """
    from pugdft.records import RECORD_NAME, read_record

    file = path / RECORD_NAME if path.is_dir() else path
    if not os.path.exists(file):
        what = f"no {RECORD_NAME} here; `pugdft runs ls {path}` lists runs below it"
        raise UserError(f"{path}: {what if path.is_dir() else 'no such file or folder'}")
    record = read_record(file)
    for title, facts in _sections(record).items():
        width = max(map(len, facts), default=0)
        if facts:
            typer.echo(title)
        for name, value in facts.items():
            typer.echo(f"  {name:<{width}}  {printable(value)}")
    typer.echo(f"record: {printable(file)}")


def _rows(paths: list[Path], faults: list[ConfigIssue]) -> Iterator[tuple[str, ...]]:
    """The columns of each run below some folders, and of those that have no record yet."""
    from pugdft.leaderboard.load import record_files
    from pugdft.records import read_record, record_reader

    reader = record_reader()
    for file in record_files(paths, lambda note: None):
        with collect(faults):
            record = read_record(file, reader)
            data, model, optimizer = (_name(record.recipe.get(key)) for key in ("data", "model", "optimizer"))
            base = record.recipe.get("optimizer")
            base = _name(base.get("base")) if isinstance(base, Mapping) else ""
            test = record.metrics.test if record.metrics else None
            yield (
                _cell(record.id, 200),
                record.status,
                _cell(record.data.name if record.data else os.path.basename(data)),
                _cell(model),
                _cell(optimizer if base in ("", "sgd") else f"{optimizer}+{base}"),
                str(record.seed),
                f"{test.top1:.2%}" if test else "",
                _when(record),
                printable(file.parent),
            )
    for path in paths:
        if path.is_dir():
            for recipe in sorted(path.rglob("recipe.yaml")):
                # The lock tells a run's folder from others that hold a recipe.
                if recipe.with_name(".lock").exists() and not recipe.with_name("record.yaml").exists():
                    yield _unfinished(recipe)


def _unfinished(recipe: Path) -> tuple[str, ...]:
    """The columns of a run that has no record: what its recipe says, and when it last wrote a file."""
    from pugdft.config import yaml

    sections: Any = {}
    with suppress(UserError):  # any file may have this name
        sections = yaml.parse(yaml.read_text(recipe), str(recipe))
    sections = sections if isinstance(sections, Mapping) else {}
    data, model, optimizer = (_name(sections.get(key)) for key in ("data", "model", "optimizer"))
    train = sections.get("train")
    seed = train.get("seed", "") if isinstance(train, Mapping) else ""
    when = datetime.fromtimestamp(recipe.parent.stat().st_mtime).astimezone().strftime("%Y-%m-%d %H:%M")
    cells = (RunStatus.UNFINISHED.value, os.path.basename(data), model, optimizer, seed, "", when)
    return (_cell(recipe.parent.name, 200), *map(_cell, cells), printable(recipe.parent))


def _name(section: Any) -> str:
    return str(section.get("name", "")) if isinstance(section, Mapping) else ""


def _cell(text: object, widest: int = _WIDEST) -> str:
    return shortened(printable(text), widest)


def _when(record: RunRecord) -> str:
    """When a run ended, in local time; empty if the record does not say so."""
    with suppress(ValueError, OverflowError):
        text = str(record.environment.get("finished", ""))
        return datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M")
    return ""


def _sections(record: RunRecord) -> dict[str, dict[str, str]]:
    """A record's facts in words, by section; what it does not have is left out."""
    recipe, cost, method = record.recipe, record.cost, record.method
    sections: dict[str, dict[str, str]] = {
        "run": {"id": record.id, "status": record.status, "seed": str(record.seed), "ended": _when(record)},
        "data": {},
        "model": {},
        "recipe": _flat({key: recipe.get(key) for key in ("optimizer", "schedule", "train", "data")}),
        "results": {},
        "cost": {
            "updates": f"{cost.steps:,} ({counted(cost.epochs, 'epoch')})",
            "gradient passes": f"{cost.gradient_passes:,g}",
            "training": f"{duration(cost.train_seconds)}, {cost.images_per_second:,.0f} images/s",
            "evaluation": duration(cost.eval_seconds),
            "peak memory": human_bytes(cost.peak_memory_bytes),
        },
        "method": {"two-pass updates": f"{method.two_pass_fraction:.0%}"},
        "environment": _flat(record.environment),
        "files": {
            name: f"{each.path}  sha256 {each.sha256[:12]}"
            for name, each in record.artifacts.items()
            if name not in record.snapshots.values()
        },
    }
    if record.snapshots:
        first, *_, last = (0, *record.snapshots)
        counts = f"{counted(len(record.snapshots), 'file')}, of updates {first:,} to {last:,}"
        sections["files"]["snapshots"] = counts
    if record.error:
        sections["run"]["error"] = record.error
    if record.restarts:
        sections["run"]["resumed"] = counted(len(record.restarts), "time")
    if data := record.data:
        sizes = ", ".join(f"{size:,} {split}" for split, size in data.sizes.items())
        sections["data"] = {"name": data.name, "images": sizes, "classes": f"{data.classes:,}"}
        if data.class_names:
            sections["data"]["class names"] = shortened(", ".join(data.class_names), 200)
    if model := record.model:
        sections["model"] = {
            "name": record.model_label,
            "weights": model.pretrained_tag or "random",
            "head": model.head or "",
            "parameters": f"{model.parameters:,}",
        }
    if metrics := record.metrics:
        sections["results"]["of"] = metrics.origin
        for split in ("test", "validation", "plain_test", "plain_validation"):
            if found := getattr(metrics, split):
                shares = f"top-1 {found.top1:.2%}, top-5 {found.top5:.2%}, ECE {found.ece:.2%}"
                words = split.replace("plain_", "plain weights, ")
                sections["results"][words] = f"{shares}, loss {found.loss:.4f}"
        if best := metrics.best_test:
            chosen = f"top-1 {best.top1:.2%} in epoch {best.epoch}"
            sections["results"]["best on test"] = f"{chosen} (picked on the test split; never ranked)"
    if method.mean_perturbation_norm is not None:
        sections["method"]["mean ‖e‖"] = f"{method.mean_perturbation_norm:.4g}"
    if method.mean_gradient_cosine is not None:
        sections["method"]["mean cosine"] = f"{method.mean_gradient_cosine:.4f}"
    if method.skipped_steps:
        sections["method"]["skipped updates"] = f"{method.skipped_steps:,}"
    return sections


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values under dotted keys; what is null is left out."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif value is not None:
            flat[printable(f"{prefix}{key}")] = shortened(
                str(value).lower() if isinstance(value, bool) else value, 200
            )
    return flat
