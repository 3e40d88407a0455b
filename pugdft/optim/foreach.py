"""Arithmetic over lists of tensors; norms, epsilons and device-specific code are here only.

A factor that comes out of a norm stays a 0-dim tensor on an accelerator, so that no step waits for the
device. On a CPU there is nothing to wait for: a Python number is free and lets one kernel do the work.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

_BLOCK = 1 << 20
SMALL = 1 << 12  # elements
_MANY = 64
Tensors = Sequence[Tensor]

EPSILON = 1e-12
"""Added to a norm before division; 0 in fp16, hence norms and factors are at least fp32."""


def gradients_of(parameters: Tensors) -> list[Tensor]:
    """The gradients of those parameters that have one."""
    return [gradient for parameter in parameters if (gradient := parameter.grad) is not None]


def global_norm(tensors: Tensors) -> Tensor:
    """L2 norm over all elements, a 0-dim tensor on the first one's device, in fp64 for fp64, else in fp32."""
    if _sum_up(tensors):
        # A product of a vector with itself reads it faster than a norm in fp64 does.
        return _sum_of_products(tensors, tensors).sqrt().to(tensors[0].dtype)
    norms = torch._foreach_norm(list(tensors), 2, dtype=_accumulator(tensors))
    return torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))


def tensor_norms(tensors: Tensors) -> list[Tensor]:
    """The L2 norm of each tensor, 0-dim."""
    if _on_cpu(tensors):
        return [global_norm([tensor]) for tensor in tensors]
    return list(torch._foreach_norm(list(tensors), 2, dtype=_accumulator(tensors)))


def dot(tensors: Tensors, others: Tensors) -> Tensor:
    """The inner product over all elements, a 0-dim tensor of at least fp32."""
    if _sum_up(tensors) and _sum_up(others):
        return _sum_of_products(tensors, others)
    dtype = _accumulator(tensors)
    parts = [
        torch.sum(a * b, dtype=dtype) if a.numel() else torch.zeros((), dtype=dtype, device=a.device)
        for a, b in zip(tensors, others, strict=True)
    ]
    return torch.stack([part.to(parts[0].device) for part in parts]).sum()


def ratio(numerator: float | Tensor, norm: Tensor) -> Tensor:
    """``numerator / (norm + 1e-12)``: 0 for a zero gradient times this, never NaN."""
    return numerator / (norm + EPSILON)


def square_ratio(numerator: Tensor, norm: Tensor) -> Tensor:
    """``numerator / (norm² + 1e-24)``: the coefficient of a projection."""
    return numerator / (norm * norm + EPSILON**2)


def copy_(targets: Tensors, sources: Tensors) -> None:
    """``targets ← sources``, bit for bit."""
    if targets:
        torch._foreach_copy_(list(targets), list(sources))


def scale_(tensors: Tensors, factor: Tensor | float) -> None:
    """``tensors ← factor · tensors``."""
    if not _on_cpu(tensors):
        torch._foreach_mul_(list(tensors), factor)
    elif tensors and float(factor) != 1:  # a tensor, for many products with a number take four times as long
        torch._foreach_mul_(list(tensors), torch.as_tensor(factor, dtype=_accumulator(tensors)))


def add_scaled_(tensors: Tensors, others: Tensors, factor: Tensor | float) -> None:
    """``tensors ← tensors + factor · others``."""
    if not _on_cpu(tensors) and isinstance(factor, Tensor):
        torch._foreach_add_(list(tensors), torch._foreach_mul(list(others), factor))
    elif tensors:
        torch._foreach_add_(list(tensors), list(others), alpha=float(factor))


def average_(means: Tensors, tensors: Tensors, share: float) -> None:
    """``means ← (1 − share) · means + share · tensors``."""
    if means:
        torch._foreach_lerp_(list(means), list(tensors), share)


def move_(parameters: Tensors, weights: Tensors, steps: Tensors, factor: Tensor | float) -> None:
    """``parameters ← weights + factor · steps`` where the parameters still hold the weights."""
    if _on_cpu(parameters):
        add_scaled_(parameters, steps, factor)
    else:  # in place it would take a copy of the steps
        set_sum_(parameters, weights, steps, factor)


def set_sum_(targets: Tensors, starts: Tensors, steps: Tensors, factor: Tensor | float) -> None:
    """``targets ← starts + factor · steps``; ``steps`` may be ``targets``, large ones take no more memory."""
    if not _on_cpu(targets):
        if steps is not targets:
            copy_(targets, steps)
        scale_(targets, factor)
        add_scaled_(targets, starts, 1.0)
        return
    large, (small, starts, steps) = _divided(targets, starts, steps)
    for target, start, step in large:
        torch.add(start, step, alpha=float(factor), out=target)
    if small:
        copy_(small, torch._foreach_add(list(starts), list(steps), alpha=float(factor)))


def set_weighted_(
    targets: Tensors, weights: Tensors, gradients: Tensors, eta: float = 0.0, power: int = 1
) -> Tensor:
    """``targets ← T^power ⊙ gradients`` with T = |weights| + eta, for power 1 or 2; no further memory.

    Returns ‖T ⊙ gradients‖, 0-dim: for power 2 the root of ⟨targets, gradients⟩.
    """
    sums_up, parts, norm = _sum_up(targets) and _sum_up(gradients), list[Tensor](), None
    if power == 2 and not sums_up:  # an accelerator has a fast norm, but no fast product of lists
        norm = set_weighted_(targets, weights, gradients, eta)
    large, (small, starts, slopes) = _divided(targets, weights, gradients)
    for target, weight, gradient in large:
        torch.abs(weight, out=target)
        if eta:
            target.add_(eta)
        if power == 2:
            target.mul_(target)
        target.mul_(gradient)
        if sums_up:  # while the cache has them
            parts += [torch.dot(*pair) for pair in _blocks(target, gradient if power == 2 else target)]
    if small:
        copy_(small, starts)
        torch._foreach_abs_(list(small))
        if eta:
            torch._foreach_add_(list(small), eta)
        if power == 2:
            torch._foreach_mul_(list(small), list(small))
        torch._foreach_mul_(list(small), list(slopes))
    if sums_up:
        return _sum_of_products(targets, gradients if power == 2 else targets, parts).sqrt()
    return global_norm(targets) if norm is None else norm


