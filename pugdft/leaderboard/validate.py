"""``leaderboard check``: a record's required facts, rules, parts that must agree, and the files beside it.

A record may have been written by anybody: no value's type is relied on that the schema does not state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from pugdft.config import plugins
from pugdft.config.load import load_recipe
from pugdft.config.schema import Recipe
from pugdft.config.yaml import Reader
from pugdft.errors import ConfigIssue, FaultsError, UserError, collect, printable, refuse
from pugdft.leaderboard.load import fingerprints, read_checked, record_files
from pugdft.leaderboard.sharpness import sharpness_faults
from pugdft.paths import file_inside, file_sha256
from pugdft.predictions import Predictions, artifact_name, disagreements, labels_sha256, read_predictions
from pugdft.records import (
    COSINE,
    FRACTION,
    NOT_NEGATIVE,
    SNAPSHOT,
    Metrics,
    RunRecord,
    StoredRun,
    between,
    is_number,
    record_reader,
    rule_faults,
)

if TYPE_CHECKING:
    from pugdft.optim import Method

_EVALUATED = ("test", "validation", "plain_test", "plain_validation")
_SPLITS = {artifact_name(split): split for split in _EVALUATED}

_MEASURED = {"gradient_norm": NOT_NEGATIVE, "perturbation_norm": NOT_NEGATIVE, "gradient_cosine": COSINE}
# What a row of the history counts from the start of the run.
_TOTALS = ("epoch", "steps", "gradient_passes", "train_seconds")

_SAME = 1e-9  # counts over a split and means of them: equal but for the last digits
_ROUNDING_SECONDS, _ROUNDING_SPEED = 0.01, 0.05  # a record has milliseconds, and speeds in hundredths
_LEAST_WORK, _IDLE_SECONDS = 0.25, 30.0  # share of a run's time; our own runs have 0.9, and idle for seconds
_CLOCK_SECONDS = 5.0  # clocks are read to the second, and may be set while a run goes on
_LOSS_TOLERANCE = 1e-3  # confidence and loss are two roundings of one softmax to float32
_NO_SNAPSHOTS = "not all snapshots are stored here: its trajectory cannot be drawn"
_ORIGIN = {"module", "distribution", "version"}  # what a run keeps of what another package provides
_ANY_BASE = {"name": "sgd", "lr": 0.1, "momentum": 0.9}  # fits every method, in the place of a foreign one
_is_close = partial(math.isclose, rel_tol=_SAME, abs_tol=_SAME)


def record_faults(record: RunRecord) -> Iterator[ConfigIssue]:
    """Everything in a record that is missing, impossible, or at odds with the rest of it."""
    yield from rule_faults(record)
    recipe, unread = None, list[ConfigIssue]()
    not_loaded = (TypeError, ValueError, RecursionError)
    with collect(unread), refuse(not_loaded, lambda error: f"is not readable: {error}"):
        recipe = load_recipe(record.recipe)
    yield from (ConfigIssue(f"recipe.{each.where}".rstrip("."), each.message) for each in unread)
    method, no_method = None, list[ConfigIssue]()
    with collect(no_method):
        method = _method(record, recipe.optimizer) if recipe else None
    # Of a method that is not known here, nobody knows the most.
    most = 1 + method.direction.num_ascents if method else math.inf
    if record.status == "completed":
        split = "validation" if recipe and recipe.train.evaluate != "all" else "test"
        required = {
            "data": record.data,
            "model": record.model,
            f"metrics.{split}": getattr(record.metrics, split, None),
            "history": record.history,
            f"artifacts.{artifact_name(split)}": record.artifacts.get(artifact_name(split)),
        }
        yield from (ConfigIssue(where, "is missing") for where, value in required.items() if not value)
    last = record.history[-1] if record.history else {}
    kept = record.metrics.kept if record.metrics else None
    yield from _metrics(record, _row_of(record, kept.epoch) if kept else last)
    if kept and recipe and kept.rule != recipe.train.keep:
        said = f"{kept.rule}, where the recipe has train.keep {recipe.train.keep}"
        yield ConfigIssue("metrics.kept.rule", said)
    if record.metrics and recipe and record.status == "completed":
        if recipe.train.keep == "best" and not kept:
            yield ConfigIssue("metrics.kept", "is missing, where the recipe has train.keep best")
        if (record.metrics.weights == "ema") != (recipe.train.ema is not None):
            said = f"{record.metrics.weights or 'plain'}, where the recipe has train.ema {recipe.train.ema}"
            yield ConfigIssue("metrics.weights", said)
    if kept and kept.rule == "best":
        yield from _best_validation(record, kept.epoch)
    yield from _history(record, most)
    yield from _cost(record, last, most)
    yield from no_method
    if recipe:
        yield from _as_in_recipe(record, recipe, most)
        if not no_method:
            yield from _two_passes(record, recipe, method, most)
    yield from _times(record)


def _metrics(record: RunRecord, last: Mapping[str, Any]) -> Iterator[ConfigIssue]:
    metrics = record.metrics or Metrics()
    for split in _EVALUATED:
        if (found := getattr(metrics, split)) is None:
            continue
        where, is_finite = f"metrics.{split}", math.isfinite(found.loss)
        # A run that diverged may well have ended without a finite loss, and so without a calibration error.
        if is_finite:
            yield from FRACTION.faults(f"{where}.ece", found.ece)
        if is_finite or record.status == "completed":
            yield from NOT_NEGATIVE.faults(f"{where}.loss", found.loss)
        if found.top5 < found.top1 - _SAME:
            yield ConfigIssue(f"{where}.top5", f"{found.top5} is less than top1, {found.top1}")
        for name in ("top1", "loss"):
            value, final = last.get(f"{split}_{name}"), getattr(found, name)
            if is_number(value) and not _is_close(value, final):
                yield ConfigIssue(f"{where}.{name}", f"{final}, where the last epoch of history has {value}")
    test, best = metrics.test, metrics.best_test
    if not (test and best):
        return
    if best.top1 < test.top1 - _SAME:
        yield ConfigIssue("metrics.best_test.top1", f"{best.top1} is less than the last epoch's, {test.top1}")
    rows = [row for row in _trained(record) if is_number(row.get("test_top1"))]
    if not rows:
        return
    highest = max(rows, key=lambda row: row["test_top1"])
    top1, epoch = highest["test_top1"], highest.get("epoch")
    if not (_is_close(top1, best.top1) and epoch == best.epoch):
        said = f"{best.top1} in epoch {best.epoch}, where history has {top1} in epoch {epoch}"
        yield ConfigIssue("metrics.best_test", said)


def _trained(record: RunRecord) -> list[dict[str, Any]]:
    """The rows of trained weights: no epoch 0 is the best one."""
    return [row for row in record.history if row.get("epoch") != 0]


def _row_of(record: RunRecord, epoch: int) -> Mapping[str, Any]:
    return next((row for row in record.history if row.get("epoch") == epoch), {})


def _best_validation(record: RunRecord, epoch: int) -> Iterator[ConfigIssue]:
    """The epoch that is kept has the highest top-1 on held-out images."""
    rows = [row for row in _trained(record) if is_number(row.get("validation_top1"))]
    highest = max((row["validation_top1"] for row in rows), default=math.nan)
    kept = _row_of(record, epoch).get("validation_top1")
    if not is_number(kept) or not kept >= highest - _SAME:
        said = f"{epoch}, whose validation top-1 is {kept}, where history has {highest}"
        yield ConfigIssue("metrics.kept.epoch", said)


def _history(record: RunRecord, most: float) -> Iterator[ConfigIssue]:
    """Every row possible; epochs rise; what is counted from the start never falls."""
    before: Mapping[str, Any] = {"epoch": -1}  # a row of epoch 0 is the state before the first update
    for number, row in enumerate(record.history):
        where = f"history.{number}"
        for key, value in row.items():
            # A loss may overflow in one evaluation; a run goes on all the same.
            may_overflow = key.endswith("_loss") and isinstance(value, float) and not math.isfinite(value)
            if key.endswith("_top1"):
                yield from FRACTION.faults(f"{where}.{key}", value)
            elif (key in (*_TOTALS, "lr") or key.endswith("_loss")) and not may_overflow:
                yield from NOT_NEGATIVE.faults(f"{where}.{key}", value)
            elif key in _MEASURED:
                yield from _MEASURED[key].faults(f"{where}.{key}", value)
        for key in _TOTALS:
            earlier, now = before.get(key), row.get(key)
            if not (is_number(earlier) and is_number(now)):
                continue
            if now < earlier or (key == "epoch" and now == earlier):
                yield ConfigIssue(f"{where}.{key}", f"{now} does not come after {earlier}")
        yield from _passes(where, row.get("steps"), row.get("gradient_passes"), most)
        if not is_number(row.get("epoch")):
            yield ConfigIssue(f"{where}.epoch", "is missing")
        before = row


def _passes(where: str, steps: Any, passes: Any, most: float) -> Iterator[ConfigIssue]:
    """An update takes one gradient pass, and one more for each ascent: ``most`` of them together."""
    if is_number(steps) and is_number(passes):
        highest = steps * most if steps else 0
        if not steps <= passes <= highest:
            expected = f"{steps} to {highest}" if highest < math.inf else f"at least {steps}"
            yield ConfigIssue(f"{where}.gradient_passes", f"{passes:g}, but {steps} updates take {expected}")


def _cost(record: RunRecord, last: Mapping[str, Any], most: float) -> Iterator[ConfigIssue]:
    cost = record.cost
    yield from _passes("cost", cost.steps, cost.gradient_passes, most)
    is_completed = record.status == "completed"
    for key, slack in (("steps", 0.0), ("gradient_passes", 0.0), ("train_seconds", _ROUNDING_SECONDS)):
        value, total = last.get(key), getattr(cost, key)
        if is_number(value) and (value > total + slack or (is_completed and value < total - slack)):
            yield ConfigIssue(f"cost.{key}", f"{total:g}, where the last epoch of history has {value:g}")
    yield from between(0, max(0, cost.steps)).faults("method.skipped_steps", record.method.skipped_steps)


def _as_in_recipe(record: RunRecord, recipe: Recipe, most: float) -> Iterator[ConfigIssue]:
    """Seed, model, speed and length; a completed run is as long as its recipe says, and no other run is."""
    cost, train, tuning = record.cost, recipe.train, recipe.tuning
    if tuning and not tuning.trials and tuning.gradient_passes:
        yield ConfigIssue("recipe.tuning.trials", f"0, with {tuning.gradient_passes:g} gradient passes")
    if record.seed != train.seed:
        yield ConfigIssue("seed", f"{record.seed}, where the recipe has train.seed {train.seed}")
    if record.model and record.model.name != recipe.model.name:
        yield ConfigIssue("model.name", f"{record.model.name}, where the recipe has {recipe.model.name}")
    if cost.train_seconds > 0 and cost.images_per_second > 0:
        speed, slack = cost.steps * train.batch_size / cost.train_seconds, _ROUNDING_SPEED
        if not math.isclose(cost.images_per_second, speed, rel_tol=slack, abs_tol=slack):
            said = f"{cost.images_per_second:g}, where updates, batch size and time give {speed:.4g}"
            yield ConfigIssue("cost.images_per_second", said)
    if not (record.data and record.data.sizes.get("train")):
        return
    per_epoch = record.data.sizes["train"] // train.batch_size
    length = min(train.epochs * per_epoch, train.max_steps or train.epochs * per_epoch)
    in_passes = train.budget == "passes"
    spent = cost.gradient_passes if in_passes else cost.steps
    if record.status != "completed":
        # A bad seed must not go away by one word; a method that never acted fails at the end, and says so.
        if spent >= length and record.status in ("diverged", "interrupted") and "model" in record.artifacts:
            said = f"{record.status}, where the run came to its end with its weights stored"
            yield ConfigIssue("status", said)
        return
    # In passes, the last update may go beyond the end.
    beyond = most - 1 if in_passes else 0
    kept = record.metrics.kept if record.metrics else None
    if kept and kept.stopped_early and train.patience is not None:
        length = min(length, math.ceil(spent))
    if not length <= spent <= length + beyond:
        unit = "gradient passes" if in_passes else "updates"
        yield ConfigIssue("cost", f"{spent:g} {unit}, where recipe and train split ask for {length}")
    if per_epoch and cost.epochs != cost.steps // per_epoch:
        epochs = cost.steps // per_epoch
        yield ConfigIssue("cost.epochs", f"{cost.epochs}, but {cost.steps} updates are {epochs} whole epochs")


def _method(record: RunRecord, spec: Mapping[str, Any]) -> Method | None:
    """The method of a recipe's optimizer; None if another package provides it.

    What another package provides is not looked up: to read a record imports nothing that the record names.
    The rest is checked, and so is that the record says where it came from.

    Raises:
        FaultsError: the optimizer does not exist, or has no such options.
    """
    base = spec.get("base")
    names: list[Any] = [spec.get("name"), base.get("name") if isinstance(base, Mapping) else None]
    if odd := [name for name in names if isinstance(name, str) and not name.isascii()]:
        said = f"{odd[0]!a} has letters that no optimizer's name has, however they look"
        raise FaultsError("", [ConfigIssue("recipe.optimizer.name", said)])
    foreign = [name for name in names if _is_foreign(name, record)]
    found, method = list[ConfigIssue](), None
    if names[0] not in foreign:
        found, method = _judged({**spec, "base": _ANY_BASE} if foreign else spec, "recipe.optimizer")
    elif base and names[1] not in foreign:
        found, _ = _judged(base, "recipe.optimizer.base")
    faults = [*found]
    origins = _extensions(record)
    for name in foreign:
        if not (isinstance(told := origins.get(name), Mapping) and told.keys() >= _ORIGIN):
            said = f"does not say which package provides {name}: its {', '.join(sorted(_ORIGIN))}"
            faults.append(ConfigIssue("environment.extensions", said))
    if faults:
        raise FaultsError("", faults)
    return method


_judgements: dict[str, tuple[list[ConfigIssue], Method | None]] = {}


def _judged(spec: Mapping[str, Any], where: str) -> tuple[list[ConfigIssue], Method | None]:
    """Faults of an optimizer's options, and its method if there are none; seeds have one, built once."""
    from pugdft.optim.build import method_of, spec_faults

    if (written := f"{where} {spec!r}") not in _judgements:
        faults = spec_faults(spec, where)
        _judgements[written] = faults, None if faults else method_of(spec)
    return _judgements[written]


