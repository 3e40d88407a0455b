"""The loss at a point of weight space: named images, a model, its weights, one function that evaluates them.

Every analysis uses the same loss: the mean cross-entropy of the sample's images in evaluation mode and fp32,
without augmentation, label smoothing or weight decay, whatever the run was trained with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from pugdft.data.cache import prepare
from pugdft.data.datasets import open_source
from pugdft.data.decode import all_named
from pugdft.data.loader import gathered, onto
from pugdft.data.rng import validation_split
from pugdft.data.transforms import ToInput
from pugdft.errors import UserError, counted, refuse
from pugdft.inference.evaluate import labelled_split, open_split
from pugdft.inference.load import LoadedModel
from pugdft.inference.predict import ImageReader
from pugdft.training.performance import products_in
from pugdft.training.setup import evaluation_batch_size

BatchNormMode = Literal["reestimate", "fixed", "batch"]


class PointValue(NamedTuple):
    """What the sample's images give at one point."""

    loss: float
    top1: float


@dataclass(frozen=True)
class Sample:
    """Images of a split, ready for a model, in an order in which classes take turns.

    Attributes:
        inputs: float32, (images, 3, side, side), on the model's device; ``labels``: int64, (images,).
        indices: rows of the prepared data's split; of a model of no run, among images of its classes.
        data_sha256: of all images of the data; of a model of no run, of the files.
        notes: what a person should know.
    """

    inputs: Tensor
    labels: Tensor
    indices: np.ndarray
    split: str
    seed: int
    data_sha256: str
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def sha256(self) -> str:
        """Digest of which images these are: equal for two runs that are evaluated on the same ones."""
        rows = self.indices.astype("<i8").tobytes()
        return hashlib.sha256(f"{self.data_sha256} {self.split} ".encode() + rows).hexdigest()

    def facts(self) -> dict[str, Any]:
        """For the stored form of an analysis."""
        return {
            "split": self.split,
            "images": len(self),
            "seed": self.seed,
            "data_sha256": self.data_sha256,
            "sha256": self.sha256,
            "indices": self.indices.tolist(),
        }


def take_sample(
    loaded: LoadedModel,
    split: str = "train",
    count: int = 256,
    seed: int = 0,
    *,
    data: str | None = None,
    on_message: Callable[[str], None] = lambda text: None,
) -> Sample:
    """Draw images of a run's split, as many of each class as there can be, by ``(seed, the data's sha256)``.

    Images that the run held out for validation are not in ``train``.

    Args:
        data: where the run's data lies here; None: as in its recipe. Of a model of no run: any data, whose
            classes are matched with the model's by name; it names its splits as it likes.

    Raises:
        UserError: the data is not here, has other classes, no such split or fewer images; or a model of no
            run is given none.
    """
    run, recipe = loaded.run, loaded.recipe
    if run is None:
        return _sample_of_any(loaded, split, count, seed, data)
    assert run.record.data is not None, "a run with weights has data"
    own = recipe.data
    remedy = "" if data else "\n--data NAME_OR_FOLDER says where the run's data lies on this machine"
    with refuse(UserError, lambda error: f"{error}{remedy}"):
        source = open_source(data or own.name, own.test, own.split_names)
        store = prepare(source, own.image_size, own.storage if source.folder else "auto", on_message)
    if len(store.classes) != loaded.num_classes:
        counts = f"{counted(len(store.classes), 'class')}, the model {loaded.num_classes:,}"
        raise UserError(f"{store.name}: has {counts}: these are not the run's images")
    if split not in store.splits:
        raise UserError(
            f"--split {split}: the run's data has no such split; it has {', '.join(store.splits)}"
        )
    labels, notes = store.labels(split), list[str]()
    rows = np.arange(len(labels))
    if split == "train":
        rows, _ = validation_split(labels, own.validation, recipe.train.seed)
    if count > len(rows):
        raise UserError(f"--images {count}: the {split} split has {counted(len(rows), 'image')}")
    if store.sha256 != run.record.data.sha256:
        notes.append("the images are not those that the run was trained with: they have changed")
    indices = rows[balanced_draw(labels[rows], count, seed, store.sha256)]
    pixels, look = store.images(split), loaded.preprocessing
    to_input = ToInput(
        pixels.shape[1],
        own.image_size,
        look.interpolation,
        look.mean,
        look.std,
        loaded.device,
        loaded.switches.channels_last,
        own.resize,
    )
    size, parts = evaluation_batch_size(recipe, loaded.device.type), []
    for start in range(0, count, size):
        part = gathered(pixels, indices[start : start + size], loaded.device)
        parts.append(to_input(part.to(loaded.device)))
    inputs = torch.cat(parts)
    return Sample(
        inputs, onto(labels[indices], loaded.device), indices, split, seed, store.sha256, tuple(notes)
    )


