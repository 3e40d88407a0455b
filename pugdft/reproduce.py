"""A run as it lies in a folder: its record and the files that the record names.

A record may come from anyone: its paths are followed only within its own folder, and what they lead to
is read as tensors and arrays, never unpickled.
"""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Mapping, Sequence
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
from pugdft.predictions import Predictions, read_predictions
from pugdft.records import RECORD_NAME, DataFacts, Metrics, RunRecord, SplitMetrics, read_record
from pugdft.training.callbacks import Observer
from pugdft.training.environment import environment_facts
from pugdft.training.performance import attention_of, pick, rounding_of
from pugdft.training.run import finetune, read_recipe
from pugdft.training.setup import evaluation_parts, make_accelerator
from pugdft.training.trainer import evaluate

# What predictions take: bytes an image, uncompressed, and for the archive itself; both with room to spare.
_BYTES_PER_IMAGE, _BYTES_OF_ARCHIVE = 64, 2**16

_COLUMNS = {"label": "iu", "prediction": "iu", "in_top5": "b", "confidence": "f", "loss": "f"}


@dataclass(frozen=True)
class StoredRun:
    """A record and the file that it was read from."""

    record: RunRecord
    path: Path

    def artifact(self, name: str) -> Path | None:
        """The file that the record names so; None if it names none or the file is not here.

        Raises:
            UserError: the path leads out of the record's folder.
        """
        entry = self.record.artifacts.get(name)
        if entry is None:
            return None
        folder = self.path.parent.resolve()
        try:
            file = (folder / entry.path).resolve()
            is_inside, is_file = file.is_relative_to(folder), file.is_file()
        except (OSError, ValueError, RuntimeError):  # too long, a null byte, a loop of links
            is_inside = is_file = False
        if not is_inside:
            raise UserError(
                f'{self.path}: artifacts.{name}.path: "{entry.path}" is not in the record\'s folder; '
                "files are read from there only"
            )
        return file if is_file else None

    def has_hash(self, name: str, file: Path) -> bool:
        """Whether a file of :meth:`artifact` is the one that the record speaks of."""
        return file_sha256(file) == self.record.artifacts[name].sha256

    def predictions(self, split: str, num_images: int) -> Predictions | None:
        """The stored predictions of a split of so many images; None if there are none.

        Raises:
            UserError: they lie elsewhere, cannot be read, or are not of so many images.
        """
        file = self.artifact(predictions_name(split))
        return None if file is None else _read_predictions(file, num_images)


def open_run(path: Path) -> StoredRun:
    """A run from its record or its folder.

    Raises:
        UserError: there is no record, it cannot be read, or it names files outside its folder.
    """
    file = path / RECORD_NAME if path.is_dir() else path
    if not file.exists():
        hint = ""
        if path.is_dir() and (inside := sorted(path.glob(f"*/{RECORD_NAME}"))):
            hint = f"; {counted(len(inside), 'record')} below it: {path}/*/{RECORD_NAME}"
        raise UserError(f"{path}: no {RECORD_NAME} here{hint}" if path.is_dir() else f"{path}: no such file")
    try:
        record = read_record(file)
        record.to_yaml()  # a number that has no end when written out is found here
    except UserError:
        raise
    except (ValueError, ArithmeticError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file}: not readable as a record: {error!r}") from None
    run = StoredRun(record, file)
    for name in record.artifacts:
        run.artifact(name)  # none may lead elsewhere, whichever is read later
    return run


def predictions_name(split: str) -> str:
    """How a record's artifacts call the predictions of a split."""
    return "predictions" if split == "test" else f"predictions_{split}"


def read_stored_weights(file: Path) -> dict[str, Tensor]:
    """Tensors of a ``.safetensors`` file.

    Raises:
        UserError: it is not one, or is damaged.
    """
    try:
        return safetensors.torch.load_file(file)
    except Exception as error:  # the reader's own kind, and Python's for odd headers
        raise UserError(f"{file}: not readable as .safetensors: {error}") from None


