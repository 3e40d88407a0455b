"""The unit-gradient family, one function per paper: a method is five rules.

Notation as in ``presets.py``. The step length of these methods is lr itself, whatever the loss's scale.
"""

from __future__ import annotations

from typing import Literal

from pugdft.optim.combine import Scaled, Weighted
from pugdft.optim.direction import Gradient, WeightedGradient
from pugdft.optim.method import Method
from pugdft.optim.normalize import Unit, UnitEach
from pugdft.optim.schedules import Constant, Number, as_radius, as_schedule
from pugdft.optim.trigger import Always, GradientVariance, Never


def ugd() -> Method:
    """Unit gradient descent: BASE(g / ‖g‖).

    Use it to see what the normalisation alone does. The step length is lr itself.
    Source: Update in Unit Gradient, arXiv 2110.00199v1, Algorithm 2; PUGD, Definition 3 (NGD-FM).

    Cost: 1 pass a step, no further memory.
    """
    return Method(Gradient(), Constant(0.0), Never(), Weighted(0, 1), Unit())


def ngd_cw(*, scope: Literal["tensor", "element"] = "tensor") -> Method:
    """Component-wise normalised gradient descent: every tensor, or every element, of unit length.

    BASE(g / ‖g‖) for each tensor by itself, or BASE(sign g).
    Source: compared in the PUGD paper, arXiv 2110.00199, whose text allows both readings; no code exists.

    Cost: 1 pass a step, no further memory.

    Args:
        scope: ``tensor`` divides each tensor by its norm, ``element`` takes the sign of each element.
    """
    return Method(Gradient(), Constant(0.0), Never(), Weighted(0, 1), UnitEach(scope))


def sam_gns(*, rho: Number = 0.05) -> Method:
    """SAM with its gradient as one unit vector.

    e = ρ · g / ‖g‖;  BASE(g* / ‖g*‖): g is not added.
    Source: Update in Unit Gradient, arXiv 2110.00199v1, Algorithm 3.

    Cost: 2 passes a step, 1 copy of the parameters.

    Args:
        rho: radius of the ball, ≥ 0.
    """
    return Method(Gradient(), as_radius(rho), Always(), Weighted(0, 1), Unit())


def pugd(*, rho: Number = 1.0) -> Method:
    """Perturbated unit gradient descent: both gradients, added, as one unit vector.

    e = ρ · |w|⊙g / ‖|w|⊙g‖;  BASE((g + g*) / ‖g + g*‖).
    Source: Tseng et al., arXiv 2110.00199, eq. 12 and Algorithm 1, where ρ = 1.
    The step length is lr itself, whatever the loss's scale; weight decay comes after the normalisation.
    Published code restores w by subtracting e, which is not w in floating point: here w is copied back.

    Cost: 2 passes a step, 1 copy of the parameters in pugdft's own loop (2 under a closure that
    clears the gradients).

    Args:
        rho: length of the perturbation, ≥ 0; 0 gives unit gradient descent.
    """
    return Method(WeightedGradient(), as_radius(rho), Always(), Scaled(Constant(1.0)), Unit())


def pugd_r(*, rho: Number = {"schedule": "icos", "min": 0.5, "max": 2.0}) -> Method:  # noqa: B006
    """PUGD with a scheduled radius (RTS: R).

    e = a_r(t) · |w|⊙g / ‖|w|⊙g‖;  BASE((g + g*) / ‖g + g*‖).
    Source: When and How Much to Perturb? Radius-Timing-Scale, 2025. The default schedule is ours.

    Cost: 2 passes a step, 1 copy of the parameters.

    Args:
        rho: a schedule: sin, cos, isin, icos, linear, cosine, proportional_to_lr.
    """
    return pugd(rho=rho)


def pugd_s(*, rho: Number = 1.0, scale: Number = {"schedule": "icos", "min": 0.5, "max": 2.0}) -> Method:  # noqa: B006
    """PUGD with a scheduled share of the clean gradient (RTS: S).

    e as in pugd;  BASE(U / ‖U‖) with U = a_s(t)·g + g*.
    Source: When and How Much to Perturb? Radius-Timing-Scale, 2025. The default schedule is ours.

    Cost: 2 passes a step, 1 copy of the parameters.

    Args:
        rho: length of the perturbation, ≥ 0, or a schedule.
        scale: factor of the clean gradient, a number or a schedule.
    """
    combine = Scaled(as_schedule(scale, "scale"))
    return Method(WeightedGradient(), as_radius(rho), Always(), combine, Unit())


def pugd_rs(
    *,
    rho: Number = {"schedule": "icos", "min": 0.5, "max": 2.0},  # noqa: B006
    scale: Number = {"schedule": "icos", "min": 0.5, "max": 2.0},  # noqa: B006
) -> Method:
    """PUGD with both schedules, independent of each other (RTS: RS).

    e = a_r(t) · |w|⊙g / ‖|w|⊙g‖;  BASE(U / ‖U‖) with U = a_s(t)·g + g*.
    Source: When and How Much to Perturb? Radius-Timing-Scale, 2025. The default schedules are ours.

    Cost: 2 passes a step, 1 copy of the parameters.

    Args:
        rho: a number or a schedule of the radius.
        scale: a number or a schedule of the clean gradient's factor.
    """
    return pugd_s(rho=rho, scale=scale)


def pugd_t(*, rho: Number = 1.0) -> Method:
    """PUGD from the moment when the gradient norm has settled (RTS: T); before, the base alone.

    BASE(g), then pugd's BASE((g + g*) / ‖g + g*‖) once Var(last k ‖g‖) < γ · Var(‖g‖ over the first tenth),
    γ = .2 and k = 10; ``trigger`` chooses another rule or other values.
    Source: When and How Much to Perturb? Radius-Timing-Scale, 2025.

    Cost: 1 to 2 passes a step, 1 copy of the parameters.

    Args:
        rho: length of the perturbation, ≥ 0, or a schedule.
    """
    return Method(WeightedGradient(), as_radius(rho), GradientVariance(), Scaled(Constant(1.0)), Unit())
