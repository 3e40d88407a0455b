"""Directions in weight space: random ones, scaled as a model's own weights are, and the way to another model.

A random direction is never stored. It is drawn for each parameter by (seed, number, name), so a part that is
frozen or renamed changes no other parameter's numbers, and several runs share the same draw, each scaled by
its own weights. Source of ``filter``: Li et al., arXiv 1712.09913, section 4.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from pugdft.analysis import curvature
from pugdft.analysis.objective import LossPart, Objective, twice_differentiable
from pugdft.training.performance import products_in

Direction = dict[str, Tensor]  # by the parameter's name; a parameter that is absent does not move
Normalization = Literal["filter", "layer", "model", "none"]
OneDimensional = Literal["zero", "block"]

_AT_ONCE = 64  # images whose second derivative is in memory
_PRODUCTS = 20


def random_direction(
    model: nn.Module,
    seed: int,
    number: int,
    normalize: Normalization = "filter",
    one_d: OneDimensional = "zero",
) -> Direction:
    """A normally distributed direction with the lengths of the model's weights.

    Args:
        number: of the direction, from 0.
        normalize: ``filter``: each slice along a tensor's first axis gets the norm of the weights' slice;
            ``layer``: each tensor does; ``model``: all of them together do; ``none``: as it was drawn.
        one_d: ``zero``: biases and the weights of norms do not move; ``block``: each is scaled as a whole.
    """
    direction: Direction = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or (parameter.ndim < 2 and one_d == "zero"):
            continue
        weights = parameter.detach()
        drawn = _drawn(name, weights.shape, seed, number).to(weights)
        if normalize == "filter" and weights.ndim > 1:
            dims = tuple(range(1, weights.ndim))
            norms = [torch.linalg.vector_norm(each, dim=dims, keepdim=True) for each in (weights, drawn)]
            drawn *= _ratio(*norms)
        elif normalize in ("filter", "layer"):
            drawn *= _ratio(weights.norm(), drawn.norm())
        direction[name] = drawn
    if normalize == "model":
        own = {name: each.detach() for name, each in model.named_parameters() if name in direction}
        factor = _norm(own) / max(_norm(direction), 1e-30)
        for values in direction.values():
            values *= factor
    return direction


def sharpest_directions(model: nn.Module, inputs: Tensor, labels: Tensor, seed: int) -> list[Direction]:
    """The Hessian's eigenvectors of its two largest eigenvalues, as long as a random direction is.

    Of the mean loss of these images in evaluation mode, with the running statistics that the model has. The
    eigenvector of the largest eigenvalue points to the side of its largest entry above zero.
    """
    twin = twice_differentiable(model)
    named = {name: each for name, each in twin.named_parameters() if each.requires_grad}
    batches = zip(inputs.split(_AT_ONCE), labels.split(_AT_ONCE), strict=True)
    parts = [LossPart(partial(_loss, twin, *each), len(each[1]) / len(labels)) for each in batches]
    objective = Objective(parts, list(named.values()))
    start = curvature.random_vector(objective.size, objective.weights(), seed)
    with products_in("ieee", inputs.device.type):
        krylov = curvature.lanczos(objective.product, start, _PRODUCTS, stops=False)
    vectors = torch.from_numpy(krylov.ritz()[1][:, :-3:-1].copy()).to(krylov.basis).T @ krylov.basis
    length = _norm({name: each.detach() for name, each in named.items() if each.ndim > 1})
    directions = []
    for vector in vectors:
        vector *= length * vector[vector.abs().argmax()].sign() / vector.norm()
        directions.append(
            {name: piece.clone() for name, piece in zip(named, objective.split(vector), strict=True)}
        )
    return directions


def _loss(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(inputs).double(), labels)


def way_to(start: Mapping[str, Tensor], end: Mapping[str, Tensor]) -> Direction:
    """The difference of two models' parameters, all of them."""
    return {name: end[name] - values for name, values in start.items()}


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of a model's parameters."""
    return {name: each.detach().clone() for name, each in model.named_parameters()}


def move_(
    model: nn.Module,
    centre: Mapping[str, Tensor],
    steps: Sequence[float],
    directions: Sequence[Mapping[str, Tensor]],
) -> None:
    """Write ``centre + Σ step · direction`` into a model's parameters; earlier points leave no rounding."""
    with torch.no_grad():
        for name, weights in model.named_parameters():
            weights.copy_(centre[name])
            for step, direction in zip(steps, directions, strict=True):
                if step and name in direction:
                    weights.add_(direction[name], alpha=step)


def _drawn(name: str, shape: Sequence[int], seed: int, number: int) -> Tensor:
    digest = hashlib.sha256(f"{seed} {number} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.randn(tuple(shape), generator=generator)


def _ratio(own: Tensor, drawn: Tensor) -> Tensor:
    return own / drawn.clamp_min(1e-30)


def _norm(tensors: Mapping[str, Tensor]) -> float:
    return float(sum(float(each.double().square().sum().cpu()) for each in tensors.values())) ** 0.5
