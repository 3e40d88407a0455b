"""Whether two evaluations of one split are the same, bit for bit or up to rounding."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pugdft.predictions import Predictions
from pugdft.record import SplitMetrics

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
