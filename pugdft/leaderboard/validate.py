"""``leaderboard check``: a record's required facts, rules, parts that must agree, and the files beside it.

A record may have been written by anybody: no value's type is relied on that the schema does not state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from pugdft.config.load import load_recipe
from pugdft.config.schema import Recipe
from pugdft.errors import ConfigIssue, FaultsError, UserError, printable
from pugdft.leaderboard.load import read_checked, record_files
from pugdft.paths import file_inside, file_sha256
from pugdft.predictions import Predictions, labels_sha256, read_predictions
from pugdft.records import (
    FRACTION,
    NOT_NEGATIVE,
    RunRecord,
    SplitMetrics,
    between,
    is_number,
    rule_faults,
)

_SPLITS = {"predictions": "test", "predictions_validation": "validation"}

# What a row of the history counts from the start of the run.
_TOTALS = ("epoch", "steps", "gradient_passes", "train_seconds")

# Counts over a split and means of them: equal but for the last digits.
_SAME = 1e-9
# A record rounds times to milliseconds and speeds to hundredths.
_ROUNDING_SECONDS, _ROUNDING_SPEED = 0.01, 0.05
# Clocks are read to the second, and may be set while a run goes on.
_CLOCK_SECONDS = 5.0
# The record's metrics are float64 of the same arrays.
_TOLERANCE = 1e-6
# Confidence and loss are two roundings of one softmax to float32.
_LOSS_TOLERANCE = 1e-3


def record_faults(record: RunRecord) -> Iterator[ConfigIssue]:
    """Everything in a record that is missing, impossible, or at odds with the rest of it."""
    yield from rule_faults(record)
    recipe = None
    try:
        recipe = load_recipe(record.recipe)
    except FaultsError as error:
        yield from (ConfigIssue(f"recipe.{fault.where}", fault.message) for fault in error.faults)
    except (UserError, TypeError, ValueError, RecursionError) as error:
        yield ConfigIssue("recipe", f"is not readable: {error}")
    yield from _required(record, recipe)
    if recipe:
        if recipe.tuning and not recipe.tuning.trials and recipe.tuning.gradient_passes:
            yield ConfigIssue(
                "recipe.tuning.trials", f"0, with {recipe.tuning.gradient_passes:g} gradient passes"
            )
        if record.seed != recipe.train.seed:
            yield ConfigIssue("seed", f"{record.seed}, where the recipe has train.seed {recipe.train.seed}")
        if record.model and record.model.name != recipe.model.name:
            yield ConfigIssue("model.name", f"{record.model.name}, where the recipe has {recipe.model.name}")
    yield from _metrics(record)
    yield from _history(record)
    yield from _cost(record)
    if recipe:
        yield from _speed_and_length(record, recipe)
    yield from _times(record)


def _required(record: RunRecord, recipe: Recipe | None) -> Iterator[ConfigIssue]:
    """What a completed run must have."""
    if record.status != "completed":
        return
    is_search = recipe is not None and recipe.train.evaluate != "all"
    split, artifact = ("validation", "predictions_validation") if is_search else ("test", "predictions")
    present = {
        "data": record.data,
        "model": record.model,
        f"metrics.{split}": getattr(record.metrics, split, None),
        "history": record.history,
        f"artifacts.{artifact}": record.artifacts.get(artifact),
    }
    yield from (ConfigIssue(where, "is missing") for where, value in present.items() if not value)


def _metrics(record: RunRecord) -> Iterator[ConfigIssue]:
    last = record.history[-1] if record.history else {}
    for split in ("test", "validation"):
        metrics: SplitMetrics | None = getattr(record.metrics, split, None)
        if metrics is None:
            continue
        where = f"metrics.{split}"
        # A run that diverged may well have ended without a finite loss, and so without a calibration error.
        if math.isfinite(metrics.loss):
            yield from FRACTION.faults(f"{where}.ece", metrics.ece)
        if record.status == "completed" or math.isfinite(metrics.loss):
            yield from NOT_NEGATIVE.faults(f"{where}.loss", metrics.loss)
        if metrics.top5 < metrics.top1 - _SAME:
            yield ConfigIssue(f"{where}.top5", f"{metrics.top5} is less than top1, {metrics.top1}")
        for name in ("top1", "loss"):
            value, final = last.get(f"{split}_{name}"), getattr(metrics, name)
            if is_number(value) and not _is_close(value, final):
                yield ConfigIssue(f"{where}.{name}", f"{final}, where the last epoch of history has {value}")
    if not (record.metrics and record.metrics.test and record.metrics.best_test):
        return
    test, best = record.metrics.test, record.metrics.best_test
    if best.top1 < test.top1 - _SAME:
        yield ConfigIssue("metrics.best_test.top1", f"{best.top1} is less than the last epoch's, {test.top1}")
    rows = [row for row in record.history if is_number(row.get("test_top1"))]
    highest = max(rows, key=lambda row: row["test_top1"], default=None)
    if highest and not (_is_close(highest["test_top1"], best.top1) and highest.get("epoch") == best.epoch):
        yield ConfigIssue(
            "metrics.best_test",
            f"{best.top1} in epoch {best.epoch}, where history has {highest['test_top1']} in epoch "
            f"{highest.get('epoch')}",
        )


def _history(record: RunRecord) -> Iterator[ConfigIssue]:
    """Every row possible; epochs rise; what is counted from the start never falls."""
    before: Mapping[str, Any] = {"epoch": 0}
    for number, row in enumerate(record.history):
        where = f"history.{number}"
        for key, value in row.items():
            # A loss may overflow in one evaluation; a run goes on all the same.
            may_overflow = key.endswith("_loss") and isinstance(value, float) and not math.isfinite(value)
            if key.endswith("_top1"):
                yield from FRACTION.faults(f"{where}.{key}", value)
            elif (key in _TOTALS or key == "lr" or key.endswith("_loss")) and not may_overflow:
                yield from NOT_NEGATIVE.faults(f"{where}.{key}", value)
        for key in _TOTALS:
            earlier, now = before.get(key), row.get(key)
            if not (is_number(earlier) and is_number(now)):
                continue
            if now < earlier or (key == "epoch" and now == earlier):
                yield ConfigIssue(f"{where}.{key}", f"{now} does not come after {earlier}")
        yield from _passes(where, row.get("steps"), row.get("gradient_passes"), record)
        if not is_number(row.get("epoch")):
            yield ConfigIssue(f"{where}.epoch", "is missing")
        before = row


def _passes(where: str, steps: Any, passes: Any, record: RunRecord) -> Iterator[ConfigIssue]:
    """An update takes one gradient pass, and as many more as the method has ascents."""
    if is_number(steps) and is_number(passes):
        most = steps * (1 + _num_ascents(record.recipe.get("optimizer")))
        if not steps <= passes <= most:
            yield ConfigIssue(
                f"{where}.gradient_passes", f"{passes:g}, but {steps} updates take {steps} to {most}"
            )


def _cost(record: RunRecord) -> Iterator[ConfigIssue]:
    cost, last = record.cost, record.history[-1] if record.history else {}
    yield from _passes("cost", cost.steps, cost.gradient_passes, record)
    is_completed = record.status == "completed"
    for key, slack in (("steps", 0.0), ("gradient_passes", 0.0), ("train_seconds", _ROUNDING_SECONDS)):
        value, total = last.get(key), getattr(cost, key)
        if is_number(value) and (value > total + slack or (is_completed and value < total - slack)):
            yield ConfigIssue(f"cost.{key}", f"{total:g}, where the last epoch of history has {value:g}")
    yield from between(0, max(0, cost.steps)).faults("method.skipped_steps", record.method.skipped_steps)


def _speed_and_length(record: RunRecord, recipe: Recipe) -> Iterator[ConfigIssue]:
    """A completed run is as long as its recipe says, and no other run is."""
    cost, train = record.cost, recipe.train
    if cost.train_seconds > 0 and cost.images_per_second > 0:
        speed = cost.steps * train.batch_size / cost.train_seconds
        if not math.isclose(cost.images_per_second, speed, rel_tol=_ROUNDING_SPEED, abs_tol=_ROUNDING_SPEED):
            yield ConfigIssue(
                "cost.images_per_second",
                f"{cost.images_per_second:g}, where updates, batch size and time give {speed:.4g}",
            )
    if not (record.data and record.data.sizes.get("train")):
        return
    per_epoch = record.data.sizes["train"] // train.batch_size
    length = min(train.epochs * per_epoch, train.max_steps or train.epochs * per_epoch)
    in_passes = train.budget == "passes"
    spent = cost.gradient_passes if in_passes else cost.steps
    if record.status != "completed":
        # A bad seed must not go away by one word; a method that never acted fails at the end, and says so.
        if spent >= length and record.status in ("diverged", "interrupted") and "model" in record.artifacts:
            yield ConfigIssue(
                "status", f"{record.status}, where the run came to its end with its weights stored"
            )
        return
    # In passes, the last update may go beyond the end.
    beyond = _num_ascents(record.recipe.get("optimizer")) if in_passes else 0
    if not length <= spent <= length + beyond:
        unit = "gradient passes" if in_passes else "updates"
        yield ConfigIssue("cost", f"{spent:g} {unit}, where recipe and train split ask for {length}")
    if per_epoch and cost.epochs != cost.steps // per_epoch:
        epochs = cost.steps // per_epoch
        yield ConfigIssue("cost.epochs", f"{cost.epochs}, but {cost.steps} updates are {epochs} whole epochs")


def _times(record: RunRecord) -> Iterator[ConfigIssue]:
    moments: list[datetime] = []
    for key in ("started", "finished"):
        text = record.environment.get(key)
        try:
            moments.append(datetime.fromisoformat(str(text)))
        except ValueError:
            if text is not None or record.status == "completed":
                yield ConfigIssue(f"environment.{key}", "is no time such as 2025-01-31T12:00:00+00:00")
    if len(moments) < 2:
        return
    started, finished = moments
    if (started.utcoffset() is None) != (finished.utcoffset() is None):
        yield ConfigIssue("environment.finished", "has a time zone, or has none, unlike environment.started")
        return
    elapsed = (finished - started).total_seconds()
    worked = record.cost.train_seconds + record.cost.eval_seconds
    if elapsed < 0:
        yield ConfigIssue("environment.finished", "is before environment.started")
    elif worked > elapsed + _CLOCK_SECONDS:
        yield ConfigIssue(
            "cost", f"{worked:.0f} s of work in the {elapsed:.0f} s from environment.started to finished"
        )


def _num_ascents(optimizer: Any) -> int:
    """The most perturbed passes of an update: one, or what the method's ascent option says."""
    found = [1]
    for key, value in optimizer.items() if isinstance(optimizer, Mapping) else ():
        if key in ("inner_iter", "num_ascents") and isinstance(value, int):
            found.append(value)
        found.append(_num_ascents(value))
    return max(found)


