"""Arithmetic over lists of tensors: the only place with a norm, an epsilon or a device's quirk.

A factor that comes out of a norm stays a 0-dim tensor on an accelerator, so that no step waits for the
device. On a CPU there is nothing to wait for: a Python number is free and lets one kernel do the work.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

EPSILON = 1e-12
"""Added to a norm before division; 0 in fp16, hence norms and factors are at least fp32."""


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """L2 norm over all elements of all tensors, a 0-dim tensor of at least fp32 on the first one's device.

    fp64 tensors are accumulated in fp64, everything narrower in fp32.
    """
    norms = torch._foreach_norm(list(tensors), 2, dtype=_accumulator(tensors))
    device = norms[0].device
    return torch.linalg.vector_norm(torch.stack([norm.to(device) for norm in norms]))


def ratio(numerator: float, norm: Tensor) -> Tensor:
    """``numerator / (norm + 1e-12)``: 0 for a zero gradient times this, never NaN."""
    return numerator / (norm + EPSILON)


def copy_(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """``targets ← sources``, bit for bit."""
    if _on_cpu(targets):
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source)
    else:
        torch._foreach_copy_(list(targets), list(sources))


def scale_(tensors: Sequence[Tensor], factor: Tensor | float) -> None:
    """``tensors ← factor · tensors``."""
    if _on_cpu(tensors):
        number = float(factor)
        for tensor in tensors:
            tensor.mul_(number)
    elif tensors:
        torch._foreach_mul_(list(tensors), factor)


def add_(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    """``tensors ← tensors + others``."""
    if tensors:
        torch._foreach_add_(list(tensors), list(others))


def set_sum_(
    targets: Sequence[Tensor], starts: Sequence[Tensor], steps: Sequence[Tensor], factor: Tensor
) -> None:
    """``targets ← starts + factor · steps`` where ``steps`` may be ``targets``; no further memory."""
    if _on_cpu(targets):
        number = float(factor)
        for target, start, step in zip(targets, starts, steps, strict=True):
            torch.add(start, step, alpha=number, out=target)
        return
    if steps is not targets:
        torch._foreach_copy_(list(targets), list(steps))
    torch._foreach_mul_(list(targets), factor)
    torch._foreach_add_(list(targets), list(starts))


def set_weighted_(targets: Sequence[Tensor], weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    """``targets ← |weights| ⊙ gradients``, element by element, without further memory."""
    if _on_cpu(targets):
        for target, weight, gradient in zip(targets, weights, gradients, strict=True):
            torch.abs(weight, out=target).mul_(gradient)
        return
    torch._foreach_copy_(list(targets), list(weights))
    torch._foreach_abs_(list(targets))
    torch._foreach_mul_(list(targets), list(gradients))


def _accumulator(tensors: Sequence[Tensor]) -> torch.dtype:
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def _on_cpu(tensors: Sequence[Tensor]) -> bool:
    return not tensors or tensors[0].device.type == "cpu"
