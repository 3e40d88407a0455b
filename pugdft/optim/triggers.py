"""Slot 3: choose the steps that take two passes.

The timing rules are those of Radius-Timing Scale (2025). Before such a rule fires, the method runs in its
one-pass form through the same base state: the plain base (``before='plain'``) or unit gradients
(``before='unit'``). The rules on gradients and losses switch once and for all.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pvariance
from typing import Literal

import torch
from torch import Tensor

from pugdft.optim import foreach
from pugdft.optim.combine import Identity, Normalize, Unit
from pugdft.optim.context import RuleState, StepContext, require

Before = Literal["plain", "unit"]


class Trigger(ABC):
    """Decide whether a step takes a second pass; asked after the clean pass.

    Attributes:
        needs_validation: it needs the loss on held-out images after each epoch.
        perturbs: some step takes a second pass.
        passes_ahead: the only pass of a step is taken at the perturbed point.
    """

    needs_validation = False
    perturbs = True
    passes_ahead = False

    @property
    def expected_fraction(self) -> float | None:
        """The share of the steps that perturb, as far as it is known before the run."""
        return None

    @abstractmethod
    def fires(self, context: StepContext, parameters: Sequence[Tensor], state: RuleState) -> bool:
        """Whether this step takes a second pass.

        Args:
            context: the moment.
            parameters: those with a gradient, which is the clean one.
            state: this rule's.
        """

    def one_pass_rule(self) -> Normalize | None:
        """What is done to the gradient of a step of one pass; None for the method's own rule."""
        return Identity()

    def observe_epoch(
        self, train_loss: float, validation_loss: float, num_epochs: int, state: RuleState
    ) -> None:
        """See an epoch's mean clean training loss and the held-out loss."""


@dataclass(frozen=True)
class Always(Trigger):
    """Two passes at every step."""

    expected_fraction = 1.0

    def fires(self, context: StepContext, parameters: Sequence[Tensor], state: RuleState) -> bool:
        return True


@dataclass(frozen=True)
class Never(Trigger):
    """One pass at every step, normalised by the method's own rule."""

    expected_fraction = 0.0
    perturbs = False

    def fires(self, context: StepContext, parameters: Sequence[Tensor], state: RuleState) -> bool:
        return False

    def one_pass_rule(self) -> Normalize | None:
        return None


@dataclass(frozen=True)
class Ahead(Never):
    """One pass at every step, taken at the perturbed point."""

    passes_ahead = True


@dataclass(frozen=True, kw_only=True)
class _Timed(Trigger):
    before: Before = "plain"

    def __post_init__(self) -> None:
        if self.before not in ("plain", "unit"):
            raise ValueError(f"before must be plain or unit, not {self.before!r}")

    def one_pass_rule(self) -> Normalize | None:
        return Unit() if self.before == "unit" else Identity()


@dataclass(frozen=True, kw_only=True)
class After(_Timed):
    """From a fraction of the training on."""

    fraction: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.fraction, "fraction", minimum=0, maximum=1)

    @property
    def expected_fraction(self) -> float:
        return 1 - self.fraction

    def fires(self, context: StepContext, parameters: Sequence[Tensor], state: RuleState) -> bool:
        return context.progress >= self.fraction


@dataclass(frozen=True, kw_only=True)
class Every(_Timed):
    """Each k-th step, the first one included."""

    k: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.k, "k", minimum=1)

    @property
    def expected_fraction(self) -> float:
        return 1 / self.k

    def fires(self, context: StepContext, parameters: Sequence[Tensor], state: RuleState) -> bool:
        return context.step % self.k == 0


@dataclass(frozen=True, kw_only=True)
class Probability(_Timed):
    """Each step with probability p, decided by the seed and the step alone."""

    p: float
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.p, "p", minimum=0, maximum=1)
        require(self.seed, "seed", minimum=0, maximum=2**31)

    @property
    def expected_fraction(self) -> float:
        return self.p

    def fires(self, context: StepContext, parameters: Sequence[Tensor], state: RuleState) -> bool:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + context.step)
        return float(torch.rand((), generator=generator)) < self.p


