"""Predictions of a model for every image of a split, their file, and the metrics computed from them."""

from __future__ import annotations

import hashlib
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from pugdft.errors import UserError, printable, refuse
from pugdft.paths import write_atomically
from pugdft.records import LARGEST, SplitMetrics, StoredRun

NUM_BINS = 15

# The kinds of numpy's types, in words, and each array's.
_KINDS = {"iu": "whole numbers", "b": "true or false", "f": "floating-point numbers", "U": "text"}
_ARRAYS = {"label": "iu", "prediction": "iu", "in_top5": "b", "confidence": "f", "loss": "f"}
# Of a file whose images were files: their paths in the data's folder, as text.
_PATH = "path"
_MOST_PATH_BYTES = 2**30
# A compressed file can unfold to any size: more images than any split has are not read.
_MOST_IMAGES = 10_000_000


@dataclass(frozen=True)
class Metric:
    """One row of :data:`METRICS`: how a metric is named, written, ranked and bounded."""

    key: str  # the field of ``SplitMetrics``
    name: str
    higher_is_better: bool
    bounds: tuple[float, float]  # lowest and highest valid value
    meaning: str  # of the number, in a sentence for people who meet it first
    importance: int  # where another metric ranks, a narrow table drops the highest numbers first
    unit: str = ""  # of the number that people read: the stored one times ``scale``
    scale: float = 1.0
    digits: int = 4  # behind the point
    # Each test image's value, from the arrays of ``Predictions``; None for what is no mean over images.
    per_image: Callable[[Mapping[str, np.ndarray]], np.ndarray] | None = None

    @property
    def is_share_of_images(self) -> bool:
        """Whether one image of N moves it by 0 or 1/N."""
        return self.per_image is not None and self.bounds == (0.0, 1.0)


METRICS: Mapping[str, Metric] = {
    metric.key: metric
    for metric in (
        Metric(
            "top1", "top-1", True, (0.0, 1.0),
            "Share of test images whose most probable class is the right one.",
            importance=5, unit="%", scale=100, digits=2,
            per_image=lambda arrays: arrays["prediction"] == arrays["label"],
        ),
        Metric(
            "top5", "top-5", True, (0.0, 1.0),
            "Share of test images whose right class is among the five most probable ones.",
            importance=12, unit="%", scale=100, digits=2,
            per_image=lambda arrays: arrays["in_top5"],
        ),
        Metric(
            "loss", "loss", False, (0.0, LARGEST), "Mean cross-entropy of the test images; lower is better.",
            importance=8, per_image=lambda arrays: arrays["loss"],
        ),
        Metric(
            "ece", "ECE", False, (0.0, 1.0),
            "Calibration error: how far predictions' confidence is from the share of right ones; "
            "lower is better.", importance=10, unit="%", scale=100, digits=2,
        ),
        # An image counts by its class's size: a mean over classes, not over images.
        Metric(
            "balanced_top1", "balanced top-1", True, (0.0, 1.0),
            "Mean of the classes' own top-1: a rare class counts as much as a frequent one.",
            importance=16, unit="%", scale=100, digits=2,
        ),
    )
}  # fmt: skip
"""Every metric of an evaluation by its key, in the order that reports list them."""


