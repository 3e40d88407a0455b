"""One function per paper: a method is five rules.

Each docstring holds the equation, its source, where published code differs, and the cost. The function's
signature is the method's options: recipes are checked against it.
"""

from __future__ import annotations

from dataclasses import dataclass

from pugdft.optim.combine import Combine, Linear
from pugdft.optim.direction import Direction, Gradient, WeightedGradient
from pugdft.optim.normalize import Identity, Normalize, Unit
from pugdft.optim.radius import Constant, Radius
from pugdft.optim.trigger import Always, Never, Trigger


@dataclass(frozen=True)
class Method:
    """The five slots of one step; ``repr`` is the whole method."""

    direction: Direction
    radius: Radius
    trigger: Trigger
    combine: Combine
    normalize: Normalize


def plain() -> Method:
    """The base optimizer alone: one pass, the gradient as it is.

    Cost: 1 pass a step, no further memory.
    """
    return Method(Gradient(), Constant(0.0), Never(), Linear(0, 1), Identity())


def sam(*, rho: float = 0.05) -> Method:
    """Sharpness-aware minimization: the gradient at the worst nearby point.

    e = ρ · g / ‖g‖;  h = ∇L(w + e);  BASE(h) at w.
    Source: Foret et al., arXiv 2010.01412, eq. 2 and 3; ρ = 0.05 is the paper's default for fine-tuning.
    ‖·‖ runs over all parameters of all groups together.

    Cost: 2 passes a step, one copy of the parameters.

    Args:
        rho: radius of the ball, ≥ 0; 0 gives the base optimizer. The paper tries .01 to .5.
    """
    return Method(Gradient(), Constant(rho), Always(), Linear(0, 1), Identity())


def pugd(*, rho: float = 1.0) -> Method:
    """Perturbated unit gradient descent: both gradients, added, as one unit vector.

    e = ρ · |w|⊙g / ‖|w|⊙g‖;  h = (g + g*) / ‖g + g*‖ with g* = ∇L(w + e);  BASE(h) at w.
    Source: Tseng et al., arXiv 2110.00199, eq. 12 and Algorithm 1, where ρ = 1.
    The step length is lr itself, whatever the loss's scale; weight decay comes after the normalisation.
    Published code restores w by subtracting e, which is not w in floating point: here w is copied back.

    Cost: 2 passes a step, one copy of the parameters in pugdft's own loop (two under a closure that
    clears the gradients).

    Args:
        rho: length of the perturbation, ≥ 0; 0 gives unit gradient descent.
    """
    return Method(WeightedGradient(), Constant(rho), Always(), Linear(1, 1), Unit())