def _read_predictions(file: Path, num_images: int) -> Predictions:
    try:
        with zipfile.ZipFile(file) as archive:
            if sum(member.file_size for member in archive.infolist()) > (
                _BYTES_PER_IMAGE * num_images + _BYTES_OF_ARCHIVE
            ):
                raise UserError(f"{file}: is too large for the predictions of {num_images:,} images")
        predictions = read_predictions(file)
    except UserError:
        raise
    except Exception as error:  # zipfile's, zlib's and numpy's own kinds
        raise UserError(f"{file}: not readable as predictions: {error}") from None
    for name, kinds in _COLUMNS.items():
        array = getattr(predictions, name)
        if array.shape != (num_images,) or array.dtype.kind not in kinds:
            raise UserError(
                f"{file}: {name}: {array.dtype} of shape {array.shape}, expected one value for each of "
                f"{num_images:,} images"
            )
    return predictions


def with_value(recipe: Mapping[str, Any], section: str, key: str, value: object) -> dict[str, Any]:
    """A copy of a record's recipe with one other value; a section that is no mapping stays as it is."""
    old = recipe.get(section)
    return {**recipe, section: {**old, key: value} if isinstance(old, Mapping) else old}


def images_a_pass(record: RunRecord) -> int | None:
    """Images a forward pass and process at the run's end; None if the record does not say it."""
    return _positive(record.environment, "micro_batch_size")


