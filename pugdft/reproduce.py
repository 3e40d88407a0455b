"""Verify a run's record with its stored weights, or run its recipe again and compare the two runs.

A record may come from anybody: its paths are followed inside its own folder only, and the files there are
read as tensors and arrays, never unpickled. In messages "recorded" is what a record says, "found" what was
computed here.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from accelerate import Accelerator
from torch import Tensor

from pugdft.config.load import load_recipe
from pugdft.config.schema import Recipe
from pugdft.data.cache import Store, prepare
from pugdft.data.datasets import open_source
from pugdft.errors import FaultsError, UserError, counted
from pugdft.leaderboard.stats import mcnemar
from pugdft.models import Backbone, build_model, model_faults
from pugdft.paths import file_sha256
from pugdft.predictions import Predictions, artifact_name, stored_predictions
from pugdft.records import RECORD_NAME, Metrics, RunRecord, SplitMetrics, StoredRun, read_record
from pugdft.training.performance import attention_of, pick, rounding_of
from pugdft.training.record_writer import environment_facts
from pugdft.training.run import finetune, read_recipe
from pugdft.training.setup import evaluation_parts, make_accelerator
from pugdft.training.trainer import Observer, evaluate

# Where all of these are equal, the same weights and images give the same bits.
_DECIDES_BITS = (
    "pugdft", "torch", "timm", "accelerate", "numpy",
    "platform", "device", "device_name", "processes", "threads", "precision",
)  # fmt: skip

_METRIC_NAMES = {"top1": "top-1", "top5": "top-5", "loss": "loss", "ece": "calibration error"}

# Metrics computed from stored predictions, by another numpy perhaps: sums in another order.
_SUMMATION = 1e-6

LEVEL = 0.01
"""A difference that chance makes less often than this counts as one."""

_LONGEST_SHOWN, _LONGEST_NAME = 80, 150


@dataclass(frozen=True)
class ValueCheck:
    """One thing compared: what, whether it agrees (None: it need not), and the values in words."""

    name: str
    agrees: bool | None
    detail: str


@dataclass(frozen=True)
class Tolerance:
    """How far two evaluations may be apart; all zero means bit for bit.

    Attributes:
        top1: fraction of the images, rounded up; for top-5 as well.
        loss: of the mean.
        ece: of the calibration error.
        changed: fraction of the images, rounded up, whose class or whose loss may be another.
        image_loss: by which the loss of one image must differ to be another.
    """

    top1: float = 0.0
    loss: float = 0.0
    ece: float = 0.0
    changed: float = 0.0
    image_loss: float = 0.0

    def __str__(self) -> str:
        return (
            f"top-1 and top-5 by {self.top1:.1%}, the loss by {self.loss:g}, the calibration error by "
            f"{self.ece:g}; another class, or a loss further away than {self.image_loss:g}, for "
            f"{self.changed:.1%} of the images"
        )


EXACT = Tolerance()
# Measured: EfficientNet-Lite0 at 70 % on 2,000 images, bf16 against fp32. Another class for 1.4 %, top-1 by
# 0.15 %, mean loss by 0.0018, calibration error by 0.0016, the loss of one image by up to 0.22.
ROUNDING_16_BITS = Tolerance(top1=0.005, loss=0.01, ece=0.01, changed=0.03, image_loss=0.5)
# fp32 on another device: TF32, the coarsest that is called so, keeps three bits more than bf16.
ROUNDING = Tolerance(top1=0.002, loss=0.001, ece=0.003, changed=0.005, image_loss=0.05)


def open_run(path: Path) -> StoredRun:
    """A run from its record or its folder.

    Raises:
        UserError: there is no record, it cannot be read, or it names files outside its folder.
    """
    file = path / RECORD_NAME if path.is_dir() else path
    if not os.path.exists(file):
        if not path.is_dir():
            raise UserError(f"{path}: no such file")
        inside = list(path.glob(f"*/{RECORD_NAME}"))
        hint = f"; {counted(len(inside), 'record')} below it: {path}/*/{RECORD_NAME}" if inside else ""
        raise UserError(f"{path}: no {RECORD_NAME} here{hint}")
    run = StoredRun(read_record(file), file)
    for name in run.record.artifacts:
        run.artifact(name)  # none may lead elsewhere, whichever is read later
    return run


# Comparing two values


def _compare_hashes(name: str, recorded: str, found: str, what: str = "") -> ValueCheck:
    """Compare two sha256; show their first digits after ``what``."""
    return ValueCheck(
        name, recorded == found, f"{what}{', ' if what else ''}sha256 {_pair(recorded, found, 12)}"
    )


def _compare_metrics(
    split: str, recorded: SplitMetrics, found: SplitMetrics, num_images: int, tolerance: Tolerance
) -> list[ValueCheck]:
    """Compare top-1, top-5, loss and calibration error."""
    images = math.ceil(tolerance.top1 * num_images) / num_images
    allowed = {"top1": images, "top5": images, "loss": tolerance.loss, "ece": tolerance.ece}
    return [
        _compare_numbers(
            f"{split} {name}", getattr(recorded, key), getattr(found, key), allowed[key],
            is_fraction=key in ("top1", "top5"),
        )
        for key, name in _METRIC_NAMES.items()
    ]  # fmt: skip


def _compare_numbers(
    name: str, recorded: float, found: float, allowed: float = 0.0, *, is_fraction: bool = False
) -> ValueCheck:
    """Compare two numbers, which agree if they are equal or no further apart than allowed."""

    def text(value: float) -> str:
        if isinstance(value, int):
            return f"{value:,}"
        return f"{value:.2%}" if is_fraction else f"{value:.6g}"

    if _same(recorded, found):
        return ValueCheck(name, True, text(found))
    # 1e-9: an image is 1/N, and the difference of two multiples of 1/N is one only up to rounding.
    agrees = bool(allowed) and abs(recorded - found) <= allowed + 1e-9
    texts = text(recorded), text(found)
    if texts[0] == texts[1]:
        texts = repr(recorded), repr(found)
    margin = f" (allowed: {text(allowed)})" if allowed else ""
    return ValueCheck(name, agrees, f"recorded {texts[0]}, found {texts[1]}{margin}")


def _compare_predictions(
    split: str, recorded: Predictions, found: Predictions, tolerance: Tolerance
) -> ValueCheck:
    """Compare image by image: the true class, the predicted one, and the loss."""
    name, count = f"{split} predictions", len(found.label)
    if not np.array_equal(recorded.label, found.label):
        return ValueCheck(name, False, "are of other images: the true classes differ")
    if all(
        np.array_equal(values, getattr(found, key), equal_nan=key in ("confidence", "loss"))
        for key, values in vars(recorded).items()
    ):
        return ValueCheck(name, True, f"{count:,} images, identical")
    other_class = recorded.prediction != found.prediction
    apart = np.abs(recorded.loss.astype(np.float64) - found.loss)
    other_loss = ~(apart <= tolerance.image_loss)  # a loss that is not a number agrees with none
    detail = (
        f"{other_class.sum():,} of {count:,} images have another class; "
        f"the loss of one image differs by up to {apart.max():.2g}"
    )
    if tolerance == EXACT:
        return ValueCheck(name, False, detail)
    allowed = math.ceil(tolerance.changed * count)
    agrees = int((other_class | other_loss).sum()) <= allowed
    return ValueCheck(name, agrees, f"{detail} (allowed: {allowed:,} with another class or loss)")


def _compare_own_metrics(split: str, recorded: SplitMetrics, predictions: Predictions) -> ValueCheck:
    """Compare a record's metrics with those of the predictions beside it."""
    name, tolerance = f"{split} predictions file", Tolerance(loss=_SUMMATION, ece=_SUMMATION)
    computed = predictions.metrics()
    for check in _compare_metrics(split, recorded, computed, len(predictions.label), tolerance):
        if not check.agrees:
            metric = check.name.removeprefix(f"{split} ")
            return ValueCheck(name, False, f"is not what the metrics are of: {metric} {check.detail}")
    return ValueCheck(name, True, "gives the record's metrics")


