"""Measure how far a method perturbs the weights, and the angle between the clean and the perturbed gradient.

Measured at every tenth perturbed step and kept on the device, so that nothing waits. The second pass may
overwrite the clean gradient, so a sample of it is kept: one block of elements out of :data:`STRIDE` of each
tensor in memory order (a small tensor whole). Single elements would have every line of memory read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from pugdft.optim import foreach

EVERY = 10
STRIDE = 16
BLOCK = 64
_SMALL = 4096


class Diagnostics:
    """Running means of ‖e‖ and of cos(g, g*), the cosine estimated on the sampled elements."""

    def __init__(self) -> None:
        self._num_calls = 0
        self._sums: dict[str, Tensor | float] = {"norm": 0.0, "cosine": 0.0}
        self._counts = dict(self._sums)
        self._measures = False
        self._clean: dict[Tensor, Tensor] = {}

    def before_second_pass(self, parameters: Sequence[Tensor]) -> None:
        """See the clean gradients, before they are scaled or dropped."""
        self._measures = self._num_calls % EVERY == 0
        self._num_calls += 1
        if self._measures:
            self._clean = {p: _sample(p.grad).clone() for p in parameters if p.grad is not None}

    def measure_perturbation(self, perturbed: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
        """See the perturbed parameters when they are no longer needed: they are overwritten by e."""
        if self._measures and perturbed:
            foreach.add_scaled_(perturbed, weights, -1.0)
            self._add("norm", foreach.global_norm(perturbed))

    def after_second_pass(self, share: float) -> None:
        """See the gradients after the second pass: g* + share·g."""
        products: list[Tensor] = []
        for parameter, clean in self._clean.items():
            if parameter.grad is not None and clean.numel():
                g, both = _wide(clean), _wide(_sample(parameter.grad))
                g_star = both - share * g
                each = torch.stack([(g * g_star).sum(), g.square().sum(), g_star.square().sum()])
                products.append(each * (parameter.numel() / clean.numel()))
        self._clean = {}
        if products:
            dot, clean_square, perturbed_square = torch.stack(products).sum(0)
            # Roots first: the product of two small squares is 0.
            self._add("cosine", dot / (clean_square.sqrt() * perturbed_square.sqrt() + 1e-30))

    def _add(self, what: str, value: Tensor) -> None:
        """A step that is skipped for its overflow is left out; this is decided on the device."""
        finite = torch.isfinite(value)
        self._sums[what] = self._sums[what] + torch.where(finite, _wide(value), 0.0)
        self._counts[what] = self._counts[what] + _wide(finite)

    def mean(self, what: Literal["norm", "cosine"]) -> float | None:
        """Mean of ‖e‖ or of cos(g, g*) over the measured steps, or None without any."""
        count = float(self._counts[what])
        return float(self._sums[what]) / count if count else None

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        sums = {what: float(value) for what, value in self._sums.items()}
        counts = {what: float(value) for what, value in self._counts.items()}
        return {"num_calls": self._num_calls, "sums": sums, "counts": counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from saved numbers."""
        self._num_calls = state["num_calls"]
        self._sums, self._counts = dict(state["sums"]), dict(state["counts"])


def _wide(tensor: Tensor) -> Tensor:
    """fp64 where the device has it."""
    return tensor.float() if tensor.device.type == "mps" else tensor.double()


def _sample(tensor: Tensor) -> Tensor:
    """A view of BLOCK elements of every BLOCK·STRIDE in memory order; gradients lie like parameters."""
    if tensor.numel() <= _SMALL:
        return tensor
    rows = tensor.numel() // (BLOCK * STRIDE)
    return torch.as_strided(tensor, (rows, BLOCK), (BLOCK * STRIDE, 1))
