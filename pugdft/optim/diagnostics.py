"""Measure gradients, how far a method perturbs the weights, and the angle between g and the perturbed g*.

Measured at every tenth step (of the perturbed ones, for what only they have) and kept on the device, so that
nothing waits. An epoch that is ended with :meth:`Diagnostics.end_epoch` begins with a measured step. The
second pass may overwrite the clean gradient, so a sample of it is kept: one block of elements out of
:data:`STRIDE` of each tensor in memory order (a small tensor whole). Single elements would have every line of
memory read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, repeat
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pugdft.optim import foreach

EVERY = 10
STRIDE = 16
BLOCK = 64

Quantity = Literal["norm", "cosine", "gradient"]
_QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)


class Diagnostics:
    """Running means of ‖e‖, of cos(g, g*), estimated on the sampled elements, and of ‖g‖."""

    def __init__(self) -> None:
        self._num_calls = self._num_steps = 0  # perturbed steps and steps, of the epoch
        self._sums: dict[str, Tensor | float] = dict.fromkeys(_QUANTITIES, 0.0)  # of the epoch
        self._counts = dict(self._sums)
        self._earlier_sums, self._earlier_counts = _plain(self._sums), _plain(self._counts)
        self._measures = False
        self._clean: dict[Tensor, Tensor] = {}

    def after_clean_pass(self, parameters: Sequence[Tensor]) -> None:
        """See the gradients of a step's first pass."""
        gradients = foreach.gradients_of(parameters) if self._num_steps % EVERY == 0 else []
        if gradients and all(
            each.layout == torch.strided for each in gradients
        ):  # of a base alone: maybe sparse
            self._add("gradient", foreach.global_norm(gradients))
        self._num_steps += 1

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
        seen = [
            (p, clean, p.grad) for p, clean in self._clean.items() if p.grad is not None and clean.numel()
        ]
        whole = [(clean, gradient) for p, clean, gradient in seen if clean.numel() == p.numel()]
        before, after = (foreach.joined([row[column] for row in whole]) for column in range(2))
        samples = [(c, _sample(g), p.numel() / c.numel()) for p, c, g in seen if c.numel() < p.numel()]
        products: list[Tensor] = []
        for clean, both, weight in chain(zip(before, after, repeat(1.0)), samples):
            g = _wide(clean)
            g_star = _wide(both) - share * g
            sums = [(g * g_star).sum(), g.square().sum(), g_star.square().sum()]
            products.append(weight * torch.stack(sums))
        self._clean = {}
        if products:
            dot, clean_square, perturbed_square = torch.stack(products).sum(0)
            # Roots first: the product of two small squares is 0.
            self._add("cosine", dot / (clean_square.sqrt() * perturbed_square.sqrt() + 1e-30))

    def _add(self, what: Quantity, value: Tensor) -> None:
        """A step that is skipped for its overflow is left out; this is decided on the device."""
        finite = torch.isfinite(value)
        self._sums[what] = self._sums[what] + torch.where(finite, _wide(value), 0.0)
        self._counts[what] = self._counts[what] + _wide(finite)

    def mean(self, what: Quantity) -> float | None:
        """Mean of ‖e‖, cos(g, g*) or ‖g‖ over the measured steps, or None without any; waits."""
        count = self._earlier_counts[what] + float(self._counts[what])
        return (self._earlier_sums[what] + float(self._sums[what])) / count if count else None

    def end_epoch(self) -> dict[Quantity, float]:
        """Return the epoch's means of all that was measured in it, and begin the next epoch; waits."""
        sums, counts = _plain(self._sums), _plain(self._counts)
        for what in _QUANTITIES:
            self._earlier_sums[what] += sums[what]
            self._earlier_counts[what] += counts[what]
        self._num_calls = self._num_steps = 0
        self._sums = dict.fromkeys(_QUANTITIES, 0.0)
        self._counts = dict(self._sums)
        return {what: sums[what] / counts[what] for what in _QUANTITIES if counts[what]}

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers: ``sums`` and ``counts`` of the whole run, and both of its parts."""
        parts = {
            "earlier": {"sums": dict(self._earlier_sums), "counts": dict(self._earlier_counts)},
            "epoch": {"sums": _plain(self._sums), "counts": _plain(self._counts)},
        }
        whole = {
            key: {what: parts["earlier"][key][what] + parts["epoch"][key][what] for what in _QUANTITIES}
            for key in ("sums", "counts")
        }
        return {"num_calls": self._num_calls, "num_steps": self._num_steps, **whole, **parts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from saved numbers; those of an older version count as of earlier epochs."""
        self._num_calls, self._num_steps = state["num_calls"], state.get("num_steps", 0)
        none: dict[str, Any] = dict.fromkeys(_QUANTITIES, 0.0)
        earlier, epoch = state.get("earlier", state), state.get("epoch", {"sums": {}, "counts": {}})
        self._earlier_sums, self._earlier_counts = none | earlier["sums"], none | earlier["counts"]
        self._sums, self._counts = {**none, **epoch["sums"]}, {**none, **epoch["counts"]}


def _plain(values: Mapping[str, Tensor | float]) -> dict[str, float]:
    return {what: float(value) for what, value in values.items()}


def _wide(tensor: Tensor) -> Tensor:
    """fp64 where the device has it."""
    return tensor.float() if tensor.device.type == "mps" else tensor.double()


def _sample(tensor: Tensor) -> Tensor:
    """A view of BLOCK elements of every BLOCK·STRIDE in memory order; gradients lie like parameters."""
    if tensor.numel() <= foreach.SMALL:
        return tensor
    rows = tensor.numel() // (BLOCK * STRIDE)
    return torch.as_strided(tensor, (rows, BLOCK), (BLOCK * STRIDE, 1))
