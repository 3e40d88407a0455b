"""What one record can be held to by itself: required facts, possible numbers, parts that agree.

Nothing here opens a file or trusts a value's kind: a record may have been written by anybody.
"""

from __future__ import annotations

import hashlib
import math
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, TypeGuard

from pugdft.config.load import load_recipe
from pugdft.config.schema import Recipe
from pugdft.errors import Fault, FaultsError, UserError, printable
from pugdft.leaderboard.load import read_checked, record_files
from pugdft.paths import file_sha256
from pugdft.records import Artifact, BestEpoch, RunRecord, SplitMetrics

if TYPE_CHECKING:
    from pugdft.predictions import Predictions


_ID = re.compile(r"[\w.+-]+", re.ASCII)

_SHA256 = re.compile(r"[0-9a-f]{64}")

# What a row of the history counts from the start of the run.
_COSTS = ("epoch", "steps", "gradient_passes", "train_seconds")

# Counts over a split and means of them: equal but for the last digits.
_SAME = 1e-9
# A record rounds times to milliseconds and speeds to hundredths.
_ROUNDING_SECONDS = 0.01

_ROUNDING_SPEED = 0.05
# Clocks are read to the second, and may be set while a run goes on.
_CLOCK_SECONDS = 5.0


def record_faults(record: RunRecord) -> Iterator[Fault]:
    """Everything in a record that is missing, impossible, or at odds with the rest of it."""
    if not _ID.fullmatch(record.id):
        yield Fault("id", "must be of letters, digits and _ . + - alone")
    recipe = None
    try:
        recipe = load_recipe(record.recipe)
    except FaultsError as error:
        yield from (Fault(f"recipe.{fault.where}", fault.message) for fault in error.faults)
    except (UserError, TypeError, ValueError, RecursionError) as error:
        yield Fault("recipe", f"is not readable: {error}")
    if recipe and recipe.tuning and not recipe.tuning.trials and recipe.tuning.gradient_passes:
        yield Fault("recipe.tuning.trials", f"0, with {recipe.tuning.gradient_passes:g} gradient passes")
    if recipe and record.seed != recipe.train.seed:
        yield Fault("seed", f"{record.seed}, where the recipe has train.seed {recipe.train.seed}")
    yield from _facts(record, recipe)
    yield from _metrics(record)
    yield from _history(record)
    yield from _cost(record, recipe)
    yield from _method(record)
    yield from _times(record)


def _facts(record: RunRecord, recipe: Recipe | None) -> Iterator[Fault]:
    """What a completed run must say of itself, and the kinds of what any run says."""
    if record.status == "completed":
        needs_test = not recipe or recipe.train.evaluate == "all"
        split = "test" if needs_test else "validation"
        present = {
            "data": record.data,
            "model": record.model,
            f"metrics.{split}": getattr(record.metrics, split) if record.metrics else None,
            "history": record.history,
            "artifacts.predictions" + ("" if needs_test else "_validation"): record.artifacts.get(
                "predictions" if needs_test else "predictions_validation"
            ),
        }
        yield from (Fault(where, "is missing") for where, value in present.items() if not value)
    if record.data:
        yield from _digest("data.sha256", record.data.sha256)
        yield from _within("data.classes", record.data.classes, 1)
        for split, size in record.data.sizes.items():
            yield from _within(f"data.sizes.{split}", size, 1)
    if record.model:
        yield from _digest("model.weights_sha256", record.model.weights_sha256)
        yield from _within("model.parameters", record.model.parameters, 1)
        if recipe and record.model.name != recipe.model.name:
            yield Fault("model.name", f"{record.model.name}, where the recipe has {recipe.model.name}")
    for name, artifact in record.artifacts.items():
        yield from _digest(f"artifacts.{name}.sha256", artifact.sha256)


def _metrics(record: RunRecord) -> Iterator[Fault]:
    metrics = record.metrics
    if metrics is None:
        return
    for split in ("test", "validation"):
        if each := getattr(metrics, split):
            yield from _split_metrics(f"metrics.{split}", each, record.status == "completed")
    rows = [row for row in record.history if _is_number(row.get("test_top1"))]
    last = record.history[-1] if record.history else {}
    for split in ("test", "validation"):
        for name in ("top1", "loss"):
            given, final = last.get(f"{split}_{name}"), getattr(getattr(metrics, split), name, None)
            if _is_number(given) and final is not None and not _is_close(given, final):
                yield Fault(
                    f"metrics.{split}.{name}", f"{final}, where the last epoch of history has {given}"
                )
    if metrics.test and metrics.best_test:
        yield from _best_epoch(metrics.test, metrics.best_test, rows)


