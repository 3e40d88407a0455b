"""A copy of the weights for as long as the parameters hold something else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pugdft.optim import tensors


class SavedWeights:
    """Bitwise copies of perturbed parameters.

    The memory is taken at the first perturbation and kept: taking it at every step costs more than copying
    into it.

    Attributes:
        in_use: whether parameters are perturbed right now.
    """

    def __init__(self) -> None:
        self._copies: dict[Tensor, Tensor] = {}
        self.in_use = False

    @contextmanager
    def perturbed(self, parameters: list[Tensor]) -> Iterator[list[Tensor]]:
        """Inside, the parameters are free to be changed; gives a copy of them, and puts it back."""
        for parameter in parameters:
            copy = self._copies.get(parameter)
            # A model may be moved or converted after its first step.
            if copy is None or _layout(copy) != _layout(parameter):
                self._copies[parameter] = torch.empty_like(parameter)
        weights = [self._copies[parameter] for parameter in parameters]
        tensors.copy_(weights, parameters)
        self.in_use = True
        try:
            yield weights
        finally:
            # Exactly the set that was perturbed, by copy: (w + e) − e is not w in floating point.
            tensors.copy_(parameters, weights)
            self.in_use = False


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tensor.device, tensor.shape, tensor.stride()
