"""Read images by threads, and predict the classes of image files."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pugdft.data.cache import cores
from pugdft.data.decode import all_named
from pugdft.data.image_folders import LeftOut
from pugdft.data.loader import onto
from pugdft.data.source import EncodedImage, visible
from pugdft.data.transforms import ToInput
from pugdft.errors import ConfigIssue, UserError, collect, counted
from pugdft.inference.load import LoadedModel
from pugdft.records import RECORD_NAME
from pugdft.training.setup import evaluation_batch_size

# Batches that are decoded while an accelerator computes; a CPU's cores decode or compute.
_AHEAD = 2


@dataclass(frozen=True)
class ReadBatch:
    """Images of a batch that decode, their inputs, (batch, 3, side, side), and what is wrong with others."""

    samples: list[EncodedImage]
    inputs: Tensor
    faults: list[str]


@dataclass(frozen=True)
class ImageReader:
    """Decodes images by a thread for each core and makes them the model's input, on its device."""

    loaded: LoadedModel
    batch_size: int

    @classmethod
    def of(cls, loaded: LoadedModel, batch_size: int | None = None) -> ImageReader:
        """Read as many images at once as a run evaluates, unless ``batch_size`` says another number."""
        return cls(loaded, batch_size or evaluation_batch_size(loaded.recipe, loaded.device.type))

    def __call__(self, samples: Iterable[EncodedImage]) -> Iterator[ReadBatch]:
        """Read images in their order. A batch that holds no image that decodes has no inputs."""
        waiting: deque[tuple[list[EncodedImage], list[Future[np.ndarray | list[ConfigIssue]]]]] = deque()
        coming = iter(samples)
        ahead = 0 if self.loaded.device.type == "cpu" else _AHEAD
        with ExitStack() as stack:
            pool = ThreadPoolExecutor(cores(), "pugdft-decode")  # decoding releases the interpreter lock
            stack.callback(pool.shutdown, cancel_futures=True)
            while True:
                while len(waiting) <= ahead and (part := list(islice(coming, self.batch_size))):
                    waiting.append((part, [pool.submit(self._attempt, each) for each in part]))
                if not waiting:
                    return
                part, futures = waiting.popleft()
                results = [each.result() for each in futures]
                pairs = [(s, r) for s, r in zip(part, results, strict=True) if isinstance(r, np.ndarray)]
                faults = [str(fault) for each in results if isinstance(each, list) for fault in each]
                yield ReadBatch(
                    [each for each, _ in pairs], self._inputs([each for _, each in pairs]), faults
                )

    def _attempt(self, sample: EncodedImage) -> np.ndarray | list[ConfigIssue]:
        faults: list[ConfigIssue] = []
        with collect(faults):
            return self.loaded.preprocessing.pixels(sample)
        return faults

    def _inputs(self, pixels: Sequence[np.ndarray]) -> Tensor:
        """Make the input of decoded images, most often of one size."""
        sides = [len(each) for each in pixels]
        size, device = self.loaded.preprocessing.image_size, self.loaded.device
        if len(set(sides)) == 1:
            return self._of_one_side(pixels)
        inputs = torch.empty((len(pixels), 3, size, size), device=device)
        for side in set(sides):
            rows = [row for row, each in enumerate(sides) if each == side]
            inputs[rows] = self._of_one_side([pixels[row] for row in rows])
        return inputs

    def _of_one_side(self, pixels: Sequence[np.ndarray]) -> Tensor:
        return self.to_input(len(pixels[0]))(onto(np.stack(pixels), self.loaded.device))

    def to_input(self, side: int) -> ToInput:
        """What makes the model's input of decoded images of this side."""
        if side not in self._to_input:
            look, channels_last = self.loaded.preprocessing, self.loaded.switches.channels_last
            resize = self.loaded.recipe.data.resize
            shown = (look.image_size, look.interpolation, look.mean, look.std)
            self._to_input[side] = ToInput(side, *shown, self.loaded.device, channels_last, resize)
        return self._to_input[side]

    @cached_property
    def _to_input(self) -> dict[int, ToInput]:
        return {}


def find_images(paths: Sequence[str], on_message: Callable[[str], None]) -> list[str]:
    """List the images that paths lead to: files as they are given, and all images below folders, by name.

    Raises:
        UserError: a path leads nowhere or to a run's folder, or a folder holds no image.
    """
    faults: list[str] = []
    images: list[str] = []
    for path in paths:
        if os.path.isfile(path):
            images.append(path)
        elif not os.path.isdir(path):
            faults.append(f"{path or 'a path'}: {'no such file or folder' if path else 'is empty'}")
        elif os.path.isfile(os.path.join(path, RECORD_NAME)):
            faults.append(f"{path}: is a run's folder, where images are expected; one run predicts at a time")
        else:
            left = LeftOut(Path(path))
            # As it was given: a path that is relative stays so.
            below = [os.path.join(path, each.relative_to(path)) for each in left.images_below(Path(path))]
            for note in left.notes():
                on_message(note)
            if not below:
                faults.append(f"{path}: holds no image")
            images += below
    if faults:
        raise UserError(_listed(faults))
    return images


def _listed(faults: list[str]) -> str:
    return faults[0] if len(faults) == 1 else all_named(faults).replace("images", "paths", 1)


@dataclass(frozen=True)
class ImagePrediction:
    """The most probable classes of an image, the first one first."""

    path: str  # as it was given
    classes: tuple[int, ...]  # numbers of the model's outputs
    confidences: tuple[float, ...]  # their softmax probabilities


def predict(
    loaded: LoadedModel,
    images: Sequence[str],
    *,
    top_k: int = 1,
    batch_size: int | None = None,
    on_fault: Callable[[str], None] = lambda fault: None,
) -> Iterator[ImagePrediction]:
    """Predict the classes of image files, in their order, a batch at a time.

    Args:
        images: paths of files, as :func:`find_images` lists them.
        top_k: number of classes, the most probable ones.
        batch_size: images at once; by default as many as a run evaluates.
        on_fault: called with a message that names an image which does not decode; the others go on.
    """
    if not 1 <= top_k <= loaded.num_classes:
        has = counted(loaded.num_classes, "class")
        raise UserError(f"--top-k: must be from 1 to the model's {has}, not {top_k:,}")
    batches = ImageReader.of(loaded, batch_size)(
        EncodedImage(Path(path), number, visible(path)) for number, path in enumerate(images)
    )

    def predictions() -> Iterator[ImagePrediction]:
        for batch in batches:
            for fault in batch.faults:
                on_fault(fault)
            if not batch.samples:
                continue
            with loaded.computing():
                best = loaded.fast_model(batch.inputs).float().softmax(1).topk(top_k, 1)
            rows = zip(batch.samples, best.indices.tolist(), best.values.tolist(), strict=True)
            for sample, classes, confidences in rows:
                yield ImagePrediction(images[sample.label], tuple(classes), tuple(confidences))

    return predictions()
