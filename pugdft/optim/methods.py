"""Methods: one function for each paper, which chooses the five rules of a step.

In their documentation g is the gradient at w, g* that at w + e, and BASE(h) a step of the base with h.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from pugdft.config.plugins import OPTIMIZERS, OpenRegistry
from pugdft.errors import UserError
from pugdft.optim.combine import (
    COMBINATIONS,
    NORMALIZATIONS,
    Combination,
    DecoupledSharpness,
    Identity,
    Normalize,
    RemoveParallel,
    ReuseAscent,
    Scaled,
    Unit,
    UnitEach,
    Weighted,
)
from pugdft.optim.directions import (
    DIRECTIONS,
    AdaptiveGradient,
    AgainstMomentum,
    AveragedGradient,
    ClippedAscent,
    Direction,
    FilterNoise,
    FriendlyGradient,
    Gradient,
    LayerwiseGradient,
    Lookbehind,
    MultiStep,
    WeightedGradient,
)
from pugdft.optim.masks import Masked, NormLayers
from pugdft.optim.options import RuleSpec, build, refused, require
from pugdft.optim.schedules import Constant, Number, ProportionalToLr, Schedule, as_radius, as_schedule
from pugdft.optim.triggers import Ahead, Always, Every, GradientVariance, Never, Trigger

_ICOS: Mapping[str, Any] = {"schedule": "icos", "min": 0.5, "max": 2.0}


@dataclass(frozen=True)
class Method:
    """The five slots of one step; ``repr`` is the whole method. The defaults are SAM's."""

    direction: Direction
    radius: Schedule
    trigger: Trigger = field(default=Always())
    combine: Combination = field(default=Weighted(0, 1))
    normalize: Normalize = field(default=Identity())

    @property
    def perturbs(self) -> bool:
        """Whether some step takes a second pass."""
        return self.trigger.perturbs

    @property
    def expected_passes(self) -> float | None:
        """Gradient passes a step, averaged over a run; None if only the run itself can tell."""
        fraction = self.trigger.expected_fraction
        return None if fraction is None else 1 + fraction * self.direction.num_ascents


def plain() -> Method:
    """The base optimizer alone: one pass, the gradient as it is."""
    return Method(Gradient(), Constant(0.0), Never())


def sam(*, rho: Number = 0.05) -> Method:
    """Sharpness-aware minimization: the gradient at the worst nearby point.

    e = ρ · g / ‖g‖;  BASE(g*).
    Source: Foret et al., arXiv 2010.01412, eq. 2 and 3.
    Defaults: ρ = 0.05 is the paper's; it tries .01 to .5.
    Use: the baseline of this family; try ρ from 0.02 to 0.2 before anything else.
    Cost: 2 passes a step, 1 copy of the parameters.
    """
    return Method(Gradient(), as_radius(rho))


def asam(*, rho: Number = 0.5, eta: float = 0.01, bias_rule: Literal["paper", "all"] = "paper") -> Method:
    """Adaptive SAM: a ball that scales with each weight, so that rescaled networks are treated alike.

    e = ρ · T²g / ‖Tg‖ with T = |w| + η for weights, 1 for biases;  BASE(g*). ρ is about ten times SAM's.
    Source: Kwon et al., arXiv 2102.11600, eq. 8 and Algorithm 1. The common port takes T = |w| everywhere,
    without η (``bias_rule: all``).
    Defaults: ρ = 0.5 and η = 0.01 are of the paper's experiments; the best ρ of the common port is about 2.
    Use: where layers have very different scales, or SAM's best ρ changes from model to model.
    Cost: 2 passes a step, 1 copy of the parameters.

    Args:
        eta: added to |w|, ≥ 0.
        bias_rule: ``paper``, or ``all`` for the common port.
    """
    return Method(AdaptiveGradient(eta, bias_rule), as_radius(rho))


