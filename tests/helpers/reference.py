"""The methods written once more, short and slow, in float64 from their papers: what the core is held to.

A reference is a class whose ``step(weights, gradient, moment)`` gives the gradient h for the base and, for
the one method that has it, what is subtracted from the weights afterwards (times the learning rate).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from optimizer_cases import LRS, gradient_of, lr_share, network, start
from torch import Tensor

from pugdft.optim.context import Draws

List = list[Tensor]
Gradient = Callable[[List], List]


@dataclass
class Moment:
    """What changes from step to step: the step, the progress, lr over its peak, and the base's momentum."""

    step: int
    progress: float
    lr_share: float
    velocity: List
    names: list[str]
    norm_layers: list[bool]


def norm(vectors: List) -> float:
    return math.sqrt(sum(float((v * v).sum()) for v in vectors))


def dot(a: List, b: List) -> float:
    return sum(float((x * y).sum()) for x, y in zip(a, b, strict=True))


def plus(a: List, b: List, factor: float = 1.0) -> List:
    return [x + factor * y for x, y in zip(a, b, strict=True)]


def times(a: List, factor: float) -> List:
    return [x * factor for x in a]


def unit(a: List) -> List:
    return times(a, 1 / (norm(a) + 1e-12))


class Plain:
    def step(self, w: List, grad: Gradient, m: Moment) -> tuple[List, List | None]:
        return self.h(w, grad, m), None

    def h(self, w: List, grad: Gradient, m: Moment) -> List:
        return grad(w)


class Ugd(Plain):
    def h(self, w: List, grad: Gradient, m: Moment) -> List:
        return unit(grad(w))


class NgdTensor(Plain):
    def h(self, w: List, grad: Gradient, m: Moment) -> List:
        return [g / (g.norm() + 1e-12) for g in grad(w)]


class NgdElement(Plain):
    def h(self, w: List, grad: Gradient, m: Moment) -> List:
        return [g.sign() for g in grad(w)]


class Sam(Plain):
    rho = 0.05

    def h(self, w: List, grad: Gradient, m: Moment) -> List:
        return grad(plus(w, unit(grad(w)), self.rho))


class SamGns(Sam):
    def h(self, w: List, grad: Gradient, m: Moment) -> List:
        return unit(super().h(w, grad, m))


class Asam(Plain):
    rho, eta, bias_rule = 0.5, 0.01, "paper"

    def scale(self, w: Tensor, name: str) -> Tensor:
        if self.bias_rule == "all":
            return w.abs()
        return w.abs() + self.eta if "weight" in name else torch.ones_like(w)

    def h(self, w: List, grad: Gradient, m: Moment) -> List:
        t = [self.scale(each, name) for each, name in zip(w, m.names, strict=True)]
        g = self.masked(grad(w), m)
        tg = [a * b for a, b in zip(t, g, strict=True)]
        ttg = [a * b for a, b in zip(t, tg, strict=True)]
        return grad(plus(w, ttg, self.rho / (norm(tg) + 1e-12)))

    def masked(self, g: List, m: Moment) -> List:
        return g


class AsamAll(Asam):
    bias_rule = "all"


class SamOn(Asam):
    rho, bias_rule = 10.0, "all"

    def masked(self, g: List, m: Moment) -> List:
        return [each * is_norm for each, is_norm in zip(g, m.norm_layers, strict=True)]


class SamOnPaper(SamOn):
    rho, bias_rule = 0.5, "paper"


class SamOnPlain(SamOn):
    rho = 0.5

    def scale(self, w: Tensor, name: str) -> Tensor:
        return torch.ones_like(w)


class SamOnLayerwise(SamOn):
    rho = 0.1

    def scale(self, w: Tensor, name: str) -> Tensor:
        return torch.full_like(w, norm([w]))


class AsamLayerwise(SamOnLayerwise):
    def masked(self, g: List, m: Moment) -> List:
        return g

    def scale(self, w: Tensor, name: str) -> Tensor:
        return super().scale(w, name) if "weight" in name else torch.ones_like(w)


