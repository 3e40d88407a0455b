"""Runs as objects: train one, open those that lie in folders, and compare two optimizers.

``import pugdft`` offers all of it under short names and imports it when it is first used.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pugdft.config.schema import Recipe
from pugdft.errors import RunFailed, UserError
from pugdft.records import StoredRun, open_run

if TYPE_CHECKING:
    import pandas
    from torch import nn

    from pugdft.leaderboard.compare import Report
    from pugdft.predictions import Predictions


class LoadedRun(StoredRun):
    """A run that lies in a folder: ``record`` is what it says of itself, ``path`` where that stands."""

    @property
    def folder(self) -> Path:
        """The folder of the record."""
        return self.path.parent

    def model(self) -> nn.Module:
        """Return the trained network on the CPU, in evaluation mode.

        It takes images of shape (batch, 3, image_size, image_size), normalised by the backbone's mean and
        standard deviation, and gives logits of shape (batch, classes) in the order of
        ``record.data.class_names``. No pretrained weights are fetched: all tensors are the run's own.

        Raises:
            UserError: the run stored no weights, or they do not fit the model that its recipe names.
        """
        from pugdft.inference.load import load_model

        return load_model(self.folder).model.cpu()

    def predictions(self, split: Literal["test", "validation"] = "test") -> Predictions:
        """Return the stored predictions of a split: arrays with one entry an image, in the split's order.

        Raises:
            UserError: the run stored none of this split, or the file is not what the record says.
        """
        from pugdft.predictions import stored_predictions

        sizes = self.record.data.sizes if self.record.data else {}
        found = stored_predictions(self, split, sizes.get(split, 0))
        if found is None:
            raise UserError(f"{self.path}: stores no predictions of a {split} split")
        return found

    def row(self) -> dict[str, Any]:
        """Return the run as one flat row: what ran, its metrics as fractions, and its cost."""
        record = self.record
        optimizer, base = record.recipe["optimizer"], record.recipe["optimizer"].get("base", {})
        facts: dict[str, Any] = {
            "id": record.id,
            "status": record.status,
            "model": record.model_label,
            "data": record.data.name if record.data else record.recipe["data"]["name"],
            "optimizer": optimizer["name"],
            "base": base.get("name", ""),
            "rho": optimizer.get("rho"),
            "lr": base.get("lr", optimizer.get("lr")),
            "seed": record.seed,
        }
        for split in ("test", "validation"):
            metrics = getattr(record.metrics, split, None) if record.metrics else None
            values = metrics.model_dump() if metrics else {}
            facts |= {f"{split}_{key}": value for key, value in values.items()}
        return facts | record.cost.model_dump() | {"path": str(self.path)}

    def _repr_html_(self) -> str:
        from html import escape

        cells = "".join(
            f"<tr><th>{escape(str(key))}</th><td>{escape(str(value))}</td></tr>"
            for key, value in self.row().items()
        )
        return f"<table>{cells}</table>"


@dataclass(frozen=True)
class RunList(Sequence[LoadedRun]):
    """Runs in the order of the search; ``messages`` name the files that were left out, and why."""

    runs: tuple[LoadedRun, ...]
    messages: tuple[str, ...] = ()

    def __getitem__(self, index: Any) -> Any:
        return RunList(self.runs[index]) if isinstance(index, slice) else self.runs[index]

    def __len__(self) -> int:
        return len(self.runs)

    def __iter__(self) -> Iterator[LoadedRun]:
        return iter(self.runs)

    def to_pandas(self) -> pandas.DataFrame:
        """Return a table with one row a run; see ``LoadedRun.row`` for its columns.

        Raises:
            UserError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise UserError("to_pandas needs pandas: pip install 'pugdft[pandas]'") from None
        return pandas.DataFrame([run.row() for run in self.runs])


def load_run(path: str | Path) -> LoadedRun:
    """Open one run by its folder or its ``record.yaml``.

    Only the record is read. Nothing that it names is imported, and its files are those of its own folder.

    Raises:
        UserError: there is no record, or it cannot be read.
    """
    found = open_run(Path(path))
    return LoadedRun(found.record, found.path)


