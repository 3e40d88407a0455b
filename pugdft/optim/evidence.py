"""Evidence that a method acted: how far it went, and how the two gradients lie to each other.

Measured at every tenth two-pass step and kept on the device, so that nothing waits. The clean gradient
may be overwritten by the second pass; what is needed of it is therefore a sample, every
:data:`STRIDE`-th element of each tensor in memory order (every element of a small tensor), which keeps
all layers in proportion and costs 1/16 of a copy of the parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

EVERY = 10
STRIDE = 16
_SMALL = 4096


class Evidence:
    """Running means of ‖e‖ and of cos(g, g*), the cosine estimated on the sampled elements."""

    def __init__(self) -> None:
        self._num_calls = 0
        self._num_measured = 0
        self._norm_sum: Tensor | float = 0.0
        self._cosine_sum: Tensor | float = 0.0
        self._clean: list[Tensor] | None = None

    def before_second_pass(self, parameters: Sequence[Tensor], perturbation_norm: Tensor) -> None:
        """See the clean gradients, before they are scaled or dropped."""
        self._clean = None
        if self._num_calls % EVERY == 0:
            self._clean = [_sample(p.grad).clone() for p in parameters if p.grad is not None]
            self._norm_sum = self._norm_sum + perturbation_norm
        self._num_calls += 1

    def after_second_pass(self, parameters: Sequence[Tensor], share: float) -> None:
        """See the gradients after the second pass: g* + share·g."""
        if self._clean is None:
            return
        dot: Tensor | float = 0.0
        clean_square: Tensor | float = 0.0
        perturbed_square: Tensor | float = 0.0
        for parameter, clean in zip(parameters, self._clean, strict=True):
            if parameter.grad is None:
                continue
            weight = parameter.numel() / clean.numel()
            perturbed = _sample(parameter.grad) - share * clean
            dot = dot + weight * torch.sum(clean * perturbed)
            clean_square = clean_square + weight * torch.sum(clean * clean)
            perturbed_square = perturbed_square + weight * torch.sum(perturbed * perturbed)
        norms = torch.sqrt(torch.as_tensor(clean_square) * torch.as_tensor(perturbed_square))
        self._cosine_sum = self._cosine_sum + dot / (norms + 1e-30)
        self._num_measured += 1
        self._clean = None

    def mean_perturbation_norm(self) -> float | None:
        """Mean ‖e‖ over the measured steps, or None without any."""
        return float(self._norm_sum) / self._num_measured if self._num_measured else None

    def mean_gradient_cosine(self) -> float | None:
        """Mean cos(g, g*) over the measured steps, or None without any."""
        return float(self._cosine_sum) / self._num_measured if self._num_measured else None

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {
            "num_calls": self._num_calls,
            "num_measured": self._num_measured,
            "norm_sum": float(self._norm_sum),
            "cosine_sum": float(self._cosine_sum),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from saved numbers."""
        self._num_calls = state["num_calls"]
        self._num_measured = state["num_measured"]
        self._norm_sum = state["norm_sum"]
        self._cosine_sum = state["cosine_sum"]


def _sample(tensor: Tensor) -> Tensor:
    """A view of every STRIDE-th element in memory order, whatever the memory format."""
    if tensor.numel() <= _SMALL:
        return tensor
    return torch.as_strided(tensor, (tensor.numel() // STRIDE,), (STRIDE,))
