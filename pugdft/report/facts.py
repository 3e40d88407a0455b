"""What a report says of a run, as plain data: from its record, its predictions and its images, if here."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from pugdft.config.load import validated
from pugdft.config.schema import DataSection
from pugdft.data.cache import known_sha256
from pugdft.data.datasets import open_source
from pugdft.data.decode import decode
from pugdft.data.rng import validation_split
from pugdft.data.source import EncodedImage, Split
from pugdft.errors import ConfigIssue, UserError, collect, counted, reason, refuse, shortened
from pugdft.leaderboard.load import checked_names
from pugdft.paths import file_sha256
from pugdft.predictions import (
    METRICS,
    NUM_BINS,
    Predictions,
    artifact_name,
    disagreements,
    stored_predictions,
    wilson_interval,
)
from pugdft.records import RunRecord, SplitMetrics, StoredRun, open_run

MOST_MISTAKES = 24
_MOST_CLASSES = 100_000
_THUMBNAIL_SIDE = 128


@dataclass(frozen=True)
class ClassResult:
    name: str
    num_images: int
    num_right: int
    interval: tuple[float, float]  # 95 %, of the share of right ones
    taken_for: str  # the most frequent wrong answer, with its number of images; empty without one


@dataclass(frozen=True)
class ConfusedPair:
    label: str
    prediction: str
    num_images: int
    share: float  # of the images of the true class


@dataclass(frozen=True)
class Mistake:
    label: str
    prediction: str
    confidence: float
    path: str  # in the data's folder; empty where images lie in tables
    picture: str  # a data URI; empty without an image
    fault: str  # why there is no picture of an image that is here


@dataclass(frozen=True)
class ConfidenceBin:
    """Images whose confidence lies in one bin; shares are fractions."""

    num_images: int
    confidence: float
    accuracy: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class StoredImages:
    """Images of an evaluated split on this machine, in the order of its predictions."""

    classes: list[str]
    part: Split


@dataclass(frozen=True)
class EvaluatedSplit:
    """Stored predictions of a split, and what follows from them."""

    predictions: Predictions
    names: list[str]  # of the classes
    images: StoredImages | None

    @cached_property
    def pairs(self) -> list[tuple[int, int, int]]:
        """True class, predicted class and number of images, most images first, for those that occur."""
        keys = self.predictions.label.astype(np.int64) * len(self.names) + self.predictions.prediction
        found, counts = np.unique(keys, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return [(*divmod(int(found[at]), len(self.names)), int(counts[at])) for at in order]

    @cached_property
    def num_images(self) -> np.ndarray:
        """Images of each class, (classes,)."""
        return np.bincount(self.predictions.label, minlength=len(self.names))

    @property
    def baseline(self) -> float:
        """The accuracy of always answering the most frequent class."""
        return float(self.num_images.max() / self.num_images.sum())

    def confusion(self) -> np.ndarray:
        """Number of images by true class (row) and predicted class (column)."""
        counts = np.zeros((len(self.names),) * 2, np.int64)
        for label, prediction, count in self.pairs:
            counts[label, prediction] = count
        return counts

    def classes(self) -> list[ClassResult]:
        """Return each class with its accuracy, the lowest first; classes without images last."""
        right = np.zeros(len(self.names), np.int64)
        taken: dict[int, str] = {}
        for label, prediction, count in self.pairs:
            if label == prediction:
                right[label] = count
            else:
                taken.setdefault(label, f"{self.names[prediction]} ({count:,})")
        low, high = wilson_interval(right, self.num_images)
        results = [
            ClassResult(name, int(images), int(good), (float(lowest), float(highest)), taken.get(number, ""))
            for number, (name, images, good, lowest, highest) in enumerate(
                zip(self.names, self.num_images, right, low, high, strict=True)
            )
        ]
        return sorted(
            results, key=lambda each: (not each.num_images, each.num_right / max(1, each.num_images))
        )

    def confused(self, most: int) -> list[ConfusedPair]:
        """Return the pairs of classes that most images are confused between."""
        wrong = [pair for pair in self.pairs if pair[0] != pair[1]][:most]
        return [
            ConfusedPair(self.names[true], self.names[other], count, count / int(self.num_images[true]))
            for true, other, count in wrong
        ]

    def mistakes(self) -> list[Mistake]:
        """Return the wrong answers of highest confidence, with small pictures of their images."""
        own = self.predictions
        wrong = np.flatnonzero(own.label != own.prediction)
        order = np.argsort(-np.nan_to_num(own.confidence[wrong], nan=-1.0), kind="stable")
        chosen = [int(row) for row in wrong[order[:MOST_MISTAKES]]]
        samples = enumerate(self.images.part.samples() if self.images else ())
        pictures = {row: _picture(sample) for row, sample in samples if row in chosen}
        return [
            Mistake(
                self.names[int(own.label[row])],
                self.names[int(own.prediction[row])],
                float(own.confidence[row]),
                "" if own.path is None else str(own.path[row]),
                *pictures.get(row, ("", "")),
            )
            for row in chosen
        ]

    def calibration(self) -> list[ConfidenceBin]:
        """Return the bins of the calibration error that have images."""
        own, bins = self.predictions, self.predictions.bins()
        counts, right, confidence = (
            np.bincount(bins, weights=weights, minlength=NUM_BINS)
            for weights in (None, own.label == own.prediction, np.nan_to_num(own.confidence))
        )
        low, high = wilson_interval(right, counts)
        return [
            ConfidenceBin(
                int(counts[at]),
                float(confidence[at] / counts[at]),
                float(right[at] / counts[at]),
                (float(low[at]), float(high[at])),
            )
            for at in np.flatnonzero(counts)
        ]


@dataclass(frozen=True)
class RunFacts:
    """A run with what is known of its last evaluation."""

    run: StoredRun
    split: str  # that was evaluated: test, or validation in a search
    metrics: SplitMetrics | None
    evaluated: EvaluatedSplit | None
    cautions: list[str]  # what a reader must know before the numbers are believed
    missing: str = ""  # why there is nothing about single images
    without_pictures: str = ""  # why the images are not shown

    @property
    def record(self) -> RunRecord:
        return self.run.record

    @property
    def num_images(self) -> int:
        """Images of the split."""
        return self.record.data.sizes.get(self.split, 0) if self.record.data else 0

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the accuracy over images; None without one."""
        if self.metrics is None or self.num_images < 1 or not 0 <= self.metrics.top1 <= 1:
            return None
        low, high = wilson_interval(self.metrics.top1 * self.num_images, self.num_images)
        return float(low), float(high)


