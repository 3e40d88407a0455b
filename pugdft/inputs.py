"""A recipe's images: which of them are in which split, and how they become batches of inputs."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from pugdft.data.augment import Augmentation, ResizedCrop
from pugdft.data.auto_augment import auto_augmentation
from pugdft.data.batches import EvaluationBatches, Images, Share
from pugdft.data.image_files import ImageFiles, cores
from pugdft.data.seeding import validation_split
from pugdft.data.store import Store
from pugdft.data.transfer import RESIDENT_SHARE, free_device_bytes, is_pinned_for, resident
from pugdft.data.transforms import ToInput
from pugdft.data.workers import ImageWorkers
from pugdft.errors import UserError
from pugdft.models import Backbone
from pugdft.performance import pick
from pugdft.recipe import Recipe

# A CPU gains nothing from more, and the largest layer's output of 200 images is more than a step holds.
_EVAL_BATCH = {"cpu": 64}
_EVAL_BATCH_ELSEWHERE = 256
_MOST_WORKERS = 8


def input_of(recipe: Recipe, store: Store, backbone: Backbone, device: torch.device) -> ToInput:
    """From stored pixels to the backbone's inputs."""
    stored_size, image_size = store.images("train").shape[1], recipe.data.image_size
    return ToInput(
        stored_size,
        image_size,
        backbone.interpolation,
        backbone.mean,
        backbone.std,
        device,
        pick(recipe, device.type).channels_last,
    )


def evaluation_batches(
    recipe: Recipe,
    splits: dict[str, Images],
    to_input: ToInput,
    device: torch.device,
    share: Share,
    shrunk: float = 1.0,
) -> dict[str, EvaluationBatches]:
    """Of each split that is evaluated; ``shrunk`` is the part of a pass that memory was found to hold."""
    train = recipe.train
    usual = _EVAL_BATCH.get(device.type, _EVAL_BATCH_ELSEWHERE)
    asked_size = train.eval_batch_size or max(usual, -(-train.batch_size // share.world))
    batch_size = max(1, int(asked_size * shrunk))
    return {
        name: EvaluationBatches(images, to_input, device, share, batch_size)
        for name, images in splits.items()
        if name != "train" and len(images) and (name != "test" or train.evaluate == "all")
    }


def splits_of(recipe: Recipe, store: Store, device: torch.device) -> dict[str, Images]:
    """``train``, ``validation`` (which may have no images) and ``test``; on the device where they fit.

    Raises:
        UserError: so much cannot be held out.
    """
    pixels, labels = store.images("train"), store.labels("train")
    try:
        train, validation = validation_split(labels, recipe.data.validation, recipe.train.seed)
    except ValueError as error:
        raise UserError(f"data.validation: {error}") from None
    test_pixels, test_labels = store.images("test"), store.labels("test")
    budget = RESIDENT_SHARE * free_device_bytes(device)
    # Workers read the training images themselves.
    on_device = None if recipe.data.auto_augment else resident(pixels, device, budget)
    left = budget if on_device is None else budget - pixels.nbytes
    return {
        "train": Images(pixels, labels, train, on_device),
        "validation": Images(pixels, labels, validation, on_device),
        "test": Images(
            test_pixels, test_labels, np.arange(len(test_labels)), resident(test_pixels, device, left)
        ),
    }


def augmentation_of(recipe: Recipe, images: Images) -> Augmentation:
    """What is done to whole batches of training images.

    Raises:
        UserError: it is larger than the images.
    """
    data, side = recipe.data, images.pixels.shape[1]
    if data.cutout > side:
        raise UserError(f"data.cutout: {data.cutout} is more than the side of the stored images, {side}")
    crop = data.random_resized_crop
    return Augmentation(
        crop_padding=data.crop_padding,
        flip=data.flip,
        resized_crop=ResizedCrop((crop.scale[0], crop.scale[1]), (crop.ratio[0], crop.ratio[1]))
        if crop
        else None,
        cutout=data.cutout,
        mixup=data.mixup,
        cutmix=data.cutmix,
        auto_augment=data.auto_augment,
    )


def workers_of(
    recipe: Recipe, images: Images, backbone: Backbone, device: torch.device
) -> ImageWorkers | None:
    """Who reads or augments single images; None if nobody has to."""
    data = recipe.data
    if data.auto_augment is None and not isinstance(images.pixels, ImageFiles):
        return None
    make = None
    if data.auto_augment is not None:
        words = data.auto_augment, images.pixels.shape[1], backbone.mean, backbone.interpolation
        make = partial(auto_augmentation, *words)
    num_workers = _default_workers(device) if data.workers is None else data.workers
    return ImageWorkers(images.pixels, recipe.train.seed, make, num_workers, is_pinned_for(device))


def _default_workers(device: torch.device) -> int:
    """A share of the cores for each process of this machine; where a CPU trains it has better to do."""
    if device.type == "cpu":
        return 0
    return max(1, min(_MOST_WORKERS, cores() - 1))