def _split_metrics(where: str, metrics: SplitMetrics, is_completed: bool) -> Iterator[Fault]:
    names = ("top1", "top5", "ece") if math.isfinite(metrics.loss) else ("top1", "top5")
    for name in names:
        yield from _within(f"{where}.{name}", getattr(metrics, name), 0, 1)
    # A run that diverged may well have ended without a finite loss.
    if is_completed or math.isfinite(metrics.loss):
        yield from _within(f"{where}.loss", metrics.loss, 0)
    if metrics.top5 < metrics.top1 - _SAME:
        yield Fault(f"{where}.top5", f"{metrics.top5} is less than top1, {metrics.top1}")


def _best_epoch(test: SplitMetrics, best: BestEpoch, rows: list[dict[str, Any]]) -> Iterator[Fault]:
    yield from _within("metrics.best_test.top1", best.top1, 0, 1)
    if best.top1 < test.top1 - _SAME:
        yield Fault("metrics.best_test.top1", f"{best.top1} is less than the last epoch's, {test.top1}")
    highest = max(rows, key=lambda row: row["test_top1"], default=None)
    if highest and not (_is_close(highest["test_top1"], best.top1) and highest.get("epoch") == best.epoch):
        yield Fault(
            "metrics.best_test",
            f"{best.top1} in epoch {best.epoch}, where history has {highest['test_top1']} in epoch "
            f"{highest.get('epoch')}",
        )


def _history(record: RunRecord) -> Iterator[Fault]:
    """Every row possible; epochs rise; what is counted from the start never falls."""
    before: Mapping[str, Any] = {"epoch": 0}
    most = 1 + _num_ascents(record.recipe.get("optimizer"))
    for number, row in enumerate(record.history):
        where = f"history.{number}"
        for key, value in row.items():
            # A loss may overflow in one evaluation; a run goes on all the same.
            may_overflow = key.endswith("_loss") and isinstance(value, float) and not math.isfinite(value)
            if key.endswith("_top1"):
                yield from _within(f"{where}.{key}", value, 0, 1)
            elif (key in _COSTS or key == "lr" or key.endswith("_loss")) and not may_overflow:
                yield from _within(f"{where}.{key}", value, 0)
        for key in _COSTS:
            earlier, now = before.get(key), row.get(key)
            if not (_is_number(earlier) and _is_number(now)):
                continue
            if now < earlier or (key == "epoch" and now == earlier):
                yield Fault(f"{where}.{key}", f"{now} does not come after {earlier}")
        steps, passes = row.get("steps"), row.get("gradient_passes")
        if _is_number(steps) and _is_number(passes) and not steps <= passes <= most * steps:
            yield Fault(
                f"{where}.gradient_passes", f"{passes:g}, but {steps} updates take {steps} to {most * steps}"
            )
        if not _is_number(row.get("epoch")):
            yield Fault(f"{where}.epoch", "is missing")
        before = row


def _cost(record: RunRecord, recipe: Recipe | None) -> Iterator[Fault]:
    cost = record.cost
    for key in type(cost).model_fields:
        yield from _within(f"cost.{key}", getattr(cost, key), 0)
    most = cost.steps * (1 + _num_ascents(record.recipe.get("optimizer")))
    if not cost.steps <= cost.gradient_passes <= most:
        yield Fault(
            "cost.gradient_passes",
            f"{cost.gradient_passes:g}, but {cost.steps} updates take {cost.steps} to {most}",
        )
    last = record.history[-1] if record.history else {}
    is_completed = record.status == "completed"
    for key, slack in (("steps", 0.0), ("gradient_passes", 0.0), ("train_seconds", _ROUNDING_SECONDS)):
        value, total = last.get(key), getattr(cost, key)
        if not _is_number(value):
            continue
        if value > total + slack or (is_completed and value < total - slack):
            yield Fault(f"cost.{key}", f"{total:g}, where the last epoch of history has {value:g}")
    if recipe is None:
        return
    if cost.train_seconds > 0 and cost.images_per_second > 0:
        speed = cost.steps * recipe.train.batch_size / cost.train_seconds
        if not math.isclose(cost.images_per_second, speed, rel_tol=_ROUNDING_SPEED, abs_tol=_ROUNDING_SPEED):
            yield Fault(
                "cost.images_per_second",
                f"{cost.images_per_second:g}, where updates, batch size and time give {speed:.4g}",
            )
    if record.data and record.data.sizes.get("train"):
        yield from _length(record, recipe, record.data.sizes["train"])


