"""What the rules of a method are given: the step, the parameters, and their own state."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class StepContext:
    """The moment of one update, before it is made.

    Attributes:
        step: updates made so far.
        progress: fraction of the training done, in 0..1.
        lr: learning rate of the first parameter group.
        base_lr: its largest so far, which is the schedule's peak.
    """

    step: int
    progress: float
    lr: float
    base_lr: float


def _no_momentum(parameters: Sequence[Tensor]) -> list[Tensor | None]:
    return [None] * len(parameters)


@dataclass(frozen=True)
class ParameterInfo:
    """What is known about the parameters beyond their values.

    Attributes:
        names: parameter to its name; empty if the caller gave none.
        norm_parameters: scales and shifts of normalisation layers, by the layers' type; None if the
            caller gave no module to find them in.
        momentum: the base's momentum of each parameter, None before its first step.
    """

    names: Mapping[Tensor, str] = field(default_factory=dict)
    norm_parameters: frozenset[Tensor] | None = None
    momentum: Callable[[Sequence[Tensor]], list[Tensor | None]] = _no_momentum


class RuleState:
    """What one rule remembers between steps; part of the optimizer's state.

    Attributes:
        tensors: name to a tensor for each parameter that has one, keyed by the parameter itself, for a
            position inside a group means another parameter in another group.
        values: plain numbers, lists of numbers, and 0-dim tensors.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, dict[Tensor, Tensor]] = {}
        self.values: dict[str, Any] = {}

    def state_dict(self, positions: Mapping[Tensor, int]) -> dict[str, Any]:
        """Tensors under the parameter's position among all parameters, as torch saves its own state."""
        tensors = {
            name: {positions[parameter]: tensor for parameter, tensor in each.items()}
            for name, each in self.tensors.items()
        }
        return {"tensors": tensors, "values": _plain(self.values)}

    def load_state_dict(self, state: Mapping[str, Any], parameters: Sequence[Tensor]) -> None:
        """Load a saved state; tensors go to their parameters' devices."""
        self.tensors = {
            name: {
                parameters[position]: torch.empty_like(parameters[position], dtype=tensor.dtype).copy_(tensor)
                for position, tensor in each.items()
            }
            for name, each in state["tensors"].items()
        }
        self.values = dict(state["values"])


def require(value: float, name: str, *, minimum: float = -math.inf, maximum: float = math.inf) -> None:
    """Raise ``ValueError`` unless ``value`` is finite and within the bounds."""
    try:
        finite = math.isfinite(value)
    except OverflowError:  # a whole number of hundreds of digits
        finite = False
    if not finite:
        raise ValueError(f"{name} must be a finite number, not {str(value)[:40]}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum:g}, not {value:g}")
    if value > maximum:
        raise ValueError(f"{name} must be at most {maximum:g}, not {value:g}")


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return float(value)
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value
