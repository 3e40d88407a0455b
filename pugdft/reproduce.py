"""Verify a run's record with its stored weights, or run its recipe again and compare the two runs.

A record may come from anybody: its paths are followed inside its own folder only, and the files there are
read as tensors and arrays, never unpickled. In messages "recorded" is what a record says, "found" what was
computed here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from accelerate import Accelerator
from torch import Tensor

from pugdft.config.load import load_recipe
from pugdft.config.schema import Recipe
from pugdft.data.cache import prepare
from pugdft.data.datasets import open_source
from pugdft.errors import ConfigIssue, UserError, collect, counted, reason, refuse, shortened
from pugdft.leaderboard.stats import mcnemar
from pugdft.models import build_model, model_faults
from pugdft.paths import file_sha256
from pugdft.predictions import METRICS, Predictions, artifact_name, stored_predictions
from pugdft.records import RunRecord, SplitMetrics, StoredRun, open_run
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

LEVEL = 0.01  # a difference that chance makes less often than this counts as one
_LONGEST_NAME = 150


@dataclass(frozen=True)
class ValueCheck:
    name: str
    agrees: bool | None  # None: it need not
    detail: str  # the values in words


@dataclass(frozen=True)
class Tolerance:
    """How far two evaluations may be apart; the default means bit for bit."""

    metrics: Mapping[str, float] = field(default_factory=dict)  # shares of images: rounded up to whole images
    changed: float = 0.0  # fraction of the images, rounded up, whose class or whose loss may be another
    image_loss: float = 0.0  # by which the loss of one image must differ to be another

    def __str__(self) -> str:
        metrics = [
            f"{METRICS[key].name} by {value:{'.1%' if METRICS[key].is_share_of_images else 'g'}}"
            for key, value in self.metrics.items()
        ]
        return (
            f"{', '.join(metrics)}; another class, or a loss further away than {self.image_loss:g}, for "
            f"{self.changed:.1%} of the images"
        )


EXACT = Tolerance()
# Measured: EfficientNet-Lite0 at 70 % on 2,000 images, bf16 against fp32. Another class for 1.4 %, top-1 by
# 0.15 %, mean loss by 0.0018, calibration error by 0.0016, the loss of one image by up to 0.22.
ROUNDING_16_BITS = Tolerance(
    {"top1": 0.005, "top5": 0.005, "loss": 0.01, "ece": 0.01, "balanced_top1": 0.005}, 0.03, 0.5
)
# fp32 on another device: TF32, the coarsest that is called so, keeps three bits more than bf16.
ROUNDING = Tolerance(
    {"top1": 0.002, "top5": 0.002, "loss": 0.001, "ece": 0.003, "balanced_top1": 0.002}, 0.005, 0.05
)
# Metrics computed from stored predictions, by another numpy perhaps: sums in another order.
_SUMMATION = Tolerance({"loss": 1e-6, "ece": 1e-6, "balanced_top1": 1e-9})


def _compare_hashes(name: str, recorded: str, found: str, what: str = "") -> ValueCheck:
    """Compare two sha256; show their first digits after ``what``."""
    return ValueCheck(name, recorded == found, f"{what}sha256 {_pair(recorded, found, 13)}")


def _compare_metrics(
    split: str,
    recorded: SplitMetrics,
    found: SplitMetrics,
    num_images: int,
    tolerance: Tolerance,
    largest_share: float = 0.0,
) -> list[ValueCheck]:
    """Compare what both have; one image counts ``largest_share`` in the balanced accuracy at most."""
    checks = []
    for key, metric in METRICS.items():
        allowed, is_share = tolerance.metrics.get(key, 0.0), metric.is_share_of_images
        if is_share:
            allowed = math.ceil(allowed * num_images) / num_images
        elif key == "balanced_top1":  # as many images as of top-1, of whatever class
            images = math.ceil(tolerance.metrics.get("top1", 0.0) * num_images)
            allowed = max(allowed, images * largest_share)
        values = getattr(recorded, key), getattr(found, key)
        if None in values:  # of a version that did not know the metric
            continue
        checks.append(_compare_numbers(f"{split} {metric.name}", *values, allowed, is_share))
    return checks


def _compare_numbers(
    name: str, recorded: float, found: float, allowed: float = 0.0, is_share: bool = False
) -> ValueCheck:
    """Compare two numbers, which agree if they are equal or no further apart than allowed."""

    def text(value: float) -> str:
        return f"{value:,}" if isinstance(value, int) else f"{value:{'.2%' if is_share else '.6g'}}"

    if _same(recorded, found):
        return ValueCheck(name, True, text(found))
    # 1e-9: an image is 1/N, and the difference of two multiples of 1/N is one only up to rounding.
    agrees = bool(allowed) and abs(recorded - found) <= allowed + 1e-9
    write = repr if text(recorded) == text(found) else text
    margin = f" (allowed: {text(allowed)})" if allowed else ""
    return ValueCheck(name, agrees, f"recorded {write(recorded)}, found {write(found)}{margin}")


def _compare_predictions(
    split: str, metrics: SplitMetrics, stored: Predictions, found: Predictions, tolerance: Tolerance
) -> list[ValueCheck]:
    """Compare stored predictions with the metrics beside them, and image by image with what was found."""
    name, count = f"{split} predictions", len(found.label)
    own = ValueCheck(f"{name} file", True, "gives the record's metrics")
    given = _compare_metrics(split, metrics, stored.metrics(), len(stored.label), _SUMMATION)
    if wrong := next((check for check in given if not check.agrees), None):
        text = f"is not what the metrics are of: {wrong.name.removeprefix(f'{split} ')} {wrong.detail}"
        own = ValueCheck(own.name, False, text)
    if not np.array_equal(stored.label, found.label):
        return [own, ValueCheck(name, False, "are of other images: the true classes differ")]
    if all(
        np.array_equal(values, getattr(found, key), equal_nan=values.dtype.kind == "f")
        for key, values in vars(stored).items()
        if key != "path"  # the same images may lie elsewhere
    ):
        return [own, ValueCheck(name, True, f"{count:,} images, identical")]
    other_class = stored.prediction != found.prediction
    apart = np.abs(stored.loss.astype(np.float64) - found.loss)
    other_loss = ~(apart <= tolerance.image_loss)  # a loss that is not a number agrees with none
    allowed = math.ceil(tolerance.changed * count)
    agrees = allowed > 0 and int((other_class | other_loss).sum()) <= allowed
    detail = f"{other_class.sum():,} of {count:,} images have another class; the loss of one image differs"
    margin = f" (allowed: {allowed:,} with another class or loss)" if allowed else ""
    return [own, ValueCheck(name, agrees, f"{detail} by up to {apart.max():.2g}{margin}")]


def _same(first: object, second: object) -> bool:
    """Equality under which "not a number" equals itself."""
    return first == second or (first != first and second != second)


def _pair(recorded: object, found: object, length: int = 80) -> str:
    """Show a value, or both values if they differ."""
    same = _same(recorded, found)
    return f"{'' if same else f'recorded {shortened(recorded, length)}, found '}{shortened(found, length)}"


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
    """Updates made by other processes, or in passes of another size, than before: no rerun repeats that."""
    # ``restarts`` does not list a run's first start: if its passes were smaller than asked for, and it went
    # on later, that counts as a change too. Updates that a later start made again count as its own.
    course: list[tuple[int, Mapping[str, Any]]] = [(0, {})]
    for entry in record.restarts:
        step = _positive(entry, "step") or 0
        while course and course[-1][0] >= step:
            course.pop()
        course.append((step, entry))
    changes = []
    for (_, before), (step, after) in pairwise(course):
        prefix = f"{label}: from update {shortened(step)} on "
        if processes := _positive(after, "processes"):  # noted only where they are not those before
            changes.append(prefix + shortened(counted(processes, "process")))
        size = _positive(after, "micro_batch_size")
        if size is not None and size != _positive(before, "micro_batch_size"):
            changes.append(f"{prefix}{shortened(counted(size, 'image'))} a pass")
    return changes


def images_per_pass(record: RunRecord, recipe: Recipe) -> tuple[int, int]:
    """Images per forward pass and process: at the run's end (fewer if memory ran out), and as asked for."""
    processes = _positive(record.environment, "processes") or 1
    asked = recipe.train.micro_batch_size or -(-recipe.train.batch_size // processes)
    return min(_positive(record.environment, "micro_batch_size") or asked, asked), asked


def _positive(facts: Mapping[str, Any], key: str) -> int | None:
    value = facts.get(key)
    return value if type(value) is int and value > 0 else None


def recipe_of_record(
    run: StoredRun, data: str | None, read: Callable[[Mapping[str, Any]], Recipe], **model: object
) -> Recipe:
    """The record's recipe, with its data in another place and other options of the model, if given."""
    mapping = dict(run.record.recipe)
    for section, values in (("model", model), ("data", {} if data is None else {"name": data})):
        if isinstance(mapping.get(section), Mapping):
            mapping[section] = {**mapping[section], **values}
    where = f"{run.path}: recipe: "
    with refuse(UserError, lambda error: "\n".join(where + line for line in str(error).splitlines())):
        return read(mapping)


def _by_split(record: RunRecord) -> dict[str, SplitMetrics]:
    metrics = record.metrics
    splits = {"test": metrics.test, "validation": metrics.validation} if metrics else {}
    return {split: each for split, each in splits.items() if each is not None}


@dataclass(frozen=True)
class Verification:
    run: StoredRun
    notes: list[str] = field(default_factory=list)  # how it was compared, and what could not be
    checks: list[ValueCheck] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        return all(check.agrees for check in self.checks)


def verify(
    path: Path, data: str | None = None, *, tolerant: bool = False, observer: Observer | None = None
) -> Verification:
    """Evaluate a run's stored weights on its data, which may lie elsewhere here, and compare with its record.

    With the record's versions and device the same bits are expected, unless ``tolerant``; elsewhere numbers
    may be as far apart as rounding explains. Needs no pretrained weights: all tensors are the stored ones.
    """
    watcher = observer or Observer()
    run = open_run(path)
    record, recorded, result = run.record, _by_split(run.record), Verification(run)
    notes, checks = result.notes, result.checks
    if record.data is None or not recorded:
        missing = "metrics" if record.data else "data"
        raise UserError(f"{run.path}: has no {missing} ({record.status}): there is nothing to verify")
    num_classes, weights = record.data.classes, weights_file(run)
    # The optimizer is not checked: a record of a method that is not installed here can be verified too.
    read = partial(load_recipe, overrides=(), checks={"model": model_faults})
    recipe = recipe_of_record(run, data, read, pretrained=False, head="auto")
    checks.append(_compare_hashes("weights file", record.artifacts["model"].sha256, file_sha256(weights)))
    checks += _snapshot_checks(run, notes)
    recipe, accelerator = evaluation_accelerator(recipe, notes)
    watcher.on_message(f"preparing {recipe.data.name}")
    remedy = "" if data else "\n--data NAME_OR_FOLDER says where the record's data lies on this machine"
    with refuse(UserError, lambda error: f"{error}{remedy}"):
        source = open_source(recipe.data.name, recipe.data.test, recipe.data.split_names, trusts_memory=False)
        # The same images may lie here in another form, and how they are read changes no result.
        store = prepare(source, recipe.data.image_size, recipe.data.storage if source.folder else "auto")
    found_sha256 = store.sha256 if store.files else store.content_sha256()  # a check trusts no cache
    checks.append(_compare_hashes("data", record.data.sha256, found_sha256, f"{store.name}, "))
    if len(store.classes) != num_classes:
        counts = f"{len(store.classes)} classes here, {num_classes} in the record"
        notes.append(f"not evaluated: the data has {counts}")
        return result
    switches = pick(recipe, accelerator.device.type)  # as the run did: its bits are wanted
    with attention_of(switches):
        backbone = build_model(
            recipe.model, num_classes, recipe.data.image_size, recipe.train.seed, look=recipe.data
        )
    faults: list[ConfigIssue] = []
    with collect(faults):
        tensors = read_stored_weights(weights)
        words = f"{weights}: does not fit {recipe.model.name}: "
        with refuse(RuntimeError, lambda error: words + reason(error)):
            backbone.model.load_state_dict(tensors)
    for fault in faults:
        if checks[0].agrees:
            raise UserError(fault.message)
        notes.append(f"not evaluated: {fault}")
        return result
    tolerance = _tolerance(record, recipe, accelerator, tolerant, notes)
    held, asked = images_per_pass(record, recipe)
    if held < asked:  # another batch sums in another order
        notes.append(f"evaluated in smaller batches, as the run did: memory held {held} of {asked} images")
    model, evaluations = evaluation_parts(recipe, accelerator, store, backbone, held / asked)
    for split, metrics in recorded.items():
        if split not in evaluations:
            raise UserError(f"{run.path}: metrics.{split}: its recipe has no {split} split")
        count = len(evaluations[split].images)
        watcher.on_message(f"evaluating {count:,} {split} images on {accelerator.device}")
        with rounding_of(switches, accelerator.device.type):
            predictions = evaluate(model, evaluations[split], accelerator)
        own = predictions.metrics(), count, tolerance, predictions.largest_share
        checks += _compare_metrics(split, metrics, *own)
        name = artifact_name(split)
        if (file := run.artifact(name)) is None:
            notes.append(f"{split}: no stored predictions beside the record: metrics alone are compared")
            continue
        same_file = _compare_hashes(
            f"{split} predictions file", record.artifacts[name].sha256, file_sha256(file)
        )
        checks += [] if same_file.agrees else [same_file]
        (stored,), faulty = _read_predictions([run], split, count)
        checks += faulty
        if stored is not None:
            checks += _compare_predictions(split, metrics, stored, predictions, tolerance)
    return result


def _read_predictions(
    runs: Sequence[StoredRun], split: str, num_images: int
) -> tuple[list[Predictions | None], list[ValueCheck]]:
    """Read what runs stored of a split, each None if there is none; all are None if one cannot be read."""
    faults: list[ConfigIssue] = []
    with collect(faults):
        return [stored_predictions(run, split, num_images) for run in runs], []
    return [None] * len(runs), [ValueCheck(f"{split} predictions", False, str(each)) for each in faults]


def weights_file(run: StoredRun) -> Path:
    """The run's stored weights; a UserError says why there are none and what to do."""
    if file := run.artifact("model"):
        return file
    record, entry = run.record, run.record.artifacts.get("model")
    why = f" ({record.status}); a run that completes leaves them in model.safetensors"
    if entry is not None:
        why = f": {entry.path} is not beside the record. Copy it there"
    elif record.status == "interrupted":
        why = ": the run is not complete; the command that began it goes on"
    elif record.status == "completed" and record.metrics and record.metrics.test is None:
        why = ": a search keeps none"
    raise UserError(f"{run.path}: no stored weights{why}, or `pugdft rerun` makes them again")


def evaluation_accelerator(recipe: Recipe, notes: list[str]) -> tuple[Recipe, Accelerator]:
    """Accelerate in the record's precision, or in fp32 where this device does not have it."""
    precision = recipe.train.precision
    try:
        return recipe, make_accelerator(recipe)
    except ValueError:  # ours, or Accelerate's own
        if precision == "fp32":
            raise
    notes.append(f"evaluated in fp32: this device has no {precision}, which is the record's precision")
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"precision": "fp32"})})
    return recipe, make_accelerator(recipe)


