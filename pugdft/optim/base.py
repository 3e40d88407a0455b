"""Base optimizers: torch's own, in their fused form where one exists.

Each entry's function lists the options that a recipe may give, with torch's defaults; ``lr`` has none,
for no number suits every backbone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Groups = list[dict[str, Any]]


def sgd(
    params: Groups,
    *,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum.

    d = h + λw;  v = μv + (1 − dampening)·d;  w ← w − lr·v (``torch.optim.SGD``).
    """
    _require_positive(lr)
    base = torch.optim.SGD(
        params,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        dampening=dampening,
        nesterov=nesterov,
        # torch's fused form cannot take a momentum buffer that appears later than the others.
        fused=dampening == 0 and _can_fuse(params),
    )
    if momentum and base.defaults["fused"]:
        # torch leaves a fused momentum buffer uninitialised if the very first step is skipped on the
        # device, and fails where a parameter gets its first gradient late. Zeros are what it would hold.
        for group in base.param_groups:
            for parameter in group["params"]:
                base.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return base


def adamw(
    params: Groups,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay (arXiv 1711.05101; ``torch.optim.AdamW``)."""
    _require_positive(lr)
    return torch.optim.AdamW(
        params,
        lr=lr,
        betas=(float(betas[0]), float(betas[1])),
        eps=eps,
        weight_decay=weight_decay,
        fused=_can_fuse(params),
    )


BASES: Mapping[str, Callable[..., torch.optim.Optimizer]] = {"sgd": sgd, "adamw": adamw}
"""Name in a recipe to constructor."""


def _require_positive(lr: float) -> None:
    if not lr > 0:
        raise ValueError(f"lr must be greater than 0, not {lr:g}")


def _can_fuse(groups: Groups) -> bool:
    parameters: list[Tensor] = [parameter for group in groups for parameter in _tensors(group["params"])]
    devices = {parameter.device.type for parameter in parameters}
    return devices <= {"cpu", "cuda"} and all(parameter.is_floating_point() for parameter in parameters)


def _tensors(entries: Any) -> list[Tensor]:
    return [entry[1] if isinstance(entry, tuple) else entry for entry in entries]