def sam_on(
    *,
    rho: Number = 10.0,
    eta: float = 0.0,
    bias_rule: Literal["paper", "all"] = "all",
    metric: Literal["elementwise", "layerwise", "plain"] | None = None,
) -> Method:
    """ASAM that perturbs normalisation layers only: most of the gain for almost no memory.

    e = ρ · T²g / ‖Tg‖ on the scales and shifts of normalisation layers, found by the layers' type;
    BASE(g*). T = |w| for each element (``elementwise``), ‖w‖ for each tensor (``layerwise``), or 1
    (``plain``, as in sam).
    Source: Müller et al., arXiv 2306.04226 (SAM-ON), Table 10.
    Defaults: ρ = 10, η = 0 and T = |w| on shifts too are of the authors' runs, for the metric
    ``elementwise``. For ``layerwise`` and ``plain`` ρ is nobody's: give it; try 0.01 to 0.2 and 0.1 to 1.
    Use: to save memory; the model needs normalisation layers that are trained.
    Cost: 2 passes a step, 1 copy of the norms alone.

    Args:
        eta: added to |w| of scales with ``bias_rule: paper``, ≥ 0.
        bias_rule: ``all``, or ``paper`` for T = 1 on shifts, as in asam.
        metric: what T is; ``elementwise`` by default.
    """
    if metric in ("layerwise", "plain") and rho == 10.0:
        fits = "0.01 to 0.2" if metric == "layerwise" else "0.1 to 1"
        warnings.warn(f"sam_on: rho 10 is for the metric elementwise; for {metric} try {fits}", stacklevel=2)
    if metric == "plain":
        return Method(Masked(Gradient(), NormLayers()), as_radius(rho))
    adaptive = LayerwiseGradient if metric == "layerwise" else AdaptiveGradient
    return Method(adaptive(eta, bias_rule, norm_layers_only=True), as_radius(rho))


def gnp(*, rho: Number = 0.1, alpha: float = 0.8) -> Method:
    """Gradient-norm penalty: between the plain gradient and SAM's.

    e = ρ · g / ‖g‖;  BASE((1 − α)·g + α·g*).
    Source: Zhao et al., arXiv 2202.03599, eq. 10, where ρ is the step r of a finite difference. α = 1 is SAM,
    α = 0 the base. The coupled form of WSAM is this with α = γ/(1 − γ).
    Defaults: ρ = 0.1 and α = 0.8 are of the authors' recipe for a ResNet on CIFAR, which clips at 5
    (``clip``); the paper tries α from −.5 to 2.
    Use: where SAM's whole step is too strong: α between 0 and 1 mixes it with the base's.
    Cost: 2 passes a step, 1 copy of the parameters in pugdft's own loop.

    Args:
        alpha: share of the perturbed gradient.
    """
    if not 0 <= alpha <= 1:
        warnings.warn(f"gnp: alpha {alpha:g} is outside [0, 1]: an extrapolation", stacklevel=2)
    return Method(Gradient(), as_radius(rho), combine=Weighted(1 - alpha, alpha)) if alpha else plain()


def gsam(
    *,
    rho_min: float = 0.01,
    rho_max: float = 0.05,
    alpha: float = 0.4,
    lr_min: float | None = None,
    lr_max: float | None = None,
) -> Method:
    """Surrogate-gap guided SAM: descend on the perturbed loss, ascend on what of g it does not explain.

    e = ρ_t · g / ‖g‖, ρ_t from ρ_max at lr_max to ρ_min at lr_min;  BASE(g* − α·(g − ⟨g, g*⟩ g* / ‖g*‖²)).
    Source: Zhuang et al., arXiv 2203.08065, Algorithm 1. Products and norms are global.
    Defaults: nobody's together: α = 0.4 is of the authors' CIFAR example, whose radius is an adaptive 2, and
    ρ_min and ρ_max are ours, around SAM's radius. Try α from 0.05 to 0.5 and ρ_max from 0.02 to 0.2.
    Use: with a learning rate that falls over the run: the radius follows it.
    Cost: 2 passes a step, 2 copies of the parameters.

    Args:
        rho_min: radius at the least lr, ≥ 0.
        rho_max: radius at the peak lr, ≥ rho_min.
        alpha: weight of the orthogonal part of g.
        lr_min: the schedule's least lr; by default the group's ``min_lr``, or 0.
        lr_max: the schedule's peak; by default the group's ``max_lr``, or the largest so far.
    """
    require(rho_min, "rho_min", 0, rho_max)
    radius = ProportionalToLr(min=rho_min, max=rho_max, lr_min=lr_min, lr_max=lr_max)
    return Method(Gradient(), radius, combine=RemoveParallel(alpha))