class Pugd(Plain):
    def radius(self, m: Moment) -> float:
        return 1.0

    def scale(self, m: Moment) -> float:
        return 1.0

    def h(self, w: List, grad: Gradient, m: Moment) -> List:
        g = grad(w)
        e = unit([each.abs() * d for each, d in zip(w, g, strict=True)])
        return unit(plus(times(g, self.scale(m)), grad(plus(w, e, self.radius(m)))))


def icos(m: Moment) -> float:
    return 1 / (0.5 + 1.5 * math.cos(m.progress * math.pi / 2))


class PugdR(Pugd):
    def radius(self, m: Moment) -> float:
        return icos(m)


class PugdS(Pugd):
    def scale(self, m: Moment) -> float:
        return icos(m)


class PugdRs(PugdR, PugdS):
    pass


class PugdT(Pugd):
    """Switches when the variance of the last 10 norms is below .2 times that of the first tenth of steps."""

    def __init__(self) -> None:
        self.norms: list[float] = []
        self.fired = False

    def h(self, w: List, grad: Gradient, m: Moment) -> List:
        if not self.fired:
            self.norms.append(norm(grad(w)))
            first = self.norms[: m.num_first]  # type: ignore[attr-defined]
            if m.progress >= 0.1 and len(first) >= 2 and len(self.norms) >= 10:
                self.fired = variance(self.norms[-10:]) < 0.2 * variance(first)
        return super().h(w, grad, m) if self.fired else grad(w)