def images_asked_for(record: RunRecord, recipe: Recipe) -> int:
    """Images a forward pass and process by the run's recipe, had memory held them."""
    processes = _positive(record.environment, "processes") or 1
    return recipe.train.micro_batch_size or -(-recipe.train.batch_size // processes)


def shrunk_size(record: RunRecord, recipe: Recipe) -> int | None:
    """Images a forward pass and process, if they are fewer than the recipe asks for: memory held no more."""
    size = images_a_pass(record)
    return size if size is not None and size < images_asked_for(record, recipe) else None


def changes_on_the_way(record: RunRecord, place: str) -> list[str]:
    """Updates made by other processes, or in passes of another size, than those before them.

    No second run repeats that. ``restarts`` does not list a run's first start: if its passes were smaller
    than asked for, and it went on later, that counts as a change too.

    Args:
        record: of the run.
        place: where it ran, such as ``there``: the last word of each change.
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
        if processes := _positive(after, "processes"):  # noted only where they are not those before
            changes.append(f"from update {shown(step)} on {_counted(processes, 'process')} {place}")
        size = _positive(after, "micro_batch_size")
        if size is not None and size != _positive(before, "micro_batch_size"):
            changes.append(f"from update {shown(step)} on {_counted(size, 'image')} a pass {place}")
    return changes


def _positive(facts: Mapping[str, Any], key: str) -> int | None:
    value = facts.get(key)
    return value if type(value) is int and value > 0 else None


def _counted(number: int, noun: str) -> str:
    return shown(counted(number, noun))


# Where all of these are equal, the same weights and images give the same bits.
_DECIDES_BITS = (
    "pugdft", "torch", "timm", "accelerate", "numpy",
    "platform", "device", "device_name", "processes", "threads", "precision",
)  # fmt: skip

# Metrics that follow from stored predictions, by another numpy perhaps: sums in another order.
_SUMMATION = 1e-6

_LONGEST = 80


@dataclass(frozen=True)
class Check:
    """One thing compared: what, whether it agrees (None: it need not), and the numbers in words."""

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

    top1: float
    loss: float
    ece: float
    changed: float
    image_loss: float

    def __str__(self) -> str:
        return (
            f"top-1 and top-5 by {self.top1:.1%}, the loss by {self.loss:g}, the calibration error by "
            f"{self.ece:g}; another class, or a loss further away than {self.image_loss:g}, for "
            f"{self.changed:.1%} of the images"
        )


EXACT = Tolerance(0.0, 0.0, 0.0, 0.0, 0.0)
# Measured: EfficientNet-Lite0 at 70 % on 2,000 images, bf16 against fp32. Another class for 1.4 %, top-1 by
# 0.15 %, mean loss by 0.0018, calibration error by 0.0016, the loss of one image by up to 0.22.
ROUNDING_16_BITS = Tolerance(top1=0.005, loss=0.01, ece=0.01, changed=0.03, image_loss=0.5)
# fp32 on another device: TF32, the coarsest that is called so, keeps three bits more than bf16.
ROUNDING = Tolerance(top1=0.002, loss=0.001, ece=0.003, changed=0.005, image_loss=0.05)


def environment_differences(
    there: Mapping[str, Any], here: Mapping[str, Any], also: Sequence[str] = ()
) -> list[str]:
    """What decides a run's bits and differs, such as ``torch 2.9.0 there, 2.10.0 here``."""
    return [
        f"{key} {shown(there.get(key))} there, {shown(here.get(key))} here"
        for key in (*_DECIDES_BITS, *also)
        if there.get(key) != here.get(key)
    ]


def compare_hashes(name: str, there: str, here: str, what: str = "") -> Check:
    """Two sha256, of which a few digits are shown after ``what`` they are of."""
    prefix = f"{what}, " if what else ""
    if here == there:
        return Check(name, True, f"{prefix}sha256 {here[:12]}…")
    return Check(name, False, f"{prefix}sha256 {here[:12]}… here, {there[:12]}… in the record")


def compare_metrics(
    split: str, there: SplitMetrics, here: SplitMetrics, num_images: int, tolerance: Tolerance
) -> list[Check]:
    """Top-1, top-5, loss and calibration error, each a check."""
    images = _rounded_up(tolerance.top1, num_images) / num_images
    allowed = {"top1": images, "top5": images, "loss": tolerance.loss, "ece": tolerance.ece}
    names = {"top1": "top-1", "top5": "top-5", "loss": "loss", "ece": "calibration error"}
    return [
        compare_numbers(
            f"{split} {name}", getattr(there, key), getattr(here, key), allowed[key], key in ("top1", "top5")
        )
        for key, name in names.items()
    ]


def compare_numbers(
    name: str, there: float, here: float, allowed: float = 0.0, is_fraction: bool = False
) -> Check:
    """Two numbers, equal or no further apart than allowed."""
    if same(there, here):
        return Check(name, True, _number(here, is_fraction))
    # 1e-9: an image is 1/N, and the difference of two multiples of 1/N is one only up to rounding.
    agrees = bool(allowed) and abs(there - here) <= allowed + 1e-9
    texts = _number(here, is_fraction), _number(there, is_fraction)
    if texts[0] == texts[1]:
        texts = repr(here), repr(there)
    margin = f" (allowed: {_number(allowed, is_fraction)})" if allowed else ""
    return Check(name, agrees, f"{texts[0]} here, {texts[1]} in the record{margin}")


def compare_predictions(split: str, there: Predictions, here: Predictions, tolerance: Tolerance) -> Check:
    """Image by image: the true class, the predicted one, and the loss."""
    name, count = f"{split} predictions", len(here.label)
    if not np.array_equal(there.label, here.label):
        return Check(name, False, "are of other images: the true classes differ")
    if identical(there, here):
        return Check(name, True, f"{count:,} images, identical")
    other_class = there.prediction != here.prediction
    apart = np.abs(there.loss.astype(np.float64) - here.loss)
    with_other_loss = ~(apart <= tolerance.image_loss)  # a loss that is not a number agrees with none
    detail = (
        f"{other_class.sum():,} of {count:,} images have another class; "
        f"the loss of one image differs by up to {apart.max():.2g}"
    )
    if tolerance == EXACT:
        return Check(name, False, detail)
    allowed = _rounded_up(tolerance.changed, count)
    agrees = int((other_class | with_other_loss).sum()) <= allowed
    return Check(name, agrees, f"{detail} (allowed: {allowed:,} with another class or loss)")


def compare_own_metrics(split: str, record: SplitMetrics, predictions: Predictions) -> Check:
    """Whether a record's metrics are those of the predictions beside it."""
    own = predictions.metrics()
    for check in compare_metrics(
        split, record, own, len(predictions.label), Tolerance(0, _SUMMATION, _SUMMATION, 0, 0)
    ):
        if not check.agrees:
            name, detail = check.name.removeprefix(f"{split} "), check.detail.replace("here", "by them")
            return Check(
                f"{split} predictions file", False, f"is not what the metrics are of: {name} {detail}"
            )
    return Check(f"{split} predictions file", True, "gives the record's metrics")


def identical(first: Predictions, second: Predictions) -> bool:
    """Whether two sets of predictions have the same bits."""
    return all(
        np.array_equal(getattr(first, name), getattr(second, name), equal_nan=name in ("confidence", "loss"))
        for name in Predictions.__dataclass_fields__
    )


def same(first: object, second: object) -> bool:
    """Equality under which "not a number" equals itself."""
    return first == second or (first != first and second != second)


def shown(value: object) -> str:
    """A value from a record, no longer than fits a line."""
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _rounded_up(fraction: float, num_images: int) -> int:
    return math.ceil(fraction * num_images)


def _number(value: float, is_fraction: bool) -> str:
    if isinstance(value, int):  # of any length
        return f"{value:,}"
    return f"{value:.2%}" if is_fraction else f"{value:.6g}"


LEVEL = 0.01

"""A difference that chance makes less often than this is one."""

Pair = tuple[SplitMetrics | None, SplitMetrics | None]


@dataclass(frozen=True)
class Comparison:
    """Two runs of one recipe.

    Attributes:
        checks: one for each thing compared; some may differ although the runs agree.
        agrees: whether the new run bears the record out.
        verdict: why, in words.
    """

    checks: tuple[Check, ...]
    agrees: bool
    verdict: str


def compare_runs(old: StoredRun, new: StoredRun, *, tolerant: bool = False) -> Comparison:
    """What two runs of one recipe have in common, and whether that bears the first one out.

    It does if the results are identical. On a CPU, with the same versions, device and images a pass, nothing
    less will do, unless one of the runs changed on its way. Elsewhere sums are made in another order and
    training amplifies that: the top-1 may then differ as chance makes it, by McNemar's exact test on the
    stored predictions (two-sided, 1 %), or without these by no more than 3·√(2p(1 − p)/N).

    Args:
        old: the record.
        new: the run that bears it out, or does not.
        tolerant: allow for chance even on a CPU with the same versions.
    """
    there, here = old.record, new.record
    differences = _differences(there, here)
    inputs, results = _input_checks(there, here), _result_checks(old, new)
    checks = (
        Check("environment", not differences, "; ".join(differences) or "same versions and device"),
        *inputs,
        *results,
        _seconds(there, here),
    )
    has_other_data = any(check.name == "data" and not check.agrees for check in inputs)
    if has_other_data:
        return Comparison(checks, False, "the images are not those of the record: nothing can be compared")
    if there.status != here.status:
        return Comparison(checks, False, f"ended as {here.status}; the record says {there.status}")
    if all(check.agrees for check in results):
        return Comparison(checks, True, "identical: all results have the same bits")
    if not differences and here.environment.get("device") == "cpu" and not tolerant:
        reason = (
            "on a CPU a run with the same versions comes to the same bits "
            "(--tolerant allows for chance, as where the record is of another processor)"
        )
        return Comparison(checks, False, f"{_stated(*_ranking_metrics(there, here))}; {reason}")
    agrees, verdict = _chance(old, new)
    if differences and not agrees:
        verdict += f". They did not run alike, which may be why: {'; '.join(differences)}"
    return Comparison(checks, agrees, verdict)


def _differences(there: RunRecord, here: RunRecord) -> list[str]:
    """What decides a run's bits and differs, from its start or from some update on."""
    also = ["python", "git"]
    if "micro_batch_size" in there.environment:  # older records do not have it
        also.append("micro_batch_size")
    return [
        *environment_differences(there.environment, here.environment, also),
        *changes_on_the_way(there, "there"),
        *changes_on_the_way(here, "here"),
    ]


def _chance(old: StoredRun, new: StoredRun) -> tuple[bool, str]:
    """Whether the top-1 differs by no more than chance makes it, and that in words."""
    split, there, here = _ranking_metrics(old.record, new.record)
    stated = _stated(split, there, here)
    if there is None or here is None:
        return there is here, stated
    try:
        stored, fresh = _predictions(old, new, split)
    except UserError:
        stored = fresh = None
    if stored is not None and fresh is not None:
        if not compare_own_metrics(split, there, stored).agrees:
            return False, f"{stated}, where it is not that of the predictions beside it"
        if np.array_equal(stored.label, fresh.label):
            right_there, right_here = stored.prediction == stored.label, fresh.prediction == fresh.label
            counts = int((right_there & ~right_here).sum()), int((right_here & ~right_there).sum())
            p_value = mcnemar(*counts)
            return p_value >= LEVEL, (
                f"{stated}: {counts[0]:,} of {len(fresh.label):,} images are right only there, {counts[1]:,} "
                f"only here; p = {p_value:.2g} by McNemar's exact test (at least {LEVEL:g} is asked for)"
            )
    count = _num_images(new, split)
    middle = min(1.0, max(0.0, (there.top1 + here.top1) / 2))
    allowed = 3 * math.sqrt(2 * middle * (1 - middle) / max(1, count))
    return abs(there.top1 - here.top1) <= allowed + 1e-9, (
        f"{stated}; no predictions beside the record: {allowed:.2%} is allowed, three standard errors of "
        f"{count:,} images"
    )


def _stated(split: str, there: SplitMetrics | None, here: SplitMetrics | None) -> str:
    if there is None or here is None:
        return f"{split} top-1 is in {'neither' if there is here else 'only one'} of both records"
    difference = 100 * (here.top1 - there.top1)
    return f"{split} top-1 {here.top1:.2%} here, {there.top1:.2%} in the record ({difference:+.2f} points)"


def _metrics(there: RunRecord, here: RunRecord) -> dict[str, Pair]:
    """By split, what both records say of it; splits that neither speaks of are left out."""
    first, second = there.metrics or Metrics(), here.metrics or Metrics()
    pairs: dict[str, Pair] = {
        "test": (first.test, second.test),
        "validation": (first.validation, second.validation),
    }
    return {split: pair for split, pair in pairs.items() if pair != (None, None)}


def _ranking_metrics(
    there: RunRecord, here: RunRecord
) -> tuple[str, SplitMetrics | None, SplitMetrics | None]:
    metrics = _metrics(there, here)
    split = "validation" if "validation" in metrics and "test" not in metrics else "test"
    return (split, *metrics.get(split, (None, None)))


def _result_checks(old: StoredRun, new: StoredRun) -> list[Check]:
    """What two runs that are the same have in common to the last bit."""
    there, here = old.record, new.record
    checks = [
        Check("status", there.status == here.status, _pair(there.status, here.status)),
        _history_check(there.history, here.history),
    ]
    for split, (claimed, fresh) in _metrics(there, here).items():
        checks += _split_checks(old, new, split, claimed, fresh)
    best = [record.metrics.best_test if record.metrics else None for record in (there, here)]
    if best[0] is not None and best[1] is not None:
        checks.append(compare_numbers("best epoch on test", best[0].top1, best[1].top1, is_fraction=True))
    checks += [
        compare_numbers("updates", there.cost.steps, here.cost.steps),
        compare_numbers("gradient passes", there.cost.gradient_passes, here.cost.gradient_passes),
    ]
    if "model" in there.artifacts and "model" in here.artifacts:
        digests = there.artifacts["model"].sha256, here.artifacts["model"].sha256
        checks.append(compare_hashes("trained weights", *digests))
    return checks


def _split_checks(
    old: StoredRun, new: StoredRun, split: str, there: SplitMetrics | None, here: SplitMetrics | None
) -> list[Check]:
    if there is None or here is None:
        return [Check(f"{split} metrics", False, f"only {'here' if here else 'in the record'}")]
    checks = compare_metrics(split, there, here, 1, EXACT)
    try:
        stored, fresh = _predictions(old, new, split)
    except UserError as error:
        return [*checks, Check(f"{split} predictions", False, str(error))]
    if stored is not None and fresh is not None:
        checks.append(compare_own_metrics(split, there, stored))
        checks.append(compare_predictions(split, stored, fresh, EXACT))
    return checks


def _num_images(new: StoredRun, split: str) -> int:
    return new.record.data.sizes.get(split, 0) if new.record.data else 0


def _predictions(old: StoredRun, new: StoredRun, split: str) -> tuple[Predictions | None, Predictions | None]:
    count = _num_images(new, split)
    return old.predictions(split, count), new.predictions(split, count)


def _input_checks(there: RunRecord, here: RunRecord) -> list[Check]:
    """Digests of what both runs started from; what an older record does not have is left out."""
    digests: dict[str, tuple[str | None, str | None]] = {}
    if there.data and here.data:
        digests |= {
            "data": (there.data.sha256, here.data.sha256),
            "training split": (there.data.split_sha256, here.data.split_sha256),
            "order of images": (there.data.order_sha256, here.data.order_sha256),
            "augmentation": (there.data.augmentation_sha256, here.data.augmentation_sha256),
        }
    if there.model and here.model:
        digests |= {
            "initial weights": (there.model.weights_sha256, here.model.weights_sha256),
            "new head": (there.model.head_sha256, here.model.head_sha256),
        }
    return [compare_hashes(name, a, b) for name, (a, b) in digests.items() if a is not None and b is not None]


def _history_check(there: Sequence[Mapping[str, Any]], here: Sequence[Mapping[str, Any]]) -> Check:
    """The first epoch that differs in anything but time; keys that one side does not know are left out."""
    for number, (old, new) in enumerate(zip(there, here, strict=False), start=1):
        for key in new:
            if key in old and key != "train_seconds" and not same(old[key], new[key]):
                return Check("history", False, f"from epoch {number} on: {key} {_pair(old[key], new[key])}")
    if len(there) != len(here):
        return Check("history", False, f"{len(here):,} epochs here, {len(there):,} in the record")
    return Check("history", True, f"{counted(len(here), 'epoch')}, identical")


def _seconds(there: RunRecord, here: RunRecord) -> Check:
    old, new = there.cost.train_seconds, here.cost.train_seconds
    ratio = f" ({new / old:.2f} times)" if old > 0 else ""
    return Check("training time", None, f"{new:.1f} s here, {old:.1f} s in the record{ratio}")


def _pair(there: object, here: object) -> str:
    return shown(here) if same(there, here) else f"{shown(here)} here, {shown(there)} in the record"


@dataclass(frozen=True)
class Verification:
    """What came of a verification.

    Attributes:
        notes: how it was compared, and what could not be.
        checks: in the order in which they were made.
    """

    run: StoredRun
    notes: tuple[str, ...]
    checks: tuple[Check, ...]

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
        observer: hears what is being done.

    Raises:
        UserError: something needed cannot be read: record, recipe, weights, data.
    """
    watcher = observer or Observer()
    run = open_run(path)
    facts, metrics = _claims(run)
    weights = _weights_file(run)
    recipe = _recipe(run, data)
    checks = [compare_hashes("weights file", file_sha256(weights), run.record.artifacts["model"].sha256)]
    notes: list[str] = []
    recipe, accelerator = _accelerator(recipe, notes)
    watcher.on_message(f"preparing {recipe.data.name}")
    store = _store(recipe, data)
    checks.append(compare_hashes("data", store.sha256, facts.sha256, store.name))
    if len(store.classes) != facts.classes:
        notes.append(
            f"not evaluated: the data has {len(store.classes)} classes here, {facts.classes} in the record"
        )
        return Verification(run, tuple(notes), tuple(checks))
    switches = pick(recipe, accelerator.device.type)  # as the run did: its bits are wanted
    with attention_of(switches):
        backbone = build_model(recipe.model, facts.classes, recipe.data.image_size, recipe.train.seed)
    try:
        _load(backbone, weights, recipe.model.name)
    except UserError as error:
        if checks[0].agrees:
            raise
        notes.append(f"not evaluated: {error}")
        return Verification(run, tuple(notes), tuple(checks))
    tolerance = _tolerance(run, recipe, accelerator, tolerant, notes)
    shrunk = _shrunk(run, recipe, notes)
    model, evaluations = evaluation_parts(recipe, accelerator, store, backbone, shrunk)
    for split, claimed in metrics.items():
        if split not in evaluations:
            raise UserError(f"{run.path}: metrics.{split}: its recipe has no {split} split")
        count = len(evaluations[split].images)
        watcher.on_message(f"evaluating {count:,} {split} images on {accelerator.device}")
        with rounding_of(switches, accelerator.device.type):
            fresh = evaluate(model, evaluations[split], accelerator)
        checks += _verify_split_checks(run, split, claimed, fresh, tolerance, notes)
    return Verification(run, tuple(notes), tuple(checks))


def _claims(run: StoredRun) -> tuple[DataFacts, dict[str, SplitMetrics]]:
    """What a record says that can be verified."""
    record = run.record
    metrics = record.metrics or Metrics()
    splits = {"test": metrics.test, "validation": metrics.validation}
    claimed = {split: each for split, each in splits.items() if each is not None}
    if record.data is None or not claimed:
        missing = "data" if record.data is None else "metrics"
        raise UserError(f"{run.path}: has no {missing} ({record.status}): there is nothing to verify")
    return record.data, claimed


def _weights_file(run: StoredRun) -> Path:
    file = run.artifact("model")
    if file is not None:
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


def _recipe(run: StoredRun, data: str | None) -> Recipe:
    """The record's recipe, but for the initial weights, which need not be here.

    The optimizer is not looked at: one that only the record's author has may be verified all the same.
    """
    mapping: dict[str, Any] = with_value(run.record.recipe, "model", "pretrained", False)
    if data is not None:
        mapping = with_value(mapping, "data", "name", data)
    try:
        return load_recipe(mapping, (), {"model": model_faults})
    except FaultsError as error:
        raise FaultsError(f"{run.path}: recipe", error.faults) from None


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


def _load(backbone: Backbone, weights: Path, name: str) -> None:
    tensors = read_stored_weights(weights)
    try:
        backbone.model.load_state_dict(tensors)
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:300]
        raise UserError(f"{weights}: does not fit {name}: {detail}") from None


def _shrunk(run: StoredRun, recipe: Recipe, notes: list[str]) -> float:
    """The share of a batch that the run evaluated at a time: another one sums in another order."""
    size = shrunk_size(run.record, recipe)
    if size is None:
        return 1.0
    asked_size = images_asked_for(run.record, recipe)
    notes.append(f"evaluated in smaller batches, as the run did: memory held {size} of {asked_size} images")
    return size / asked_size  # as in assemble


def _tolerance(
    run: StoredRun, recipe: Recipe, accelerator: Accelerator, tolerant: bool, notes: list[str]
) -> Tolerance:
    precision, environment = recipe.train.precision, run.record.environment
    here = environment_facts(accelerator.device, accelerator.num_processes, precision, {})
    differences = environment_differences(environment, here)
    if not differences and not tolerant:
        notes.append(
            "compared bit for bit: versions and device are the record's (--tolerant allows for rounding)"
        )
        return EXACT
    is_fp32 = precision == environment.get("precision") == "fp32"
    tolerance = ROUNDING if is_fp32 else ROUNDING_16_BITS
    reason = "; ".join(differences) or "--tolerant"
    notes.append(f"compared up to rounding ({reason})")
    notes.append(f"allowed: {tolerance}")
    return tolerance


def _verify_split_checks(
    run: StoredRun,
    split: str,
    claimed: SplitMetrics,
    fresh: Predictions,
    tolerance: Tolerance,
    notes: list[str],
) -> list[Check]:
    count = len(fresh.label)
    checks = compare_metrics(split, claimed, fresh.metrics(), count, tolerance)
    name = predictions_name(split)
    file = run.artifact(name)
    if file is None:
        notes.append(f"{split}: no stored predictions beside the record: metrics alone are compared")
        return checks
    if not run.has_hash(name, file):
        checks.append(
            compare_hashes(f"{split} predictions file", file_sha256(file), run.record.artifacts[name].sha256)
        )
    try:
        stored = run.predictions(split, count)
    except UserError as error:
        return [*checks, Check(f"{split} predictions", False, str(error))]
    assert stored is not None
    return [
        *checks,
        compare_own_metrics(split, claimed, stored),
        compare_predictions(split, stored, fresh, tolerance),
    ]


_LONGEST_NAME = 150


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
    mapping: Mapping[str, Any] = run.record.recipe
    if data is not None:
        mapping = with_value(mapping, "data", "name", data)
    try:
        return read_recipe(mapping)
    except FaultsError as error:
        raise FaultsError(f"{run.path}: recipe", error.faults) from None


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
    size = shrunk_size(run.record, recipe)
    record, path = finetune(recipe, folder, resume=resume, observer=observer, micro_batch_size=size)
    return StoredRun(record, path)