def _sample_of_any(loaded: LoadedModel, split: str, count: int, seed: int, data: str | None) -> Sample:
    """Draw images for a model of no run, prepared as timm's configuration of it says."""
    if data is None:
        raise UserError(f"--data: is needed, for {loaded.name} is no run's folder, which names its own data")
    source, contents, use = open_split(data, split)
    found = labelled_split(loaded, source, contents, use, skip_unknown=True)
    if count > (size := len(found.labels)):
        raise UserError(f"--images {count}: the {found.title} split has {counted(size, 'image')}")
    indices = balanced_draw(found.labels, count, seed, source.key)
    is_drawn = np.zeros(size, bool)
    is_drawn[indices] = True
    batches = list(ImageReader.of(loaded)(found.part.part(is_drawn).samples()))
    if faults := [fault for each in batches for fault in each.faults]:
        raise UserError(all_named(faults))
    in_order = torch.from_numpy(indices.argsort().argsort()).to(loaded.device)  # read in the data's order
    return Sample(
        torch.cat([each.inputs for each in batches])[in_order],
        onto(found.labels[indices], loaded.device),
        indices,
        found.title,
        seed,
        source.key,
        (*found.notes, "the images are not known to be those that the model was trained with"),
    )


def balanced_draw(labels: np.ndarray, count: int, seed: int, data_sha256: str) -> np.ndarray:
    """Positions of ``count`` images, of each class equally many or one more; a small class gives all it has.

    Classes take turns, so any run of neighbours is balanced too.
    """
    random = np.random.default_rng((seed, int(data_sha256[:16], 16)))
    classes = random.permutation(np.unique(labels))
    shuffled = [random.permutation(np.flatnonzero(labels == each)) for each in classes]
    # Images by their number within the class, then by the class.
    turns = sorted((turn, place, row) for place, rows in enumerate(shuffled) for turn, row in enumerate(rows))
    return np.array([row for _, _, row in turns[:count]], np.int64)


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The model's BatchNorm layers that keep running statistics."""
    return [
        each for each in model.modules() if isinstance(each, _BatchNorm) and each.running_mean is not None
    ]


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Give a model its weights, buffers and modes back at the end, bit for bit, also after an error."""
    tensors = [*model.parameters(), *model.buffers()]
    with torch.no_grad():
        kept = [tensor.detach().clone() for tensor in tensors]
    modes = [(module, module.training) for module in model.modules()]
    momenta = [(norm, norm.momentum) for norm in batch_norms(model)]
    trained = [(each, each.requires_grad) for each in model.parameters()]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, values in zip(tensors, kept, strict=True):
                tensor.copy_(values)
        for module, mode in modes:
            module.training = mode
        for norm, momentum in momenta:
            norm.momentum = momentum
        for parameter, is_trained in trained:
            parameter.requires_grad_(is_trained)


@dataclass(frozen=True)
class Evaluator:
    """Evaluate a model's loss on given images at whatever weights it has, or is given.

    Attributes:
        inputs: float32, (images, …); ``labels``: int64, (images,).
        batch_norm: ``reestimate`` takes new running statistics over the images before each evaluation (two
            forward passes); ``fixed`` uses those that the model has; ``batch`` normalises by each batch.
        batch_size: images at once.
    """

    model: nn.Module
    inputs: Tensor
    labels: Tensor
    batch_norm: BatchNormMode = "fixed"
    batch_size: int = 256
    _norms: list[_BatchNorm] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        self._norms.extend(batch_norms(self.model))

    @classmethod
    def of(cls, loaded: LoadedModel, sample: Sample, batch_norm: BatchNormMode = "fixed") -> Evaluator:
        """For a loaded model, in batches as a run evaluates."""
        size = evaluation_batch_size(loaded.recipe, loaded.device.type)
        return cls(loaded.model, sample.inputs, sample.labels, batch_norm, size)

    @property
    def handling(self) -> str:
        """How BatchNorm is handled, ``none`` for a model without it."""
        return self.batch_norm if self._norms else "none"

    @property
    def passes(self) -> int:
        """Forward passes over the images at each point."""
        return 2 if self.handling == "reestimate" else 1

    @torch.no_grad()
    def at(self, weights: Mapping[str, Tensor] | None = None) -> PointValue:
        """The mean loss and top-1 of all images.

        Args:
            weights: parameters or buffers by name, which the model keeps: see :func:`restored`. None: those
                that it has.
        """
        if weights is not None:
            write_weights_(self.model, weights)
        self.model.eval()
        if self.handling == "reestimate":
            self._reestimate()
        if self.handling == "batch":
            for norm in self._norms:
                norm.train()
        is_training = any(module.training for module in self.model.modules())
        assert is_training == (self.handling == "batch"), "a module was left in training mode"
        total, right = 0.0, 0
        with _exact(self.inputs.device):
            for inputs, labels in self._batches():
                logits = self.model(inputs)
                loss, correct = _sums(logits, labels)
                total, right = total + loss, right + correct
        self.model.eval()
        return PointValue(total / len(self.labels), right / len(self.labels))

    def check_batches(self) -> None:
        """Refuse batches of one image where BatchNorm's statistics are taken from them, with a UserError."""
        count = len(self.labels)
        if self.handling in ("reestimate", "batch") and count // -(-count // self.batch_size) < 2:
            raise UserError(
                f"--images {count}: BatchNorm's statistics need batches of at least 2 images; give more (a "
                f"batch has at most {self.batch_size}: train.eval_batch_size), or --batch-norm fixed"
            )

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        # Equal parts, so that no batch is so small that its statistics are noise.
        parts = -(-len(self.labels) // self.batch_size)
        yield from zip(self.inputs.tensor_split(parts), self.labels.tensor_split(parts), strict=True)

    def _reestimate(self) -> None:
        """Take each BatchNorm's statistics anew: the mean over the images' batches, in their order."""
        momenta = [norm.momentum for norm in self._norms]
        for norm in self._norms:
            norm.reset_running_stats()
            norm.momentum = None  # torch's name for the mean of all batches
            norm.train()
        try:
            with _exact(self.inputs.device):
                for inputs, _ in self._batches():
                    self.model(inputs)
        finally:
            for norm, momentum in zip(self._norms, momenta, strict=True):
                norm.momentum = momentum
                norm.eval()


def write_weights_(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Write parameters and buffers by name; those that are not named stay as they are."""
    places = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        for name, values in weights.items():
            places[name].copy_(values)


def _sums(logits: Tensor, labels: Tensor) -> tuple[float, int]:
    """The sum of the images' losses, in fp64, and how many are right."""
    if logits.device.type == "mps":  # which has no fp64
        logits, labels = logits.cpu(), labels.cpu()
    loss = functional.cross_entropy(logits.double(), labels, reduction="sum")
    return float(loss), int((logits.argmax(1) == labels).sum())


@contextmanager
def _exact(device: torch.device) -> Iterator[None]:
    """Within the context, fp32 products are fp32: no TF32, no bf16, no autocast."""
    with torch.autocast(device.type, enabled=False), products_in("ieee", device.type):
        yield