def _is_close(first: float, second: float) -> bool:
    return math.isclose(first, second, rel_tol=_SAME, abs_tol=_SAME)


@dataclass
class CheckedRecord:
    """What is wrong with one file.

    Attributes:
        record: None if it cannot be read.
        faults: empty for a good record.
        remarks: what a reader should know all the same.
        labels_sha256: of the test split's labels in their order; None if they cannot be had.
    """

    path: Path
    record: RunRecord | None = None
    faults: list[ConfigIssue] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    labels_sha256: str | None = None

    def lines(self) -> list[str]:
        """``FILE: OK``, or ``FILE: where: what`` for each fault; fit for a terminal."""
        if self.faults:
            return [printable(f"{self.path}: {fault}") for fault in self.faults]
        return [printable("; ".join([f"{self.path}: OK", *self.remarks]))]


def _check_artifact(checked: CheckedRecord, record: RunRecord, name: str) -> Iterator[ConfigIssue]:
    """Compare a file beside the record with its digest, and predictions with the record's metrics."""
    where, artifact = f"artifacts.{name}", record.artifacts[name]
    try:
        file = _artifact_file(checked.path.parent, artifact.path)
        digest = file_sha256(file) if file else None
    except OSError as error:
        yield ConfigIssue(where, f"{artifact.path} cannot be read: {error.strerror}")
        return
    except UserError as error:
        yield ConfigIssue(where, str(error))
        return
    if digest is not None and digest != artifact.sha256:
        yield ConfigIssue(f"{where}.sha256", f"is not that of {artifact.path}")
    if file is None and name == "model":
        checked.remarks.append("weights not stored here: `pugdft verify` cannot re-evaluate")
    if name in _SPLITS and file is None:
        yield ConfigIssue(where, f"{artifact.path} is not there")
    elif name in _SPLITS and file is not None:
        yield from _prediction_faults(checked, record, name, file)