def run_facts(path: Path, data: str | None = None) -> RunFacts:
    """Read a run, its predictions, and the images that they are of.

    Args:
        path: a record or a run's folder.
        data: where the images lie on this machine, as in ``data.name``; None: where the recipe says.

    Raises:
        UserError: no run, a damaged record or damaged predictions, or ``data`` that cannot be read.
    """
    run = open_run(path)
    record = checked_names(run.record, run.path)
    stored = record.metrics
    split = "validation" if stored and stored.validation and not stored.test else "test"
    metrics = getattr(stored, split) if stored else None
    facts = RunFacts(run, split, metrics, None, list(_cautions(record)))
    num_classes = record.data.classes if record.data else 0
    if num_classes > _MOST_CLASSES:
        raise UserError(f"{run.path}: data.classes: at most {_MOST_CLASSES:,} are reported on")
    predictions = stored_predictions(run, split, facts.num_images) if facts.num_images else None
    if predictions is None:
        named = artifact_name(split) in record.artifacts
        missing = (
            f"The record names {split} predictions, but there is no such file beside it."
            if named
            else f"The record names no {split} predictions."
        )
        return replace(facts, missing=missing)
    file = run.artifact(artifact_name(split))
    for name in ("label", "prediction"):
        numbers = getattr(predictions, name)
        if numbers.min() < 0 or numbers.max() >= num_classes:
            raise UserError(f"{file}: {name} has numbers that are none of {counted(num_classes, 'class')}")
    facts.cautions.extend(_contradictions(predictions, metrics))
    if file is not None and file_sha256(file) != record.artifacts[artifact_name(split)].sha256:
        facts.cautions.append(
            "The file of predictions is not the one that the run wrote: its digest differs."
        )
    images, why = find_images(record, split, predictions.label, data)
    recorded = record.data.class_names if record.data else None
    names = recorded if recorded and len(recorded) == num_classes else images.classes if images else None
    names = names or [f"class {number}" for number in range(num_classes)]
    return replace(facts, evaluated=EvaluatedSplit(predictions, names, images), without_pictures=why)


def _cautions(record: RunRecord) -> Iterator[str]:
    """Yield what a reader must know of a record."""
    if record.status != "completed":
        why = f": {shortened(record.error, 600)}" if record.error else ""
        yield f"This run did not complete, it ended as {record.status}{why}"
    if skipped := record.method.skipped_steps:
        yield f"{counted(skipped, 'update')} skipped, because a gradient was not finite."


def _contradictions(predictions: Predictions, metrics: SplitMetrics | None) -> Iterator[str]:
    if metrics is None:
        return
    found = [
        f"{METRICS[key].name} is {recorded:.6g} in the record and {ours:.6g} by the predictions"
        for key, ours, recorded in disagreements(predictions, metrics)
    ]
    if found:
        yield f"The stored predictions contradict the record: {'; '.join(found)}."


def find_images(
    record: RunRecord, split: str, labels: np.ndarray, data: str | None = None
) -> tuple[StoredImages | None, str]:
    """Find the images that predictions of these true classes are of, or say why not; nothing is fetched.

    Raises:
        UserError: ``data`` is given and cannot be read.
    """
    given = record.recipe["data"]
    faults: list[ConfigIssue] = []
    with collect(faults):
        section = validated(DataSection, {**given, **({} if data is None else {"name": data})})
        source = open_source(section.name, section.test, section.split_names, only_looks=True)
        contents = source.read()
        part = contents.splits.get(split)
        if part is None and split == "validation" and section.validation:
            train = contents.train
            own = np.array([sample.label for sample in train.samples()], np.int64)
            with refuse(ValueError, lambda error: f"data.validation: {reason(error)}"):
                _, rows = validation_split(own, section.validation, record.seed)
            part = train.part(np.isin(np.arange(train.size), rows))
        found = known_sha256(source, section.image_size)
    if faults:
        if data is not None:
            raise UserError(f"--data {data}: {faults[0]}")
        return None, str(faults[0]).splitlines()[0].rstrip(".:")
    name = f"{source.name} on this machine"
    if part is None:
        return None, f"{name} has no {split} split"
    if part.size != len(labels) or [sample.label for sample in part.samples()] != labels.tolist():
        return None, f"{name} has other images than the run was evaluated on"
    if found is not None and record.data is not None and found != record.data.sha256:
        return None, f"{name} has other pixels than the run's images: the digest differs"
    return StoredImages(contents.classes, part), ""


def _picture(sample: EncodedImage) -> tuple[str, str]:
    """Make a small picture as a data URI; or say why there is none."""
    faults: list[ConfigIssue] = []
    with collect(faults):
        image = Image.fromarray(decode(sample))
        image.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
        buffer = BytesIO()
        image.save(buffer, "WEBP", quality=80)
        return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}", ""
    return "", str(faults[0])
