"""How far the loss can rise near given weights: the worst perturbation in a ball, searched by ascent.

SAM's own estimate is one step along the gradient. It finds a small share of the worst rise in a sharp
minimum, and a larger one in a flat minimum, so it flatters the sharp one. The search here begins at that
point too, hence it never finds less.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pugdft.optim.directions import AdaptiveGradient
from pugdft.optim.foreach import EPSILON

NUM_STEPS = 20

Slope = Callable[[Tensor], tuple[float, Tensor]]  # weights, (D,), to the loss and its gradient there


@dataclass(frozen=True)
class WorstRise:
    """The largest rise L(w + e) − L(w) that was found with ‖e / scales‖ ≤ rho.

    Attributes:
        one_step: the rise at SAM's (of scaled coordinates: ASAM's) perturbation.
        perturbation: e, (D,).
        num_gradients: that the search took.
    """

    rho: float
    rise: float
    one_step: float
    perturbation: Tensor
    num_gradients: int

    @property
    def one_step_share(self) -> float | None:
        """The share of the rise that one step finds; None where nothing rises."""
        return self.one_step / self.rise if self.rise > 0 else None


def worst_rise(
    slope: Slope,
    weights: Tensor,
    rho: float,
    directions: Sequence[Tensor] = (),
    *,
    scales: Tensor | None = None,
    num_steps: int = NUM_STEPS,
    on_gradient: Callable[[], None] = lambda: None,
) -> WorstRise:
    """Search the ball by ascent with normalised gradients in u = e / scales.

    u ← Π(u + ρ (1 − t/steps) g/‖g‖) for t = 0, 1, …, where g is the gradient in u and Π scales a vector that
    is too long to length ρ. The best of all points visited counts.

    Args:
        slope: the loss and its gradient at any weights.
        weights: w, (D,), not changed.
        rho: the radius.
        directions: of further starts, (D,), in the coordinates u; each is tried with both signs.
        scales: T, (D,): the ball is ‖e / T‖ ≤ ρ; None: 1.
        num_steps: of each start; each takes one gradient.
        on_gradient: called after each gradient.
    """
    found = _BallSearch(slope, weights, 1.0 if scales is None else scales, on_gradient)
    centre, gradient = found.at(torch.zeros_like(weights))
    first = found.unit(gradient) * rho
    # The one step comes first, so that its own rise is known.
    ends = [sign * rho * found.unit(each) for each in directions for sign in (1.0, -1.0)]
    one_step: float | None = None
    for start in (first, *ends):
        place = start
        for step in range(num_steps):
            loss, gradient = found.at(place)
            one_step = loss - centre if one_step is None else one_step
            place = place + rho * (1 - step / num_steps) * found.unit(gradient)
            place = place * min(1.0, rho / max(float(place.double().norm()), EPSILON))
        found.at(place)
    assert one_step is not None
    assert found.best is not None
    return WorstRise(rho, found.highest - centre, one_step, found.scales * found.best, found.num_gradients)


class _BallSearch:
    """Evaluates points of the ball, in scaled coordinates, and remembers the best."""

    def __init__(
        self, slope: Slope, weights: Tensor, scales: Tensor | float, on_gradient: Callable[[], None]
    ) -> None:
        self.slope, self.weights, self.scales, self.on_gradient = slope, weights, scales, on_gradient
        self.highest, self.num_gradients = -float("inf"), 0
        self.best: Tensor | None = None

    def at(self, place: Tensor) -> tuple[float, Tensor]:
        """The loss, and its gradient in scaled coordinates."""
        loss, gradient = self.slope(self.weights + self.scales * place)
        self.num_gradients += 1
        self.on_gradient()
        if loss > self.highest:
            self.highest, self.best = loss, place
        return loss, self.scales * gradient

    @staticmethod
    def unit(vector: Tensor) -> Tensor:
        """A vector of length 1 of this direction; zero stays zero."""
        return vector / (vector.norm() + EPSILON)


def adaptive_scales(weights: Mapping[str, Tensor]) -> list[Tensor]:
    """T of ASAM for each named tensor, as the optimizer ``asam`` computes it with its default options."""
    return AdaptiveGradient().scales(weights)
