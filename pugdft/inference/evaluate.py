"""Evaluate a model on labelled images, which need not be those that it was trained for."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

from pugdft.data.cache import Store, prepare
from pugdft.data.datasets import open_source
from pugdft.data.decode import all_named
from pugdft.data.loader import EvaluationBatches, Images, Share, onto
from pugdft.data.source import Contents, Source, Split, class_name, visible, writable
from pugdft.errors import ConfigIssue, UserError, close_match, collect, counted, refuse
from pugdft.inference.load import LoadedModel
from pugdft.inference.predict import ImageReader
from pugdft.predictions import METRICS, Predictions, wilson_interval
from pugdft.reproduce import images_per_pass
from pugdft.training.performance import rounding_of
from pugdft.training.setup import evaluation_parts
from pugdft.training.trainer import evaluate

CONFIDENCE = 0.95
_RESAMPLES = 1_000
_MOST_SHOWN = 3


@dataclass(frozen=True)
class MetricEstimate:
    """A metric with its interval over images, which are taken as drawn at random; none: not finite."""

    value: float
    low: float | None
    high: float | None
    method: str  # wilson, or bootstrap


@dataclass(frozen=True)
class ModelEvaluation:
    """What a model makes of a split.

    Attributes:
        split: its use, and its own name in the data if that is another.
        predictions: labels and classes are numbers of the model's outputs.
        notes: what a person should know: how classes were matched, images that were left out.
        seconds: of reading and computing.
    """

    model: str
    data: str
    split: str
    class_names: Sequence[str]
    predictions: Predictions
    notes: list[str] = field(default_factory=list)
    num_left_out: int = 0
    device: str = ""
    precision: str = "fp32"
    seconds: float = 0.0

    @property
    def num_images(self) -> int:
        return len(self.predictions.label)

    def metrics(self) -> dict[str, MetricEstimate]:
        """Each metric by its key, with a 95 % interval: Wilson's for shares of images, else bootstrap."""
        values = self.predictions.metrics()
        drawn = _resampled(self.predictions)
        found = {}
        for key, metric in METRICS.items():
            value = getattr(values, key)
            if metric.is_share_of_images:
                low, high = wilson_interval(round(value * self.num_images), self.num_images)
                found[key] = MetricEstimate(value, float(low), float(high), "wilson")
            elif value is not None:
                found[key] = _bootstrapped(value, drawn[key], metric.bounds)
        return found

    def per_class(self) -> list[dict[str, Any]]:
        """Images and top-1 of each class that has images."""
        label, right = self.predictions.label, self.predictions.prediction == self.predictions.label
        counts = np.bincount(label, minlength=len(self.class_names))
        hits = np.bincount(label, weights=right, minlength=len(self.class_names))
        return [
            {"class": name, "images": int(count), "top1": float(hit / count)}
            for name, count, hit in zip(self.class_names, counts, hits, strict=True)
            if count
        ]


def _resampled(predictions: Predictions) -> dict[str, np.ndarray]:
    """Each metric of samples of as many images, drawn with replacement; the same ones at every call."""
    random, count = np.random.default_rng(0), len(predictions.label)
    arrays = {name: array for name, array in vars(predictions).items() if name != "path"}
    drawn: dict[str, list[float]] = {key: [] for key in METRICS}
    for _ in range(_RESAMPLES):
        chosen = random.integers(0, count, count)
        sample = Predictions(**{name: array[chosen] for name, array in arrays.items()}).metrics()
        for key, values in drawn.items():
            values.append(getattr(sample, key))
    return {key: np.array(values, np.float64) for key, values in drawn.items()}


def _bootstrapped(value: float, drawn: np.ndarray, bounds: tuple[float, float]) -> MetricEstimate:
    """The basic bootstrap interval: the calibration error of a sample is on average too large by its bias."""
    tail = (1 - CONFIDENCE) / 2
    low, high = 2 * value - np.quantile(drawn, [1 - tail, tail])
    if not np.isfinite([low, high]).all():
        return MetricEstimate(value, None, None, "bootstrap")
    return MetricEstimate(value, max(bounds[0], float(low)), min(bounds[1], float(high)), "bootstrap")