def _length(record: RunRecord, recipe: Recipe, num_images: int) -> Iterator[Fault]:
    """A completed run is as long as its recipe says, and no other run is."""
    cost, train = record.cost, recipe.train
    per_epoch = num_images // train.batch_size
    length = min(train.epochs * per_epoch, train.max_steps or train.epochs * per_epoch)
    spent = cost.gradient_passes if train.budget == "passes" else cost.steps
    if record.status != "completed":
        # A bad seed must not go away by one word; a method that never acted fails at the end, and says so.
        if spent >= length and record.status in ("diverged", "interrupted") and "model" in record.artifacts:
            yield Fault("status", f"{record.status}, where the run came to its end with its weights stored")
        return
    # In passes, the last update may go beyond the end.
    beyond = _num_ascents(record.recipe.get("optimizer")) if train.budget == "passes" else 0
    if not length <= spent <= length + beyond:
        unit = "gradient passes" if train.budget == "passes" else "updates"
        yield Fault("cost", f"{spent:g} {unit}, where recipe and train split ask for {length}")
    if per_epoch and cost.epochs != cost.steps // per_epoch:
        yield Fault(
            "cost.epochs",
            f"{cost.epochs}, but {cost.steps} updates are {cost.steps // per_epoch} whole epochs",
        )


def _method(record: RunRecord) -> Iterator[Fault]:
    method = record.method
    yield from _within("method.two_pass_fraction", method.two_pass_fraction, 0, 1)
    yield from _within("method.skipped_steps", method.skipped_steps, 0, max(0, record.cost.steps))
    if method.mean_perturbation_norm is not None:
        yield from _within("method.mean_perturbation_norm", method.mean_perturbation_norm, 0)
    if method.mean_gradient_cosine is not None:
        yield from _within("method.mean_gradient_cosine", method.mean_gradient_cosine, -1 - 1e-3, 1 + 1e-3)


def _times(record: RunRecord) -> Iterator[Fault]:
    moments: dict[str, datetime] = {}
    for key in ("started", "finished"):
        text = record.environment.get(key)
        try:
            moments[key] = datetime.fromisoformat(str(text))
        except ValueError:
            if text is not None or record.status == "completed":
                yield Fault(f"environment.{key}", "is no time such as 2025-01-31T12:00:00+00:00")
    if len(moments) < 2:
        return
    try:
        elapsed = (moments["finished"] - moments["started"]).total_seconds()
    except TypeError:
        yield Fault("environment.finished", "has a time zone, or has none, unlike environment.started")
        return
    worked = record.cost.train_seconds + record.cost.eval_seconds
    if elapsed < 0:
        yield Fault("environment.finished", "is before environment.started")
    elif worked > elapsed + _CLOCK_SECONDS:
        yield Fault(
            "cost", f"{worked:.0f} s of work in the {elapsed:.0f} s from environment.started to finished"
        )


def _num_ascents(optimizer: Any) -> int:
    """The most perturbed passes of an update: one, or what the method's ascent option says."""
    found = [1]
    if isinstance(optimizer, Mapping):
        for key, value in optimizer.items():
            if key in ("inner_iter", "num_ascents") and isinstance(value, int):
                found.append(value)
            elif isinstance(value, Mapping):
                found.append(_num_ascents(value))
    return max(found)


def _digest(where: str, text: str) -> Iterator[Fault]:
    if not _SHA256.fullmatch(text):
        yield Fault(where, "is no sha256 of 64 hexadecimal digits")