def read_stored_weights(file: Path) -> dict[str, Tensor]:
    """Tensors of a ``.safetensors`` file; a UserError if it is not one, or is damaged."""
    # The reader raises its own kind, and Python's for odd headers.
    with refuse(Exception, lambda error: f"{file}: not readable as .safetensors: {error}"):
        return safetensors.torch.load_file(file)


def _tolerance(
    record: RunRecord, recipe: Recipe, accelerator: Accelerator, tolerant: bool, notes: list[str]
) -> Tolerance:
    """How far this evaluation may be from the record's, which the notes explain."""
    precision = recipe.train.precision
    differences = _environment_differences(record.environment, environment_facts(accelerator, precision))
    if not differences and not tolerant:
        how = "bit for bit: versions and device are the record's (--tolerant allows for rounding)"
        notes.append(f"compared {how}")
        return EXACT
    is_fp32 = precision == record.environment.get("precision") == "fp32"
    tolerance = ROUNDING if is_fp32 else ROUNDING_16_BITS
    notes.append(f"compared up to rounding ({'; '.join(differences) or '--tolerant'})")
    notes.append(f"allowed: {tolerance}")
    return tolerance


def rerun_recipe(run: StoredRun, data: str | None = None) -> Recipe:
    """A record's recipe, checked as any other; keys that an older version did not have get their defaults."""
    if run.record.status == "interrupted":
        raise UserError(f"{run.path}: the run was interrupted: there is nothing to compare with")
    return recipe_of_record(run, data, read_recipe)


