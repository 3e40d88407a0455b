"""From a recipe to the parts of a run: data, model, optimizer, on the device that Accelerate chose."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from pugdft.allocator import retain_freed_memory
from pugdft.data.augment import Augmentation, ResizedCrop
from pugdft.data.auto_augment import auto_augmentation
from pugdft.data.batches import EvaluationBatches, Images, Share, TrainingBatches
from pugdft.data.image_files import ImageFiles, cores
from pugdft.data.seeding import validation_split
from pugdft.data.sources import open_source
from pugdft.data.store import Store, prepare
from pugdft.data.transfer import RESIDENT_SHARE, free_device_bytes, is_pinned_for, resident
from pugdft.data.transforms import ToInput
from pugdft.data.workers import ImageWorkers
from pugdft.errors import UserError, counted
from pugdft.freezing import freeze_backbone, remember_features
from pugdft.loop import AscentBatch
from pugdft.models import Backbone, build_model
from pugdft.optim import LossScale, Method, PerturbedOptimizer, build_optimizer
from pugdft.optim.trigger import Always
from pugdft.performance import Switches, arrange, attention_of, compiled, pick
from pugdft.recipe import Recipe

# A CPU gains nothing from more, and the largest layer's output of 200 images is more than a step holds.
_EVAL_BATCH = {"cpu": 64}
_EVAL_BATCH_ELSEWHERE = 256
_MOST_WORKERS = 8


@dataclass(frozen=True)
class Parts:
    """Everything that a run is made of.

    Attributes:
        model: wrapped by Accelerate for its device, precision and processes.
        evaluations: ``test``, unless the recipe forbids it, and ``validation``, if it holds out images.
    """

    accelerator: Accelerator
    store: Store
    backbone: Backbone
    model: nn.Module
    optimizer: PerturbedOptimizer
    training: TrainingBatches
    evaluations: dict[str, EvaluationBatches]
    switches: Switches
    ascent: AscentBatch | None = None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.accelerator.device

    @property
    def evaluation_model(self) -> nn.Module:
        """The model in its precision, without what keeps processes in step: they evaluate unequal shares."""
        # Not the compiled one: that would compile again for evaluation and for its last, smaller batch.
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)


def make_accelerator(recipe: Recipe) -> Accelerator:
    """Accelerate for the recipe's precision; a second run in one process may have another.

    Raises:
        UserError: the device cannot compute in this precision.
    """
    AcceleratorState._reset_state()
    precision = recipe.train.precision
    # Without an accelerator, Accelerate must be told so, or it takes many processes for one.
    on_cpu = _device_type() == "cpu"
    if precision == "fp16" and on_cpu:
        raise UserError("train.precision: fp16 needs a GPU; on a CPU use bf16 or fp32")
    if on_cpu:
        retain_freed_memory(pick(recipe, "cpu").retain_memory)
    accelerator = Accelerator(cpu=on_cpu, mixed_precision="no" if precision == "fp32" else precision)
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    assert accelerator.num_processes == expected, f"{accelerator.num_processes} of {expected} processes"
    return accelerator


def _device_type() -> str:
    kinds = {"cuda": torch.cuda, "mps": torch.backends.mps, "xpu": torch.xpu}
    return next((name for name, kind in kinds.items() if kind.is_available()), "cpu")


def load(recipe: Recipe, on_message: Callable[[str], None] | None = None) -> tuple[Store, Backbone]:
    """The images, ready to be read, and the model with its weights; needs no other process.

    Args:
        recipe: the run's.
        on_message: hears what a person may want to know of the images.

    Raises:
        UserError: the data or the weights cannot be used.
    """
    data = recipe.data
    store = prepare(open_source(data.name), data.image_size, data.storage, on_message)
    with attention_of(pick(recipe, _device_type())):
        backbone = build_model(recipe.model, len(store.classes), recipe.data.image_size, recipe.train.seed)
    return store, backbone


def assemble(
    recipe: Recipe,
    accelerator: Accelerator,
    store: Store,
    backbone: Backbone,
    micro_batch_size: int | None = None,
) -> Parts:
    """Split and share the images, place the model, build the optimizer; all processes together.

    Args:
        recipe: resolved.
        accelerator, store, backbone: as made for it.
        micro_batch_size: images that memory holds in one pass, if it was found to be fewer than asked for.

    Raises:
        UserError: the recipe does not fit the data.
    """
    train = recipe.train
    splits = _splits(recipe, store, accelerator.device)
    share = Share(accelerator.process_index, accelerator.num_processes)
    _check_batch(recipe, len(splits["train"]), share.world)
    switches = pick(recipe, accelerator.device.type)
    if train.freeze == "backbone":
        freeze_backbone(backbone.model)
        if not switches.compile:
            remember_features(backbone.model)
    arrange(backbone.model, switches)
    model = compiled(accelerator.prepare_model(backbone.model), switches)
    optimizer = build_optimizer(
        recipe.optimizer,
        backbone.model,
        clean_pass=lambda: accelerator.no_sync(model),
        closure_accumulates=True,
        loss_scale=LossScale() if train.precision == "fp16" else None,
    )
    if optimizer.method.trigger.needs_validation and not len(splits["validation"]):
        raise UserError(
            "data.validation: this trigger compares the training loss with that on held-out images: hold "
            "some out, such as data.validation=0.1 (the test split is never used for it)"
        )
    device, to_input = accelerator.device, _to_input(recipe, store, backbone, accelerator.device)
    asked_size = train.micro_batch_size or -(-train.batch_size // share.world)
    shrunk = min(1.0, (micro_batch_size or asked_size) / asked_size)
    training = TrainingBatches(
        images=splits["train"],
        to_input=to_input,
        device=device,
        share=share,
        batch_size=train.batch_size,
        micro_batch_size=min(asked_size, micro_batch_size or asked_size),
        augmentation=_augmentation(recipe, splits["train"]),
        seed=train.seed,
        workers=_image_workers(recipe, splits["train"], backbone, device),
    )
    evaluations = _evaluations(recipe, splits, to_input, device, share, shrunk)
    ascent = _ascent_batch(recipe, optimizer.method, share)
    return Parts(accelerator, store, backbone, model, optimizer, training, evaluations, switches, ascent)


def evaluation_parts(
    recipe: Recipe, accelerator: Accelerator, store: Store, backbone: Backbone, shrunk: float = 1.0
) -> tuple[nn.Module, dict[str, EvaluationBatches]]:
    """The model and the images as a run of this recipe evaluates them, without anything to train with.

    Args:
        recipe, accelerator, store, backbone: as for :func:`assemble`.
        shrunk: the share of the images of a pass that memory held, where it ran out.

    Raises:
        UserError: the recipe does not fit the data.
    """
    splits = _splits(recipe, store, accelerator.device)
    share = Share(accelerator.process_index, accelerator.num_processes)
    to_input = _to_input(recipe, store, backbone, accelerator.device)
    arrange(backbone.model, pick(recipe, accelerator.device.type))
    model = accelerator.unwrap_model(accelerator.prepare_model(backbone.model), keep_fp32_wrapper=True)
    return model, _evaluations(recipe, splits, to_input, accelerator.device, share, shrunk)


def _to_input(recipe: Recipe, store: Store, backbone: Backbone, device: torch.device) -> ToInput:
    stored_size, image_size = store.images("train").shape[1], recipe.data.image_size
    return ToInput(stored_size, image_size, backbone.interpolation, backbone.mean, backbone.std, device)


def _evaluations(
    recipe: Recipe,
    splits: dict[str, Images],
    to_input: ToInput,
    device: torch.device,
    share: Share,
    shrunk: float = 1.0,
) -> dict[str, EvaluationBatches]:
    train = recipe.train
    usual = _EVAL_BATCH.get(device.type, _EVAL_BATCH_ELSEWHERE)
    asked_size = train.eval_batch_size or max(usual, -(-train.batch_size // share.world))
    batch_size = max(1, int(asked_size * shrunk))
    return {
        name: EvaluationBatches(images, to_input, device, share, batch_size)
        for name, images in splits.items()
        if name != "train" and len(images) and (name != "test" or train.evaluate == "all")
    }


def _splits(recipe: Recipe, store: Store, device: torch.device) -> dict[str, Images]:
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


def _augmentation(recipe: Recipe, images: Images) -> Augmentation:
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


def _image_workers(
    recipe: Recipe, images: Images, backbone: Backbone, device: torch.device
) -> ImageWorkers | None:
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


def _ascent_batch(recipe: Recipe, method: Method, share: Share) -> AscentBatch | None:
    """The part of a batch for ascent gradients; None if that is all of it, or nothing ascends."""
    train = recipe.train
    # Two images a process at least: one alone has no variance for BatchNorm.
    images = max(2 * share.world, math.ceil(train.ascent_batch * train.batch_size))
    if images >= train.batch_size or not method.perturbs:
        return None
    if not isinstance(method.trigger, Always):
        raise UserError(
            "train.ascent_batch: is for methods that perturb at each step: of a step with one pass it would "
            f"be the only gradient, and {recipe.optimizer['name']} as given has such steps. Leave it at 1"
        )
    return AscentBatch(method.direction.num_ascents, images, len(share.of(np.arange(images))))


def _check_batch(recipe: Recipe, num_images: int, world: int) -> None:
    size = recipe.train.batch_size
    if size > num_images:
        raise UserError(
            f"train.batch_size: {size} is more than the {counted(num_images, 'training image')} "
            f"of {recipe.data.name}"
        )
    if size < world:
        raise UserError(f"train.batch_size: {size} cannot be shared by {world} processes")