def looksam(*, rho: Number = 0.05, k: int = 5, alpha: float = 0.7) -> Method:
    """SAM at every k-th step; between, the base's gradient plus the remembered flat direction.

    At every k-th step BASE(g*) and v = g* − proj_g(g*); between, BASE(g + α·(‖g‖/‖v‖)·v).
    Source: Liu et al., arXiv 2203.02714, Algorithm 1. Global norms.
    Defaults: k = 5 and α = 0.7 are of the paper's experiments; ρ = 0.05 is SAM's: try 0.02 to 0.2.
    Use: where two passes at each step cost too much.
    Cost: 1 + 1/k passes a step, 2 copies of the parameters, one of them in the checkpoint.

    Args:
        k: steps from one two-pass step to the next, ≥ 1; 1 is SAM.
        alpha: weight of the remembered direction.
    """
    return Method(Gradient(), as_radius(rho), Every(k=k), ReuseAscent(alpha))


def fsam(*, rho: Number = 0.2, sigma: float = 1.0, lambda_: float = 0.6) -> Method:
    """Friendly SAM: perturb along the batch's own noise, the gradient less its running mean.

    e = ρ · s / ‖s‖ with s = g − σ·m, then m ← λ·m + (1 − λ)·g;  BASE(g*).
    Source: Li et al., arXiv 2403.12350, eq. 7 and 8. The first step is plain SAM with m = g; m in s is the
    value before the step's update, which uses the raw g.
    Defaults: ρ = 0.2, σ = 1 and λ = 0.6 are of the authors' script for a ResNet on CIFAR; they log
    λ = 0.95 too.
    Use: with small batches, whose gradients are mostly noise.
    Cost: 2 passes a step, 2 copies of the parameters, one of them in the checkpoint.

    Args:
        sigma: how much of the mean is removed.
        lambda_: rate of the mean, in 0..1 (``lambda`` in a recipe).
    """
    require(lambda_, "lambda", 0, 1)
    return Method(FriendlyGradient(sigma, lambda_), as_radius(rho))


def vasso(*, rho: Number = 0.2, theta: float = 0.9) -> Method:
    """Variance-suppressed SAM: perturb along a running mean of gradients.

    d ← (1 − θ)·d + θ·g, starting as g;  e = ρ · d / ‖d‖;  BASE(g*).
    Source: Li and Giannakis, NeurIPS 2023, arXiv 2309.15639, eq. 5.
    Defaults: ρ = 0.2 and θ = 0.9 are of the authors' script for CIFAR.
    Use: with small batches, where one batch's gradient is a poor direction for e.
    Cost: 2 passes a step, 2 copies of the parameters, one of them in the checkpoint.

    Args:
        theta: rate of the mean, in 0..1; 1 is SAM.
    """
    return Method(AveragedGradient(theta), as_radius(rho))


def wsam(*, rho: Number = 0.05, gamma: float = 0.9) -> Method:
    """Weighted SAM, decoupled: the base steps with g, the sharpness term is applied beside it.

    e = ρ · g / ‖g‖;  BASE(g), then w ← w − lr·κ·(g* − g) with κ = γ/(1 − γ).
    Source: Yue et al., arXiv 2305.15817, Algorithm 1 (decoupled). The coupled form is gnp with α = γ/(1 − γ).
    Defaults: γ = 0.9 is of the paper's experiments; ρ = 0.05 is SAM's: try 0.02 to 0.2.
    Use: to set how much sharpness counts apart from the radius.
    Cost: 2 passes a step, 2 copies of the parameters.

    Args:
        gamma: weight of the sharpness term, in [0, 1); 1/2 weighs both gradients alike.
    """
    return Method(Gradient(), as_radius(rho), combine=DecoupledSharpness(gamma))


def amp(
    *,
    epsilon: Number = 0.5,
    inner_lr: float = 1.0,
    inner_iter: int = 1,
    scope: Literal["global", "tensor"] = "global",
) -> Method:
    """Adversarial model perturbation: ascent steps inside a ball, then the gradient there.

    N times e ← clip(e + ζ·∇L(w + e)) to ‖e‖ ≤ ε;  BASE(g*).
    Source: Zheng et al., arXiv 2010.04925, Algorithm 1. The paper's ball is global; its code clips each
    tensor (``scope: tensor``).
    Defaults: ε = 0.5, ζ = 1 and N = 1 are of the paper's experiments.
    Use: for several ascent steps, or an e that stays small where the gradient is small.
    Cost: 1 + N passes a step, 1 copy of the parameters.

    Args:
        epsilon: radius of the ball, ≥ 0: a number or a schedule.
        inner_lr: ζ, length of an ascent step in units of the gradient, ≥ 0.
        inner_iter: N, ascent steps, ≥ 1.
        scope: ``global`` or ``tensor``.
    """
    require(inner_iter, "inner_iter", 1)
    return Method(ClippedAscent(inner_lr, inner_iter, scope), as_radius(epsilon, "epsilon"))