def _is_foreign(name: Any, record: RunRecord) -> bool:
    """Whether another package provides an optimizer, as its name or the record says; ours come first."""
    from pugdft.optim.base import BASES
    from pugdft.optim.methods import METHODS

    if not isinstance(name, str) or name in BASES or name in METHODS.data:
        return False
    return ":" in name or name in plugins.provided(plugins.OPTIMIZERS) or name in _extensions(record)


def _extensions(record: RunRecord) -> Mapping[str, Any]:
    found = record.environment.get("extensions")
    return found if isinstance(found, Mapping) else {}


def _two_passes(
    record: RunRecord, recipe: Recipe, method: Method | None, most: float
) -> Iterator[ConfigIssue]:
    """The share of updates with two passes is that of the passes, and the one that the method asks for."""
    from pugdft.optim.triggers import Always

    cost, share = record.cost, record.method.two_pass_fraction
    if not cost.steps or not FRACTION.accepts(share) or not is_number(cost.gradient_passes):
        return
    # A step that a gradient without a finite value ended early takes fewer.
    skipped, ascents = max(0, record.method.skipped_steps), share * cost.steps
    low = cost.steps + ascents * recipe.train.ascent_batch - 1 - skipped
    high = cost.steps + 1 + (ascents + skipped and (ascents + skipped) * (most - 1))
    # Beyond the most, `_passes` has said it.
    if cost.steps <= cost.gradient_passes <= cost.steps * most and not low <= cost.gradient_passes <= high:
        said = f"{share:g}, where {cost.steps} updates took {cost.gradient_passes:g} gradient passes"
        yield ConfigIssue("method.two_pass_fraction", said)
    if method is None:
        return
    always = isinstance(method.trigger, Always) and method.perturbs
    expected = 1.0 if always else 0.0 if not method.perturbs else share
    if record.status == "completed" and abs(share - expected) * cost.steps > 1 + skipped * (most - 1):
        each = "two passes" if always else "one pass"
        said = f"{share:g}, where every update of {recipe.optimizer['name']} takes {each}"
        yield ConfigIssue("method.two_pass_fraction", said)


