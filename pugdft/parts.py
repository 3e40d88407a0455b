"""From a recipe to the parts of a run: data, model, optimizer, on the device that Accelerate chose."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from pugdft.accelerator import device_type
from pugdft.data.batches import EvaluationBatches, Share, TrainingBatches
from pugdft.data.sources import open_source
from pugdft.data.store import Store, prepare
from pugdft.errors import UserError, counted
from pugdft.freezing import freeze_backbone, remember_features
from pugdft.inputs import augmentation_of, evaluation_batches, input_of, splits_of, workers_of
from pugdft.loop import AscentBatch
from pugdft.models import Backbone, build_model
from pugdft.optim import LossScale, Method, PerturbedOptimizer, build_optimizer
from pugdft.optim.trigger import Always
from pugdft.performance import Switches, arrange, attention_of, compiled, pick
from pugdft.recipe import Recipe


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


def _check_batch(recipe: Recipe, num_images: int, world: int) -> None:
    size = recipe.train.batch_size
    if size > num_images:
        raise UserError(
            f"train.batch_size: {size} is more than the {counted(num_images, 'training image')} "
            f"of {recipe.data.name}"
        )
    if size < world:
        raise UserError(f"train.batch_size: {size} cannot be shared by {world} processes")