def evaluate_model(
    loaded: LoadedModel,
    data: str | None = None,
    split: str | None = None,
    *,
    batch_size: int | None = None,
    skip_unknown: bool = False,
    on_message: Callable[[str], None] = lambda text: None,
    on_images: Callable[[int, int], None] = lambda done, total: None,
) -> ModelEvaluation:
    """Evaluate a model on a split of a data set; classes are matched by name.

    A run on its own data is evaluated exactly as it was when it ended.

    Args:
        data: as ``data.name`` of a recipe; None: the run's own.
        split: test, validation or train, or the data set's own name of one; None: the run's choice, or the
            first of these that there is.
        batch_size: images at once; by default as many as a run evaluates.
        skip_unknown: leave out images of classes that the model does not have; otherwise they are refused.
        on_message: called with what a person should know meanwhile.
        on_images: called with the number of images read, and of all.

    Raises:
        UserError: no such data or split; classes that the model does not have; images that do not decode.
    """
    begin = time.perf_counter()
    if data is None and loaded.run is None:
        raise UserError(f"--data: is needed, for {loaded.name} is no run's folder, which names its own data")
    own = loaded.recipe.data
    is_own = loaded.run is not None and (data is None or _same_place(data, own.name))
    found = None
    if is_own and split in (None, "test", "validation"):
        remedy = "" if data else "\n--data NAME_OR_FOLDER says where the data lies on this machine"
        with refuse(UserError, lambda error: f"{error}{remedy}"):
            source = open_source(own.name, own.test, own.split_names)
            store = prepare(source, own.image_size, own.storage if source.folder else "auto", on_message)
        found = _of_store(loaded, store, split, batch_size, on_message)
    if found is None:
        source, contents, use = open_split(data or own.name, split, own if is_own else None)
        for note in source.notes:
            if "has no test split" not in note:  # none is needed here
                on_message(note)
        found = _of_source(loaded, source, contents, use, batch_size, skip_unknown, on_message, on_images)
    return replace(
        found,
        device=loaded.device.type,
        precision=loaded.recipe.train.precision,
        seconds=time.perf_counter() - begin,
    )


def _same_place(first: str, second: str) -> bool:
    """Tell whether two names of data mean the same."""
    return first == second or (os.path.exists(second) and os.path.realpath(first) == os.path.realpath(second))


def _of_store(
    loaded: LoadedModel,
    store: Store,
    split: str | None,
    batch_size: int | None,
    on_message: Callable[[str], None],
) -> ModelEvaluation | None:
    """Evaluate a run on its own data as it did itself; None if the data now has other classes."""
    assert loaded.run is not None
    names = [writable(name) for name in store.classes]
    if names != list(loaded.class_names or names) or len(names) != loaded.num_classes:
        return None
    recipe, record = loaded.recipe, loaded.run.record
    if batch_size is not None:
        recipe = recipe.model_copy(
            update={"train": recipe.train.model_copy(update={"eval_batch_size": batch_size})}
        )
    held, asked = images_per_pass(record, recipe)
    model, evaluations = evaluation_parts(recipe, loaded.accelerator, store, loaded.backbone, held / asked)
    use = split or next(iter(sorted(evaluations)), "test")  # test before validation
    if use not in evaluations:
        raise UserError(f"--split: the run's data has no {use} split; it has {', '.join(evaluations)}")
    batches = evaluations[use]
    on_message(f"evaluating {counted(len(batches.images), f'{use} image')} of {store.name}")
    notes = []
    if record.data is not None and store.sha256 != record.data.sha256:
        notes.append(
            "the images are not those that the run was trained and evaluated with: they have changed"
        )
    with rounding_of(loaded.switches, loaded.device.type):
        predictions = evaluate(model, batches, loaded.accelerator)
    if paths := store.paths.get(use if use in store.splits else "train"):
        where = np.array([paths[index] for index in batches.images.indices], np.str_)
        predictions = replace(predictions, path=where)
    return ModelEvaluation(loaded.name, store.name, use, names, predictions, notes)