def rerun_folder(run: StoredRun, output: Path | None = None) -> Path:
    """Where the new run goes: ``output``, or ``reruns/ID`` with nothing of the id that leads elsewhere."""
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
    """Run a record's recipe again in another folder, in passes as small; an interrupted rerun goes on."""
    recipe = rerun_recipe(run, data)
    held, asked = images_per_pass(run.record, recipe)
    size = held if held < asked else None
    return StoredRun(*finetune(recipe, folder, resume=resume, observer=observer, micro_batch_size=size))


@dataclass(frozen=True)
class RunComparison:
    checks: list[ValueCheck]  # some may differ although the runs agree
    agrees: bool  # whether the new run confirms the record
    verdict: str  # why, in words


# What both runs started from, and where its digest stands in a record.
_INPUTS = (
    ("data", "data", "sha256"),
    ("training split", "data", "split_sha256"),
    ("order of images", "data", "order_sha256"),
    ("augmentation", "data", "augmentation_sha256"),
    ("initial weights", "model", "weights_sha256"),
    ("new head", "model", "head_sha256"),
)


def _snapshot_checks(run: StoredRun, notes: list[str]) -> list[ValueCheck]:
    """Compare the weights along the run with their digests; one line for all of them."""
    names = run.record.snapshots.values()
    files = {name: run.artifact(name) for name in names}
    stored = {name: file for name, file in files.items() if file is not None}
    if missing := len(files) - len(stored):
        notes.append(f"{missing:,} of {counted(len(files), 'snapshot')} are not beside the record")
    changed = [
        file.name for name, file in stored.items() if file_sha256(file) != run.record.artifacts[name].sha256
    ]
    text = f"not what was written: {', '.join(changed[:3])}" if changed else counted(len(stored), "file")
    return [ValueCheck("snapshots", not changed, text)] if stored else []


