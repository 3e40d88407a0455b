"""Time of λ1 and trace together: pugdft against curvlinops and SciPy, on equal images at equal accuracy.

Needs `curvlinops-for-pytorch`. The other side is SciPy's `eigsh`, with the residual that pugdft asks of λ1,
and Hutch++ with as many products as it needs for pugdft's standard deviation of the trace over seeds.
Processor time of one thread; the least over seeds of each side counts.

    python benchmarks/curvature.py --images 128 --seeds 20
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from pugdft.analysis import curvature
from pugdft.analysis.objective import LossPart, Objective, fits, graph_bytes

_PART = 64
_THEIR_PRODUCTS = (30, 45, 60, 90, 120, 180)  # of Hutch++, until its traces spread as little as ours


def trained(name: str, count: int, updates: int = 40) -> tuple[nn.Module, Tensor, Tensor]:
    """A model in evaluation mode after some updates, its images, and their classes."""
    torch.manual_seed(0)
    side = 8 if name == "mlp" else 32
    model = timm.create_model(name, num_classes=10) if name != "mlp" else nn.Sequential(
        nn.Flatten(), nn.Linear(192, 32), nn.Tanh(), nn.Linear(32, 10)
    )  # fmt: skip
    labels = torch.arange(count) % 10
    inputs = torch.randn(10, 3, side, side)[labels] + torch.randn(count, 3, side, side)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(updates):
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return model.eval(), inputs, labels


def ours(model: nn.Module, inputs: Tensor, labels: Tensor, seed: int) -> tuple[float, float, float]:
    """λ1, the trace, and products."""

    def loss_of(part: slice) -> Callable[[], Tensor]:
        return lambda: functional.cross_entropy(model(inputs[part]), labels[part])

    parts = [slice(start, start + _PART) for start in range(0, len(labels), _PART)]
    shares = [len(labels[part]) / len(labels) for part in parts]
    losses = [LossPart(loss_of(part), share) for part, share in zip(parts, shares, strict=True)]
    parameters = list(model.parameters())
    keeps = fits(len(parts) * graph_bytes(losses[0].loss, parameters), inputs.device)
    objective = Objective(losses, parameters, keeps)
    start = curvature.random_vector(objective.size, objective.weights(), seed)
    krylov = curvature.lanczos(objective.product, start, stops=False)
    trace = curvature.trace(objective.product, krylov, seed=seed)
    return krylov.largest, trace.value, objective.num_products


def theirs(
    model: nn.Module, inputs: Tensor, labels: Tensor, seed: int, *, products: int
) -> tuple[float, float, float]:
    """The same by `curvlinops`: an operator, SciPy's Lanczos, Hutch++ with so many products."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    curvlinops: Any = importlib.import_module("curvlinops")
    batches = [(inputs[i : i + _PART], labels[i : i + _PART]) for i in range(0, len(labels), _PART)]
    operator = curvlinops.HessianLinearOperator(
        model, nn.CrossEntropyLoss(), list(model.parameters()), batches, check_deterministic=False
    )
    scipy_operator: Any = operator.to_scipy()
    count = 0

    def product(vector: np.ndarray) -> np.ndarray:
        nonlocal count
        count += 1
        found: np.ndarray = scipy_operator @ vector
        return found

    counted = LinearOperator(scipy_operator.shape, matvec=product, dtype=np.float32)
    start = np.random.default_rng(seed).normal(size=scipy_operator.shape[0]).astype(np.float32)
    largest = eigsh(counted, k=1, which="LA", v0=start, tol=1e-3, return_eigenvectors=False)[0]
    torch.manual_seed(seed)
    trace = curvlinops.hutchpp_trace(operator, products - products % 3)
    return float(largest), float(trace), count + products - products % 3


def timed(measure: Callable[[int], tuple[float, float, float]], seeds: int) -> tuple[float, np.ndarray]:
    """The least processor time of a measurement, and λ1, trace and products of each seed."""
    times, found = [], []
    for seed in range(seeds):
        begin = time.process_time()
        found.append(measure(seed))
        times.append(time.process_time() - begin)
    return min(times), np.array(found)


def shown(seconds: float, found: np.ndarray) -> tuple[str, float]:
    """A line of results, and the relative standard deviation of the traces."""
    eigenvalue, trace, products = found.mean(0)
    spread = found[:, 1].std(ddof=1) / trace
    text = (
        f"{seconds:.2f} CPU-s, λ1 {eigenvalue:.6g}, trace {trace:.5g} ± {spread:.1%}, {products:.0f} products"
    )
    return text, spread


def main() -> None:
    """Measure each network, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--networks", default="mlp,test_resnet")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=20)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.networks.split(","):
        network = trained(name, given.images)
        seconds, found = timed(partial(ours, *network), given.seeds)
        text, spread = shown(seconds, found)
        print(f"{name} pugdft: {text}", flush=True)
        for products in _THEIR_PRODUCTS:
            other, found = timed(partial(theirs, *network, products=products), given.seeds)
            text, their_spread = shown(other, found)
            print(f"{name} curvlinops: {text}: pugdft takes {seconds / other:.2f} of its time", flush=True)
            if their_spread <= spread:
                break


if __name__ == "__main__":
    main()