def variance(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / len(values)


class Gnp(Sam):
    alpha, rho = 0.8, 0.1

    def h(self, w: List, grad: Gradient, m: Moment) -> List:
        return plus(times(grad(w), 1 - self.alpha), super().h(w, grad, m), self.alpha)


class Gsam(Plain):
    def h(self, w: List, grad: Gradient, m: Moment) -> List:
        g = grad(w)
        s = grad(plus(w, unit(g), 0.01 + 0.04 * m.lr_share))
        orthogonal = plus(g, s, -dot(g, s) / norm(s) ** 2)
        return plus(s, orthogonal, -0.4)


class LookSam(Sam):
    k = 5

    def h(self, w: List, grad: Gradient, m: Moment) -> List:
        g = grad(w)
        if m.step % self.k == 0:
            s = super().h(w, grad, m)
            self.v = plus(s, g, -dot(s, g) / norm(g) ** 2)
            return s
        return plus(g, self.v, 0.7 * norm(g) / norm(self.v))


class Fsam(Plain):
    def __init__(self) -> None:
        self.m: List | None = None

    def h(self, w: List, grad: Gradient, m: Moment) -> List:
        g = grad(w)
        s = g if self.m is None else plus(g, self.m, -1.0)
        self.m = g if self.m is None else plus(times(self.m, 0.6), g, 0.4)
        return grad(plus(w, unit(s), 0.2))


class Vasso(Plain):
    def __init__(self) -> None:
        self.d: List | None = None

    def h(self, w: List, grad: Gradient, m: Moment) -> List:
        g = grad(w)
        self.d = g if self.d is None else plus(times(self.d, 0.1), g, 0.9)
        return grad(plus(w, unit(self.d), 0.2))


class Wsam(Sam):
    def step(self, w: List, grad: Gradient, m: Moment) -> tuple[List, List | None]:
        g = grad(w)
        return g, times(plus(self.h(w, grad, m), g, -1.0), 0.9 / 0.1)


class Amp(Plain):
    steps, scope = 1, "global"

    def h(self, w: List, grad: Gradient, m: Moment) -> List:
        e = [torch.zeros_like(each) for each in w]
        for _ in range(self.steps):
            e = plus(e, grad(plus(w, e)))
            if self.scope == "global":
                e = times(e, min(1.0, 0.5 / norm(e)))
            else:
                e = [each * min(1.0, 0.5 / norm([each])) for each in e]
        return grad(plus(w, e))


class AmpThree(Amp):
    steps = 3


class AmpTensor(Amp):
    scope = "tensor"


class Msam(Plain):
    def h(self, w: List, grad: Gradient, m: Moment) -> List:
        return grad(plus(w, unit(m.velocity), -3.0))


class Rwp(Plain):
    alpha = 1.0

    def h(self, w: List, grad: Gradient, m: Moment) -> List:
        numbers = Draws(0, m.step).generator("noise", torch.device("cpu"))
        moved = grad([each + self.noise(each, numbers) for each in w])
        return plus(times(grad(w), 1 - self.alpha), moved, self.alpha)

    def noise(self, weight: Tensor, numbers: torch.Generator) -> Tensor:
        rows = weight.flatten(1) if weight.dim() > 1 else weight[None]
        deviation = 0.05 * rows.norm(dim=1, keepdim=True) / math.sqrt(rows.shape[1])
        noise = torch.randn(rows.shape, generator=numbers, dtype=torch.float64)
        return (noise * deviation).reshape(weight.shape)


class RwpMixed(Rwp):
    alpha = 0.5


class MultiStep(Plain):
    k = 2

    def h(self, w: List, grad: Gradient, m: Moment) -> List:
        there = w
        for _ in range(self.k):
            there = plus(there, unit(grad(there)), 0.05 / self.k)
        return grad(there)


class MultiStepThree(MultiStep):
    k = 3


class Lookbehind(Plain):
    k, alpha = 2, 0.5

    def h(self, w: List, grad: Gradient, m: Moment) -> List:
        there, total = w, [torch.zeros_like(each) for each in w]
        for _ in range(self.k):
            there = plus(there, unit(grad(there)), 0.05)
            total = plus(total, grad(there))
        return times(total, self.alpha)


class LookbehindThree(Lookbehind):
    k, alpha = 3, 0.2


class AeSam(Sam):
    """Two passes where ‖g‖² is at least its running mean plus c times its running deviation."""

    def __init__(self) -> None:
        self.mean = self.variance = 0.0

    def h(self, w: List, grad: Gradient, m: Moment) -> List:
        square = norm(grad(w)) ** 2
        self.mean = 0.9 * self.mean + 0.1 * square
        self.variance = 0.9 * self.variance + 0.1 * (square - self.mean) ** 2
        threshold = self.mean + (m.progress * -1 + (1 - m.progress) * 1) * self.variance**0.5
        return super().h(w, grad, m) if square >= threshold else grad(w)


class LossBudget(Plain):
    def h(self, w: List, grad: Gradient, m: Moment) -> List:
        g = grad(w)
        share = max(0.0, (m.progress - 0.2) / 0.8)
        budget = 0.1 * (1 + math.cos(math.pi * share)) / 2
        return grad(plus(w, unit(g), min(budget / norm(g), 0.1)))


class Unnormalised(Plain):
    def h(self, w: List, grad: Gradient, m: Moment) -> List:
        return grad(plus(w, grad(w), 0.1))


class RandomPart(Plain):
    def h(self, w: List, grad: Gradient, m: Moment) -> List:
        numbers = Draws(0, m.step).generator("mask", torch.device("cpu"))
        masks = [torch.rand(each.shape, generator=numbers) < 0.6 for each in w]
        e = times(unit(grad(w)), 0.05 / 0.6)
        return grad([each + part * mask for each, part, mask in zip(w, e, masks, strict=True)])


class LargestFisher(Plain):
    every, share = 3, 0.4

    def h(self, w: List, grad: Gradient, m: Moment) -> List:
        g = grad(w)
        squares = [each * each for each in g]
        self.sums = squares if m.step % self.every == 1 or m.step == 0 else plus(self.sums, squares)
        if m.step % self.every == 0:
            whole = torch.cat([each.flatten() for each in self.sums]).sort(descending=True).values
            least = whole[round(self.share * len(whole)) - 1]
            self.masks = [each >= least for each in self.sums]
        e = times(unit(g), 0.05)
        return grad([each + part * mask for each, part, mask in zip(w, e, self.masks, strict=True)])


class LargestZ(Plain):
    def h(self, w: List, grad: Gradient, m: Moment) -> List:
        return grad(plus(w, unit([self.filtered(each) for each in grad(w)]), 0.05))

    def filtered(self, g: Tensor) -> Tensor:
        z = ((g - g.mean()) / (g.std(correction=0) + 1e-8)).abs()
        return g * (z > torch.quantile(z, 0.7))


class SGD:
    """d = h + λw; v = μv + d; w ← w − lr·v, with one (lr, λ) for each tensor."""

    def __init__(self, momentum: float, weight_decays: list[float]) -> None:
        self.momentum, self.weight_decays = momentum, weight_decays
        self.velocity: List = []

    def step(self, weights: List, direction: List, lrs: list[float]) -> List:
        d = [h + decay * w for h, w, decay in zip(direction, weights, self.weight_decays, strict=True)]
        old = self.velocity or [torch.zeros_like(each) for each in d]
        self.velocity = [self.momentum * v + each for v, each in zip(old, d, strict=True)]
        return [w - lr * v for w, v, lr in zip(weights, self.velocity, lrs, strict=True)]


class AdamW:
    """Decoupled weight decay (arXiv 1711.05101, Algorithm 2), with torch's placement of lr on the decay."""

    def __init__(self, weight_decays: list[float]) -> None:
        self.weight_decays, self.t = weight_decays, 0
        self.velocity: List = []
        self.squares: List = []

    def step(self, weights: List, direction: List, lrs: list[float]) -> List:
        self.t += 1
        zeros = [torch.zeros_like(h) for h in direction]
        self.velocity = [0.9 * m + 0.1 * h for m, h in zip(self.velocity or zeros, direction, strict=True)]
        self.squares = [
            0.999 * v + 0.001 * h * h for v, h in zip(self.squares or zeros, direction, strict=True)
        ]
        moved = []
        for w, m, v, lr, decay in zip(
            weights, self.velocity, self.squares, lrs, self.weight_decays, strict=True
        ):
            m_hat, v_hat = m / (1 - 0.9**self.t), v / (1 - 0.999**self.t)
            moved.append(w - lr * decay * w - lr * m_hat / (v_hat.sqrt() + 1e-8))
        return moved


_BUDGET = {"schedule": "loss_budget", "sigma": 0.1, "rho_max": 0.1, "anneal_from": 0.2}

# Name or name with options, as in a spec, to the reference.
REFERENCES: list[tuple[str, dict[str, object], type[Plain]]] = [
    ("plain", {}, Plain),
    ("ugd", {}, Ugd),
    ("ngd_cw", {}, NgdTensor),
    ("ngd_cw", {"scope": "element"}, NgdElement),
    ("sam", {}, Sam),
    ("sam_gns", {}, SamGns),
    ("asam", {}, Asam),
    ("asam", {"bias_rule": "all"}, AsamAll),
    ("sam_on", {}, SamOn),
    ("sam_on", {"rho": 0.5, "eta": 0.01, "bias_rule": "paper"}, SamOnPaper),
    ("sam_on", {"rho": 0.5, "metric": "plain"}, SamOnPlain),
    ("sam_on", {"rho": 0.1, "metric": "layerwise"}, SamOnLayerwise),
    ("pugd", {}, Pugd),
    ("pugd_r", {}, PugdR),
    ("pugd_s", {}, PugdS),
    ("pugd_rs", {}, PugdRs),
    ("pugd_t", {}, PugdT),
    ("gnp", {}, Gnp),
    ("gsam", {}, Gsam),
    ("looksam", {}, LookSam),
    ("fsam", {}, Fsam),
    ("vasso", {}, Vasso),
    ("wsam", {}, Wsam),
    ("amp", {}, Amp),
    ("amp", {"inner_iter": 3}, AmpThree),
    ("amp", {"scope": "tensor"}, AmpTensor),
    ("msam", {}, Msam),
    ("rwp", {}, Rwp),
    ("rwp", {"alpha": 0.5}, RwpMixed),
    ("multi_step", {}, MultiStep),
    ("multi_step", {"k": 3}, MultiStepThree),
    ("lookbehind", {}, Lookbehind),
    ("lookbehind", {"k": 3, "alpha": 0.2}, LookbehindThree),
    ("sam", {"trigger": {"name": "adaptive"}}, AeSam),
    ("sam", {"rho": _BUDGET}, LossBudget),
    ("sam", {"rho": {"schedule": "proportional_to_gradient", "factor": 0.1}}, Unnormalised),
    ("sam", {"mask": {"name": "random"}}, RandomPart),
    ("sam", {"mask": {"name": "largest_fisher", "share": 0.4, "every": 3}}, LargestFisher),
    ("sam", {"mask": {"name": "largest_z", "share": 0.3}}, LargestZ),
    ("asam", {"rho": 10, "bias_rule": "all", "mask": {"name": "norm_layers"}}, SamOn),
    ("rules", {"direction": "layerwise_gradient", "rho": 0.1}, AsamLayerwise),
    ("rules", {"direction": {"name": "multi_step", "num_ascents": 3}}, MultiStepThree),
    ("rules", {}, Sam),
    ("rules", {"normalize": "unit"}, SamGns),
    ("rules", {"direction": "weighted_gradient", "rho": 1, "combine": "scaled", "normalize": "unit"}, Pugd),
    ("rules", {"rho": 0.1, "combine": {"name": "weighted", "clean": 0.2, "perturbed": 0.8}}, Gnp),
    ("rules", {"combine": {"name": "decoupled_sharpness", "gamma": 0.9}}, Wsam),
    ("rules", {"direction": {"name": "adaptive_gradient", "bias_rule": "all"}, "rho": 0.5}, AsamAll),
]

# Each takes a way of its own through the algorithm; others differ from one of them in their rules alone.
_WAYS = ("plain", "sam", "pugd", "looksam", "wsam", "multi_step", "msam", "rwp")


def cases(closures: Sequence[str]) -> list[Any]:
    """Every reference with SGD and AdamW and every kind of closure.

    Slow but for SGD with the first kind, AdamW with the last one, and all of a method for each way.
    """
    found = []
    for name, options, reference in REFERENCES:
        for base, usual in (("sgd", closures[0]), ("adamw", closures[-1])):
            for closure in closures:
                is_quick = closure == usual or (base == "sgd" and name in _WAYS and not options)
                marks = () if is_quick else pytest.mark.slow
                case = f"{name}{options or ''}-{base}-{closure}"
                found.append(pytest.param(name, options, reference, base, closure, id=case, marks=marks))
    return found


def reference_run(reference: Plain, base: SGD | AdamW, steps: int) -> list[Tensor]:
    """The weights after steps of a method's reference over a base's, on two groups."""
    net = network()
    names = [name for name, _ in net.named_parameters()]
    weights = start()
    for step in range(steps):
        velocity = base.velocity or [torch.zeros_like(w) for w in weights]
        norms = [name.startswith("norm.") for name in names]
        moment = Moment(step, step / steps, lr_share(step), velocity, names, norms)
        moment.num_first = -(-steps // 10)  # type: ignore[attr-defined]
        h, correction = reference.step(weights, gradient_of, moment)
        lrs = [lr * lr_share(step) for lr in [LRS[0]] * 3 + [LRS[1]] * 3]
        weights = base.step(weights, h, lrs)
        if correction is not None:
            weights = [w - lr * c for w, lr, c in zip(weights, lrs, correction, strict=True)]
    return weights
