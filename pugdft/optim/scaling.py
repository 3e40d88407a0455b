"""Loss scaling for fp16, for methods that evaluate the gradient more than once a step.

The scale is the same in all passes of a step; it changes once, after the step. Scaling happens where the
closure calls backward (``PerturbedOptimizer.backward``) and is undone after each pass, so that every rule
sees true gradients. Scales are powers of two: multiplying and dividing by them is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pugdft.optim import tensors

# At 0, where halving for ever would lead, no gradient is finite again.
_LEAST = 2.0**-14


class LossScale:
    """A dynamic loss scale, kept on the device so that nothing waits for it.

    Args:
        initial: a power of two.
        growth_interval: finite steps after which the scale doubles; it halves at each overflow.
    """

    def __init__(self, initial: float = 2.0**16, growth_interval: int = 2000) -> None:
        self._initial, self._growth_interval = initial, growth_interval
        self._scale: Tensor | None = None
        self._growth = torch.zeros((), dtype=torch.int32)

    def scale(self, loss: Tensor) -> Tensor:
        """The loss times the scale."""
        return loss * self._on(loss.device)

    def scale_(self, gradients: Sequence[Tensor]) -> None:
        """Bring gradients to the scale of a pass that is going to add to them."""
        if gradients:
            tensors.scale_(gradients, self._on(gradients[0].device))

    def unscale_(self, gradients: Sequence[Tensor]) -> None:
        """Undo the scale of a pass."""
        if gradients:
            tensors.scale_(gradients, 1.0 / self._on(gradients[0].device))

    def update(self, finite: Tensor) -> None:
        """Halve the scale after an overflow, down to 2⁻¹⁴; double it after a long run without one."""
        scale = self._on(finite.device)
        torch._amp_update_scale_(scale, self._growth, (~finite).float(), 2.0, 0.5, self._growth_interval)
        scale.clamp_(min=_LEAST)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        scale = self._initial if self._scale is None else float(self._scale)
        return {"scale": scale, "growth": int(self._growth)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from saved numbers."""
        self._initial, self._scale = state["scale"], None
        self._growth = torch.tensor(state["growth"], dtype=torch.int32)

    def _on(self, device: torch.device) -> Tensor:
        if self._scale is None:
            self._scale = torch.tensor(self._initial, dtype=torch.float32, device=device)
            self._growth = self._growth.to(device)
        return self._scale
