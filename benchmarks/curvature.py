"""Time of λ1 and trace: pugdft against curvlinops and SciPy, on equal images at equal accuracy.

Needs `curvlinops-for-pytorch`. One process: both sides take turns, and the least time of each counts.
The other side is SciPy's `eigsh`, with the same stop rule for λ1, and Hutch++. Traces are shown with their
standard deviation over seeds, so that accuracy can be compared too.

    python benchmarks/curvature.py --images 128 --repeats 3
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from pugdft.analysis import curvature
from pugdft.analysis.objective import LossPart, Objective, fits, graph_bytes

_PART = 64
_MOST_PRODUCTS = 60  # of λ1; both sides end at a residual of 0.001


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
    krylov = curvature.lanczos(objective.product, start, _MOST_PRODUCTS)
    trace = curvature.trace(objective.product, krylov, seed=seed)
    return krylov.largest, trace.value, objective.num_products


def theirs(
    model: nn.Module, inputs: Tensor, labels: Tensor, seed: int, products: int
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


def main() -> None:
    """Measure each network, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--networks", default="mlp,test_resnet")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--their-products", type=int, default=30, help="of Hutch++")
    given = parser.parse_args()
    for name in given.networks.split(","):
        model, inputs, labels = trained(name, given.images)
        times: dict[str, list[float]] = {"pugdft": [], "curvlinops": []}
        values: dict[str, list[tuple[float, float, float]]] = {"pugdft": [], "curvlinops": []}
        for seed in range(given.repeats):
            for side_name in times:
                begin = time.process_time()
                if side_name == "pugdft":
                    found = ours(model, inputs, labels, seed)
                else:
                    found = theirs(model, inputs, labels, seed, given.their_products)
                values[side_name].append(found)
                times[side_name].append(time.process_time() - begin)
        for side_name, seconds in times.items():
            eigenvalues, traces, products = np.array(values[side_name]).T
            print(
                f"{name} {side_name}: {min(seconds):.2f} CPU-s, λ1 {eigenvalues.mean():.6g}, trace "
                f"{traces.mean():.5g} ± {traces.std():.2g} (sd), {products.mean():.0f} products"
            )
        print(f"{name}: {min(times['pugdft']) / min(times['curvlinops']):.2f} of curvlinops' time")


if __name__ == "__main__":
    main()