def _within(where: str, value: object, low: float, high: float = math.inf) -> Iterator[Fault]:
    if not _is_number(value) or not low <= value <= high:
        allowed = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        yield Fault(where, f"must be a number, {allowed}, not {str(value)[:40]}")


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_close(first: float, second: float) -> bool:
    return math.isclose(first, second, rel_tol=_SAME, abs_tol=_SAME)


# Which split an artifact is about, by its name.
_SPLITS = {"predictions": "test", "predictions_validation": "validation"}

# Kinds of numbers that the arrays of predictions may hold, and the bytes that one entry may take.
_KINDS = {"label": "iu", "prediction": "iu", "in_top5": "b", "confidence": "f", "loss": "f"}

_MOST_BYTES_AN_ENTRY = 8

_MOST_IMAGES = 10_000_000

_LONGEST_HEADER = 1_000

# The record's figures are float64 of the same arrays.
_TOLERANCE = 1e-6
# Confidence and loss are two roundings of one softmax to float32.
_LOSS_TOLERANCE = 1e-3


@dataclass
class Evidence:
    """What the files say.

    Attributes:
        labels_sha256: of the test split's labels in their order; None if they cannot be had.
    """

    faults: list[Fault] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    labels_sha256: str | None = None


def examine(record: RunRecord, folder: Path) -> Evidence:
    """Hashes of the artifacts that are there, and the metrics that follow from the predictions."""
    found = Evidence()
    for name, artifact in record.artifacts.items():
        where = f"artifacts.{name}"
        problem = _path_problem(folder, artifact.path)
        if problem:
            found.faults.append(Fault(where, problem))
            continue
        file = folder / artifact.path
        if not file.is_file():
            if name in _SPLITS:
                found.faults.append(Fault(where, f"{artifact.path} is not there"))
            elif name == "model":
                found.remarks.append("weights not stored here: `pugdft verify` cannot re-evaluate")
            continue
        found.faults += _hash_faults(where, file, artifact)
        if name in _SPLITS:
            found.faults += _compare(record, _SPLITS[name], file, where, found)
    return found


def _path_problem(folder: Path, text: str) -> str | None:
    path = PurePath(text)
    if not text or not text.isprintable() or "\\" in text:
        return "its path is no file's name"
    try:
        inside = (folder / path).resolve().is_relative_to(folder.resolve())
        (folder / path).is_file()
    except (OSError, ValueError, RuntimeError):
        return "its path is no file's name"
    if path.is_absolute() or ".." in path.parts or not inside:
        return f"{text} leads out of the record's folder"
    return None


def _hash_faults(where: str, file: Path, artifact: Artifact) -> Iterator[Fault]:
    try:
        if file_sha256(file) != artifact.sha256:
            yield Fault(f"{where}.sha256", f"is not that of {artifact.path}")
    except OSError as error:
        yield Fault(where, f"{artifact.path} cannot be read: {error.strerror}")


def _compare(record: RunRecord, split: str, file: Path, where: str, found: Evidence) -> Iterator[Fault]:
    """The record's metrics of a split against those of its predictions."""
    size = record.data.sizes.get(split) if record.data else None
    stated = getattr(record.metrics, split) if record.metrics else None
    if record.data is None or size is None or stated is None:
        yield Fault(where, f"is there, but the record lacks data.sizes.{split} or metrics.{split}")
        return
    try:
        predictions = _read(file, size)
    except _Refused as error:
        yield Fault(where, f"{file.name}: {error}")
        return
    contents = list(_content_faults(predictions, record.data.classes))
    yield from (Fault(where, f"{file.name}: {fault}") for fault in contents)
    if split == "test":
        found.labels_sha256 = hashlib.sha256(predictions.label.astype("<i8").tobytes()).hexdigest()
    if contents:
        return
    computed = predictions.metrics()
    for name in ("top1", "top5", "loss", "ece"):
        ours, theirs = getattr(computed, name), getattr(stated, name)
        if not abs(ours - theirs) <= _TOLERANCE:
            yield Fault(f"metrics.{split}.{name}", f"{theirs}, but {file.name} gives {ours:.8g}")


class _Refused(Exception):
    """Why an archive is not read."""


