"""Accelerate, for a recipe's precision on this machine's device."""

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

from pugdft.config.schema import Recipe
from pugdft.data.augment import Augmentation, ResizedCrop
from pugdft.data.auto_augment import auto_augmentation
from pugdft.data.cache import ImageFiles, Store, cores, prepare
from pugdft.data.datasets import open_source
from pugdft.data.loader import (
    RESIDENT_SHARE,
    EvaluationBatches,
    Images,
    Share,
    TrainingBatches,
    free_device_bytes,
    is_pinned_for,
    resident,
)
from pugdft.data.rng import validation_split
from pugdft.data.transforms import ToInput
from pugdft.data.workers import ImageWorkers
from pugdft.errors import UserError, counted
from pugdft.models import Backbone, build_model, freeze_backbone, remember_features
from pugdft.optim import LossScale, Method, PerturbedOptimizer, build_optimizer
from pugdft.optim.triggers import Always
from pugdft.training.distributed import check_variables, must_use_cpu
from pugdft.training.performance import Switches, arrange, attention_of, compiled, pick, retain_freed_memory
from pugdft.training.trainer import AscentBatch


def make_accelerator(recipe: Recipe) -> Accelerator:
    """Accelerate for the recipe's precision; a second run in one process may have another.

    Raises:
        UserError: see :func:`ready_device`.
    """
    AcceleratorState._reset_state()
    precision = recipe.train.precision
    # Without an accelerator, Accelerate must be told so, or it takes many processes for one.
    on_cpu = ready_device(recipe) == "cpu"
    accelerator = Accelerator(cpu=on_cpu, mixed_precision="no" if precision == "fp32" else precision)
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    assert accelerator.num_processes == expected, f"{accelerator.num_processes} of {expected} processes"
    return accelerator


def ready_device(recipe: Recipe) -> str:
    """The type of the device that a recipe will train on here, with what must be settled before it is used.

    Raises:
        UserError: it cannot compute in the recipe's precision, or the environment asks for what is not here.
    """
    check_variables()
    kind = device_type()
    if kind == "cpu":
        if recipe.train.precision == "fp16":
            raise UserError("train.precision: fp16 needs a GPU; on a CPU use bf16 or fp32")
        retain_freed_memory(pick(recipe, "cpu").retain_memory)
    return kind


def device_type() -> str:
    """What a run trains on here: the machine's accelerator if it has one."""
    if must_use_cpu():
        return "cpu"
    kinds = {"cuda": torch.cuda, "mps": torch.backends.mps, "xpu": torch.xpu}
    return next((name for name, kind in kinds.items() if kind.is_available()), "cpu")


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
    with attention_of(pick(recipe, device_type())):
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
    splits = splits_of(recipe, store, accelerator.device)
    share = Share(accelerator.process_index, accelerator.num_processes)
    check_batch(recipe, len(splits["train"]), share.world)
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
    device, to_input = accelerator.device, input_of(recipe, store, backbone, accelerator.device)
    asked_size = train.micro_batch_size or -(-train.batch_size // share.world)
    shrunk = min(1.0, (micro_batch_size or asked_size) / asked_size)
    training = TrainingBatches(
        images=splits["train"],
        to_input=to_input,
        device=device,
        share=share,
        batch_size=train.batch_size,
        micro_batch_size=min(asked_size, micro_batch_size or asked_size),
        augmentation=augmentation_of(recipe, splits["train"]),
        seed=train.seed,
        workers=workers_of(recipe, splits["train"], backbone, device),
    )
    evaluations = evaluation_batches(recipe, splits, to_input, device, share, shrunk)
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
    splits = splits_of(recipe, store, accelerator.device)
    share = Share(accelerator.process_index, accelerator.num_processes)
    to_input = input_of(recipe, store, backbone, accelerator.device)
    arrange(backbone.model, pick(recipe, accelerator.device.type))
    model = accelerator.unwrap_model(accelerator.prepare_model(backbone.model), keep_fp32_wrapper=True)
    return model, evaluation_batches(recipe, splits, to_input, accelerator.device, share, shrunk)


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


def check_batch(recipe: Recipe, num_images: int, world: int) -> None:
    size = recipe.train.batch_size
    if size > num_images:
        raise UserError(
            f"train.batch_size: {size} is more than the {counted(num_images, 'training image')} "
            f"of {recipe.data.name}"
        )
    if size < world:
        raise UserError(f"train.batch_size: {size} cannot be shared by {world} processes")