def load_runs(*paths: str | Path) -> RunList:
    """Open every run below some folders (``runs`` by default), each once.

    Raises:
        UserError: a path does not exist, or two different records have one id.
    """
    from pugdft.leaderboard.load import collect

    found = collect([Path(path) for path in paths or ("runs",)])
    return RunList(
        tuple(LoadedRun(run.record, run.path) for run in found.records), found.left_out + found.notes
    )


def load_recipe(source: str | Path | Mapping[str, Any], *overrides: str) -> Recipe:
    """Read a recipe and check all of it; every default is written out.

    Args:
        source: a file, a bundled recipe's name, or a mapping of sections.
        overrides: ``KEY=VALUE`` texts as on the command line, such as ``"optimizer.rho=0.1"``.

    Raises:
        UserError: the file cannot be read; every fault of the recipe and the overrides.
    """
    from pugdft.training.run import read_recipe

    return read_recipe(source, overrides)


def finetune(
    recipe: Recipe | str | Path | Mapping[str, Any],
    *overrides: str,
    output: str | Path | None = None,
    resume: bool = True,
    progress: bool = True,
    track: Sequence[str] = (),
) -> LoadedRun:
    """Fine-tune as a recipe says, in this process; the same call continues an interrupted run.

    Args:
        recipe: from ``load_recipe``, or what that takes.
        overrides: ``KEY=VALUE`` texts.
        output: the run's folder; by default ``runs/ID``.
        resume: False starts anew.
        progress: show a live line with loss, accuracy, speed and time left, in a notebook too.
        track: trackers that get the run's numbers, such as ``["tensorboard"]``.

    Returns:
        The run, whose ``record.status`` is ``completed`` or ``interrupted``.

    Raises:
        UserError: the recipe, the data, the weights or the folder cannot be used.
        RunFailed: the run diverged, or memory did not suffice; its record is written.
    """
    from pugdft.cli.progress import ProgressLog
    from pugdft.training import run as training

    resolved = recipe
    if not isinstance(recipe, Recipe):
        resolved = load_recipe(recipe, *overrides)
    elif overrides:
        resolved = load_recipe(recipe.as_dict(), *overrides)
    assert isinstance(resolved, Recipe)
    observer = ProgressLog() if progress else None
    record, path = training.finetune(resolved, output, resume=resume, observer=observer, track=track)
    if record.status not in ("completed", "interrupted"):
        raise RunFailed(f"the run ended as {record.status}: {record.error}")
    return LoadedRun(record, path)


@dataclass(frozen=True)
class Comparison:
    """How much better optimizer A is than B: ``str()`` is the text of ``pugdft compare``."""

    report: Report

    @property
    def facts(self) -> dict[str, Any]:
        """The numbers, as ``pugdft compare --format json`` has them."""
        import json

        from pugdft.leaderboard.compare import as_json

        return dict(json.loads(as_json(self.report)))

    def __str__(self) -> str:
        from pugdft.leaderboard.verdicts import comparison_text

        return comparison_text(self.report)

    __repr__ = __str__


def compare(
    first: str | Path,
    second: str | Path,
    *records: str | Path,
    metric: str = "top1",
    margin: float | None = None,
    dataset: str | None = None,
    model: str | None = None,
) -> Comparison:
    """Compare two optimizers over equal seeds and the same test images.

    Args:
        first: a record, a folder with one optimizer's runs, or its label, such as ``sam[rho=0.1]``.
        second: likewise.
        records: where labels are looked up; by default ``runs``.
        metric: top1, top5, loss, ece, …: the keys of ``pugdft.predictions.METRICS``.
        margin: with it, a gate: whether ``first`` is shown to be worse by less than this fraction.
        dataset: only this data set.
        model: only this model.

    Raises:
        UserError: no such runs, or they did not run under one protocol.
    """
    from pugdft.errors import unknown
    from pugdft.leaderboard.compare import compare_selections, find_selections
    from pugdft.predictions import METRICS

    if metric not in METRICS:
        raise UserError(unknown("metric", metric, METRICS))
    places = [Path(path) for path in records or ("runs",)]
    one, two = find_selections(
        str(first), str(second), places, dataset, model, lambda line: print(line, file=sys.stderr)
    )
    return Comparison(compare_selections(one, two, metric, margin))
