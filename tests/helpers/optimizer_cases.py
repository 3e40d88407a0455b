"""A small network in float64, its batch, and specs: what the optimizer tests share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pugdft.optim import LossScale, build_optimizer
from pugdft.optim.build import takes_two_passes
from pugdft.optim.methods import METHODS
from pugdft.optim.perturbed import PerturbedOptimizer

LRS = [0.1, 0.03]
DECAYS = [0.01, 0.2]
SGD_BASE: dict[str, Any] = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
ADAMW_BASE: dict[str, Any] = {"name": "adamw", "lr": 0.1}
ALL = ["plain", *METHODS]
TWO_PASS = [name for name in METHODS if takes_two_passes(name)]
# Two passes at the very first step, whatever the trigger would say.
ALWAYS_TWO = [name for name in TWO_PASS if name != "pugd_t"]


class Net(nn.Module):
    """Not quadratic, not convex, with a normalisation layer, and with weights that are exactly zero."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 4)
        self.norm = nn.LayerNorm(4)
        self.second = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.norm(self.first(x))))


def network(dtype: torch.dtype = torch.float64, device: str = "cpu") -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = Net().to(torch.float64)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
            net.first.weight[0, 0] = 0.0
    return net.to(dtype).to(device)


def batch(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn((16, 5), generator=generator, dtype=torch.float64)
    y = torch.randn((16, 3), generator=generator, dtype=torch.float64)
    return x.to(dtype), y.to(dtype)


def loss_of(net: nn.Module, scale: float = 1.0) -> Tensor:
    weight = next(net.parameters())
    x, y = (each.to(weight.device) for each in batch(weight.dtype))
    return scale * ((net(x) - y) ** 2).mean()


def start() -> list[Tensor]:
    return [parameter.detach().clone() for parameter in network().parameters()]


def gradient_of(weights: list[Tensor]) -> list[Tensor]:
    net = network()
    leaves = [w.detach().clone().requires_grad_() for w in weights]
    names = [name for name, _ in net.named_parameters()]
    x, y = batch()
    output = torch.func.functional_call(net, dict(zip(names, leaves, strict=True)), (x,))
    return list(torch.autograd.grad(((output - y) ** 2).mean(), leaves))


def two_groups(net: nn.Module) -> list[dict[str, Any]]:
    named = list(net.named_parameters())
    return [
        {"params": named[:3], "lr": LRS[0], "weight_decay": DECAYS[0]},
        {"params": named[3:], "lr": LRS[1], "weight_decay": DECAYS[1]},
    ]


def spec_of(name: str, base: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    """A method over a base; ``plain`` is the base alone."""
    base = dict(base or SGD_BASE)
    return base if name == "plain" else {"name": name, "base": base, **options}


def make_closure(
    optimizer: PerturbedOptimizer, net: nn.Module, clear: str = "optimizer", scale: float = 1.0
) -> Callable[[], Tensor]:
    """Forward and backward; clears the gradients first in one of the ways that people do."""

    def closure() -> Tensor:
        if clear == "optimizer":
            optimizer.zero_grad()
        elif clear == "in place":
            net.zero_grad(set_to_none=False)
        elif clear == "to none":
            net.zero_grad(set_to_none=True)
        loss = loss_of(net, scale)
        optimizer.backward(loss)
        return loss

    return closure


def run(
    spec: dict[str, Any],
    steps: int = 5,
    clear: str = "optimizer",
    scale: float = 1.0,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    **contexts: Any,
) -> tuple[Net, PerturbedOptimizer]:
    """Some steps on two groups."""
    net = network(dtype, device)
    optimizer = build_optimizer(spec, two_groups(net), module=net, **contexts)
    go_on(optimizer, net, 0, steps, steps, clear, scale)
    return net, optimizer


def go_on(
    optimizer: PerturbedOptimizer,
    net: nn.Module,
    first: int,
    last: int,
    total: int,
    clear: str = "optimizer",
    scale: float = 1.0,
) -> None:
    """Steps ``first`` to ``last`` of a run of ``total``, with a falling learning rate."""
    closure = make_closure(optimizer, net, clear, scale)
    for step in range(first, last):
        optimizer.progress = step / total
        for group, lr in zip(optimizer.param_groups, LRS, strict=False):
            group["lr"] = lr * lr_share(step)
        optimizer.zero_grad()
        optimizer.step(closure)


def lr_share(step: int) -> float:
    return 1 - step / 40


def deviation(first: Any, second: Any) -> float:
    """The largest difference of any element; the two may be on different devices."""
    a = list(first.parameters()) if isinstance(first, nn.Module) else first
    b = list(second.parameters()) if isinstance(second, nn.Module) else second
    pairs = zip(a, b, strict=True)
    return max(float((x.detach().cpu() - y.detach().cpu()).abs().max()) for x, y in pairs)


class Half(nn.Module):
    """A network computed in ``dtype``, None for fp32; gradients of its loss underflow in fp16."""

    def __init__(self, dtype: torch.dtype | None, device: str = "cpu") -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.first, self.second = nn.Linear(16, 32), nn.Linear(32, 4)
        self.dtype = dtype
        self.to(device)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, self.dtype, enabled=self.dtype is not None):
            return self.second(torch.tanh(self.first(x))).float()


def half_run(
    name: str, dtype: torch.dtype | None, loss_scale: LossScale | None, device: str = "cpu", steps: int = 4
) -> Half:
    """Some steps in a precision, with fp32 weights."""
    net = Half(dtype, device)
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(2)).to(device)
    lr = 1e3 if name in ("sam", "plain", "gsam", "wsam") else 0.1
    optimizer = build_optimizer(spec_of(name, {"name": "sgd", "lr": lr}), net, loss_scale=loss_scale)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = 1e-6 * (net(x) ** 2).mean()  # gradients of 1e-8: below fp16's smallest number
        optimizer.backward(loss)
        return loss

    for _ in range(steps):
        optimizer.step(closure)
    return net