def msam(*, rho: Number = 3.0) -> Method:
    """Momentum-SAM: the gradient at a point against the momentum, for the price of the base.

    e = −ρ · v / ‖v‖ with v the base's momentum, which it must have;  BASE(∇L(w + e)) at w.
    Source: Becker et al., arXiv 2401.12033, eq. 4. Published code leaves the weights perturbed between
    steps; here a step perturbs, passes, and restores, so evaluation and checkpoints see w. The loss that a
    step returns is that at w + e: there is no other pass.
    Defaults: ρ = 3 is of the authors' runs with SGD on CIFAR; theirs on ImageNet have 0.3 for a ResNet with
    SGD and 10 for a ViT with AdamW.
    Use: where a second pass costs too much; the base needs momentum.
    Cost: 1 pass a step, 1 copy of the parameters.
    """
    return Method(AgainstMomentum(), as_schedule(rho, "rho", minimum=0), Ahead())


def rwp(*, sigma: Number = 0.05, alpha: float = 1.0) -> Method:
    """Random weight perturbation: a random direction, the control for all that follow a gradient.

    e ~ N(0, σ²·‖w_row‖²/n) for each filter of n weights;  BASE((1 − α)·g + α·g*). α = 1 needs no g: one pass.
    Source: Flat-LoRA, Li et al., arXiv 2409.14396, for this scale of the noise; Li et al., arXiv 2211.11489
    and 2404.00357 (RWP, m-RWP), for α. RWP has no 1/n: its σ = 0.01 and α = 0.5 are σ = 0.01·√n here, such
    as 0.24 for filters of 576 weights. Its two gradients are of two batches, ours of one. ‖e‖ is about
    σ·‖w‖: σ = ρ/‖w‖ has the length of a SAM's e, and compares the direction alone. The noise is a function
    of the run's seed and the step. With α = 1 the loss of a step, and BatchNorm's statistics, are those at
    w + e: there is no other pass.
    Defaults: σ = 0.05 is of Flat-LoRA's runs, on language models; for images it is nobody's: try 0.005 to
    0.5. α = 1 is Flat-LoRA's too.
    Use: to see how much of a SAM's gain its direction brings.
    Cost: 1 pass a step, 1 copy of the parameters. 2 passes with α < 1, and then the options of two passes.

    Args:
        sigma: ‖e‖ over ‖w‖, ≥ 0: a number or a schedule; Flat-LoRA lets it rise from 0.
        alpha: share of the perturbed gradient, in 0..1; 0 is the base.
    """
    require(alpha, "alpha", 0, 1)
    radius = as_schedule(sigma, "sigma", minimum=0)
    if alpha == 0:
        return plain()
    if alpha == 1:
        return Method(FilterNoise(), radius, Ahead())
    return Method(FilterNoise(), radius, combine=Weighted(1 - alpha, alpha))


def multi_step(*, rho: Number = 0.05, k: int = 2) -> Method:
    """SAM with several ascents, each along the gradient where the last one ended.

    k times e ← e + (ρ/k) · g(w + e) / ‖g(w + e)‖;  BASE(g*). ‖e‖ ≤ ρ whatever k is; k = 1 is SAM.
    Source: Multistep-SAM in Mordido et al., arXiv 2307.16704; the division of ρ by k is ours, so that k alone
    does not change the radius.
    Defaults: ρ = 0.05 is SAM's and k = 2 ours: try ρ from 0.02 to 0.2 and k from 2 to 5.
    Use: to see whether a better approximation of the worst nearby point helps.
    Cost: 1 + k passes a step, 1 copy of the parameters.

    Args:
        k: ascents, ≥ 1.
    """
    require(k, "k", 1)
    return Method(MultiStep(k), as_radius(rho))