def _same(first: object, second: object) -> bool:
    """Equality under which "not a number" equals itself."""
    return first == second or (first != first and second != second)


def _shown(value: object, length: int = _LONGEST_SHOWN) -> str:
    text = str(value)
    return text if len(text) <= length else f"{text[:length]}…"


def _pair(recorded: object, found: object, length: int = _LONGEST_SHOWN) -> str:
    if _same(recorded, found):
        return _shown(found, length)
    return f"recorded {_shown(recorded, length)}, found {_shown(found, length)}"


# The circumstances of a run


def _environment_differences(
    recorded: Mapping[str, Any], found: Mapping[str, Any], also: Sequence[str] = ()
) -> list[str]:
    """What decides a run's bits and differs, such as ``torch: recorded 2.9.0, found 2.10.0``."""
    return [
        f"{key}: {_pair(recorded.get(key), found.get(key))}"
        for key in (*_DECIDES_BITS, *also)
        if recorded.get(key) != found.get(key)
    ]


def changes_on_the_way(record: RunRecord, label: str) -> list[str]:
    """Updates made by other processes, or in passes of another size, than those before them.

    No second run repeats that. ``restarts`` does not list a run's first start: if its passes were smaller
    than asked for, and it went on later, that counts as a change too.

    Args:
        record: of the run.
        label: of the run, such as ``recorded``: the first word of each change.
    """
    # Updates that a later start made again count as its own.
    course: list[tuple[int, Mapping[str, Any]]] = [(0, {})]
    for entry in record.restarts:
        step = _positive(entry, "step") or 0
        while course and course[-1][0] >= step:
            course.pop()
        course.append((step, entry))
    changes = []
    for (_, before), (step, after) in pairwise(course):
        prefix = f"{label}: from update {_shown(step)} on "
        if processes := _positive(after, "processes"):  # noted only where they are not those before
            changes.append(prefix + _shown(counted(processes, "process")))
        size = _positive(after, "micro_batch_size")
        if size is not None and size != _positive(before, "micro_batch_size"):
            changes.append(f"{prefix}{_shown(counted(size, 'image'))} a pass")
    return changes


