"""A method spelled from its rules, for combinations that no paper has named."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from pugdft.errors import unknown
from pugdft.optim.combine import (
    DecoupledSharpness,
    Linear,
    Merge,
    RemoveParallel,
    ReuseAscent,
    Scaled,
    Weighted,
)
from pugdft.optim.direction import (
    AdaptiveGradient,
    AveragedGradient,
    ClippedAscent,
    Direction,
    FriendlyGradient,
    Gradient,
    WeightedGradient,
)
from pugdft.optim.method import Method
from pugdft.optim.normalize import Identity, Normalize, Unit, UnitEach
from pugdft.optim.options import unmet_kinds
from pugdft.optim.schedules import Number, as_radius, as_schedule
from pugdft.optim.trigger import Always

Rule = str | Mapping[str, Any]
"""A rule's name, or a mapping with its name and options."""


def scaled(scale: Number = 1.0) -> Scaled:
    """scale(t)·g + g*, with a number or a schedule."""
    return Scaled(as_schedule(scale, "scale"))


DIRECTIONS: Mapping[str, Callable[..., Direction]] = {
    "gradient": Gradient,
    "weighted_gradient": WeightedGradient,
    "adaptive_gradient": AdaptiveGradient,
    "friendly_gradient": FriendlyGradient,
    "averaged_gradient": AveragedGradient,
    "clipped_ascent": ClippedAscent,
}
COMBINATIONS: Mapping[str, Callable[..., Linear | Merge]] = {
    "weighted": Weighted,
    "scaled": scaled,
    "remove_parallel": RemoveParallel,
    "reuse_ascent": ReuseAscent,
    "decoupled_sharpness": DecoupledSharpness,
}
NORMALIZATIONS: Mapping[str, Callable[..., Normalize]] = {
    "identity": Identity,
    "unit": Unit,
    "unit_each": UnitEach,
}


def rules(
    *,
    direction: Rule = "gradient",
    rho: Number = 0.05,
    combine: Rule = {"name": "weighted", "clean": 0, "perturbed": 1},  # noqa: B006
    normalize: Rule = "identity",
) -> Method:
    """A method of your own, spelled from its rules.

    e along ``direction`` with radius ρ, h from g and g* by ``combine``;  BASE(normalize(h)). The defaults
    are SAM; ``direction: weighted_gradient, rho: 1, combine: scaled, normalize: unit`` is PUGD.
    Source: none; cite the papers of the rules that you combine.

    Cost: 2 passes a step, 1 copy of the parameters (2 with a merging combination or an averaging direction).

    Args:
        direction: gradient, weighted_gradient, adaptive_gradient, friendly_gradient, averaged_gradient or
            clipped_ascent; with options as a mapping: ``{name: adaptive_gradient, eta: 0.01}``.
        rho: radius, ≥ 0, or a schedule.
        combine: weighted (clean, perturbed), scaled (scale), remove_parallel (alpha), reuse_ascent (alpha) or
            decoupled_sharpness (gamma).
        normalize: identity, unit or unit_each (scope).
    """
    return Method(
        _rule("direction", direction, DIRECTIONS),
        as_radius(rho),
        Always(),
        _rule("combine", combine, COMBINATIONS),
        _rule("normalize", normalize, NORMALIZATIONS),
    )


def _rule(slot: str, value: Rule, known: Mapping[str, Callable[..., Any]]) -> Any:
    """The rule of a slot.

    Raises:
        ValueError: an unknown name, a strange or missing option, a value out of range.
    """
    options = {"name": value} if isinstance(value, str) else dict(value)
    name = options.pop("name", None)
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"{slot}: {unknown('rule', name, known)}")
    parameters = inspect.signature(known[name]).parameters
    required = {key for key, each in parameters.items() if each.default is each.empty}
    if not required <= set(options) <= set(parameters):
        takes = ", ".join(parameters) or "no options"
        raise ValueError(f"{slot}: {name} takes {takes}; given: {', '.join(options) or 'nothing'}")
    if unmet := unmet_kinds(known[name], options):
        raise ValueError(f"{slot}: {name}: {'; '.join(unmet)}")
    try:
        return known[name](**options)
    except TypeError as error:
        raise ValueError(f"{slot}: {name}: {error}") from None