def open_split(name: str, split: str | None, own: Any = None) -> tuple[Source, Contents, str]:
    """Open a data set that may have one split alone; return it with the use of the split to evaluate.

    Args:
        own: the section ``data`` of the run whose own data it is.
    """
    faults: list[ConfigIssue] = []
    with collect(faults):
        test, splits = (own.test, own.split_names) if own is not None else (0.0, {})
        source = open_source(name, test, splits, only_looks=own is None)
        contents = source.read()
        by_name = {each: use for use, each in contents.origins.items()}
        uses = [use for use in ("test", "validation", "train") if use in contents.splits]
        use = uses[0] if split is None else split if split in uses else by_name.get(split)
        if use is not None:
            return source, contents, use
    if (fault := str(faults[0]) if faults else "").startswith("data.name: "):
        raise UserError(fault.replace("data.name: ", "--data: ", 1))  # no split of it can be read
    if split is None:
        raise UserError(f"{fault}\n--split NAME evaluates a split of that name alone")
    # Any split may be evaluated, also one that no run would use: its classes are its own.
    with refuse(UserError, lambda error: str(error).replace("data.splits.train: ", "--split: ")):
        source = open_source(name, splits={"train": split}, only_looks=True)
        return source, source.read(), "train"


def _of_source(
    loaded: LoadedModel,
    source: Source,
    contents: Contents,
    use: str,
    batch_size: int | None,
    skip_unknown: bool,
    on_message: Callable[[str], None],
    on_images: Callable[[int, int], None],
) -> ModelEvaluation:
    """Evaluate on images that are decoded as they are read, with classes matched by name."""
    found = labelled_split(loaded, source, contents, use, skip_unknown)
    part, mapped, notes = found.part, found.labels, found.notes
    names = loaded.class_names or tuple(contents.classes)
    if absent := len(names) - len(np.unique(mapped)):
        notes.append(f"{absent:,} of the model's {counted(len(names), 'class')} have no image here")
    on_message(f"evaluating {counted(len(mapped), 'image')} of {source.name}, {found.title}")
    batches = StreamedBatches.of(loaded, part, mapped, batch_size, lambda done: on_images(done, len(mapped)))
    prepared = loaded.accelerator.prepare_model(loaded.fast_model)
    model = loaded.accelerator.unwrap_model(prepared, keep_fp32_wrapper=True)
    with rounding_of(loaded.switches, loaded.device.type):
        predictions = evaluate(model, batches, loaded.accelerator)
    if source.folder is not None:
        paths = [writable(os.path.relpath(str(each.content), source.folder)) for each in part.samples()]
        predictions = replace(predictions, path=np.array(paths, np.str_))
    return ModelEvaluation(
        loaded.name, source.name, found.title, names, predictions, notes, num_left_out=found.num_left_out
    )


@dataclass(frozen=True)
class LabelledSplit:
    """Images of classes that a model has.

    Attributes:
        labels: int64, (images,): numbers of the model's outputs.
        title: the data's own name of the split.
        notes: how classes were matched, and what is left out.
    """

    part: Split
    labels: np.ndarray
    title: str
    notes: list[str]
    num_left_out: int