def _artifact_file(folder: Path, name: str) -> Path | None:
    """The file that a record names; in a record from others the path must be plain as well.

    Raises:
        UserError: it is not, or leads out of the folder.
    """
    if not name or not name.isprintable() or "\\" in name:
        raise UserError("its path is no file's name")
    if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
        raise UserError(f"{name} leads out of the record's folder")
    return file_inside(folder, name)


def _prediction_faults(
    checked: CheckedRecord, record: RunRecord, name: str, file: Path
) -> Iterator[ConfigIssue]:
    """The record's metrics of a split against those of its predictions."""
    where, split = f"artifacts.{name}", _SPLITS[name]
    recorded: SplitMetrics | None = getattr(record.metrics, split, None)
    if record.data is None or split not in record.data.sizes or recorded is None:
        yield ConfigIssue(where, f"is there, but the record lacks data.sizes.{split} or metrics.{split}")
        return
    try:
        predictions = read_predictions(file, record.data.sizes[split], exact=True)
    except UserError as error:
        yield ConfigIssue(where, f"{file.name}: {error}")
        return
    if split == "test":
        checked.labels_sha256 = labels_sha256(predictions.label)
    if contents := list(_content_faults(predictions, record.data.classes)):
        yield from (ConfigIssue(where, f"{file.name}: {fault}") for fault in contents)
        return
    computed = predictions.metrics()
    for metric in SplitMetrics.model_fields:
        ours, theirs = getattr(computed, metric), getattr(recorded, metric)
        if not abs(ours - theirs) <= _TOLERANCE:
            yield ConfigIssue(f"metrics.{split}.{metric}", f"{theirs}, but {file.name} gives {ours:.8g}")


