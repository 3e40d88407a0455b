"""Everything that a run is made of: device, images, model, optimizer and batches, built from its recipe."""

from __future__ import annotations

import copy
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor, nn

from pugdft.config.schema import Recipe
from pugdft.data import augment, auto_augment, cache, datasets, loader, rng, transforms, workers
from pugdft.data.source import Source
from pugdft.errors import RunFailed, UserError, counted, human_bytes, refuse, unknown
from pugdft.models import Backbone, averages_over_batch, build_model, cache_features
from pugdft.optim import LossScale, Method, PerturbedOptimizer, build_optimizer
from pugdft.optim.build import method_of
from pugdft.paths import nearest_folder
from pugdft.training.averaging import WeightAverage
from pugdft.training.distributed import explain_failure, fix_reduction_order, wrapped_anew
from pugdft.training.freezing import Freezing
from pugdft.training.launchers import check_variables, must_use_cpu, process_timeout
from pugdft.training.performance import Switches, arrange, attention_of, compiled, pick, retain_freed_memory
from pugdft.training.trial import ascent_images, check_passes

_MOST_WORKERS = 8


def device_type() -> str:
    """Choose the type of the device to train on: the machine's accelerator, if it may be used."""
    if must_use_cpu():
        return "cpu"
    kinds = {"cuda": torch.cuda, "mps": torch.backends.mps, "xpu": torch.xpu}
    return next((name for name, kind in kinds.items() if kind.is_available()), "cpu")


def prepare_device(recipe: Recipe) -> str:
    """Check that a recipe can be trained here, prepare for the first tensor; return the type of device."""
    check_variables()
    kind = device_type()
    if kind == "cpu":
        if recipe.train.precision == "fp16":
            raise UserError("train.precision: fp16 needs a GPU; on a CPU use bf16 or fp32")
        retain_freed_memory(pick(recipe, "cpu").retain_memory)
    return kind


