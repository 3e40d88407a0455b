"""From a recipe to the parts of a run: data, model, optimizer, on the device that Accelerate chose."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from pugdft.allocator import keep_freed_memory
from pugdft.data.batches import EvaluationBatches, Images, Share, TrainingBatches
from pugdft.data.seeding import validation_split
from pugdft.data.sources import open_source
from pugdft.data.store import Store, prepare
from pugdft.data.transforms import ToInput
from pugdft.errors import UserError, counted
from pugdft.models import Backbone, build_model, freeze_backbone
from pugdft.optim import LossScale, PerturbedOptimizer, build_optimizer
from pugdft.recipe import Recipe

_EVAL_BATCH = 200


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

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.accelerator.device

    @property
    def evaluation_model(self) -> nn.Module:
        """The model in its precision, without what keeps processes in step: they evaluate unequal shares."""
        return self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=True)


def make_accelerator(recipe: Recipe) -> Accelerator:
    """Accelerate for the recipe's precision; a second run in one process may have another.

    Raises:
        UserError: the device cannot compute in this precision.
    """
    AcceleratorState._reset_state()
    precision = recipe.train.precision
    # Without an accelerator, Accelerate must be told so, or it takes many processes for one.
    on_cpu = not (torch.cuda.is_available() or torch.backends.mps.is_available() or torch.xpu.is_available())
    if precision == "fp16" and on_cpu:
        raise UserError("train.precision: fp16 needs a GPU; on a CPU use bf16 or fp32")
    accelerator = Accelerator(cpu=on_cpu, mixed_precision="no" if precision == "fp32" else precision)
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    assert accelerator.num_processes == expected, f"{accelerator.num_processes} of {expected} processes"
    if on_cpu:
        keep_freed_memory()
    return accelerator


def load(recipe: Recipe) -> tuple[Store, Backbone]:
    """The images, decoded, and the model with its weights; needs no other process.

    Raises:
        UserError: the data or the weights cannot be used.
    """
    store = prepare(open_source(recipe.data.name), recipe.data.image_size)
    return store, build_model(recipe.model, len(store.classes), recipe.data.image_size, recipe.train.seed)


def assemble(recipe: Recipe, accelerator: Accelerator, store: Store, backbone: Backbone) -> Parts:
    """Split and share the images, place the model, build the optimizer; all processes together.

    Raises:
        UserError: the recipe does not fit the data.
    """
    data, train = recipe.data, recipe.train
    splits = _splits(recipe, store)
    share = Share(accelerator.process_index, accelerator.num_processes)
    _check_batch(recipe, len(splits["train"]), share.world)
    if train.freeze == "backbone":
        freeze_backbone(backbone.model)
    model = accelerator.prepare_model(backbone.model)
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
    own_images = -(-train.batch_size // share.world)
    training = TrainingBatches(
        images=splits["train"],
        to_input=to_input,
        device=device,
        share=share,
        batch_size=train.batch_size,
        micro_batch_size=train.micro_batch_size or own_images,
        crop_padding=data.crop_padding,
        flip=data.flip,
        seed=train.seed,
    )
    evaluations = _evaluations(recipe, splits, to_input, device, share)
    return Parts(accelerator, store, backbone, model, optimizer, training, evaluations)


def evaluation_parts(
    recipe: Recipe, accelerator: Accelerator, store: Store, backbone: Backbone
) -> tuple[nn.Module, dict[str, EvaluationBatches]]:
    """The model and the images as a run of this recipe evaluates them, without anything to train with.

    Raises:
        UserError: the recipe does not fit the data.
    """
    splits = _splits(recipe, store)
    share = Share(accelerator.process_index, accelerator.num_processes)
    to_input = _to_input(recipe, store, backbone, accelerator.device)
    model = accelerator.unwrap_model(accelerator.prepare_model(backbone.model), keep_fp32_wrapper=True)
    return model, _evaluations(recipe, splits, to_input, accelerator.device, share)


def _to_input(recipe: Recipe, store: Store, backbone: Backbone, device: torch.device) -> ToInput:
    stored_size, image_size = store.images("train").shape[1], recipe.data.image_size
    return ToInput(stored_size, image_size, backbone.interpolation, backbone.mean, backbone.std, device)


def _evaluations(
    recipe: Recipe, splits: dict[str, Images], to_input: ToInput, device: torch.device, share: Share
) -> dict[str, EvaluationBatches]:
    train = recipe.train
    batch_size = train.eval_batch_size or max(_EVAL_BATCH, -(-train.batch_size // share.world))
    return {
        name: EvaluationBatches(images, to_input, device, share, batch_size)
        for name, images in splits.items()
        if name != "train" and len(images) and (name != "test" or train.evaluate == "all")
    }


def _splits(recipe: Recipe, store: Store) -> dict[str, Images]:
    pixels, labels = store.images("train"), store.labels("train")
    try:
        train, validation = validation_split(labels, recipe.data.validation, recipe.train.seed)
    except ValueError as error:
        raise UserError(f"data.validation: {error}") from None
    test_labels = store.labels("test")
    return {
        "train": Images(pixels, labels, train),
        "validation": Images(pixels, labels, validation),
        "test": Images(store.images("test"), test_labels, np.arange(len(test_labels))),
    }


def _check_batch(recipe: Recipe, num_images: int, world: int) -> None:
    size = recipe.train.batch_size
    if size > num_images:
        raise UserError(
            f"train.batch_size: {size} is more than the {counted(num_images, 'training image')} "
            f"of {recipe.data.name}"
        )
    if size < world:
        raise UserError(f"train.batch_size: {size} cannot be shared by {world} processes")