def _images_per_pass(record: RunRecord, recipe: Recipe) -> tuple[int, int]:
    """Images per forward pass and process: at the run's end, and as its recipe asks for.

    The first is smaller where memory did not hold a whole pass.
    """
    processes = _positive(record.environment, "processes") or 1
    asked = recipe.train.micro_batch_size or -(-recipe.train.batch_size // processes)
    return min(_positive(record.environment, "micro_batch_size") or asked, asked), asked


def _positive(facts: Mapping[str, Any], key: str) -> int | None:
    value = facts.get(key)
    return value if type(value) is int and value > 0 else None


def _recipe(
    run: StoredRun, data: str | None, read: Callable[[Mapping[str, Any]], Recipe], **model: object
) -> Recipe:
    """The record's recipe, with its data in another place and other options of the model, if given."""
    mapping = run.record.recipe
    place: dict[str, object] = {} if data is None else {"name": data}
    for section, values in (("model", model), ("data", place)):
        if values and isinstance(mapping.get(section), Mapping):
            mapping = {**mapping, section: {**mapping[section], **values}}
    try:
        return read(mapping)
    except FaultsError as error:
        raise FaultsError(f"{run.path}: recipe", error.faults) from None


# Verification: the stored weights, evaluated again


@dataclass(frozen=True)
class Verification:
    """The result of a verification.

    Attributes:
        notes: how it was compared, and what could not be.
        checks: in the order in which they were made.
    """

    run: StoredRun
    notes: tuple[str, ...]
    checks: tuple[ValueCheck, ...]

    @property
    def agrees(self) -> bool:
        """Whether everything does."""
        return all(check.agrees for check in self.checks)


def verify(
    path: Path, data: str | None = None, *, tolerant: bool = False, observer: Observer | None = None
) -> Verification:
    """Evaluate a run's stored weights on its data, as its recipe says, and compare with its record.

    With the record's versions and device the same bits are expected; elsewhere numbers may be as far
    apart as rounding explains (:data:`ROUNDING`, and :data:`ROUNDING_16_BITS` where either evaluation is
    in bf16 or fp16). Needs no pretrained weights: all tensors are the stored ones.

    Args:
        path: a record or a run's folder.
        data: where its data lies here, if not where the recipe says.
        tolerant: allow for rounding even if versions and device are the record's.
        observer: called with messages about the progress.

    Raises:
        UserError: something needed cannot be read: record, recipe, weights, data.
    """
    watcher = observer or Observer()
    run = open_run(path)
    recorded = _by_split(run.record)
    if run.record.data is None or not recorded:
        missing = "data" if run.record.data is None else "metrics"
        raise UserError(f"{run.path}: has no {missing} ({run.record.status}): there is nothing to verify")
    num_classes = run.record.data.classes
    weights = _weights_file(run)
    # The optimizer is not checked: a record of a method that is not installed here can be verified too.
    recipe = _recipe(
        run, data, lambda mapping: load_recipe(mapping, (), {"model": model_faults}), pretrained=False
    )
    checks = [_compare_hashes("weights file", run.record.artifacts["model"].sha256, file_sha256(weights))]
    notes: list[str] = []
    recipe, accelerator = _accelerator(recipe, notes)
    watcher.on_message(f"preparing {recipe.data.name}")
    store = _store(recipe, data)
    checks.append(_compare_hashes("data", run.record.data.sha256, store.sha256, store.name))
    if len(store.classes) != num_classes:
        notes.append(
            f"not evaluated: the data has {len(store.classes)} classes here, {num_classes} in the record"
        )
        return Verification(run, tuple(notes), tuple(checks))
    switches = pick(recipe, accelerator.device.type)  # as the run did: its bits are wanted
    with attention_of(switches):
        backbone = build_model(recipe.model, num_classes, recipe.data.image_size, recipe.train.seed)
    try:
        _load(backbone, weights, recipe.model.name)
    except UserError as error:
        if checks[0].agrees:
            raise
        notes.append(f"not evaluated: {error}")
        return Verification(run, tuple(notes), tuple(checks))
    tolerance = _tolerance(run, recipe, accelerator, tolerant, notes)
    held, asked = _images_per_pass(run.record, recipe)
    if held < asked:  # another batch sums in another order
        notes.append(f"evaluated in smaller batches, as the run did: memory held {held} of {asked} images")
    model, evaluations = evaluation_parts(recipe, accelerator, store, backbone, held / asked)
    for split, metrics in recorded.items():
        if split not in evaluations:
            raise UserError(f"{run.path}: metrics.{split}: its recipe has no {split} split")
        count = len(evaluations[split].images)
        watcher.on_message(f"evaluating {count:,} {split} images on {accelerator.device}")
        with rounding_of(switches, accelerator.device.type):
            found = evaluate(model, evaluations[split], accelerator)
        checks += _compare_metrics(split, metrics, found.metrics(), count, tolerance)
        if run.artifact(artifact_name(split)) is None:
            notes.append(f"{split}: no stored predictions beside the record: metrics alone are compared")
        checks += _stored_checks(run, split, metrics, found, tolerance)
    return Verification(run, tuple(notes), tuple(checks))


def _by_split(record: RunRecord) -> dict[str, SplitMetrics]:
    metrics = record.metrics or Metrics()
    splits = {"test": metrics.test, "validation": metrics.validation}
    return {split: each for split, each in splits.items() if each is not None}


def _stored_checks(
    run: StoredRun, split: str, metrics: SplitMetrics, found: Predictions, tolerance: Tolerance
) -> list[ValueCheck]:
    """Compare the stored predictions, if any, with digest, recorded metrics and what was found."""
    name, checks = artifact_name(split), []
    file = run.artifact(name)
    if file is None:
        return []
    recorded, digest = run.record.artifacts[name].sha256, file_sha256(file)
    if digest != recorded:
        checks.append(_compare_hashes(f"{split} predictions file", recorded, digest))
    try:
        stored = stored_predictions(run, split, len(found.label))
    except UserError as error:
        return [*checks, ValueCheck(f"{split} predictions", False, str(error))]
    assert stored is not None
    own = _compare_own_metrics(split, metrics, stored)
    return [*checks, own, _compare_predictions(split, stored, found, tolerance)]


def _weights_file(run: StoredRun) -> Path:
    if file := run.artifact("model"):
        return file
    status, entry = run.record.status, run.record.artifacts.get("model")
    if entry is not None:
        reason = f"no stored weights: {entry.path} is not beside the record. Copy it there"
    elif status == "interrupted":
        reason = "no stored weights: the run is not complete; the command that began it goes on"
    elif status == "completed" and run.record.metrics and run.record.metrics.test is None:
        reason = "no stored weights: a search keeps none"
    else:
        reason = f"no stored weights ({status}); a run that completes leaves them in model.safetensors"
    raise UserError(f"{run.path}: {reason}, or `pugdft rerun` makes them again")


def _accelerator(recipe: Recipe, notes: list[str]) -> tuple[Recipe, Accelerator]:
    """Accelerate in the record's precision, or in fp32 where this device does not have it."""
    try:
        return recipe, make_accelerator(recipe)
    except ValueError:  # ours, or Accelerate's own
        precision = recipe.train.precision
        if precision == "fp32":
            raise
    notes.append(f"evaluated in fp32: this device has no {precision}, which is the record's precision")
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"precision": "fp32"})})
    return recipe, make_accelerator(recipe)


