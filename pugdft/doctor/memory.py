"""How much memory a recipe's updates take: weights, gradients, what the optimizer keeps, activations.

The model is made of fake tensors, which have shapes and no memory; what an optimizer keeps is counted on a
model of a few thousand weights. Nothing is trained and nothing large is allocated.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pugdft.config.schema import Recipe
from pugdft.models import freeze_backbone, head_parameters, training_mode
from pugdft.optim import build_optimizer
from pugdft.optim.base import GROUP_OPTIONS
from pugdft.optim.build import takes_two_passes
from pugdft.training.performance import Switches, attention_of

_SIDE = 512
_STEPS = 4
_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Memory:
    """What one process that trains whole batches holds.

    Attributes:
        parameters: number of all of them.
        weights_bytes: of parameters and buffers.
        trained_bytes: of the parameters that are trained; each copy has this size.
        copies: held beside the weights during an update, at most: gradients, the method's, the base's state.
        kept_copies: of those, what a checkpoint has.
        activation_bytes: kept for the backward pass of one forward pass.
        names: of the tensors in the model's state without the head's.
    """

    parameters: int
    weights_bytes: int
    trained_bytes: int
    copies: float
    kept_copies: float
    activation_bytes: int
    names: frozenset[str]

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return round(self.weights_bytes + self.copies * self.trained_bytes + self.activation_bytes)

    @property
    def checkpoint_bytes(self) -> int:
        """Of one checkpoint: weights and the optimizer's state."""
        return round(self.weights_bytes + self.kept_copies * self.trained_bytes)


def memory_of(recipe: Recipe, num_classes: int, switches: Switches) -> Memory:
    """Count it.

    Raises:
        Exception: whatever torch and timm raise where a model cannot be made of fake tensors, or cannot take
            images of this size.
    """
    train, size = recipe.train, recipe.data.image_size
    config = timm.get_pretrained_cfg(recipe.model.name)
    options: dict[str, Any] = {"num_classes": num_classes}
    if config is not None and config.fixed_input_size:
        options["img_size"] = size
    # Not at once with fake tensors: timm computes with small ones of the CPU while it makes some models.
    with torch.device("meta"), attention_of(switches):
        model = timm.create_model(recipe.model.name, pretrained=False, **options)
    heads = head_parameters(model)
    with FakeTensorMode(allow_non_fake_inputs=True):
        _make_fake(model)
        if train.freeze == "backbone":
            freeze_backbone(model)
        training_mode(model, train.freeze == "backbone", train.batch_norm == "fixed")
        images = torch.empty(train.micro_batch_size or train.batch_size, 3, size, size)
        activation_bytes = _kept_for_backward(
            model, images.contiguous(memory_format=torch.channels_last), train.precision
        )
    copies, kept_copies = copies_of(recipe.optimizer)
    return Memory(
        parameters=sum(each.numel() for each in model.parameters()),
        weights_bytes=sum(map(_bytes, [*model.parameters(), *model.buffers()])),
        trained_bytes=sum(_bytes(each) for each in model.parameters() if each.requires_grad),
        copies=copies,
        kept_copies=kept_copies,
        activation_bytes=activation_bytes,
        names=frozenset(set(model.state_dict()) - heads),
    )


def copies_of(spec: Mapping[str, Any]) -> tuple[float, float]:
    """Copies of the parameters that an update holds beside the weights at most, and that a checkpoint has.

    Counted: every tensor that is alive after a backward pass of a few updates of a small model.
    """
    small, base = dict(spec), dict(spec.get("base", {}))
    if small["name"] == "looksam":
        small["k"] = 2
    elif takes_two_passes(small["name"]):
        small["trigger"] = {
            "name": "every",
            "k": 1,
        }  # one that never fires here would hide what its steps take
    for key in GROUP_OPTIONS:  # they shape groups by a real model's layers
        base.pop(key, None)
        small.pop(key, None)
    if base:
        small["base"] = base
    gc.collect()
    gc.freeze()  # what is alive now is not looked at below
    try:
        return _counted(small)
    finally:
        gc.unfreeze()


def _counted(spec: Mapping[str, Any]) -> tuple[float, float]:
    model = nn.Sequential(nn.Linear(_SIDE, _SIDE), nn.LayerNorm(_SIDE), nn.Linear(_SIDE, 2))
    weights = sum(map(_bytes, model.parameters()))
    optimizer = build_optimizer(spec, model, closure_accumulates=True)
    inputs, largest = torch.randn(1, _SIDE), 0

    def closure() -> Tensor:
        nonlocal largest
        loss = model(inputs).logsumexp(1).sum()
        loss.backward()
        gradients = [each.grad for each in model.parameters()]  # without being asked for, Python has none
        largest = max(largest, _bytes_alive())
        del gradients
        return loss.detach()

    for step in range(_STEPS):
        optimizer.progress = step / _STEPS
        optimizer.zero_grad()
        optimizer.step(closure)
    kept = sum(map(_bytes, _tensors(optimizer.state_dict())))
    return round((largest - weights) / weights, 1), round(kept / weights, 1)


def _kept_for_backward(model: nn.Module, images: Tensor, precision: str) -> int:
    own = {each.untyped_storage()._cdata for each in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    labels = torch.zeros(len(images), dtype=torch.int64)
    dtype = _PRECISIONS.get(precision)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype, enabled=dtype is not None),
    ):
        nn.functional.cross_entropy(model(images).float(), labels)
    return sum(kept.values())


def _make_fake(model: nn.Module) -> None:
    """Replace every tensor of a model by a fake one on the CPU, in place; shared ones stay shared."""
    made: dict[int, Any] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fake = nn.Parameter(torch.empty(parameter.shape), parameter.requires_grad)
                module._parameters[name] = made.setdefault(id(parameter), fake)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                empty = torch.empty(buffer.shape, dtype=buffer.dtype)
                module._buffers[name] = made.setdefault(id(buffer), empty)


def _bytes_alive() -> int:
    """Of every memory block that a tensor of this process's Python has, but for frozen ones."""
    found = (each for each in gc.get_objects() if type(each) in (Tensor, nn.Parameter))
    blocks = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in found}
    return sum(blocks.values())


def _tensors(state: Any) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    if isinstance(state, Mapping):
        return [each for value in state.values() for each in _tensors(value)]
    if isinstance(state, list | tuple):
        return [each for value in state for each in _tensors(value)]
    return []


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