@dataclass(frozen=True, kw_only=True)
class GradientVariance(_Timed):
    """Once the last k gradient norms vary less than gamma times those of the first steps.

    The threshold is gamma · Var(‖g‖ over the first ``init_fraction`` of the training), population variances.
    Reading the norm waits for the device at each step until the rule has fired.
    """

    gamma: float = 0.2
    k: int = 10
    init_fraction: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.gamma, "gamma", minimum=0)
        require(self.k, "k", minimum=2)
        require(self.init_fraction, "init_fraction", minimum=0, maximum=1)

    def fires(self, context: StepContext, parameters: Sequence[Tensor], state: RuleState) -> bool:
        values = state.values
        if values.get("fired"):
            return True
        norm = float(foreach.global_norm([p.grad for p in parameters if p.grad is not None]))
        if not math.isfinite(norm):
            return False  # the step is going to be skipped, and must leave no trace
        last = values["last"] = [*values.get("last", []), norm][-self.k :]
        if context.progress < self.init_fraction:
            values["first"] = [*values.get("first", []), norm]
            return False
        first = values.get("first", [])
        values["fired"] = (
            len(first) >= 2 and len(last) == self.k and pvariance(last) < self.gamma * pvariance(first)
        )
        return bool(values["fired"])


@dataclass(frozen=True, kw_only=True)
class GradientCosine(_Timed):
    """Once the mean over k steps of cos(g_t, g_{t−1}) is above kappa; keeps one more copy of the gradient."""

    kappa: float = 0.9
    k: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.kappa, "kappa", minimum=-1, maximum=1)
        require(self.k, "k", minimum=1)

    def fires(self, context: StepContext, parameters: Sequence[Tensor], state: RuleState) -> bool:
        values = state.values
        if values.get("fired"):
            return True
        if not math.isfinite(float(foreach.global_norm([p.grad for p in parameters if p.grad is not None]))):
            return False
        previous = state.tensors.get("previous", {})
        rows = [(p.grad, previous[p]) for p in parameters if p in previous and p.grad is not None]
        if rows:
            now, before = [row[0] for row in rows], [row[1] for row in rows]
            norms = foreach.global_norm(now) * foreach.global_norm(before)
            cosine = float(foreach.ratio(foreach.dot(now, before), norms))
            values["last"] = [*values.get("last", []), cosine][-self.k :]
        state.tensors["previous"] = {p: p.grad.clone() for p in parameters if p.grad is not None}
        last = values.get("last", [])
        values["fired"] = len(last) == self.k and fmean(last) > self.kappa
        if values["fired"]:
            state.tensors.clear()
        return bool(values["fired"])


@dataclass(frozen=True, kw_only=True)
class GeneralizationGap(_Timed):
    """Once |held-out loss − clean training loss| exceeds mu times its mean over the first epochs.

    The baseline is the mean over the first max(3, 0.1 · epochs) epochs; checked every ``every`` epochs.
    The held-out images are a cut of the training split, never the test split.
    """

    mu: float = 2.0
    every: int = 3
    needs_validation = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.mu, "mu", minimum=0)
        require(self.every, "every", minimum=1)

    def fires(self, context: StepContext, parameters: Sequence[Tensor], state: RuleState) -> bool:
        return bool(state.values.get("fired"))

    def observe_epoch(
        self, train_loss: float, validation_loss: float, num_epochs: int, state: RuleState
    ) -> None:
        values = state.values
        gaps = values["gaps"] = [*values.get("gaps", []), abs(validation_loss - train_loss)]
        first = max(3, round(0.1 * num_epochs))
        if len(gaps) > first and len(gaps) % self.every == 0 and gaps[-1] > self.mu * fmean(gaps[:first]):
            values["fired"] = True


TRIGGERS: Mapping[str, Callable[..., Trigger]] = {
    "after": After,
    "every": Every,
    "probability": Probability,
    "gradient_variance": GradientVariance,
    "gradient_cosine": GradientCosine,
    "generalization_gap": GeneralizationGap,
}