def lookbehind(*, rho: Number = 0.05, k: int = 2, alpha: float = 0.5) -> Method:
    """SAM with several ascents and as many descents, whose gradients are added up.

    k times e ← e + ρ · g(w + e) / ‖g(w + e)‖, and a gradient g*ᵢ at each of the k points;  BASE(α · Σ g*ᵢ).
    Source: Mordido et al., arXiv 2307.16704, which steps the base k times from w and goes the
    share α of that way. Here the base steps once: the same for SGD without momentum and decay. Its α that
    adapts to each layer is left out. Each of its ascents is as long as ρ (multi_step divides ρ by k).
    Defaults: ρ = 0.05, k = 2 and α = 0.5 are among the authors' values for SAM; with α = 1/k the step is
    that of the mean gradient. They try α of 0.2, 0.5 and 0.8.
    Use: where several ascents go too far for the last gradient alone.
    Cost: 1 + k passes a step, 2 copies of the parameters.

    Args:
        k: ascents, ≥ 1; with α = 1, 1 is SAM.
        alpha: factor of the added gradients, above 0 and at most 1.
    """
    require(k, "k", 1)
    if not 0 < alpha <= 1:
        raise refused("alpha", f"must be above 0 and at most 1, not {alpha:g}")
    return Method(Lookbehind(k), as_radius(rho), combine=Weighted(0, alpha))


def ugd() -> Method:
    """Unit gradient descent: BASE(g / ‖g‖).

    Use: to see what the normalisation alone does. The step length is lr itself.
    Source: Update in Unit Gradient, arXiv 2110.00199v1, Algorithm 2; PUGD, Definition 3 (NGD-FM).
    Cost: 1 pass a step, no further memory.
    """
    return Method(Gradient(), Constant(0.0), Never(), normalize=Unit())


def ngd_cw(*, scope: Literal["tensor", "element"] = "tensor") -> Method:
    """Component-wise normalised gradient descent: every tensor, or every element, of unit length.

    BASE(g / ‖g‖) for each tensor by itself, or BASE(sign g).
    Source: compared in the PUGD paper, arXiv 2110.00199, whose text allows both readings; no code exists.
    Use: as a control for ugd: one length for each tensor instead of one for all.
    Cost: 1 pass a step, no further memory.

    Args:
        scope: ``tensor`` divides each tensor by its norm, ``element`` takes the sign of each element.
    """
    return Method(Gradient(), Constant(0.0), Never(), normalize=UnitEach(scope))


def sam_gns(*, rho: Number = 0.05) -> Method:
    """SAM with its gradient as one unit vector.

    e = ρ · g / ‖g‖;  BASE(g* / ‖g*‖): g is not added.
    Source: Update in Unit Gradient, arXiv 2110.00199v1, Algorithm 3.
    Defaults: ρ = 0.05 is SAM's: try 0.02 to 0.2.
    Use: as a control for pugd: SAM's gradient with a step of unit length.
    Cost: 2 passes a step, 1 copy of the parameters.
    """
    return Method(Gradient(), as_radius(rho), normalize=Unit())


def pugd(*, rho: Number = 1.0) -> Method:
    """Perturbated unit gradient descent: both gradients, added, as one unit vector.

    e = ρ · |w|⊙g / ‖|w|⊙g‖;  BASE((g + g*) / ‖g + g*‖). ρ = 0 is unit gradient descent.
    Source: Tseng et al., arXiv 2110.00199, eq. 12 and Algorithm 1.
    Defaults: ρ = 1 is the paper's.
    The step length is lr itself, whatever the loss's scale; weight decay comes after the normalisation.
    Published code restores w by subtracting e, which is not w in floating point: here w is copied back.
    Use: where the loss's scale should not matter. Tune lr before ρ: lr alone is the step's length.
    Cost: 2 passes a step, 1 copy of the parameters in pugdft's own loop (2 under a closure that
    clears the gradients).
    """
    return pugd_s(rho=rho, scale=1.0)


def pugd_r(*, rho: Number = _ICOS) -> Method:
    """PUGD with a scheduled radius (RTS: R).

    e = a_r(t) · |w|⊙g / ‖|w|⊙g‖;  BASE((g + g*) / ‖g + g*‖).
    Source: When and How Much to Perturb? Radius-Timing-Scale, 2025.
    Defaults: the schedule of ρ is ours, from 0.5 to 2: try bounds from 0.25 to 4. Others are sin, cos, isin,
    linear, cosine, proportional_to_lr.
    Use: to let the radius change over the run.
    Cost: 2 passes a step, 1 copy of the parameters.
    """
    return pugd(rho=rho)


def pugd_s(*, rho: Number = 1.0, scale: Number = _ICOS) -> Method:
    """PUGD with a scheduled share of the clean gradient (RTS: S).

    e as in pugd;  BASE(U / ‖U‖) with U = a_s(t)·g + g*.
    Source: When and How Much to Perturb? Radius-Timing-Scale, 2025.
    Defaults: ρ = 1 is PUGD's; the schedule of scale is ours, from 0.5 to 2: try bounds from 0.25 to 4.
    Use: to let the share of the clean gradient change over the run.
    Cost: 2 passes a step, 1 copy of the parameters.

    Args:
        scale: factor of the clean gradient, a number or a schedule.
    """
    combine = Scaled(as_schedule(scale, "scale"))
    return Method(WeightedGradient(), as_radius(rho), combine=combine, normalize=Unit())