def _content_faults(predictions: Predictions, classes: int) -> Iterator[str]:
    """Values that no evaluation gives."""
    for name in ("label", "prediction"):
        values = getattr(predictions, name)
        if values.min() < 0 or values.max() >= classes:
            yield f"{name} must lie in 0 to {classes - 1}"
    confidence = predictions.confidence.astype(np.float64)
    loss = predictions.loss.astype(np.float64)
    if not ((confidence > 0) & (confidence <= 1 + 1e-5)).all():
        yield "confidence must be above 0 and at most 1"
        return
    if not (np.isfinite(loss) & (loss >= -1e-6)).all():
        yield "loss must be finite and not negative"
        return
    is_right = predictions.label == predictions.prediction
    if (is_right & ~predictions.in_top5).any():
        yield "in_top5 is false for images that are predicted right"
    # The loss is -log p of the true class: the confidence itself where it is predicted, else no more of it.
    surprise = -np.log(confidence)
    at_odds = np.where(is_right, np.abs(loss - surprise), surprise - loss) > _LOSS_TOLERANCE * (1 + surprise)
    if at_odds.any():
        yield f"loss and confidence of {int(at_odds.sum()):,} images do not go together"


def check_records(paths: Sequence[Path], note: Callable[[str], None]) -> list[CheckedRecord]:
    """Check every record below ``paths``, in the order of the search.

    Args:
        paths: record files, or folders searched for ``record.yaml``.
        note: called for folders without a record.

    Raises:
        UserError: a path does not exist, or there is no record at all.
    """
    problems: list[str] = []
    checked = [_check(file) for file in record_files(paths, problems.append, note)]
    _compare_records(checked)
    for problem in problems:
        file, _, message = problem.removeprefix("left out: ").rpartition(": ")
        checked.append(CheckedRecord(Path(file), faults=[ConfigIssue("", message)]))
    if not checked:
        raise UserError(f"no run record in {', '.join(map(str, paths))}")
    return checked


def _check(file: Path) -> CheckedRecord:
    try:
        record = read_checked(file)
    except UserError as error:
        return CheckedRecord(file, faults=[ConfigIssue("", str(error).removeprefix(f"{file}: "))])
    checked = CheckedRecord(file, record, list(record_faults(record)))
    for name in record.artifacts:
        checked.faults += _check_artifact(checked, record, name)
    return checked


def _compare_records(checked: Sequence[CheckedRecord]) -> None:
    """Add the faults that only several records show: one id twice, other labels of the same images."""
    ids: dict[str, tuple[Path, str]] = {}
    labels: dict[str, tuple[Path, str]] = {}
    for each in checked:
        if each.record is None:
            continue
        text = each.record.to_yaml()
        path, first = ids.setdefault(each.record.id, (each.path, text))
        if first != text:
            each.faults.append(ConfigIssue("id", f"stands in {path} too, with other contents"))
        if each.record.data is None or each.labels_sha256 is None:
            continue
        path, first = labels.setdefault(each.record.data.sha256, (each.path, each.labels_sha256))
        if first != each.labels_sha256:
            message = f"other labels than {path}, on the same data.sha256"
            each.faults.append(ConfigIssue("artifacts.predictions", message))
