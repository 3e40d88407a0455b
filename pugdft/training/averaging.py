"""Weights beside those that train: their moving average, and copies of the epoch that is kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Weights = dict[str, Tensor]


class WeightAverage:
    """Exponential moving average of a model's parameters and buffers, such as BatchNorm's statistics.

    a ← d·a + (1 − d)·w after update t, with d = min(decay, (1 + t) / (10 + t)): a run shorter than the
    average's memory forgets its start all the same. (The form is TensorFlow's ``ExponentialMovingAverage``.)
    Whole numbers, such as BatchNorm's counter, are copied. Costs one copy of the model on its device, which
    nothing waits for.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model, self._decay = model, decay
        self.tensors: Weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, num_updates: int) -> None:
        """Take in the weights after the run's update number ``num_updates``, from 1 on."""
        share = 1 - min(self._decay, (1 + num_updates) / (10 + num_updates))
        current = self._model.state_dict()  # anew: a layer may have assigned another buffer
        whole = [name for name, tensor in current.items() if not tensor.is_floating_point()]
        for name in whole:
            self.tensors[name].copy_(current.pop(name))
        torch._foreach_lerp_([self.tensors[name] for name in current], list(current.values()), share)

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """Inside, the model has the averages; after it, its own weights again, bit for bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        """Exchange the model's tensors with the averages in place, with room for one of them."""
        for name, tensor in self._model.state_dict().items():
            own = tensor.clone()
            tensor.copy_(self.tensors[name])
            self.tensors[name].copy_(own)

    def load(self, tensors: Weights) -> None:
        """Go on from saved averages; a KeyError if one is missing."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])


def copied(weights: Weights) -> Weights:
    """A copy in the memory of the host."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in weights.items()}
