"""What the rules of a method are given: the step, the parameters, and their own state."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from pugdft.optim.options import require


class MethodRule:
    """One of a method's rules: a frozen dataclass whose fields are its options.

    ``bounds`` are the least and largest value of its numbers, which are checked to be finite too.
    """

    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {}

    def __post_init__(self) -> None:
        for name, (minimum, maximum) in self.bounds.items():
            require(getattr(self, name), name, minimum, maximum)


ANY = (-math.inf, math.inf)


def at_least(minimum: float) -> tuple[float, float]:
    """Bounds without a largest value."""
    return minimum, math.inf


@dataclass(frozen=True)
class StepContext:
    """The moment of one update, before it is made; learning rates are those of the first parameter group."""

    step: int  # updates made so far
    told_progress: float | None  # fraction of the training done, in 0..1; None if nobody has said it
    lr: float
    base_lr: float  # the peak: what the scheduler says, or the largest so far
    min_lr: float = 0.0  # the least: what the scheduler says, or 0

    @property
    def progress(self) -> float:
        """Fraction of the training done, for the rules that need it."""
        if self.told_progress is None:
            warnings.warn(
                "this method needs the progress of the training, which was never set and counts as 0: give "
                "build_optimizer(..., total_steps=N), or set optimizer.progress (on this optimizer, not on "
                "a wrapper of it) before each step",
                stacklevel=2,
            )
        return self.told_progress or 0.0


@dataclass(frozen=True)
class Draws:
    """Random numbers of one step, as functions of the run's seed and the step.

    So a resumed run draws the same numbers, and so does every process. torch's own generators stay as they
    are.
    """

    seed: int
    step: int

    def generator(self, use: str, device: torch.device) -> torch.Generator:
        """Make a generator for one use, such as ``noise``, whose numbers are independent of other uses'."""
        mixed = hashlib.blake2b(f"{use} {self.seed} {self.step}".encode(), digest_size=8).digest()
        return torch.Generator(device).manual_seed(int.from_bytes(mixed) >> 1)


@dataclass(frozen=True)
class ParameterInfo:
    """What is known about the parameters beyond their values."""

    names: Mapping[Tensor, str] = field(default_factory=dict)  # empty if the caller gave none
    # Scales and shifts of normalisation layers; None if the caller gave no module to find them in.
    norm_parameters: frozenset[Tensor] | None = None


class RuleState:
    """What one rule remembers between steps; part of the optimizer's state."""

    def __init__(self) -> None:
        self.tensors: dict[str, dict[Tensor, Tensor]] = {}  # by a name, then by the parameter
        self.values: dict[str, Any] = {}  # numbers, booleans, lists of numbers

    def state_dict(self, positions: Mapping[Tensor, int]) -> dict[str, Any]:
        """Tensors under the parameter's position among all parameters, as torch saves its own state."""
        tensors = {
            name: {positions[parameter]: tensor for parameter, tensor in each.items()}
            for name, each in self.tensors.items()
        }
        return {"tensors": tensors, "values": dict(self.values)}

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