def _store(recipe: Recipe, data: str | None) -> Store:
    try:
        source = open_source(recipe.data.name)
        # The same images may lie here in another form, and how they are read changes no result.
        storage = recipe.data.storage if source.folder else "auto"
        return prepare(source, recipe.data.image_size, storage)
    except UserError as error:
        remedy = "" if data else "\n--data NAME_OR_FOLDER says where the record's data lies on this machine"
        raise UserError(f"{error}{remedy}") from None


def read_stored_weights(file: Path) -> dict[str, Tensor]:
    """Tensors of a ``.safetensors`` file.

    Raises:
        UserError: it is not one, or is damaged.
    """
    try:
        return safetensors.torch.load_file(file)
    except Exception as error:  # the reader's own kind, and Python's for odd headers
        raise UserError(f"{file}: not readable as .safetensors: {error}") from None


def _load(backbone: Backbone, weights: Path, name: str) -> None:
    tensors = read_stored_weights(weights)
    try:
        backbone.model.load_state_dict(tensors)
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:300]
        raise UserError(f"{weights}: does not fit {name}: {detail}") from None


def _tolerance(
    run: StoredRun, recipe: Recipe, accelerator: Accelerator, tolerant: bool, notes: list[str]
) -> Tolerance:
    precision, environment = recipe.train.precision, run.record.environment
    here = environment_facts(accelerator, precision)
    differences = _environment_differences(environment, here)
    if not differences and not tolerant:
        notes.append(
            "compared bit for bit: versions and device are the record's (--tolerant allows for rounding)"
        )
        return EXACT
    is_fp32 = precision == environment.get("precision") == "fp32"
    tolerance = ROUNDING if is_fp32 else ROUNDING_16_BITS
    notes.append(f"compared up to rounding ({'; '.join(differences) or '--tolerant'})")
    notes.append(f"allowed: {tolerance}")
    return tolerance