def labelled_split(
    loaded: LoadedModel, source: Source, contents: Contents, use: str, skip_unknown: bool
) -> LabelledSplit:
    """Match a split's classes with the model's by name.

    Raises:
        UserError: it has no image, or none of the model's classes; or other ones, unless they are skipped.
    """
    part, origin = contents.splits[use], contents.origins.get(use, use)
    title = use if " " in origin else origin  # a split that is cut from another has no name
    labels = np.array([sample.label for sample in part.samples()], np.int64)
    if not len(labels):
        raise UserError(f"{source.name}: the {title} split holds no image")
    numbers, notes = _matched(loaded, contents.classes, source.name)
    mapped = numbers[labels]
    unknown = mapped < 0
    if unknown.any():
        strangers = [contents.classes[number] for number in np.unique(labels[unknown])]
        if unknown.all() or not skip_unknown:
            _refuse_strangers(loaded, source.name, strangers, int(unknown.sum()), not unknown.all())
        part, mapped = part.part(~unknown), mapped[~unknown]
        shown = _named_first(strangers)
        notes.append(
            f"left out: {counted(int(unknown.sum()), 'image')} of classes that the model lacks: {shown}"
        )
    return LabelledSplit(part, mapped, title, notes, int(unknown.sum()))


def _matched(loaded: LoadedModel, classes: Sequence[str], data: str) -> tuple[np.ndarray, list[str]]:
    """The number of the model's output for each class of the data, −1 for none, and how that was found."""
    if loaded.class_names is None:
        if len(classes) != loaded.num_classes:
            raise UserError(
                f"{loaded.name} has {loaded.num_classes:,} classes without names, {data} has "
                f"{len(classes):,}: they cannot be matched"
            )
        return np.arange(len(classes)), [
            "nothing names the model's classes: matched with the data's in order"
        ]
    known: dict[str, int] = {}
    for number, text in enumerate(loaded.descriptions or ()):
        for name in (text, text.partition(",")[0]):
            known[name] = -1 if known.get(name, number) != number else number  # of two classes: of none
    known |= {writable(class_name(name)): number for number, name in enumerate(loaded.class_names)}
    numbers = np.array([known.get(writable(name), -1) for name in classes], np.int64)
    same = len(classes) == loaded.num_classes and (numbers == np.arange(len(classes))).all()
    return numbers, [] if same else ["classes are matched by name"]


def _refuse_strangers(
    loaded: LoadedModel, data: str, strangers: Sequence[str], num_images: int, has_others: bool
) -> None:
    """Refuse images of classes that the model does not have."""
    known = loaded.class_names or ()
    hint = close_match(strangers[0], known)
    text = f"{data}: {counted(len(strangers), 'class')} with {counted(num_images, 'image')} "
    text += f"not among the model's {len(known):,}: {_named_first(strangers)}.{hint} The model's: "
    remedy = ". --skip-unknown leaves images of other classes out" if has_others else ""
    raise UserError(f"{text}{_named_first(known)}{remedy}")


def _named_first(names: Sequence[str]) -> str:
    return ", ".join(f'"{visible(name)}"' for name in names[:_MOST_SHOWN]) + (
        ", …" if len(names) > _MOST_SHOWN else ""
    )


@dataclass(frozen=True)
class StreamedBatches(EvaluationBatches):
    """Every image of a split once, in its order, decoded as it is read."""

    reader: ImageReader
    part: Split
    on_read: Callable[[int], None]

    @classmethod
    def of(
        cls,
        loaded: LoadedModel,
        part: Split,
        labels: np.ndarray,
        batch_size: int | None,
        on_read: Callable[[int], None],
    ) -> StreamedBatches:
        """``labels``, int64, (images,), are numbers of the model's outputs."""
        reader = ImageReader.of(loaded, batch_size)
        to_input = reader.to_input(loaded.preprocessing.image_size)
        images = Images(np.empty((0, 0, 0, 3), np.uint8), labels, np.arange(len(labels)))
        return cls(images, to_input, loaded.device, Share(), reader.batch_size, reader, part, on_read)

    def __iter__(self) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
        done, faults = 0, list[str]()
        for batch in self.reader(self.part.samples()):
            faults += batch.faults
            positions = np.arange(done, done + len(batch.samples))
            done += len(batch.samples)
            if not faults:  # then there will be no result, and the rest is only read
                yield positions, batch.inputs, onto(self.images.labels[positions], self.device)
            self.on_read(done + len(faults))
        if faults:
            raise UserError(all_named(faults))
