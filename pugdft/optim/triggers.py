"""Slot 3: choose the steps that take two passes.

The timing rules are those of Radius-Timing Scale (2025). Steps of one pass use the same base's state, plainly
or with unit gradients (``before='unit'``). The rules on gradients and losses switch once and for all.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, pvariance
from typing import ClassVar, Literal

import torch

from pugdft.optim import foreach
from pugdft.optim.combine import Identity, Normalize, Unit
from pugdft.optim.context import ANY, MethodRule, RuleState, StepContext, at_least
from pugdft.optim.foreach import Tensors
from pugdft.optim.options import Registry


class Trigger(MethodRule):
    """Decide whether a step takes a second pass; asked after the clean pass."""

    needs_validation = False  # the loss on held-out images after each epoch
    perturbs = True  # some step takes a second pass
    passes_ahead = False  # the only pass of a step is taken at the perturbed point

    @property
    def expected_fraction(self) -> float | None:
        """The share of the steps that perturb, if it is known before the run."""
        return None

    def is_due(self, context: StepContext, state: RuleState) -> bool:
        """Whether it is certain before the clean pass that this step takes a second pass.

        Only then do noisy layers, such as Shake-Shake, give the clean pass their true gradient.
        """
        return False

    def fires(self, context: StepContext, parameters: Tensors, state: RuleState) -> bool:
        """Whether this step takes a second pass; ``parameters`` are those with a clean gradient."""
        return self.perturbs

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

    def is_due(self, context: StepContext, state: RuleState) -> bool:
        return True


@dataclass(frozen=True)
class Never(Trigger):
    """One pass at every step, normalised by the method's own rule."""

    expected_fraction = 0.0
    perturbs = False

    def one_pass_rule(self) -> Normalize | None:
        return None


@dataclass(frozen=True)
class Ahead(Never):
    """One pass at every step, taken at the perturbed point."""

    passes_ahead = True


@dataclass(frozen=True, kw_only=True)
class TimingRule(Trigger):
    """Two passes at some steps; ``before`` says what the steps of one pass are."""

    before: Literal["plain", "unit"] = "plain"

    never_at: ClassVar[Mapping[str, float]] = {}  # values of options with which no step is perturbed

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in self.never_at.items():
            if getattr(self, name) == value:
                message = f"this trigger never fires, so that no step is perturbed: {name} is {value:g}"
                warnings.warn(message, stacklevel=4)

    def fires(self, context: StepContext, parameters: Tensors, state: RuleState) -> bool:
        return self.is_due(context, state)

    def one_pass_rule(self) -> Normalize | None:
        return Unit() if self.before == "unit" else Identity()


@dataclass(frozen=True, kw_only=True)
class After(TimingRule):
    """From a fraction of the training on."""

    fraction: float
    bounds: ClassVar = {"fraction": (0, 1)}
    never_at: ClassVar = {"fraction": 1}

    @property
    def expected_fraction(self) -> float:
        return 1 - self.fraction

    def is_due(self, context: StepContext, state: RuleState) -> bool:
        return context.progress >= self.fraction


@dataclass(frozen=True, kw_only=True)
class Every(TimingRule):
    """Each k-th step, the first one included."""

    k: int
    bounds: ClassVar = {"k": at_least(1)}

    @property
    def expected_fraction(self) -> float:
        return 1 / self.k

    def is_due(self, context: StepContext, state: RuleState) -> bool:
        return context.step % self.k == 0


@dataclass(frozen=True, kw_only=True)
class Probability(TimingRule):
    """Each step with probability p, decided by the seed and the step alone."""

    p: float
    seed: int = 0
    bounds: ClassVar = {"p": (0, 1), "seed": (0, 2**31)}
    never_at: ClassVar = {"p": 0}

    @property
    def expected_fraction(self) -> float:
        return self.p

    def is_due(self, context: StepContext, state: RuleState) -> bool:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + context.step)
        return float(torch.rand((), generator=generator)) < self.p


class GradientRule(TimingRule, ABC):
    """From the step on at which the gradients are steady; until then each step waits for the device."""

    @abstractmethod
    def is_steady(self, norm: float, parameters: Tensors, progress: float, state: RuleState) -> bool:
        """Remember this step's gradient and judge the last ones; ``norm`` is its finite global norm."""

    def is_due(self, context: StepContext, state: RuleState) -> bool:
        return bool(state.values.get("fired"))

    def fires(self, context: StepContext, parameters: Tensors, state: RuleState) -> bool:
        if self.is_due(context, state):
            return True
        norm = float(foreach.global_norm(foreach.gradients_of(parameters)))
        if math.isfinite(norm):  # else the step is going to be skipped, and must leave no trace
            state.values["fired"] = self.is_steady(norm, parameters, context.progress, state)
        return bool(state.values.get("fired"))