# A run of the recipe again


def rerun_recipe(run: StoredRun, data: str | None = None) -> Recipe:
    """A record's recipe, checked as any other; keys that an older version did not have get their defaults.

    Args:
        run: the record.
        data: where its data lies here, if not where the recipe says.

    Raises:
        UserError: it cannot run here, or the run was interrupted, so that there is nothing to compare with.
    """
    if run.record.status == "interrupted":
        raise UserError(f"{run.path}: the run was interrupted: there is nothing to compare with")
    return _recipe(run, data, read_recipe)


def rerun_folder(run: StoredRun, output: Path | None = None) -> Path:
    """Where the new run goes: ``output``, or ``reruns/ID`` with nothing of the id that leads elsewhere.

    Raises:
        UserError: it is the record's own folder.
    """
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", run.record.id)[:_LONGEST_NAME].lstrip(".-")
    folder = output or Path("reruns") / (name or "record")
    if folder.resolve() == run.path.parent.resolve():
        raise UserError(f"--output {folder}: holds the record itself; choose another folder")
    return folder


def rerun(
    run: StoredRun,
    folder: Path,
    data: str | None = None,
    *,
    resume: bool = True,
    observer: Observer | None = None,
) -> StoredRun:
    """Run a record's recipe again in another folder; an interrupted rerun goes on.

    Where the run's memory did not hold a whole pass, this one begins with passes as small.

    Raises:
        UserError: the recipe, the data, the weights or the folder cannot be used.
    """
    recipe = rerun_recipe(run, data)
    held, asked = _images_per_pass(run.record, recipe)
    size = held if held < asked else None
    record, path = finetune(recipe, folder, resume=resume, observer=observer, micro_batch_size=size)
    return StoredRun(record, path)


