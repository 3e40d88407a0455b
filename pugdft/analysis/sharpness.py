"""The sharpness of a run's minimum: λ1, trace and worst rise on a sample of its images, as numbers.

The model is copied, so the one that is given is never changed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pugdft.analysis import curvature
from pugdft.analysis.ball import NUM_STEPS, WorstRise, adaptive_scales, worst_rise
from pugdft.analysis.curvature import Krylov
from pugdft.analysis.files import digest_of
from pugdft.analysis.objective import LossPart, Objective, fits, graph_bytes, twice_differentiable
from pugdft.analysis.overlay import SHARPNESS_CAVEAT, Overlay, caveats, records_facts, versions
from pugdft.analysis.points import Sample, batch_norms
from pugdft.errors import UserError
from pugdft.inference.load import LoadedModel
from pugdft.training.freezing import Freezing
from pugdft.training.performance import products_in

NUM_QUARTERS = 4
_FEWEST_IMAGES = 8
_MOST_VECTORS = 1_000  # of a basis, which is kept
_MOST_AT_ONCE = 64  # images of a part: of a quarter of the default sample
_PROBED = 8  # images by which the memory of a graph is measured
_SETTLED_AFTER = 0.4  # of the products, in trained networks
_STEPS_OF_A_BALL = 3 * (NUM_STEPS + 1) + 1


@dataclass(frozen=True)
class SharpnessOptions:
    """What is measured; equal options and equal samples make numbers comparable.

    Attributes:
        batch: images of a batch over which worst rises are averaged; None: all images are one.
        batch_norm: ``fixed``: the run's running statistics; ``batch``: those of each batch.
        parameters: ``trained``: those that the recipe trains at its end.
    """

    rho: float = 0.05
    adaptive_rho: float = 0.5
    products: int = curvature.MOST_PRODUCTS
    probes: int = curvature.MOST_PROBES
    batch: int | None = None
    batch_norm: Literal["fixed", "batch"] = "fixed"
    parameters: Literal["trained", "all"] = "trained"
    precision: Literal["fp32", "fp64"] = "fp32"
    spectrum: bool = False

    def check(self, num_images: int) -> None:
        """Raise a UserError for a value that is not possible."""
        for name in ("rho", "adaptive_rho"):
            if not 0 < getattr(self, name) < float("inf"):
                option = name.replace("_", "-")
                raise UserError(f"--{option} {getattr(self, name):g}: must be above 0 and finite")
        for name in ("products", "probes"):
            if not 2 <= getattr(self, name) <= _MOST_VECTORS:
                raise UserError(f"--{name} {getattr(self, name)}: must be from 2 to {_MOST_VECTORS:,}")
        if num_images < _FEWEST_IMAGES:
            raise UserError(f"--images {num_images}: must be at least {_FEWEST_IMAGES}")
        if self.batch is not None and (self.batch < 2 or num_images % self.batch):
            raise UserError(
                f"--batch {self.batch}: must be at least 2 and divide the {num_images} images evenly; "
                "`all` takes them as one"
            )
        for name in ("batch_norm", "parameters", "precision"):
            allowed = get_args(SharpnessOptions.__dataclass_fields__[name].type)
            assert not allowed or getattr(self, name) in allowed

    def comparable(self) -> dict[str, Any]:
        """What must be equal for two numbers to be compared; the spectrum is no part of them."""
        return {name: value for name, value in asdict(self).items() if name != "spectrum"}


@dataclass(frozen=True)
class Sharpness:
    """The measured numbers and what they are of, for the stored form; ``arrays`` only with a spectrum."""

    facts: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]
    digest: str


def sharpness_digest(loaded: LoadedModel, sample: Sample, options: SharpnessOptions) -> str:
    """The digest of weights, sample and options."""
    weights = records_facts([loaded])[0]["weights_sha256"]
    return digest_of({"weights": weights, "sample": sample.sha256, "options": asdict(options)})


class TwiceDifferentiable:
    """A copy of a model whose loss on a sample can be differentiated twice.

    Args:
        loaded: a run's model.
        sample: its images.
    """

    def __init__(self, loaded: LoadedModel, sample: Sample, options: SharpnessOptions) -> None:
        self.options, self.sample = options, sample
        dtype = torch.float64 if options.precision == "fp64" else torch.float32
        self.model = twice_differentiable(loaded.model).to(dtype)
        self.inputs, self.labels = sample.inputs.to(dtype), sample.labels
        names = _measured(loaded, self.model, options.parameters)
        self.named = {name: each for name, each in self.model.named_parameters() if name in names}
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in names)
        if options.batch_norm == "batch":
            for norm in batch_norms(self.model):
                norm.train()
        self.objective, self.quarters = self._objective()

    def _loss(self, part: slice) -> Tensor:
        return functional.cross_entropy(self.model(self.inputs[part]).double(), self.labels[part])

    def _objective(self) -> tuple[Objective, list[list[int]]]:
        """The mean loss in parts, and which parts are of each quarter of the sample."""
        count, parameters, device = len(self.sample), list(self.named.values()), self.inputs.device
        few = min(_PROBED, count)
        with self.exact():
            num_bytes = graph_bytes(lambda: self._loss(slice(0, few)), parameters)
        keeps = fits(num_bytes // few * count, device)
        most = self.options.batch or count
        if self.options.batch_norm == "fixed":
            most = min(most, _MOST_AT_ONCE)
            while most > 1 and not fits(num_bytes // few * most, device):
                most //= 2
        bounds = [count * number // NUM_QUARTERS for number in range(NUM_QUARTERS + 1)]
        if self.options.batch_norm == "batch":
            # A quarter of a batch would have other statistics.
            bounds = [0, count] if count % (NUM_QUARTERS * most) else bounds
        parts, quarters = list[LossPart](), list[list[int]]()
        for begin, end in pairwise(bounds):
            quarters.append([])
            for start in range(begin, end, most):
                stop = min(end, start + most)
                quarters[-1].append(len(parts))
                parts.append(LossPart(partial(self._loss, slice(start, stop)), (stop - start) / count))
        return Objective(parts, parameters, keeps), quarters if len(quarters) > 1 else []

    def exact(self) -> Any:
        """A context in which fp32 products are fp32."""
        return products_in("ieee", self.inputs.device.type)

    def slope(self, objective: Objective, weights: Tensor) -> tuple[float, Tensor]:
        """Loss and gradient at other weights."""
        objective.write_(weights)
        return objective.loss_and_gradient()

    def batches(self) -> list[Objective]:
        """The loss of each batch: one for all images by default."""
        size, parameters = self.options.batch, self.objective.parameters
        if size is None:
            return [self.objective]
        starts = range(0, len(self.sample), size)
        return [
            Objective([LossPart(partial(self._loss, slice(start, start + size)), 1.0)], parameters)
            for start in starts
        ]


def _measured(loaded: LoadedModel, model: nn.Module, which: str) -> set[str]:
    """Names of the parameters that count."""
    names = {name for name, each in model.named_parameters() if each.is_floating_point()}
    if which == "trained" and loaded.run is not None:
        frozen = Freezing(model, loaded.recipe.train, loaded.name).phases[-1].frozen
        names -= frozen | {name for name, each in model.named_parameters() if not each.requires_grad}
    return names


def num_steps(options: SharpnessOptions) -> int:
    """Products and gradients of a measurement at most; each batch of a ball counts as its share."""
    spectrum = 150 if options.spectrum else 0
    return 3 * options.products + options.probes + spectrum + 2 * _STEPS_OF_A_BALL


def measure(
    loaded: LoadedModel,
    sample: Sample,
    options: SharpnessOptions,
    on_step: Callable[[float], None] = lambda share: None,
) -> Sharpness:
    """Measure a run's sharpness.

    Args:
        on_step: called after each product or gradient with the share of the images that it is of; what it
            raises ends the measurement, and nothing has changed.

    Raises:
        UserError: an option is not possible, or the loss is not finite.
    """
    options.check(len(sample))
    begin = time.perf_counter()
    probe = TwiceDifferentiable(loaded, sample, options)
    with probe.exact():
        numbers, arrays = _numbers(probe, on_step)
    overlay = Overlay([loaded], sample, options.batch_norm)
    digest = sharpness_digest(loaded, sample, options)
    comparison = digest_of({"sample": sample.sha256, "options": options.comparable()})
    lines = [*caveats(overlay, [numbers["loss"]]), *_unsettled(numbers), SHARPNESS_CAVEAT]
    lines.append("λ1, trace and worst rise change when layers are rescaled; adaptive λ1 does not")
    facts = {
        "records": records_facts([loaded]),
        "options": asdict(options),
        "sample": sample.facts(),
        "comparison": comparison,
        "batch_norm": overlay.evaluators()[0].handling,
        "numbers": numbers,
        "seconds": round(time.perf_counter() - begin, 3),
        "device": str(probe.inputs.device),
        "versions": versions(),
        "caveats": lines,
    }
    return Sharpness(facts, arrays, digest)


def _numbers(
    probe: TwiceDifferentiable, on_step: Callable[[float], None]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """All numbers, and the spectrum if it was asked for."""
    objective, options, seed = probe.objective, probe.options, probe.sample.seed
    whole = partial(on_step, 1.0)
    loss, gradient = objective.loss_and_gradient()
    if not (np.isfinite(loss) and bool(torch.isfinite(gradient).all())):
        raise UserError("the loss of this sample, or its gradient, is not finite: there is no sharpness")
    weights, size = objective.weights(), objective.size
    # All products are taken, also when λ1 is settled: a larger basis makes the trace more certain.
    start = curvature.random_vector(size, weights, seed)
    krylov = curvature.lanczos(objective.product, start, options.products, stops=False, on_product=whole)
    trace = curvature.trace(objective.product, krylov, options.probes, seed, whole)
    top = krylov.vector()
    scaled = curvature.scaled_product(objective.product, weights.abs())
    adaptive = curvature.lanczos(scaled, start, options.products, on_product=whole)
    # The quarters' vectors are near the whole sample's; a random part keeps any other within reach.
    near = top + 0.5 * start / start.norm()
    quarters = []
    for chosen in probe.quarters:
        share = sum(objective.parts[number].share for number in chosen)
        part, tell = objective.restricted(chosen), partial(on_step, share)
        quarters.append(curvature.lanczos(part.product, near, options.products, on_product=tell).largest)
        objective.num_products += share * part.num_products
        objective.num_gradients += share * part.num_gradients
    arrays = {}
    if options.spectrum:
        arrays = dict(zip(("nodes", "weights"), curvature.density(
            objective.product, size, weights, seed=seed, on_product=whole), strict=True))  # fmt: skip
    products = objective.num_products
    objective.forget()
    top_adaptive = adaptive.vector()
    scales = torch.cat([each.reshape(-1) for each in adaptive_scales(probe.named)])
    plain = _rises(probe, weights, options.rho, top, None, on_step)
    own = _rises(probe, weights, options.adaptive_rho, top_adaptive, scales, on_step)
    numbers = {
        "loss": loss,
        "gradient_norm": float(gradient.double().norm()),
        "parameters": size,
        "lambda1": _eigenvalue(krylov, quarters),
        "adaptive_lambda1": _eigenvalue(adaptive),
        "trace": {
            "value": trace.value,
            "half_width": trace.half_width,
            "probes": trace.num_probes,
            "settled": trace.is_settled,
        },
        "worst_rise": _mean_rise(plain),
        "adaptive_worst_rise": _mean_rise(own),
        "products": round(products, 6),
        "gradients": round(objective.num_gradients, 6),
        "keeps_graphs": objective.keeps_graphs,
    }
    return numbers, arrays


def _rises(
    probe: TwiceDifferentiable,
    weights: Tensor,
    rho: float,
    direction: Tensor,
    scales: Tensor | None,
    on_step: Callable[[float], None],
) -> list[WorstRise]:
    """The worst rise of each batch, or of all images."""
    batches = probe.batches()
    found = []
    for each in batches:
        tell = partial(on_step, 1 / len(batches))
        slope = partial(probe.slope, each)
        found.append(worst_rise(slope, weights, rho, [direction], scales=scales, on_gradient=tell))
        if each is not probe.objective:
            probe.objective.num_gradients += each.num_gradients / len(batches)
    probe.objective.write_(weights)
    return found


def _eigenvalue(krylov: Krylov, quarters: list[float] | None = None) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "value": krylov.largest,
        "residual": krylov.residual,
        "settled": krylov.is_settled,
        "products": krylov.num_products,
        "smallest_at_most": krylov.smallest,
    }
    if quarters:
        facts |= {"quarters": quarters, "quarters_sd": float(np.std(quarters, ddof=1))}
    return facts


def _mean_rise(found: list[WorstRise]) -> dict[str, Any]:
    """Means over batches; a ratio of means, since a single rise may be 0."""
    rise, one_step = (
        float(np.mean([getattr(each, name) for each in found])) for name in ("rise", "one_step")
    )
    return {
        "rho": found[0].rho,
        "value": rise,
        "one_step": one_step,
        "one_step_share": one_step / rise if rise > 0 else None,
        "batches": len(found),
    }


def _unsettled(numbers: Mapping[str, Any]) -> list[str]:
    """A line for each number whose stop rule was not reached."""
    lines = []
    for key, name in (("lambda1", "λ1"), ("adaptive_lambda1", "adaptive λ1")):
        if not numbers[key]["settled"]:
            share = numbers[key]["residual"] / abs(numbers[key]["value"] or 1)
            lines.append(f"{name} is not settled: its residual is {share:.1%} of it; more --products")
    trace = numbers["trace"]
    if not trace["settled"]:
        width = abs(trace["half_width"] / (trace["value"] or 1))
        lines.append(f"the trace's interval is ± {width:.1%}, not below 2 %; more --probes")
    return lines


def planned_seconds(loaded: LoadedModel, sample: Sample, options: SharpnessOptions) -> tuple[int, float]:
    """Products and gradients at most, and the seconds to expect, from the time of one of each."""
    options.check(len(sample))
    probe = TwiceDifferentiable(loaded, sample, options)
    with probe.exact():
        vector = probe.objective.weights()
        probe.objective.product(vector)
        times = [time.perf_counter()]
        probe.objective.product(vector)
        times.append(time.perf_counter())
        probe.objective.loss_and_gradient()
        times.append(time.perf_counter())
    gradients, most = 2 * _STEPS_OF_A_BALL, num_steps(options)
    # The adaptive eigenvalue and the quarters' settle after less than half of their products.
    products = most - gradients - 2 * (1 - _SETTLED_AFTER) * options.products
    return most, products * (times[1] - times[0]) + gradients * (times[2] - times[1])