def make_accelerator(recipe: Recipe) -> Accelerator:
    """Make Accelerate for the recipe's precision; a second run in one process may have another."""
    AcceleratorState._reset_state()
    precision = recipe.train.precision
    # Without an accelerator, Accelerate must be told so, or it takes many processes for one.
    on_cpu = prepare_device(recipe) == "cpu"
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    limit = InitProcessGroupKwargs(timeout=timedelta(seconds=process_timeout()))
    try:
        accelerator = Accelerator(
            cpu=on_cpu, mixed_precision="no" if precision == "fp32" else precision, kwargs_handlers=[limit]
        )
    except Exception as error:
        if (why := explain_failure(error, expected)) is None:
            raise
        where = ":".join(os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT"))
        raise RunFailed(f"{where}: the {expected} processes have not met there: {why}") from error
    assert accelerator.num_processes == expected, f"{accelerator.num_processes} of {expected} processes"
    return accelerator


@dataclass(frozen=True)
class AscentBatch:
    """The part of each batch that ascent gradients are taken from."""

    num_calls: int  # ascents of an update; its last pass takes the whole batch
    images: int  # of the global batch
    own_images: int  # of this process's share

    def of(self, micro_batches: list[loader.Batch]) -> list[loader.Batch]:
        """Return the first images of this process's share."""
        parts, left = [], self.own_images
        for inputs, targets in micro_batches:
            if left > 0:
                parts.append((inputs[:left], targets.first(left)))
            left -= len(targets)
        return parts


@dataclass(eq=False)
class RunComponents:
    """Everything that a run is made of."""

    recipe: Recipe
    accelerator: Accelerator
    store: cache.Store
    backbone: Backbone
    model: nn.Module  # wrapped by Accelerate for its device, precision and processes
    optimizer: PerturbedOptimizer
    training: loader.TrainingBatches
    # test, unless the recipe forbids it, and validation, if it holds out images
    evaluations: dict[str, loader.EvaluationBatches]
    switches: Switches
    freezing: Freezing
    ascent: AscentBatch | None = None  # None takes every gradient from the whole batch
    class_weights: Tensor | None = None  # of the training loss, (classes,); None: each 1
    average: WeightAverage | None = None  # of the weights; None where the recipe asks for none
    train_sample: loader.EvaluationBatches | None = None  # training images to evaluate, unaugmented

    def begin_epoch(self, epoch: int) -> None:
        """Set training mode, and freeze what this epoch leaves as it is; all processes together."""
        if self.freezing.begin(epoch) and self.accelerator.num_processes > 1:
            self.model = compiled(wrapped_anew(self.model), self.switches)
            fix_reduction_order(self.model, self.recipe.data.image_size, self.device)
            self.freezing.begin(epoch)  # a pass in evaluation mode was made

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.accelerator.device

    @property
    def evaluation_model(self) -> nn.Module:
        """The model in its precision, without DDP: processes evaluate unequal shares."""
        # Not the compiled one: that would compile again for evaluation and for its last, smaller batch.
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    def smaller_micro_batch(self) -> int | None:
        """Return half the images of a pass; None if a pass cannot be smaller."""
        training, world = self.training, self.accelerator.num_processes
        # One image alone has no variance for BatchNorm.
        smallest = 2 if averages_over_batch(self.backbone.model) else 1
        half = -(-training.micro_batch_size // 2)
        for share in {training.batch_size // world, -(-training.batch_size // world)}:
            if any(part.stop - part.start < smallest for part in loader.even_parts(share, half)):
                return None
        return half if half < training.micro_batch_size else None


def source_of(recipe: Recipe) -> Source:
    """Open the data set of a recipe."""
    data = recipe.data
    return datasets.open_source(data.name, data.test, data.split_names)


def prepare_images(recipe: Recipe, on_message: Callable[[str], None] | None = None) -> cache.Store:
    """Prepare the images alone."""
    data = recipe.data
    return cache.prepare(source_of(recipe), data.image_size, data.storage, on_message)


def load(
    recipe: Recipe, on_message: Callable[[str], None] | None = None, output: Path | None = None
) -> tuple[cache.Store, Backbone]:
    """Build the model with its weights and prepare the images; needs no other process.

    What is checked in seconds comes before images are decoded, which may take an hour: weights, optimizer,
    number of images, and the room for the weights in ``output``.
    """
    data, source = recipe.data, source_of(recipe)
    classes = cache.known_classes(source, data.image_size)
    contents = source.read() if classes is None else None
    if contents is not None:
        classes = contents.classes
        if contents.train.size:  # an empty split is refused with its own words
            check_batch(recipe, contents.train.size, int(os.environ.get("WORLD_SIZE", "1")))
    has_own_weights = isinstance(recipe.model.pretrained, str)
    num_classes, seed = len(classes or ()), recipe.train.seed
    with attention_of(pick(recipe, device_type())):
        backbone = build_model(recipe.model, num_classes, data.image_size, seed, classes or (), look=data)
    freezing = Freezing(backbone.model, recipe.train, recipe.model.name)
    if on_message:
        for line in freezing.describe():
            on_message(line)
    if output is not None and recipe.train.evaluate == "all":
        num_files = 1 if recipe.train.ema is None else 2
        _check_room(output, num_files * 4 * backbone.num_parameters)
    if classes is not None:
        _check_class_names(recipe, classes)
    if contents is not None:
        _try_optimizer(recipe, backbone, has_validation="validation" in contents.splits)
    store = cache.prepare(source, data.image_size, data.storage, on_message)
    if has_own_weights:  # whether their head is kept may depend on the images' digest
        with attention_of(pick(recipe, device_type())):
            known = (store.classes, store.sha256)
            backbone = build_model(recipe.model, len(store.classes), data.image_size, seed, *known, look=data)
    # A tag's weights are of other classes: that their head is new goes without saying.
    if on_message and (has_own_weights or recipe.model.head != "auto" or backbone.head.startswith("kept")):
        on_message(f"model.head: {backbone.head}")
    return store, backbone


def _try_optimizer(recipe: Recipe, backbone: Backbone, has_validation: bool) -> None:
    """Refuse an optimizer that cannot be built for this model, or needs what this run does not have."""
    with warnings.catch_warnings():  # they come again with the run's own optimizer
        warnings.simplefilter("ignore")
        model = copy.deepcopy(backbone.model)
        optimizer = build_optimizer(recipe.optimizer, model, clean_pass=nullcontext)
    _require_validation(optimizer, has_validation or recipe.data.validation > 0)
    check_passes(recipe, backbone.model, optimizer.method, int(os.environ.get("WORLD_SIZE", "1")))


def _require_validation(optimizer: PerturbedOptimizer, has_images: bool) -> None:
    if optimizer.method.trigger.needs_validation and not has_images:
        raise UserError(
            "data.validation: this trigger compares the training loss with that on held-out images: hold "
            "some out, such as data.validation=0.1 (the test split is never used for it)"
        )


def _check_room(folder: Path, num_bytes: int) -> None:
    """Refuse a disk that has no room for the weights at the end of a run."""
    usage = shutil.disk_usage(nearest_folder(folder))
    if usage.total and num_bytes > usage.free:  # not every file system can tell
        needed, free = map(human_bytes, (num_bytes, usage.free))
        raise UserError(f"{folder}: the weights take {needed}, {free} are free; choose another --output")


def assemble(
    recipe: Recipe, accelerator: Accelerator, store: cache.Store, backbone: Backbone, fits: int | None = None
) -> RunComponents:
    """Split and share the images, place the model, build the optimizer; all processes together."""
    train, device, world = recipe.train, accelerator.device, accelerator.num_processes
    asked_size = train.micro_batch_size or -(-train.batch_size // world)
    pass_size = min(asked_size, fits or asked_size)  # more may not fit into memory
    inputs = _inputs(recipe, accelerator, store, backbone, pass_size / asked_size)
    images, share = inputs.splits["train"], inputs.share
    check_batch(recipe, len(images), world)
    check_passes(recipe, backbone.model, method_of(recipe.optimizer), world)
    switches = pick(recipe, device.type)
    freezing = Freezing(backbone.model, train, recipe.model.name)
    freezing.begin_last()  # the optimizer sees all that is ever trained
    if freezing.reuses_features and not switches.compile:
        cache_features(backbone.model)
    arrange(backbone.model, switches, only_logits=True)
    model = compiled(accelerator.prepare_model(backbone.model), switches)
    optimizer = build_optimizer(
        recipe.optimizer,
        backbone.model,
        clean_pass=lambda: accelerator.no_sync(components.model),
        closure_accumulates=True,
        loss_scale=LossScale() if train.precision == "fp16" else None,
        seed=train.seed,
    )
    _require_validation(optimizer, len(inputs.splits["validation"]) > 0)
    side = images.pixels.shape[1]
    if recipe.data.cutout > side:
        raise UserError(
            f"data.cutout: {recipe.data.cutout} is more than the side of the stored images, {side}"
        )
    if recipe.data.padding == "reflect" and recipe.data.crop_padding >= side:
        raise UserError(
            f"data.crop_padding: {recipe.data.crop_padding} must be less than the side of the stored images, "
            f"{side}, with data.padding=reflect"
        )
    crop, names = recipe.data.random_resized_crop, {field.name for field in fields(augment.Augmentation)}
    training = loader.TrainingBatches(
        images=images,
        to_input=inputs.to_input,
        device=device,
        share=share,
        batch_size=train.batch_size,
        micro_batch_size=pass_size,
        augmentation=augment.Augmentation(
            resized_crop=augment.ResizedCrop(**crop.model_dump()) if crop else None,
            **{name: getattr(recipe.data, name) for name in names - {"resized_crop"}},
        ),
        seed=train.seed,
        workers=_workers(recipe, images, backbone, device),
    )
    ascent = _ascent_batch(recipe, optimizer.method, share)
    fix_reduction_order(model, recipe.data.image_size, device)
    # fmt: off
    components = RunComponents(
        recipe, accelerator, store, backbone, model, optimizer, training, inputs.evaluations, switches,
        freezing, ascent,
        class_weights=_class_weights(recipe, images, store.classes, device),
        average=None if train.ema is None else WeightAverage(backbone.model, train.ema),
        train_sample=_train_sample(recipe, inputs),
    )
    # fmt: on
    return components


def _check_class_names(recipe: Recipe, classes: Sequence[str]) -> None:
    """Refuse weights of classes that the data does not have."""
    given = recipe.train.class_weights
    for name in given if isinstance(given, dict) else ():
        if name not in classes:
            raise UserError(f"train.class_weights: {unknown('class', name, classes)}")


def _class_weights(
    recipe: Recipe, images: loader.Images, classes: Sequence[str], device: torch.device
) -> Tensor | None:
    """The weight of each class in the training loss, float32; None if all are 1."""
    given = recipe.train.class_weights
    if given == "none":
        return None
    _check_class_names(recipe, classes)
    if isinstance(given, dict):
        weights = [given.get(name, 1.0) for name in classes]
        return torch.tensor(weights, dtype=torch.float32, device=device)
    counts = np.bincount(images.labels[images.indices], minlength=len(classes))
    # A class without training images has no loss to weigh.
    balanced = counts.sum() / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return torch.tensor(balanced, dtype=torch.float32, device=device)


def evaluation_parts(
    recipe: Recipe, accelerator: Accelerator, store: cache.Store, backbone: Backbone, shrunk: float = 1.0
) -> tuple[nn.Module, dict[str, loader.EvaluationBatches]]:
    """Build what a run evaluates; ``shrunk`` is the fraction of a pass that fitted into memory."""
    evaluations = _inputs(recipe, accelerator, store, backbone, shrunk).evaluations
    arrange(backbone.model, pick(recipe, accelerator.device.type), only_logits=True)
    model = accelerator.unwrap_model(accelerator.prepare_model(backbone.model), keep_fp32_wrapper=True)
    return model, evaluations


def evaluation_batch_size(recipe: Recipe, device_type: str, world: int = 1) -> int:
    """Choose the images of an evaluation's batch for each of ``world`` processes."""
    # A CPU gains nothing from more, and the largest layer's output of 200 images is more than a step holds.
    usual = 64 if device_type == "cpu" else 256
    return recipe.train.eval_batch_size or max(usual, -(-recipe.train.batch_size // world))


class _Inputs(NamedTuple):
    splits: dict[str, loader.Images]  # train, validation (maybe of no images) and test
    share: loader.Share
    to_input: transforms.ToInput
    evaluations: dict[str, loader.EvaluationBatches]
    device: torch.device
    evaluation_batch: int


def _inputs(
    recipe: Recipe, accelerator: Accelerator, store: cache.Store, backbone: Backbone, shrunk: float
) -> _Inputs:
    """Split the images, tell which are this process's, and make the batches to evaluate."""
    device, data, train = accelerator.device, recipe.data, recipe.train
    pixels, labels = store.images("train"), store.labels("train")
    # fmt: off
    to_input = transforms.ToInput(
        pixels.shape[1], data.image_size, backbone.interpolation, backbone.mean, backbone.std, device,
        pick(recipe, device.type).channels_last, data.resize,
    )
    # fmt: on
    share = loader.Share(accelerator.process_index, accelerator.num_processes)
    with refuse(ValueError, lambda error: f"data.validation: {error}"):  # too many are to be held out
        own, held_out = rng.validation_split(labels, data.validation, train.seed)
    test_pixels, test_labels = store.images("test"), store.labels("test")
    budget = loader.RESIDENT_SHARE * loader.free_device_bytes(device)
    # Images go to the device if they fit there; but workers read the training images themselves.
    on_device = None if data.auto_augment else loader.resident(pixels, device, budget)
    left = budget if on_device is None else budget - pixels.nbytes
    test_on_device = loader.resident(test_pixels, device, left)
    validation = loader.Images(pixels, labels, held_out, on_device)
    if "validation" in store.splits:  # the data set's own
        labels_of_own = store.labels("validation")
        validation = loader.Images(store.images("validation"), labels_of_own, np.arange(len(labels_of_own)))
    splits = {
        "train": loader.Images(pixels, labels, own, on_device),
        "validation": validation,
        "test": loader.Images(test_pixels, test_labels, np.arange(len(test_labels)), test_on_device),
    }
    asked_size = evaluation_batch_size(recipe, device.type, share.world)
    batch_size = max(1, int(asked_size * shrunk))
    evaluations = {
        name: loader.EvaluationBatches(images, to_input, device, share, batch_size)
        for name, images in splits.items()
        if name != "train" and len(images) and (name != "test" or train.evaluate == "all")
    }
    return _Inputs(splits, share, to_input, evaluations, device, batch_size)


def _train_sample(recipe: Recipe, inputs: _Inputs) -> loader.EvaluationBatches | None:
    """The training images that ``train.evaluate_train`` asks for; None for none."""
    wanted, images = recipe.train.evaluate_train, inputs.splits["train"]
    if not wanted:
        return None
    if wanted > len(images):
        raise UserError(
            f"train.evaluate_train: {wanted:,} is more than the {counted(len(images), 'training image')} of "
            f"{recipe.data.name}"
        )
    chosen = rng.class_balanced(images.labels[images.indices], wanted, recipe.train.seed)
    sample = replace(images, indices=images.indices[chosen])
    rest = (inputs.to_input, inputs.device, inputs.share, inputs.evaluation_batch)
    return loader.EvaluationBatches(sample, *rest)


def _workers(
    recipe: Recipe, images: loader.Images, backbone: Backbone, device: torch.device
) -> workers.ImageWorkers | None:
    """Make the processes that read or augment single images; None if there is no such work."""
    data, make = recipe.data, None
    if data.auto_augment is not None:
        look = (images.pixels.shape[1], backbone.mean, backbone.interpolation)
        make = partial(auto_augment.auto_augmentation, data.auto_augment, *look)
    elif not isinstance(images.pixels, cache.ImageFiles):
        return None
    num_workers = data.workers
    if num_workers is None:
        # A share of the cores for each process of this machine; a CPU that trains has none to spare.
        num_workers = 0 if device.type == "cpu" else max(1, min(_MOST_WORKERS, cache.cores() - 1))
    is_pinned = loader.is_pinned_for(device)
    return workers.ImageWorkers(images.pixels, recipe.train.seed, make, num_workers, is_pinned)


def _ascent_batch(recipe: Recipe, method: Method, share: loader.Share) -> AscentBatch | None:
    """Make the part of a batch for ascent gradients; None if it is the whole batch, or nothing ascends."""
    images = ascent_images(recipe, method, share.world)
    if images is None:
        return None
    return AscentBatch(method.direction.num_ascents, images, len(share.of(np.arange(images))))


def check_batch(recipe: Recipe, num_images: int, world: int) -> None:
    """Refuse a batch of more images than there are, or of fewer than there are processes."""
    size = recipe.train.batch_size
    if size > num_images:
        raise UserError(
            f"train.batch_size: {size} is more than the {counted(num_images, 'training image')} "
            f"of {recipe.data.name}"
        )
    if size < world:
        raise UserError(f"train.batch_size: {size} cannot be shared by {world} processes")
