"""What one record can be held to by itself: required facts, possible numbers, parts that agree.

Nothing here opens a file or trusts a value's kind: a record may have been written by anybody.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, TypeGuard

from pugdft.errors import Fault, FaultsError, UserError
from pugdft.recipe import Recipe, load_recipe
from pugdft.record import BestEpoch, RunRecord, SplitMetrics

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
