"""The methods written once more, short and slow, in float64 from their papers: what the core is held to."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Gradient = Callable[[list[Tensor]], list[Tensor]]


def norm(vectors: list[Tensor]) -> float:
    return math.sqrt(sum(float((v * v).sum()) for v in vectors))


def sgd_direction(weights: list[Tensor], gradient: Gradient) -> list[Tensor]:
    return gradient(weights)


def sam_direction(weights: list[Tensor], gradient: Gradient, rho: float = 0.05) -> list[Tensor]:
    g = gradient(weights)
    return gradient([w + rho * each / (norm(g) + 1e-12) for w, each in zip(weights, g, strict=True)])


def pugd_direction(weights: list[Tensor], gradient: Gradient, rho: float = 1.0) -> list[Tensor]:
    g = gradient(weights)
    scaled = [w.abs() * each for w, each in zip(weights, g, strict=True)]
    moved = [w + rho * each / (norm(scaled) + 1e-12) for w, each in zip(weights, scaled, strict=True)]
    total = [a + b for a, b in zip(g, gradient(moved), strict=True)]
    return [each / (norm(total) + 1e-12) for each in total]


class SGD:
    """d = h + λw; v = μv + d; w ← w − lr·v, with one (lr, λ) for each tensor."""

    def __init__(self, lrs: list[float], momentum: float, weight_decays: list[float]) -> None:
        self.lrs, self.momentum, self.weight_decays = lrs, momentum, weight_decays
        self.velocity: list[Tensor] = []

    def step(self, weights: list[Tensor], direction: list[Tensor]) -> list[Tensor]:
        d = [h + decay * w for h, w, decay in zip(direction, weights, self.weight_decays, strict=True)]
        old = self.velocity or [torch.zeros_like(each) for each in d]
        self.velocity = [self.momentum * v + each for v, each in zip(old, d, strict=True)]
        return [w - lr * v for w, v, lr in zip(weights, self.velocity, self.lrs, strict=True)]


class AdamW:
    """Decoupled weight decay (arXiv 1711.05101, Algorithm 2), with torch's placement of lr on the decay."""

    def __init__(self, lrs: list[float], weight_decays: list[float]) -> None:
        self.lrs, self.weight_decays, self.t = lrs, weight_decays, 0
        self.m: list[Tensor] = []
        self.v: list[Tensor] = []

    def step(self, weights: list[Tensor], direction: list[Tensor]) -> list[Tensor]:
        self.t += 1
        old_m = self.m or [torch.zeros_like(h) for h in direction]
        old_v = self.v or [torch.zeros_like(h) for h in direction]
        self.m = [0.9 * m + 0.1 * h for m, h in zip(old_m, direction, strict=True)]
        self.v = [0.999 * v + 0.001 * h * h for v, h in zip(old_v, direction, strict=True)]
        moved = []
        for w, m, v, lr, decay in zip(weights, self.m, self.v, self.lrs, self.weight_decays, strict=True):
            m_hat, v_hat = m / (1 - 0.9**self.t), v / (1 - 0.999**self.t)
            moved.append(w - lr * decay * w - lr * m_hat / (v_hat.sqrt() + 1e-8))
        return moved


DIRECTIONS: dict[str, Callable[..., list[Tensor]]] = {
    "plain": sgd_direction,
    "sam": sam_direction,
    "pugd": pugd_direction,
}