@dataclass(frozen=True)
class RunComparison:
    """Two runs of one recipe.

    Attributes:
        checks: one for each thing compared; some may differ although the runs agree.
        agrees: whether the new run confirms the record.
        verdict: why, in words.
    """

    checks: tuple[ValueCheck, ...]
    agrees: bool
    verdict: str


def compare_runs(old: StoredRun, new: StoredRun, *, tolerant: bool = False) -> RunComparison:
    """Compare two runs of one recipe, and say whether the new one confirms the record.

    It does if the results are identical. On a CPU, with the same versions, device and images a pass, nothing
    less will do, unless one of the runs changed on its way. Elsewhere sums are made in another order and
    training amplifies that: the top-1 may then differ as chance makes it, by McNemar's exact test on the
    stored predictions (two-sided, 1 %), or without these by no more than 3·√(2p(1 − p)/N).

    Args:
        old: the record.
        new: the run that confirms it, or does not.
        tolerant: allow for chance even on a CPU with the same versions.
    """
    recorded, found = old.record, new.record
    also = ["python", "git"]
    if "micro_batch_size" in recorded.environment:  # older records do not have it
        also.append("micro_batch_size")
    differences = [
        *_environment_differences(recorded.environment, found.environment, also),
        *changes_on_the_way(recorded, "recorded"),
        *changes_on_the_way(found, "found"),
    ]
    inputs, results = _input_checks(recorded, found), _result_checks(old, new)
    before, now = recorded.cost.train_seconds, found.cost.train_seconds
    ratio = f" ({now / before:.2f} times)" if before > 0 else ""
    checks = (
        ValueCheck("environment", not differences, "; ".join(differences) or "same versions and device"),
        *inputs,
        *results,
        ValueCheck("training time", None, f"recorded {before:.1f} s, found {now:.1f} s{ratio}"),
    )
    if any(check.name == "data" and not check.agrees for check in inputs):
        return RunComparison(checks, False, "the images are not those of the record: nothing can be compared")
    if recorded.status != found.status:
        return RunComparison(checks, False, f"ended as {found.status}; the record says {recorded.status}")
    if all(check.agrees for check in results):
        return RunComparison(checks, True, "identical: all results have the same bits")
    is_exact = not differences and found.environment.get("device") == "cpu" and not tolerant
    agrees, verdict = _agrees_up_to_chance(old, new, is_exact)
    if differences and not agrees:
        verdict += f". They did not run alike, which may be why: {'; '.join(differences)}"
    return RunComparison(checks, agrees, verdict)


def _agrees_up_to_chance(old: StoredRun, new: StoredRun, is_exact: bool) -> tuple[bool, str]:
    """Whether the top-1 differs by no more than chance makes it, and that in words."""
    first, second = _by_split(old.record), _by_split(new.record)
    split = "validation" if "test" not in (first | second) and first | second else "test"
    recorded, found = first.get(split), second.get(split)
    if recorded is None or found is None:
        stated = f"{split} top-1 is in {'neither' if recorded is found else 'only one'} of both records"
    else:
        points = 100 * (found.top1 - recorded.top1)
        stated = f"{split} top-1: recorded {recorded.top1:.2%}, found {found.top1:.2%} ({points:+.2f} points)"
    if is_exact:
        return False, (
            f"{stated}; on a CPU a run with the same versions comes to the same bits "
            "(--tolerant allows for chance, as where the record is of another processor)"
        )
    if recorded is None or found is None:
        return recorded is found, stated
    stored, fresh, _ = _read_both(old, new, split)
    if stored is not None and fresh is not None:
        if not _compare_own_metrics(split, recorded, stored).agrees:
            return False, f"{stated}, where it is not that of the predictions beside it"
        if np.array_equal(stored.label, fresh.label):
            right_before, right_now = stored.prediction == stored.label, fresh.prediction == fresh.label
            before, now = int((right_before & ~right_now).sum()), int((right_now & ~right_before).sum())
            p_value = mcnemar(before, now)
            return p_value >= LEVEL, (
                f"{stated}: of {len(fresh.label):,} images {before:,} are right only in the recorded run, "
                f"{now:,} only in the new one; p = {p_value:.2g} by McNemar's exact test (at least {LEVEL:g} "
                "is asked for)"
            )
    count = _num_images(new, split)
    middle = min(1.0, max(0.0, (recorded.top1 + found.top1) / 2))
    allowed = 3 * math.sqrt(2 * middle * (1 - middle) / max(1, count))
    return abs(recorded.top1 - found.top1) <= allowed + 1e-9, (
        f"{stated}; no predictions beside the record: {allowed:.2%} is allowed, three standard errors of "
        f"{count:,} images"
    )