@dataclass(frozen=True)
class Predictions:
    """Arrays with one entry an image, in the split's order: the file ``predictions.npz``."""

    label: np.ndarray  # the true class, int64
    prediction: np.ndarray  # the class with the largest logit, int64
    in_top5: np.ndarray  # whether the true class is among the five largest logits, bool
    confidence: np.ndarray  # softmax probability of ``prediction``, float32
    loss: np.ndarray  # cross-entropy, float32
    path: np.ndarray | None = None  # each image's file, relative to the data's folder; None: no files

    def metrics(self) -> SplitMetrics:
        """Top-1, top-5, balanced top-1 and calibration error as fractions, and the mean cross-entropy."""
        return SplitMetrics(
            top1=float((self.prediction == self.label).mean()),
            top5=float(self.in_top5.mean()),
            loss=float(self.loss.astype(np.float64).mean()),
            ece=self._calibration_error(),
            balanced_top1=self._balanced_accuracy(),
        )

    def _balanced_accuracy(self) -> float:
        """The mean recall of the classes that have images."""
        label = self.label
        if 0 <= label.min(initial=0) <= label.max(initial=0) < len(label):
            classes = label.astype(np.int64)
        else:  # a foreign file may have a label of any size; this is slower
            classes = np.unique(label, return_inverse=True)[1]
        counts = np.bincount(classes)
        right = np.bincount(classes[self.prediction == self.label], minlength=len(counts))
        return float((right[counts > 0] / counts[counts > 0]).mean())

    @property
    def largest_share(self) -> float:
        """How far one image of the smallest class moves the balanced accuracy."""
        counts = np.unique(self.label, return_counts=True)[1]
        return float(1 / (len(counts) * counts.min()))

    def _calibration_error(self) -> float:
        """Expected calibration error: mean |accuracy − confidence| over 15 equal bins, weighted by size.

        Source: Guo et al., arXiv 1706.04599, eq. 3, whose bins are open at the lower end.
        """
        correct = (self.prediction == self.label).astype(np.float64)
        gaps = np.bincount(
            self.bins(), weights=correct - self.confidence.astype(np.float64), minlength=NUM_BINS
        )
        return float(np.abs(gaps).sum() / len(correct))

    def bins(self) -> np.ndarray:
        """Each image's bin of the calibration error, from 0, by its confidence: int, (images,)."""
        # Weights that are not finite give a confidence of NaN: it goes to the first bin.
        confidence = np.nan_to_num(self.confidence.astype(np.float64))
        return np.clip(np.ceil(confidence * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)

    def write(self, path: Path) -> None:
        """Write ``.npz`` atomically."""
        buffer = BytesIO()
        arrays = {name: array for name, array in vars(self).items() if array is not None}
        np.savez_compressed(buffer, **arrays)
        write_atomically(path, buffer.getvalue())


_TOLERANCE = 1e-6  # a record's metrics are float64 of the same arrays


def disagreements(predictions: Predictions, recorded: SplitMetrics) -> Iterator[tuple[str, float, float]]:
    """Each metric that predictions do not give as a record has it: its key, theirs, and the recorded one."""
    for metric, ours in predictions.metrics():
        theirs = getattr(recorded, metric)
        if theirs is None:  # of a version that did not know the metric
            continue
        is_close = math.isclose(ours, theirs, rel_tol=1e-9, abs_tol=_TOLERANCE)
        if not is_close and not (math.isnan(ours) and math.isnan(theirs)):
            yield metric, ours, theirs


def artifact_name(split: str) -> str:
    """The name of a split's predictions among a record's artifacts."""
    return "predictions" if split == "test" else f"predictions_{split}"


def stored_predictions(run: StoredRun, split: str, num_images: int) -> Predictions | None:
    """The predictions that a record names for a split of so many images; None if there are none."""
    file = run.artifact(artifact_name(split))
    with refuse(UserError, lambda error: f"{file}: {error}"):
        return None if file is None else read_predictions(file, num_images)


def read_predictions(path: Path, num_images: int | None = None, *, exact: bool = False) -> Predictions:
    """Read ``predictions.npz``, see :func:`read_arrays`."""
    return Predictions(**read_arrays(path, num_images, exact=exact))


def read_arrays(
    path: Path, num_images: int | None, names: Sequence[str] | None = None, *, exact: bool = False
) -> dict[str, np.ndarray]:
    """Read the arrays ``names``, or all, of an ``.npz`` file that anybody may have written; unpickle nothing.

    Each must have ``num_images`` entries (None: a file that pugdft itself just wrote); ``exact`` refuses
    other arrays besides. The UserError does not name the file.
    """
    if num_images is not None and not 1 <= num_images <= _MOST_IMAGES:
        raise UserError(f"{num_images:,} images are not read, only 1 to {_MOST_IMAGES:,}")
    # zipfile, zlib and numpy's parser of headers let out nearly anything.
    unreadable = refuse(Exception, lambda error: f"not readable as predictions: {printable(error)[:100]}")
    with unreadable, zipfile.ZipFile(path) as archive:
        if names is None:
            names = [*_ARRAYS, *([_PATH] if f"{_PATH}.npy" in archive.namelist() else [])]
        if exact and sorted(archive.namelist()) != sorted(f"{name}.npy" for name in names):
            raise UserError(f"must hold the arrays {', '.join(names)}, each once, and nothing else")
        return {name: _read_array(archive, name, num_images) for name in names}


def _read_array(archive: zipfile.ZipFile, name: str, num_images: int | None) -> np.ndarray:
    """Read one array, after its header promised the expected type and size."""
    is_path = name == _PATH
    kinds = "U" if is_path else _ARRAYS[name]
    with archive.open(f"{name}.npy") as member:
        magic = member.read(10)
        # In other versions a header alone may unfold to gigabytes.
        if np.lib.format.read_magic(BytesIO(magic)) != (1, 0):
            raise UserError(f"{name} is in another version of the format than pugdft writes")
        size = int.from_bytes(magic[8:], "little")
        shape, dtype = _header(magic[8:] + member.read(size))
        if dtype.kind not in kinds or (dtype.itemsize > 8 and not is_path):
            raise UserError(f"{name} is of type {printable(dtype)[:40]}, expected {_KINDS[kinds]}")
        if len(shape) != 1 or num_images not in (None, shape[0]):
            wanted = f"expected one value for each of {num_images or 0:,} images"
            raise UserError(f"{name} has the shape {shape}, {wanted}")
        if is_path and shape[0] * dtype.itemsize > _MOST_PATH_BYTES:
            raise UserError(f"{name} is larger than {_MOST_PATH_BYTES:,} bytes")
        content = member.read(shape[0] * dtype.itemsize)
        return np.frombuffer(content, dtype, shape[0]).copy()  # a buffer's own array is read-only


@lru_cache(maxsize=64)
def _header(content: bytes) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type in an array's header, which is Python to parse: hundreds of files have the same."""
    shape, _, dtype = np.lib.format.read_array_header_1_0(BytesIO(content), max_header_size=1_000)
    return shape, dtype


def wilson_interval(num_right: Any, num_images: Any) -> tuple[Any, Any]:
    """Ends of the 95 % interval of a share of images: numbers, or arrays; from 0 to 1 where there are none.

    Source: Wilson, Journal of the American Statistical Association 22, 1927.
    """
    z = NormalDist().inv_cdf(0.975)
    right, images = np.asarray(num_right, np.float64), np.asarray(num_images, np.float64)
    middle = (right + z * z / 2) / (images + z * z)
    half = z * np.sqrt(right * (1 - right / np.maximum(images, 1)) + z * z / 4) / (images + z * z)
    return np.maximum(middle - half, 0), np.minimum(middle + half, 1)


def labels_sha256(labels: np.ndarray) -> str:
    """Digest of a split's labels, which tells whether images of two runs stand in the same order."""
    return hashlib.sha256(labels.astype("<i8").tobytes()).hexdigest()