def _times(record: RunRecord) -> Iterator[ConfigIssue]:
    moments: dict[str, datetime] = {}
    for key in ("started", "finished"):
        text = record.environment.get(key)
        with suppress(ValueError):
            moments[key] = datetime.fromisoformat(str(text))
        if key not in moments and (text is not None or record.status == "completed"):
            yield ConfigIssue(f"environment.{key}", "is no time such as 2025-01-31T12:00:00+00:00")
    if len(moments) < 2:
        return
    started, finished = moments.values()
    if (started.utcoffset() is None) != (finished.utcoffset() is None):
        yield ConfigIssue("environment.finished", "has a time zone, or has none, unlike environment.started")
        return
    elapsed = (finished - started).total_seconds()
    worked = record.cost.train_seconds + record.cost.eval_seconds
    # Data and weights are loaded before the start; between the starts of a run, nobody knows what was done.
    is_idle = not record.restarts and record.status == "completed" and worked < _LEAST_WORK * elapsed
    if elapsed < 0:
        yield ConfigIssue("environment.finished", "is before environment.started")
    elif worked > elapsed + _CLOCK_SECONDS or (is_idle and elapsed > worked + _IDLE_SECONDS):
        said = f"{worked:.0f} s of work in the {elapsed:.0f} s from environment.started to finished"
        yield ConfigIssue("cost", said)