def compare_runs(old: StoredRun, new: StoredRun, *, tolerant: bool = False) -> RunComparison:
    """Compare two runs of one recipe, and say whether the new one confirms the record.

    It does if the results are identical. On a CPU, with the same versions, device and images a pass, nothing
    less will do, unless one of the runs changed on its way, or ``tolerant``. Elsewhere sums are made in
    another order and training amplifies that: the top-1 may differ as chance makes it, by McNemar's exact
    test on the stored predictions (two-sided, 1 %), or without these by no more than 3·√(2p(1 − p)/N).
    """
    recorded, found = old.record, new.record
    also = ["python", "git", "extensions"]
    if "micro_batch_size" in recorded.environment:  # older records do not have it
        also.append("micro_batch_size")
    differences = [
        *_environment_differences(recorded.environment, found.environment, also),
        *changes_on_the_way(recorded, "recorded"),
        *changes_on_the_way(found, "found"),
    ]
    inputs, results = [], _result_checks(old, new)
    for name, part, key in _INPUTS:
        before, now = (getattr(getattr(record, part), key, None) for record in (recorded, found))
        if before is not None and now is not None:  # an older record does not have all
            inputs.append(_compare_hashes(name, before, now))
    took, takes = recorded.cost.train_seconds, found.cost.train_seconds
    ratio = f" ({takes / took:.2f} times)" if took > 0 else ""
    checks = [
        ValueCheck("environment", not differences, "; ".join(differences) or "same versions and device"),
        *inputs,
        *results,
        ValueCheck("training time", None, f"recorded {took:.1f} s, found {takes:.1f} s{ratio}"),
    ]
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
    split = "validation" if first | second and "test" not in first | second else "test"
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
    count = new.record.data.sizes.get(split, 0) if new.record.data else 0
    (stored, fresh), _ = _read_predictions([old, new], split, count)
    if stored is not None and fresh is not None:
        own, _ = _compare_predictions(split, recorded, stored, fresh, EXACT)
        if not own.agrees:
            return False, f"{stated}, where it is not that of the predictions beside it"
        if np.array_equal(stored.label, fresh.label):
            right_before, right_now = stored.prediction == stored.label, fresh.prediction == fresh.label
            before, now = int((right_before & ~right_now).sum()), int((right_now & ~right_before).sum())
            p_value = mcnemar(before, now)
            return p_value >= LEVEL, (
                f"{stated}: of {count:,} images {before:,} are right only in the recorded run, "
                f"{now:,} only in the new one; p = {p_value:.2g} by McNemar's exact test (at least {LEVEL:g} "
                "is asked for)"
            )
    middle = min(1.0, max(0.0, (recorded.top1 + found.top1) / 2))
    allowed = 3 * math.sqrt(2 * middle * (1 - middle) / max(1, count))
    return abs(recorded.top1 - found.top1) <= allowed + 1e-9, (
        f"{stated}; no predictions beside the record: {allowed:.2%} is allowed, three standard errors of "
        f"{count:,} images"
    )


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
        count = found.data.sizes.get(split, 0) if found.data else 0
        (stored, fresh), faulty = _read_predictions([old, new], split, count)
        checks += faulty
        if stored is not None and fresh is not None:
            checks += _compare_predictions(split, before[split], stored, fresh, EXACT)
    best = [record.metrics and record.metrics.best_test for record in (recorded, found)]
    if best[0] and best[1]:
        checks.append(_compare_numbers("best epoch on test", best[0].top1, best[1].top1, is_share=True))
    for name, key in (("updates", "steps"), ("gradient passes", "gradient_passes")):
        checks.append(_compare_numbers(name, getattr(recorded.cost, key), getattr(found.cost, key)))
    if "model" in recorded.artifacts and "model" in found.artifacts:
        digests = recorded.artifacts["model"].sha256, found.artifacts["model"].sha256
        checks.append(_compare_hashes("trained weights", *digests))
    return checks


def _history_check(recorded: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]) -> ValueCheck:
    """Find the first epoch that differs in anything but time; keys that one side lacks are left out."""
    if not all(any(row.get("epoch") == 0 for row in rows) for rows in (recorded, found)):
        # An older record, or one that was not to be drawn, does not say what was before the first update.
        recorded, found = ([row for row in rows if row.get("epoch") != 0] for rows in (recorded, found))
    for old, new in zip(recorded, found, strict=False):
        for key in new:
            if key in old and key != "train_seconds" and not _same(old[key], new[key]):
                detail = f"from epoch {new['epoch']} on: {key} {_pair(old[key], new[key])}"
                return ValueCheck("history", False, detail)
    count, counted_here = (sum(row.get("epoch") != 0 for row in rows) for rows in (recorded, found))
    text = f"recorded {count:,} epochs, found {counted_here:,}"
    if same := count == counted_here:
        text = f"{counted(count, 'epoch')}, identical"
    return ValueCheck("history", same, text)