def _num_images(run: StoredRun, split: str) -> int:
    return run.record.data.sizes.get(split, 0) if run.record.data else 0


def _read_both(
    old: StoredRun, new: StoredRun, split: str
) -> tuple[Predictions | None, Predictions | None, str | None]:
    """The predictions that both runs stored for a split, and what is wrong if they cannot be read."""
    count = _num_images(new, split)
    try:
        return stored_predictions(old, split, count), stored_predictions(new, split, count), None
    except UserError as error:
        return None, None, str(error)


def _result_checks(old: StoredRun, new: StoredRun) -> list[ValueCheck]:
    """Compare what two runs that are the same have in common to the last bit."""
    recorded, found = old.record, new.record
    checks = [
        ValueCheck("status", recorded.status == found.status, _pair(recorded.status, found.status)),
        _history_check(recorded.history, found.history),
    ]
    before, now = _by_split(recorded), _by_split(found)
    for split in before | now:
        if split not in before or split not in now:
            where = "found here" if split in now else "in the record"
            checks.append(ValueCheck(f"{split} metrics", False, f"only {where}"))
            continue
        checks += _compare_metrics(split, before[split], now[split], 1, EXACT)
        stored, fresh, fault = _read_both(old, new, split)
        if fault:
            checks.append(ValueCheck(f"{split} predictions", False, fault))
        if stored is not None and fresh is not None:
            checks.append(_compare_own_metrics(split, before[split], stored))
            checks.append(_compare_predictions(split, stored, fresh, EXACT))
    best = [record.metrics and record.metrics.best_test for record in (recorded, found)]
    if best[0] and best[1]:
        checks.append(_compare_numbers("best epoch on test", best[0].top1, best[1].top1, is_fraction=True))
    checks += [
        _compare_numbers("updates", recorded.cost.steps, found.cost.steps),
        _compare_numbers("gradient passes", recorded.cost.gradient_passes, found.cost.gradient_passes),
    ]
    if "model" in recorded.artifacts and "model" in found.artifacts:
        digests = recorded.artifacts["model"].sha256, found.artifacts["model"].sha256
        checks.append(_compare_hashes("trained weights", *digests))
    return checks


def _input_checks(recorded: RunRecord, found: RunRecord) -> list[ValueCheck]:
    """Compare digests of what both runs started from; what an older record does not have is left out."""
    names = {
        "data": ("data", "sha256"),
        "training split": ("data", "split_sha256"),
        "order of images": ("data", "order_sha256"),
        "augmentation": ("data", "augmentation_sha256"),
        "initial weights": ("model", "weights_sha256"),
        "new head": ("model", "head_sha256"),
    }
    checks = []
    for name, (part, key) in names.items():
        before, now = (getattr(getattr(record, part), key, None) for record in (recorded, found))
        if before is not None and now is not None:
            checks.append(_compare_hashes(name, before, now))
    return checks


def _history_check(recorded: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]) -> ValueCheck:
    """Find the first epoch that differs in anything but time; keys that one side lacks are left out."""
    for number, (old, new) in enumerate(zip(recorded, found, strict=False), start=1):
        for key in new:
            if key in old and key != "train_seconds" and not _same(old[key], new[key]):
                detail = f"from epoch {number} on: {key} {_pair(old[key], new[key])}"
                return ValueCheck("history", False, detail)
    if len(recorded) != len(found):
        return ValueCheck("history", False, f"recorded {len(recorded):,} epochs, found {len(found):,}")
    return ValueCheck("history", True, f"{counted(len(found), 'epoch')}, identical")