# --- the files beside it, and other records ---


@dataclass
class CheckedRecord:
    path: Path
    record: RunRecord | None = None  # None if it cannot be read
    faults: list[ConfigIssue] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)  # what a reader should know of a good record
    labels_sha256: str | None = None  # of the test split's labels in their order, if they can be had

    def lines(self) -> list[str]:
        """``FILE: OK``, or ``FILE: where: what`` for each fault; fit for a terminal."""
        said = list(map(str, self.faults)) or ["; ".join(["OK", *self.remarks])]
        return [printable(f"{self.path}: {each}") for each in said]


def check_records(paths: Sequence[Path], note: Callable[[str], None]) -> list[CheckedRecord]:
    """Check every record below ``paths``, at least one; ``note`` is called for folders without any."""
    _judgements.clear()  # an optimizer may have been added since
    reader = record_reader()
    checked = [_check(file, reader) for file in record_files(paths, note)]
    if not checked:
        raise UserError(f"no run record in {', '.join(map(str, paths))}")
    # What only several records show.
    firsts: dict[tuple[str, str], tuple[Path, Any]] = {}
    for each in checked:
        if (record := each.record) is None:
            continue
        compared: list[tuple[str, str, Any, str]] = []
        if record.data:
            sha256, said = record.data.sha256, "{} than {}, on the same data.sha256"
            if each.labels_sha256:
                labels = said.format("other labels", "{}")
                compared.append(("artifacts.predictions", sha256, each.labels_sha256, labels))
            if size := record.data.sizes.get("test"):
                sizes = said.format(f"{size:,} images, others", "{}")
                compared.append(("data.sizes.test", sha256, size, sizes))
        train = record.recipe.get("train")
        seed = train.get("seed", record.seed) if isinstance(train, Mapping) else record.seed
        for mark in sorted(fingerprints(record)):
            said = f"{seed}, with the {mark.partition(' ')[0]} of {{}}, which has another seed"
            compared.append(("seed", mark, seed, said))
        for where, key, value, said in compared:
            path, first = firsts.setdefault((where, key), (each.path, value))
            if first != value and where not in (fault.where for fault in each.faults):
                each.faults.append(ConfigIssue(where, said.format(path)))
        # Two people may run one recipe and seed.
        path, first = firsts.setdefault(("id", record.id), (each.path, record))
        if first is not record and first.to_yaml() != record.to_yaml():  # a slow text, so only where needed
            each.remarks.append(f"its id stands in {path} too, with other contents: one seed counts once")
    return checked