@dataclass(frozen=True, kw_only=True)
class GradientVariance(GradientRule):
    """Once the last k gradient norms vary less than gamma times those of the first steps.

    The threshold is gamma · Var(‖g‖ over the first ``init_fraction`` of the training), population variances.
    """

    gamma: float = 0.2
    k: int = 10
    init_fraction: float = 0.1
    bounds: ClassVar = {"gamma": at_least(0), "k": at_least(2), "init_fraction": (0, 1)}
    never_at: ClassVar = {"gamma": 0, "init_fraction": 1}

    def is_steady(self, norm: float, parameters: Tensors, progress: float, state: RuleState) -> bool:
        values = state.values
        last = values["last"] = [*values.get("last", []), norm][-self.k :]
        if progress < self.init_fraction:
            values["first"] = [*values.get("first", []), norm]
            return False
        if "threshold" not in values:  # once, for it takes all the first norms
            first = values.get("first", [])
            values["threshold"] = self.gamma * pvariance(first) if len(first) >= 2 else 0.0
        return len(last) == self.k and pvariance(last) < values["threshold"]


@dataclass(frozen=True, kw_only=True)
class GradientCosine(GradientRule):
    """Once the mean over k steps of cos(g_t, g_{t−1}) is above kappa; keeps one more copy of the gradient."""

    kappa: float = 0.9
    k: int = 10
    bounds: ClassVar = {"kappa": (-1, 1), "k": at_least(1)}
    never_at: ClassVar = {"kappa": 1}

    def is_steady(self, norm: float, parameters: Tensors, progress: float, state: RuleState) -> bool:
        previous = state.tensors.get("previous", {})
        known = [p for p in parameters if p in previous]
        last = state.values.get("last", [])
        if known:
            now, before = foreach.gradients_of(known), [previous[p] for p in known]
            norms = foreach.global_norm(now) * foreach.global_norm(before)
            cosine = float(foreach.ratio(foreach.dot(now, before), norms))
            last = state.values["last"] = [*last, cosine][-self.k :]
        if len(last) == self.k and fmean(last) > self.kappa:
            state.tensors.clear()
            return True
        state.tensors["previous"] = {p: p.grad.clone() for p in parameters if p.grad is not None}
        return False


@dataclass(frozen=True, kw_only=True)
class Adaptive(TimingRule):
    """At steps whose gradient is large for its time: ‖g‖² ≥ μ + c·σ (AE-SAM, arXiv 2304.14647).

    μ ← delta·μ + (1 − delta)·‖g‖², then σ² ← delta·σ² + (1 − delta)·(‖g‖² − μ)², both from 0 on. c goes from
    ``lambda_2`` at the start of the training to ``lambda_1`` at its end: later steps perturb more often.
    Each step waits for the device, as its decision is the host's. The defaults are ours, unconfirmed by the
    authors'
    runs: about half of the steps perturb. Start with ``lambda_1`` from -2 to 0 and ``lambda_2`` from 0 to 2.
    """

    lambda_1: float = -1.0
    lambda_2: float = 1.0
    delta: float = 0.9
    bounds: ClassVar = {"lambda_1": ANY, "lambda_2": ANY, "delta": (0, 1)}

    def fires(self, context: StepContext, parameters: Tensors, state: RuleState) -> bool:
        norm = float(foreach.global_norm(foreach.gradients_of(parameters)))
        square, rest = norm * norm, 1 - self.delta
        if not math.isfinite(square):  # the step is going to be skipped, and must leave no trace
            return False
        mean = self.delta * state.values.get("mean", 0.0) + rest * square
        variance = self.delta * state.values.get("variance", 0.0) + rest * (square - mean) ** 2
        state.values.update(mean=mean, variance=variance)
        share = context.progress
        threshold = share * self.lambda_1 + (1 - share) * self.lambda_2
        return square >= mean + threshold * math.sqrt(variance)


@dataclass(frozen=True, kw_only=True)
class GeneralizationGap(TimingRule):
    """Once |held-out loss − clean training loss| exceeds mu times its mean over the first epochs.

    These are max(3, 0.1 · epochs); it is checked every ``every`` epochs. The held-out images are a cut of the
    training split, never the test split.
    """

    mu: float = 2.0
    every: int = 3
    bounds: ClassVar = {"mu": at_least(0), "every": at_least(1)}
    needs_validation = True

    def is_due(self, context: StepContext, state: RuleState) -> bool:
        return bool(state.values.get("fired"))

    def fires(self, context: StepContext, parameters: Tensors, state: RuleState) -> bool:
        if context.told_progress is not None and context.progress > 0.5 and not state.values.get("gaps"):
            warnings.warn(
                "half of the training is over and the trigger generalization_gap was told no losses: call "
                "optimizer.observe_epoch(train_loss, validation_loss, num_epochs) after each epoch",
                stacklevel=2,
            )
        return self.is_due(context, state)

    def observe_epoch(
        self, train_loss: float, validation_loss: float, num_epochs: int, state: RuleState
    ) -> None:
        values = state.values
        gaps = values["gaps"] = [*values.get("gaps", []), abs(validation_loss - train_loss)]
        first = max(3, round(0.1 * num_epochs))
        if len(gaps) > first and len(gaps) % self.every == 0 and gaps[-1] > self.mu * fmean(gaps[:first]):
            values["fired"] = True


TRIGGERS: Registry = {
    "after": After,
    "every": Every,
    "probability": Probability,
    "gradient_variance": GradientVariance,
    "gradient_cosine": GradientCosine,
    "adaptive": Adaptive,
    "generalization_gap": GeneralizationGap,
}