def _read(file: Path, size: int) -> Predictions:
    """The predictions of ``size`` images, read only once the headers are known to be harmless.

    Raises:
        _Refused: not such an archive.
    """
    from pugdft.predictions import read_predictions

    if not 1 <= size <= _MOST_IMAGES:
        raise _Refused(f"{size} images are not read")
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if sorted(each.filename for each in members) != sorted(f"{name}.npy" for name in _KINDS):
                raise _Refused(f"must hold the arrays {', '.join(_KINDS)}, each once, and nothing else")
            for member in members:
                _check_member(archive, member, size)
        return read_predictions(file)
    except _Refused:
        raise
    except Exception as error:  # zipfile, zlib and numpy's parser of headers let out nearly anything
        raise _Refused(f"is not readable: {type(error).__name__}: {error}") from None


def _check_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, size: int) -> None:
    import numpy as np

    name = member.filename.removesuffix(".npy")
    if member.file_size > size * _MOST_BYTES_AN_ENTRY + _LONGEST_HEADER:
        raise _Refused(f"{name} would unpack to {member.file_size:,} bytes, too many for {size:,} images")
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise _Refused(f"{name} is of an unknown format, {version}")
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream, max_header_size=_LONGEST_HEADER)
    if dtype.hasobject:
        raise _Refused(f"{name} holds pickled objects, which are never read")
    if dtype.kind not in _KINDS[name]:
        raise _Refused(f"{name} is of the type {dtype}")
    if shape != (size,):
        raise _Refused(f"{name} has the shape {shape}, where the split has {size:,} images")


def _content_faults(predictions: Predictions, classes: int) -> Iterator[str]:
    """Values that no evaluation gives."""
    import numpy as np

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


@dataclass(frozen=True)
class Checked:
    """What is wrong with one file.

    Attributes:
        faults: empty for a good record.
        remarks: what a reader should know all the same.
        record: None if it cannot be read.
        labels_sha256: of the test split's labels, from the predictions.
    """

    path: Path
    faults: tuple[Fault, ...]
    remarks: tuple[str, ...] = ()
    record: RunRecord | None = None
    labels_sha256: str | None = None

    def lines(self) -> list[str]:
        """``FILE: OK``, or ``FILE: where: what`` for each fault; fit for a terminal."""
        if self.faults:
            return [printable(f"{self.path}: {fault}") for fault in self.faults]
        return [printable("; ".join([f"{self.path}: OK", *self.remarks]))]


def check_records(paths: Sequence[Path], note: Callable[[str], None]) -> list[Checked]:
    """Every record below ``paths``, in the order of the search.

    Args:
        paths: record files, or folders searched for ``record.yaml``.
        note: hears of folders without a record.

    Raises:
        UserError: a path does not exist, or there is no record at all.
    """
    problems: list[str] = []
    checked = _compared([_check(file) for file in record_files(paths, problems.append, note)])
    for problem in problems:
        file, _, message = problem.removeprefix("left out: ").rpartition(": ")
        checked.append(Checked(Path(file), (Fault("", message),)))
    if not checked:
        raise UserError(f"no run record in {', '.join(map(str, paths))}")
    return checked


def _check(file: Path) -> Checked:
    try:
        record = read_checked(file)
    except UserError as error:
        return Checked(file, (Fault("", str(error).removeprefix(f"{file}: ")),))
    evidence = examine(record, file.parent)
    faults = [*record_faults(record), *evidence.faults]
    return Checked(file, tuple(faults), tuple(evidence.remarks), record, evidence.labels_sha256)


def _compared(checked: Sequence[Checked]) -> list[Checked]:
    """With the faults that only several records show: one id twice, other labels of the same images."""
    ids: dict[str, Checked] = {}
    splits: dict[str, Checked] = {}
    result = []
    for each in checked:
        faults = []
        if each.record is not None:
            first = ids.setdefault(each.record.id, each)
            if first.record is not None and first.record.to_yaml() != each.record.to_yaml():
                faults.append(Fault("id", f"stands in {first.path} too, with other contents"))
        if each.record is not None and each.record.data is not None and each.labels_sha256:
            first = splits.setdefault(each.record.data.sha256, each)
            if first.labels_sha256 != each.labels_sha256:
                faults.append(
                    Fault("artifacts.predictions", f"other labels than {first.path}, on the same data.sha256")
                )
        result.append(replace(each, faults=(*each.faults, *faults)))
    return result