def _check(file: Path, reader: Reader) -> CheckedRecord:
    checked = CheckedRecord(file)
    with collect(checked.faults), refuse(UserError, lambda error: str(error).removeprefix(f"{file}: ")):
        checked.record = read_checked(file, reader)
    if checked.record:
        checked.faults += record_faults(checked.record)
        for name in checked.record.artifacts:
            with collect(checked.faults, f"artifacts.{name}"):
                _check_artifact(checked, checked.record, name)
        checked.faults += sharpness_faults(StoredRun(checked.record, file))
    return checked


def _check_artifact(checked: CheckedRecord, record: RunRecord, name: str) -> None:
    """Compare a file beside the record with its digest, and predictions with the record's metrics."""
    path = record.artifacts[name].path
    is_plain = path and path.isprintable() and "\\" not in path
    if not is_plain or PurePath(path).is_absolute() or ".." in PurePath(path).parts:
        raise UserError("its path is no file's name inside the record's folder")
    with refuse(OSError, lambda error: f"{path} cannot be read: {error.strerror}"):
        file = file_inside(checked.path.parent, path)
        if file and file_sha256(file) != record.artifacts[name].sha256:
            checked.faults.append(ConfigIssue(f"artifacts.{name}.sha256", f"is not that of {path}"))
    if file is None and name.startswith(SNAPSHOT) and _NO_SNAPSHOTS not in checked.remarks:
        checked.remarks.append(_NO_SNAPSHOTS)
    if file is None and name == "model":
        checked.remarks.append("weights not stored here: `pugdft verify` cannot re-evaluate")
    if name in _SPLITS:
        if file is None:
            raise UserError(f"{path} is not there")
        _check_predictions(checked, record, _SPLITS[name], file)


