"""A training pass over an image or two before the data is prepared: what would fail in a run, or be wrong."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from pugdft.config.schema import Recipe
from pugdft.data.loader import even_parts
from pugdft.errors import UserError
from pugdft.optim import Method
from pugdft.optim.triggers import Always
from pugdft.training.freezing import Freezing


def ascent_images(recipe: Recipe, method: Method, world: int) -> int | None:
    """Return how many images of the global batch ascents take; None if it is all, or nothing ascends."""
    train = recipe.train
    # Two images a process at least: one alone has no variance for BatchNorm.
    images = max(2 * world, math.ceil(train.ascent_batch * train.batch_size))
    if images >= train.batch_size or not method.perturbs:
        return None
    if not isinstance(method.trigger, Always):
        raise UserError(
            "train.ascent_batch: is for methods that perturb at each step: of a step with one pass it would "
            f"be the only gradient, and {recipe.optimizer['name']} as given has such steps. Leave it at 1"
        )
    return images


def check_passes(recipe: Recipe, model: nn.Module, method: Method, world: int) -> None:
    """Try a training pass where the recipe has one that this model may not be able to make.

    Args:
        model: on the CPU; it is not changed.

    Raises:
        UserError: a pass of one image leaves BatchNorm nothing to average over; or ascents from a part of the
            batch cannot replay the random numbers that the model draws.
    """
    ascent = ascent_images(recipe, method, world)
    smallest, key = _smallest_pass(recipe, ascent, world)
    must_replay = ascent is not None and recipe.optimizer.get("replay_rng", True)
    if smallest > 1 and not must_replay:
        return
    images = torch.zeros(min(smallest, 2), 3, recipe.data.image_size, recipe.data.image_size)
    for in_training in _phases(recipe, model):
        try:
            layer = _first_to_draw(in_training, images)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UserError(
                f"{key}: makes passes of one image, and in {recipe.model.name} this leaves BatchNorm nothing "
                "to average over, for its features are 1 × 1 there: give train.batch_size or "
                "train.micro_batch_size more images a process, or set train.batch_norm=fixed"
            ) from error
        if must_replay and layer is not None:
            raise UserError(
                f"train.ascent_batch: {recipe.model.name} draws random numbers in training (its {layer}), "
                "and a pass over a part of the batch cannot draw those of the pass over all of it. Leave it "
                "at 1, or set optimizer.replay_rng=false: then each pass draws its own"
            )


def _smallest_pass(recipe: Recipe, ascent: int | None, world: int) -> tuple[int, str]:
    """Return the images of the smallest training pass of any process, and the key that makes it so small."""
    train = recipe.train
    found = []
    for rank in range(world):
        share = len(range(rank, train.batch_size, world))
        parts = even_parts(share, train.micro_batch_size or share)
        key = "train.batch_size" if share == 1 else "train.micro_batch_size"
        found.append((min(part.stop - part.start for part in parts), key))
        own = len(range(rank, ascent or 0, world))
        found += [
            (min(part.stop, own) - part.start, "train.ascent_batch") for part in parts if part.start < own
        ]
    return min(found, key=lambda each: each[0])


def _phases(recipe: Recipe, model: nn.Module) -> Iterator[nn.Module]:
    """Set a copy of the model as it is in each phase of the run."""
    model = copy.deepcopy(model)
    freezing = Freezing(model, recipe.train, recipe.model.name)
    for phase in freezing.phases:
        freezing.begin(phase.first_epoch)
        yield model


@torch.no_grad()
def _first_to_draw(model: nn.Module, images: torch.Tensor) -> str | None:
    """Return the type of the innermost layer that is first to draw random numbers; None if none does."""
    before: dict[nn.Module, torch.Tensor] = {}
    found: list[str] = []

    def enter(layer: nn.Module, given: Any) -> None:
        before[layer] = torch.get_rng_state()

    def leave(layer: nn.Module, given: Any, output: Any) -> None:
        if not torch.equal(before[layer], torch.get_rng_state()):
            found.append(type(layer).__name__)

    hooks = [layer.register_forward_pre_hook(enter) for layer in model.modules()]
    hooks += [layer.register_forward_hook(leave) for layer in model.modules()]
    with torch.random.fork_rng(devices=[]):
        model(images)
    for hook in hooks:
        hook.remove()
    return found[0] if found else None
