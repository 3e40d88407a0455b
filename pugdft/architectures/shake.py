"""Noise of residual branches, one draw for each image: Shake-Shake and ShakeDrop.

In training a branch's value and its gradient have different random factors: "shaken". With ``true_gradient``
both have the value's, so that the gradient is that of the loss with just this noise. The optimizer core sets
it around a pass whose gradient a perturbation follows, as the code of SAM and GNP (arXiv 2010.01412,
2202.03599) does. Both modes draw the same numbers, from torch's default generator, in float32 and in
``forward``: equal states of the generator give equal noise, whatever the mode and the precision.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ShakeShake(nn.Module):
    """α·a + (1 − α)·b with α ~ U(0, 1) and β ~ U(0, 1) in place of α in the gradient (arXiv 1705.07485).

    Both branches are (batch, ...); each image has its own α and β. In evaluation the mean of both branches.
    """

    def __init__(self) -> None:
        super().__init__()
        self.true_gradient = False

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        if not self.training:
            return (a + b) * 0.5
        alpha, beta = _draw(2, a)
        return b + _scaled(a - b, alpha, alpha if self.true_gradient else beta)


class ShakeDrop(nn.Module):
    """Multiply a branch by 1 with probability ``keep``, else by α ~ U(−1, 1) (arXiv 1802.02375, eq. 6).

    The gradient has β ~ U(0, 1) in place of α. Input and output are (batch, ...); each image has its own
    draws. In evaluation the factor is ``keep``, for the mean of α is 0.

    Raises:
        ValueError: ``keep`` is not in 0..1.
    """

    def __init__(self, keep: float) -> None:
        if not 0 <= keep <= 1:
            raise ValueError(f"keep: {keep} is not in 0..1")
        super().__init__()
        self.keep, self.true_gradient = keep, False

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training:
            return branch * self.keep
        gate, alpha, beta = _draw(3, branch)
        is_kept = gate < self.keep  # gates are below 1
        # Chosen, not b + α − bα: that is not exactly 1 where the branch is kept.
        value, slope = (torch.where(is_kept, 1.0, factor) for factor in (2 * alpha - 1, beta))
        return _scaled(branch, value, value if self.true_gradient else slope)

    def extra_repr(self) -> str:
        return f"keep={self.keep:g}"


def _draw(count: int, like: Tensor) -> Tensor:
    """Draw ``count`` uniform numbers in [0, 1) for each image, (count, batch, 1, ...), always float32."""
    shape = (count, like.shape[0], *(1,) * (like.dim() - 1))
    return torch.rand(shape, dtype=torch.float32, device=like.device)


def _scaled(branch: Tensor, value: Tensor, slope: Tensor) -> Tensor:
    """Return value · branch; its derivative by the branch is ``slope``."""
    if slope is value:
        return branch * value.to(branch.dtype)
    value, slope = value.to(branch.dtype), slope.to(branch.dtype)
    return branch * slope + branch.detach() * (value - slope)
