"""What the model said of every image of a split, and the metrics that follow from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np

from pugdft.paths import write_atomically
from pugdft.records import SplitMetrics

NUM_BINS = 15


@dataclass(frozen=True)
class Metric:
    """One row of :data:`METRICS`: how a metric is called, written, judged and bounded.

    Attributes:
        key: the field of ``SplitMetrics``.
        name: in words.
        higher_is_better: whether the highest value ranks first.
        bounds: lowest and highest valid value.
        importance: of its column where another metric ranks; on a narrow table the highest numbers go first.
        unit: of the number that people read.
        scale: from the stored value to that unit.
        digits: behind the point, in that unit.
        per_image: each test image's value, from the arrays of ``Predictions`` by name; None for a metric
            that is no mean over images.
    """

    key: str
    name: str
    higher_is_better: bool
    bounds: tuple[float, float]
    importance: int
    unit: str = ""
    scale: float = 1.0
    digits: int = 4
    per_image: Callable[[Mapping[str, np.ndarray]], np.ndarray] | None = None

    @property
    def is_share_of_images(self) -> bool:
        """Whether one image of N moves it by 0 or 1/N."""
        return self.per_image is not None and self.bounds == (0.0, 1.0)


METRICS: Mapping[str, Metric] = {
    metric.key: metric
    for metric in (
        Metric(
            "top1", "top-1", True, (0.0, 1.0), importance=5, unit="%", scale=100, digits=2,
            per_image=lambda arrays: arrays["prediction"] == arrays["label"],
        ),
        Metric(
            "top5", "top-5", True, (0.0, 1.0), importance=12, unit="%", scale=100, digits=2,
            per_image=lambda arrays: arrays["in_top5"],
        ),
        Metric("loss", "loss", False, (0.0, 1e100), importance=8, per_image=lambda arrays: arrays["loss"]),
        Metric("ece", "ECE", False, (0.0, 1.0), importance=10, unit="%", scale=100, digits=2),
    )
}  # fmt: skip
"""Every metric of an evaluation by its key, in the order that reports list them."""


@dataclass(frozen=True)
class Predictions:
    """Arrays of one entry an image, in the split's order; kept beside the record as ``predictions.npz``.

    Attributes:
        label: the true class, int64.
        prediction: the class with the largest logit, int64.
        in_top5: whether the true class is among the five largest logits, bool.
        confidence: softmax probability of ``prediction``, float32.
        loss: cross-entropy, float32.
    """

    label: np.ndarray
    prediction: np.ndarray
    in_top5: np.ndarray
    confidence: np.ndarray
    loss: np.ndarray

    def metrics(self) -> SplitMetrics:
        """Top-1, top-5 and calibration error as fractions, and the mean cross-entropy."""
        return SplitMetrics(
            top1=float((self.prediction == self.label).mean()),
            top5=float(self.in_top5.mean()),
            loss=float(self.loss.astype(np.float64).mean()),
            ece=self.calibration_error(),
        )

    def calibration_error(self) -> float:
        """Expected calibration error: mean |accuracy − confidence| over 15 equal bins, weighted by size.

        Source: Guo et al., arXiv 1706.04599, eq. 3, whose bins are open at the lower end.
        """
        correct = (self.prediction == self.label).astype(np.float64)
        confidence = self.confidence.astype(np.float64)
        # Lost weights give no confidence, and then no error: the first bin's, as good as any.
        bins = np.clip(np.ceil(np.nan_to_num(confidence) * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
        gaps = np.bincount(bins, weights=correct - confidence, minlength=NUM_BINS)
        return float(np.abs(gaps).sum() / len(correct))

    def write(self, path: Path) -> None:
        """Write ``.npz`` atomically."""
        buffer = BytesIO()
        np.savez_compressed(buffer, **vars(self))
        write_atomically(path, buffer.getvalue())


def read_predictions(path: Path) -> Predictions:
    """Read ``predictions.npz``; never unpickles."""
    with np.load(path, allow_pickle=False) as arrays:
        return Predictions(**{name: arrays[name] for name in Predictions.__dataclass_fields__})
