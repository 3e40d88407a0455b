"""Run by torchrun in two processes: every method under DDP against one process with the whole batch.

Prints a line for each comparison that held; fails with an assertion otherwise.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))

import torch
from optimizer_cases import ALL, batch, deviation, gradient_of, network, spec_of, start
from reference import plus, unit
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pugdft.optim import build_optimizer

STEPS = 4


def train(name: str, rank: int, world: int, accumulates: bool, **options: Any) -> nn.Module:
    """Some steps; with two processes each has every second image and all of them one DDP model."""
    net = network()
    model = DistributedDataParallel(net) if world > 1 else net
    optimizer = build_optimizer(
        spec_of(name, {"name": "sgd", "lr": 0.1, "momentum": 0.9}, **options),
        net,
        clean_pass=model.no_sync if world > 1 else None,
        closure_accumulates=accumulates,
    )
    x, y = batch()

    def closure() -> Tensor:
        loss = ((model(x[rank::world]) - y[rank::world]) ** 2).mean()
        loss.backward()
        return loss

    for step in range(STEPS):
        optimizer.progress = step / STEPS
        optimizer.zero_grad()
        optimizer.step(closure)
    return net


def own_gradient(weights: list[Tensor], part: slice) -> list[Tensor]:
    net = network()
    leaves = [w.clone().requires_grad_() for w in weights]
    names = [name for name, _ in net.named_parameters()]
    x, y = batch()
    output = torch.func.functional_call(net, dict(zip(names, leaves, strict=True)), (x[part],))
    return list(torch.autograd.grad(((output - y[part]) ** 2).mean(), leaves))


def local_reference(name: str) -> list[Tensor]:
    """m-sharpness: each process perturbs along its own gradient; the gradients there are averaged."""
    weights, velocity = start(), [torch.zeros_like(w) for w in start()]
    for _ in range(STEPS):
        total = [torch.zeros_like(w) for w in weights]
        for part in (slice(0, None, 2), slice(1, None, 2)):
            g = own_gradient(weights, part)
            s = [w.abs() * each for w, each in zip(weights, g, strict=True)] if name == "pugd" else g
            moved = plus(weights, unit(s), {"pugd": 1.0, "gnp": 0.1}.get(name, 0.05))
            g_star = own_gradient(moved, part)
            mixed = {"sam": g_star, "pugd": plus(g, g_star), "gnp": plus([0.2 * a for a in g], g_star, 0.8)}
            total = plus(total, mixed[name], 0.5)
        h = unit(total) if name == "pugd" else total
        velocity = plus([0.9 * v for v in velocity], h)
        weights = plus(weights, velocity, -0.1)
    return weights


def main() -> None:
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    for name in ALL:
        one = train(name, 0, 1, True)
        two = train(name, rank, 2, True)
        assert deviation(one, two) < 1e-11, (name, deviation(one, two))
        if rank == 0:
            print(f"equal: {name}")
    for name in ("sam", "pugd", "gnp"):
        two = train(name, rank, 2, True, perturb="local", replay_rng=name != "sam")
        expected = local_reference(name)
        assert deviation(two, expected) < 1e-11, (name, deviation(two, expected))
        assert deviation(two, train(name, rank, 2, True)) > 1e-6, "local is not global"
        if rank == 0:
            print(f"local: {name}")
    assert len(gradient_of(start())) == 6
    torch.distributed.barrier()
    sys.stdout.flush()
    os._exit(0)  # torch's own end is now and then an abort: one of its threads is still there


if __name__ == "__main__":
    main()