def set_noise_(
    targets: Tensors, weights: Tensors, generators: Mapping[torch.device, torch.Generator]
) -> None:
    """``targets ← noise ⊙ ‖row of weights‖ / √n`` with standard normal noise, for each row of n weights.

    A row is what the first dimension of a tensor selects; a vector is one row. The noise is drawn in logical
    order, so that it does not depend on how the weights lie in memory; it takes one tensor's memory at a
    time.
    """
    for target, weight in zip(targets, weights, strict=True):
        rows = weight if weight.dim() > 1 else weight.reshape(1, -1)
        noise = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
        noise.normal_(generator=generators[rows.device])
        others = tuple(range(1, rows.dim()))
        lengths = torch.linalg.vector_norm(rows, dim=others, keepdim=True, dtype=_accumulator([rows]))
        noise.mul_(lengths / math.sqrt(max(1, math.prod(rows.shape[1:]))))
        target.copy_(noise.reshape(target.shape))


def smallest_of_largest(tensors: Tensors, share: float) -> Tensor:
    """The smallest of the ``share`` of largest elements (one at least), 0-dim, on the first one's device."""
    whole = torch.cat([tensor.flatten().to(tensors[0].device) for tensor in tensors])
    left_out = whole.numel() - max(1, round(share * whole.numel()))
    # torch has a deterministic k-th value on a CPU only.
    return whole.kthvalue(left_out + 1).values if _on_cpu(tensors) else whole.sort().values[left_out]


def clip_norm_(tensors: Tensors, limit: float | Tensor, norm: Tensor) -> None:
    """Scale by ``min(1, limit / (norm + 1e-12))``."""
    scale_(tensors, torch.clamp(ratio(limit, norm), max=1.0))


def joined(tensors: Tensors) -> Iterator[Tensor]:
    """Yield the elements of small tensors as vectors.

    To join tensors takes a sixth of a kernel each; in parts, so that it takes no copy of all weights.
    """
    for start in range(0, len(tensors), _MANY):
        part = tensors[start : start + _MANY]
        yield torch.cat([tensor if tensor.dim() == 1 else tensor.flatten() for tensor in part])


def _sum_up(tensors: Tensors) -> bool:
    """Whether they lie on a CPU, in one type that is wide enough for their sums."""
    return _on_cpu(tensors) and {tensor.dtype for tensor in tensors} in ({torch.float32}, {torch.float64})


def _sum_of_products(tensors: Tensors, others: Tensors, parts: list[Tensor] | None = None) -> Tensor:
    """The inner product of two lists, which may be one and the same, on a CPU, 0-dim.

    ``parts`` are those of the large tensors, if they are known.
    """
    large, (small, others_small) = _divided(tensors, others)
    if parts is None:
        # The last first: the cache still has them, and has the first where the next kernel begins.
        parts = [torch.dot(*pair) for a, b in reversed(large) for pair in _blocks(a, b)]
    if others is tensors:
        parts += [torch.dot(a, a) for a in joined(small)]
    else:
        parts += [torch.dot(a, b) for a, b in zip(joined(small), joined(others_small), strict=True)]
    product = torch.stack(parts).sum(dtype=torch.float64)
    if math.isinf(product):  # the products of finite numbers may be infinite in fp32
        rows = zip(tensors, others, strict=True)
        product = torch.stack([(a.double() * b).sum() for a, b in rows]).sum()
    return product


def _blocks(tensor: Tensor, other: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    """Both as vectors, in blocks; without a copy if both lie in memory alike, without gaps.

    One fp32 sum over 25 million elements is wrong in the fourth digit.
    """
    both = [tensor] if other is tensor else [tensor, other]
    if tensor.dim() == 4 and all(t.is_contiguous(memory_format=torch.channels_last) for t in both):
        both = [each.permute(0, 2, 3, 1) for each in both]
    both = [each.contiguous().view(-1) for each in both]  # flatten() may leave gaps, which BLAS sums badly
    if tensor.numel() <= _BLOCK:
        return [(both[0], both[-1])]
    return zip(both[0].split(_BLOCK), both[-1].split(_BLOCK), strict=True)


def _accumulator(tensors: Tensors) -> torch.dtype:
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def _on_cpu(tensors: Tensors) -> bool:
    return not tensors or tensors[0].device.type == "cpu"


def _divided(*lists: Tensors) -> tuple[list[tuple[Tensor, ...]], Sequence[Tensors]]:
    """Rows of large tensors, and lists of the small ones, which are all that an accelerator has.

    On a CPU, one large tensor after the other is fastest, whose caches keep it between two kernels. Many
    small ones are not: there it is the calls that take the time.
    """
    if not _on_cpu(lists[0]) or max(map(Tensor.numel, lists[0]), default=0) <= SMALL:
        return [], lists
    rows = list(zip(*lists, strict=True))
    small = [row for row in rows if row[0].numel() <= SMALL]
    large = [row for row in rows if row[0].numel() > SMALL]
    return large, [[row[column] for row in small] for column in range(len(lists))]
