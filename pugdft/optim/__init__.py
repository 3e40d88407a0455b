"""Sharpness-aware and unit-gradient optimizers over any base, for anybody's training loop.

from pugdft.optim import build_optimizer

optimizer = build_optimizer({"name": "sam", "rho": 0.05, "base": {"name": "sgd", "lr": 0.01}}, model)
loss = optimizer.step(closure)  # the closure runs forward and backward and returns the loss
"""

from pugdft.optim.build import (
    build_optimizer,
    describe,
    explain_options,
    optimizer_names,
    resolve_spec,
    spec_faults,
    summary,
)
from pugdft.optim.methods import Method
from pugdft.optim.perturbed import PerturbedOptimizer
from pugdft.optim.scaler import LossScale

__all__ = [
    "LossScale",
    "Method",
    "PerturbedOptimizer",
    "build_optimizer",
    "describe",
    "explain_options",
    "optimizer_names",
    "resolve_spec",
    "spec_faults",
    "summary",
]