def pugd_rs(*, rho: Number = _ICOS, scale: Number = _ICOS) -> Method:
    """PUGD with both schedules, independent of each other (RTS: RS).

    e as in pugd_r, and BASE(U / ‖U‖) as in pugd_s, whose options these are.
    Source: When and How Much to Perturb? Radius-Timing-Scale, 2025.
    Defaults: the schedules of ρ and scale are ours, from 0.5 to 2: try bounds from 0.25 to 4.
    Use: to let both change over the run.
    Cost: 2 passes a step, 1 copy of the parameters.
    """
    return pugd_s(rho=rho, scale=scale)


def pugd_t(*, rho: Number = 1.0) -> Method:
    """PUGD once the variance of the gradient norm is small (RTS: T); the base alone before that.

    BASE(g), then pugd's BASE((g + g*) / ‖g + g*‖) once Var(last k ‖g‖) < γ · Var(‖g‖ over the first tenth),
    γ = .2 and k = 10; ``trigger`` chooses another rule or other values.
    Source: When and How Much to Perturb? Radius-Timing-Scale, 2025.
    Defaults: ρ = 1 is PUGD's.
    Use: to save passes: the first part of the run takes one pass a step.
    Cost: 1 to 2 passes a step, 1 copy of the parameters.
    """
    return replace(pugd(rho=rho), trigger=GradientVariance())


def rules(
    *,
    direction: RuleSpec = "gradient",
    rho: Number = 0.05,
    combine: RuleSpec = {"name": "weighted", "clean": 0, "perturbed": 1},  # noqa: B006
    normalize: RuleSpec = "identity",
) -> Method:
    """A method of your own, spelled from its rules.

    e along ``direction`` with radius ρ, h from g and g* by ``combine``;  BASE(normalize(h)). The defaults
    are SAM; ``direction: weighted_gradient, rho: 1, combine: scaled, normalize: unit`` is PUGD.
    Source: none; cite the papers of the rules that you combine.
    Defaults: SAM's; those of each rule are its paper's or ours, see its source.
    Use: to try a combination that no paper has.
    Cost: 2 passes a step, 1 copy of the parameters (2 with a merging combination or an averaging direction).

    Args:
        direction: gradient, weighted_gradient, adaptive_gradient, layerwise_gradient, friendly_gradient,
            averaged_gradient, clipped_ascent, multi_step or filter_noise; with options as a mapping:
            ``{name: adaptive_gradient, eta: 0.01}``.
        combine: weighted (clean, perturbed), scaled (scale), remove_parallel (alpha), reuse_ascent (alpha) or
            decoupled_sharpness (gamma).
        normalize: identity, unit or unit_each (scope).
    """
    return Method(
        build("direction", DIRECTIONS, direction, "direction"),
        as_radius(rho),
        combine=build("combination", COMBINATIONS, combine, "combine"),
        normalize=build("normalization", NORMALIZATIONS, normalize, "normalize"),
    )


def _as_method(name: str, found: Any) -> Callable[..., Method] | None:
    """Accept another package's function ``-> Method``; None for a class of torch's kind, which is a base."""
    if isinstance(found, type) and issubclass(found, torch.optim.Optimizer):
        return None
    if inspect.isfunction(found) and inspect.get_annotations(found).get("return") in (Method, "Method"):
        options = inspect.signature(found).parameters.values()
        if not any(option.default is inspect.Parameter.empty for option in options):
            return found
    raise UserError(
        f'"{name}": must be a function `-> Method` whose options all have defaults, or a class of '
        "torch.optim.Optimizer"
    )


METHODS: OpenRegistry[Callable[..., Method]] = OpenRegistry(
    {
        preset.__name__: preset
        for preset in (
            ugd, ngd_cw, sam, asam, sam_gns, pugd, pugd_r, pugd_s, pugd_rs, pugd_t, gnp, gsam, looksam, fsam,
            vasso, wsam, sam_on, amp, msam, rwp, multi_step, lookbehind, rules,
        )
    },
    OPTIMIZERS,
    _as_method,
)  # fmt: skip
"""Name in a recipe to its function; other packages' too."""