def _check_predictions(checked: CheckedRecord, record: RunRecord, split: str, file: Path) -> None:
    recorded = getattr(record.metrics, split, None)
    images = split.removeprefix("plain_")
    if record.data is None or images not in record.data.sizes or recorded is None:
        raise UserError(f"is there, but the record lacks data.sizes.{images} or metrics.{split}")
    with refuse(UserError, lambda error: f"{file.name}: {error}"):
        predictions = read_predictions(file, record.data.sizes[images], exact=True)
    if split == "test":
        checked.labels_sha256 = labels_sha256(predictions.label)
    if contents := list(_content_faults(predictions, record.data.classes)):
        raise FaultsError("", [ConfigIssue("", f"{file.name}: {fault}") for fault in contents])
    for metric, ours, theirs in disagreements(predictions, recorded):
        said = f"{theirs}, but {file.name} gives {ours:.8g}"
        checked.faults.append(ConfigIssue(f"metrics.{split}.{metric}", said))


def _content_faults(predictions: Predictions, classes: int) -> Iterator[str]:
    """Values that no evaluation gives."""
    for name in ("label", "prediction"):
        values = getattr(predictions, name)
        if values.min() < 0 or values.max() >= classes:
            yield f"{name} must lie in 0 to {classes - 1}"
    confidence, loss = predictions.confidence.astype(float), predictions.loss.astype(float)
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
